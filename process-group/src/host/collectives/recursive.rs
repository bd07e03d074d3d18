//! Recursive halving and doubling: all-reduce and all-gather in as many rounds as the number of ranks, a power of two, has bits,
//! with one peer in each (R. Rabenseifner, "Optimization of collective reduction operations", 2004; R. Thakur, R. Rabenseifner,
//! W. Gropp, "Optimization of collective communication operations in MPICH", 2005).
//!
//! The nearest peer comes first: in round `k` the one whose place differs in bit `k`, so that what two ranks combine are
//! neighbouring subtrees of the one tree, `(p0 + p1)`, then `(p0 + p1) + (p2 + p3)`, and the result has the bits that it has by any
//! other way. What is between rounds goes on as [`Form::Partial`], not rounded, which for f16 and bf16 is twice as wide.

use super::exchange::Exchange;
use super::{Column, Engine, at_least};
use crate::error::Error;
use crate::host::arithmetic::{Form, Reduction};
use crate::host::wait::Wait;

/// A run of elements: the first, and how many.
pub(super) type Run = (usize, usize);

/// How messages of a step are told apart: rounds of the first half, and of the second.
const ROUNDS: u32 = 5;
const SECOND: u32 = 1 << (ROUNDS - 1);

/// A tag of a step that is none of its rounds'.
fn tag_behind(step: u32) -> u32 {
    step << ROUNDS | SECOND
}

/// The two halves of a run, the first as long as the second or a little longer; the second begins at a multiple of a cache line if
/// the run does.
fn halves((first, count): Run, size: usize) -> [Run; 2] {
    let lower = count.div_ceil(2).next_multiple_of(64 / size).min(count);
    [(first, lower), (first + lower, count - lower)]
}

/// Most rounds that there can be: tags tell no more apart.
const MOST_ROUNDS: usize = SECOND as usize;
/// And so most ranks.
pub(super) const MOST_MEMBERS: usize = 1 << MOST_ROUNDS;

/// What the rank at `place` has of so many elements after each of so many halvings: all of them, then less and less.
fn halved(count: usize, size: usize, rounds: u32, place: usize) -> [Run; MOST_ROUNDS + 1] {
    let mut runs = [(0, 0); MOST_ROUNDS + 1];
    runs[0] = (0, count);
    for round in 0..rounds as usize {
        runs[round + 1] = halves(runs[round], size)[place >> round & 1];
    }
    runs
}

/// What the rank at `place` reduces of so many elements of so many bytes, halved among `members`.
fn share(count: usize, size: usize, members: usize, place: usize) -> Run {
    halved(count, size, members.trailing_zeros(), place)[members.trailing_zeros() as usize]
}

impl Column<'_> {
    /// The rank that this one exchanges with in a round, and whether it is behind this one in the tree.
    fn partner(&self, round: u32) -> (usize, bool) {
        (self.ranks[self.own ^ 1 << round], self.own >> round & 1 == 0)
    }

    fn rounds(&self) -> u32 {
        self.ranks.len().trailing_zeros()
    }
}

impl Engine {
    /// [`Engine::column`] by halving, and then by doubling or directly to the root.
    ///
    /// # Safety
    ///
    /// As [`Engine::column`].
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn halve_and_gather(
        &mut self,
        reduction: Reduction,
        column: &Column<'_>,
        step: u32,
        input: *const u8,
        output: Option<*mut u8>,
        count: usize,
        root: Option<usize>,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let (size, members) = (reduction.dtype.size(), column.ranks.len());
        let share = |place: usize| share(count, size, members, place);
        let (first, mine) = share(column.own);
        let output = output.filter(|_| root.is_none_or(|root| root == self.rank));
        let mut room = Vec::new();
        let result = match output {
            // SAFETY: within the output.
            Some(output) => unsafe { output.add(first * size) },
            None => {
                room = std::mem::take(&mut self.partial);
                at_least(&mut room, mine * size)
            }
        };
        // SAFETY: the caller's promise; as above.
        unsafe { self.halve(reduction, column, step, (input, count), result, wait)? };
        let Some(root) = root else {
            let Some(output) = output else { return Ok(()) };
            // SAFETY: the caller's promise: nothing is read of the input any more.
            return unsafe { self.double(column, step, output, (count, size), wait) };
        };
        let (exchange, tag) = (Exchange::new(wait, &self.ticket), tag_behind(step));
        // SAFETY: within the output, in which shares are apart; the exchange ends before the results.
        unsafe {
            match output {
                None => exchange.send(root, tag, result, mine * size)?,
                Some(output) => {
                    for place in (0..members).filter(|place| *place != column.own) {
                        let (first, length) = share(place);
                        let to = output.add(first * size);
                        exchange.receive(column.ranks[place], tag, to, length * size)?;
                    }
                }
            }
        }
        exchange.finish()?;
        if output.is_none() {
            self.partial = room;
        }
        Ok(())
    }

