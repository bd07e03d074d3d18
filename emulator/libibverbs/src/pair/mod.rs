//! Reliable connected queue pairs.

pub(crate) mod attributes;
pub(crate) mod post;
pub(crate) mod requester;
pub(crate) mod responder;

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::abi::*;
use crate::address::PortAddress;
use crate::command::{self, Command};
use crate::completion::{Cq, Entry};
use crate::context::{Context, Pd};
use crate::event::{AsyncEvent, Unacknowledged};
use crate::object::{CObject, Use, c_condition, c_mutex};
use crate::{count, fault};

/// Most work requests of a queue.
pub(crate) const MAX_REQUESTS: u32 = 32_768;
/// Most segments of a work request.
pub(crate) const MAX_SEGMENTS: u32 = 30;
/// Most bytes that are inline.
pub(crate) const MAX_INLINE: u32 = 1024;
/// Most reads that are under way at once.
pub(crate) const MAX_READS: u8 = 16;
/// Queue pairs of a process: the lower half of their number.
pub(crate) const MAX_PAIRS: u32 = 1 << 12;

/// A queue pair.
pub(crate) struct Pair {
    pub(crate) raw: CObject<ibv_qp>,
    pub(crate) number: u32,
    pub(crate) pd: Arc<Pd>,
    pub(crate) send_cq: Arc<Cq>,
    pub(crate) receive_cq: Arc<Cq>,
    pub(crate) capacity: ibv_qp_cap,
    pub(crate) signal_all: bool,
    pub(crate) events: Arc<Unacknowledged>,
    /// Places of the send queue that are taken; they are free again when a completion that covers them is polled.
    pub(crate) sends: Arc<AtomicU32>,
    /// Places of the receive queue that are taken.
    pub(crate) receives: Arc<AtomicU32>,
    inner: Mutex<Inner>,
    uses: [Use; 3],
}

/// A request of the send queue.
pub(crate) struct Send {
    wr_id: u64,
    opcode: u32,
    flags: u32,
    imm: u32,
    address: u64,
    rkey: u32,
    length: u64,
    source: Source,
    /// Bytes that a read has got.
    received: u64,
    /// How it ended, once that is known; it completes when all before it have.
    outcome: Option<u32>,
}

/// Where a request's bytes are.
pub(crate) enum Source {
    Segments(Segments),
    Inline(Vec<u8>),
}

/// The segments of a request.
pub(crate) enum Segments {
    /// The usual, for which nothing is allocated.
    One(ibv_sge),
    Many(Vec<ibv_sge>),
}

impl std::ops::Deref for Segments {
    type Target = [ibv_sge];

    fn deref(&self) -> &[ibv_sge] {
        match self {
            Self::One(segment) => std::slice::from_ref(segment),
            Self::Many(segments) => segments,
        }
    }
}

/// A request of the receive queue.
pub(crate) struct Receive {
    wr_id: u64,
    segments: Segments,
}

/// A message that is arriving.
struct Incoming {
    message: u32,
    attempt: u64,
    opcode: u32,
    /// The receive that it uses up.
    receive: Option<Receive>,
    length: u32,
    received: u32,
    address: u64,
    rkey: u32,
}

/// Why a queue pair waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// The peer has no receive posted.
    NotReady,
    /// Nobody hears it.
    Lost,
}

/// What changes about a queue pair.
pub(crate) struct Inner {
    pub(crate) state: u32,
    /// Whether it is being destroyed.
    gone: bool,
    pub(crate) attributes: ibv_qp_attr,
    /// Where its messages go, and the port that they come from.
    peer: PortAddress,
    source: PortAddress,
    sends: VecDeque<Send>,
    receives: VecDeque<Receive>,
    /// The number of the first message in `sends`.
    first: u32,
    /// How many of `sends` are on the way, and bytes of the next one that are.
    cursor: usize,
    offset: u64,
    attempt: u64,
    reads: u32,
    retries_left: u8,
    rnr_left: u8,
    pause: Option<(Instant, Pause)>,
    /// Places of the send queue that the next completion frees, beside its own.
    unsignalled: u32,
    /// The next message of the peer.
    expected: u32,
    /// Attempts of the peer before this one are not heard any more.
    heard_from: u64,
    incoming: Option<Incoming>,
}

