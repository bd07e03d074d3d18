//! A thread that computes with values which may be unknown yet.

use super::program::{Function, Op, Operand, Reduce, Rmw, Thread, Vote, Width};

/// A thread on its way through its code. What is unknown is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Machine {
    /// The next instruction.
    pub(super) at: usize,
    pub(super) registers: Vec<Option<u64>>,
    predicates: Vec<Option<bool>>,
    /// Branches not yet rejoined: where they go, and whether they are taken.
    branches: Vec<(usize, Option<bool>)>,
}

impl Machine {
    pub(super) fn new(thread: &Thread) -> Self {
        Self {
            at: 0,
            registers: vec![Some(0); thread.registers.len()],
            predicates: vec![Some(false); thread.predicates.len()],
            branches: Vec::new(),
        }
    }

    /// Ends the thread where it is.
    pub(super) fn halt(&mut self, thread: &Thread) {
        self.at = thread.code.len();
    }

    /// Goes on to the next memory operation, fence, barrier or bound of a loop: its index, and whether it is executed.
    /// `at` then stands behind it.
    pub(super) fn next(&mut self, thread: &Thread) -> Option<(usize, Option<bool>)> {
        while let Some(instruction) = thread.code.get(self.at) {
            let index = self.at;
            self.at += 1;
            self.branches.retain(|&(target, _)| target > index);
            let here = self.branches.iter().map(|&(_, taken)| taken.map(|taken| !taken));
            let guard = instruction.guard.map(|(p, truth)| self.predicates[p].map(|value| value == truth));
            let active = here.chain(guard).fold(Some(true), both);
            match &instruction.op {
                Op::Branch { target } => self.branches.push((*target, active)),
                Op::Move { d, a } => self.set(*d, active, self.value(*a)),
                Op::Compute { function, d, a, b } => {
                    let width = thread.registers[*d].width;
                    // What is xor-ed with itself depends on nothing: an implementation may know that
                    // (PTX ISA, "No Thin Air": any chain of reasoning).
                    let zero = (*function == Function::Xor && a == b).then_some(0);
                    let both = || self.value(*a).zip(self.value(*b));
                    let value = zero.or_else(|| both().map(|(a, b)| function.of(width, a, b)));
                    self.set(*d, active, value);
                }
                Op::SetPredicate { p, compare, signed, a, b } => {
                    let both = self.value(*a).zip(self.value(*b));
                    let truth = both.map(|(a, b)| match signed {
                        None => compare.holds(&a, &b),
                        Some(width) => compare.holds(&width.signed(a), &width.signed(b)),
                    });
                    assign(&mut self.predicates[*p], active, truth);
                }
                Op::Load { .. }
                | Op::Store { .. }
                | Op::Atomic { .. }
                | Op::Vector(_)
                | Op::Fence(_)
                | Op::ProxyFence(_)
                | Op::Barrier { .. }
                | Op::WarpBarrier { .. }
                | Op::Bound { .. } => {
                    return Some((index, active));
                }
            }
        }
        None
    }

    /// Sets a register if `active`.
    pub(super) fn set(&mut self, register: usize, active: Option<bool>, value: Option<u64>) {
        assign(&mut self.registers[register], active, value);
    }

    /// What the thread says of itself at a `bar.red`.
    pub(super) fn vote(&self, vote: Vote) -> Option<bool> {
        self.predicates[vote.p].map(|truth| truth != vote.negated)
    }

    /// Takes what a `bar.red` has made of the votes of all.
    pub(super) fn take_result(&mut self, vote: Vote, active: Option<bool>, result: Option<u64>) {
        match vote.of {
            Reduce::Count => assign(&mut self.registers[vote.d], active, result),
            Reduce::And | Reduce::Or => {
                assign(&mut self.predicates[vote.d], active, result.map(|truth| truth != 0));
            }
        }
    }

    pub(super) fn value(&self, operand: Operand) -> Option<u64> {
        match operand {
            Operand::Register(register) => self.registers[register],
            Operand::Constant(value) => Some(value),
        }
    }

    /// What an atomic leaves in memory where it found `old`.
    pub(super) fn modify(&self, rmw: Rmw, width: Width, old: Option<u64>) -> Stored {
        let stored = |value: Option<u64>| value.map_or(Stored::Unknown, Stored::Value);
        match rmw {
            Rmw::Exchange(a) => stored(self.value(a)),
            Rmw::Compute(function, a) => {
                stored(old.zip(self.value(a)).map(|(a, b)| function.of(width, a, b)))
            }
            Rmw::CompareSwap(a, b) => match old.zip(self.value(a)) {
                None => Stored::Unknown,
                Some((old, wanted)) if old == wanted => stored(self.value(b)),
                Some(_) => Stored::Nothing,
            },
        }
    }
}

/// What a memory operation stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Not known yet, nor whether it is executed at all.
    Unknown,
    /// Nothing: it is not executed, or only reads.
    Nothing,
    /// This value.
    Value(u64),
}

fn both(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn assign<T: Copy>(to: &mut Option<T>, active: Option<bool>, value: Option<T>) {
    match active {
        Some(true) => *to = value,
        Some(false) => {}
        None => *to = None,
    }
}
