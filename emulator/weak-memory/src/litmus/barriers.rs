//! Which arrivals at barriers meet: all ways in which the threads of a block can come to them.

use std::collections::{BTreeMap, BTreeSet};

/// An arrival at a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Number of the barrier.
    pub(super) id: u64,
    /// Threads that it needs.
    pub(super) expected: usize,
    /// `arrive`: does not wait.
    pub(super) arrive: bool,
    /// The event.
    pub(super) event: usize,
    /// Whether it is to wait for ever; else it must be passed.
    pub(super) forever: bool,
}

/// Arrivals that complete a barrier together, by event.
pub(super) type Meeting = Vec<usize>;

/// Every set of meetings that the arrivals of a block, by thread in program order, can have. None if they cannot all
/// have what they are to have: a meeting, or none ever.
pub(super) fn meetings(threads: &[Vec<Arrival>]) -> BTreeSet<Vec<Meeting>> {
    let start = State {
        next: vec![0; threads.len()],
        waits: vec![false; threads.len()],
        open: BTreeMap::new(),
        met: BTreeSet::new(),
    };
    let (mut seen, mut all, mut states) = (BTreeSet::new(), BTreeSet::new(), vec![start]);
    while let Some(state) = states.pop() {
        if !seen.insert(state.clone()) {
            continue;
        }
        let mut over = true;
        for (thread, arrivals) in threads.iter().enumerate() {
            if let (false, Some(&arrival)) = (state.waits[thread], arrivals.get(state.next[thread])) {
                over = false;
                states.push(state.arrive(threads, thread, arrival));
            }
        }
        let fulfilled = || {
            threads.iter().enumerate().all(|(thread, arrivals)| {
                let waits = state.waits[thread];
                waits == arrivals.last().is_some_and(|last| last.forever)
                    && state.next[thread] == arrivals.len()
            })
        };
        if over && fulfilled() {
            all.insert(state.met.into_iter().collect());
        }
    }
    all
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    /// By thread: how many arrivals have been.
    next: Vec<usize>,
    waits: Vec<bool>,
    /// By barrier: who has arrived, thread and event, and how many it needs.
    open: BTreeMap<u64, (usize, Vec<(usize, usize)>)>,
    met: BTreeSet<Meeting>,
}

impl State {
    fn arrive(&self, threads: &[Vec<Arrival>], thread: usize, arrival: Arrival) -> Self {
        let mut next = self.clone();
        next.next[thread] += 1;
        next.waits[thread] = !arrival.arrive;
        let (expected, there) = next.open.entry(arrival.id).or_insert((arrival.expected, Vec::new()));
        there.push((thread, arrival.event));
        there.sort_unstable();
        if there.len() >= *expected {
            let there = std::mem::take(there);
            next.open.remove(&arrival.id);
            for &(thread, event) in &there {
                let waited =
                    threads[thread].get(next.next[thread] - 1).is_some_and(|last| last.event == event);
                if waited {
                    next.waits[thread] = false;
                }
            }
            next.met.insert(there.iter().map(|&(_, event)| event).collect());
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(event: usize, id: u64, expected: usize) -> Arrival {
        Arrival { id, expected, arrive: false, event, forever: false }
    }

    #[test]
    fn all_come_or_nobody_goes_on() {
        let both = [vec![at(0, 0, 2), at(1, 1, 2)], vec![at(2, 0, 2), at(3, 1, 2)]];
        assert_eq!(meetings(&both), BTreeSet::from([vec![vec![0, 2], vec![1, 3]]]));
        let crossed = [vec![at(0, 0, 2), at(1, 1, 2)], vec![at(2, 1, 2), at(3, 0, 2)]];
        assert!(meetings(&crossed).is_empty());
    }

    #[test]
    fn a_count_lets_any_so_many_meet_and_one_may_be_left() {
        let mut threads = [vec![at(0, 1, 2)], vec![at(1, 1, 2)], vec![at(2, 1, 2)]];
        assert!(meetings(&threads).is_empty(), "three do not pair up");
        threads[0][0].forever = true;
        assert_eq!(meetings(&threads), BTreeSet::from([vec![vec![1, 2]]]));
    }

    #[test]
    fn who_arrives_goes_on() {
        let arrive = Arrival { arrive: true, ..at(0, 1, 2) };
        let threads = [vec![arrive, at(1, 0, 2)], vec![at(2, 0, 2), at(3, 1, 2)]];
        assert_eq!(meetings(&threads), BTreeSet::from([vec![vec![0, 3], vec![1, 2]]]));
    }
}
