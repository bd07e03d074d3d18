//! Calls that go on while the caller does other things, safely: the buffer goes in, and comes back when the call has ended.

use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::ProcessGroup;
use super::dispatch::CallOptions;
use super::future::Place;
use crate::call::Call;
use crate::error::Error;
use crate::tensor::{BufferMut, Element, Parts, Tensor, tensors_mut};
use crate::types::{Device, ReduceOp};
use crate::work::{Outcome, Work};

/// A buffer that a call has, or several (a pair of them, and lists), and the call. It is a future of the buffers, with what came of the
/// call.
///
/// ```
/// # use meshreduce_process_group::{Error, ProcessGroup, ReduceOp};
/// async fn sum(group: &ProcessGroup, gradients: Vec<f32>) -> Result<Vec<f32>, Error> {
///     let (gradients, result) = group.all_reduce_owned(gradients, ReduceOp::Sum)?.await; // or .wait()
///     result.map(|_| gradients)
/// }
/// ```
///
/// Calls with input and output take and give both:
///
/// ```
/// # use meshreduce_process_group::{Error, ProcessGroup, store::MemoryStore};
/// # use std::sync::Arc;
/// # let group = ProcessGroup::builder(Arc::new(MemoryStore::new()), 0, 1).build()?;
/// let pending = group.all_gather_single_owned(vec![1_i32, 2], vec![0; 2 * group.world_size()])?;
/// // ... what else there is to do ...
/// let ((own, all), result) = pending.wait();
/// result?;
/// assert_eq!((own, all), (vec![1, 2], vec![1, 2])); // a world of one
/// # Ok::<(), Error>(())
/// ```
///
/// Dropped before the call has ended, it waits for the end, which the call's deadline bounds. After a failure on device memory it
/// also waits, as a future too, until the device has done what was enqueued on it, before anybody has the buffer again.
#[must_use = "the buffer is in it"]
pub struct Owned<B> {
    work: Work,
    device: Option<Device>,
    place: Place,
    /// Its memory does not move with it.
    buffer: ManuallyDrop<B>,
    /// The call has ended: the buffer is whoever's has this.
    ended: bool,
}

/// Without the buffers, which others may be writing to, or have been given back.
impl<B> fmt::Debug for Owned<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { work, device, ended, .. } = self;
        f.debug_struct("Owned")
            .field("work", work)
            .field("device", device)
            .field("ended", ended)
            .finish_non_exhaustive()
    }
}

/// Buffers whose memory stays where it is when they are moved.
///
/// # Safety
///
/// [`crate::Buffer::tensor`] names the same memory before and after the value is moved.
pub unsafe trait StableBuffer: BufferMut + Send + 'static {}

// SAFETY: a vector's elements are on the heap.
unsafe impl<T: Element> StableBuffer for Vec<T> {}
// SAFETY: a boxed slice's elements are on the heap.
unsafe impl<T: Element> StableBuffer for Box<[T]> {}

impl<B> Owned<B> {
    /// The call.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Waits for the end of the call: gives the buffer back, and what came of the call. After an error its content is anything.
    pub fn wait(mut self) -> (B, Result<Outcome, Error>) {
        let outcome = self.work.finish();
        self.settle(outcome.is_err());
        self.work.note(&outcome);
        (self.take(), outcome)
    }

    /// Waits at most `timeout`.
    ///
    /// # Errors
    ///
    /// Itself, if the call goes on.
    pub fn wait_for(self, timeout: Duration) -> Result<(B, Result<Outcome, Error>), Self> {
        match self.work.wait(Some(timeout)) {
            Err(Error::StillRunning { .. }) => Err(self),
            _ => Ok(self.wait()),
        }
    }

    fn take(&mut self) -> B {
        assert!(!self.ended, "a future is not polled after its end");
        self.ended = true;
        // SAFETY: the buffer is taken once: `ended` was false and is true from now on, and nothing else takes it then.
        unsafe { ManuallyDrop::take(&mut self.buffer) }
    }
}

