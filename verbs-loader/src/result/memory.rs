//! Protection domains and registered memory.

#![allow(clippy::missing_safety_doc)] // the module above has the one contract

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use super::{Verb, number, pointer};
use crate::sys::*;
use crate::{Error, Library};

/// `ibv_alloc_pd`.
///
/// # Errors
///
/// The verb's.
pub unsafe fn alloc_pd(library: &Library, context: NonNull<ibv_context>) -> Verb<NonNull<ibv_pd>> {
    // SAFETY: the caller's.
    pointer("ibv_alloc_pd", || unsafe { (library.functions().ibv_alloc_pd)(context.as_ptr()) })
}

/// `ibv_dealloc_pd`.
///
/// # Errors
///
/// The verb's; EBUSY while something of it is alive.
pub unsafe fn dealloc_pd(library: &Library, pd: NonNull<ibv_pd>) -> Verb<()> {
    // SAFETY: the caller's.
    number("ibv_dealloc_pd", || unsafe { (library.functions().ibv_dealloc_pd)(pd.as_ptr()) })
}

/// `ibv_reg_mr`, or as the macro of that name in C: where `access` has optional flags, `ibv_reg_mr_iova2`, which knows
/// whether the kernel takes them. A library without it is too old for them, and they are left away.
///
/// # Errors
///
/// The verb's.
pub unsafe fn reg_mr(
    library: &Library,
    pd: NonNull<ibv_pd>,
    address: *mut c_void,
    length: usize,
    access: u32,
) -> Verb<NonNull<ibv_mr>> {
    let functions = library.functions();
    match functions.ibv_reg_mr_iova2 {
        // SAFETY: the caller's.
        Some(verb) if access & IBV_ACCESS_OPTIONAL_RANGE != 0 => pointer("ibv_reg_mr_iova2", || unsafe {
            verb(pd.as_ptr(), address, length, address as u64, access)
        }),
        // SAFETY: the caller's.
        _ => pointer("ibv_reg_mr", || unsafe {
            (functions.ibv_reg_mr)(pd.as_ptr(), address, length, mandatory(access))
        }),
    }
}

/// `ibv_reg_mr_iova` with the optional flags handled as by [`reg_mr`]: the region's addresses begin at `iova`.
///
/// # Errors
///
/// The verb's; [`Error::TooOld`].
pub unsafe fn reg_mr_iova(
    library: &Library,
    pd: NonNull<ibv_pd>,
    address: *mut c_void,
    length: usize,
    iova: u64,
    access: u32,
) -> Result<NonNull<ibv_mr>, Error> {
    let functions = library.functions();
    let optional = access & IBV_ACCESS_OPTIONAL_RANGE != 0;
    let region = match (functions.ibv_reg_mr_iova2, functions.ibv_reg_mr_iova) {
        (Some(verb), _) if optional => {
            // SAFETY: the caller's.
            pointer("ibv_reg_mr_iova2", || unsafe { verb(pd.as_ptr(), address, length, iova, access) })
        }
        (_, Some(verb)) => {
            let access = mandatory(access);
            // SAFETY: the caller's.
            pointer("ibv_reg_mr_iova", || unsafe { verb(pd.as_ptr(), address, length, iova, access) })
        }
        _ => return Err(library.too_old("ibv_reg_mr_iova")),
    };
    Ok(region?)
}

/// `ibv_reg_dmabuf_mr`: `length` bytes from `offset` of the buffer behind `fd`.
///
/// # Errors
///
/// The verb's; [`Error::TooOld`].
pub unsafe fn reg_dmabuf_mr(
    library: &Library,
    pd: NonNull<ibv_pd>,
    offset: u64,
    length: usize,
    iova: u64,
    fd: c_int,
    access: u32,
) -> Result<NonNull<ibv_mr>, Error> {
    let name = "ibv_reg_dmabuf_mr";
    let verb = library.functions().ibv_reg_dmabuf_mr.ok_or_else(|| library.too_old(name))?;
    // SAFETY: the caller's.
    Ok(pointer(name, || unsafe { verb(pd.as_ptr(), offset, length, iova, fd, access as c_int) })?)
}

/// Without the flags that a kernel may ignore.
fn mandatory(access: u32) -> c_int {
    (access & !IBV_ACCESS_OPTIONAL_RANGE) as c_int
}

/// `ibv_dereg_mr`.
///
/// # Errors
///
/// The verb's.
pub unsafe fn dereg_mr(library: &Library, mr: NonNull<ibv_mr>) -> Verb<()> {
    // SAFETY: the caller's.
    number("ibv_dereg_mr", || unsafe { (library.functions().ibv_dereg_mr)(mr.as_ptr()) })
}
