//! Queue pairs.

use std::fmt;
use std::ptr::{self, NonNull};

use crate::sys::*;
use crate::{
    CompletionQueue, Error, Init, PostError, ProtectionDomain, ReadyToReceive, ReadyToSend, ReceiveRequest,
    SendRequest, VerbsError, result,
};

/// What a queue pair can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Send requests that are posted and not completed.
    pub max_sends: u32,
    /// Receive requests that are posted and not completed.
    pub max_receives: u32,
    /// Segments of a send request.
    pub max_send_segments: u32,
    /// Segments of a receive request.
    pub max_receive_segments: u32,
    /// Bytes of a send request that is inline.
    pub max_inline: u32,
}

/// What a queue pair is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueuePairConfig {
    /// What it holds at least.
    pub capacity: Capacity,
    /// Every send request makes a completion, signalled or not.
    pub signal_all: bool,
}

impl Default for QueuePairConfig {
    /// 64 sends and receives of one segment, nothing inline.
    fn default() -> Self {
        let capacity = Capacity {
            max_sends: 64,
            max_receives: 64,
            max_send_segments: 1,
            max_receive_segments: 1,
            max_inline: 0,
        };
        Self { capacity, signal_all: false }
    }
}

/// Where a queue pair is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueuePairState {
    /// Just made.
    Reset,
    /// Takes receives.
    Init,
    /// Receives.
    ReadyToReceive,
    /// Receives and sends.
    ReadyToSend,
    /// Finishes what it sends.
    SendQueueDrained,
    /// Its send queue failed.
    SendQueueError,
    /// Failed: everything posted comes back flushed.
    Error,
    /// Something else: the number.
    Other(u32),
}

impl QueuePairState {
    fn from_code(code: u32) -> Self {
        match code {
            IBV_QPS_RESET => Self::Reset,
            IBV_QPS_INIT => Self::Init,
            IBV_QPS_RTR => Self::ReadyToReceive,
            IBV_QPS_RTS => Self::ReadyToSend,
            IBV_QPS_SQD => Self::SendQueueDrained,
            IBV_QPS_SQE => Self::SendQueueError,
            IBV_QPS_ERR => Self::Error,
            other => Self::Other(other),
        }
    }
}

/// A reliable connected queue pair. Destroyed when it is dropped: what is posted then never completes.
pub struct QueuePair {
    qp: NonNull<ibv_qp>,
    capacity: Capacity,
    domain: ProtectionDomain,
    /// Kept because the pair's requests complete there.
    queues: [CompletionQueue; 2],
}

// SAFETY: libibverbs is thread-safe.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

/// Requests that are handed to the library at once.
const BATCH: usize = 32;

