//! Transfers that wait for room on a queue pair, or for its NIC's credits: each in its turn.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet, VecDeque};

/// Transfers that have their turn on a queue pair in one look.
const TURNS: usize = 32;

/// The numbers of transfers, by queue pair. What a look costs is what has room, however many wait.
#[derive(Debug, Default)]
pub(crate) struct Starved {
    lines: BTreeMap<u8, VecDeque<u64>>,
    /// All that are in a line.
    waiting: HashSet<(u8, u64)>,
}

impl Starved {
    /// A transfer waits for room on a queue pair. If it does already, it keeps its place.
    pub(crate) fn wait(&mut self, pair: u8, number: u64) {
        if self.waiting.insert((pair, number)) {
            self.lines.entry(pair).or_default().push_back(number);
        }
    }

    /// Takes out those whose turn it is where there is room for `room` requests. One that is over, as `is_over` says, has no turn.
    pub(crate) fn take(
        &mut self,
        mut room: impl FnMut(u8) -> u32,
        is_over: impl Fn(u64) -> bool,
        mut turn: impl FnMut(u64),
    ) {
        for (pair, line) in &mut self.lines {
            let mut left = if line.is_empty() { 0 } else { TURNS.min(room(*pair) as usize) };
            while left > 0
                && let Some(number) = line.pop_front()
            {
                self.waiting.remove(&(*pair, number));
                if !is_over(number) {
                    left -= 1;
                    turn(number);
                }
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(starved: &mut Starved, room: [u32; 2], over: &[u64]) -> Vec<u64> {
        let mut numbers = Vec::new();
        let is_over = |number| over.contains(&number);
        starved.take(|pair| room[usize::from(pair)], is_over, |number| numbers.push(number));
        numbers
    }

    #[test]
    fn transfers_have_their_turn_where_there_is_room_and_not_twice() {
        let mut starved = Starved::default();
        for (pair, number) in [(0, 5), (1, 6), (0, 7), (0, 5), (0, 8)] {
            starved.wait(pair, number);
        }
        assert_eq!(taken(&mut starved, [0, 0], &[]), [0; 0]);
        // One that is over takes nobody's turn.
        assert_eq!(taken(&mut starved, [1, 1], &[5]), [7, 6]);
        starved.wait(0, 7);
        assert_eq!(taken(&mut starved, [9, 9], &[]), [8, 7]);
        assert!(starved.is_empty());
    }

    #[test]
    fn many_that_wait_are_not_all_looked_at() {
        let mut starved = Starved::default();
        (0..10_000).for_each(|number| starved.wait(0, number));
        assert_eq!(taken(&mut starved, [1000, 0], &[]).len(), TURNS);
        assert_eq!(taken(&mut starved, [2, 0], &[]), [TURNS as u64, TURNS as u64 + 1]);
    }
}
