//! Protection domains and registered memory.

use std::ffi::{c_int, c_uint, c_void};

use crate::abi::*;
use crate::context::{CONTEXTS, DOMAINS, Pd};
use crate::memory::{Region, Wanted};
use crate::process::Process;

pub(super) extern "C" fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    pointer("ibv_alloc_pd", || {
        Process::get()?;
        Ok(Pd::new(CONTEXTS.get(context)?).raw.pointer())
    })
}

pub(super) extern "C" fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int {
    number("ibv_dealloc_pd", || Pd::free(pd))
}

fn register(
    pd: *mut ibv_pd,
    address: *mut c_void,
    length: usize,
    iova: u64,
    access: u32,
) -> Answer<*mut ibv_mr> {
    Process::get()?;
    let wanted = Wanted { address: address as u64, length: length as u64, iova, access };
    Ok(Region::register(DOMAINS.get(pd)?, &wanted)?.raw.pointer())
}

pub(super) extern "C" fn ibv_reg_mr(
    pd: *mut ibv_pd,
    address: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut ibv_mr {
    pointer("ibv_reg_mr", || register(pd, address, length, address as u64, access as u32))
}

pub(super) extern "C" fn ibv_reg_mr_iova(
    pd: *mut ibv_pd,
    address: *mut c_void,
    length: usize,
    iova: u64,
    access: c_int,
) -> *mut ibv_mr {
    pointer("ibv_reg_mr_iova", || register(pd, address, length, iova, access as u32))
}

pub(super) extern "C" fn ibv_reg_mr_iova2(
    pd: *mut ibv_pd,
    address: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut ibv_mr {
    pointer("ibv_reg_mr_iova2", || register(pd, address, length, iova, access))
}

pub(super) extern "C" fn ibv_reg_dmabuf_mr(
    pd: *mut ibv_pd,
    offset: u64,
    length: usize,
    iova: u64,
    fd: c_int,
    access: c_int,
) -> *mut ibv_mr {
    pointer("ibv_reg_dmabuf_mr", || {
        Process::get()?;
        let wanted = Wanted { address: iova, length: length as u64, iova, access: access as u32 };
        Ok(Region::register_dma_buf(DOMAINS.get(pd)?, &wanted, offset, fd)?.raw.pointer())
    })
}

pub(super) extern "C" fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int {
    number("ibv_dereg_mr", || Region::deregister(mr))
}
