//! Collectives. Within an island they go by steps ([`super::island`]), between islands by messages ([`super::mailbox`]).
//!
//! | operation | one island | several |
//! |---|---|---|
//! | all_reduce, short | everybody reads all inputs and reduces for itself | the same, by messages; of eight ranks and more, if they are a power of two, by doubling |
//! | all_reduce, long | rank r reduces slice r, then all gather the slices; chunk by chunk, the gathering of a chunk in the step of the next one | the same, by messages; of eight ranks and more, if they are a power of two and it is not very long, by halving and doubling; where islands are blocks of the tree, within each island to partial results, then so between ranks of the same place, then within again |
//! | reduce | as all_reduce, only the root reads the results | reduce-scatter, then to the root |
//! | reduce_scatter | everybody reads its part of all inputs | everybody gets its part of all inputs |
//! | all_gather | everybody reads all | where islands are equal, between ranks of the same place, then within each; else everybody sends to all, or by doubling, as all_reduce |
//! | broadcast | all read the root's slot | a binomial tree over islands, chunk by chunk, and within each |
//! | barrier | one step | a step, dissemination between islands, a step |
//! | gather, scatter, all_to_all | messages | messages |
//!
//! All reductions combine values in the one tree over ranks, so which way is taken does not show in results; it is chosen by
//! size and placement, equally on all ranks. The two-phase all-reduce is Rabenseifner's (R. Rabenseifner, "Optimization of
//! collective reduction operations", 2004), where direct exchange in both phases, in two rounds, keeps the tree for any number of
//! ranks, and halving and doubling ([`recursive`]) for powers of two with fewer messages; on several hosts in the levels of W.
//! Gropp and others (see R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in MPICH",
//! 2005, also for the binomial broadcast); dissemination is that of D. Hensgen, R. Finkel, U. Manber, "Two algorithms for barrier
//! synchronization", 1988.

mod across;
mod exchange;
mod messages;
mod recursive;
mod within;

use std::sync::Arc;

pub(super) use across::ExchangePattern;

use super::arithmetic::Reduction;
use super::island::Island;
use super::stream::copy;
use super::ticket::Ticket;
use super::wait::Wait;
use crate::call::Call;
use crate::error::Error;
use crate::tensor::{Parts, Tensor};
use crate::types::{DType, ReduceOp};
use across::Column;

/// Memory of its own that a collective between islands uses at most, about.
const STAGING: usize = 4 << 20;

/// What runs collectives, one at a time.
#[derive(Debug)]
pub(super) struct Engine {
    island: Island,
    rank: usize,
    world_size: usize,
    several: bool,
    are_blocks: bool,
    /// In place of the way that would be chosen.
    force: Option<ExchangePattern>,
    /// Of messages of the collective that runs: those that it waits for first, and sends that may go on meanwhile.
    ticket: Arc<Ticket>,
    sends: Arc<Ticket>,
    /// What is being reduced.
    sources: Vec<*const u8>,
    /// Aligned memory for what others send.
    staging: Vec<u64>,
    /// The same for what is between two steps of one call; whoever uses it takes it meanwhile.
    partial: Vec<u64>,
}

// SAFETY: the pointers are those of one call, and left over from it; they are not used after it.
unsafe impl Send for Engine {}

fn pointer(tensor: &Tensor) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(tensor.address as usize)
}

/// Which of `count` elements of `size` bytes the one at `place` of `parts` has: the first, and how many. Slices begin at
/// multiples of a cache line.
fn slice(count: usize, size: usize, parts: usize, place: usize) -> (usize, usize) {
    let each = count.div_ceil(parts).next_multiple_of(64 / size);
    let first = (place * each).min(count);
    (first, each.min(count - first))
}

/// At least so many bytes of memory, aligned to 8.
fn at_least(memory: &mut Vec<u64>, bytes: usize) -> *mut u8 {
    let words = bytes.div_ceil(8);
    if memory.len() < words {
        memory.resize(words, 0);
    }
    memory.as_mut_ptr().cast()
}

impl Engine {
    pub(super) fn new(
        island: Island,
        rank: usize,
        world_size: usize,
        are_blocks: bool,
        force: Option<ExchangePattern>,
    ) -> Self {
        let several = island.len() < world_size;
        Self {
            island,
            rank,
            world_size,
            several,
            are_blocks,
            force,
            ticket: Arc::new(Ticket::new(0)),
            sends: Arc::new(Ticket::new(0)),
            sources: Vec::with_capacity(world_size),
            staging: Vec::new(),
            partial: Vec::new(),
        }
    }

