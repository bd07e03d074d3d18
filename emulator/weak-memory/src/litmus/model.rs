//! A candidate execution: the relations that the axioms speak of, by the names of PTX ISA, chapter "Memory Consistency
//! Model".

use super::barriers::Meeting;
use super::candidate::{Candidate, Event};
use super::program::{Litmus, Proxy, Scope};
use super::relation::Relation;

/// A candidate execution and the relations that depend on nothing but its sources.
pub(super) struct Model<'a> {
    pub(super) litmus: &'a Litmus,
    pub(super) candidate: &'a Candidate,
    pub(super) program_order: Relation,
    pub(super) morally_strong: Relation,
    observation: Relation,
}

impl<'a> Model<'a> {
    pub(super) fn new(litmus: &'a Litmus, candidate: &'a Candidate) -> Self {
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
        // Of memory operations, by one address.
        if let (Some(at), Some(to)) = (a.address, b.address)
            && at != to
        {
            return false;
        }
        if a.proxy != b.proxy {
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

    /// Whether two accesses race.
    pub(super) fn races(&self, causality: &Relation) -> bool {
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
    pub(super) fn base_causality(&self, fence_order: &Relation, meetings: &[Meeting]) -> Relation {
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
                    && (leader.fence || leader.address == event.address && leader.writes);
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
                    && (closer.fence || closer.address == event.address && closer.reads);
                if closer.acquire && (alone || after) {
                    patterns.push((read, last));
                }
            }
        }
        patterns
    }

    /// Axiom "Fence-SC".
    pub(super) fn fences_contradict(
        &self,
        fences: &[usize],
        fence_order: &Relation,
        base: &Relation,
    ) -> bool {
        let pairs = fences.iter().flat_map(|&a| fences.iter().map(move |&b| (a, b)));
        pairs.into_iter().any(|(a, b)| {
            base.has(a, b) && (a == b || self.morally_strong.has(a, b) && !fence_order.has(a, b))
        })
    }

    /// "Causality Order" between memory operations on one location.
    pub(super) fn causality(&self, base: &Relation) -> Relation {
        let events = self.events();
        let mut causality = Relation::new(events.len());
        let preserved = self.proxy_preserved(base);
        for a in 0..events.len() {
            for b in 0..events.len() {
                let (Some(at), Some(to)) = (operation(&events[a]), operation(&events[b])) else { continue };
                let observed =
                    || (0..events.len()).any(|z| self.observation.has(a, z) && preserved.has(z, b));
                if at == to && at.is_some() && (preserved.has(a, b) || observed()) {
                    causality.add(a, b);
                }
            }
        }
        causality
    }

    /// "Proxy-preserved base causality order". Without proxies and second addresses it is base causality order, of memory
    /// operations on one location.
    fn proxy_preserved(&self, base: &Relation) -> Relation {
        let events = self.events();
        let is_plain = |event: &Event| {
            event.proxy == Proxy::Generic && event.address == event.location && !event.proxy_fence
        };
        if events.iter().all(is_plain) {
            return base.clone();
        }
        let block = |event: usize| {
            let thread = &self.litmus.threads[events[event].thread];
            (thread.device, thread.block)
        };
        let shares = |a: usize, b: usize| events[a].proxy == events[b].proxy && block(a) == block(b);
        let is_fence_of = |fence: &usize, of: usize| {
            events[*fence].proxy_fence && !events[*fence].alias_fence && shares(*fence, of)
        };
        // From where, or up to where, what an operation does is known to the generic proxy.
        let ends = |of: usize, ordered: &dyn Fn(usize) -> bool| -> Vec<usize> {
            let own = (events[of].proxy == Proxy::Generic).then_some(of);
            let fences = (0..events.len()).filter(|fence| is_fence_of(fence, of) && ordered(*fence));
            own.into_iter().chain(fences).collect()
        };
        let aliases: Vec<usize> = (0..events.len()).filter(|&event| events[event].alias_fence).collect();
        let mut preserved = Relation::new(events.len());
        for a in 0..events.len() {
            for b in 0..events.len() {
                if events[a].location.is_none() || events[a].location != events[b].location {
                    continue;
                }
                let from = ends(a, &|fence| base.has(a, fence));
                let to = ends(b, &|fence| base.has(fence, b));
                let ordered = |by: &dyn Fn(usize, usize) -> bool| {
                    from.iter().any(|&from| to.iter().any(|&to| by(from, to)))
                };
                let same_address = events[a].address == events[b].address;
                let is_preserved = match same_address {
                    true if shares(a, b) && base.has(a, b) => true,
                    true if ordered(&|from, to| base.has(from, to)) => true,
                    _ => ordered(&|from, to| {
                        aliases.iter().any(|&alias| base.has(from, alias) && base.has(alias, to))
                    }),
                };
                if is_preserved {
                    preserved.add(a, b);
                }
            }
        }
        preserved
    }
}

/// The location of an operation that the model knows: `Some(None)` for fences and barriers.
fn operation(event: &Event) -> Option<Option<usize>> {
    (!event.outside).then_some(event.location)
}
