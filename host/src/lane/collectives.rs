//! The raw calls of all collectives but all-reduce.

use meshreduce_wire::{DType, ElementSize, Op};

use super::slices::{RawSlice, SliceCall, each};
use super::{Lane, StreamOrder};
use crate::error::Error;
use crate::work::Work;

/// What is the same for all calls here: they are launched as [`Lane::all_reduce_raw`] is, with the same rules for streams, graphs
/// and lanes.
///
/// Collectives that move take elements of any type, by size ([`ElementSize`], into which a [`DType`] turns). The `_v` forms take a
/// count for each rank, which may be 0; all ranks must give the same list, of an all-to-all each pair the same count. Counts are of
/// elements, and slices lie one behind the other by rank. In the `_list` forms each slice has an address of its own
/// ([`RawSlice`]); where slices lie is each rank's own business, so one rank's list may meet another's `_v`. Ranks that differ get
/// [`Error::LaunchMismatch`], which says what the two have.
///
/// A call is *in place* where what is received lies where it was sent from: an all-gather's input is its own slice of the output, a
/// reduce-scatter's output its own slice of the input, an all-to-all's slice to a rank the one from it; else input and output are
/// equal, or apart. Slices that are received share nothing. What a rank does not use (the
/// input of a broadcast, the output of a reduce, where it is not the root) may be any address.
///
/// Slices of more bytes than staging holds go in several launches, one behind the other. A call of nothing on all ranks
/// is a launch too, as a barrier is: so ranks that differ hear of it there as well.
impl Lane {
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.shared.rank, self.shared.world_size())
    }

    /// Gathers `count` elements at `input` of every rank to `output` of every rank, by rank.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`], with `count` elements of this size at `input` and as many for each rank at `output`.
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_reduce_raw`], with [`Error::NoAlgorithmFor`] in place of its errors about algorithms.
    pub unsafe fn all_gather_raw(
        &mut self,
        input: u64,
        output: u64,
        count: usize,
        size: impl Into<ElementSize>,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let (counts, ranks) = each(count, self.place().1);
        // SAFETY: the caller vouches for it.
        unsafe { self.all_gather_v_raw(input, output, &counts[..ranks], size, stream) }
    }

    /// Gathers `counts[r]` elements at `input` of each rank r to `output` of every rank, by rank.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_gather_raw`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_raw`], and [`Error::WrongCounts`].
    pub unsafe fn all_gather_v_raw(
        &mut self,
        input: u64,
        output: u64,
        counts: &[usize],
        size: impl Into<ElementSize>,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::all_gather((input, output), counts, size.into(), self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// [`Lane::all_gather_v_raw`] to a slice for each rank.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_gather_raw`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_v_raw`].
    pub unsafe fn all_gather_list_raw(
        &mut self,
        input: u64,
        outputs: &[RawSlice],
        size: impl Into<ElementSize>,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::all_gather_list(input, outputs, size.into(), self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// Reduces slice r of the inputs of all ranks to `output` of rank r: `count` elements there, and as many for each rank at
    /// `input`. The bits are those of an all-reduce.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`], with that many elements.
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_raw`].
    pub unsafe fn reduce_scatter_raw(
        &mut self,
        input: u64,
        output: u64,
        count: usize,
        dtype: DType,
        op: Op,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let (counts, ranks) = each(count, self.place().1);
        // SAFETY: the caller vouches for it.
        unsafe { self.reduce_scatter_v_raw(input, output, &counts[..ranks], dtype, op, stream) }
    }

    /// [`Lane::reduce_scatter_raw`] in slices of `counts[r]` elements for rank r.
    ///
    /// # Safety
    ///
    /// As for [`Lane::reduce_scatter_raw`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_v_raw`].
    pub unsafe fn reduce_scatter_v_raw(
        &mut self,
        input: u64,
        output: u64,
        counts: &[usize],
        dtype: DType,
        op: Op,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::reduce_scatter((input, output), counts, (dtype, op), self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// [`Lane::reduce_scatter_v_raw`] of a slice for each rank, which may share memory: they are only read.
    ///
    /// # Safety
    ///
    /// As for [`Lane::reduce_scatter_raw`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_v_raw`].
    pub unsafe fn reduce_scatter_list_raw(
        &mut self,
        inputs: &[RawSlice],
        output: u64,
        dtype: DType,
        op: Op,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::reduce_scatter_list(inputs, output, (dtype, op), self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// Copies `count` elements at `input` of the root to `output` of every rank, its own among them.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`]; only the root's `input` is read.
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_raw`], and [`Error::NoSuchRoot`].
    pub unsafe fn broadcast_raw(
        &mut self,
        input: u64,
        output: u64,
        count: usize,
        size: impl Into<ElementSize>,
        root: usize,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::broadcast((input, output), count, size.into(), root, self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// Reduces `count` elements at `input` of every rank to `output` of the root. The bits are those of an all-reduce.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`]; only the root's `output` is written.
    ///
    /// # Errors
    ///
    /// As for [`Lane::broadcast_raw`].
    #[expect(clippy::too_many_arguments, reason = "those of ncclReduce")]
    pub unsafe fn reduce_raw(
        &mut self,
        input: u64,
        output: u64,
        count: usize,
        dtype: DType,
        op: Op,
        root: usize,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::reduce((input, output), count, (dtype, op), root, self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// Copies slice r of `input` of every rank to `output` of rank r, by rank: `count` elements from each to each.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`], with `count` elements of this size for each rank at `input` and `output`.
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_raw`].
    pub unsafe fn all_to_all_raw(
        &mut self,
        input: u64,
        output: u64,
        count: usize,
        size: impl Into<ElementSize>,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::all_to_all((input, output), count, size.into(), self.place().1);
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// [`Lane::all_to_all_raw`] with `sent[r]` elements to rank r and `received[r]` from it. All ranks make it by lists then, this or
    /// [`Lane::all_to_all_list_raw`]: one that makes [`Lane::all_to_all_raw`] of as many elements has made another call. As no rank knows what the others send
    /// one another, no slice may be longer than what [`crate::Communicator::longest_all_to_all_v`] says, and slices do not go by
    /// packets, however short they are.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_to_all_raw`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_v_raw`], and [`Error::OwnSlicesDiffer`].
    pub unsafe fn all_to_all_v_raw(
        &mut self,
        input: u64,
        output: u64,
        sent: &[usize],
        received: &[usize],
        size: impl Into<ElementSize>,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::all_to_all_v((input, output), (sent, received), size.into(), self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// [`Lane::all_to_all_v_raw`] between slices.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_to_all_raw`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_to_all_v_raw`].
    pub unsafe fn all_to_all_list_raw(
        &mut self,
        sent: &[RawSlice],
        received: &[RawSlice],
        size: impl Into<ElementSize>,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::all_to_all_list((sent, received), size.into(), self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// Gathers the slice `input` of every rank to the root: that of rank r to its `outputs[r]`. What is given for `outputs` elsewhere is
    /// not used. As of [`Lane::all_to_all_v_raw`], no slice may be longer than what
    /// [`crate::Communicator::longest_all_to_all_v`] says, and slices do not go by packets.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_to_all_raw`]; only the root's outputs are written.
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_to_all_v_raw`], and [`Error::NoSuchRoot`].
    pub unsafe fn gather_raw(
        &mut self,
        input: RawSlice,
        outputs: &[RawSlice],
        size: impl Into<ElementSize>,
        root: usize,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::gather(input, outputs, size.into(), root, self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// Scatters the root's slices: `inputs[r]` to the slice `output` of rank r. The reverse of [`Lane::gather_raw`].
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_to_all_raw`]; only the root's inputs are read.
    ///
    /// # Errors
    ///
    /// As for [`Lane::gather_raw`].
    pub unsafe fn scatter_raw(
        &mut self,
        inputs: &[RawSlice],
        output: RawSlice,
        size: impl Into<ElementSize>,
        root: usize,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        let call = SliceCall::scatter(inputs, output, size.into(), root, self.place())?;
        // SAFETY: the caller vouches for it.
        unsafe { self.enqueue_slices_work(&call, stream.into()) }
    }

    /// Ends on no rank's stream before it has begun on those of all.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`]; there is no memory.
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_gather_raw`].
    pub unsafe fn barrier_raw(&mut self, stream: impl Into<StreamOrder>) -> Result<Work, Error> {
        // SAFETY: the caller vouches for the stream.
        unsafe { self.enqueue_slices_work(&SliceCall::barrier(), stream.into()) }
    }
}
