//! Completion queues and their channels.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use crate::abi::*;
use crate::completion::{CHANNELS, Channel, Cq, QUEUES};
use crate::context::CONTEXTS;
use crate::process::Process;

pub(super) extern "C" fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    pointer("ibv_create_comp_channel", || {
        Process::get()?;
        Ok(Channel::new(CONTEXTS.get(context)?)?.raw.pointer())
    })
}

pub(super) extern "C" fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    number("ibv_destroy_comp_channel", || {
        if CHANNELS.get(channel)?.users.any() {
            return Err(Errno(libc::EBUSY));
        }
        CHANNELS.remove(channel)?;
        Ok(0)
    })
}

pub(super) unsafe extern "C" fn ibv_get_cq_event(
    channel: *mut ibv_comp_channel,
    cq: *mut *mut ibv_cq,
    cq_context: *mut *mut c_void,
) -> c_int {
    // This one fails by -1 and `errno`, in every version.
    let answer = guard("ibv_get_cq_event", || {
        let channel = CHANNELS.get(channel)?;
        if cq.is_null() || cq_context.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        let found = channel.next_event()?;
        // SAFETY: not null, and so valid for writes by the C API's contract; the queue's structure is alive, because it
        // cannot be destroyed before this event is acknowledged.
        unsafe {
            cq.write(found.raw.pointer());
            cq_context.write((*found.raw.pointer()).cq_context);
        }
        Ok(())
    });
    minus_one(answer)
}

pub(super) extern "C" fn ibv_ack_cq_events(cq: *mut ibv_cq, count: c_uint) {
    if let Ok(cq) = QUEUES.get(cq) {
        cq.completion_events.acknowledge(count);
    }
}

pub(super) extern "C" fn ibv_create_cq(
    context: *mut ibv_context,
    entries: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    vector: c_int,
) -> *mut ibv_cq {
    pointer("ibv_create_cq", || {
        Process::get()?;
        if vector != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let channel = if channel.is_null() { None } else { Some(CHANNELS.get(channel)?) };
        Ok(Cq::new(CONTEXTS.get(context)?, entries, cq_context, channel)?.raw.pointer())
    })
}

pub(super) extern "C" fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int {
    number("ibv_destroy_cq", || Cq::destroy(cq))
}

/// In the table of the context, not exported: `ibv_poll_cq` is inline in C.
pub(super) unsafe extern "C" fn ibv_poll_cq(cq: *mut ibv_cq, count: c_int, places: *mut ibv_wc) -> c_int {
    let answer = guard("ibv_poll_cq", || {
        let cq = QUEUES.get(cq)?;
        let count = usize::try_from(count).map_err(|_| Errno(libc::EINVAL))?;
        if count > 0 && places.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: there is room for `count` completions by the C API's contract.
        cq.poll(count, |index, wc| unsafe { places.add(index).write(wc) })
    });
    match answer {
        Ok(count) => count as c_int,
        Err(Errno(errno)) => -errno,
    }
}

/// In the table of the context.
pub(super) unsafe extern "C" fn ibv_req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    number("ibv_req_notify_cq", || {
        let cq: Arc<Cq> = QUEUES.get(cq)?;
        cq.request_notification(solicited_only != 0);
        Ok(0)
    })
}

pub(super) extern "C" fn ibv_wc_status_str(status: c_uint) -> *const c_char {
    let text = match status {
        WC_SUCCESS => c"success",
        WC_LOC_LEN_ERR => c"local length error",
        WC_LOC_QP_OP_ERR => c"local QP operation error",
        WC_LOC_PROT_ERR => c"local protection error",
        WC_WR_FLUSH_ERR => c"Work Request Flushed Error",
        WC_REM_INV_REQ_ERR => c"remote invalid request error",
        WC_REM_ACCESS_ERR => c"remote access error",
        WC_REM_OP_ERR => c"remote operation error",
        WC_RETRY_EXC_ERR => c"transport retry counter exceeded",
        WC_RNR_RETRY_EXC_ERR => c"RNR retry counter exceeded",
        // No other status comes from this stand-in.
        _ => c"unknown",
    };
    text.as_ptr()
}
