//! Collectives of several islands: by messages, where it pays by steps within each.

use super::exchange::Exchange;
use super::recursive::MOST_MEMBERS;
use super::{Engine, STAGING, at_least, copy, slice};
use crate::error::Error;
use crate::host::arithmetic::{Form, Reduction};
use crate::host::wait::Wait;

/// Longest input, in bytes, that every rank sends to every other one.
const ONE_SHOT: usize = 8 << 10;
/// Fewest ranks that exchange with one after the other: fewer save less by it than the rounds take.
const RECURSIVE: usize = 8;
/// Longest input, in bytes, that is halved and doubled: beyond, passes over memory cost more than messages; of one that is half
/// as wide as its partial results, so much less.
const HALVING: usize = 4 << 20;
const HALVING_NARROW: usize = 256 << 10;
/// Longest output, in bytes, of an all-gather that doubles.
const DOUBLING: usize = 4 << 20;
/// Bytes that go down a broadcast's tree at a time.
const BROADCAST: usize = 1 << 20;

/// A run of ranks that reduce and gather among themselves: all of them, or those of one place of each island.
pub(super) struct Column<'a> {
    pub(super) ranks: &'a [usize],
    pub(super) own: usize,
    /// Of what they have.
    pub(super) form: Form,
}

impl<'a> Column<'a> {
    fn of_all(wait: &Wait<'a>, own: usize) -> Self {
        Self { ranks: &wait.net.islands.everybody, own, form: Form::Elements }
    }
}

/// How ranks exchange what they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum ExchangePattern {
    /// Each with each other one, all at once.
    Direct,
    /// With one after the other, twice as far each time: see [`super::recursive`]. Of a power of two of ranks, else directly.
    Recursive,
}

impl Engine {
    /// Any placement.
    ///
    /// # Safety
    ///
    /// As [`Engine::all_reduce_within`].
    pub(super) unsafe fn all_reduce_across(
        &mut self,
        reduction: Reduction,
        input: *const u8,
        output: Option<*mut u8>,
        count: usize,
        root: Option<usize>,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let column = Column::of_all(wait, self.rank);
        let size = reduction.dtype.size();
        let chunk = STAGING / size;
        for index in 0..count.div_ceil(chunk).max(1) {
            let done = index * chunk;
            let length = chunk.min(count - done);
            // SAFETY: the caller's promise, for a part of it.
            unsafe {
                let (input, output) = match length {
                    0 => (input, output),
                    _ => (input.add(done * size), output.map(|output| output.add(done * size))),
                };
                self.column(reduction, &column, index as u32 * 2, input, output, length, root, wait)?;
            }
        }
        Ok(())
    }

    /// Islands that are blocks of the tree: partial results within each, then the rest of the tree between them.
    ///
    /// # Safety
    ///
    /// As [`Engine::all_reduce_within`]; the output is there.
    pub(super) unsafe fn all_reduce_by_blocks(
        &mut self,
        reduction: Reduction,
        input: *const u8,
        output: Option<*mut u8>,
        count: usize,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let Some(output) = output else { return Ok(()) };
        let (places, own) = (self.island.len(), self.island.place());
        let column = Column {
            ranks: &wait.net.islands.columns[own],
            own: wait.net.islands.of[self.rank].0,
            form: Form::Partial,
        };
        let size = reduction.dtype.size();
        let wide = reduction.bytes(Form::Partial);
        let chunk = STAGING / size;
        let mut room = std::mem::take(&mut self.partial);
        let partial = at_least(&mut room, slice(count.min(chunk), size, places, 0).1 * wide);
        for index in 0..count.div_ceil(chunk).max(1) {
            let done = index * chunk;
            let length = chunk.min(count - done);
            let part = |place: usize| {
                let (first, length) = slice(length, size, places, place);
                // SAFETY: within the input.
                (if length > 0 { unsafe { input.add((done + first) * size) } } else { input }, length)
            };
            let gathered = |place: usize| {
                let (first, length) = slice(length, size, places, place);
                let at = if length > 0 { (done + first) * size } else { 0 };
                // SAFETY: within the output.
                (unsafe { output.add(at) }, length * size)
            };
            let (mine, bytes) = gathered(own);
            // SAFETY: the caller's promise; the partial result of a slice fits into its memory. In place, the slices of the
            // input are read before the first of the output is written: all others have come to the last step of the first
            // part by then, and this rank copies what it reads of its own.
            unsafe {
                self.reduce_scatter_within(reduction, &part, partial, Form::Partial, wait)?;
                let step = index as u32 * 2;
                self.column(reduction, &column, step, partial, Some(mine), bytes / size, None, wait)?;
                self.all_gather_within(mine, &gathered, wait)?;
            }
        }
        self.partial = room;
        Ok(())
    }