impl QueuePair {
    pub(crate) fn new(
        domain: &ProtectionDomain,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        config: &QueuePairConfig,
    ) -> Result<Self, Error> {
        // A queue is known to the kernel by a number of its device's, so of another device it would be another queue.
        let here = domain.context().raw();
        if [send, receive].iter().any(|queue| queue.context().raw() != here) {
            return Err(VerbsError { call: "ibv_create_qp", errno: libc::EINVAL }.into());
        }
        let asked = &config.capacity;
        let mut raw = ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: send.raw().as_ptr(),
            recv_cq: receive.raw().as_ptr(),
            srq: ptr::null_mut(),
            cap: ibv_qp_cap {
                max_send_wr: asked.max_sends,
                max_recv_wr: asked.max_receives,
                max_send_sge: asked.max_send_segments,
                max_recv_sge: asked.max_receive_segments,
                max_inline_data: asked.max_inline,
            },
            qp_type: IBV_QPT_RC,
            sq_sig_all: config.signal_all.into(),
        };
        // SAFETY: domain and queues are alive, and of one open device.
        let qp = unsafe { result::create_qp(domain.context().library(), domain.raw(), &mut raw) }?;
        let capacity = Capacity {
            max_sends: raw.cap.max_send_wr,
            max_receives: raw.cap.max_recv_wr,
            max_send_segments: raw.cap.max_send_sge,
            max_receive_segments: raw.cap.max_recv_sge,
            max_inline: raw.cap.max_inline_data,
        };
        Ok(Self { qp, capacity, domain: domain.clone(), queues: [send.clone(), receive.clone()] })
    }

    /// Its number, by which its peer names it.
    pub fn number(&self) -> u32 {
        // SAFETY: the pair is alive.
        unsafe { (*self.qp.as_ptr()).qp_num }
    }

    /// What it holds: at least what was asked for.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The domain that it is of.
    pub fn domain(&self) -> &ProtectionDomain {
        &self.domain
    }

    /// The raw queue pair, alive as long as `self`.
    pub fn raw(&self) -> NonNull<ibv_qp> {
        self.qp
    }

    /// Where it is on its way.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`].
    pub fn state(&self) -> Result<QueuePairState, Error> {
        // SAFETY: the pair is alive.
        let (raw, _) = unsafe { result::query_qp(self.library(), self.qp, IBV_QP_STATE) }?;
        Ok(QueuePairState::from_code(raw.qp_state))
    }

    /// From *reset* to *init*: receives may be posted.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL in another state, or for a port that there is not.
    pub fn init(&self, attributes: &Init) -> Result<(), Error> {
        self.modify(attributes.raw())
    }

    /// From *init* to *ready to receive*: what the peer sends is received.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL in another state, or for attributes that do not fit the device; where the peer's
    /// address cannot be resolved, ETIMEDOUT, EHOSTUNREACH or ENETUNREACH.
    pub fn ready_to_receive(&self, attributes: &ReadyToReceive) -> Result<(), Error> {
        self.modify(attributes.raw())
    }

    /// From *ready to receive* to *ready to send*: sends may be posted.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL in another state, or for attributes that do not fit the device.
    pub fn ready_to_send(&self, attributes: &ReadyToSend) -> Result<(), Error> {
        self.modify(attributes.raw())
    }

    /// To *error*, from any state: everything posted completes as flushed.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`].
    pub fn to_error(&self) -> Result<(), Error> {
        let mut raw = ibv_qp_attr::zeroed();
        raw.qp_state = IBV_QPS_ERR;
        self.modify((raw, IBV_QP_STATE))
    }

    fn modify(&self, (mut raw, mask): (ibv_qp_attr, u32)) -> Result<(), Error> {
        // SAFETY: the pair is alive.
        Ok(unsafe { result::modify_qp(self.library(), self.qp, &mut raw, mask) }?)
    }

    /// Posts a request of the send queue.
    ///
    /// # Safety
    ///
    /// Until the request has completed (its own completion, a later one's of this queue, or the end of the pair): the
    /// memory of its segments stays registered and allocated, nobody writes to what is sent or written from, and
    /// nobody reads or writes what is read into. Inline segments are readable memory during the call only.
    ///
    /// # Errors
    ///
    /// [`VerbsError`]: ENOMEM when the queue is full; EINVAL in a state that does not send, for more segments or inline
    /// bytes than the pair takes, or an operation that it does not.
    pub unsafe fn post_send(&self, request: &SendRequest<'_>) -> Result<(), VerbsError> {
        // SAFETY: the pair is alive, and the request lives through the call; the rest is the caller's.
        unsafe { result::post_send(self.qp, &mut request.raw()) }.map_err(|(error, _)| error)
    }

    /// Posts requests of the send queue, in this order; at most 32 with one call of the library.
    ///
    /// # Safety
    ///
    /// As of [`post_send`](Self::post_send), for every request that was posted.
    ///
    /// # Errors
    ///
    /// [`PostError`]: which request failed, and why. Those before it are posted.
    pub unsafe fn post_sends(&self, requests: &[SendRequest<'_>]) -> Result<(), PostError> {
        let mut posted = 0;
        let mut raw = [ibv_send_wr::zeroed(); BATCH];
        for requests in requests.chunks(BATCH) {
            let first = raw.as_mut_ptr();
            for (index, request) in requests.iter().enumerate() {
                raw[index] = request.raw();
                if index + 1 < requests.len() {
                    // SAFETY: within `raw`: a chunk is not longer.
                    raw[index].next = unsafe { first.add(index + 1) };
                }
            }
            // SAFETY: the pair is alive, and the list lives through the call; the rest is the caller's.
            unsafe { result::post_send(self.qp, first) }.map_err(|(source, bad)| PostError {
                posted: posted + before(first, bad, requests.len()),
                source,
            })?;
            posted += requests.len();
        }
        Ok(())
    }

    /// Posts a request of the receive queue.
    ///
    /// # Safety
    ///
    /// Until the request has completed (its own completion, or the end of the pair): the memory of its segments stays
    /// registered and allocated, and nobody reads or writes it.
    ///
    /// # Errors
    ///
    /// [`VerbsError`]: ENOMEM when the queue is full; EINVAL in state *reset*, or for more segments than the pair takes.
    pub unsafe fn post_receive(&self, request: &ReceiveRequest<'_>) -> Result<(), VerbsError> {
        // SAFETY: the pair is alive, and the request lives through the call; the rest is the caller's.
        unsafe { result::post_recv(self.qp, &mut request.raw()) }.map_err(|(error, _)| error)
    }

    /// Posts requests of the receive queue, in this order; at most 32 with one call of the library.
    ///
    /// # Safety
    ///
    /// As of [`post_receive`](Self::post_receive), for every request that was posted.
    ///
    /// # Errors
    ///
    /// [`PostError`]: which request failed, and why. Those before it are posted.
    pub unsafe fn post_receives(&self, requests: &[ReceiveRequest<'_>]) -> Result<(), PostError> {
        let mut posted = 0;
        let mut raw = [ibv_recv_wr::zeroed(); BATCH];
        for requests in requests.chunks(BATCH) {
            let first = raw.as_mut_ptr();
            for (index, request) in requests.iter().enumerate() {
                raw[index] = request.raw();
                if index + 1 < requests.len() {
                    // SAFETY: within `raw`: a chunk is not longer.
                    raw[index].next = unsafe { first.add(index + 1) };
                }
            }
            // SAFETY: as above.
            unsafe { result::post_recv(self.qp, first) }.map_err(|(source, bad)| PostError {
                posted: posted + before(first, bad, requests.len()),
                source,
            })?;
            posted += requests.len();
        }
        Ok(())
    }

    fn library(&self) -> &crate::Library {
        self.domain.context().library()
    }
}

/// How many of a list's `count` requests lie before `bad`. A library that names none of them, or fails without naming
/// one, has posted none.
fn before<T>(first: *const T, bad: *const T, count: usize) -> usize {
    let index = (bad.addr().wrapping_sub(first.addr())) / size_of::<T>();
    if bad.is_null() || index >= count { 0 } else { index }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: nothing has the pointer any more.
        if let Err(error) = unsafe { result::destroy_qp(self.library(), self.qp) } {
            tracing::warn!("{self:?}: {error}");
        }
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueuePair({:?}, number {})", self.queues[0].context(), self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_before_the_bad_one_are_counted() {
        let list = [0_u64; 4];
        let at = |index: usize| &raw const list[index];
        assert_eq!(before(at(0), at(0), 4), 0);
        assert_eq!(before(at(0), at(3), 4), 3);
        assert_eq!(before(at(0), ptr::null(), 4), 0);
        assert_eq!(before(at(1), at(0), 3), 0);
    }
}
