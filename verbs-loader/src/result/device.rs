//! Devices, and what they say of themselves.

#![allow(clippy::missing_safety_doc)] // the module above has the one contract

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use super::{Verb, number, pointer};
use crate::sys::*;
use crate::{Error, Library};

/// `ibv_get_device_list`: a list that ends with null, and its length.
///
/// # Errors
///
/// The verb's.
pub fn get_device_list(library: &Library) -> Result<(NonNull<*mut ibv_device>, usize), Error> {
    let mut count = 0;
    // SAFETY: the place for the number is valid.
    let list =
        pointer("ibv_get_device_list", || unsafe { (library.functions().ibv_get_device_list)(&mut count) })?;
    Ok((list, usize::try_from(count).unwrap_or(0)))
}

/// `ibv_free_device_list`.
pub unsafe fn free_device_list(library: &Library, list: NonNull<*mut ibv_device>) {
    // SAFETY: the caller's.
    unsafe { (library.functions().ibv_free_device_list)(list.as_ptr()) };
}

/// `ibv_get_device_name`: lives as long as the device.
pub unsafe fn get_device_name<'a>(library: &Library, device: NonNull<ibv_device>) -> &'a CStr {
    // SAFETY: the caller's; the answer is a string within the device, or null for none.
    unsafe {
        let name = (library.functions().ibv_get_device_name)(device.as_ptr());
        if name.is_null() { c"" } else { CStr::from_ptr(name) }
    }
}

/// `ibv_get_device_guid`, as a number of this machine.
pub unsafe fn get_device_guid(library: &Library, device: NonNull<ibv_device>) -> u64 {
    // SAFETY: the caller's.
    u64::from_be(unsafe { (library.functions().ibv_get_device_guid)(device.as_ptr()) })
}

/// `ibv_open_device`.
///
/// # Errors
///
/// The verb's.
pub unsafe fn open_device(library: &Library, device: NonNull<ibv_device>) -> Verb<NonNull<ibv_context>> {
    // SAFETY: the caller's.
    pointer("ibv_open_device", || unsafe { (library.functions().ibv_open_device)(device.as_ptr()) })
}

/// `ibv_close_device`.
///
/// # Errors
///
/// The verb's.
pub unsafe fn close_device(library: &Library, context: NonNull<ibv_context>) -> Verb<()> {
    // SAFETY: the caller's.
    number("ibv_close_device", || unsafe { (library.functions().ibv_close_device)(context.as_ptr()) })
}

/// `ibv_query_device`.
///
/// # Errors
///
/// The verb's.
pub unsafe fn query_device(library: &Library, context: NonNull<ibv_context>) -> Verb<ibv_device_attr> {
    let mut attributes = ibv_device_attr::zeroed();
    // SAFETY: the caller's; `attributes` is valid for the answer.
    number("ibv_query_device", || unsafe {
        (library.functions().ibv_query_device)(context.as_ptr(), &mut attributes)
    })?;
    Ok(attributes)
}

/// `ibv_query_port`. `port_cap_flags2` stays 0: the exported function does not know it.
///
/// # Errors
///
/// The verb's.
pub unsafe fn query_port(library: &Library, context: NonNull<ibv_context>, port: u8) -> Verb<ibv_port_attr> {
    let mut attributes = ibv_port_attr::zeroed();
    // SAFETY: the caller's; `attributes` is as large as what any version writes.
    number("ibv_query_port", || unsafe {
        (library.functions().ibv_query_port)(context.as_ptr(), port, &mut attributes)
    })?;
    Ok(attributes)
}

/// `ibv_query_gid`.
///
/// # Errors
///
/// The verb's.
pub unsafe fn query_gid(
    library: &Library,
    context: NonNull<ibv_context>,
    port: u8,
    index: u32,
) -> Verb<ibv_gid> {
    let mut gid = ibv_gid { raw: [0; 16] };
    // SAFETY: the caller's; `gid` is valid for the answer.
    number("ibv_query_gid", || unsafe {
        (library.functions().ibv_query_gid)(context.as_ptr(), port, index as c_int, &mut gid)
    })?;
    Ok(gid)
}

/// `ibv_query_gid_ex`.
///
/// # Errors
///
/// The verb's, ENODATA for an empty place; [`Error::TooOld`].
pub unsafe fn query_gid_ex(
    library: &Library,
    context: NonNull<ibv_context>,
    port: u8,
    index: u32,
) -> Result<ibv_gid_entry, Error> {
    let name = "_ibv_query_gid_ex";
    let verb = library.functions()._ibv_query_gid_ex.ok_or_else(|| library.too_old(name))?;
    let mut entry = ibv_gid_entry::zeroed();
    // SAFETY: the caller's; `entry` is valid for the answer, of which the size is told.
    number(name, || unsafe {
        verb(context.as_ptr(), port.into(), index, &mut entry, 0, size_of::<ibv_gid_entry>())
    })?;
    Ok(entry)
}

/// `ibv_get_async_event`: waits for one, unless the context's descriptor does not block.
///
/// # Errors
///
/// The verb's; EAGAIN when there is none and the descriptor does not block.
pub unsafe fn get_async_event(library: &Library, context: NonNull<ibv_context>) -> Verb<ibv_async_event> {
    let mut event = ibv_async_event::zeroed();
    // SAFETY: the caller's; `event` is valid for the answer.
    number("ibv_get_async_event", || unsafe {
        (library.functions().ibv_get_async_event)(context.as_ptr(), &mut event)
    })?;
    Ok(event)
}

/// `ibv_ack_async_event`. Every event is acknowledged, or the object that it is about can never be destroyed.
pub unsafe fn ack_async_event(library: &Library, event: &mut ibv_async_event) {
    // SAFETY: the caller's.
    unsafe { (library.functions().ibv_ack_async_event)(event) };
}
