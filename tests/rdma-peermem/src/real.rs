//! The real libibverbs, opened by its absolute path when this library is.

use std::ffi::{CStr, CString, c_int, c_void};
use std::os::unix::ffi::OsStringExt as _;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use crate::forward::{SYMBOLS, slots};
use crate::sys::{DeregMr, RegDmabufMr, RegMr, RegMrIova, ReregMr};

/// The environment variable with the real library's absolute path.
const VARIABLE: &str = "MESHREDUCE_REAL_VERBS";
/// Where it is looked for else.
const PATHS: [&CStr; 3] = [
    c"/usr/lib/x86_64-linux-gnu/libibverbs.so.1",
    c"/usr/lib64/libibverbs.so.1",
    c"/usr/lib/libibverbs.so.1",
];

/// The real functions that this library has its own form of.
pub(crate) struct Real {
    pub(crate) reg_mr: RegMr,
    pub(crate) reg_mr_iova: RegMrIova,
    pub(crate) reg_mr_iova2: RegMrIova,
    pub(crate) reg_dmabuf_mr: RegDmabufMr,
    pub(crate) dereg_mr: DeregMr,
    pub(crate) rereg_mr: ReregMr,
}

static REAL: OnceLock<Real> = OnceLock::new();

/// The real functions.
pub(crate) fn real() -> &'static Real {
    match REAL.get() {
        Some(real) => real,
        None => end("without a real libibverbs there is nothing to call"),
    }
}

/// Fills the slots. Runs when the library is loaded, before anybody can call it.
#[used]
#[unsafe(link_section = ".init_array")]
static OPEN: extern "C" fn() = open;

extern "C" fn open() {
    for slot in slots() {
        slot.store(absent as *mut c_void, Ordering::Relaxed);
    }
    let Some(handle) = handle() else { return };
    for (slot, (name, version)) in slots().iter().zip(SYMBOLS) {
        if let Some(function) = lookup(handle, name, version) {
            slot.store(function, Ordering::Relaxed);
        }
    }
    if let Some(real) = find(handle) {
        let _ = REAL.set(real);
    }
}

/// The real library, if it opens; else the reason is printed.
fn handle() -> Option<*mut c_void> {
    let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let named = named.and_then(|path| CString::new(path.into_vec()).ok());
    let candidates: Vec<&CStr> = match &named {
        Some(path) => vec![path],
        None => PATHS.to_vec(),
    };
    for path in &candidates {
        // An absolute path, because a bare name might be this library's own, or find none of the two.
        if !path.to_bytes().starts_with(b"/") {
            continue;
        }
        // SAFETY: a path that ends in NUL. Initialisers of the real libibverbs run, as in every user of it.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if !handle.is_null() {
            return Some(handle);
        }
    }
    eprintln!(
        "rdma-peermem: no real libibverbs opens, of {candidates:?}; {VARIABLE} names one by an absolute path"
    );
    None
}

fn lookup(handle: *mut c_void, name: &CStr, version: &CStr) -> Option<*mut c_void> {
    // SAFETY: an open library and two texts that end in NUL.
    let function = unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) };
    (!function.is_null()).then_some(function)
}

fn find(handle: *mut c_void) -> Option<Real> {
    let function = |name, version| lookup(handle, name, version);
    let iova = |name, version| {
        // SAFETY: functions of these two names have this prototype (infiniband/verbs.h).
        function(name, version).map(|it| unsafe { std::mem::transmute::<*mut c_void, RegMrIova>(it) })
    };
    let reg_mr = function(c"ibv_reg_mr", c"IBVERBS_1.1")?;
    let reg_dmabuf_mr = function(c"ibv_reg_dmabuf_mr", c"IBVERBS_1.12")?;
    let dereg_mr = function(c"ibv_dereg_mr", c"IBVERBS_1.1")?;
    let rereg_mr = function(c"ibv_rereg_mr", c"IBVERBS_1.1")?;
    let reg_mr_iova = iova(c"ibv_reg_mr_iova", c"IBVERBS_1.7")?;
    let reg_mr_iova2 = iova(c"ibv_reg_mr_iova2", c"IBVERBS_1.8")?;
    // SAFETY: the functions of these names and versions have these prototypes (infiniband/verbs.h).
    unsafe {
        Some(Real {
            reg_mr: std::mem::transmute::<*mut c_void, RegMr>(reg_mr),
            reg_mr_iova,
            reg_mr_iova2,
            reg_dmabuf_mr: std::mem::transmute::<*mut c_void, RegDmabufMr>(reg_dmabuf_mr),
            dereg_mr: std::mem::transmute::<*mut c_void, DeregMr>(dereg_mr),
            rereg_mr: std::mem::transmute::<*mut c_void, ReregMr>(rereg_mr),
        })
    }
}

/// What a function leads to that the real library does not have. Callers that look for optional functions have been
/// promised it, so going on is no choice.
extern "C" fn absent() -> c_int {
    end("the real libibverbs has no such function, or could not be opened")
}

fn end(reason: &str) -> ! {
    eprintln!("rdma-peermem: {reason}");
    std::process::abort()
}
