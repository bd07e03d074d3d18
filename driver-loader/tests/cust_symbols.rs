//! What `cust_raw`'s functions answer where there is no driver.

use cust_raw::CUresult;
use meshreduce_driver_loader::use_library;
use std::ffi::CStr;

const MISSING: &str = "/nonexistent/driver/libcuda.so.1";

#[test]
fn a_call_without_a_driver_finds_no_device() {
    // SAFETY: there is no such library.
    unsafe { use_library(MISSING) }.unwrap();
    // SAFETY: cuInit takes no pointers.
    assert_eq!(unsafe { cust_raw::cuInit(0) }, CUresult::CUDA_ERROR_NO_DEVICE);
}

#[test]
fn every_error_has_a_text_and_a_name() {
    // SAFETY: there is no such library.
    unsafe { use_library(MISSING) }.unwrap();
    for code in [CUresult::CUDA_SUCCESS, CUresult::CUDA_ERROR_NO_DEVICE, CUresult::CUDA_ERROR_UNKNOWN] {
        for function in [cust_raw::cuGetErrorString, cust_raw::cuGetErrorName] {
            let mut text = std::ptr::null();
            // SAFETY: `text` is a valid place for the pointer.
            assert_eq!(unsafe { function(code, &mut text) }, CUresult::CUDA_SUCCESS);
            // SAFETY: a successful call leaves a string of static lifetime.
            assert!(!unsafe { CStr::from_ptr(text) }.to_bytes().is_empty());
        }
    }
    // SAFETY: a null pointer is what the function must refuse.
    let refused = unsafe { cust_raw::cuGetErrorName(CUresult::CUDA_SUCCESS, std::ptr::null_mut()) };
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
}