impl<B> Owned<B> {
    /// Nothing touches the buffer any more when this returns: of a call that has ended well that is so, as backends promise. What one
    /// that has failed has left on the device is waited for; on host memory backends leave nothing.
    fn settle(&self, failed: bool) {
        // A call that has not ended at once, as a failure shows, has one.
        if let Some(site) = self.work.site.as_ref().filter(|_| failed) {
            site.group.drain(self.device);
        }
    }
}

impl<B> Drop for Owned<B> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let ended = self.work.finish();
        if let Err(error) = &ended {
            tracing::debug!(%error, "a call failed whose buffer was dropped");
            self.settle(true);
        }
        self.work.note(&ended);
        self.ended = true;
        // SAFETY: as in `take`.
        unsafe { ManuallyDrop::drop(&mut self.buffer) };
    }
}

impl<B: Unpin> Future for Owned<B> {
    type Output = (B, Result<Outcome, Error>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { work, place, .. } = &mut *self;
        match place.poll(work, context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => {
                self.settle(outcome.is_err());
                Poll::Ready((self.take(), outcome))
            }
        }
    }
}

/// Each of these returns at once; a call that cannot be made gives the buffer up with the error. On a stream that is being captured
/// they are refused: a graph would keep the buffer ([`Error::WaitInCapture`]).
impl ProcessGroup {
    /// # Safety
    ///
    /// The call's memory is that of `buffers`, wherever these are moved to.
    unsafe fn start_owned<B>(
        &self,
        buffers: B,
        call: &Call<'_>,
        location: &'static Location<'static>,
    ) -> Result<Owned<B>, Error> {
        self.outside_of_captures(call)?;
        // A panic on the way, as of a subscriber of spans, may come when the call goes on: then they are leaked.
        let buffer = ManuallyDrop::new(buffers);
        // SAFETY: the memory is the buffers', as the caller vouches, and they are used by nobody before the call has ended: `Owned`
        // gives them back then, and waits before it drops them. After a failure both wait for the device too, and so does this call
        // (`lent`); no graph keeps the memory. An `Owned` that is leaked leaks the memory, and so does a panic.
        match unsafe { self.make_call(call, CallOptions { blocking: false, lent: true, location }) } {
            Ok(work) => {
                Ok(Owned { work, device: call.device(), place: Place::default(), buffer, ended: false })
            }
            Err(error) => {
                drop(ManuallyDrop::into_inner(buffer));
                Err(error)
            }
        }
    }

    /// A call of one buffer.
    fn start_with<B: StableBuffer>(
        &self,
        mut buffer: B,
        location: &'static Location<'static>,
        call: impl FnOnce(Tensor) -> Call<'static>,
    ) -> Result<Owned<B>, Error> {
        let call = call(buffer.tensor_mut());
        // SAFETY: it is the buffer's memory, which is stable.
        unsafe { self.start_owned(buffer, &call, location) }
    }

    /// A call of an input and an output.
    fn start_with_two<I: StableBuffer, O: StableBuffer>(
        &self,
        (mut input, mut output): (I, O),
        location: &'static Location<'static>,
        call: impl FnOnce(Tensor, Tensor) -> Call<'static>,
    ) -> Result<Owned<(I, O)>, Error> {
        let call = call(input.tensor_mut(), output.tensor_mut());
        // SAFETY: it is the memory of both, which is stable.
        unsafe { self.start_owned((input, output), &call, location) }
    }

    /// A batch of calls, one of each buffer.
    fn start_with_each<B: StableBuffer>(
        &self,
        mut buffers: Vec<B>,
        location: &'static Location<'static>,
        call: impl Fn(Tensor) -> Call<'static>,
    ) -> Result<Owned<Vec<B>>, Error> {
        let calls: Vec<_> = tensors_mut(&mut buffers).into_iter().map(call).collect();
        // SAFETY: it is the buffers' memory, which is stable.
        unsafe { self.start_owned(buffers, &Call::Batch(&calls), location) }
    }

