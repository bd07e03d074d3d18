//! The enumerator: all final states that the axioms allow.
//!
//! Names and numbers of relations and axioms are those of PTX ISA, chapter "Memory Consistency Model"; program order
//! is part of base causality order, as the chapter has it now. All accesses are to whole, equal locations through the
//! generic proxy, so that "morally strong" is a matter of scopes, and proxies play no part. `ld.global.nc` is outside
//! the model and may return anything that its location ever holds.
//!
//! An atomic is two operations, a read and behind it in program order a write ("Operation Types": atomic operations are
//! read-modify-write operations): what its write precedes, its read need not precede. That is the weaker of two
//! readings, and allows the more to be found; for data races, which are told of instructions, it is one.
//!
//! Coherence order takes part in no other order, so its choices at one location are independent of those at others.
//! Fence-SC order does, and is enumerated first.

use std::collections::BTreeSet;

use super::barriers::{Arrival, Meeting, meetings};
use super::candidate::{Candidate, Event, candidates, expected};
use super::coherence::final_values;
use super::condition::Observable;
use super::program::{Litmus, Scope};
use super::relation::{Relation, permutations};

/// A final state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// Registers, by thread.
    pub registers: Vec<Vec<u64>>,
    /// Locations.
    pub memory: Vec<u64>,
}

impl Outcome {
    /// The value of `what`.
    ///
    /// # Panics
    ///
    /// If the test of this outcome has no such register or location.
    pub fn value(&self, what: Observable) -> u64 {
        match what {
            Observable::Register { thread, register } => self.registers[thread][register],
            Observable::Location(location) => self.memory[location],
        }
    }

    /// The outcome in words of its test: `0:%r0=1 x=0`.
    pub fn describe(&self, litmus: &Litmus) -> String {
        let mut words = Vec::new();
        for (number, (thread, values)) in litmus.threads.iter().zip(&self.registers).enumerate() {
            let registers = thread.registers.iter().zip(values);
            words.extend(registers.map(|(register, value)| format!("{number}:{}={value}", register.name)));
        }
        let locations = litmus.locations.iter().zip(&self.memory);
        words.extend(locations.map(|(location, value)| format!("{}={value}", location.name)));
        words.join(" ")
    }
}

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
    candidates(litmus, &mut |candidate| {
        Model::new(litmus, &candidate).outcomes(&mut allowed);
    });
    allowed
}

/// A candidate execution and the relations that depend on nothing but its sources.
pub(super) struct Model<'a> {
    litmus: &'a Litmus,
    candidate: &'a Candidate,
    pub(super) program_order: Relation,
    pub(super) morally_strong: Relation,
    observation: Relation,
}

impl<'a> Model<'a> {
    fn new(litmus: &'a Litmus, candidate: &'a Candidate) -> Self {
        let events = &candidate.events;
        let empty = Relation::new(events.len());
        let mut model = Self {
            litmus,
            candidate,
            program_order: empty.clone(),
            morally_strong: empty.clone(),
            observation: empty,
        };
        for a in 0..events.len() {
            for b in 0..events.len() {
                if a < b && events[a].thread == events[b].thread {
                    model.program_order.add(a, b);
                }
                if a != b && model.are_morally_strong(&events[a], &events[b]) {
                    model.morally_strong.add(a, b);
                }
            }
        }
        model.observe();
        model
    }

    pub(super) fn events(&self) -> &[Event] {
        &self.candidate.events
    }

    pub(super) fn initial(&self, location: usize) -> u64 {
        self.litmus.locations[location].initial
    }

    /// "Morally strong operations".
    fn are_morally_strong(&self, a: &Event, b: &Event) -> bool {
        let (Some(_), Some(_)) = (operation(a), operation(b)) else { return false };
        if let (Some(at), Some(to)) = (a.location, b.location)
            && at != to
        {
            return false;
        }
        a.thread == b.thread || self.reaches(a, b) && self.reaches(b, a)
    }

    /// Whether `a` is strong at a scope that includes the thread of `b`.
    fn reaches(&self, a: &Event, b: &Event) -> bool {
        let (at, to) = (&self.litmus.threads[a.thread], &self.litmus.threads[b.thread]);
        match a.strong {
            None => false,
            Some(Scope::System) => true,
            Some(Scope::Device) => at.device == to.device,
            Some(Scope::Block) => (at.device, at.block) == (to.device, to.block),
        }
    }

    /// "Observation Order".
    fn observe(&mut self) {
        let events = &self.candidate.events;
        let mut chains = Relation::new(events.len());
        for (read, event) in events.iter().enumerate() {
            if let Some(write) = event.source
                && self.morally_strong.has(write, read)
            {
                chains.add(write, read);
            }
            if let (true, Some(write)) = (event.reads, event.partner) {
                chains.add(read, write);
            }
        }
        chains.close();
        for write in (0..events.len()).filter(|&event| events[event].writes) {
            for read in (0..events.len()).filter(|&event| events[event].reads) {
                if chains.has(write, read) {
                    self.observation.add(write, read);
                }
            }
        }
    }

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
        let Some(memory) = memory else { return };
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

