//! The stand-in works over the emulated node alone.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use meshreduce_nccl_loader::sys::ncclResult_t;
use meshreduce_nccl_loader::{Error, result};

#[test]
fn a_driver_that_is_not_the_emulated_one_is_refused() {
    let folder = support::folder();
    // SAFETY: this process has one test, and nothing reads the environment meanwhile.
    unsafe {
        std::env::set_var("MESHREDUCE_DRIVER", "libc.so.6");
        std::env::set_var("NCCL_SOCKET_IFNAME", "lo");
    }
    // SAFETY: it is the stand-in, which this repository builds.
    unsafe { meshreduce_nccl_loader::use_library(folder.join("libmeshreduce_libnccl.so")) }.unwrap();
    let id = result::unique_id().expect("an id needs no driver");
    // SAFETY: the call is refused.
    let Err(Error::Nccl(error)) = (unsafe { result::comm_init_rank(1, id, 0) }) else {
        panic!("there is no driver that it could work with")
    };
    assert_eq!(error.code, ncclResult_t::UNHANDLED_CUDA_ERROR);
    let last = error.last.unwrap();
    assert!(last.contains("works there alone"), "{last}");
}
