//! Which pairs of ports are tried, on the side that chooses.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::gdr::rails::{Candidates, Pairing};

/// For how many attempts' time a channel tries in all.
const ATTEMPTS: u32 = 3;

/// The rails that there are to be, and what has been tried for them.
#[derive(Debug)]
pub(crate) struct Choice {
    candidates: Candidates,
    tried: Vec<Pairing>,
    slots: Vec<Slot>,
    failures: Vec<String>,
}

/// A rail that is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Nothing is being tried.
    Free,
    /// The attempt of this number.
    Trying(u8),
    /// It is up.
    Up(u8),
    /// There is nothing left to try.
    Given,
}

impl Choice {
    pub(crate) fn new(candidates: Candidates) -> Self {
        let slots = vec![Slot::Free; candidates.rails.len()];
        Self { candidates, tried: Vec::new(), slots, failures: Vec::new() }
    }

    /// The rails that are needed: one, or all.
    pub(crate) fn open_slots(&self, all: bool) -> std::ops::Range<usize> {
        0..if all { self.slots.len() } else { self.slots.len().min(1) }
    }

    pub(crate) fn slot(&self, slot: usize) -> Slot {
        self.slots[slot]
    }

    pub(crate) fn set(&mut self, slot: usize, to: Slot) {
        self.slots[slot] = to;
    }

    /// What is to be tried for a rail: the pair that is planned for it, then any that has no port in common with the other
    /// rails; first those that have not failed for another channel. Each is tried once.
    pub(crate) fn next(
        &mut self,
        slot: usize,
        pairing_of: impl Fn(u8) -> Pairing,
        has_failed: impl Fn(Pairing) -> bool,
    ) -> Option<Pairing> {
        let in_use: Vec<Pairing> = self
            .slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Trying(attempt) | Slot::Up(attempt) => Some(pairing_of(*attempt)),
                Slot::Free | Slot::Given => None,
            })
            .collect();
        let planned = self.candidates.rails[slot];
        let untried = || {
            let all = std::iter::once(planned).chain(self.candidates.all.iter().copied());
            all.filter(|pairing| self.candidates.is_free(*pairing, &self.tried, &in_use))
        };
        let next = untried().find(|pairing| !has_failed(*pairing)).or_else(|| untried().next())?;
        self.tried.push(next);
        Some(next)
    }

    /// Notes why a pair did not connect.
    pub(crate) fn failed(&mut self, why: String) {
        self.failures.push(why);
    }

    /// Why none has connected.
    pub(crate) fn failures(&self) -> String {
        self.failures.join("; ")
    }

    /// Lets go of the rails that have not come up in time: after one attempt's time (`within`) if there is another one, which goes on
    /// alone, and after that of three if there is none. The attempts that are not waited for any more.
    pub(crate) fn close_late(&mut self, all: bool, waited: Duration, within: Duration) -> Vec<u8> {
        let open = self.open_slots(all);
        let slots = &mut self.slots[open];
        let any = slots.iter().any(|slot| matches!(slot, Slot::Up(_)));
        let limit = if any { within } else { within.saturating_mul(ATTEMPTS) };
        let mut late = Vec::new();
        for slot in slots.iter_mut().filter(|_| waited > limit) {
            match slot {
                Slot::Trying(attempt) => late.push(*attempt),
                Slot::Free => {}
                Slot::Up(_) | Slot::Given => continue,
            }
            *slot = Slot::Given;
        }
        late
    }

    /// The attempts that are up, when nothing that is needed is being tried any more.
    pub(crate) fn chosen(&self, all: bool) -> Option<Vec<u8>> {
        let mut up = Vec::new();
        for slot in &self.slots[self.open_slots(all)] {
            match slot {
                Slot::Up(attempt) => up.push(*attempt),
                Slot::Given => {}
                Slot::Free | Slot::Trying(_) => return None,
            }
        }
        Some(up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rails, and what could replace them on two more ports.
    fn choice() -> Choice {
        let all = vec![(0, 0), (1, 1), (0, 1), (1, 0), (2, 2), (3, 3)];
        Choice::new(Candidates { rails: vec![(0, 0), (1, 1)], all })
    }

    #[test]
    fn what_is_planned_is_tried_first_and_then_what_no_rail_uses() {
        let mut choice = choice();
        let none_failed = |_| false;
        let pairing_of = |attempt: u8| [(0, 0), (1, 1), (2, 2)][usize::from(attempt)];
        assert_eq!(choice.next(0, pairing_of, none_failed), Some((0, 0)));
        choice.set(0, Slot::Trying(0));
        assert_eq!(choice.next(1, pairing_of, none_failed), Some((1, 1)));
        choice.set(1, Slot::Trying(1));
        assert_eq!(choice.chosen(true), None);
        choice.set(0, Slot::Free);
        assert_eq!(
            choice.next(0, pairing_of, none_failed),
            Some((2, 2)),
            "the ports of the second rail are in use"
        );
        choice.set(0, Slot::Up(2));
        choice.set(1, Slot::Free);
        assert_eq!(choice.next(1, pairing_of, none_failed), Some((0, 1)));
        assert_eq!((choice.chosen(false), choice.chosen(true)), (Some(vec![2]), None));
    }

    #[test]
    fn a_rail_that_is_late_is_not_waited_for_by_one_that_is_up() {
        let (within, in_time, late) =
            (Duration::from_secs(10), Duration::from_secs(10), Duration::from_millis(10_001));
        let mut choice = choice();
        choice.set(0, Slot::Up(0));
        choice.set(1, Slot::Trying(4));
        assert!(choice.close_late(true, in_time, within).is_empty());
        assert!(choice.close_late(false, late, within).is_empty(), "the second one is not needed");
        assert_eq!((choice.chosen(true), choice.close_late(true, late, within)), (None, vec![4]));
        assert_eq!(choice.chosen(true), Some(vec![0]));
    }

    #[test]
    fn without_any_rail_the_tries_come_to_an_end() {
        let within = Duration::from_secs(10);
        let mut choice = choice();
        choice.set(0, Slot::Trying(7));
        assert!(choice.close_late(true, 3 * within, within).is_empty());
        assert_eq!(choice.close_late(true, 4 * within, within), [7]);
        assert_eq!(
            (choice.slot(1), choice.chosen(true)),
            (Slot::Given, Some(vec![])),
            "nothing more is begun"
        );
    }

    #[test]
    fn what_has_failed_for_others_is_tried_last_and_tried_all_the_same() {
        let mut choice = choice();
        let nobody = |_: u8| -> Pairing { unreachable!("nothing is in use") };
        let failed = |pairing| pairing == (0, 0) || pairing == (1, 1);
        let order: Vec<_> = std::iter::from_fn(|| choice.next(0, nobody, failed)).collect();
        assert_eq!(order, [(0, 1), (1, 0), (2, 2), (3, 3), (0, 0), (1, 1)]);
        choice.set(0, Slot::Given);
        assert_eq!(choice.chosen(false), Some(vec![]));
    }
}
