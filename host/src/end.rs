//! How a communicator ends: the states that its end goes through, and what may be freed in the last one.
//!
//! | state | event | next |
//! |---|---|---|
//! | open | the rendezvous fails after all | ended, all freed |
//! | open | it is closed | closing |
//! | open | it is dropped (its calls are aborted) | aborting |
//! | open | this process is a forked child | ended, nothing touched |
//! | closing, aborting | this rank's kernels have ended | quiet |
//! | closing | they run when the time is up (they are aborted) | aborting |
//! | aborting | they run when the time is up | ended, all leaked |
//! | quiet | the peers' kernels have ended, or the time is up; their memory is unmapped | unmapped |
//! | unmapped | the peers have unmapped this rank's memory | ended, all freed |
//! | unmapped | some have not when the time is up | ended, the segment leaked |
//!
//! *This rank's kernels have ended* is said only by an event or a stream that has passed, or by a driver that has lost the
//! context: any other error says nothing about kernels. If calls were captured into graphs, the kernels' code and the
//! counters stay in any case, see [`crate::counters`].
#![forbid(unsafe_code)]

/// A state of a communicator's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In use.
    Open,
    /// Waits for this rank's kernels.
    Closing,
    /// Waits for this rank's kernels, which have been told to end.
    Aborting,
    /// None of this rank's kernels runs; peers are told, and may still use this rank's memory.
    Quiet,
    /// The peers' memory is unmapped; they are told, and may still have this rank's memory mapped.
    Unmapped,
    /// Over.
    Ended(Leak),
}

/// What is kept for as long as the process lives, because something may still use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leak {
    /// Everything is freed.
    Nothing,
    /// Peers have this rank's segment mapped.
    Segment,
    /// Kernels of this rank may run: nothing is freed or unmapped, and no peer is told anything.
    Everything,
    /// It is the parent process's: nothing is touched.
    Parents,
}

/// What happens to a communicator that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It never was complete: no peer has it, no kernel was launched.
    Dismantle,
    /// Its owner closes it.
    Close,
    /// Its owner drops it.
    Drop,
    /// A forked child drops its copy of it.
    Forked,
    /// None of this rank's kernels runs any more.
    KernelsEnded,
    /// Some may run, and the time is up.
    KernelsRun,
    /// The peers have been waited for, as long as there was time.
    PeersQuiet,
    /// Every peer has unmapped this rank's memory.
    PeersUnmapped,
    /// Some may have it mapped, and the time is up.
    PeersHold,
}

impl State {
    /// The state behind `event`; `None` if it cannot happen in this one.
    pub(crate) fn after(self, event: Event) -> Option<State> {
        use Event as E;
        use State as S;
        Some(match (self, event) {
            (S::Open, E::Dismantle) => S::Ended(Leak::Nothing),
            (S::Open, E::Close) => S::Closing,
            (S::Open, E::Drop) => S::Aborting,
            (S::Open, E::Forked) => S::Ended(Leak::Parents),
            (S::Closing | S::Aborting, E::KernelsEnded) => S::Quiet,
            (S::Closing, E::KernelsRun) => S::Aborting,
            (S::Aborting, E::KernelsRun) => S::Ended(Leak::Everything),
            (S::Quiet, E::PeersQuiet) => S::Unmapped,
            (S::Unmapped, E::PeersUnmapped) => S::Ended(Leak::Nothing),
            (S::Unmapped, E::PeersHold) => S::Ended(Leak::Segment),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 9] = [
        State::Open,
        State::Closing,
        State::Aborting,
        State::Quiet,
        State::Unmapped,
        State::Ended(Leak::Nothing),
        State::Ended(Leak::Segment),
        State::Ended(Leak::Everything),
        State::Ended(Leak::Parents),
    ];

    const EVENTS: [Event; 9] = [
        Event::Dismantle,
        Event::Close,
        Event::Drop,
        Event::Forked,
        Event::KernelsEnded,
        Event::KernelsRun,
        Event::PeersQuiet,
        Event::PeersUnmapped,
        Event::PeersHold,
    ];

    fn successors(state: State) -> Vec<State> {
        EVENTS.iter().filter_map(|event| state.after(*event)).collect()
    }

    /// Every way from open to the end, as the states on it.
    fn ways() -> Vec<Vec<State>> {
        let (mut open, mut done) = (vec![vec![State::Open]], Vec::new());
        while let Some(way) = open.pop() {
            assert!(way.len() < 10, "a way without an end: {way:?}");
            let next = successors(*way.last().unwrap());
            match next.is_empty() {
                true => done.push(way),
                false => open.extend(next.into_iter().map(|state| [way.clone(), vec![state]].concat())),
            }
        }
        done
    }

    #[test]
    fn every_way_ends_and_every_state_is_on_one() {
        let ways = ways();
        assert!(ways.iter().all(|way| matches!(way.last(), Some(State::Ended(_)))), "{ways:?}");
        for state in STATES {
            assert!(ways.iter().any(|way| way.contains(&state)), "{state:?} cannot be reached");
        }
    }

    #[test]
    fn what_is_over_stays_so() {
        for state in STATES.into_iter().filter(|state| matches!(state, State::Ended(_))) {
            assert_eq!(successors(state), []);
        }
    }

    #[test]
    fn peers_memory_is_unmapped_and_own_memory_freed_only_behind_the_last_kernel() {
        for way in ways() {
            let at = |wanted: State| way.iter().position(|state| *state == wanted);
            if let Some(unmapped) = at(State::Unmapped) {
                assert!(at(State::Quiet).is_some_and(|quiet| quiet < unmapped), "{way:?}");
            }
            let freed = at(State::Ended(Leak::Nothing)).or(at(State::Ended(Leak::Segment)));
            let never_complete = way == [State::Open, State::Ended(Leak::Nothing)];
            if freed.is_some() && !never_complete {
                assert!(at(State::Unmapped).is_some(), "{way:?}");
            }
        }
    }

    #[test]
    fn the_table_is_this_one() {
        let expected = [
            (State::Open, Event::Dismantle, State::Ended(Leak::Nothing)),
            (State::Open, Event::Close, State::Closing),
            (State::Open, Event::Drop, State::Aborting),
            (State::Open, Event::Forked, State::Ended(Leak::Parents)),
            (State::Closing, Event::KernelsEnded, State::Quiet),
            (State::Closing, Event::KernelsRun, State::Aborting),
            (State::Aborting, Event::KernelsEnded, State::Quiet),
            (State::Aborting, Event::KernelsRun, State::Ended(Leak::Everything)),
            (State::Quiet, Event::PeersQuiet, State::Unmapped),
            (State::Unmapped, Event::PeersUnmapped, State::Ended(Leak::Nothing)),
            (State::Unmapped, Event::PeersHold, State::Ended(Leak::Segment)),
        ];
        for state in STATES {
            for event in EVENTS {
                let listed = expected.iter().find(|(from, by, _)| (*from, *by) == (state, event));
                assert_eq!(state.after(event), listed.map(|(.., to)| *to), "{state:?} and {event:?}");
            }
        }
    }
}