    /// See [`Island::differs_at_the_end`].
    pub(super) fn differs_at_the_end(&self, group: &Arc<str>) -> Option<Error> {
        self.island.differs_at_the_end(group)
    }

    fn reduction(&self, dtype: DType, op: ReduceOp) -> Reduction {
        Reduction { dtype, op, ranks: self.world_size }
    }

    /// At least so many bytes of memory, aligned to 8.
    fn stage(&mut self, bytes: usize) -> *mut u8 {
        at_least(&mut self.staging, bytes)
    }

    /// Makes one collective that is no batch.
    ///
    /// # Safety
    ///
    /// As [`crate::Backend::start`], until it returns.
    pub(super) unsafe fn run(&mut self, call: &Call<'_>, wait: &Wait<'_>) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe {
            match call {
                Call::AllReduce { input, output, op } => {
                    self.all_reduce(input, Some(output), *op, None, wait)
                }
                Call::Reduce { input, output, op, root } => {
                    self.all_reduce(input, output.as_ref(), *op, Some(*root), wait)
                }
                Call::Broadcast { tensor, root } if self.several => {
                    self.broadcast_across(pointer(tensor), tensor.bytes(), *root, wait)
                }
                Call::Broadcast { tensor, root } => {
                    self.broadcast_within(pointer(tensor), tensor.bytes(), *root, wait)
                }
                Call::AllGather { input, outputs } => self.all_gather(input, outputs, wait),
                Call::ReduceScatter { inputs, output, op } => self.reduce_scatter(inputs, output, *op, wait),
                Call::Gather { input, outputs, root } => self.gather(input, outputs.as_ref(), *root, wait),
                Call::Scatter { inputs, output, root } => self.scatter(inputs.as_ref(), output, *root, wait),
                Call::AllToAll { inputs, outputs } => self.all_to_all(inputs, outputs, wait),
                Call::Barrier { .. } if self.several => self.barrier_across(wait),
                Call::Barrier { .. } => self.barrier_within(wait),
                Call::Send { .. } | Call::Recv { .. } | Call::Batch(_) => {
                    unreachable!("these are taken apart before")
                }
            }
        }
    }

    unsafe fn all_reduce(
        &mut self,
        input: &Tensor,
        output: Option<&Tensor>,
        op: ReduceOp,
        root: Option<usize>,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let reduction = self.reduction(input.dtype, op);
        let (from, count) = (pointer(input).cast_const(), input.count);
        let to = output.map(pointer);
        // SAFETY: the promise of `run`.
        unsafe {
            match root {
                _ if !self.several => self.all_reduce_within(reduction, from, to, count, root, wait),
                None if self.are_blocks && self.island.len() > 1 => {
                    self.all_reduce_by_blocks(reduction, from, to, count, wait)
                }
                _ => self.all_reduce_across(reduction, from, to, count, root, wait),
            }
        }
    }

    unsafe fn all_gather(
        &mut self,
        input: &Tensor,
        outputs: &Parts<'_>,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let part = |rank: usize| {
            let part = outputs.part(rank, wait.net.islands.of.len());
            (pointer(&part), part.bytes())
        };
        // SAFETY: the promise of `run`.
        unsafe {
            match self.several {
                true => {
                    let is_run = !matches!(outputs, Parts::List(_));
                    self.all_gather_across(pointer(input), &part, is_run, wait)
                }
                // The island's places are the ranks.
                false => self.all_gather_within(pointer(input), &part, wait),
            }
        }
    }

    unsafe fn reduce_scatter(
        &mut self,
        inputs: &Parts<'_>,
        output: &Tensor,
        op: ReduceOp,
        wait: &Wait<'_>,
    ) -> Result<(), Error> {
        let reduction = self.reduction(output.dtype, op);
        let part = |rank: usize| {
            let part = inputs.part(rank, wait.net.islands.of.len());
            (pointer(&part).cast_const(), part.count)
        };
        // SAFETY: the promise of `run`.
        unsafe {
            match self.several {
                true => self.reduce_scatter_across(reduction, &part, pointer(output), wait),
                false => {
                    let form = super::arithmetic::Form::Elements;
                    self.reduce_scatter_within(reduction, &part, pointer(output), form, wait)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::slice;

    #[test]
    fn slices_cover_everything_once() {
        for size in [1, 2, 4, 8] {
            for parts in 1..10 {
                for count in [0, 1, 5, 63, 64, 65, 1000, 4097] {
                    let mut next = 0;
                    for place in 0..parts {
                        let (first, length) = slice(count, size, parts, place);
                        assert_eq!(first, next);
                        assert!(first * size % 64 == 0 || length == 0);
                        next = first + length;
                    }
                    assert_eq!(next, count);
                }
            }
        }
    }
}
