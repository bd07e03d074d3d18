//! The instructions of the subset.

use super::comparison::Compare;
use super::error::LitmusErrorKind as Kind;
use super::program::{
    Fence, Function, Home, Instruction, Location, Op, Operand, Order, Proxy, Register, Rmw, Scope, Thread,
    Width,
};
use super::text::{is_name, number};

/// The memory that an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Global,
    Shared,
}

/// What an instruction may name; registers come to be when they are first named.
pub(super) struct Names<'a> {
    pub(super) locations: &'a [Location],
    pub(super) thread: &'a mut Thread,
    /// `bar.arrive` may leave out its count.
    pub(super) named_barriers: bool,
}

/// Parses an instruction. A branch comes with its label; its target is not known yet.
pub(super) fn instruction(
    line: u32,
    text: &str,
    names: &mut Names<'_>,
) -> Result<(Instruction, Option<String>), Kind> {
    let mut parser = Parser { text, words: Vec::new(), operands: Vec::new(), names };
    let (guard, body) = match text.strip_prefix('@') {
        None => (None, text),
        Some(rest) => {
            let (predicate, body) = rest
                .split_once(char::is_whitespace)
                .ok_or_else(|| parser.error("a guard needs an instruction"))?;
            let (predicate, truth) = match predicate.strip_prefix('!') {
                Some(negated) => (negated, false),
                None => (predicate, true),
            };
            (Some((parser.predicate(predicate)?, truth)), body.trim_start())
        }
    };
    let (mnemonic, operands) = body.split_once(char::is_whitespace).unwrap_or((body, ""));
    let mut words = mnemonic.split('.');
    let opcode = words.next().unwrap_or("");
    parser.words = words.collect();
    parser.operands = split(operands);
    let mut label = None;
    let op = match opcode {
        "ld" => parser.load(Proxy::Generic)?,
        "suld" => parser.load(Proxy::Surface)?,
        "tld" => parser.load(Proxy::Texture)?,
        "cold" => parser.load(Proxy::Constant)?,
        "st" => parser.store(Proxy::Generic)?,
        "sust" => parser.store(Proxy::Surface)?,
        "atom" => parser.atomic(true)?,
        "red" => parser.atomic(false)?,
        "fence" => parser.fence()?,
        "bar" | "barrier" => parser.barrier()?,
        "mov" => {
            let width = parser.width()?;
            let [d, a] = parser.take_operands("mov takes a destination and a source")?;
            let a = parser.operand(a, width)?;
            Op::Move { d: parser.register(d, width)?, a }
        }
        "add" | "sub" | "mul" | "and" | "or" | "xor" | "min" | "max" => {
            let function = parser.function(opcode)?;
            let function = if parser.signed() { signed(function) } else { function };
            let width = parser.width()?;
            let [d, a, b] = parser.take_operands("a destination and two sources are needed")?;
            let (a, b) = (parser.operand(a, width)?, parser.operand(b, width)?);
            Op::Compute { function, d: parser.register(d, width)?, a, b }
        }
        "setp" => parser.set_predicate()?,
        "bra" => {
            let [target] = parser.take_operands("bra takes a label")?;
            if !is_name(target) {
                return Err(parser.error("bra takes a label"));
            }
            label = Some(target.to_owned());
            Op::Branch { target: 0 }
        }
        _ => return Err(parser.error("not in the subset of litmus tests")),
    };
    if let Some(word) = parser.words.first() {
        return Err(parser.error(format!(".{word} does not belong here")));
    }
    Ok((Instruction { line, text: text.to_owned(), guard, op }, label))
}

/// The operands: what commas outside of braces separate.
fn split(operands: &str) -> Vec<&str> {
    let mut inside = false;
    let comma = |c: char| {
        inside = c == '{' || inside && c != '}';
        c == ',' && !inside
    };
    match operands.trim() {
        "" => Vec::new(),
        operands => operands.split(comma).map(str::trim).collect(),
    }
}

