//! A node whose adapters reach no device memory, and whose processes may not lock much.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::os::fd::AsFd;

use meshreduce_driver_loader::sys::{self as cuda, CUresult};
use meshreduce_verbs_loader::*;
use support::*;

/// Every test begins with it.
fn plain() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let text = std::fs::read_to_string(node_file()).unwrap();
        let text = text.replace("peermem = \"nvidia_peermem\"", "dma_buf = false\nmemlock_kib = 64");
        let file = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("plain.toml");
        std::fs::write(&file, text).unwrap();
        // SAFETY: every test waits for this, and nothing reads the environment before.
        unsafe { std::env::set_var("MESHREDUCE_NODE", file) };
        library();
    });
}

#[test]
fn more_than_may_be_locked_is_refused_until_something_is_given_back() {
    plain();
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    let mut memory = vec![0_u8; 128 << 10];
    // Page by page: what is registered is whole pages.
    let start = memory.as_mut_ptr().map_addr(|address| address.next_multiple_of(4096));
    // SAFETY: the memory outlives the regions, and nothing uses them.
    let register = |kib: usize| unsafe { end.domain.register(start, kib << 10, Access::LOCAL_WRITE) };
    let half = register(32).unwrap();
    let error = register(36).unwrap_err();
    assert_eq!(error.to_string(), "ibv_reg_mr: Cannot allocate memory (ENOMEM)");
    let rest = register(32).unwrap();
    assert_eq!(register(4).unwrap_err().errno(), Some(libc::ENOMEM));
    drop(rest);
    assert!(register(4).is_ok());
    drop(half);
    assert!(register(64).is_ok());
    assert_eq!(count("pinned_bytes"), 0);
}

#[test]
fn a_dma_buf_is_not_supported() {
    plain();
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    let DmaBufSupport::Unsupported(reason) = end.domain.dma_buf_support() else { panic!("it is supported") };
    assert_eq!(reason.errno(), Some(libc::EOPNOTSUPP));
    let file = memfd(4096);
    // SAFETY: it is refused.
    let refused = unsafe { end.domain.register_dma_buf(file.as_fd(), 0, 4096, 0, Access::LOCAL_WRITE) };
    assert_eq!(refused.unwrap_err().errno(), Some(libc::EOPNOTSUPP));
}

#[test]
fn device_memory_is_no_memory_to_an_adapter() {
    plain();
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    // SAFETY: this is the emulated driver, which this repository builds.
    unsafe { meshreduce_driver_loader::use_library(folder().join("libmeshreduce_libcuda.so")) }.unwrap();
    let (mut context, mut address) = (std::ptr::null_mut(), 0);
    // SAFETY: the out-parameters are valid, and the context is one that the driver just gave.
    unsafe {
        assert_eq!(cuda::cuInit(0), CUresult::SUCCESS);
        assert_eq!(cuda::cuDevicePrimaryCtxRetain(&mut context, 0), CUresult::SUCCESS);
        assert_eq!(cuda::cuCtxPushCurrent_v2(context), CUresult::SUCCESS);
        assert_eq!(cuda::cuMemAlloc_v2(&mut address, 4096), CUresult::SUCCESS);
    }
    // SAFETY: it is refused.
    let refused = unsafe { end.domain.register(address as *mut u8, 4096, Access::LOCAL_WRITE) };
    assert_eq!(refused.unwrap_err().errno(), Some(libc::EFAULT));
}
