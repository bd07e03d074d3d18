//! Registering memory, as it works where nvidia-peermem is loaded: device addresses are registered like any others.
//!
//! The kernel pins what this process can reach, and device addresses it cannot. So the memory behind them is mapped, and
//! *that* is registered, under the device address as the one of work requests (`iova`). The caller sees the address that it
//! gave.

use std::arch::global_asm;
use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::BorrowedFd;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::emulated::{Mapping, device_memory, dma_buf_begin, errno, set_errno};
use crate::real::real;
use crate::sys::{Mr, RegMrIova};

/// Gives a function of this file a symbol and version of libibverbs.
macro_rules! take_over {
    ($($name:literal $version:literal => $function:path,)*) => {
        $(
            global_asm!(
                ".pushsection .text.meshreduce_peermem,\"ax\",@progbits",
                concat!(".globl peermem_", $name),
                concat!(".type peermem_", $name, ",@function"),
                concat!("peermem_", $name, ":"),
                "jmp {function}",
                concat!(".size peermem_", $name, ", . - peermem_", $name),
                concat!(".symver peermem_", $name, ", ", $name, "@@", $version),
                ".popsection",
                function = sym $function,
                options(att_syntax)
            );
        )*
    };
}

take_over! {
    "ibv_reg_mr" "IBVERBS_1.1" => reg_mr,
    "ibv_reg_mr_iova" "IBVERBS_1.7" => reg_mr_iova,
    "ibv_reg_mr_iova2" "IBVERBS_1.8" => reg_mr_iova2,
    "ibv_reg_dmabuf_mr" "IBVERBS_1.12" => reg_dmabuf_mr,
    "ibv_dereg_mr" "IBVERBS_1.1" => dereg_mr,
    "ibv_rereg_mr" "IBVERBS_1.1" => rereg_mr,
}

/// A region whose memory is mapped here.
struct Mapped {
    mapping: Mapping,
    /// The address that the caller registered.
    named: usize,
}

/// All of them, by the address of their `struct ibv_mr`.
static MAPPED: LazyLock<Mutex<HashMap<usize, Mapped>>> = LazyLock::new(Mutex::default);

fn mapped() -> MutexGuard<'static, HashMap<usize, Mapped>> {
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" fn reg_mr(pd: *mut c_void, addr: *mut c_void, length: usize, access: c_int) -> *mut Mr {
    match device_memory(addr.addr() as u64, length) {
        // SAFETY: the caller's.
        Ok(None) => unsafe { (real().reg_mr)(pd, addr, length, access) },
        Ok(Some(mapping)) => keep(mapping, addr, |start| {
            // SAFETY: the mapping has `length` bytes from `start`, and outlives the region; the domain is the caller's.
            unsafe { (real().reg_mr_iova)(pd, start, length, addr.addr() as u64, access.cast_unsigned()) }
        }),
        Err(number) => refuse(number),
    }
}

unsafe extern "C" fn reg_mr_iova(
    pd: *mut c_void,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut Mr {
    // SAFETY: the caller's.
    unsafe { at_iova(real().reg_mr_iova, pd, addr, length, iova, access) }
}

unsafe extern "C" fn reg_mr_iova2(
    pd: *mut c_void,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut Mr {
    // SAFETY: the caller's.
    unsafe { at_iova(real().reg_mr_iova2, pd, addr, length, iova, access) }
}

/// # Safety
///
/// As `register`, which is one of the real functions.
unsafe fn at_iova(
    register: RegMrIova,
    pd: *mut c_void,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut Mr {
    match device_memory(addr.addr() as u64, length) {
        // SAFETY: the caller's.
        Ok(None) => unsafe { register(pd, addr, length, iova, access) },
        Ok(Some(mapping)) => keep(mapping, addr, |start| {
            // SAFETY: the mapping has `length` bytes from `start`, and outlives the region; the domain is the caller's.
            unsafe { register(pd, start, length, iova, access) }
        }),
        Err(number) => refuse(number),
    }
}

unsafe extern "C" fn reg_dmabuf_mr(
    pd: *mut c_void,
    offset: u64,
    length: usize,
    iova: u64,
    fd: c_int,
    access: c_int,
) -> *mut Mr {
    if fd < 0 {
        // What a driver with dma-buf answers; callers find out with it whether there is one.
        return refuse(libc::EBADF);
    }
    let Some(begin) = dma_buf_begin(fd) else {
        // SAFETY: the caller's.
        return unsafe { (real().reg_dmabuf_mr)(pd, offset, length, iova, fd, access) };
    };
    let Some(begin) = begin.checked_add(offset) else { return refuse(libc::EINVAL) };
    // SAFETY: the caller's descriptor is open during the call: it has just been asked for its seals.
    match Mapping::new(unsafe { BorrowedFd::borrow_raw(fd) }, begin, length) {
        Ok(mapping) => keep(mapping, std::ptr::without_provenance_mut(offset as usize), |start| {
            // SAFETY: the mapping has `length` bytes from `start`, and outlives the region; the domain is the caller's.
            unsafe { (real().reg_mr_iova)(pd, start, length, iova, access.cast_unsigned()) }
        }),
        Err(number) => refuse(number),
    }
}

unsafe extern "C" fn dereg_mr(region: *mut Mr) -> c_int {
    // Taken out first: once the region is gone, its address may be another's.
    let Some(kept) = mapped().remove(&region.addr()) else {
        // SAFETY: the caller's.
        return unsafe { (real().dereg_mr)(region) };
    };
    // SAFETY: the caller's region, which is live, and nobody else's during this call. The real function wants the address
    // that it was given, and is the one that the region came from.
    let failed = unsafe {
        (*region).addr = kept.mapping.start();
        (real().dereg_mr)(region)
    };
    if failed != 0 {
        // SAFETY: a region that could not be deregistered is live.
        unsafe { (*region).addr = std::ptr::without_provenance_mut(kept.named) };
        mapped().insert(region.addr(), kept);
    }
    failed
}

unsafe extern "C" fn rereg_mr(
    region: *mut Mr,
    flags: c_int,
    pd: *mut c_void,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> c_int {
    let ours = mapped().contains_key(&region.addr());
    if ours || matches!(device_memory(addr.addr() as u64, length), Ok(Some(_)) | Err(_)) {
        set_errno(libc::EOPNOTSUPP);
        return REREG_ERR_INPUT;
    }
    // SAFETY: the caller's.
    unsafe { (real().rereg_mr)(region, flags, pd, addr, length, access) }
}

/// `IBV_REREG_MR_ERR_INPUT`: nothing was changed, and the region is as it was.
const REREG_ERR_INPUT: c_int = -1;

/// Registers a mapping, and keeps it for as long as its region lives.
fn keep(mapping: Mapping, named: *mut c_void, register: impl FnOnce(*mut c_void) -> *mut Mr) -> *mut Mr {
    let region = register(mapping.start());
    if region.is_null() {
        // Unmapping must not hide why.
        let number = errno();
        drop(mapping);
        return refuse(number);
    }
    // SAFETY: a region that has just been made, and that nobody else knows yet.
    unsafe { (*region).addr = named };
    mapped().insert(region.addr(), Mapped { mapping, named: named.addr() });
    region
}

fn refuse(number: c_int) -> *mut Mr {
    set_errno(number);
    std::ptr::null_mut()
}
