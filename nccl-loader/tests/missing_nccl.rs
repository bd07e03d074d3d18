//! What a program sees where there is no NCCL.

use meshreduce_nccl_loader::{
    AlreadyOpen, Error, LoadError, Unavailable, Version, check_version, functions, library_path, result,
    status, symbol, sys, use_library, version,
};
use std::path::Path;

const MISSING: &str = "/nonexistent/nccl/libnccl.so.2";

#[test]
fn every_call_says_what_was_tried() {
    // SAFETY: there is no such library.
    unsafe { use_library(MISSING) }.unwrap();
    let reason = status().unwrap_err();
    let LoadError::Open { tried } = &reason else { panic!("{reason:?}") };
    let [attempt] = tried.as_slice() else { panic!("{tried:?}") };
    assert_eq!(attempt.library, Path::new(MISSING));
    assert!(attempt.message.contains("No such file"), "{attempt}");
    let text = reason.to_string();
    assert!(text.starts_with("cannot open NCCL: /nonexistent/nccl/libnccl.so.2: "), "{text}");
    assert_eq!(text.matches(MISSING).count(), 1, "{text}");

    assert_eq!(library_path(), Err(reason.clone()));
    assert_eq!(version(), Err(Error::Load(reason.clone())));
    assert_eq!(check_version(Version::new(2, 14, 0)), Err(Error::Load(reason.clone())));
    assert_eq!(result::unique_id(), Err(Error::Load(reason.clone())));
    assert_eq!(result::group_start(), Err(Error::Load(reason.clone())));
    // SAFETY: it takes nothing.
    assert_eq!(unsafe { sys::ncclGroupEnd() }, Err(Unavailable::Load(reason)));
    assert_eq!(symbol("ncclGetVersion"), None);
    assert!(functions().iter().all(|function| !function.is_present()));

    // SAFETY: as above.
    let late = unsafe { use_library("/elsewhere/libnccl.so.2") };
    assert_eq!(late, Err(AlreadyOpen { library: MISSING.into() }));
    // SAFETY: as above.
    unsafe { use_library(MISSING) }.expect("the library in use may be chosen again");
}