    /// Whether two accesses race.
    fn races(&self, causality: &Relation) -> bool {
        let events = self.events();
        let halves = |event: usize| [Some(event), events[event].partner].into_iter().flatten();
        (0..events.len()).any(|a| {
            (0..a).any(|b| {
                let (one, other) = (&events[a], &events[b]);
                let conflict = operation(one).is_some_and(|at| at.is_some() && operation(other) == Some(at))
                    && (one.writes || other.writes);
                let precedes = |a: usize, b: usize| halves(a).any(|a| halves(b).any(|b| causality.has(a, b)));
                let ordered = precedes(a, b) || precedes(b, a);
                conflict && !ordered && !self.morally_strong.has(a, b)
            })
        })
    }

    /// "Base causality order", with "Memory synchronization".
    fn base_causality(&self, fence_order: &Relation, meetings: &[Meeting]) -> Relation {
        let events = self.events();
        let mut base = self.program_order.clone();
        for a in 0..events.len() {
            for b in 0..events.len() {
                if fence_order.has(a, b) || self.meets(a, b, meetings) {
                    base.add(a, b);
                }
            }
        }
        for (first, write) in self.release_patterns() {
            for (read, last) in self.acquire_patterns() {
                if self.observation.has(write, read) && self.morally_strong.has(first, last) {
                    base.add(first, last);
                }
            }
        }
        base.close();
        base
    }

    /// Whether `b` leaves a barrier to which `a` has come.
    fn meets(&self, a: usize, b: usize, meetings: &[Meeting]) -> bool {
        let waits = self.events()[b].barrier.is_some_and(|barrier| !barrier.arrive);
        a != b && waits && meetings.iter().any(|meeting| meeting.contains(&a) && meeting.contains(&b))
    }

    /// "Release Patterns": the first operation, and the write.
    fn release_patterns(&self) -> Vec<(usize, usize)> {
        let events = self.events();
        let mut patterns = Vec::new();
        for (write, event) in events.iter().enumerate() {
            if !event.writes || event.strong.is_none() {
                continue;
            }
            for (first, leader) in events.iter().enumerate() {
                let alone = first == write;
                let before = self.program_order.has(first, write)
                    && (leader.fence || leader.location == event.location && leader.writes);
                if leader.release && (alone || before) {
                    patterns.push((first, write));
                }
            }
        }
        patterns
    }

    /// "Acquire Patterns": the read, and the last operation.
    fn acquire_patterns(&self) -> Vec<(usize, usize)> {
        let events = self.events();
        let mut patterns = Vec::new();
        for (read, event) in events.iter().enumerate() {
            if !event.reads || event.strong.is_none() || event.reduction {
                continue;
            }
            for (last, closer) in events.iter().enumerate() {
                let alone = last == read;
                let after = self.program_order.has(read, last)
                    && (closer.fence || closer.location == event.location && closer.reads);
                if closer.acquire && (alone || after) {
                    patterns.push((read, last));
                }
            }
        }
        patterns
    }

    /// Axiom "Fence-SC".
    fn fences_contradict(&self, fences: &[usize], fence_order: &Relation, base: &Relation) -> bool {
        let pairs = fences.iter().flat_map(|&a| fences.iter().map(move |&b| (a, b)));
        pairs.into_iter().any(|(a, b)| {
            base.has(a, b) && (a == b || self.morally_strong.has(a, b) && !fence_order.has(a, b))
        })
    }

    /// "Causality Order" between memory operations on one location.
    fn causality(&self, base: &Relation) -> Relation {
        let events = self.events();
        let mut causality = Relation::new(events.len());
        for a in 0..events.len() {
            for b in 0..events.len() {
                let (Some(at), Some(to)) = (operation(&events[a]), operation(&events[b])) else { continue };
                let observed = || (0..events.len()).any(|z| self.observation.has(a, z) && base.has(z, b));
                if at == to && at.is_some() && (base.has(a, b) || observed()) {
                    causality.add(a, b);
                }
            }
        }
        causality
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
        for memory in products {
            outcomes.insert(Outcome { registers: self.candidate.registers.clone(), memory });
        }
    }
}

/// Whether an event is a barrier at which its thread stays.
fn stays(event: &Event) -> bool {
    event.barrier.is_some_and(|barrier| barrier.forever)
}

/// The location of an operation that the model knows: `Some(None)` for fences and barriers.
fn operation(event: &Event) -> Option<Option<usize>> {
    (!event.outside).then_some(event.location)
}
