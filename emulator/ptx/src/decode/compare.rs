//! Comparisons and what selects by them.

use super::{Decoder, Line};
use crate::ast::Operand;
use crate::error::At;
use crate::program::Op;
use crate::semantics::{Binary, Ternary, float, integer};
use crate::types::{Class, Compare, Type};

impl<'a> Decoder<'a> {
    fn comparison(&mut self, line: &mut Line<'_, 'a>) -> Result<(Compare, Option<Binary>, bool), At> {
        let Some(compare) = line.modifiers.find(Compare::parse) else {
            return line.fail("a comparison is needed, such as .eq");
        };
        let combine: Option<Binary> = line.modifiers.find(|word| match word {
            "and" => Some((|a, b| a & b & 1) as Binary),
            "or" => Some(|a, b| (a | b) & 1),
            "xor" => Some(|a, b| (a ^ b) & 1),
            _ => None,
        });
        Ok((compare, combine, line.modifiers.take("ftz")))
    }

    fn comparator(&self, line: &Line<'_, 'a>, compare: Compare, ty: Type, flush: bool) -> Result<Binary, At> {
        let f = match ty.class() {
            Class::Float => float::compare(compare, ty, flush),
            _ if flush => None,
            _ => integer::compare(compare, ty),
        };
        f.map_or_else(|| line.unsupported(), Ok)
    }

    pub(super) fn setp(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let (compare, combine, flush) = self.comparison(line)?;
        let ty = line.ty()?;
        let compare = self.comparator(line, compare, ty, flush)?;
        let operands = &line.instruction.operands;
        if operands.len() != 3 + usize::from(combine.is_some()) {
            return line.fail(format!("setp takes {} operands here", 3 + usize::from(combine.is_some())));
        }
        let (p, q) = match &operands[0] {
            Operand::Pair(p, q) => (Operand::Name(p), Some(Operand::Name(q))),
            other => (other.clone(), None),
        };
        let p = self.destination(line, &p, Type::Pred)?;
        let a = self.source(line, &operands[1], ty)?;
        let b = self.source(line, &operands[2], ty)?;
        if q.is_none() && combine.is_none() {
            return Ok(Op::Binary { f: compare, d: p, a, b });
        }
        let q = self.destination(line, &q.unwrap_or(Operand::Name("_")), Type::Pred)?;
        let (c, negate) = match operands.get(3) {
            None => (self.names.constant(1, line.instruction.line)?, false),
            Some(Operand::Not(name)) => (self.source(line, &Operand::Name(name), Type::Pred)?, true),
            Some(other) => (self.source(line, other, Type::Pred)?, false),
        };
        let combine = combine.unwrap_or(|a, b| a & b & 1);
        Ok(Op::SetPredicate { compare, combine, p, q, a, b, c, negate })
    }

    /// `set`: like `setp`, with a number as the result.
    pub(super) fn set(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let (compare, combine, flush) = self.comparison(line)?;
        let (to, ty) = (line.ty()?, line.ty()?);
        if combine.is_some() || !matches!(to, Type::U32 | Type::S32 | Type::F32) {
            return line.unsupported();
        }
        let compare = self.comparator(line, compare, ty, flush)?;
        let [d, a, b] = self.operands(line)?;
        let d = self.destination(line, &d, to)?;
        let truth = if to == Type::F32 { u64::from(1f32.to_bits()) } else { 0xffff_ffff };
        let (a, b) = (self.source(line, &a, ty)?, self.source(line, &b, ty)?);
        // The comparison goes into a predicate of its own, which then selects.
        let at = line.instruction.line;
        let p = self.destination(line, &Operand::Name("_"), Type::Pred)?;
        let one = self.names.constant(1, at)?;
        let q = self.destination(line, &Operand::Name("_"), Type::Pred)?;
        let guard = match line.instruction.guard {
            None => crate::program::Guard::Always,
            Some(_) => return line.fail("a guarded set is not supported"),
        };
        let op = Op::SetPredicate { compare, combine: |a, b| a & b & 1, p, q, a, b, c: one, negate: false };
        self.push(op, guard, at);
        Ok(Op::Select { d, a: self.names.constant(truth, at)?, b: self.names.constant(0, at)?, c: p })
    }

    pub(super) fn selp(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let ty = line.ty()?;
        if ty.bits() < 16 {
            return line.unsupported();
        }
        let [d, a, b, c] = self.operands(line)?;
        Ok(Op::Select {
            d: self.destination(line, &d, ty)?,
            a: self.source(line, &a, ty)?,
            b: self.source(line, &b, ty)?,
            c: self.source(line, &c, Type::Pred)?,
        })
    }

    pub(super) fn slct(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let flush = line.modifiers.take("ftz");
        let (ty, test) = (line.ty()?, line.ty()?);
        let f: Ternary = match test {
            Type::S32 if !flush => |a, b, c| if c as i32 >= 0 { a } else { b },
            // False for NaN; -0 is not below 0, and so are the subnormals that `.ftz` flushes.
            Type::F32 if flush => |a, b, c| {
                let c = f32::from_bits(c as u32);
                if c >= 0.0 || c.is_subnormal() { a } else { b }
            },
            Type::F32 => |a, b, c| if f32::from_bits(c as u32) >= 0.0 { a } else { b },
            _ => return line.unsupported(),
        };
        self.ternary(line, Some(f), [ty, ty, ty, test])
    }

    pub(super) fn testp(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        const PROPERTIES: [&str; 6] = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let Some(property) = line.modifiers.one_of(&PROPERTIES) else { return line.unsupported() };
        let ty = line.ty()?;
        self.unary(line, float::test(property, ty), Type::Pred, ty)
    }
}
