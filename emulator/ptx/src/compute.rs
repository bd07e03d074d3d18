//! What executors share of an instruction: whether its guard holds, and what it does to registers alone.

use super::program::{Guard, Op};

impl Guard {
    /// Whether the instruction is executed by a thread with these slots.
    #[inline]
    pub fn holds(self, slots: &[u64]) -> bool {
        match self {
            Guard::Always => true,
            Guard::If(p) => slots[usize::from(p)] & 1 == 1,
            Guard::Unless(p) => slots[usize::from(p)] & 1 == 0,
        }
    }
}

/// Executes an instruction that concerns registers alone, on the slots of a thread. Those that concern memory, other
/// threads or the order of instructions are the executor's, and do nothing here.
///
/// Every executor's loop ends in it, so it becomes a part of each.
#[inline(always)]
pub fn compute(op: &Op, slots: &mut [u64]) {
    macro_rules! get {
        ($slot:expr) => {
            slots[usize::from($slot)]
        };
    }
    match op {
        Op::Move { d, a } => get!(*d) = get!(*a),
        Op::Unary { f, d, a } => get!(*d) = f(get!(*a)),
        Op::Binary { f, d, a, b } => get!(*d) = f(get!(*a), get!(*b)),
        Op::Ternary { f, d, a, b, c } => get!(*d) = f(get!(*a), get!(*b), get!(*c)),
        Op::Quaternary { f, d, a, b, c, e } => {
            get!(*d) = f(get!(*a), get!(*b), get!(*c), get!(*e));
        }
        Op::Select { d, a, b, c } => {
            get!(*d) = if get!(*c) & 1 == 1 { get!(*a) } else { get!(*b) };
        }
        Op::Pair { f, d, e, a, b, c } => {
            let (first, second) = f(get!(*a), get!(*b), get!(*c));
            get!(*d) = first;
            get!(*e) = second;
        }
        Op::SetPredicate { compare, combine, p, q, a, b, c, negate } => {
            let truth = compare(get!(*a), get!(*b)) & 1;
            let c = (get!(*c) ^ u64::from(*negate)) & 1;
            get!(*q) = combine(truth ^ 1, c);
            get!(*p) = combine(truth, c);
        }
        Op::Pack { d, a, lanes, bits } => {
            let mask = u64::MAX >> (64 - bits);
            let lanes = a[..usize::from(*lanes)].iter().enumerate();
            get!(*d) = lanes
                .fold(0, |joined, (lane, slot)| joined | (get!(*slot) & mask) << (lane * usize::from(*bits)));
        }
        Op::Unpack { d, a, lanes, bits } => {
            let whole = get!(*a);
            let mask = u64::MAX >> (64 - bits);
            for (lane, slot) in d[..usize::from(*lanes)].iter().enumerate() {
                get!(*slot) = whole >> (lane * usize::from(*bits)) & mask;
            }
        }
        Op::Load(_)
        | Op::Store(_)
        | Op::Atomic(_)
        | Op::Fence { .. }
        | Op::Branch { .. }
        | Op::BranchTable { .. }
        | Op::Barrier(_)
        | Op::WarpBarrier { .. }
        | Op::Clock { .. }
        | Op::Sleep
        | Op::Exit
        | Op::Trap
        | Op::Nothing => {}
    }
}
