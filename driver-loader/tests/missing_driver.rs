//! What a program sees where there is no driver.

use cust_raw::CUresult;
use meshreduce_driver_loader::{LoadError, library_directory, status, symbol, use_library};
use std::ffi::CStr;
use std::path::Path;

const MISSING: &str = "/nonexistent/driver/libcuda.so.1";

#[test]
fn calls_answer_with_a_code_and_the_reason_is_typed() {
    use_library(MISSING).unwrap();
    // SAFETY: cuInit takes no pointers.
    assert_eq!(unsafe { cust_raw::cuInit(0) }, CUresult::CUDA_ERROR_NO_DEVICE);
    match status() {
        Err(LoadError::Open { library, message }) => {
            assert_eq!(library, Path::new(MISSING));
            assert!(message.contains("No such file"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(symbol("cuInit"), None);
    assert_eq!(library_directory(), Some(Path::new("/nonexistent/driver")));

    let late = use_library("/elsewhere/libcuda.so.1").unwrap_err();
    assert_eq!(late.library, Path::new(MISSING));
    use_library(MISSING).expect("the library in use may be chosen again");
}

#[test]
fn every_error_has_a_text_and_a_name() {
    use_library(MISSING).unwrap();
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
