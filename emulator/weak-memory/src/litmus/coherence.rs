//! Coherence order at one location, and the axioms that speak of it.

use std::collections::BTreeSet;

use super::candidate::Event;
use super::model::Model;
use super::relation::{Relation, permutations};

/// The values that `location` may have in the end, over all coherence orders that the axioms allow; none if the
/// candidate execution itself is not allowed. The reads among `rounds` go on for ever: they return a last value.
///
/// Coherence order relates what is morally strong or related in causality order, and what follows from that by
/// transitivity. More relations would allow less. So every order that is needed is a total order of the writes with
/// all other pairs left out, closed.
pub(super) fn final_values(
    model: &Model<'_>,
    location: usize,
    causality: &Relation,
    rounds: &[usize],
) -> BTreeSet<u64> {
    let events = model.events();
    let here = |event: &&usize| events[**event].location == Some(location) && !events[**event].outside;
    let all: Vec<usize> = (0..events.len()).collect();
    let accesses: Vec<usize> = all.iter().filter(here).copied().collect();
    let writes: Vec<usize> = accesses.iter().copied().filter(|&event| events[event].writes).collect();
    let mut values = BTreeSet::new();
    let mut tried = BTreeSet::new();
    permutations(&writes, &mut |order| {
        let Some(coherence) = coherence(model, order, causality) else { return };
        if !tried.insert(coherence.clone()) {
            return;
        }
        let place = Place { model, accesses: &accesses, writes: &writes, causality, coherence: &coherence };
        let stays = |read: &usize| events[*read].reads && accesses.contains(read);
        let last = |read: usize| !writes.iter().any(|&write| place.reads_before(read, write));
        if place.causality_holds()
            && place.atomicity_holds()
            && place.sequential_per_location()
            && rounds.iter().copied().filter(stays).all(last)
        {
            values.extend(place.last_values());
            if writes.is_empty() {
                values.insert(model.initial(location));
            }
        }
    });
    values
}

/// Coherence order as the total order `order` has it, or nothing if that contradicts axiom "Coherence".
fn coherence(model: &Model<'_>, order: &[usize], causality: &Relation) -> Option<Relation> {
    let mut coherence = Relation::new(model.events().len());
    for (place, &first) in order.iter().enumerate() {
        if causality.has(first, first) {
            return None;
        }
        for &second in &order[place + 1..] {
            if causality.has(second, first) {
                return None;
            }
            if causality.has(first, second) || model.morally_strong.has(first, second) {
                coherence.add(first, second);
            }
        }
    }
    coherence.close();
    Some(coherence)
}

struct Place<'a> {
    model: &'a Model<'a>,
    /// The accesses that the model knows.
    accesses: &'a [usize],
    writes: &'a [usize],
    causality: &'a Relation,
    coherence: &'a Relation,
}

impl Place<'_> {
    fn event(&self, event: usize) -> &Event {
        &self.model.events()[event]
    }

    fn reads(&self) -> impl Iterator<Item = usize> {
        self.accesses.iter().copied().filter(|&event| self.event(event).reads)
    }

    /// Whether what `read` returns is older than `write`; the initial value is older than every write.
    fn reads_before(&self, read: usize, write: usize) -> bool {
        self.event(read).source.is_none_or(|source| self.coherence.has(source, write))
    }

    /// Axiom "Causality".
    fn causality_holds(&self) -> bool {
        self.reads().all(|read| {
            let future = self.event(read).source.is_some_and(|source| self.causality.has(read, source));
            let stale = |write: &usize| self.causality.has(*write, read) && self.reads_before(read, *write);
            !future && !self.writes.iter().any(stale)
        })
    }

    /// Axiom "Atomicity" of read-modify-write operations.
    fn atomicity_holds(&self) -> bool {
        self.writes.iter().all(|&atomic| {
            let Some(read) = self.event(atomic).partner else { return true };
            let between = |write: &usize| {
                self.model.morally_strong.has(atomic, *write)
                    && self.reads_before(read, *write)
                    && self.coherence.has(*write, atomic)
            };
            !self.writes.iter().any(between)
        })
    }

    /// Axiom "Sequential Consistency Per Location".
    fn sequential_per_location(&self) -> bool {
        let mut order = Relation::new(self.model.events().len());
        for &a in self.accesses {
            for &b in self.accesses {
                let (read_by, write) = (self.event(b).source == Some(a), self.event(b).writes);
                let communicates = read_by
                    || write && (self.coherence.has(a, b) || self.event(a).reads && self.reads_before(a, b));
                // Program order is among them, too, of what is pairwise morally strong.
                if self.model.morally_strong.has(a, b) && (communicates || self.model.program_order.has(a, b))
                {
                    order.add(a, b);
                }
            }
        }
        order.acyclic()
    }

    /// The values of the writes that no other follows.
    fn last_values(&self) -> impl Iterator<Item = u64> {
        let last = |write: &usize| !self.writes.iter().any(|other| self.coherence.has(*write, *other));
        self.writes.iter().copied().filter(last).map(|write| self.event(write).value)
    }
}