/// All queue pairs, by the address of their structure.
pub(crate) static HANDLES: Registry<Pair> = Registry::new();
/// All queue pairs, by their number.
static NUMBERS: RwLock<Option<HashMap<u32, Arc<Pair>>>> = RwLock::new(None);

/// The queue pair of a number.
pub(crate) fn find(number: u32) -> Option<Arc<Pair>> {
    let numbers = NUMBERS.read().unwrap_or_else(PoisonError::into_inner);
    numbers.as_ref()?.get(&number).cloned()
}

/// All queue pairs.
pub(crate) fn all() -> Vec<Arc<Pair>> {
    let numbers = NUMBERS.read().unwrap_or_else(PoisonError::into_inner);
    numbers.as_ref().map_or_else(Vec::new, |numbers| numbers.values().cloned().collect())
}

/// How much shorter than real ones waits are: `MESHREDUCE_VERBS_TIME_DIVISOR`, 32 if it is not set.
fn divisor() -> f64 {
    use std::sync::OnceLock;
    static DIVISOR: OnceLock<f64> = OnceLock::new();
    *DIVISOR.get_or_init(|| {
        let given = std::env::var("MESHREDUCE_VERBS_TIME_DIVISOR").ok();
        let given = given.and_then(|text| text.parse::<f64>().ok());
        given.filter(|divisor| divisor.is_finite() && *divisor > 0.0).unwrap_or(32.0)
    })
}

/// A time of the hardware, as long as it is here.
fn scaled(microseconds: f64) -> Duration {
    Duration::from_secs_f64(microseconds / 1e6 / divisor())
}

/// An acknowledgement may take 4.096 us times two to the power of its code.
fn timeout(code: u8) -> Duration {
    scaled(4.096 * f64::from(1_u32 << code.min(31)))
}

/// How long a peer without a receive is given, by its code (InfiniBand Architecture Specification, table of RNR NAK
/// timer fields).
fn rnr_delay(code: u8) -> Duration {
    const MICROSECONDS: [f64; 32] = [
        655_360.0, 10.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 160.0, 240.0, 320.0, 480.0, 640.0, 960.0,
        1_280.0, 1_920.0, 2_560.0, 3_840.0, 5_120.0, 7_680.0, 10_240.0, 15_360.0, 20_480.0, 30_720.0,
        40_960.0, 61_440.0, 81_920.0, 122_880.0, 163_840.0, 245_760.0, 327_680.0, 491_520.0,
    ];
    scaled(MICROSECONDS[usize::from(code & 31)])
}

