//! The enumerator: all final states that the axioms allow.
//!
//! Names and numbers of relations and axioms are those of PTX ISA, chapter "Memory Consistency Model"; program order
//! is part of base causality order, as the chapter has it now. All accesses are to whole, equal locations, so that "morally
//! strong" is a matter of scopes, and of addresses and proxies where a test has several. `ld.global.nc` is outside the model
//! and may return anything that its location ever holds.
//!
//! An atomic is two operations, a read and behind it in program order a write ("Operation Types": atomic operations are
//! read-modify-write operations): what its write precedes, its read need not precede. That is the weaker of two
//! readings, and allows the more to be found; for data races, which are told of instructions, it is one.
//!
//! Coherence order takes part in no other order, so its choices at one location are independent of those at others.
//! Fence-SC order does, and is enumerated first.

use std::collections::BTreeSet;

use super::barriers::{Arrival, Meeting, meetings};
use super::candidate::{Event, candidates, expected};
use super::coherence::final_values;
use super::model::Model;
use super::outcome::Outcome;
use super::program::Litmus;
use super::relation::{Relation, permutations};
use super::scalars::orders;

/// All outcomes that the PTX memory model allows.
pub fn enumerate(litmus: &Litmus) -> BTreeSet<Outcome> {
    explore(litmus).outcomes
}

/// What the PTX memory model allows.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// The outcomes of all executions.
    pub outcomes: BTreeSet<Outcome>,
    /// The outcomes of those without data race.
    pub race_free: BTreeSet<Outcome>,
    /// Whether some execution has a data race: two accesses to a location, one of them a write, that are neither
    /// related in causality order nor morally strong (PTX ISA, "Data-Races").
    pub racy: bool,
    /// Whether some execution never ends: a thread waits at a barrier to which nobody comes, or goes round in a loop
    /// that stores nothing and whose loads return the last values there will be.
    pub hangs: bool,
    /// Whether some loop that stores goes round more often than is looked at, so that nothing is known of its end.
    pub unbounded: bool,
}

impl Allowed {
    /// Whether every execution ends, if that is known.
    pub fn terminates(&self) -> Option<bool> {
        match (self.hangs, self.unbounded) {
            (true, _) => Some(false),
            (false, true) => None,
            (false, false) => Some(true),
        }
    }
}

/// All executions that the PTX memory model allows.
pub fn explore(litmus: &Litmus) -> Allowed {
    let mut allowed = Allowed::default();
    for litmus in &orders(litmus) {
        candidates(litmus, &mut |candidate| {
            Model::new(litmus, &candidate).outcomes(&mut allowed);
        });
    }
    allowed
}

impl Model<'_> {
    /// The outcomes of all choices of Fence-SC order, coherence order and meetings at barriers.
    fn outcomes(&self, allowed: &mut Allowed) {
        let events = self.events();
        let fences: Vec<usize> = (0..events.len()).filter(|&event| events[event].sequential).collect();
        let mut orders = BTreeSet::new();
        permutations(&fences, &mut |order| {
            let mut relation = Relation::new(events.len());
            for (place, &first) in order.iter().enumerate() {
                for &second in &order[place + 1..] {
                    if self.morally_strong.has(first, second) {
                        relation.add(first, second);
                    }
                }
            }
            orders.insert(relation);
        });
        for meetings in self.all_meetings() {
            for fence_order in &orders {
                self.add(&fences, fence_order, &meetings, allowed);
            }
        }
    }

    /// Adds what this execution gives with these choices, if it is allowed.
    fn add(&self, fences: &[usize], fence_order: &Relation, meetings: &[Meeting], allowed: &mut Allowed) {
        let base = self.base_causality(fence_order, meetings);
        if self.fences_contradict(fences, fence_order, &base) {
            return;
        }
        let causality = self.causality(&base);
        let rounds = self.last_rounds();
        let stores = rounds.iter().any(|&event| self.events()[event].writes);
        // What a round stores, the next one may find.
        let last = if stores { &[] } else { &rounds[..] };
        let memory: Option<Vec<BTreeSet<u64>>> = (0..self.litmus.locations.len())
            .map(|location| final_values(self, location, &causality, last))
            .map(|values| (!values.is_empty()).then_some(values))
            .collect();
        let Some(mut memory) = memory else { return };
        for location in 0..memory.len() {
            // By any address it is one memory; of shared memory nobody sees what is left.
            memory[location] = match self.litmus.is_shared(location) {
                true => BTreeSet::from([0]),
                false => memory[self.litmus.memory_of(location)].clone(),
            };
        }
        let racy = self.races(&causality);
        allowed.racy |= racy;
        let events = self.events();
        if self.candidate.bound.iter().any(Option::is_some) || events.iter().any(stays) {
            allowed.unbounded |= stores;
            allowed.hangs |= !stores;
            return;
        }
        self.add_products(&memory, &mut allowed.outcomes);
        if !racy {
            self.add_products(&memory, &mut allowed.race_free);
        }
    }

    /// The events of the last rounds of loops that go on beyond the bound.
    fn last_rounds(&self) -> Vec<usize> {
        let events = self.events();
        let last = |&event: &usize| {
            let from = self.candidate.bound[events[event].thread];
            from.is_some_and(|from| events[event].index >= from)
        };
        (0..events.len()).filter(last).collect()
    }

    /// All ways in which barriers are met, over all blocks.
    fn all_meetings(&self) -> Vec<Vec<Meeting>> {
        let threads = &self.litmus.threads;
        let mut blocks: Vec<(u32, u32)> =
            threads.iter().map(|thread| (thread.device, thread.block)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let arrivals = |thread: usize| -> Vec<Arrival> {
            let own = self.events().iter().enumerate().filter(|(_, event)| event.thread == thread);
            own.filter_map(|(number, event)| {
                let barrier = event.barrier?;
                let expected = expected(self.litmus, self.candidate, thread, barrier);
                Some(Arrival {
                    id: barrier.id,
                    expected,
                    arrive: barrier.arrive,
                    event: number,
                    forever: barrier.forever,
                })
            })
            .collect()
        };
        let mut all = vec![Vec::new()];
        for block in blocks {
            let members = (0..threads.len()).filter(|&t| (threads[t].device, threads[t].block) == block);
            let arrivals: Vec<Vec<Arrival>> = members.map(arrivals).filter(|own| !own.is_empty()).collect();
            if !arrivals.is_empty() {
                let here = meetings(&arrivals);
                let both = |known: &Vec<Meeting>, more: &Vec<Meeting>| [known.as_slice(), more].concat();
                all = all.iter().flat_map(|known| here.iter().map(move |more| both(known, more))).collect();
            }
        }
        all
    }

    /// Adds an outcome for every way to choose final values.
    fn add_products(&self, memory: &[BTreeSet<u64>], outcomes: &mut BTreeSet<Outcome>) {
        let mut products = vec![Vec::new()];
        for values in memory {
            let longer = |known: &Vec<u64>, value: u64| [known.as_slice(), &[value]].concat();
            products = products
                .iter()
                .flat_map(|known| values.iter().map(move |&value| longer(known, value)))
                .collect();
        }
        let is_one = |memory: &Vec<u64>| {
            (0..memory.len()).all(|location| memory[location] == memory[self.litmus.memory_of(location)])
        };
        for memory in products.into_iter().filter(is_one) {
            outcomes.insert(Outcome { registers: self.candidate.registers.clone(), memory });
        }
    }
}

/// Whether an event is a barrier at which its thread stays.
fn stays(event: &Event) -> bool {
    event.barrier.is_some_and(|barrier| barrier.forever)
}