    /// The reduction of what the ranks of a column have, in its order, to all of them or to a root.
    ///
    /// # Safety
    ///
    /// `input` is valid for reads of `count` values of the column's form, `output` for writes of as many elements; they are
    /// the same (of the form of elements) or apart.
    #[allow(clippy::too_many_arguments)]
    unsafe fn column(
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
        let members = column.ranks.len();
        let (size, wide) = (reduction.dtype.size(), reduction.bytes(column.form));
        let is_short = count * wide <= ONE_SHOT;
        if self.way(reduction, column, count, root) == ExchangePattern::Recursive {
            // SAFETY: the caller's promise.
            return unsafe {
                match output {
                    Some(output) if is_short && root.is_none() => {
                        self.double_all(reduction, column, step, (input, count), output, wait)
                    }
                    _ => self.halve_and_gather(reduction, column, step, input, output, count, root, wait),
                }
            };
        }
        // What this rank reduces, and what others do.
        let share = |place: usize| match (is_short, root) {
            (true, None) => (0, count),
            (true, Some(root)) => {
                if column.ranks[place] == root {
                    (0, count)
                } else {
                    (0, 0)
                }
            }
            (false, _) => slice(count, size, members, place),
        };
        let (first, mine) = share(column.own);
        let room = (mine * wide).next_multiple_of(64);
        let staging = self.stage(room * members + mine * size);
        let others = || (1..members).map(|distance| (column.own + distance) % members);
        let exchange = Exchange::new(wait, &self.ticket);
        // SAFETY: within the input and the staging memory, which nobody uses otherwise; the exchange ends before both.
        unsafe {
            for place in others() {
                exchange.receive(column.ranks[place], step, staging.add(place * room), mine * wide)?;
            }
            for place in others() {
                let (first, length) = share(place);
                let from = if length > 0 { input.add(first * wide) } else { input };
                exchange.send(column.ranks[place], step, from, length * wide)?;
            }
        }
        exchange.finish()?;
        let keeps = root.is_none_or(|root| root == self.rank);
        // SAFETY: within the staging memory and the output; all sends from the input have ended, so it may be overwritten.
        let result = unsafe {
            match output.filter(|_| keeps) {
                Some(output) if mine > 0 => output.add(first * size),
                _ => staging.add(room * members),
            }
        };
        if mine > 0 {
            self.sources.clear();
            for place in 0..members {
                // SAFETY: as above.
                self.sources.push(unsafe {
                    match place == column.own {
                        true => input.add(first * wide),
                        false => staging.add(place * room).cast_const(),
                    }
                });
            }
            // SAFETY: as above; shares begin at multiples of a line, staging memory at those of 8 bytes.
            unsafe { reduction.reduce(column.form, &self.sources, Form::Elements, result, mine) };
        }
        if is_short {
            return Ok(());
        }
        let exchange = Exchange::new(wait, &self.ticket);
        for place in others() {
            let rank = column.ranks[place];
            let (first, length) = share(place);
            // SAFETY: within the output; the others' shares and the own one are apart.
            unsafe {
                if let Some(output) = output.filter(|_| keeps) {
                    let to = if length > 0 { output.add(first * size) } else { output };
                    exchange.receive(rank, step + 1, to, length * size)?;
                }
                if root.is_none_or(|root| root == rank) {
                    exchange.send(rank, step + 1, result, mine * size)?;
                }
            }
        }
        exchange.finish()
    }

    /// Which way a column reduces; equal on all its ranks.
    fn way(
        &self,
        reduction: Reduction,
        column: &Column<'_>,
        count: usize,
        root: Option<usize>,
    ) -> ExchangePattern {
        let members = column.ranks.len();
        // With two it is the same.
        if !members.is_power_of_two() || members == 2 || members > MOST_MEMBERS {
            return ExchangePattern::Direct;
        }
        if let Some(way) = self.force {
            return way;
        }
        let (wide, partial) = (reduction.bytes(column.form), reduction.bytes(Form::Partial));
        let bytes = count * wide;
        let longest = if wide < partial { HALVING_NARROW } else { HALVING };
        // All that there is goes to a root alone if it is short.
        let pays = bytes <= longest && (root.is_none() || bytes > ONE_SHOT);
        if members >= RECURSIVE && pays { ExchangePattern::Recursive } else { ExchangePattern::Direct }
    }

