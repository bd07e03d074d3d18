//! Instructions that concern registers alone, and which registers an instruction concerns.

use crate::exec::Launch;
use crate::ptx::{Op, Slot};

/// Instructions that concern registers alone.
#[inline]
pub(crate) fn compute(op: &Op, slots: &mut [u64]) {
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
        // The caller has dealt with all others.
        _ => {}
    }
}

/// By instruction: the slots that it reads or writes.
#[derive(Debug)]
pub(super) struct Uses {
    slots: Vec<Slot>,
    ends: Vec<u32>,
}

impl Uses {
    pub(super) fn new(launch: &Launch) -> Self {
        let mut uses = Self { slots: Vec::new(), ends: Vec::new() };
        for step in &launch.kernel.code {
            step.clone().visit(&mut |slot, _| uses.slots.push(*slot));
            uses.ends.push(uses.slots.len() as u32);
        }
        uses
    }

    #[inline]
    pub(super) fn of(&self, pc: usize) -> &[Slot] {
        let begin = if pc == 0 { 0 } else { self.ends[pc - 1] };
        &self.slots[begin as usize..self.ends[pc] as usize]
    }
}
