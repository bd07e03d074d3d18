//! Scopes, registers, variables and constants of one entry, and the type rules of operands.

use std::collections::HashMap;

use crate::ast::{Operand, Variable};
use crate::error::At;
use crate::program::Slot;
use crate::types::{Class, Space, Special, Type};

/// A module-scope variable with its place.
#[derive(Clone, Debug)]
pub(crate) struct Placed<'a> {
    pub(crate) variable: Variable<'a>,
    /// Its address in its own space; unused for `.shared`, which every kernel lays out for itself.
    pub(crate) address: u64,
}

/// What a slot is, before registers are allocated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Register(Type),
    Constant(u64),
    Special(Special, Type),
}

#[derive(Clone, Copy, Debug)]
enum Symbol {
    Register(Slot),
    /// A register of 128 bits, in two slots: the lower half first.
    Wide([Slot; 2]),
    /// `%r<n>`: registers `%r0` to `%r(n-1)`.
    Family(Type, u32),
    Variable(Space, u64),
}

pub(super) struct Names<'a> {
    pub(super) kinds: Vec<Kind>,
    scopes: Vec<(usize, HashMap<&'a str, Symbol>)>,
    next_scope: usize,
    constants: HashMap<u64, Slot>,
    globals: HashMap<&'a str, Placed<'a>>,
    pub(super) shared_bytes: u64,
    pub(super) local_bytes: u64,
    /// Alignment of dynamic shared memory, once it is used, and the constants that hold its address.
    dynamic: Option<(u32, Vec<(Slot, i64)>)>,
    /// Offset of each module-scope `.shared` variable that the entry uses.
    shared: HashMap<&'a str, u64>,
    /// The special registers that the entry uses.
    specials: Vec<Slot>,
}

