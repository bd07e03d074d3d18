//! Completion queues.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::context::set_nonblocking;
use crate::status::Status;
use crate::sys::*;
use crate::{Context, Error, VerbsError, result};

/// What a completed work request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Opcode {
    /// A send.
    Send,
    /// A write.
    Write,
    /// A read.
    Read,
    /// A receive of a peer's send.
    Receive,
    /// A receive that a peer's write with immediate used up.
    ReceiveWriteWithImm,
    /// Something that this crate does not post: the number.
    Other(u32),
}

/// How a work request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's own.
    pub wr_id: u64,
    /// How it ended.
    pub status: Status,
    /// The device's own code for the error; 0 if there is none.
    pub vendor_error: u32,
    /// What it did. `None` when it failed: the field means nothing then, and devices do leave anything in it.
    pub opcode: Option<Opcode>,
    /// Bytes received, or read. Of a send or write, whatever the device says; 0 when it failed.
    pub byte_len: u32,
    /// The immediate, as the peer gave it.
    pub imm: Option<u32>,
    /// The number of the queue pair.
    pub queue_pair: u32,
}

impl Default for Completion {
    /// A place for a completion.
    fn default() -> Self {
        Self::from(&ibv_wc::zeroed())
    }
}

impl From<&ibv_wc> for Completion {
    fn from(raw: &ibv_wc) -> Self {
        let status = Status(raw.status);
        let done = status.is_success();
        Self {
            wr_id: raw.wr_id,
            status,
            vendor_error: raw.vendor_err,
            opcode: done.then_some(match raw.opcode {
                IBV_WC_SEND => Opcode::Send,
                IBV_WC_RDMA_WRITE => Opcode::Write,
                IBV_WC_RDMA_READ => Opcode::Read,
                IBV_WC_RECV => Opcode::Receive,
                IBV_WC_RECV_RDMA_WITH_IMM => Opcode::ReceiveWriteWithImm,
                other => Opcode::Other(other),
            }),
            byte_len: if done { raw.byte_len } else { 0 },
            imm: (done && raw.wc_flags & IBV_WC_WITH_IMM != 0).then_some(u32::from_be(raw.imm_data)),
            queue_pair: raw.qp_num,
        }
    }
}

/// A completion queue. Cheap to clone.
#[derive(Clone)]
pub struct CompletionQueue(Arc<Queue>);

struct Queue {
    cq: NonNull<ibv_cq>,
    context: Context,
    /// Kept because the queue tells it of completions.
    _channel: Option<CompletionChannel>,
}

// SAFETY: libibverbs is thread-safe.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the queue pairs that use it are gone: they had a clone of this. All events are acknowledged.
        if let Err(error) = unsafe { result::destroy_cq(self.context.library(), self.cq) } {
            tracing::warn!("{:?}: {error}", self.context);
        }
    }
}

impl CompletionQueue {
    pub(crate) fn new(
        context: &Context,
        entries: u32,
        channel: Option<(&CompletionChannel, usize)>,
    ) -> Result<Self, Error> {
        let entries =
            i32::try_from(entries).map_err(|_| VerbsError { call: "ibv_create_cq", errno: libc::EINVAL })?;
        let (raw, token) =
            channel.map_or((ptr::null_mut(), 0), |(channel, token)| (channel.0.channel.as_ptr(), token));
        // SAFETY: the context is open, and the channel alive; the token is a number to the library.
        let cq = unsafe {
            result::create_cq(
                context.library(),
                context.raw(),
                entries,
                ptr::without_provenance_mut(token),
                raw,
            )
        }?;
        let channel = channel.map(|(channel, _)| channel.clone());
        Ok(Self(Arc::new(Queue { cq, context: context.clone(), _channel: channel })))
    }

    /// The raw queue, alive as long as `self`.
    pub fn raw(&self) -> NonNull<ibv_cq> {
        self.0.cq
    }

    /// The device that it is of.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Completions that it has room for. One more, and it is broken for good.
    pub fn capacity(&self) -> u32 {
        // SAFETY: the queue is alive.
        u32::try_from(unsafe { (*self.raw().as_ptr()).cqe }).unwrap_or(0)
    }