    /// Long: this rank's share of the reduction, `share`, into `result`. The first half of an all-reduce.
    ///
    /// # Safety
    ///
    /// `input` is valid for reads of `count` values of the column's form, `result` for reads and writes of as many elements as the
    /// share has; it is that part of the input, of the form of elements, or apart from it.
    pub(super) unsafe fn halve(
        &mut self,
        reduction: Reduction,
        column: &Column<'_>,
        step: u32,
        (input, count): (*const u8, usize),
        result: *mut u8,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let size = reduction.dtype.size();
        let runs = halved(count, size, column.rounds(), column.own);
        let mut form = column.form;
        // What comes, the longest of it first in one of these two; then what was combined, of which the first is the longest.
        let room = |round: usize, form| {
            (halves(runs[round], size)[0].1 * reduction.bytes(form)).next_multiple_of(64)
        };
        let (partial, coming) = match column.rounds() {
            0 | 1 => (0, room(0, form)),
            _ => (room(0, Form::Partial), room(0, form).max(room(1, Form::Partial))),
        };
        let staging = self.stage(coming + partial);
        // SAFETY: within the staging memory.
        let mut combined = unsafe { staging.add(coming) };
        let mut own = input;
        for round in 0..column.rounds() {
            let ((first, _), kept) = (runs[round as usize], runs[round as usize + 1]);
            let wide = reduction.bytes(form);
            let (peer, is_behind) = column.partner(round);
            let given = halves(runs[round as usize], size)[usize::from(is_behind)];
            let exchange = Exchange::new(wait, &self.ticket);
            // SAFETY: within what this rank has and the staging memory; the exchange ends before both.
            unsafe {
                exchange.receive(peer, step << ROUNDS | round, staging, kept.1 * wide)?;
                let from = own.add((given.0 - first) * wide);
                exchange.send(peer, step << ROUNDS | round, from, given.1 * wide)?;
            }
            exchange.finish()?;
            let is_last = round + 1 == column.rounds();
            // SAFETY: within what this rank has. In place from the second round on: it goes where its own part lies.
            unsafe {
                own = own.add((kept.0 - first) * wide);
                if round > 0 {
                    combined = combined.add((kept.0 - first) * wide);
                }
                let (to, output) = if is_last { (Form::Elements, result) } else { (Form::Partial, combined) };
                if kept.1 > 0 {
                    self.combine(reduction, (form, own, is_behind), (to, output), kept.1);
                }
            }
            (own, form) = (combined.cast_const(), Form::Partial);
        }
        Ok(())
    }

    /// Combines a subtree's values with those of its neighbour, which have come into the staging memory.
    ///
    /// # Safety
    ///
    /// As [`Reduction::reduce`].
    unsafe fn combine(
        &mut self,
        reduction: Reduction,
        (form, own, is_behind): (Form, *const u8, bool),
        (to, output): (Form, *mut u8),
        count: usize,
    ) {
        let theirs = self.staging.as_ptr().cast();
        let sources = if is_behind { [own, theirs] } else { [theirs, own] };
        // SAFETY: the caller's promise.
        unsafe { reduction.reduce(form, &sources, to, output, count) };
    }

    /// The second half: all shares, from those who have reduced them, into `output`, where the own one is already.
    ///
    /// # Safety
    ///
    /// `output` is valid for reads and writes of `count` elements of `size` bytes.
    pub(super) unsafe fn double(
        &mut self,
        column: &Column<'_>,
        step: u32,
        output: *mut u8,
        (count, size): (usize, usize),
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let runs = halved(count, size, column.rounds(), column.own);
        for round in (0..column.rounds()).rev() {
            let (peer, is_behind) = column.partner(round);
            let (mine, theirs) =
                (runs[round as usize + 1], halves(runs[round as usize], size)[usize::from(is_behind)]);
            let exchange = Exchange::new(wait, &self.ticket);
            let tag = step << ROUNDS | SECOND | round;
            // SAFETY: within the output; both halves are apart.
            unsafe {
                exchange.receive(peer, tag, output.add(theirs.0 * size), theirs.1 * size)?;
                exchange.send(peer, tag, output.add(mine.0 * size), mine.1 * size)?;
            }
            exchange.finish()?;
        }
        Ok(())
    }

