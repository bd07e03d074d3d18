//! Calls that wait for their end: safe, since nothing else can touch the memory meanwhile.

use std::panic::Location;

use super::ProcessGroup;
use crate::call::Call;
use crate::error::Error;
use crate::tensor::{Buffer, BufferMut, Parts, RootInputs, RootOutputs, Tensor, tensors, tensors_mut};
use crate::types::{Device, ReduceOp};
use crate::work::Outcome;

/// Each of these blocks until the call has ended on this rank, also on device memory (c10d's only enqueue there, as
/// [`ProcessGroup::start`] does). `root` and `peer` are ranks of this group, where c10d's `src` and `dst` are ranks of the default
/// group. All return what [`ProcessGroup::start`] and [`crate::Work::wait`] do
/// as errors; on an error the content of outputs is anything.
impl ProcessGroup {
    #[track_caller]
    fn call(&self, call: &Call<'_>) -> Result<(), Error> {
        let location = Location::caller();
        // SAFETY: every caller below has the memory borrowed, exclusively where the call writes, and this returns only when the
        // call has ended.
        unsafe { self.make_and_wait(call, location, |_| ()) }
    }

    /// Every rank's `buffer` becomes the reduction of all of them.
    ///
    /// ```
    /// # use meshreduce_process_group::{ProcessGroup, ReduceOp, store::MemoryStore};
    /// # use std::sync::Arc;
    /// # let store = Arc::new(MemoryStore::new());
    /// std::thread::scope(|scope| {
    ///     for rank in 0..2 {
    ///         let store = Arc::clone(&store);
    ///         scope.spawn(move || {
    ///             let group = ProcessGroup::builder(store, rank, 2).build()?;
    ///             let mut data = vec![rank as f32 + 1.0; 4];
    ///             group.all_reduce(&mut data, ReduceOp::Sum)?;
    ///             assert_eq!(data, [3.0; 4]);
    ///             group.shutdown()
    ///         });
    ///     }
    /// });
    /// ```
    #[track_caller]
    pub fn all_reduce(&self, buffer: &mut (impl BufferMut + ?Sized), op: ReduceOp) -> Result<(), Error> {
        let tensor = buffer.tensor_mut();
        self.call(&Call::AllReduce { input: tensor, output: tensor, op })
    }

    /// `output` becomes the reduction of all ranks' `input`.
    #[track_caller]
    pub fn all_reduce_into(
        &self,
        input: &(impl Buffer + ?Sized),
        output: &mut (impl BufferMut + ?Sized),
        op: ReduceOp,
    ) -> Result<(), Error> {
        self.call(&Call::AllReduce { input: input.tensor(), output: output.tensor_mut(), op })
    }

    /// The root's `buffer` becomes the reduction of all of them; the others' stay.
    #[track_caller]
    pub fn reduce(
        &self,
        buffer: &mut (impl BufferMut + ?Sized),
        op: ReduceOp,
        root: usize,
    ) -> Result<(), Error> {
        let input = buffer.tensor_mut();
        let output = (root == self.rank()).then_some(input);
        self.call(&Call::Reduce { input, output, op, root })
    }

    /// Every rank's `buffer` becomes the root's.
    #[track_caller]
    pub fn broadcast(&self, buffer: &mut (impl BufferMut + ?Sized), root: usize) -> Result<(), Error> {
        self.call(&Call::Broadcast { tensor: buffer.tensor_mut(), root })
    }

    /// Every rank's `buffers` become the root's: several broadcasts at once.
    #[track_caller]
    pub fn broadcast_coalesced<B: BufferMut>(&self, buffers: &mut [B], root: usize) -> Result<(), Error> {
        let calls: Vec<_> =
            buffers.iter_mut().map(|buffer| Call::Broadcast { tensor: buffer.tensor_mut(), root }).collect();
        self.call(&Call::Batch(&calls))
    }

    /// Every rank's `buffers` become the reductions of all of them: several all-reduces at once.
    #[track_caller]
    pub fn all_reduce_coalesced<B: BufferMut>(&self, buffers: &mut [B], op: ReduceOp) -> Result<(), Error> {
        let in_place = |tensor: Tensor| Call::AllReduce { input: tensor, output: tensor, op };
        let calls: Vec<_> = buffers.iter_mut().map(|buffer| in_place(buffer.tensor_mut())).collect();
        self.call(&Call::Batch(&calls))
    }

    /// `output` becomes all ranks' `input`, one behind the other. c10d's `all_gather_single`.
    #[track_caller]
    pub fn all_gather_single(
        &self,
        input: &(impl Buffer + ?Sized),
        output: &mut (impl BufferMut + ?Sized),
    ) -> Result<(), Error> {
        let outputs = Parts::Whole(output.tensor_mut());
        self.call(&Call::AllGather { input: input.tensor(), outputs })
    }

    /// `outputs[r]` becomes rank r's `input`; lengths may differ between ranks.
    #[track_caller]
    pub fn all_gather<B: BufferMut>(
        &self,
        input: &(impl Buffer + ?Sized),
        outputs: &mut [B],
    ) -> Result<(), Error> {
        let outputs = tensors_mut(outputs);
        self.call(&Call::AllGather { input: input.tensor(), outputs: Parts::List(&outputs) })
    }

