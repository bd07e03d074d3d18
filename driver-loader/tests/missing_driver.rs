//! What a program sees where there is no driver.

use meshreduce_driver_loader::{LoadError, library_directory, status, symbol, sys, use_library};
use std::path::Path;

const MISSING: &str = "/nonexistent/driver/libcuda.so.1";

#[test]
fn calls_answer_with_a_code_and_the_reason_is_typed() {
    // SAFETY: there is no such library.
    unsafe { use_library(MISSING) }.unwrap();
    // SAFETY: cuInit takes no pointers.
    assert_eq!(unsafe { sys::cuInit(0) }, sys::CUresult::NO_DEVICE);
    match status() {
        Err(LoadError::Open { library, message }) => {
            assert_eq!(library, Path::new(MISSING));
            assert!(message.contains("No such file"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(symbol("cuInit"), None);
    assert_eq!(library_directory(), Some(Path::new("/nonexistent/driver")));

    // SAFETY: as above.
    let late = unsafe { use_library("/elsewhere/libcuda.so.1") }.unwrap_err();
    assert_eq!(late.library, Path::new(MISSING));
    // SAFETY: as above.
    unsafe { use_library(MISSING) }.expect("the library in use may be chosen again");
}