    /// `part` tells, by rank, the input for it and its elements.
    ///
    /// # Safety
    ///
    /// As [`Engine::reduce_scatter_within`], to elements.
    pub(super) unsafe fn reduce_scatter_across(
        &mut self,
        reduction: Reduction,
        part: &dyn Fn(usize) -> (*const u8, usize),
        output: *mut u8,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let size = reduction.dtype.size();
        let room = (STAGING / self.world_size) & !63;
        let chunk = room / size;
        let longest = (0..self.world_size).map(|rank| part(rank).1).max().unwrap_or(0);
        let (mine, count) = part(self.rank);
        let (own, ranks) = (self.rank, self.world_size);
        let others = || (1..ranks).map(|distance| (own + distance) % ranks);
        let staging = self.stage(room.min(longest * size).next_multiple_of(64) * self.world_size);
        let room = room.min(longest * size).next_multiple_of(64);
        for index in 0..longest.div_ceil(chunk).max(1) {
            let done = index * chunk;
            let of = |count: usize| chunk.min(count.saturating_sub(done));
            let exchange = Exchange::new(wait, &self.ticket);
            // SAFETY: within the parts and the staging memory; the exchange ends before both.
            unsafe {
                for rank in others() {
                    exchange.receive(rank, index as u32, staging.add(rank * room), of(count) * size)?;
                }
                for rank in others() {
                    let (from, count) = part(rank);
                    let from = if of(count) > 0 { from.add(done * size) } else { from };
                    exchange.send(rank, index as u32, from, of(count) * size)?;
                }
            }
            exchange.finish()?;
            if of(count) == 0 {
                continue;
            }
            self.sources.clear();
            for rank in 0..self.world_size {
                // SAFETY: as above.
                self.sources.push(unsafe {
                    match rank == self.rank {
                        true => mine.add(done * size),
                        false => staging.add(rank * room).cast_const(),
                    }
                });
            }
            // SAFETY: the caller's promise; as above.
            unsafe {
                let output = output.add(done * size);
                reduction.reduce(Form::Elements, &self.sources, Form::Elements, output, of(count));
            }
        }
        Ok(())
    }

    /// `part` tells, by rank, where that rank's part goes and its bytes; `is_run` that they lie one behind the other, which is this
    /// rank's affair alone: the others' may not.
    ///
    /// # Safety
    ///
    /// As [`Engine::all_gather_within`].
    pub(super) unsafe fn all_gather_across(
        &mut self,
        input: *const u8,
        part: &dyn Fn(usize) -> (*mut u8, usize),
        is_run: bool,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let (islands, place) = (&wait.net.islands, self.island.place());
        if self.island.len() > 1 && islands.are_equal() {
            // What ranks of the same place have, then in each island what its ranks have got: every part goes between two hosts once.
            let own = islands.of[self.rank].0;
            // SAFETY: the caller's promise.
            unsafe { self.exchange_all(&islands.columns[place], own, input, part, wait)? };
            for island in &islands.all {
                let theirs = |place: usize| part(island[place]);
                // SAFETY: the caller's promise: in place, of what has just come.
                unsafe { self.all_gather_within(theirs(place).0, &theirs, wait)? };
            }
            return Ok(());
        }
        let column = Column::of_all(wait, self.rank);
        let total: usize = column.ranks.iter().map(|rank| part(*rank).1).sum();
        let may_double = column.ranks.len().is_power_of_two() && column.ranks.len() <= MOST_MEMBERS;
        let pays = self.world_size >= RECURSIVE && total <= DOUBLING;
        let doubles = self.force.map_or(pays, |way| way == ExchangePattern::Recursive);
        if !may_double || !doubles {
            // SAFETY: the caller's promise.
            return unsafe { self.exchange_all(column.ranks, self.rank, input, part, wait) };
        }
        let end = |place: usize| -> usize { (0..=place).map(|rank| part(rank).1).sum() };
        let (mine, bytes) = part(self.rank);
        let mut room = Vec::new();
        let begin = match is_run {
            true => part(0).0,
            false => {
                room = std::mem::take(&mut self.partial);
                at_least(&mut room, total)
            }
        };
        // SAFETY: the caller's promise; of the room, as long as all parts, likewise. Where it is the output, the own part of it is
        // the one that `part` tells.
        unsafe {
            copy(input, begin.add(end(self.rank) - bytes), bytes);
            self.gather_doubling(&column, begin, &end, wait)?;
        }
        if !is_run {
            for rank in (0..self.world_size).filter(|rank| *rank != self.rank) {
                let (to, bytes) = part(rank);
                // SAFETY: as above; parts and the room are apart.
                unsafe { copy(begin.add(end(rank) - bytes), to, bytes) };
            }
            // SAFETY: the caller's promise.
            unsafe { copy(input, mine, bytes) };
            self.partial = room;
        }
        Ok(())
    }