    /// Takes completions out of the queue: writes them to the beginning of `completions`, and answers how many. Never
    /// waits.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`] when the queue is broken.
    ///
    /// # Example
    ///
    /// ```
    /// # use meshreduce_verbs_loader::{Completion, CompletionQueue, Error};
    /// fn drain(queue: &CompletionQueue) -> Result<(), Error> {
    ///     let mut completions = [Completion::default(); 16];
    ///     loop {
    ///         let count = queue.poll(&mut completions)?;
    ///         for completion in &completions[..count] {
    ///             println!("{}: {}", completion.wr_id, completion.status);
    ///         }
    ///         if count < completions.len() {
    ///             return Ok(());
    ///         }
    ///     }
    /// }
    /// ```
    pub fn poll(&self, completions: &mut [Completion]) -> Result<usize, Error> {
        const BATCH: usize = 16;
        let mut raw = [ibv_wc::zeroed(); BATCH];
        let mut total = 0;
        for places in completions.chunks_mut(BATCH) {
            // SAFETY: the queue is alive, and `raw` has as many places.
            let count = match unsafe { result::poll_cq(self.raw(), places.len() as i32, raw.as_mut_ptr()) } {
                Ok(count) => count.min(places.len()),
                // What was taken out before is not to be lost: the error comes back at the next call.
                Err(_) if total > 0 => break,
                Err(error) => return Err(error.into()),
            };
            for (place, raw) in places.iter_mut().zip(&raw[..count]) {
                *place = Completion::from(raw);
            }
            total += count;
            if count < places.len() {
                break;
            }
        }
        Ok(total)
    }

    /// `ibv_req_notify_cq`: the next completion that is added to the queue makes an event of its channel. Completions
    /// that are there already make none: poll once more after this.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`].
    pub fn request_notification(&self) -> Result<(), Error> {
        // SAFETY: the queue is alive.
        Ok(unsafe { result::req_notify_cq(self.raw(), false) }?)
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompletionQueue({:?}, {} entries)", self.context(), self.capacity())
    }
}

/// A channel for events of completion queues: a descriptor that can be waited for. Cheap to clone.
#[derive(Clone)]
pub struct CompletionChannel(Arc<Channel>);

struct Channel {
    channel: NonNull<ibv_comp_channel>,
    context: Context,
}

// SAFETY: libibverbs is thread-safe.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: the queues that use it are gone: they had a clone of this.
        if let Err(error) = unsafe { result::destroy_comp_channel(self.context.library(), self.channel) } {
            tracing::warn!("{:?}: {error}", self.context);
        }
    }
}

impl CompletionChannel {
    pub(crate) fn new(context: &Context) -> Result<Self, Error> {
        // SAFETY: the context is open.
        let channel = unsafe { result::create_comp_channel(context.library(), context.raw()) }?;
        let channel = Self(Arc::new(Channel { channel, context: context.clone() }));
        set_nonblocking(channel.as_fd())?;
        Ok(channel)
    }

    /// The token of a queue that had an event, if there is one now. Never waits: the descriptor ([`AsFd`]) becomes
    /// readable when there is one. The queue makes no other event until it is asked again.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]; [`Error::TooOld`].
    pub fn next_event(&self) -> Result<Option<usize>, Error> {
        let library = self.0.context.library();
        // SAFETY: the channel is alive.
        match unsafe { result::get_cq_event(library, self.0.channel) } {
            Ok((cq, token)) => {
                if let Some(cq) = NonNull::new(cq) {
                    // SAFETY: destroying the queue waits until the event that was just got is acknowledged.
                    unsafe { result::ack_cq_events(library, cq, 1) }?;
                }
                Ok(Some(token.addr()))
            }
            Err(Error::Verbs(VerbsError { errno: libc::EAGAIN | libc::EINTR, .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is alive as long as `self`, and so is its descriptor.
        unsafe { BorrowedFd::borrow_raw((*self.0.channel.as_ptr()).fd) }
    }
}

impl fmt::Debug for CompletionChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompletionChannel").field(&self.0.context).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_completion_says_beside_its_status_is_not_passed_on() {
        let mut raw = ibv_wc::zeroed();
        raw.wr_id = 7;
        raw.status = IBV_WC_RETRY_EXC_ERR;
        raw.opcode = 0xdead;
        raw.byte_len = 99;
        raw.wc_flags = IBV_WC_WITH_IMM;
        raw.vendor_err = 0x81;
        let completion = Completion::from(&raw);
        assert_eq!((completion.wr_id, completion.status), (7, Status::RETRIES_EXCEEDED));
        assert_eq!((completion.opcode, completion.byte_len, completion.imm), (None, 0, None));
        assert_eq!(completion.vendor_error, 0x81);
    }

    #[test]
    fn an_immediate_comes_out_as_it_was_given() {
        let mut raw = ibv_wc::zeroed();
        raw.opcode = IBV_WC_RECV_RDMA_WITH_IMM;
        raw.imm_data = 0x0102_0304_u32.to_be();
        assert_eq!(Completion::from(&raw).imm, None);
        raw.wc_flags = IBV_WC_WITH_IMM;
        let completion = Completion::from(&raw);
        assert_eq!(
            (completion.opcode, completion.imm),
            (Some(Opcode::ReceiveWriteWithImm), Some(0x0102_0304))
        );
    }
}
