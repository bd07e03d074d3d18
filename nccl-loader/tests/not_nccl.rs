//! A library that is not NCCL is refused by name.

use meshreduce_nccl_loader::{LoadError, status, use_library};

#[test]
fn a_library_without_a_version_of_nccl_is_not_nccl() {
    // SAFETY: this process has the C library already; as NCCL it is refused before anything in it is called.
    unsafe { use_library("libc.so.6") }.unwrap();
    let expected = LoadError::NotNccl { library: "libc.so.6".into(), symbol: "ncclGetVersion" };
    assert_eq!(expected.to_string(), "libc.so.6 is not NCCL: it has no function ncclGetVersion");
    assert_eq!(status(), Err(expected));
}
