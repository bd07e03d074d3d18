//! The outcomes of sequential consistency: whatever is allowed beyond them is weak.

use std::collections::{BTreeSet, HashSet};

use super::enumerate::Outcome;
use super::machine::{Machine, Stored};
use super::program::{Litmus, Op};

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    machines: Vec<Machine>,
    /// Threads that wait at a barrier.
    waiting: Vec<bool>,
    done: Vec<bool>,
    memory: Vec<u64>,
}

/// All outcomes of running the threads one instruction at a time over one memory.
pub fn interleave(litmus: &Litmus) -> BTreeSet<Outcome> {
    let start = State {
        machines: litmus.threads.iter().map(Machine::new).collect(),
        waiting: vec![false; litmus.threads.len()],
        done: vec![false; litmus.threads.len()],
        memory: litmus.locations.iter().map(|location| location.initial).collect(),
    };
    let mut outcomes = BTreeSet::new();
    let mut seen = HashSet::new();
    let mut open = vec![start];
    while let Some(mut state) = open.pop() {
        state.pass_barriers(litmus);
        if !seen.insert(state.clone()) {
            continue;
        }
        if state.done.iter().all(|done| *done) {
            let known = |machine: &Machine| machine.registers.iter().map(|r| r.unwrap_or(0)).collect();
            let registers = state.machines.iter().map(known).collect();
            outcomes.insert(Outcome { registers, memory: state.memory });
            continue;
        }
        for thread in 0..litmus.threads.len() {
            if !state.done[thread] && !state.waiting[thread] {
                let mut next = state.clone();
                next.step(litmus, thread);
                open.push(next);
            }
        }
    }
    outcomes
}

impl State {
    fn step(&mut self, litmus: &Litmus, number: usize) {
        let thread = &litmus.threads[number];
        let machine = &mut self.machines[number];
        let Some((index, active)) = machine.next(thread) else {
            self.done[number] = true;
            return;
        };
        if active != Some(true) {
            return;
        }
        match thread.code[index].op {
            Op::Load { location, d, .. } => machine.set(d, active, Some(self.memory[location])),
            Op::Store { location, a, .. } => {
                self.memory[location] = machine.value(a).unwrap_or(0);
            }
            Op::Atomic { location, rmw, d, .. } => {
                let old = self.memory[location];
                if let Stored::Value(new) = machine.modify(rmw, litmus.locations[location].width, Some(old)) {
                    self.memory[location] = new;
                }
                if let Some(d) = d {
                    machine.set(d, active, Some(old));
                }
            }
            Op::Barrier => self.waiting[number] = true,
            _ => {}
        }
    }

    /// Lets blocks go on whose threads all wait.
    fn pass_barriers(&mut self, litmus: &Litmus) {
        for thread in &litmus.threads {
            let same = |other: usize| {
                let other = &litmus.threads[other];
                (other.device, other.block) == (thread.device, thread.block)
            };
            let block: Vec<usize> = (0..litmus.threads.len()).filter(|&other| same(other)).collect();
            if block.iter().all(|&other| self.waiting[other]) {
                block.iter().for_each(|&other| self.waiting[other] = false);
            }
        }
    }
}
