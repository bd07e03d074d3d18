//! A library that is no CUDA driver is refused by name.

use meshreduce_driver_loader::{LoadError, status, use_library};
use std::path::Path;

#[test]
fn a_library_without_cu_init_is_not_a_driver() {
    // SAFETY: this process has the C library already; as a driver it is refused before anything in it is called.
    unsafe { use_library("libc.so.6") }.unwrap();
    let expected = LoadError::NotADriver { library: Path::new("libc.so.6").into(), symbol: "cuInit" };
    assert_eq!(status(), Err(expected));
}