/// The signed function of that name.
fn signed(function: Function) -> Function {
    match function {
        Function::Min => Function::MinSigned,
        Function::Max => Function::MaxSigned,
        other => other,
    }
}

pub(super) struct Parser<'a, 'n> {
    text: &'a str,
    /// The modifiers that are not used up yet.
    words: Vec<&'a str>,
    pub(super) operands: Vec<&'a str>,
    pub(super) names: &'a mut Names<'n>,
}

impl<'a> Parser<'a, '_> {
    pub(super) fn error(&self, reason: impl Into<String>) -> Kind {
        Kind::Instruction { instruction: self.text.to_owned(), reason: reason.into() }
    }

    /// Uses up the first modifier that `parse` knows.
    pub(super) fn word<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (index, value) =
            self.words.iter().enumerate().find_map(|(index, word)| Some((index, parse(word)?)))?;
        self.words.remove(index);
        Some(value)
    }

    pub(super) fn flag(&mut self, wanted: &str) -> bool {
        self.word(|word| (word == wanted).then_some(())).is_some()
    }

    fn scope(&mut self) -> Option<Scope> {
        self.word(|word| match word {
            "cta" => Some(Scope::Block),
            "gpu" => Some(Scope::Device),
            "sys" => Some(Scope::System),
            _ => None,
        })
    }

    fn width(&mut self) -> Result<Width, Kind> {
        let width = self.word(|word| match word {
            "u8" | "b8" => Some(Width::B8),
            "u16" | "s16" | "b16" => Some(Width::B16),
            "u32" | "s32" | "b32" => Some(Width::B32),
            "u64" | "s64" | "b64" => Some(Width::B64),
            _ => None,
        });
        width.ok_or_else(|| self.error("a type is needed, such as .u32"))
    }

    /// Whether the type is a signed one.
    fn signed(&self) -> bool {
        self.words.iter().any(|word| word.starts_with('s'))
    }

    fn take_operands<const N: usize>(&mut self, reason: &str) -> Result<[&'a str; N], Kind> {
        <[&str; N]>::try_from(self.operands.as_slice()).map_err(|_| self.error(reason))
    }

    pub(super) fn predicate(&mut self, name: &str) -> Result<usize, Kind> {
        if !name.strip_prefix("%p").is_some_and(|digits| digits.bytes().all(|c| c.is_ascii_digit())) {
            return Err(self.error(format!("`{name}` is not a predicate register, such as %p0")));
        }
        let known = &mut self.names.thread.predicates;
        Ok(known.iter().position(|other| other == name).unwrap_or_else(|| {
            known.push(name.to_owned());
            known.len() - 1
        }))
    }

    pub(super) fn register(&mut self, name: &str, width: Width) -> Result<usize, Kind> {
        let (prefix, example) = match width {
            // Bytes have no registers of their own.
            Width::B8 | Width::B16 => ("%rs", "%rs0"),
            Width::B32 => ("%r", "%r0"),
            Width::B64 => ("%rd", "%rd0"),
        };
        let width = if width == Width::B8 { Width::B16 } else { width };
        let digits = name.strip_prefix(prefix).unwrap_or("");
        if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|c| c.is_ascii_digit()) {
            let bits = width.bits();
            return Err(self.error(format!("`{name}` is not a register of {bits} bits, such as {example}")));
        }
        let known = &mut self.names.thread.registers;
        Ok(known.iter().position(|other| other.name == name).unwrap_or_else(|| {
            known.push(Register { name: name.to_owned(), width });
            known.len() - 1
        }))
    }

    pub(super) fn operand(&mut self, text: &str, width: Width) -> Result<Operand, Kind> {
        if text.starts_with('%') {
            return Ok(Operand::Register(self.register(text, width)?));
        }
        let value = number(text)?;
        if width.cut(value) != value {
            return Err(self.error(format!("{value} does not fit {} bits", width.bits())));
        }
        Ok(Operand::Constant(value))
    }

    /// The location in brackets, of `width` and in the memory that the instruction names.
    fn location(&mut self, text: &str, width: Width, space: Option<Space>) -> Result<usize, Kind> {
        let name = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).map(str::trim);
        let name = name.ok_or_else(|| self.error(format!("`{text}` is not a location in brackets")))?;
        let locations = self.names.locations;
        let index = locations.iter().position(|known| known.name == name);
        let index = index.ok_or_else(|| Kind::Unknown { what: "location", name: name.to_owned() })?;
        let declared = locations[index].width;
        if declared != width {
            let (declared, accessed) = (declared.bits(), width.bits());
            return Err(Kind::MixedSize { location: name.to_owned(), declared, accessed });
        }
        let first = match locations[index].home {
            Home::Behind { first, .. } => first,
            _ => index,
        };
        let thread = &*self.names.thread;
        match (locations[first].home, space) {
            (Home::Shared { .. }, Some(Space::Global)) => Err(self.error(format!("{name} is shared memory"))),
            (Home::Shared { block }, _)
                if (locations[first].device, block) != (thread.device, thread.block) =>
            {
                Err(self.error(format!("{name} is shared memory of another block")))
            }
            (Home::Shared { .. }, None) => {
                Err(self.error(format!("{name} is shared memory: .shared is needed")))
            }
            (Home::Shared { .. }, Some(Space::Shared)) | (_, None | Some(Space::Global)) => Ok(index),
            (_, Some(Space::Shared)) => Err(self.error(format!("{name} is global memory"))),
        }
    }

    /// `.global` or `.shared`.
    fn space(&mut self) -> Option<Space> {
        self.word(|word| match word {
            "global" => Some(Space::Global),
            "shared" => Some(Space::Shared),
            _ => None,
        })
    }

    /// The locations of `.v2` or `.v4`, which lie behind one another, with the names in braces.
    fn vector(
        &mut self,
        lanes: usize,
        (names, address): (&'a str, &str),
        (width, space): (Width, Option<Space>),
    ) -> Result<Vec<(&'a str, usize)>, Kind> {
        let names = names.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).map(split);
        let names = names.filter(|names| names.len() == lanes);
        let names = names.ok_or_else(|| self.error(format!("{lanes} registers in braces are needed")))?;
        let first = self.location(address, width, space)?;
        let size = width.bits() / 8;
        let aligned = match self.names.locations[first].home {
            Home::Behind { offset, .. } => (offset / size).is_multiple_of(lanes as u32),
            _ => true,
        };
        let base = |at: usize| match self.names.locations.get(at).map(|location| location.home) {
            Some(Home::Behind { first, .. }) => Some(first),
            Some(_) => Some(at),
            None => None,
        };
        if !aligned || (first..first + lanes).any(|at| base(at) != base(first)) {
            return Err(self.error(format!("{address} does not begin {lanes} locations of one vector")));
        }
        Ok(names.into_iter().zip(first..).collect())
    }

    /// `.v2` or `.v4`.
    fn lanes(&mut self) -> Option<usize> {
        self.word(|word| match word {
            "v2" => Some(2),
            "v4" => Some(4),
            _ => None,
        })
    }

    /// Ordering and scope of a load or store; `own` is the strongest ordering that it can have.
    fn order(&mut self, own: &str) -> Result<Order, Kind> {
        let scope = self.scope();
        let strong = |scope, acquire, release| Order::Strong { scope, acquire, release };
        if self.flag("volatile") {
            // Relaxed at system scope (PTX ISA, "Operation Types").
            return match scope {
                None => Ok(strong(Scope::System, false, false)),
                Some(_) => Err(self.error("a volatile access has no scope")),
            };
        }
        if self.flag("relaxed") || self.words.contains(&own) {
            let ordered = self.flag(own);
            let scope =
                scope.ok_or_else(|| self.error("a strong access needs a scope: .cta, .gpu or .sys"))?;
            return Ok(strong(scope, ordered && own == "acquire", ordered && own == "release"));
        }
        self.flag("weak");
        match scope {
            None => Ok(Order::Weak),
            Some(_) => Err(self.error(format!("a scope needs .relaxed or .{own}"))),
        }
    }

    fn load(&mut self, proxy: Proxy) -> Result<Op, Kind> {
        let order = self.order("acquire")?;
        let space = self.space();
        let noncoherent = self.flag("nc");
        if noncoherent && (order != Order::Weak || space == Some(Space::Shared)) {
            return Err(self.error(".nc belongs to weak loads of global memory"));
        }
        let lanes = self.lanes();
        let width = self.width()?;
        let [d, address] = self.take_operands("a load takes a destination and a location")?;
        let load = |location, d| Op::Load { order, noncoherent, proxy, location, d };
        let Some(lanes) = lanes else {
            let location = self.location(address, width, space)?;
            return Ok(load(location, self.register(d, width)?));
        };
        let all = self.vector(lanes, (d, address), (width, space))?;
        let scalar = |(d, location)| Ok(load(location, self.register(d, width)?));
        let scalars: Vec<Op> = all.into_iter().map(scalar).collect::<Result<_, Kind>>()?;
        let destination = |op: &Op| if let Op::Load { d, .. } = op { Some(*d) } else { None };
        let twice = |at: usize| scalars[..at].iter().any(|op| destination(op) == destination(&scalars[at]));
        match (0..lanes).any(twice) {
            true => Err(self.error("a register takes two scalars of the vector")),
            false => Ok(Op::Vector(scalars)),
        }
    }

    fn store(&mut self, proxy: Proxy) -> Result<Op, Kind> {
        let order = self.order("release")?;
        let space = self.space();
        let lanes = self.lanes();
        let width = self.width()?;
        let [address, a] = self.take_operands("a store takes a location and a source")?;
        let Some(lanes) = lanes else {
            let location = self.location(address, width, space)?;
            return Ok(Op::Store { order, proxy, location, a: self.operand(a, width)? });
        };
        let all = self.vector(lanes, (a, address), (width, space))?;
        let store = |(a, location)| Ok(Op::Store { order, proxy, location, a: self.operand(a, width)? });
        Ok(Op::Vector(all.into_iter().map(store).collect::<Result<_, Kind>>()?))
    }

    fn atomic(&mut self, returns: bool) -> Result<Op, Kind> {
        // Without qualifiers: relaxed, at gpu scope (PTX ISA, `atom`).
        let ordering = self.word(|word| match word {
            "relaxed" => Some((false, false)),
            "acquire" => Some((true, false)),
            "release" => Some((false, true)),
            "acq_rel" => Some((true, true)),
            _ => None,
        });
        let (acquire, release) = ordering.unwrap_or((false, false));
        if acquire && !returns {
            return Err(self.error("red reads nothing that it could acquire with"));
        }
        let scope = self.scope().unwrap_or(Scope::Device);
        let space = self.space();
        const KNOWN: [&str; 10] = ["add", "and", "or", "xor", "min", "max", "inc", "dec", "exch", "cas"];
        let operation = self.word(|word| KNOWN.into_iter().find(|known| *known == word));
        let known = "one of .add, .and, .or, .xor, .min, .max, .inc, .dec, .exch and .cas is needed";
        let operation = operation.ok_or_else(|| self.error(known))?;
        if !returns && ["exch", "cas"].contains(&operation) {
            return Err(self.error("red computes only"));
        }
        if ["inc", "dec"].contains(&operation) && self.words != ["u32"] {
            return Err(self.error(".inc and .dec are of .u32"));
        }
        let signs = self.signed();
        let width = self.width()?;
        let wrong = "wrong number of operands";
        let (d, address, rmw) = match (returns, operation) {
            (true, "cas") => {
                let [d, address, a, b] = self.take_operands(wrong)?;
                (Some(d), address, Rmw::CompareSwap(self.operand(a, width)?, self.operand(b, width)?))
            }
            (true, _) => {
                let [d, address, a] = self.take_operands(wrong)?;
                let a = self.operand(a, width)?;
                let exchange = operation == "exch";
                (
                    Some(d),
                    address,
                    match exchange {
                        true => Rmw::Exchange(a),
                        false => Rmw::Compute(self.function_of_atomic(operation, signs)?, a),
                    },
                )
            }
            (false, _) => {
                let [address, a] = self.take_operands(wrong)?;
                let function = self.function_of_atomic(operation, signs)?;
                (None, address, Rmw::Compute(function, self.operand(a, width)?))
            }
        };
        let location = self.location(address, width, space)?;
        let d = d.map(|d| self.register(d, width)).transpose()?;
        Ok(Op::Atomic { order: Order::Strong { scope, acquire, release }, location, rmw, d })
    }

    fn function_of_atomic(&mut self, name: &str, signs: bool) -> Result<Function, Kind> {
        match name {
            "inc" => Ok(Function::Increment),
            "dec" => Ok(Function::Decrement),
            _ if signs => self.function(name).map(signed),
            _ => self.function(name),
        }
    }

    fn fence(&mut self) -> Result<Op, Kind> {
        if self.flag("proxy") {
            let of = self.word(|word| match word {
                "alias" => Some(None),
                "surface" => Some(Some(Proxy::Surface)),
                "texture" => Some(Some(Proxy::Texture)),
                "constant" => Some(Some(Proxy::Constant)),
                _ => None,
            });
            let known = "a proxy is needed: .alias, .surface, .texture or .constant";
            let of = of.ok_or_else(|| self.error(known))?;
            let [] = self.take_operands("a fence takes no operands")?;
            return Ok(Op::ProxyFence(of));
        }
        // Without semantics: acquire and release (PTX ISA, `fence`).
        let semantics = self.word(|word| match word {
            "sc" => Some((true, true, true)),
            "acq_rel" => Some((true, true, false)),
            "acquire" => Some((true, false, false)),
            "release" => Some((false, true, false)),
            _ => None,
        });
        let (acquire, release, sequential) = semantics.unwrap_or((true, true, false));
        let scope = self.scope().ok_or_else(|| self.error("a fence needs a scope: .cta, .gpu or .sys"))?;
        let [] = self.take_operands("a fence takes no operands")?;
        Ok(Op::Fence(Fence { scope, acquire, release, sequential }))
    }

    fn function(&mut self, name: &str) -> Result<Function, Kind> {
        let functions = [
            ("add", Function::Add),
            ("sub", Function::Sub),
            ("mul", Function::Mul),
            ("and", Function::And),
            ("or", Function::Or),
            ("xor", Function::Xor),
            ("min", Function::Min),
            ("max", Function::Max),
        ];
        if name == "mul" && !self.flag("lo") {
            return Err(self.error("only mul.lo is in the subset"));
        }
        let found = functions.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, function)| function).ok_or_else(|| self.error("not in the subset of litmus tests"))
    }

    fn set_predicate(&mut self) -> Result<Op, Kind> {
        let compare = self.word(|word| match word {
            "eq" => Some(Compare::Eq),
            "ne" => Some(Compare::Ne),
            "lt" => Some(Compare::Lt),
            "le" => Some(Compare::Le),
            "gt" => Some(Compare::Gt),
            "ge" => Some(Compare::Ge),
            _ => None,
        });
        let compare = compare.ok_or_else(|| self.error("a comparison such as .eq is needed"))?;
        let signed = self.signed();
        let width = self.width()?;
        let [p, a, b] = self.take_operands("setp takes a predicate and two sources")?;
        let (a, b) = (self.operand(a, width)?, self.operand(b, width)?);
        Ok(Op::SetPredicate { p: self.predicate(p)?, compare, signed: signed.then_some(width), a, b })
    }
}
