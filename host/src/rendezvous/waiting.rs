//! Whom a rank waits for, so that who is missing is told from who waits for it.
//!
//! A rank that has waited for a moment says in the store for whom. When time is up for a rank that misses others, those of
//! them that wait themselves are not to blame, but the ones at the end of the chain.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};

use super::verdict::Step;

/// A rank's note: it waits for these ranks in this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) step: Step,
    pub(crate) ranks: Vec<usize>,
}

impl Payload for Waiting {
    const KIND: u8 = 6;

    fn write(&self, out: &mut Writer) {
        out.u8(self.step as u8);
        out.list(&self.ranks, |out, rank| out.rank(*rank));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { step: Step::read(from)?, ranks: from.list(Reader::rank)? })
    }
}

/// Who is missing, and from which step on, where `own` waits and `note` says for whom others do.
pub(super) fn absent<E>(
    own: &Waiting,
    mut note: impl FnMut(usize) -> Result<Option<Waiting>, E>,
) -> Result<Waiting, E> {
    let mut seen = BTreeSet::new();
    let mut to_ask = vec![own.clone()];
    // The earliest step in which somebody waits for it, by rank.
    let mut absent = BTreeMap::<usize, Step>::new();
    while let Some(waiting) = to_ask.pop() {
        for rank in waiting.ranks {
            if let Some(step) = absent.get_mut(&rank) {
                *step = (*step).min(waiting.step);
            } else if seen.insert(rank) {
                match note(rank)? {
                    Some(waiting) if !waiting.ranks.is_empty() => to_ask.push(waiting),
                    _ => {
                        absent.insert(rank, waiting.step);
                    }
                }
            }
        }
    }
    Ok(match absent.values().min() {
        Some(step) => Waiting { step: *step, ranks: absent.into_keys().collect() },
        // Each waits for another: nobody is more to blame than those whom this rank misses.
        None => own.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(step: Step, ranks: &[usize]) -> Waiting {
        Waiting { step, ranks: ranks.to_vec() }
    }

    fn find(own: Waiting, notes: &[(usize, Waiting)]) -> Waiting {
        let note = |rank| -> Result<_, ()> {
            Ok(notes.iter().find(|(one, _)| *one == rank).map(|(_, note)| note.clone()))
        };
        absent(&own, note).unwrap()
    }

    #[test]
    fn notes_survive_the_round_trip() {
        let note = waiting(Step::Connecting, &[1, 7]);
        assert_eq!(Waiting::from_bytes(&note.to_bytes()), Ok(note));
    }

    #[test]
    fn whom_nobody_can_excuse_is_missing() {
        let own = waiting(Step::First, &[1, 2]);
        assert_eq!(find(own.clone(), &[]), own);
    }

    #[test]
    fn who_waits_for_the_missing_one_is_not_missing() {
        // Rank 1 is stopped before it connects with rank 2, which therefore does not acknowledge.
        let own = waiting(Step::Acknowledgement, &[1, 2]);
        let found = find(own, &[(2, waiting(Step::Connecting, &[1]))]);
        assert_eq!(found, waiting(Step::Connecting, &[1]));
        let chain = [(2, waiting(Step::Connecting, &[3])), (3, waiting(Step::Second, &[4, 0]))];
        let found = find(waiting(Step::Acknowledgement, &[2]), &chain);
        assert_eq!(found, waiting(Step::Second, &[0, 4]));
    }

    #[test]
    fn ranks_that_wait_for_one_another_do_not_excuse_one_another() {
        let own = waiting(Step::Acknowledgement, &[1]);
        let circle = [(1, waiting(Step::Connecting, &[2])), (2, waiting(Step::Connecting, &[1]))];
        assert_eq!(find(own.clone(), &circle), own);
    }
}