    /// On the root `outputs[r]` becomes rank r's `input`; the others have no outputs: `()`.
    ///
    /// ```
    /// # use meshreduce_process_group::{ProcessGroup, store::MemoryStore};
    /// # use std::sync::Arc;
    /// # let store = Arc::new(MemoryStore::new());
    /// # std::thread::scope(|scope| {
    /// #     for rank in 0..2 {
    /// #         let store = Arc::clone(&store);
    /// #         scope.spawn(move || {
    /// #             let group = ProcessGroup::builder(store, rank, 2).build()?;
    /// let own = [group.rank() as f32; 2];
    /// if group.rank() == 0 {
    ///     let mut all = vec![[0.0_f32; 2]; group.world_size()];
    ///     group.gather(&own, &mut all, 0)?;
    ///     assert_eq!(all, [[0.0; 2], [1.0; 2]]);
    /// } else {
    ///     group.gather(&own, (), 0)?;
    /// }
    /// #             group.shutdown()
    /// #         });
    /// #     }
    /// # });
    /// ```
    #[track_caller]
    pub fn gather(
        &self,
        input: &(impl Buffer + ?Sized),
        mut outputs: impl RootOutputs,
        root: usize,
    ) -> Result<(), Error> {
        let outputs = outputs.tensors_mut();
        let outputs = (!outputs.is_empty()).then_some(Parts::List(&outputs));
        self.call(&Call::Gather { input: input.tensor(), outputs, root })
    }

    /// `output` becomes the root's `inputs[rank]`; the others have no inputs: `()`.
    #[track_caller]
    pub fn scatter(
        &self,
        inputs: impl RootInputs,
        output: &mut (impl BufferMut + ?Sized),
        root: usize,
    ) -> Result<(), Error> {
        let inputs = inputs.tensors();
        let inputs = (!inputs.is_empty()).then_some(Parts::List(&inputs));
        self.call(&Call::Scatter { inputs, output: output.tensor_mut(), root })
    }

    /// `output` becomes this rank's part of the reduction of all ranks' `input`, which is cut into equal parts. c10d's
    /// `reduce_scatter_single`.
    #[track_caller]
    pub fn reduce_scatter_single(
        &self,
        input: &(impl Buffer + ?Sized),
        output: &mut (impl BufferMut + ?Sized),
        op: ReduceOp,
    ) -> Result<(), Error> {
        let inputs = Parts::Whole(input.tensor());
        self.call(&Call::ReduceScatter { inputs, output: output.tensor_mut(), op })
    }

    /// `output` becomes the reduction of all ranks' `inputs[rank]`; lengths may differ between ranks.
    #[track_caller]
    pub fn reduce_scatter<B: Buffer>(
        &self,
        inputs: &[B],
        output: &mut (impl BufferMut + ?Sized),
        op: ReduceOp,
    ) -> Result<(), Error> {
        let inputs = tensors(inputs);
        self.call(&Call::ReduceScatter { inputs: Parts::List(&inputs), output: output.tensor_mut(), op })
    }

    /// Part r of `output` becomes rank r's part for this rank of its `input`. c10d's `all_to_all_single`. All ranks call this form: one that
    /// calls another, if only with parts as long, makes another call.
    #[track_caller]
    pub fn all_to_all_single(
        &self,
        input: &(impl Buffer + ?Sized),
        output: &mut (impl BufferMut + ?Sized),
    ) -> Result<(), Error> {
        let (inputs, outputs) = (Parts::Whole(input.tensor()), Parts::Whole(output.tensor_mut()));
        self.call(&Call::AllToAll { inputs, outputs })
    }

    /// [`ProcessGroup::all_to_all_single`] with parts of these counts, by rank. All ranks call this form, also one whose parts are equally
    /// long.
    #[track_caller]
    pub fn all_to_all_split(
        &self,
        (input, input_counts): (&(impl Buffer + ?Sized), &[usize]),
        (output, output_counts): (&mut (impl BufferMut + ?Sized), &[usize]),
    ) -> Result<(), Error> {
        let inputs = Parts::Split { tensor: input.tensor(), counts: input_counts };
        let outputs = Parts::Split { tensor: output.tensor_mut(), counts: output_counts };
        self.call(&Call::AllToAll { inputs, outputs })
    }

    /// `outputs[r]` becomes rank r's `inputs[rank]`. All ranks call this form.
    #[track_caller]
    pub fn all_to_all<I: Buffer, O: BufferMut>(&self, inputs: &[I], outputs: &mut [O]) -> Result<(), Error> {
        let (inputs, outputs) = (tensors(inputs), tensors_mut(outputs));
        self.call(&Call::AllToAll { inputs: Parts::List(&inputs), outputs: Parts::List(&outputs) })
    }

    /// Sends `buffer` to `peer`, which receives it with the same tag; returns when the buffer may be used again.
    #[track_caller]
    pub fn send(&self, buffer: &(impl Buffer + ?Sized), peer: usize, tag: u32) -> Result<(), Error> {
        self.call(&Call::Send { input: buffer.tensor(), peer, tag })
    }

    /// Receives into `buffer` what `peer` sends with this tag.
    #[track_caller]
    pub fn recv(&self, buffer: &mut (impl BufferMut + ?Sized), peer: usize, tag: u32) -> Result<(), Error> {
        self.call(&Call::Recv { output: buffer.tensor_mut(), peer: Some(peer), tag })
    }

    /// Receives into `buffer` what any rank sends with this tag; returns which.
    #[track_caller]
    pub fn recv_any(&self, buffer: &mut (impl BufferMut + ?Sized), tag: u32) -> Result<usize, Error> {
        let call = Call::Recv { output: buffer.tensor_mut(), peer: None, tag };
        let source = |outcome: &Outcome| outcome.source.unwrap_or_default();
        // SAFETY: as in `call`: the memory is borrowed exclusively until this returns.
        unsafe { self.make_and_wait(&call, Location::caller(), source) }
    }

    /// Returns when all ranks have come, through the backend of `device`: which one is said and not guessed. On a CUDA device, when
    /// what was enqueued on their streams before has ended.
    #[track_caller]
    pub fn barrier(&self, device: Device) -> Result<(), Error> {
        self.call(&Call::Barrier { device })
    }
}
