//! Queue pairs.

use std::ffi::c_int;

use crate::abi::*;
use crate::completion::QUEUES;
use crate::context::DOMAINS;
use crate::engine;
use crate::pair::{HANDLES, Pair, attributes, post};
use crate::process::Process;

pub(super) unsafe extern "C" fn ibv_create_qp(pd: *mut ibv_pd, wanted: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    pointer("ibv_create_qp", || {
        Process::get()?;
        let pd = DOMAINS.get(pd)?;
        if wanted.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: not null, and so valid by the C API's contract.
        let wanted = unsafe { wanted.as_mut_unchecked() };
        let (send, receive) = (QUEUES.get(wanted.send_cq)?, QUEUES.get(wanted.recv_cq)?);
        let pair = Pair::new(pd, send, receive, wanted, engine::start)?;
        wanted.cap = pair.capacity;
        Ok(pair.raw.pointer())
    })
}

pub(super) unsafe extern "C" fn ibv_modify_qp(
    qp: *mut ibv_qp,
    given: *mut ibv_qp_attr,
    mask: c_int,
) -> c_int {
    number("ibv_modify_qp", || {
        Process::get()?;
        let pair = HANDLES.get(qp)?;
        if given.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: not null, and so valid by the C API's contract.
        attributes::modify(&pair, unsafe { given.as_ref_unchecked() }, mask as u32)
    })
}

pub(super) unsafe extern "C" fn ibv_query_qp(
    qp: *mut ibv_qp,
    place: *mut ibv_qp_attr,
    _mask: c_int,
    init: *mut ibv_qp_init_attr,
) -> c_int {
    number("ibv_query_qp", || {
        let pair = HANDLES.get(qp)?;
        if place.is_null() || init.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        let (attributes, made_with) = attributes::query(&pair);
        // SAFETY: not null, and so valid for writes by the C API's contract.
        unsafe {
            place.write(attributes);
            init.write(made_with);
        }
        Ok(0)
    })
}

pub(super) extern "C" fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int {
    number("ibv_destroy_qp", || Pair::destroy(qp))
}

/// In the table of the context, not exported: `ibv_post_send` is inline in C.
pub(super) unsafe extern "C" fn ibv_post_send(
    qp: *mut ibv_qp,
    list: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    let mut request = list;
    let answer = number("ibv_post_send", || {
        Process::get()?;
        let pair = HANDLES.get(qp)?;
        let mut inner = pair.lock();
        let mut posted = Ok(0);
        // SAFETY: a list of requests that are valid by the C API's contract, which ends with null.
        while let Some(current) = unsafe { request.as_ref() } {
            // SAFETY: as above.
            if let Err(error) = unsafe { post::send(&pair, &mut inner, current) } {
                posted = Err(error);
                break;
            }
            request = current.next;
        }
        drop(inner);
        post::ring(&pair);
        posted
    });
    if answer != 0 && !bad.is_null() {
        // SAFETY: not null, and so valid for a write by the C API's contract.
        unsafe { bad.write(request) };
    }
    answer
}

/// In the table of the context.
pub(super) unsafe extern "C" fn ibv_post_recv(
    qp: *mut ibv_qp,
    list: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    let mut request = list;
    let answer = number("ibv_post_recv", || {
        Process::get()?;
        let pair = HANDLES.get(qp)?;
        // SAFETY: a list of requests that are valid by the C API's contract, which ends with null.
        while let Some(current) = unsafe { request.as_ref() } {
            // SAFETY: as above.
            unsafe { post::receive(&pair, current) }?;
            request = current.next;
        }
        Ok(0)
    });
    if answer != 0 && !bad.is_null() {
        // SAFETY: not null, and so valid for a write by the C API's contract.
        unsafe { bad.write(request) };
    }
    answer
}