    /// [`ProcessGroup::all_reduce`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn all_reduce_owned<B: StableBuffer>(&self, buffer: B, op: ReduceOp) -> Result<Owned<B>, Error> {
        let in_place = |tensor| Call::AllReduce { input: tensor, output: tensor, op };
        self.start_with(buffer, Location::caller(), in_place)
    }

    /// [`ProcessGroup::broadcast`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn broadcast_owned<B: StableBuffer>(&self, buffer: B, root: usize) -> Result<Owned<B>, Error> {
        self.start_with(buffer, Location::caller(), |tensor| Call::Broadcast { tensor, root })
    }

    /// [`ProcessGroup::send`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn send_owned<B: StableBuffer>(&self, buffer: B, peer: usize, tag: u32) -> Result<Owned<B>, Error> {
        self.start_with(buffer, Location::caller(), |input| Call::Send { input, peer, tag })
    }

    /// [`ProcessGroup::recv`], or from any rank if `peer` is `None`, that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn recv_owned<B: StableBuffer>(
        &self,
        buffer: B,
        peer: Option<usize>,
        tag: u32,
    ) -> Result<Owned<B>, Error> {
        self.start_with(buffer, Location::caller(), |output| Call::Recv { output, peer, tag })
    }

    /// [`ProcessGroup::all_reduce_into`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn all_reduce_into_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        input: I,
        output: O,
        op: ReduceOp,
    ) -> Result<Owned<(I, O)>, Error> {
        let call = |input, output| Call::AllReduce { input, output, op };
        self.start_with_two((input, output), Location::caller(), call)
    }

    /// [`ProcessGroup::reduce`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn reduce_owned<B: StableBuffer>(
        &self,
        buffer: B,
        op: ReduceOp,
        root: usize,
    ) -> Result<Owned<B>, Error> {
        let is_root = root == self.rank();
        let call = |input| Call::Reduce { input, output: is_root.then_some(input), op, root };
        self.start_with(buffer, Location::caller(), call)
    }

    /// [`ProcessGroup::broadcast_coalesced`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn broadcast_coalesced_owned<B: StableBuffer>(
        &self,
        buffers: Vec<B>,
        root: usize,
    ) -> Result<Owned<Vec<B>>, Error> {
        self.start_with_each(buffers, Location::caller(), |tensor| Call::Broadcast { tensor, root })
    }

    /// [`ProcessGroup::all_reduce_coalesced`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn all_reduce_coalesced_owned<B: StableBuffer>(
        &self,
        buffers: Vec<B>,
        op: ReduceOp,
    ) -> Result<Owned<Vec<B>>, Error> {
        let in_place = |tensor| Call::AllReduce { input: tensor, output: tensor, op };
        self.start_with_each(buffers, Location::caller(), in_place)
    }

    /// [`ProcessGroup::all_gather_single`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn all_gather_single_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        input: I,
        output: O,
    ) -> Result<Owned<(I, O)>, Error> {
        let call = |input, output| Call::AllGather { input, outputs: Parts::Whole(output) };
        self.start_with_two((input, output), Location::caller(), call)
    }

    /// [`ProcessGroup::all_gather`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn all_gather_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        mut input: I,
        mut outputs: Vec<O>,
    ) -> Result<Owned<(I, Vec<O>)>, Error> {
        let parts = tensors_mut(&mut outputs);
        let call = Call::AllGather { input: input.tensor_mut(), outputs: Parts::List(&parts) };
        // SAFETY: it is the memory of all of them, which is stable.
        unsafe { self.start_owned((input, outputs), &call, Location::caller()) }
    }

    /// [`ProcessGroup::gather`] that goes on. Where this rank is not the root `outputs` is empty.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn gather_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        mut input: I,
        mut outputs: Vec<O>,
        root: usize,
    ) -> Result<Owned<(I, Vec<O>)>, Error> {
        let parts = tensors_mut(&mut outputs);
        let outputs_of_root = (!parts.is_empty()).then_some(Parts::List(&parts));
        let call = Call::Gather { input: input.tensor_mut(), outputs: outputs_of_root, root };
        // SAFETY: it is the memory of all of them, which is stable.
        unsafe { self.start_owned((input, outputs), &call, Location::caller()) }
    }

    /// [`ProcessGroup::scatter`] that goes on. Where this rank is not the root `inputs` is empty.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn scatter_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        mut inputs: Vec<I>,
        mut output: O,
        root: usize,
    ) -> Result<Owned<(Vec<I>, O)>, Error> {
        let parts = tensors_mut(&mut inputs);
        let inputs_of_root = (!parts.is_empty()).then_some(Parts::List(&parts));
        let call = Call::Scatter { inputs: inputs_of_root, output: output.tensor_mut(), root };
        // SAFETY: it is the memory of all of them, which is stable.
        unsafe { self.start_owned((inputs, output), &call, Location::caller()) }
    }

    /// [`ProcessGroup::reduce_scatter_single`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn reduce_scatter_single_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        input: I,
        output: O,
        op: ReduceOp,
    ) -> Result<Owned<(I, O)>, Error> {
        let call = |input, output| Call::ReduceScatter { inputs: Parts::Whole(input), output, op };
        self.start_with_two((input, output), Location::caller(), call)
    }

    /// [`ProcessGroup::reduce_scatter`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn reduce_scatter_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        mut inputs: Vec<I>,
        mut output: O,
        op: ReduceOp,
    ) -> Result<Owned<(Vec<I>, O)>, Error> {
        let parts = tensors_mut(&mut inputs);
        let call = Call::ReduceScatter { inputs: Parts::List(&parts), output: output.tensor_mut(), op };
        // SAFETY: it is the memory of all of them, which is stable.
        unsafe { self.start_owned((inputs, output), &call, Location::caller()) }
    }

    /// [`ProcessGroup::all_to_all_single`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn all_to_all_single_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        input: I,
        output: O,
    ) -> Result<Owned<(I, O)>, Error> {
        let call =
            |input, output| Call::AllToAll { inputs: Parts::Whole(input), outputs: Parts::Whole(output) };
        self.start_with_two((input, output), Location::caller(), call)
    }

    /// [`ProcessGroup::all_to_all_split`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn all_to_all_split_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        (mut input, input_counts): (I, &[usize]),
        (mut output, output_counts): (O, &[usize]),
    ) -> Result<Owned<(I, O)>, Error> {
        let inputs = Parts::Split { tensor: input.tensor_mut(), counts: input_counts };
        let outputs = Parts::Split { tensor: output.tensor_mut(), counts: output_counts };
        // SAFETY: it is the memory of both, which is stable.
        unsafe { self.start_owned((input, output), &Call::AllToAll { inputs, outputs }, Location::caller()) }
    }

    /// [`ProcessGroup::all_to_all`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[allow(clippy::type_complexity, reason = "it is what goes in")]
    #[track_caller]
    pub fn all_to_all_owned<I: StableBuffer, O: StableBuffer>(
        &self,
        mut inputs: Vec<I>,
        mut outputs: Vec<O>,
    ) -> Result<Owned<(Vec<I>, Vec<O>)>, Error> {
        let (from, to) = (tensors_mut(&mut inputs), tensors_mut(&mut outputs));
        let call = Call::AllToAll { inputs: Parts::List(&from), outputs: Parts::List(&to) };
        // SAFETY: it is the memory of all of them, which is stable.
        unsafe { self.start_owned((inputs, outputs), &call, Location::caller()) }
    }

    /// [`ProcessGroup::barrier`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn barrier_owned(&self, device: Device) -> Result<Owned<()>, Error> {
        // SAFETY: it has no memory.
        unsafe { self.start_owned((), &Call::Barrier { device }, Location::caller()) }
    }
}
