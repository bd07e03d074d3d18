//! The barriers of the subset.

use super::error::LitmusErrorKind as Kind;
use super::instruction::Parser;
use super::program::{Op, Operand, Reduce, Vote, Width};
use super::text::number;

/// Threads of a warp.
const WARP: u64 = 32;

impl Parser<'_, '_> {
    /// `bar.sync a{, b}`, `bar.arrive a, b`, `bar.red.op d, a, p`, `bar.warp.sync mask`. A count is of threads; every thread of
    /// a test stands for a warp then.
    pub(super) fn barrier(&mut self) -> Result<Op, Kind> {
        self.flag("cta");
        if self.flag("warp") {
            return self.warp_barrier();
        }
        if self.flag("red") {
            return self.reduction();
        }
        let arrive = self.flag("arrive");
        if !arrive && !self.flag("sync") {
            return Err(self.error("of barriers, .sync, .arrive, .red and .warp.sync are in the subset"));
        }
        let (id, count) = match self.operands[..] {
            [id] if !arrive || self.names.named_barriers => (id, None),
            [id, count] => {
                let count = number(count)?;
                let warps = count / WARP;
                if count == 0 || count % WARP != 0 || warps > 16 {
                    return Err(
                        self.error("a count is a multiple of 32: every thread of a test stands for a warp")
                    );
                }
                (id, Some(warps as u32))
            }
            _ => return Err(self.error("a number is needed, and for bar.arrive a count")),
        };
        Ok(Op::Barrier { id: self.barrier_number(id)?, count, arrive, vote: None })
    }

    fn barrier_number(&mut self, text: &str) -> Result<Operand, Kind> {
        let id = self.operand(text, Width::B32)?;
        if matches!(id, Operand::Constant(16..)) {
            return Err(self.error("barriers have the numbers 0 to 15"));
        }
        Ok(id)
    }

    fn reduction(&mut self) -> Result<Op, Kind> {
        let of = self.word(|word| match word {
            "popc" => Some(Reduce::Count),
            "and" => Some(Reduce::And),
            "or" => Some(Reduce::Or),
            _ => None,
        });
        let of = of.ok_or_else(|| self.error("one of .popc, .and and .or is needed"))?;
        let counts = of == Reduce::Count;
        if !self.flag(if counts { "u32" } else { "pred" }) {
            return Err(self.error("a type is needed: .popc has .u32, .and and .or have .pred"));
        }
        let [d, id, p] = self.operands[..] else {
            return Err(self.error("a destination, a number and a predicate are needed, without a count"));
        };
        let id = self.barrier_number(id)?;
        let (p, negated) = match p.strip_prefix('!') {
            Some(p) => (self.predicate(p)?, true),
            None => (self.predicate(p)?, false),
        };
        let d = if counts { self.register(d, Width::B32)? } else { self.predicate(d)? };
        Ok(Op::Barrier { id, count: None, arrive: false, vote: Some(Vote { of, d, p, negated }) })
    }

    fn warp_barrier(&mut self) -> Result<Op, Kind> {
        let syncs = self.flag("sync");
        let mask = match self.operands[..] {
            [mask] if syncs => number(mask).ok(),
            _ => None,
        };
        let mask = mask.and_then(|mask| u32::try_from(mask).ok());
        mask.map(|mask| Op::WarpBarrier { mask })
            .ok_or_else(|| self.error("bar.warp.sync takes a mask of 32 bits, as a constant"))
    }
}