    /// Short: all of the reduction by every rank, from subtrees that double.
    ///
    /// # Safety
    ///
    /// As [`Engine::halve`], of an output of `count` elements that is the input or apart from it.
    pub(super) unsafe fn double_all(
        &mut self,
        reduction: Reduction,
        column: &Column<'_>,
        step: u32,
        (input, count): (*const u8, usize),
        output: *mut u8,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let room = (count * reduction.bytes(Form::Partial)).next_multiple_of(64);
        let staging = self.stage(room * 2);
        // SAFETY: within the staging memory.
        let combined = unsafe { staging.add(room) };
        let (mut own, mut form) = (input, column.form);
        for round in 0..column.rounds() {
            let (peer, is_behind) = column.partner(round);
            let bytes = count * reduction.bytes(form);
            let exchange = Exchange::new(wait, &self.ticket);
            // SAFETY: within what this rank has and the staging memory; the exchange ends before both.
            unsafe {
                exchange.receive(peer, step << ROUNDS | round, staging, bytes)?;
                exchange.send(peer, step << ROUNDS | round, own, bytes)?;
            }
            exchange.finish()?;
            let is_last = round + 1 == column.rounds();
            let to = if is_last { (Form::Elements, output) } else { (Form::Partial, combined) };
            if count > 0 {
                // SAFETY: the caller's promise; what was sent is sent, so it may be written over.
                unsafe { self.combine(reduction, (form, own, is_behind), to, count) };
            }
            (own, form) = (combined.cast_const(), Form::Partial);
        }
        Ok(())
    }

    /// All ranks' parts, one behind the other in `output`, where the own one is already. `end` tells where that of a rank ends, and
    /// so where the next begins.
    ///
    /// # Safety
    ///
    /// `output` is valid for reads and writes of all of them, in bytes.
    pub(super) unsafe fn gather_doubling(
        &mut self,
        column: &Column<'_>,
        output: *mut u8,
        end: &dyn Fn(usize) -> usize,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let begin = |place: usize| if place == 0 { 0 } else { end(place - 1) };
        for round in 0..column.rounds() {
            let (peer, _) = column.partner(round);
            // Those that a rank has are its neighbours in a run of that length.
            let run = |place: usize| {
                let first = place >> round << round;
                (begin(first), end(first + (1 << round) - 1))
            };
            let (mine, theirs) = (run(column.own), run(column.own ^ 1 << round));
            let exchange = Exchange::new(wait, &self.ticket);
            // SAFETY: within the output; both runs are apart.
            unsafe {
                exchange.receive(peer, round, output.add(theirs.0), theirs.1 - theirs.0)?;
                exchange.send(peer, round, output.add(mine.0), mine.1 - mine.0)?;
            }
            exchange.finish()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once_and_begin_at_lines() {
        for (size, members) in [(1, 2), (2, 4), (4, 8), (8, 16), (4, 4)] {
            for count in [0, 1, 5, 63, 64, 65, 1000, 4097, 100_003] {
                let mut shares: Vec<_> =
                    (0..members).map(|place| share(count, size, members, place)).collect();
                shares.sort_unstable();
                let mut next = 0;
                for (first, length) in shares.into_iter().filter(|(_, length)| *length > 0) {
                    assert_eq!((first, first * size % 64), (next, 0));
                    next = first + length;
                }
                assert_eq!(next, count);
            }
        }
    }

    #[test]
    fn halves_of_partners_are_one_anothers() {
        let (count, size, rounds) = (10_007, 2, 3);
        for place in 0..8 {
            for round in 0..rounds {
                let partner = place ^ 1 << round;
                let (own, other) = (halved(count, size, rounds, place), halved(count, size, rounds, partner));
                assert_eq!(own[round as usize], other[round as usize], "both have the same before");
                let both = halves(own[round as usize], size);
                let kept = [own[round as usize + 1], other[round as usize + 1]];
                assert!(kept == both || kept == [both[1], both[0]]);
            }
        }
    }
}
