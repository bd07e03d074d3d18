//! Open devices, and protection domains.

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;

use crate::abi::*;
use crate::adapter::Adapter;
use crate::completion::Cq;
use crate::event::{EventQueue, Unacknowledged};
use crate::object::{CObject, Users, c_mutex};
use crate::pair::Pair;

/// Something that happened to a device.
pub(crate) enum AsyncEvent {
    /// To its port: what.
    Port(u32),
    /// To a queue pair.
    Pair(Arc<Pair>, u32),
    /// To a completion queue.
    Queue(Arc<Cq>, u32),
}

/// An open device.
pub(crate) struct Context {
    pub(crate) raw: CObject<ibv_context>,
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) events: EventQueue<AsyncEvent>,
}

/// A protection domain.
pub(crate) struct Pd {
    pub(crate) raw: CObject<ibv_pd>,
    pub(crate) context: Arc<Context>,
    pub(crate) users: Users,
}

/// All open devices.
pub(crate) static CONTEXTS: Registry<Context> = Registry::new();
/// All protection domains.
pub(crate) static DOMAINS: Registry<Pd> = Registry::new();

impl Context {
    pub(crate) fn open(
        device: *mut ibv_device,
        adapter: Arc<Adapter>,
        ops: ibv_context_ops,
    ) -> Answer<Arc<Self>> {
        let events = EventQueue::new()?;
        let raw = CObject::new(ibv_context {
            device,
            ops,
            // What commands would go through; no program has a use for it.
            cmd_fd: -1,
            async_fd: events.fd(),
            num_comp_vectors: 1,
            mutex: c_mutex(),
            abi_compat: ptr::null_mut(),
        });
        let context = Arc::new(Self { raw, adapter, events });
        context.adapter.opened(&context);
        CONTEXTS.insert(context.raw.pointer(), Arc::clone(&context));
        Ok(context)
    }

    /// The next event, which is now to be acknowledged.
    pub(crate) fn next_event(&self) -> Answer<ibv_async_event> {
        let event = self.events.pop(|event| match event {
            AsyncEvent::Port(_) => {}
            AsyncEvent::Pair(pair, _) => pair.events.add(),
            AsyncEvent::Queue(cq, _) => cq.events.add(),
        })?;
        let (element, event_type) = match event {
            AsyncEvent::Port(event) => (ibv_async_element { port_num: 1 }, event),
            AsyncEvent::Pair(pair, event) => (ibv_async_element { qp: pair.raw.pointer() }, event),
            AsyncEvent::Queue(cq, event) => (ibv_async_element { cq: cq.raw.pointer() }, event),
        };
        Ok(ibv_async_event { element, event_type })
    }

    /// Takes back the events of something that is to be destroyed, and waits for the acknowledgements of those that
    /// were got.
    pub(crate) fn end_events(&self, concerns: impl Fn(&AsyncEvent) -> bool, unacknowledged: &Unacknowledged) {
        self.events.withdraw(concerns);
        unacknowledged.wait();
    }
}

impl Pd {
    pub(crate) fn new(context: Arc<Context>) -> Arc<Self> {
        let raw = CObject::new(ibv_pd { context: context.raw.pointer(), handle: 0 });
        let pd = Arc::new(Self { raw, context, users: Users::default() });
        DOMAINS.insert(pd.raw.pointer(), Arc::clone(&pd));
        pd
    }

    pub(crate) fn free(handle: *mut ibv_pd) -> Answer<c_int> {
        if DOMAINS.get(handle)?.users.any() {
            return Err(Errno(libc::EBUSY));
        }
        DOMAINS.remove(handle)?;
        Ok(0)
    }
}
