//! The outcomes of sequential consistency: whatever is allowed beyond them is weak.

use std::collections::{BTreeSet, HashSet};

use super::machine::{Machine, Stored};
use super::outcome::Outcome;
use super::program::{Litmus, Op, Operand, Participants, Vote};
use super::scalars::all_orders;
use super::together::OF_WARPS;

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    machines: Vec<Machine>,
    /// Threads that wait at a barrier.
    waiting: Vec<bool>,
    done: Vec<bool>,
    memory: Vec<u64>,
    open: Vec<Open>,
}

/// A barrier at which some have arrived.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Open {
    block: (u32, u32),
    id: u64,
    /// Arrivals that are still to come.
    missing: usize,
    waiting: Vec<usize>,
    /// What those that wait say at a `bar.red`.
    votes: Vec<(usize, Vote, bool)>,
}

/// All outcomes of running the threads one instruction at a time over one memory. Runs that go round a loop more often
/// than is looked at have none, nor have those that never end. Where the threads of a barrier are those that name it
/// ([`Participants::Named`]), all in whose text it is count.
pub fn interleave(litmus: &Litmus) -> BTreeSet<Outcome> {
    all_orders(litmus).iter().flat_map(interleave_scalars).collect()
}

fn interleave_scalars(litmus: &Litmus) -> BTreeSet<Outcome> {
    let start = State {
        machines: litmus.threads.iter().map(Machine::new).collect(),
        waiting: vec![false; litmus.threads.len()],
        done: vec![false; litmus.threads.len()],
        memory: litmus.locations.iter().map(|location| location.initial).collect(),
        open: Vec::new(),
    };
    let mut outcomes = BTreeSet::new();
    let mut seen = HashSet::new();
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        if !seen.insert(state.clone()) {
            continue;
        }
        if state.done.iter().all(|done| *done) {
            let known = |machine: &Machine| machine.registers.iter().map(|r| r.unwrap_or(0)).collect();
            let registers = state.machines.iter().map(known).collect();
            let memory = (0..litmus.locations.len()).map(|at| match litmus.is_shared(at) {
                true => 0,
                false => state.memory[litmus.memory_of(at)],
            });
            outcomes.insert(Outcome { registers, memory: memory.collect() });
            continue;
        }
        for thread in 0..litmus.threads.len() {
            if !state.done[thread] && !state.waiting[thread] {
                let mut next = state.clone();
                if next.step(litmus, thread) {
                    open.push(next);
                }
            }
        }
    }
    outcomes
}

/// How many threads of the block have a barrier of this number in their text.
fn named(litmus: &Litmus, block: (u32, u32), id: u64) -> usize {
    let names = |op: &Op| match op {
        Op::Barrier { id: Operand::Constant(known), .. } => *known == id,
        Op::Barrier { .. } => true,
        _ => false,
    };
    let here = litmus.threads.iter().filter(|thread| (thread.device, thread.block) == block);
    here.filter(|thread| thread.barriers().any(|one| names(&one.op))).count()
}

impl State {
    /// One operation of a thread. Whether the run goes on.
    fn step(&mut self, litmus: &Litmus, number: usize) -> bool {
        let thread = &litmus.threads[number];
        let machine = &mut self.machines[number];
        let Some((index, active)) = machine.next(thread) else {
            self.done[number] = true;
            return true;
        };
        if active != Some(true) {
            return true;
        }
        match thread.code[index].op {
            Op::Load { location, d, .. } => {
                machine.set(d, active, Some(self.memory[litmus.memory_of(location)]));
            }
            Op::Store { location, a, .. } => {
                let location = litmus.memory_of(location);
                let width = litmus.locations[location].width;
                self.memory[location] = width.cut(machine.value(a).unwrap_or(0));
            }
            Op::Atomic { location, rmw, d, .. } => {
                let location = litmus.memory_of(location);
                let old = self.memory[location];
                if let Stored::Value(new) = machine.modify(rmw, litmus.locations[location].width, Some(old)) {
                    self.memory[location] = new;
                }
                if let Some(d) = d {
                    machine.set(d, active, Some(old));
                }
            }
            Op::Barrier { id, count, arrive, vote } => {
                let id = machine.value(id).unwrap_or(0);
                let vote = vote.map(|vote| (number, vote, machine.vote(vote).unwrap_or(false)));
                self.arrive(litmus, number, (id, count, arrive), vote);
            }
            Op::WarpBarrier { mask } => {
                let meets = |&other: &usize| {
                    litmus.threads[other].shares_a_block_with(thread) && mask >> litmus.lane(other) & 1 == 1
                };
                let lanes = (0..litmus.threads.len()).filter(meets).count() as u32;
                self.arrive(litmus, number, (OF_WARPS | u64::from(mask), Some(lanes), false), None);
            }
            Op::Bound { .. } => return false,
            _ => {}
        }
        true
    }

    fn arrive(
        &mut self,
        litmus: &Litmus,
        number: usize,
        (id, count, arrive): (u64, Option<u32>, bool),
        vote: Option<(usize, Vote, bool)>,
    ) {
        let thread = &litmus.threads[number];
        let block = (thread.device, thread.block);
        let all = || match litmus.participants {
            Participants::Block => {
                litmus.threads.iter().filter(|one| (one.device, one.block) == block).count()
            }
            Participants::Named => named(litmus, block, id),
        };
        let known = self.open.iter().position(|open| (open.block, open.id) == (block, id));
        let at = known.unwrap_or_else(|| {
            let missing = count.map_or_else(all, |count| count as usize);
            self.open.push(Open { block, id, missing, waiting: Vec::new(), votes: Vec::new() });
            self.open.len() - 1
        });
        let open = &mut self.open[at];
        open.votes.extend(vote);
        open.votes.sort_unstable_by_key(|(number, ..)| *number);
        open.missing = open.missing.saturating_sub(1);
        if !arrive {
            self.waiting[number] = true;
            open.waiting.push(number);
            open.waiting.sort_unstable();
        }
        if open.missing == 0 {
            let open = self.open.swap_remove(at);
            open.waiting.iter().for_each(|&other| self.waiting[other] = false);
            for &(other, vote, _) in &open.votes {
                let result = vote.of.of(open.votes.iter().map(|(.., truth)| *truth));
                self.machines[other].take_result(vote, Some(true), Some(result));
            }
        }
        self.open.sort_by_key(|open| (open.block, open.id));
    }
}