impl Pair {
    /// `slot` is asked once nothing else is wrong: the upper half of the number of each queue pair of this process.
    pub(crate) fn new(
        pd: Arc<Pd>,
        send_cq: Arc<Cq>,
        receive_cq: Arc<Cq>,
        wanted: &ibv_qp_init_attr,
        slot: impl FnOnce() -> Answer<u32>,
    ) -> Answer<Arc<Self>> {
        let capacity = wanted.cap;
        let of_one_device =
            Arc::ptr_eq(&send_cq.context, &pd.context) && Arc::ptr_eq(&receive_cq.context, &pd.context);
        if wanted.qp_type != QPT_RC || !wanted.srq.is_null() {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        if !of_one_device
            || capacity.max_send_wr > MAX_REQUESTS
            || capacity.max_recv_wr > MAX_REQUESTS
            || capacity.max_send_sge > MAX_SEGMENTS
            || capacity.max_recv_sge > MAX_SEGMENTS
            || capacity.max_inline_data > MAX_INLINE
        {
            return Err(Errno(libc::EINVAL));
        }
        let slot = slot()?;
        let mut numbers = NUMBERS.write().unwrap_or_else(PoisonError::into_inner);
        let numbers = numbers.get_or_insert_default();
        let number = free_number(slot, numbers).ok_or(Errno(libc::ENOMEM))?;
        let raw = CObject::new(ibv_qp {
            context: pd.context.raw.pointer(),
            qp_context: wanted.qp_context,
            pd: pd.raw.pointer(),
            send_cq: send_cq.raw.pointer(),
            recv_cq: receive_cq.raw.pointer(),
            srq: ptr::null_mut(),
            handle: number,
            qp_num: number,
            state: QPS_RESET,
            qp_type: QPT_RC,
            mutex: c_mutex(),
            cond: c_condition(),
            events_completed: 0,
        });
        let uses = [pd.users.add(), send_cq.users.add(), receive_cq.users.add()];
        let pair = Arc::new(Self {
            raw,
            number,
            pd,
            send_cq,
            receive_cq,
            capacity,
            signal_all: wanted.sq_sig_all != 0,
            events: Arc::default(),
            sends: Arc::default(),
            receives: Arc::default(),
            inner: Mutex::new(Inner::new()),
            uses,
        });
        numbers.insert(number, Arc::clone(&pair));
        HANDLES.insert(pair.raw.pointer(), Arc::clone(&pair));
        count::add(&count::live_qp, 1);
        Ok(pair)
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.pd.context
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `ibv_destroy_qp`: what is posted never completes, and completions that were not polled are gone.
    pub(crate) fn destroy(handle: *mut ibv_qp) -> Answer<c_int> {
        let pair = HANDLES.get(handle)?;
        {
            let mut inner = pair.lock();
            inner.gone = true;
            inner.clear();
        }
        if let Some(numbers) = NUMBERS.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            numbers.remove(&pair.number);
        }
        pair.context().events.end(&pair.events);
        pair.forget_completions();
        pair.uses.iter().for_each(Use::end);
        HANDLES.remove(handle)?;
        count::sub(&count::live_qp, 1);
        command::tell(Command::Work(pair.number));
        Ok(0)
    }

    fn forget_completions(&self) {
        self.send_cq.forget_pair(self.number);
        self.receive_cq.forget_pair(self.number);
        self.sends.store(0, SeqCst);
        self.receives.store(0, SeqCst);
    }

    /// Something that happened to it.
    fn tell(&self, event: u32) {
        let element = ibv_async_element { qp: self.raw.pointer() };
        self.context().events.push(AsyncEvent::of_object(element, event, &self.events));
    }

    /// A completion without what depends on the operation.
    fn completion(&self, wr_id: u64, status: u32, opcode: u32) -> ibv_wc {
        let failed = status != WC_SUCCESS;
        // What devices do leave in the field.
        let opcode = if failed && fault::garbage_opcode() { 0xdead_beef } else { opcode };
        ibv_wc {
            wr_id,
            status,
            opcode,
            vendor_err: vendor_error(status),
            byte_len: 0,
            imm_data: 0,
            qp_num: self.number,
            src_qp: 0,
            wc_flags: 0,
            pkey_index: 0,
            slid: 0,
            sl: 0,
            dlid_path_bits: 0,
        }
    }

    /// Completes a request of the send queue.
    fn complete_send(&self, inner: &mut Inner, send: &Send, status: u32) {
        let signalled = self.signal_all || send.flags & SEND_SIGNALED != 0;
        if status == WC_SUCCESS && !signalled {
            inner.unsignalled += 1;
            return;
        }
        let opcode = match send.opcode {
            WR_RDMA_READ => WC_RDMA_READ,
            WR_RDMA_WRITE | WR_RDMA_WRITE_WITH_IMM => WC_RDMA_WRITE,
            _ => WC_SEND,
        };
        let mut wc = self.completion(send.wr_id, status, opcode);
        if send.opcode == WR_RDMA_READ && status == WC_SUCCESS {
            wc.byte_len = send.length as u32;
        }
        let free = std::mem::take(&mut inner.unsignalled) + 1;
        self.send_cq.push(Entry { wc, frees: Some((Arc::clone(&self.sends), free)), solicited: false });
    }

    /// Completes a request of the receive queue that failed.
    fn fail_receive(&self, receive: &Receive, status: u32) {
        let wc = self.completion(receive.wr_id, status, WC_RECV);
        self.receive_cq.push(Entry { wc, frees: Some((Arc::clone(&self.receives), 1)), solicited: false });
    }

    /// Its first request fails, and with it the queue pair: all others come back flushed, in the order of their queues.
    fn fail(&self, inner: &mut Inner, status: u32) {
        if fault::receives_flushed_first() {
            self.flush_receives(inner);
        }
        if let Some(first) = inner.sends.pop_front() {
            self.complete_send(inner, &first, status);
        }
        self.flush(inner);
    }

    /// To the state *error*.
    pub(crate) fn flush(&self, inner: &mut Inner) {
        inner.state = QPS_ERR;
        inner.pause = None;
        while let Some(send) = inner.sends.pop_front() {
            self.complete_send(inner, &send, WC_WR_FLUSH_ERR);
        }
        inner.cursor = 0;
        inner.offset = 0;
        self.flush_receives(inner);
    }

    fn flush_receives(&self, inner: &mut Inner) {
        let arriving = inner.incoming.take().and_then(|incoming| incoming.receive);
        for receive in arriving.into_iter().chain(inner.receives.drain(..)) {
            self.fail_receive(&receive, WC_WR_FLUSH_ERR);
        }
    }
}

/// A number of this process that is free, after the last one that was given: a number is not used again soon.
fn free_number(slot: u32, taken: &HashMap<u32, Arc<Pair>>) -> Option<u32> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    (0..MAX_PAIRS)
        .map(|_| slot * MAX_PAIRS + NEXT.fetch_add(1, SeqCst) % MAX_PAIRS)
        .find(|number| !taken.contains_key(number))
}

