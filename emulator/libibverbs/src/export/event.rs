//! Asynchronous events.

use std::ffi::{c_char, c_int, c_uint};

use crate::abi::*;
use crate::completion::QUEUES;
use crate::context::CONTEXTS;
use crate::pair::HANDLES;

pub(super) unsafe extern "C" fn ibv_get_async_event(
    context: *mut ibv_context,
    event: *mut ibv_async_event,
) -> c_int {
    // This one fails by -1 and `errno`, in every version.
    let answer = guard("ibv_get_async_event", || {
        let context = CONTEXTS.get(context)?;
        if event.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        let found = context.events.next()?;
        // SAFETY: not null, and so valid for a write by the C API's contract.
        unsafe { event.write(found) };
        Ok(())
    });
    minus_one(answer)
}

pub(super) unsafe extern "C" fn ibv_ack_async_event(event: *mut ibv_async_event) {
    if event.is_null() {
        return;
    }
    // SAFETY: not null, and so an event that was got by the C API's contract; its type says which field it has.
    let (element, kind) = unsafe { ((*event).element, (*event).event_type) };
    match kind {
        EVENT_CQ_ERR => {
            // SAFETY: as above.
            if let Ok(cq) = QUEUES.get(unsafe { element.cq }) {
                cq.events.acknowledge(1);
            }
        }
        EVENT_QP_FATAL | EVENT_QP_REQ_ERR | EVENT_QP_ACCESS_ERR | EVENT_COMM_EST => {
            // SAFETY: as above.
            if let Ok(pair) = HANDLES.get(unsafe { element.qp }) {
                pair.events.acknowledge(1);
            }
        }
        _ => {}
    }
}

pub(super) extern "C" fn ibv_event_type_str(event: c_uint) -> *const c_char {
    let text = match event {
        EVENT_CQ_ERR => c"CQ error",
        EVENT_QP_FATAL => c"local work queue catastrophic error",
        EVENT_QP_REQ_ERR => c"invalid request local work queue error",
        EVENT_QP_ACCESS_ERR => c"local access violation work queue error",
        EVENT_COMM_EST => c"communication established",
        EVENT_PORT_ACTIVE => c"port active",
        EVENT_PORT_ERR => c"port error",
        _ => c"unknown",
    };
    text.as_ptr()
}
