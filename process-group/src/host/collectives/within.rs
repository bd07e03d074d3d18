//! Collectives of an island: by steps through shared memory.
//!
//! What is read and written through raw pointers here: the caller's tensors, by its promise; and slots, by the protocol of
//! [`crate::host::island`]: the own one between `begin` and `publish`, others' between `come` and the next `publish`.

use super::{Engine, slice};
use crate::error::Error;
use crate::host::arithmetic::{Form, Reduction};
use crate::host::stream::copy;
use crate::host::wait::Wait;

/// Longest input, in bytes, that all ranks of an island of two read whole; of more ranks, so much less.
const ONE_SHOT: usize = 64 << 10;
/// Bytes of an input that go in one step of a long all-reduce.
const CHUNK: usize = 128 << 10;
/// Bytes that go in one step of a long broadcast.
const BROADCAST: usize = 64 << 10;

impl Engine {
    /// # Safety
    ///
    /// `input` is valid for reads of `count` elements, `output`, if it is there, for writes; they are the same or apart.
    pub(super) unsafe fn all_reduce_within(
        &mut self,
        reduction: Reduction,
        input: *const u8,
        output: Option<*mut u8>,
        count: usize,
        root: Option<usize>,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let bytes = count * reduction.dtype.size();
        let ranks = self.island.len();
        // SAFETY: the caller's promise.
        unsafe {
            if ranks == 1 {
                return self.alone(reduction, input, output, count, wait);
            }
            if bytes <= ONE_SHOT * 2 / ranks {
                self.one_shot(reduction, input, output, count, root, wait)
            } else {
                self.two_shot(reduction, input, output, count, root, wait)
            }
        }
    }

