//! What a thread knows of the others: causality order as vector clocks.
//!
//! An event is a pair of a thread and the thread's count of events. *Base causality order* (program order and
//! synchronizes-with, transitively) is prefix closed, so a clock that has one count per thread represents it.
//! *Causality order* adds single writes: those that a strong read observed without synchronising (PTX ISA,
//! "Causality Order": observation order followed by base causality order). They are kept beside the clock.

use std::rc::Rc;

/// A thread's event: the thread, and its number among the thread's events, from 1.
pub(super) type Event = (u32, u32);

/// A set of events that precede something in causality order.
#[derive(Clone, Debug, Default)]
pub(super) struct Knowledge {
    /// By thread: its last event that precedes in base causality order.
    clock: Rc<Vec<u32>>,
    /// Writes that precede by observation alone, in ascending order: where nothing synchronizes, there are many.
    observed: Option<Rc<Vec<Event>>>,
}

/// What a thread knew at one of its events.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) at: Event,
    pub(super) knowledge: Knowledge,
}

impl Knowledge {
    /// Whether `event` precedes in base causality order.
    #[inline]
    pub(super) fn has_base(&self, (thread, number): Event) -> bool {
        self.clock.get(thread as usize).is_some_and(|&last| last >= number)
    }

    /// Whether `event`, a write, precedes in causality order.
    #[inline]
    pub(super) fn has(&self, event: Event) -> bool {
        self.has_base(event)
            || self.observed.as_ref().is_some_and(|observed| observed.binary_search(&event).is_ok())
    }

    /// Adds all that precedes an event, and the event.
    pub(super) fn join(&mut self, view: &View) {
        // Clocks grow by whole views alone, so whoever has the event has what precedes it.
        if self.has_base(view.at) {
            return;
        }
        self.merge(&view.knowledge);
        self.raise(view.at);
    }

    /// Adds all that `other` contains.
    pub(super) fn merge(&mut self, other: &Knowledge) {
        if !Rc::ptr_eq(&self.clock, &other.clock) {
            if self.clock.is_empty() {
                self.clock = other.clock.clone();
            } else if !other.clock.iter().enumerate().all(|(at, &n)| n == 0 || self.has_base((at as u32, n)))
            {
                let clock = Rc::make_mut(&mut self.clock);
                if clock.len() < other.clock.len() {
                    clock.resize(other.clock.len(), 0);
                }
                clock
                    .iter_mut()
                    .zip(other.clock.iter())
                    .for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
            }
        }
        if let Some(observed) = &other.observed {
            self.observe_all(observed);
        }
    }

    /// Adds single writes, in ascending order.
    fn observe_all(&mut self, all: &[Event]) {
        let known = self.observed.as_deref().map_or(&[][..], Vec::as_slice);
        let mut union = Vec::new();
        let (mut at, mut is_new) = (0, false);
        for &event in all.iter().filter(|&&event| !self.has_base(event)) {
            let before = known[at..].iter().take_while(|&&known| known < event).count();
            union.extend_from_slice(&known[at..][..before]);
            at += before;
            match known.get(at) {
                Some(&same) if same == event => at += 1,
                _ => is_new = true,
            }
            union.push(event);
        }
        if is_new {
            union.extend_from_slice(&known[at..]);
            self.observed = Some(Rc::new(union));
        }
    }

    /// These single writes, beside the base causality order of `other`.
    pub(super) fn with_base_of(&self, other: &Knowledge) -> Knowledge {
        Knowledge { clock: other.clock.clone(), observed: self.observed.clone() }
    }

    /// Adds an event of which all that precedes it is known already, or added with it.
    pub(super) fn raise(&mut self, (thread, number): Event) {
        if self.has_base((thread, number)) {
            return;
        }
        let clock = Rc::make_mut(&mut self.clock);
        if clock.len() <= thread as usize {
            clock.resize(thread as usize + 1, 0);
        }
        clock[thread as usize] = number;
        if let Some(observed) = &mut self.observed {
            let first = observed.partition_point(|&event| event < (thread, 0));
            let end = observed.partition_point(|&event| event <= (thread, number));
            if first < end {
                Rc::make_mut(observed).drain(first..end);
            }
        }
    }

    /// Adds a single write.
    pub(super) fn observe(&mut self, event: Event) {
        if self.has_base(event) {
            return;
        }
        let observed = self.observed.get_or_insert_default();
        if let Err(place) = observed.binary_search(&event) {
            Rc::make_mut(observed).insert(place, event);
        }
    }

    /// Whether both are the same object, which says that they are equal and costs nothing.
    pub(super) fn is_same(&self, other: &Knowledge) -> bool {
        Rc::ptr_eq(&self.clock, &other.clock) && self.observed.is_none() && other.observed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_a_view_brings_all_that_precedes_it() {
        let mut writer = Knowledge::default();
        writer.raise((0, 3));
        writer.observe((2, 7));
        let view = View { at: (1, 5), knowledge: writer };
        let mut reader = Knowledge::default();
        reader.join(&view);
        assert!(reader.has_base((0, 3)) && reader.has_base((1, 5)) && reader.has((2, 7)));
        assert!(!reader.has_base((2, 7)), "an observed write brings nothing that precedes it");
        assert!(!reader.has((2, 6)) && !reader.has((0, 4)) && !reader.has((1, 6)));
    }

    #[test]
    fn merging_brings_observed_writes_that_are_not_known_and_each_once() {
        let observing = |events: &[Event]| {
            let mut knowledge = Knowledge::default();
            events.iter().for_each(|&event| knowledge.observe(event));
            knowledge
        };
        let mut knowledge = observing(&[(9, 1), (2, 7), (4, 2)]);
        knowledge.raise((3, 5));
        knowledge.merge(&observing(&[(3, 4), (4, 2), (1, 1), (9, 1), (3, 6), (2, 9)]));
        let expected = vec![(1, 1), (2, 7), (2, 9), (3, 6), (4, 2), (9, 1)];
        assert_eq!(knowledge.observed.as_deref(), Some(&expected));
        knowledge.merge(&observing(&[(2, 7), (9, 1)]));
        assert_eq!(knowledge.observed.as_deref(), Some(&expected));
        knowledge.raise((2, 8));
        assert_eq!(knowledge.observed.as_deref(), Some(&vec![(1, 1), (2, 9), (3, 6), (4, 2), (9, 1)]));
        assert!(knowledge.has((2, 7)) && knowledge.has((2, 9)) && !knowledge.has((2, 10)));
    }

    #[test]
    fn an_observed_write_is_forgotten_once_its_thread_is_known_so_far() {
        let mut knowledge = Knowledge::default();
        knowledge.observe((4, 2));
        knowledge.raise((4, 3));
        assert!(knowledge.has_base((4, 2)));
        assert_eq!(knowledge.observed.as_ref().map(|all| all.len()), Some(0));
    }
}
