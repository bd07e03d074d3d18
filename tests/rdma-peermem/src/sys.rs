//! What of `infiniband/verbs.h` is looked into here.

use std::ffi::{c_int, c_uint, c_void};

/// `struct ibv_mr`.
#[repr(C)]
pub(crate) struct Mr {
    context: *mut c_void,
    pd: *mut c_void,
    /// What was registered, as the caller named it.
    pub(crate) addr: *mut c_void,
    length: usize,
    handle: u32,
    lkey: u32,
    rkey: u32,
}

/// `ibv_reg_mr`: domain, address, length, access.
pub(crate) type RegMr = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, c_int) -> *mut Mr;
/// `ibv_reg_mr_iova`, `ibv_reg_mr_iova2`: domain, address, length, address in work requests, access.
pub(crate) type RegMrIova = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, u64, c_uint) -> *mut Mr;
/// `ibv_reg_dmabuf_mr`: domain, offset in the buffer, length, address in work requests, descriptor, access.
pub(crate) type RegDmabufMr = unsafe extern "C" fn(*mut c_void, u64, usize, u64, c_int, c_int) -> *mut Mr;
/// `ibv_dereg_mr`.
pub(crate) type DeregMr = unsafe extern "C" fn(*mut Mr) -> c_int;
/// `ibv_rereg_mr`: region, flags, domain, address, length, access.
pub(crate) type ReregMr =
    unsafe extern "C" fn(*mut Mr, c_int, *mut c_void, *mut c_void, usize, c_int) -> c_int;
