//! Calls that go on while the caller does other things, safely: the buffer goes in, and comes back when the call has ended.

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
use crate::tensor::{BufferMut, Element, Tensor};
use crate::types::{Device, ReduceOp};
use crate::work::{Outcome, Work};

/// A buffer that a call has, and the call. It is a future of the buffer, with what came of the call.
///
/// ```
/// # use meshreduce_process_group::{Error, ProcessGroup, ReduceOp};
/// async fn sum(group: &ProcessGroup, gradients: Vec<f32>) -> Result<Vec<f32>, Error> {
///     let (gradients, result) = group.all_reduce_owned(gradients, ReduceOp::Sum)?.await; // or .wait()
///     result.map(|_| gradients)
/// }
/// ```
///
/// Dropped before the call has ended, it waits for the end, which the call's deadline bounds. After a failure on device memory it
/// also waits, as a future too, until the device has done what was enqueued on it, before anybody has the buffer again.
#[derive(Debug)]
#[must_use = "the buffer is in it"]
pub struct Owned<B: BufferMut> {
    work: Work,
    device: Option<Device>,
    place: Place,
    /// Its memory does not move with it.
    buffer: ManuallyDrop<B>,
    /// The call has ended: the buffer is whoever's has this.
    ended: bool,
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

impl<B: StableBuffer> Owned<B> {
    /// The call.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Waits for the end of the call: gives the buffer back, and what came of the call. After an error its content is anything.
    pub fn wait(mut self) -> (B, Result<Outcome, Error>) {
        let outcome = self.work.finish();
        self.settle(outcome.is_err());
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

impl<B: BufferMut> Owned<B> {
    /// Nothing touches the buffer any more when this returns: of a call that has ended well that is so, as backends promise. What one
    /// that has failed has left on the device is waited for; on host memory backends leave nothing.
    fn settle(&self, failed: bool) {
        // A call that has not ended at once, as a failure shows, has one.
        if let Some(site) = self.work.site.as_ref().filter(|_| failed) {
            site.group.drain(self.device);
        }
    }
}

impl<B: BufferMut> Drop for Owned<B> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Err(error) = self.work.finish() {
            tracing::debug!(%error, "a call failed whose buffer was dropped");
            self.settle(true);
        }
        self.ended = true;
        // SAFETY: as in `take`.
        unsafe { ManuallyDrop::drop(&mut self.buffer) };
    }
}

impl<B: StableBuffer + Unpin> Future for Owned<B> {
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
    fn start_owned<B: StableBuffer>(
        &self,
        mut buffer: B,
        location: &'static Location<'static>,
        call: impl FnOnce(Tensor) -> Call<'static>,
    ) -> Result<Owned<B>, Error> {
        let call = call(buffer.tensor_mut());
        self.outside_of_captures(&call)?;
        // SAFETY: the memory is the buffer's, wherever that is moved to, and the buffer is used by nobody before the call has
        // ended: `Owned` gives it back then, and waits before it drops it. After a failure both wait for the device too, and so does
        // this call (`lent`); no graph keeps the memory. An `Owned` that is leaked leaks the memory.
        let work = unsafe { self.make_call(&call, CallOptions { blocking: false, lent: true, location }) }?;
        let (place, buffer) = (Place::default(), ManuallyDrop::new(buffer));
        Ok(Owned { work, device: call.device(), place, buffer, ended: false })
    }

    /// [`ProcessGroup::all_reduce`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn all_reduce_owned<B: StableBuffer>(&self, buffer: B, op: ReduceOp) -> Result<Owned<B>, Error> {
        let in_place = |tensor| Call::AllReduce { input: tensor, output: tensor, op };
        self.start_owned(buffer, Location::caller(), in_place)
    }

    /// [`ProcessGroup::broadcast`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn broadcast_owned<B: StableBuffer>(&self, buffer: B, root: usize) -> Result<Owned<B>, Error> {
        self.start_owned(buffer, Location::caller(), |tensor| Call::Broadcast { tensor, root })
    }

    /// [`ProcessGroup::send`] that goes on.
    ///
    /// # Errors
    ///
    /// As [`ProcessGroup::start`].
    #[track_caller]
    pub fn send_owned<B: StableBuffer>(&self, buffer: B, peer: usize, tag: u32) -> Result<Owned<B>, Error> {
        self.start_owned(buffer, Location::caller(), |input| Call::Send { input, peer, tag })
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
        self.start_owned(buffer, Location::caller(), |output| Call::Recv { output, peer, tag })
    }
}