    /// Of one rank: the same rounding and the same NaN as of more.
    ///
    /// # Safety
    ///
    /// As [`Engine::all_reduce_within`].
    unsafe fn alone(
        &mut self,
        reduction: Reduction,
        input: *const u8,
        output: Option<*mut u8>,
        count: usize,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        self.barrier_within(wait)?;
        if let Some(output) = output
            && count > 0
        {
            // SAFETY: the caller's promise.
            unsafe { reduction.reduce(Form::Elements, &[input], Form::Elements, output, count) };
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As [`Engine::all_reduce_within`], and the input fits into a slot.
    unsafe fn one_shot(
        &mut self,
        reduction: Reduction,
        input: *const u8,
        output: Option<*mut u8>,
        count: usize,
        root: Option<usize>,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let own = self.island.place();
        let step = self.island.begin(wait)?;
        let reads = root.is_none_or(|root| root == own);
        let bytes = count * reduction.dtype.size();
        // A root's input is read by itself alone.
        if root != Some(own) {
            // SAFETY: the caller's promise; it fits into its place, which is this rank's to write.
            unsafe { self.island.put(input, bytes, step) };
        }
        self.island.publish(wait);
        let (true, Some(output)) = (reads, output) else {
            self.island.settle();
            return Ok(());
        };
        self.island.all_come(step, wait)?;
        if count == 0 {
            return Ok(());
        }
        self.sources.clear();
        for place in 0..self.island.len() {
            let theirs = || self.island.input_of(bytes, place, step).cast_const();
            let source = if place == own { input } else { theirs() };
            self.sources.push(source);
        }
        // SAFETY: the caller's promise; the others have come to the step in the same call, so their places hold `count`
        // elements, aligned to 32 bytes, and stay until this rank comes to the next one.
        unsafe { reduction.reduce(Form::Elements, &self.sources, Form::Elements, output, count) };
        Ok(())
    }

    /// In step `k` the inputs of chunk `k` are there for those who reduce them, and the results of chunk `k - 1` for all.
    ///
    /// # Safety
    ///
    /// As [`Engine::all_reduce_within`].
    unsafe fn two_shot(
        &mut self,
        reduction: Reduction,
        input: *const u8,
        output: Option<*mut u8>,
        count: usize,
        root: Option<usize>,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let size = reduction.dtype.size();
        let (ranks, own) = (self.island.len(), self.island.place());
        let output = output.filter(|_| root.is_none_or(|root| root == own));
        let chunk = CHUNK.min(self.island.room()) / size;
        let chunks = count.div_ceil(chunk);
        let length = |index: usize| chunk.min(count - index * chunk);
        for index in 0..=chunks {
            let step = self.island.begin(wait)?;
            if index < chunks {
                let length = length(index);
                let (first, mine) = slice(length, size, ranks, own);
                let slot = self.island.input(own, step);
                // SAFETY: the chunk lies within the input, and fits into the slot, which is this rank's to write. The own
                // slice is nobody else's to read.
                unsafe {
                    let from = input.add(index * chunk * size);
                    self.island.copies.copy(from, slot, first * size);
                    let behind = (first + mine) * size;
                    self.island.copies.copy(from.add(behind), slot.add(behind), length * size - behind);
                }
            }
            self.island.publish(wait);
            self.island.all_come(step, wait)?;
            if index > 0
                && let Some(output) = output
            {
                for place in (0..ranks).filter(|place| *place != own) {
                    let (first, theirs) = slice(length(index - 1), size, ranks, place);
                    let from = self.island.result(place, step).cast_const();
                    // SAFETY: the slice lies within the output; the result was written before the step was come to.
                    unsafe {
                        let to = output.add(((index - 1) * chunk + first) * size);
                        copy(from, to, theirs * size);
                    }
                }
            }
            if index == chunks {
                return Ok(());
            }
            let (first, mine) = slice(length(index), size, ranks, own);
            if mine == 0 {
                continue;
            }
            let at = (index * chunk + first) * size;
            self.sources.clear();
            for place in 0..ranks {
                // SAFETY: within the input, and within the slots, of which all have filled that of this step.
                self.sources.push(unsafe {
                    match place == own {
                        true => input.add(at),
                        false => self.island.input(place, step).add(first * size).cast_const(),
                    }
                });
            }
            let result = self.island.result(own, step + 1);
            // SAFETY: as above; slices begin at multiples of a line, so all is aligned. Others have finished reading the
            // results of the step before, where those of the next one go; a slice of a chunk fits there.
            unsafe {
                let to = output.map_or(result, |output| output.add(at));
                reduction.reduce(Form::Elements, &self.sources, Form::Elements, to, mine);
                if to != result && root.is_none() {
                    self.island.copies.copy(to, result, mine * size);
                }
            }
        }
        Ok(())
    }

    /// `part` tells, by place, the input for it and its elements.
    ///
    /// # Safety
    ///
    /// The parts are valid for reads, `output` for writes of as many values of the form `to` as this rank's part has; it is
    /// apart from all parts or, of the form of elements, this rank's part.
    pub(super) unsafe fn reduce_scatter_within(
        &mut self,
        reduction: Reduction,
        part: &dyn Fn(usize) -> (*const u8, usize),
        output: *mut u8,
        to: Form,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let size = reduction.dtype.size();
        let (ranks, own) = (self.island.len(), self.island.place());
        let room = (self.island.room() / ranks) & !63;
        let chunk = room / size;
        let longest = (0..ranks).map(|place| part(place).1).max().unwrap_or(0);
        let (mine, count) = part(own);
        for index in 0..longest.div_ceil(chunk).max(1) {
            let done = index * chunk;
            let step = self.island.begin(wait)?;
            let slot = self.island.input(own, step);
            for place in (0..ranks).filter(|place| *place != own) {
                let (from, count) = part(place);
                let length = chunk.min(count.saturating_sub(done));
                if length > 0 {
                    // SAFETY: within the part, and within the slot, which has room for so much of every rank.
                    unsafe {
                        self.island.copies.copy(from.add(done * size), slot.add(place * room), length * size)
                    };
                }
            }
            self.island.publish(wait);
            self.island.all_come(step, wait)?;
            let length = chunk.min(count.saturating_sub(done));
            if length == 0 {
                continue;
            }
            self.sources.clear();
            for place in 0..ranks {
                // SAFETY: within the part, and within the slots, which all have filled.
                self.sources.push(unsafe {
                    match place == own {
                        true => mine.add(done * size),
                        false => self.island.input(place, step).add(own * room).cast_const(),
                    }
                });
            }
            // SAFETY: the caller's promise; as above.
            unsafe {
                let output = output.add(done * reduction.bytes(to));
                reduction.reduce(Form::Elements, &self.sources, to, output, length);
            }
        }
        Ok(())
    }

    /// `part` tells, by place, where that rank's part goes and its bytes.
    ///
    /// # Safety
    ///
    /// `input` is valid for reads of as much as this rank's part has, and apart from all parts or this rank's; the parts are
    /// valid for writes.
    pub(super) unsafe fn all_gather_within(
        &mut self,
        input: *const u8,
        part: &dyn Fn(usize) -> (*mut u8, usize),
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let (ranks, own) = (self.island.len(), self.island.place());
        let room = self.island.room();
        let longest = (0..ranks).map(|place| part(place).1).max().unwrap_or(0);
        let (mine, bytes) = part(own);
        for index in 0..longest.div_ceil(room).max(1) {
            let done = index * room;
            let step = self.island.begin(wait)?;
            let length = room.min(bytes.saturating_sub(done));
            if ranks > 1 && length > 0 {
                // SAFETY: within the input, and within its place.
                unsafe { self.island.put(input.add(done), length, step) };
            }
            self.island.publish(wait);
            if length > 0 {
                // SAFETY: within the input and the part.
                unsafe { copy(input.add(done), mine.add(done), length) };
            }
            for place in (0..ranks).filter(|place| *place != own) {
                let (to, bytes) = part(place);
                let length = room.min(bytes.saturating_sub(done));
                self.island.come(place, step, wait)?;
                if length > 0 {
                    // SAFETY: within the part, and within its place, which that rank has filled: all know the parts' lengths.
                    unsafe { copy(self.island.input_of(length, place, step), to.add(done), length) };
                }
            }
            self.island.settle();
        }
        Ok(())
    }

    /// # Safety
    ///
    /// `memory` is valid for reads, and where this rank is not at the place `root` for writes, of so many bytes.
    pub(super) unsafe fn broadcast_within(
        &mut self,
        memory: *mut u8,
        bytes: usize,
        root: usize,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let own = self.island.place();
        let is_alone = self.island.len() == 1;
        let chunk = BROADCAST.min(self.island.room());
        for index in 0..bytes.div_ceil(chunk).max(1) {
            let done = index * chunk;
            let length = chunk.min(bytes - done);
            let step = self.island.begin(wait)?;
            let slot = self.island.input_of(length, root, step);
            if own == root {
                if length > 0 && !is_alone {
                    // SAFETY: within the memory, and within the slot, which is this rank's to write.
                    unsafe { self.island.put(memory.add(done), length, step) };
                }
                self.island.publish(wait);
            } else {
                self.island.publish(wait);
                self.island.come(root, step, wait)?;
                if length > 0 {
                    // SAFETY: within the memory, and within the slot, which the root has filled.
                    unsafe { copy(slot, memory.add(done), length) };
                }
            }
            self.island.settle();
        }
        Ok(())
    }

    pub(super) fn barrier_within(&mut self, wait: &Wait<'_>) -> Result<(), Error> {
        let step = self.island.begin(wait)?;
        self.island.publish(wait);
        self.island.all_come(step, wait)
    }
}
