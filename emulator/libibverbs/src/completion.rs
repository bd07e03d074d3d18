//! Completion queues and the channels that tell of them.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::abi::*;
use crate::context::Context;
use crate::count;
use crate::event::{AsyncEvent, EventQueue, Unacknowledged};
use crate::object::{CObject, Use, Users, c_condition, c_mutex};

/// Most entries of a completion queue, as of the usual adapters.
pub(crate) const MAX_ENTRIES: i32 = 4_194_303;

/// A completion in its queue.
pub(crate) struct Entry {
    pub(crate) wc: ibv_wc,
    /// Places of a work queue that are free again when a program has polled this.
    pub(crate) frees: Option<(Arc<AtomicU32>, u32)>,
    pub(crate) solicited: bool,
}

/// What a queue is asked to tell its channel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Solicited,
    Any,
}

struct Entries {
    entries: VecDeque<Entry>,
    capacity: usize,
    asked: Asked,
    overrun: bool,
}

/// A completion queue.
pub(crate) struct Cq {
    pub(crate) raw: CObject<ibv_cq>,
    pub(crate) context: Arc<Context>,
    pub(crate) users: Users,
    /// Asynchronous events.
    pub(crate) events: Arc<Unacknowledged>,
    /// Events of its channel.
    pub(crate) completion_events: Unacknowledged,
    channel: Option<(Arc<Channel>, Use)>,
    inner: Mutex<Entries>,
}

/// A channel for events of completion queues.
pub(crate) struct Channel {
    pub(crate) raw: CObject<ibv_comp_channel>,
    context: Arc<Context>,
    pub(crate) users: Users,
    events: EventQueue<Arc<Cq>>,
}

/// All completion queues.
pub(crate) static QUEUES: Registry<Cq> = Registry::new();
/// All channels.
pub(crate) static CHANNELS: Registry<Channel> = Registry::new();

impl Channel {
    pub(crate) fn new(context: Arc<Context>) -> Answer<Arc<Self>> {
        let events = EventQueue::new()?;
        let raw =
            CObject::new(ibv_comp_channel { context: context.raw.pointer(), fd: events.fd(), refcnt: 0 });
        let channel = Arc::new(Self { raw, context, users: Users::default(), events });
        CHANNELS.insert(channel.raw.pointer(), Arc::clone(&channel));
        Ok(channel)
    }

    /// The queue that has the next event, which is now to be acknowledged.
    pub(crate) fn next_event(&self) -> Answer<Arc<Cq>> {
        self.events.pop(|cq| cq.completion_events.add())
    }
}

impl Cq {
    pub(crate) fn new(
        context: Arc<Context>,
        entries: c_int,
        cq_context: *mut c_void,
        channel: Option<Arc<Channel>>,
    ) -> Answer<Arc<Self>> {
        if !(1..=MAX_ENTRIES).contains(&entries) {
            return Err(Errno(libc::EINVAL));
        }
        if channel.as_ref().is_some_and(|channel| !Arc::ptr_eq(&channel.context, &context)) {
            return Err(Errno(libc::EINVAL));
        }
        let raw = CObject::new(ibv_cq {
            context: context.raw.pointer(),
            channel: channel.as_ref().map_or(ptr::null_mut(), |channel| channel.raw.pointer()),
            cq_context,
            handle: 0,
            cqe: entries,
            mutex: c_mutex(),
            cond: c_condition(),
            comp_events_completed: 0,
            async_events_completed: 0,
        });
        let inner = Entries {
            entries: VecDeque::new(),
            capacity: entries as usize,
            asked: Asked::Nothing,
            overrun: false,
        };
        let channel = channel.map(|channel| {
            let user = channel.users.add();
            (channel, user)
        });
        let cq = Arc::new(Self {
            raw,
            context,
            users: Users::default(),
            events: Arc::default(),
            completion_events: Unacknowledged::default(),
            channel,
            inner: Mutex::new(inner),
        });
        QUEUES.insert(cq.raw.pointer(), Arc::clone(&cq));
        count::add(&count::live_cq, 1);
        Ok(cq)
    }

    /// Adds a completion. A queue that is full is broken from then on.
    pub(crate) fn push(self: &Arc<Self>, entry: Entry) {
        let mut inner = self.lock();
        if inner.overrun {
            return;
        }
        if inner.entries.len() == inner.capacity {
            inner.overrun = true;
            drop(inner);
            let element = ibv_async_element { cq: self.raw.pointer() };
            self.context.events.push(AsyncEvent::of_object(element, EVENT_CQ_ERR, &self.events));
            return;
        }
        let tells = match inner.asked {
            Asked::Nothing => false,
            Asked::Solicited => entry.solicited || entry.wc.status != WC_SUCCESS,
            Asked::Any => true,
        };
        inner.entries.push_back(entry);
        if tells {
            inner.asked = Asked::Nothing;
            if let Some((channel, _)) = &self.channel {
                channel.events.push(Arc::clone(self));
            }
        }
    }

    /// Takes completions out, at most `count`, and gives each to `take`. EIO when the queue is broken and empty.
    pub(crate) fn poll(&self, count: usize, mut take: impl FnMut(usize, ibv_wc)) -> Answer<usize> {
        let mut inner = self.lock();
        if inner.overrun && inner.entries.is_empty() {
            return Err(Errno(libc::EIO));
        }
        let count = count.min(inner.entries.len());
        for index in 0..count {
            let Some(entry) = inner.entries.pop_front() else { return Ok(index) };
            if let Some((places, free)) = entry.frees {
                places.fetch_sub(free, SeqCst);
            }
            count::add(&count::completions, 1);
            if entry.wc.status != WC_SUCCESS {
                count::add(&count::failed_completions, 1);
            }
            take(index, entry.wc);
        }
        Ok(count)
    }

    pub(crate) fn request_notification(&self, solicited_only: bool) {
        let mut inner = self.lock();
        // Who asked for any is not told of fewer.
        inner.asked = match (solicited_only, inner.asked) {
            (true, Asked::Any) | (false, _) => Asked::Any,
            (true, _) => Asked::Solicited,
        };
    }

    /// Forgets the completions of a queue pair that is destroyed or reset.
    pub(crate) fn forget_pair(&self, number: u32) {
        self.lock().entries.retain(|entry| entry.wc.qp_num != number);
    }

    pub(crate) fn destroy(handle: *mut ibv_cq) -> Answer<c_int> {
        let cq = QUEUES.get(handle)?;
        if cq.users.any() {
            return Err(Errno(libc::EBUSY));
        }
        if let Some((channel, _)) = &cq.channel {
            channel.events.withdraw(|other| Arc::ptr_eq(other, &cq));
        }
        cq.context.events.end(&cq.events);
        cq.completion_events.wait();
        if let Some((_, user)) = &cq.channel {
            user.end();
        }
        QUEUES.remove(handle)?;
        count::sub(&count::live_cq, 1);
        Ok(0)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
