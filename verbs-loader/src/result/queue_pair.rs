//! Queue pairs.

#![allow(clippy::missing_safety_doc)] // the module above has the one contract

use std::ffi::c_int;
use std::ptr::{self, NonNull};

use super::{Verb, not_there, number, pointer};
use crate::sys::*;
use crate::{Library, VerbsError};

/// `ibv_create_qp`: `attributes` come back with the capacity that was given.
///
/// # Errors
///
/// The verb's.
pub unsafe fn create_qp(
    library: &Library,
    pd: NonNull<ibv_pd>,
    attributes: &mut ibv_qp_init_attr,
) -> Verb<NonNull<ibv_qp>> {
    // SAFETY: the caller's.
    pointer("ibv_create_qp", || unsafe { (library.functions().ibv_create_qp)(pd.as_ptr(), attributes) })
}

/// `ibv_modify_qp`.
///
/// # Errors
///
/// The verb's.
pub unsafe fn modify_qp(
    library: &Library,
    qp: NonNull<ibv_qp>,
    attributes: &mut ibv_qp_attr,
    mask: u32,
) -> Verb<()> {
    // SAFETY: the caller's.
    number("ibv_modify_qp", || unsafe {
        (library.functions().ibv_modify_qp)(qp.as_ptr(), attributes, mask as c_int)
    })
}

/// `ibv_query_qp`.
///
/// # Errors
///
/// The verb's.
pub unsafe fn query_qp(
    library: &Library,
    qp: NonNull<ibv_qp>,
    mask: u32,
) -> Verb<(ibv_qp_attr, ibv_qp_init_attr)> {
    let (mut attributes, mut init) = (ibv_qp_attr::zeroed(), ibv_qp_init_attr::zeroed());
    // SAFETY: the caller's; the places for the answer are valid.
    number("ibv_query_qp", || unsafe {
        (library.functions().ibv_query_qp)(qp.as_ptr(), &mut attributes, mask as c_int, &mut init)
    })?;
    Ok((attributes, init))
}

/// `ibv_destroy_qp`: what is posted never completes.
///
/// # Errors
///
/// The verb's.
pub unsafe fn destroy_qp(library: &Library, qp: NonNull<ibv_qp>) -> Verb<()> {
    // SAFETY: the caller's.
    number("ibv_destroy_qp", || unsafe { (library.functions().ibv_destroy_qp)(qp.as_ptr()) })
}

/// `ibv_post_send`, by the context's table. On failure, the request from which on nothing was posted.
///
/// # Errors
///
/// The verb's.
pub unsafe fn post_send(
    qp: NonNull<ibv_qp>,
    requests: *mut ibv_send_wr,
) -> Result<(), (VerbsError, *mut ibv_send_wr)> {
    let call = "ibv_post_send";
    // SAFETY: a queue pair that is alive has a context that is.
    let verb = unsafe { (*(*qp.as_ptr()).context).ops.post_send }.ok_or((not_there(call), requests))?;
    let mut bad = ptr::null_mut();
    // SAFETY: the caller's; the place for the answer is valid.
    number(call, || unsafe { verb(qp.as_ptr(), requests, &mut bad) }).map_err(|error| (error, bad))
}

/// `ibv_post_recv`, by the context's table. On failure, the request from which on nothing was posted.
///
/// # Errors
///
/// The verb's.
pub unsafe fn post_recv(
    qp: NonNull<ibv_qp>,
    requests: *mut ibv_recv_wr,
) -> Result<(), (VerbsError, *mut ibv_recv_wr)> {
    let call = "ibv_post_recv";
    // SAFETY: a queue pair that is alive has a context that is.
    let verb = unsafe { (*(*qp.as_ptr()).context).ops.post_recv }.ok_or((not_there(call), requests))?;
    let mut bad = ptr::null_mut();
    // SAFETY: the caller's; the place for the answer is valid.
    number(call, || unsafe { verb(qp.as_ptr(), requests, &mut bad) }).map_err(|error| (error, bad))
}