    /// Sends this rank's part, the one at `own`, to all of `ranks` and gets theirs, directly.
    ///
    /// # Safety
    ///
    /// As [`Engine::all_gather_within`], by rank.
    unsafe fn exchange_all(
        &mut self,
        ranks: &[usize],
        own: usize,
        input: *const u8,
        part: &dyn Fn(usize) -> (*mut u8, usize),
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let (mine, bytes) = part(ranks[own]);
        let exchange = Exchange::new(wait, &self.ticket);
        for distance in 1..ranks.len() {
            let rank = ranks[(own + distance) % ranks.len()];
            let (to, length) = part(rank);
            // SAFETY: the caller's promise; the exchange ends before this returns.
            unsafe {
                exchange.receive(rank, 0, to, length)?;
                exchange.send(rank, 0, input, bytes)?;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { copy(input, mine, bytes) };
        exchange.finish()
    }

    /// # Safety
    ///
    /// As [`Engine::broadcast_within`].
    pub(super) unsafe fn broadcast_across(
        &mut self,
        memory: *mut u8,
        bytes: usize,
        root: usize,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let islands = &wait.net.islands;
        let (first, root_place) = islands.of[root];
        let (here, own_place) = islands.of[self.rank];
        // The root leads its island, the first rank every other one.
        let place = if here == first { root_place } else { 0 };
        let leader = |island: usize| if island == first { root } else { islands.all[island][0] };
        let count = islands.all.len();
        let turned = (here + count - first) % count;
        // The binomial tree over islands, turned so that the root's is 0: the parent lacks the lowest bit.
        let lowest = if turned == 0 { count.next_power_of_two() } else { turned & turned.wrapping_neg() };
        let parent = (turned != 0).then(|| leader((turned - lowest + first) % count));
        let children = || {
            let bits = (0..lowest.trailing_zeros()).rev().map(|bit| turned + (1 << bit));
            bits.filter(|child| *child < count).map(|child| leader((child + first) % count))
        };
        let sends = Exchange::new(wait, &self.sends.clone());
        for index in 0..bytes.div_ceil(BROADCAST).max(1) {
            let done = index * BROADCAST;
            let length = BROADCAST.min(bytes - done);
            // SAFETY: within the memory; both exchanges end before this returns. What is sent on has been received.
            unsafe {
                let at = if length > 0 { memory.add(done) } else { memory };
                if own_place == place {
                    if let Some(parent) = parent {
                        let exchange = Exchange::new(wait, &self.ticket);
                        exchange.receive(parent, index as u32, at, length)?;
                        exchange.finish()?;
                    }
                    for child in children() {
                        sends.send(child, index as u32, at, length)?;
                    }
                }
                self.broadcast_within(at, length, place, wait)?;
            }
        }
        sends.finish()
    }

    pub(super) fn barrier_across(&mut self, wait: &Wait<'_>) -> Result<(), Error> {
        self.barrier_within(wait)?;
        let islands = &wait.net.islands;
        let (here, place) = islands.of[self.rank];
        if place == 0 {
            let count = islands.all.len();
            let mut nothing = 0_u8;
            for round in 0..count.next_power_of_two().trailing_zeros() {
                let distance = 1 << round;
                let exchange = Exchange::new(wait, &self.ticket);
                // SAFETY: no bytes of it are used.
                unsafe {
                    let (to, from) = ((here + distance) % count, (here + count - distance) % count);
                    exchange.receive(islands.all[from][0], round, &raw mut nothing, 0)?;
                    exchange.send(islands.all[to][0], round, &raw const nothing, 0)?;
                }
                exchange.finish()?;
            }
        }
        self.barrier_within(wait)
    }
}
