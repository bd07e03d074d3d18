//! Branches, barriers and the ends of a thread.

use super::{Decoder, Line, Unresolved};
use crate::ast::Operand;
use crate::error::At;
use crate::program::{Barrier, BarrierKind, Op};
use crate::types::Type;

impl<'a> Decoder<'a> {
    pub(super) fn control(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let at = line.instruction.line;
        let operands = line.instruction.operands.as_slice();
        match (line.instruction.opcode, operands) {
            ("bra", [Operand::Name(label)]) => {
                line.modifiers.take("uni");
                self.branch_to(label, 0, at);
                Ok(Op::Branch { target: 0 })
            }
            ("brx", [index, Operand::Name(name)]) => {
                if !line.modifiers.take("idx") {
                    return line.unsupported();
                }
                line.modifiers.take("uni");
                let index = self.names.source(index, Type::U32, false, at)?;
                let Some((_, labels)) = self.tables.iter().find(|(known, _)| known == name) else {
                    return line.fail(format!("{name} is not a .branchtargets list"));
                };
                let labels = labels.clone();
                for (place, label) in labels.iter().enumerate() {
                    self.branch_to(label, place, at);
                }
                Ok(Op::BranchTable { index, targets: vec![0; labels.len()].into() })
            }
            ("ret" | "exit", []) => {
                line.modifiers.take("uni");
                Ok(Op::Exit)
            }
            ("trap", []) => Ok(Op::Trap),
            ("brkpt", []) => Ok(Op::Nothing),
            ("nanosleep", [time]) => {
                if line.ty()? != Type::U32 {
                    return line.unsupported();
                }
                self.names.source(time, Type::U32, false, at)?;
                Ok(Op::Sleep)
            }
            ("bar" | "barrier", _) => self.barrier(line),
            (opcode, _) => line.fail(format!("wrong operands for {opcode}")),
        }
    }

    fn branch_to(&mut self, label: &'a str, place: usize, line: u32) {
        let scopes = self.names.scope_chain();
        self.branches.push(Unresolved { step: self.code.len(), place, label, scopes, line });
    }

    fn barrier(&mut self, line: &mut Line<'_, 'a>) -> Result<Op, At> {
        let at = line.instruction.line;
        line.modifiers.take("cta");
        line.modifiers.take("aligned");
        let operands = line.instruction.operands.as_slice();
        if line.modifiers.take("warp") {
            return match operands {
                [mask] if line.modifiers.take("sync") => {
                    Ok(Op::WarpBarrier { a: self.names.source(mask, Type::B32, false, at)? })
                }
                _ => line.unsupported(),
            };
        }
        let kind = match line.modifiers.one_of(&["sync", "arrive", "red"]) {
            Some("sync") => BarrierKind::Sync,
            Some("arrive") => BarrierKind::Arrive,
            Some("red") => match line.modifiers.one_of(&["popc", "and", "or"]) {
                Some("popc") => BarrierKind::Popc,
                Some("and") => BarrierKind::And,
                Some("or") => BarrierKind::Or,
                _ => return line.unsupported(),
            },
            _ => return line.unsupported(),
        };
        let reduces = matches!(kind, BarrierKind::Popc | BarrierKind::And | BarrierKind::Or);
        let (d, rest, p) = if reduces {
            let result = if kind == BarrierKind::Popc { Type::U32 } else { Type::Pred };
            if line.modifiers.take_type() != Some(result) {
                return line.unsupported();
            }
            match operands {
                [d, rest @ .., p] if !rest.is_empty() => {
                    (self.names.destination(d, result, false, at)?, rest, Some(p))
                }
                _ => return line.fail("wrong operands for bar.red"),
            }
        } else {
            (self.names.destination(&Operand::Name("_"), Type::Pred, false, at)?, operands, None)
        };
        let (id, count) = match rest {
            [id] => (id, None),
            [id, count] => (id, Some(count)),
            _ => return line.fail("a barrier takes a number and perhaps a count of threads"),
        };
        if count.is_none() && kind == BarrierKind::Arrive {
            return line.fail("bar.arrive needs a count of threads");
        }
        let id = self.names.source(id, Type::U32, false, at)?;
        let count = match count {
            Some(count) => Some(self.names.source(count, Type::U32, false, at)?),
            None => None,
        };
        let (p, negate) = match p {
            None => (self.names.constant(1, at)?, false),
            Some(Operand::Not(name)) => (self.names.register(name, Type::Pred, false, at)?, true),
            Some(other) => (self.names.source(other, Type::Pred, false, at)?, false),
        };
        Ok(Op::Barrier(Box::new(Barrier { kind, id, count, d, p, negate })))
    }
}
