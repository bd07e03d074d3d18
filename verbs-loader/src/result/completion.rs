//! Completion queues and their channels.

#![allow(clippy::missing_safety_doc)] // the module above has the one contract

use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};

use super::{Verb, errno, not_there, number, pointer, set_errno};
use crate::sys::*;
use crate::{Error, Library, VerbsError};

/// `ibv_create_comp_channel`.
///
/// # Errors
///
/// The verb's; [`Error::TooOld`].
pub unsafe fn create_comp_channel(
    library: &Library,
    context: NonNull<ibv_context>,
) -> Result<NonNull<ibv_comp_channel>, Error> {
    let name = "ibv_create_comp_channel";
    let verb = library.functions().ibv_create_comp_channel.ok_or_else(|| library.too_old(name))?;
    // SAFETY: the caller's.
    Ok(pointer(name, || unsafe { verb(context.as_ptr()) })?)
}

/// `ibv_destroy_comp_channel`.
///
/// # Errors
///
/// The verb's, EBUSY while completion queues use it; [`Error::TooOld`].
pub unsafe fn destroy_comp_channel(
    library: &Library,
    channel: NonNull<ibv_comp_channel>,
) -> Result<(), Error> {
    let name = "ibv_destroy_comp_channel";
    let verb = library.functions().ibv_destroy_comp_channel.ok_or_else(|| library.too_old(name))?;
    // SAFETY: the caller's.
    Ok(number(name, || unsafe { verb(channel.as_ptr()) })?)
}

/// `ibv_get_cq_event`: waits for one, unless the channel's descriptor does not block. The queue and its context.
///
/// # Errors
///
/// The verb's, EAGAIN when there is none and the descriptor does not block; [`Error::TooOld`].
pub unsafe fn get_cq_event(
    library: &Library,
    channel: NonNull<ibv_comp_channel>,
) -> Result<(*mut ibv_cq, *mut c_void), Error> {
    let name = "ibv_get_cq_event";
    let verb = library.functions().ibv_get_cq_event.ok_or_else(|| library.too_old(name))?;
    let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the caller's; the places for the answer are valid.
    number(name, || unsafe { verb(channel.as_ptr(), &mut cq, &mut context) })?;
    Ok((cq, context))
}

/// `ibv_ack_cq_events`. Every event is acknowledged, or the queue can never be destroyed.
///
/// # Errors
///
/// [`Error::TooOld`].
pub unsafe fn ack_cq_events(library: &Library, cq: NonNull<ibv_cq>, count: u32) -> Result<(), Error> {
    let verb = library.functions().ibv_ack_cq_events.ok_or_else(|| library.too_old("ibv_ack_cq_events"))?;
    // SAFETY: the caller's.
    unsafe { verb(cq.as_ptr(), count) };
    Ok(())
}

/// `ibv_create_cq` with completion vector 0.
///
/// # Errors
///
/// The verb's.
pub unsafe fn create_cq(
    library: &Library,
    context: NonNull<ibv_context>,
    entries: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
) -> Verb<NonNull<ibv_cq>> {
    // SAFETY: the caller's.
    pointer("ibv_create_cq", || unsafe {
        (library.functions().ibv_create_cq)(context.as_ptr(), entries, cq_context, channel, 0)
    })
}

/// `ibv_destroy_cq`: waits until all its events are acknowledged.
///
/// # Errors
///
/// The verb's; EBUSY while queue pairs use it.
pub unsafe fn destroy_cq(library: &Library, cq: NonNull<ibv_cq>) -> Verb<()> {
    // SAFETY: the caller's.
    number("ibv_destroy_cq", || unsafe { (library.functions().ibv_destroy_cq)(cq.as_ptr()) })
}

/// `ibv_poll_cq`, by the context's table: writes up to `count` completions and answers how many.
///
/// # Errors
///
/// The verb's; the queue may have overrun.
pub unsafe fn poll_cq(cq: NonNull<ibv_cq>, count: c_int, completions: *mut ibv_wc) -> Verb<usize> {
    let call = "ibv_poll_cq";
    // SAFETY: a queue that is alive has a context that is.
    let verb = unsafe { (*(*cq.as_ptr()).context).ops.poll_cq }.ok_or_else(|| not_there(call))?;
    set_errno(0);
    // SAFETY: the caller's.
    match unsafe { verb(cq.as_ptr(), count, completions) } {
        -1 if errno() != 0 => Err(VerbsError { call, errno: errno() }),
        answer if answer < 0 => Err(VerbsError { call, errno: answer.saturating_abs() }),
        answer => Ok(answer as usize),
    }
}

/// `ibv_req_notify_cq`, by the context's table: the next completion (or only a solicited or failed one) makes an event.
///
/// # Errors
///
/// The verb's.
pub unsafe fn req_notify_cq(cq: NonNull<ibv_cq>, solicited_only: bool) -> Verb<()> {
    let call = "ibv_req_notify_cq";
    // SAFETY: a queue that is alive has a context that is.
    let verb = unsafe { (*(*cq.as_ptr()).context).ops.req_notify_cq }.ok_or_else(|| not_there(call))?;
    // SAFETY: the caller's.
    number(call, || unsafe { verb(cq.as_ptr(), solicited_only.into()) })
}