/// The slot of the process that a queue pair is of.
pub(crate) fn slot_of(number: u32) -> u32 {
    number / MAX_PAIRS
}

/// What a usual adapter says beside the status.
fn vendor_error(status: u32) -> u32 {
    match status {
        WC_SUCCESS => 0,
        WC_WR_FLUSH_ERR => 0xf9,
        WC_RETRY_EXC_ERR => 0x81,
        WC_RNR_RETRY_EXC_ERR => 0x82,
        WC_REM_ACCESS_ERR => 0x88,
        WC_REM_INV_REQ_ERR => 0x8a,
        WC_LOC_PROT_ERR => 0x51,
        _ => 0x68,
    }
}

impl Inner {
    fn new() -> Self {
        let nobody = PortAddress { gid: [0; 16], kind: 0 };
        Self {
            state: QPS_RESET,
            gone: false,
            // SAFETY: a structure of numbers, which may all be zero.
            attributes: unsafe { std::mem::zeroed() },
            peer: nobody,
            source: nobody,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            first: 0,
            cursor: 0,
            offset: 0,
            attempt: first_attempt(),
            reads: 0,
            retries_left: 0,
            rnr_left: 0,
            pause: None,
            unsignalled: 0,
            expected: 0,
            heard_from: 0,
            incoming: None,
        }
    }

    /// As it was made; without completions.
    fn clear(&mut self) {
        *self = Self { gone: self.gone, ..Self::new() };
    }

    /// The queue pair that it is connected to.
    pub(crate) fn destination(&self) -> u32 {
        self.attributes.dest_qp_num
    }

    /// When it goes on, if it waits.
    pub(crate) fn resumes(&self) -> Option<Instant> {
        self.pause.map(|(at, _)| at)
    }
}

/// The first attempt of a connection: later than all those of earlier ones, whoever made them. Attempts are fewer than
/// nanoseconds.
fn first_attempt() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_those_of_the_specification_divided() {
        assert_eq!(timeout(14), scaled(67_108.864));
        assert_eq!(timeout(20), scaled(4_294_967.296));
        assert_eq!(rnr_delay(1), scaled(10.0));
        assert_eq!(rnr_delay(12), scaled(640.0));
        assert_eq!(rnr_delay(0), scaled(655_360.0));
        assert_eq!(rnr_delay(31), scaled(491_520.0));
    }
}
