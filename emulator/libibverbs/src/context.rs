//! Open devices, and protection domains.

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;

use crate::abi::*;
use crate::adapter::Adapter;
use crate::event::{AsyncEvent, EventQueue};
use crate::object::{CObject, Users, c_mutex};

/// An open device.
pub(crate) struct Context {
    pub(crate) raw: CObject<ibv_context>,
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) events: Arc<EventQueue<AsyncEvent>>,
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
        let events = Arc::new(EventQueue::new()?);
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
        context.adapter.opened(&context.events);
        CONTEXTS.insert(context.raw.pointer(), Arc::clone(&context));
        Ok(context)
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