impl<'a> Names<'a> {
    pub(super) fn new(globals: &[Placed<'a>]) -> Self {
        Self {
            kinds: Vec::new(),
            scopes: vec![(0, HashMap::new())],
            next_scope: 1,
            constants: HashMap::new(),
            globals: globals.iter().map(|placed| (placed.variable.name, placed.clone())).collect(),
            shared_bytes: 0,
            local_bytes: 0,
            dynamic: None,
            shared: HashMap::new(),
            specials: Vec::new(),
        }
    }

    pub(super) fn open(&mut self) {
        self.scopes.push((self.next_scope, HashMap::new()));
        self.next_scope += 1;
    }

    pub(super) fn close(&mut self) {
        self.scopes.pop();
    }

    /// The innermost scope.
    pub(super) fn scope(&self) -> usize {
        self.scopes.last().map_or(0, |(id, _)| *id)
    }

    /// All scopes around here, outermost first.
    pub(super) fn scope_chain(&self) -> Vec<usize> {
        self.scopes.iter().map(|(id, _)| *id).collect()
    }

    fn define(&mut self, name: &'a str, symbol: Symbol, line: u32) -> Result<(), At> {
        let Some((_, symbols)) = self.scopes.last_mut() else {
            return Err(At::new(line, "declaration outside a body"));
        };
        match symbols.insert(name, symbol) {
            None => Ok(()),
            Some(_) => Err(At::new(line, format!("{name} is declared twice"))),
        }
    }

    pub(super) fn define_registers(
        &mut self,
        line: u32,
        ty: Type,
        name: &'a str,
        count: Option<u32>,
    ) -> Result<(), At> {
        let symbol = match count {
            Some(count) => Symbol::Family(ty, count),
            None => self.new_register(ty, line)?,
        };
        self.define(name, symbol, line)
    }

    fn new_register(&mut self, ty: Type, line: u32) -> Result<Symbol, At> {
        let mut add = |ty| self.add(Kind::Register(ty), line);
        Ok(match ty {
            Type::B128 => Symbol::Wide([add(Type::B64)?, add(Type::B64)?]),
            _ => Symbol::Register(add(ty)?),
        })
    }

    /// The halves of the register `operand` of 128 bits.
    pub(super) fn wide(&mut self, operand: &Operand<'a>, line: u32) -> Result<[Slot; 2], At> {
        match operand {
            Operand::Name("_") => {
                let mut add = || self.add(Kind::Register(Type::B64), line);
                Ok([add()?, add()?])
            }
            Operand::Name(name) => match self.lookup(name, line)? {
                Some(Symbol::Wide(halves)) => Ok(halves),
                Some(_) => Err(At::new(line, format!("{name} is no register of 128 bits"))),
                None => Err(At::new(line, format!("{name} is not declared"))),
            },
            _ => Err(At::new(line, "a register of 128 bits is needed")),
        }
    }

    pub(super) fn define_variable(
        &mut self,
        variable: &Variable<'a>,
        space: Space,
        address: u64,
    ) -> Result<(), At> {
        self.define(variable.name, Symbol::Variable(space, address), variable.line)
    }

    /// A `.shared` or `.local` variable of the entry itself.
    pub(super) fn declare(&mut self, variable: &Variable<'a>) -> Result<(), At> {
        let address = match variable.space {
            Space::Shared if variable.external => {
                self.dynamic.get_or_insert((1, Vec::new())).0 = variable.align;
                DYNAMIC
            }
            Space::Shared => place(&mut self.shared_bytes, variable, 1 << 20)?,
            _ => place(&mut self.local_bytes, variable, 512 << 10)?,
        };
        self.define_variable(variable, variable.space, address)
    }

    pub(super) fn add(&mut self, kind: Kind, line: u32) -> Result<Slot, At> {
        let slot = Slot::try_from(self.kinds.len())
            .map_err(|_| At::new(line, "more than 65,536 registers and constants in one kernel"))?;
        self.kinds.push(kind);
        Ok(slot)
    }

    pub(super) fn constant(&mut self, value: u64, line: u32) -> Result<Slot, At> {
        if let Some(&slot) = self.constants.get(&value) {
            return Ok(slot);
        }
        let slot = self.add(Kind::Constant(value), line)?;
        self.constants.insert(value, slot);
        Ok(slot)
    }

    fn lookup(&mut self, name: &'a str, line: u32) -> Result<Option<Symbol>, At> {
        for at in (0..self.scopes.len()).rev() {
            if let Some(&symbol) = self.scopes[at].1.get(name) {
                return Ok(Some(symbol));
            }
            let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let digits = &name[stem.len()..];
            // `%r01` is not `%r1`.
            let canonical = digits == "0" || !digits.starts_with('0');
            if let (Some(&Symbol::Family(ty, count)), Ok(index), true) =
                (self.scopes[at].1.get(stem), digits.parse::<u32>(), canonical)
                && index < count
            {
                let symbol = self.new_register(ty, line)?;
                self.scopes[at].1.insert(name, symbol);
                return Ok(Some(symbol));
            }
        }
        let Some(placed) = self.globals.get(name) else { return Ok(None) };
        let variable = placed.variable.clone();
        if variable.space != Space::Shared {
            return Ok(Some(Symbol::Variable(variable.space, placed.address)));
        }
        if variable.external {
            let dynamic = self.dynamic.get_or_insert((1, Vec::new()));
            dynamic.0 = dynamic.0.max(variable.align);
            return Ok(Some(Symbol::Variable(Space::Shared, DYNAMIC)));
        }
        let address = match self.shared.get(name) {
            Some(&address) => address,
            None => {
                let address = place(&mut self.shared_bytes, &variable, 1 << 20)?;
                self.shared.insert(name, address);
                address
            }
        };
        Ok(Some(Symbol::Variable(Space::Shared, address)))
    }

    /// The register `name`, checked against the type of the instruction; `wider` allows a wider register.
    pub(super) fn register(&mut self, name: &'a str, ty: Type, wider: bool, line: u32) -> Result<Slot, At> {
        match self.lookup(name, line)? {
            Some(Symbol::Register(slot)) => {
                let Kind::Register(declared) = self.kinds[slot as usize] else {
                    return Err(At::new(line, format!("{name} is not a register")));
                };
                if agrees(declared, ty) || wider && agrees_wider(declared, ty) {
                    Ok(slot)
                } else {
                    Err(At::new(
                        line,
                        format!("{name} is declared {declared}, the instruction works on {ty}"),
                    ))
                }
            }
            Some(Symbol::Wide(_)) => {
                Err(At::new(line, format!("{name} is declared .b128, the instruction works on {ty}")))
            }
            Some(_) => Err(At::new(line, format!("{name} is not a register"))),
            None => Err(At::new(line, format!("{name} is not declared"))),
        }
    }

    /// A register to write; `_` gives a register that nobody reads.
    pub(super) fn destination(
        &mut self,
        operand: &Operand<'a>,
        ty: Type,
        wider: bool,
        line: u32,
    ) -> Result<Slot, At> {
        match operand {
            Operand::Name("_") => self.add(Kind::Register(ty), line),
            Operand::Name(name) => self.register(name, ty, wider, line),
            _ => Err(At::new(line, "the destination must be a register")),
        }
    }

    /// A value to read: register, number, special register or the address of a variable.
    pub(super) fn source(
        &mut self,
        operand: &Operand<'a>,
        ty: Type,
        wider: bool,
        line: u32,
    ) -> Result<Slot, At> {
        let wrong = |what: &str| Err(At::new(line, format!("{what} where the instruction works on {ty}")));
        match operand {
            Operand::Int(value) => match ty {
                Type::F32 | Type::F64 => wrong("an integer"),
                Type::Pred => self.constant(u64::from(*value != 0), line),
                _ => self.constant(*value, line),
            },
            Operand::Single(bits) => match ty {
                Type::F32 | Type::B32 | Type::U32 | Type::S32 => self.constant(u64::from(*bits), line),
                Type::F64 => self.constant(f64::from(f32::from_bits(*bits)).to_bits(), line),
                _ => wrong("an fp32 number"),
            },
            Operand::Double(value) => match ty {
                Type::F32 => self.constant(u64::from((*value as f32).to_bits()), line),
                Type::F64 | Type::B64 | Type::U64 | Type::S64 => self.constant(value.to_bits(), line),
                _ => wrong("an fp64 number"),
            },
            Operand::Element(base, axis) => self.special(&format!("{base}.{axis}"), ty, line),
            Operand::Name(name) if Special::parse(name).is_some() => self.special(name, ty, line),
            Operand::Name("WARP_SZ") => self.constant(32, line),
            Operand::Name(name) => match self.lookup(name, line)? {
                Some(Symbol::Variable(space, address)) => self.address(space, address, 0, ty, line),
                _ => self.register(name, ty, wider, line),
            },
            Operand::Sum(name, offset) => match self.lookup(name, line)? {
                Some(Symbol::Variable(space, address)) => self.address(space, address, *offset, ty, line),
                _ => Err(At::new(line, format!("{name} is not a variable"))),
            },
            Operand::Not(_) => Err(At::new(line, "a negated predicate is not possible here")),
            Operand::Pair(..) | Operand::Vector(_) | Operand::Address(..) => {
                Err(At::new(line, "expected a register or a number"))
            }
        }
    }

    fn address(&mut self, space: Space, address: u64, offset: i64, ty: Type, line: u32) -> Result<Slot, At> {
        if !matches!(ty.class(), Class::Bits | Class::Unsigned | Class::Signed) || ty.bits() < 32 {
            return Err(At::new(line, format!("an address where the instruction works on {ty}")));
        }
        if space == Space::Shared && address == DYNAMIC {
            // Its place is known when all static variables are placed.
            let slot = self.add(Kind::Constant(0), line)?;
            if let Some((_, uses)) = &mut self.dynamic {
                uses.push((slot, offset));
            }
            return Ok(slot);
        }
        self.constant(address.wrapping_add_signed(offset), line)
    }

    fn special(&mut self, name: &str, ty: Type, line: u32) -> Result<Slot, At> {
        let Some((special, declared)) = Special::parse(name) else {
            return Err(At::new(line, format!("{name} is not a special register that is supported")));
        };
        // Early versions of the ISA had 16 bits in %tid and its like, and `mov.u16` of them remains legal.
        if !agrees(declared, ty) && !matches!(ty, Type::U16 | Type::B16) {
            return Err(At::new(line, format!("{name} is {declared}, the instruction works on {ty}")));
        }
        let kind = Kind::Special(special, declared);
        let known = self.specials.iter().find(|slot| self.kinds[usize::from(**slot)] == kind);
        if let Some(&slot) = known {
            return Ok(slot);
        }
        let slot = self.add(kind, line)?;
        self.specials.push(slot);
        Ok(slot)
    }

    /// The base slot, the space if a variable is named, and the constant offset of an address.
    pub(super) fn base(
        &mut self,
        base: Option<&'a str>,
        offset: i64,
        line: u32,
    ) -> Result<(Slot, Option<Space>, i64), At> {
        let Some(name) = base else { return Ok((self.constant(offset as u64, line)?, None, 0)) };
        match self.lookup(name, line)? {
            Some(Symbol::Variable(space, address)) => {
                Ok((self.address(space, address, offset, Type::U64, line)?, Some(space), 0))
            }
            Some(Symbol::Register(slot)) => match self.kinds[slot as usize] {
                Kind::Register(ty) if ty.class() != Class::Float && matches!(ty.bits(), 32 | 64) => {
                    Ok((slot, None, offset))
                }
                _ => Err(At::new(line, format!("{name} cannot hold an address"))),
            },
            Some(Symbol::Wide(_)) => Err(At::new(line, format!("{name} cannot hold an address"))),
            Some(Symbol::Family(..)) => Err(At::new(line, format!("{name} is not a register"))),
            None => Err(At::new(line, format!("{name} is not declared"))),
        }
    }

    /// The declared type of a register slot.
    pub(super) fn declared(&self, slot: Slot) -> Option<Type> {
        match self.kinds[slot as usize] {
            Kind::Register(ty) | Kind::Special(_, ty) => Some(ty),
            Kind::Constant(_) => None,
        }
    }

    /// Fixes the place of dynamic shared memory behind the static variables and returns it.
    pub(super) fn finish_shared(&mut self) -> u32 {
        let Some((align, uses)) = &self.dynamic else { return self.shared_bytes as u32 };
        let offset = self.shared_bytes.next_multiple_of(u64::from(*align));
        for (slot, addend) in uses {
            self.kinds[*slot as usize] = Kind::Constant(offset.wrapping_add_signed(*addend));
        }
        offset as u32
    }
}

/// The address of dynamic shared memory until it is placed.
const DYNAMIC: u64 = u64::MAX;

fn place(bytes: &mut u64, variable: &Variable<'_>, limit: u64) -> Result<u64, At> {
    let address = bytes.next_multiple_of(u64::from(variable.align));
    *bytes = address + variable.bytes;
    if *bytes > limit {
        return Err(At::new(variable.line, format!("more than {limit} bytes of variables in this space")));
    }
    Ok(address)
}

/// PTX ISA, "Operand Type Information": same size, and integers and bits mix, and bits and floats.
fn agrees(declared: Type, ty: Type) -> bool {
    use Class::{Bits, Float, Predicate};
    if declared.bits() != ty.bits() {
        return false;
    }
    match (declared.class(), ty.class()) {
        (Predicate, _) | (_, Predicate) => declared == ty,
        (Float, Float) => declared == ty,
        (Float, other) | (other, Float) => other == Bits,
        _ => true,
    }
}

/// PTX ISA, "Operand Size Exceeding Instruction-Type Size", for `ld`, `st` and `cvt`.
fn agrees_wider(declared: Type, ty: Type) -> bool {
    let class = declared.class();
    declared.bits() > ty.bits()
        && class != Class::Predicate
        && match ty.class() {
            Class::Bits => true,
            Class::Unsigned | Class::Signed => class != Class::Float,
            Class::Float => class == Class::Bits,
            Class::Predicate => false,
        }
}
