//! Arithmetic, logic, comparison, conversion and data movement.

use super::{Decoder, Line};
use crate::ast::Operand;
use crate::error::At;
use crate::program::{Op, Slot};
use crate::semantics::{Binary, Quaternary, Ternary, Unary, convert, float, integer};
use crate::types::{Class, Clock, Rounding, Space, Type};
use crate::window;

impl<'a> Decoder<'a> {
    pub(super) fn arithmetic(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let opcode = line.instruction.opcode;
        match opcode {
            "mov" => self.mov(line),
            "activemask" => self.active_mask(line),
            "cvta" => self.cvta(line),
            "cvt" => self.cvt(line),
            "setp" => self.setp(line),
            "set" => self.set(line),
            "selp" => self.selp(line),
            "slct" => self.slct(line),
            "isspacep" => self.isspacep(line),
            "testp" => self.testp(line),
            "copysign" => {
                let ty = line.ty()?;
                let f = float::copy_sign(ty);
                self.binary(line, f, ty, ty, ty)
            }
            "shl" | "shr" => {
                let ty = line.ty()?;
                self.binary(line, integer::shift(opcode, ty), ty, ty, Type::U32)
            }
            "bfe" => {
                let ty = line.ty()?;
                self.ternary(line, integer::ternary(opcode, ty), [ty, ty, Type::U32, Type::U32])
            }
            "shf" => {
                let direction = line.modifiers.one_of(&["l", "r"]).unwrap_or("");
                let mode = line.modifiers.one_of(&["clamp", "wrap"]).unwrap_or("");
                let ty = line.ty()?;
                let f = integer::ternary(&format!("shf.{direction}.{mode}"), ty).filter(|_| ty == Type::B32);
                self.ternary(line, f, [Type::B32, Type::B32, Type::B32, Type::U32])
            }
            "prmt" => {
                let ty = line.ty()?;
                let mode = line.modifiers.one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]);
                let name = mode.map_or("prmt".to_owned(), |mode| format!("prmt.{mode}"));
                let f = integer::ternary(&name, ty).filter(|_| ty == Type::B32);
                self.ternary(line, f, [Type::B32; 4])
            }
            "bfi" => {
                let ty = line.ty()?;
                self.quaternary(line, integer::quaternary(opcode, ty), [ty, ty, ty, Type::U32, Type::U32])
            }
            "lop3" => {
                let ty = line.ty()?;
                self.quaternary(line, integer::quaternary(opcode, ty), [ty; 5])
            }
            "popc" | "clz" | "bfind" => {
                let ty = line.ty()?;
                let amount = line.modifiers.take("shiftamt");
                let f = integer::unary(if amount { "bfind.shiftamt" } else { opcode }, ty);
                self.unary(line, f, Type::U32, ty)
            }
            "not" | "cnot" | "brev" => {
                let ty = line.ty()?;
                self.unary(line, integer::unary(opcode, ty), ty, ty)
            }
            "and" | "or" | "xor" => {
                let ty = line.ty()?;
                let op = self.binary(line, integer::binary(opcode, ty), ty, ty, ty)?;
                match op {
                    // Zero, whatever the register holds: it depends on nothing.
                    Op::Binary { d, a, b, .. } if opcode == "xor" && a == b => {
                        Ok(Op::Move { d, a: self.names.constant(0, line.instruction.line)? })
                    }
                    op => Ok(op),
                }
            }
            "neg" | "abs" => {
                let ty = line.ty()?;
                let flush = line.modifiers.take("ftz");
                let f = match ty.class() {
                    Class::Float => float::sign(opcode, ty, flush),
                    _ if flush => None,
                    _ => integer::unary(opcode, ty),
                };
                self.unary(line, f, ty, ty)
            }
            "addc" | "subc" => self.carrying(line),
            "add" | "sub" if line.modifiers.take("cc") => self.carry_out(line, None),
            "add" | "sub" | "mul" | "mul24" | "div" | "rem" | "min" | "max" | "mad" | "mad24" | "sad"
            | "fma" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
                let ty = line.ty()?;
                if ty.class() == Class::Float { self.float(line, ty) } else { self.integer(line, ty) }
            }
            _ => line.fail(format!("unknown instruction {opcode}")),
        }
    }

    pub(super) fn operands<const N: usize>(&self, line: &Line<'_, 'a>) -> Result<[Operand<'a>; N], At> {
        line.instruction.operands.clone().try_into().or_else(|_| {
            let given = line.instruction.operands.len();
            line.fail(format!("{} takes {N} operands here, not {given}", line.instruction.opcode))
        })
    }

    pub(super) fn destination(
        &mut self,
        line: &Line<'_, 'a>,
        operand: &Operand<'a>,
        ty: Type,
    ) -> Result<Slot, At> {
        self.names.destination(operand, ty, false, line.instruction.line)
    }

    pub(super) fn source(
        &mut self,
        line: &Line<'_, 'a>,
        operand: &Operand<'a>,
        ty: Type,
    ) -> Result<Slot, At> {
        self.names.source(operand, ty, false, line.instruction.line)
    }

    pub(super) fn unary(
        &mut self,
        line: &Line<'_, 'a>,
        f: Option<Unary>,
        to: Type,
        from: Type,
    ) -> Result<Op, At> {
        let Some(f) = f else { return line.unsupported() };
        let [d, a] = self.operands(line)?;
        Ok(Op::Unary { f, d: self.destination(line, &d, to)?, a: self.source(line, &a, from)? })
    }

    pub(super) fn binary(
        &mut self,
        line: &Line<'_, 'a>,
        f: Option<Binary>,
        to: Type,
        a_type: Type,
        b_type: Type,
    ) -> Result<Op, At> {
        let Some(f) = f else { return line.unsupported() };
        let [d, a, b] = self.operands(line)?;
        Ok(Op::Binary {
            f,
            d: self.destination(line, &d, to)?,
            a: self.source(line, &a, a_type)?,
            b: self.source(line, &b, b_type)?,
        })
    }

    pub(super) fn ternary(
        &mut self,
        line: &Line<'_, 'a>,
        f: Option<Ternary>,
        types: [Type; 4],
    ) -> Result<Op, At> {
        let Some(f) = f else { return line.unsupported() };
        let [d, a, b, c] = self.operands(line)?;
        Ok(Op::Ternary {
            f,
            d: self.destination(line, &d, types[0])?,
            a: self.source(line, &a, types[1])?,
            b: self.source(line, &b, types[2])?,
            c: self.source(line, &c, types[3])?,
        })
    }

    fn quaternary(&mut self, line: &Line<'_, 'a>, f: Option<Quaternary>, types: [Type; 5]) -> Result<Op, At> {
        let Some(f) = f else { return line.unsupported() };
        let [d, a, b, c, e] = self.operands(line)?;
        Ok(Op::Quaternary {
            f,
            d: self.destination(line, &d, types[0])?,
            a: self.source(line, &a, types[1])?,
            b: self.source(line, &b, types[2])?,
            c: self.source(line, &c, types[3])?,
            e: self.source(line, &e, types[4])?,
        })
    }

    fn integer(&mut self, line: &mut Line<'_, 'a>, ty: Type) -> Result<Op, At> {
        let opcode = line.instruction.opcode;
        let part = line.modifiers.one_of(&["lo", "hi", "wide"]);
        let saturate = line.modifiers.take("sat");
        let name = match part {
            _ if saturate => format!("{opcode}.sat"),
            Some(part) => format!("{opcode}.{part}"),
            None => opcode.to_owned(),
        };
        let wide = match (part, ty) {
            (Some("wide"), Type::U16) => Type::U32,
            (Some("wide"), Type::S16) => Type::S32,
            (Some("wide"), Type::U32) => Type::U64,
            (Some("wide"), Type::S32) => Type::S64,
            _ => ty,
        };
        match opcode {
            "mad" | "mad24" | "sad" => self.ternary(line, integer::ternary(&name, ty), [wide, ty, ty, wide]),
            _ => self.binary(line, integer::binary(&name, ty), wide, ty, ty),
        }
    }

    fn float(&mut self, line: &mut Line<'_, 'a>, ty: Type) -> Result<Op, At> {
        use float::Operation;
        let opcode = line.instruction.opcode;
        let modifiers = &mut line.modifiers;
        let rounding = modifiers.rounding();
        let approximate = modifiers.take("approx") | (opcode == "div" && modifiers.take("full"));
        let flush = modifiers.take("ftz");
        let saturate = modifiers.take("sat");
        let nan = modifiers.take("NaN");
        let operation = match opcode {
            "add" => Operation::Add,
            "sub" => Operation::Sub,
            "mul" => Operation::Mul,
            "fma" | "mad" => Operation::Fma,
            "div" | "rcp" => Operation::Div,
            "sqrt" => Operation::Sqrt,
            "rsqrt" => Operation::Rsqrt,
            "ex2" => Operation::Exp2,
            "lg2" => Operation::Log2,
            "sin" => Operation::Sin,
            "cos" => Operation::Cos,
            "tanh" => Operation::Tanh,
            "min" if nan => Operation::MinNan,
            "max" if nan => Operation::MaxNan,
            "min" => Operation::Min,
            "max" => Operation::Max,
            _ => return line.unsupported(),
        };
        let half = !matches!(ty, Type::F32 | Type::F64);
        let selects = matches!(opcode, "min" | "max");
        let inexact = matches!(opcode, "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh");
        let must_say = matches!(opcode, "div" | "rcp" | "sqrt" | "fma" | "mad");
        // What the ISA does not have.
        if half
            && (matches!(opcode, "div" | "rcp" | "sqrt")
                || rounding.is_some_and(|mode| mode != Rounding::Nearest))
            || nan && (!selects || ty == Type::F64)
            || (selects || inexact) && (rounding.is_some() || saturate)
            || inexact != approximate && !matches!(opcode, "div" | "rcp" | "sqrt")
            || approximate && rounding.is_some()
            || must_say && !approximate && rounding.is_none()
            || ty == Type::F64 && (flush && !inexact && opcode != "rcp" || saturate)
            || ty == Type::F64 && opcode == "sqrt" && rounding != Some(Rounding::Nearest)
        {
            return line.unsupported();
        }
        let spec =
            float::Spec { operation, ty, rounding: rounding.unwrap_or(Rounding::Nearest), flush, saturate };
        let at = line.instruction.line;
        let code = self.names.constant(spec.encode(), at)?;
        let arguments = match opcode {
            "fma" | "mad" => 3,
            "add" | "sub" | "mul" | "div" | "min" | "max" => 2,
            _ => 1,
        };
        let given = line.instruction.operands.len();
        if given != arguments + 1 {
            return line.fail(format!("{opcode} takes {} operands here, not {given}", arguments + 1));
        }
        let d = self.destination(line, &line.instruction.operands[0], ty)?;
        let mut sources = [code; 3];
        for (slot, operand) in sources.iter_mut().zip(&line.instruction.operands[1..]) {
            *slot = self.source(line, operand, ty)?;
        }
        let [mut a, mut b, c] = sources;
        if opcode == "rcp" {
            let one = if ty == Type::F64 { 1f64.to_bits() } else { u64::from(1f32.to_bits()) };
            b = a;
            a = self.names.constant(one, at)?;
        }
        if let (true, Some(f)) = (arguments == 2 || opcode == "rcp", float::fast_binary(spec)) {
            return Ok(Op::Binary { f, d, a, b });
        }
        if let Some(f) = float::fast_ternary(spec) {
            return Ok(Op::Ternary { f, d, a, b, c });
        }
        Ok(Op::Quaternary { f: float::general, d, a, b, c, e: code })
    }

    /// The threads of the warp that execute the instruction together (PTX ISA, "activemask"). Here every thread executes by
    /// itself, which is one of the ways in which a warp may.
    fn active_mask(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        if line.ty()? != Type::B32 {
            return line.unsupported();
        }
        let at = line.instruction.line;
        let [d] = self.operands(line)?;
        let d = self.destination(line, &d, Type::B32)?;
        Ok(Op::Move { d, a: self.names.source(&Operand::Name("%lanemask_eq"), Type::B32, false, at)? })
    }

    fn mov(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let ty = line.ty()?;
        let at = line.instruction.line;
        let [d, a] = self.operands(line)?;
        if ty == Type::B128 {
            return self.mov_wide(line, &d, &a);
        }
        let lanes = |count: usize| match (ty, count) {
            (Type::B16 | Type::B32 | Type::B64, 2) | (Type::B32 | Type::B64, 4) => {
                Type::parse(&format!("b{}", ty.bits() as usize / count))
            }
            _ => None,
        };
        let bad = "a vector must have two or four parts that fill the type";
        match (&d, &a) {
            (Operand::Vector(parts), _) => {
                let Some(part) = lanes(parts.len()) else { return line.fail(bad) };
                let a = self.source(line, &a, ty)?;
                let mut d = [0; 4];
                for (slot, operand) in d.iter_mut().zip(parts) {
                    *slot = self.destination(line, operand, part)?;
                }
                Ok(Op::Unpack { d, a, lanes: parts.len() as u8, bits: part.bits() as u8 })
            }
            (_, Operand::Vector(parts)) => {
                let Some(part) = lanes(parts.len()) else { return line.fail(bad) };
                let d = self.destination(line, &d, ty)?;
                let mut a = [0; 4];
                for (slot, operand) in a.iter_mut().zip(parts) {
                    *slot = self.source(line, operand, part)?;
                }
                Ok(Op::Pack { d, a, lanes: parts.len() as u8, bits: part.bits() as u8 })
            }
            (
                _,
                Operand::Name(
                    name @ ("%clock" | "%clock64" | "%globaltimer" | "%clock_hi" | "%globaltimer_lo"
                    | "%globaltimer_hi"),
                ),
            ) => {
                let (clock, bits) = match *name {
                    "%clock" => (Clock::Cycles, 32),
                    "%clock64" => (Clock::Cycles, 64),
                    "%globaltimer" => (Clock::Nanoseconds, 64),
                    "%globaltimer_lo" => (Clock::Nanoseconds, 32),
                    _ => return line.unsupported(),
                };
                if ty.bits() != bits || ty.class() == Class::Float {
                    return line.fail(format!("{name} has {bits} bits, the instruction works on {ty}"));
                }
                Ok(Op::Clock { d: self.destination(line, &d, ty)?, clock })
            }
            _ => {
                if matches!(ty.bits(), 8) {
                    return line.unsupported();
                }
                let d = self.destination(line, &d, ty)?;
                Ok(Op::Move { d, a: self.names.source(&a, ty, false, at)? })
            }
        }
    }

    /// `mov.b128`: of a register of 128 bits to another, to two of 64, or from two of 64.
    fn mov_wide(&mut self, line: &Line<'_, 'a>, d: &Operand<'a>, a: &Operand<'a>) -> Result<Op, At> {
        let at = line.instruction.line;
        let bad = "a vector must have two parts of 64 bits";
        let [a, b] = match a {
            Operand::Vector(parts) => match parts.as_slice() {
                [low, high] => [self.source(line, low, Type::B64)?, self.source(line, high, Type::B64)?],
                _ => return line.fail(bad),
            },
            whole => self.names.wide(whole, at)?,
        };
        let [d, e] = match d {
            Operand::Vector(parts) => match parts.as_slice() {
                [low, high] => {
                    [self.destination(line, low, Type::B64)?, self.destination(line, high, Type::B64)?]
                }
                _ => return line.fail(bad),
            },
            whole => self.names.wide(whole, at)?,
        };
        Ok(Op::Pair { f: |low, high, _| (low, high), d, e, a, b, c: a })
    }

    fn named_space(&mut self, line: &mut Line<'_, 'a>) -> Result<Space, At> {
        let space = line.modifiers.find(|word| match word {
            "global" => Some(Space::Global),
            "shared" | "shared::cta" => Some(Space::Shared),
            "local" => Some(Space::Local),
            "const" => Some(Space::Const),
            "param" | "param::entry" => Some(Space::Param),
            _ => None,
        });
        space.map_or_else(|| line.fail("a state space is needed"), Ok)
    }

    fn cvta(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let to = line.modifiers.take("to");
        let space = self.named_space(line)?;
        let ty = line.ty()?;
        if ty != Type::U64 {
            return line.unsupported();
        }
        let base = window::base(space);
        if base == 0 {
            let [d, a] = self.operands(line)?;
            return Ok(Op::Move { d: self.destination(line, &d, ty)?, a: self.source(line, &a, ty)? });
        }
        let [d, a] = self.operands(line)?;
        let b = self.names.constant(base, line.instruction.line)?;
        let f: Binary = if to { |a, base| a.wrapping_sub(base) } else { |a, base| a.wrapping_add(base) };
        Ok(Op::Binary { f, d: self.destination(line, &d, ty)?, a: self.source(line, &a, ty)?, b })
    }

    fn isspacep(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let f: Unary = match self.named_space(line)? {
            Space::Global => |a| u64::from(window::of(a) == Space::Global),
            Space::Shared => |a| u64::from(window::of(a) == Space::Shared),
            Space::Local => |a| u64::from(window::of(a) == Space::Local),
            Space::Const => |a| u64::from(window::of(a) == Space::Const),
            _ => |a| u64::from(window::of(a) == Space::Param),
        };
        self.unary(line, Some(f), Type::Pred, Type::U64)
    }

    fn cvt(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let at = line.instruction.line;
        let integral = line.modifiers.integer_rounding();
        let rounding = line.modifiers.rounding();
        let flush = line.modifiers.take("ftz");
        let saturate = line.modifiers.take("sat");
        let (to, from) = (line.ty()?, line.ty()?);
        if let (Type::F16x2 | Type::Bf16x2, Type::F32) = (to, from) {
            let Some(mode @ (Rounding::Nearest | Rounding::Zero)) = rounding else {
                return line.unsupported();
            };
            let half = if to == Type::F16x2 { Type::F16 } else { Type::Bf16 };
            let spec =
                convert::Spec { to: half, from, rounding: mode, integral: false, flush: false, saturate };
            let [d, a, b] = self.operands(line)?;
            return Ok(Op::Ternary {
                f: convert::convert_pair,
                d: self.destination(line, &d, to)?,
                a: self.source(line, &a, from)?,
                b: self.source(line, &b, from)?,
                c: self.names.constant(spec.encode(), at)?,
            });
        }
        let float = |ty: Type| ty.class() == Class::Float;
        let plain = |ty: Type| {
            matches!(ty, Type::F16 | Type::Bf16 | Type::F32 | Type::F64)
                || matches!(ty.class(), Class::Unsigned | Class::Signed)
        };
        // Which rounding the ISA demands: to an integer from floats, a float rounding where precision is lost.
        let legal = plain(to)
            && plain(from)
            && match (float(from), float(to)) {
                (false, false) => rounding.is_none() && integral.is_none(),
                (false, true) => rounding.is_some() && integral.is_none(),
                (true, false) => rounding.is_none() && integral.is_some(),
                (true, true) if from == to => rounding.is_none(),
                (true, true) => {
                    integral.is_none()
                        && rounding.is_some() == (to.bits() < from.bits() || to.bits() == from.bits())
                }
            }
            && (!flush || from == Type::F32 || to == Type::F32);
        if !legal {
            return line.unsupported();
        }
        let spec = convert::Spec {
            to,
            from,
            rounding: integral.or(rounding).unwrap_or(Rounding::Nearest),
            integral: integral.is_some(),
            flush,
            saturate,
        };
        let [d, a] = self.operands(line)?;
        let d = self.names.destination(&d, to, true, at)?;
        let a = self.names.source(&a, from, true, at)?;
        if !saturate && !float(from) && !float(to) {
            // The common integer conversions; extension is always to 64 bits.
            let narrow = if to.bits() < from.bits() { to } else { from };
            let f: Unary = match narrow {
                Type::U8 => |a| a & 0xff,
                Type::U16 => |a| a & 0xffff,
                Type::U32 => |a| a & 0xffff_ffff,
                Type::S8 => |a| a as i8 as u64,
                Type::S16 => |a| a as i16 as u64,
                Type::S32 => |a| a as i32 as u64,
                _ => |a| a,
            };
            // A result narrower than its register is extended as its own type says.
            let wider = self.names.declared(d).is_some_and(|declared| declared.bits() > to.bits());
            if !wider || narrow == to {
                return Ok(Op::Unary { f, d, a });
            }
        }
        let b = self.names.constant(spec.encode(), at)?;
        Ok(Op::Binary { f: convert::convert, d, a, b })
    }

    fn carry_slot(&mut self, line: &Line<'_, 'a>) -> Result<Slot, At> {
        match self.carry {
            Some(slot) => Ok(slot),
            None => {
                let slot = self.destination(line, &Operand::Name("_"), Type::Pred)?;
                self.carry = Some(slot);
                Ok(slot)
            }
        }
    }

    fn carrying(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let carry_in = self.carry_slot(line)?;
        let writes = line.modifiers.take("cc");
        let mut op = self.carry_out(line, Some(carry_in))?;
        if let (Op::Pair { e, .. }, false) = (&mut op, writes) {
            *e = self.destination(line, &Operand::Name("_"), Type::Pred)?;
        }
        Ok(op)
    }

    fn carry_out(&mut self, line: &mut Line<'_, 'a>, carry_in: Option<Slot>) -> Result<Op, At> {
        let ty = line.ty()?;
        let f = integer::carry(&line.instruction.opcode[..3], ty).filter(|_| ty.class() != Class::Float);
        let Some(f) = f else { return line.unsupported() };
        let c = match carry_in {
            Some(slot) => slot,
            None => self.names.constant(0, line.instruction.line)?,
        };
        let [d, a, b] = self.operands(line)?;
        Ok(Op::Pair {
            f,
            d: self.destination(line, &d, ty)?,
            e: self.carry_slot(line)?,
            a: self.source(line, &a, ty)?,
            b: self.source(line, &b, ty)?,
            c,
        })
    }
}
