//! The machine's own libibverbs, where it has one.

use meshreduce_verbs_loader::{Error, Library, Status, functions, result};

/// The library by its full name, so that no emulated one is meant; `None` is said aloud.
fn installed() -> Option<Library> {
    // SAFETY: the system's own library under its own name.
    match unsafe { Library::open("libibverbs.so.1") } {
        Ok(library) => Some(library),
        Err(error) => {
            eprintln!("skipping: {error} (Debian: libibverbs1)");
            None
        }
    }
}

#[test]
fn every_function_of_the_table_is_there_by_its_version() {
    let Some(library) = installed() else { return };
    // The newest version in the table came with rdma-core 34 (2021).
    let missing: Vec<_> = functions().iter().filter(|function| !library.has(function.name)).collect();
    assert!(missing.is_empty(), "{}: {missing:?}", library.path().display());
}

#[test]
fn devices_are_listed_or_there_is_a_reason() {
    let Some(library) = installed() else { return };
    match library.devices() {
        Ok(devices) => {
            for device in &*devices {
                assert!(!device.name().is_empty());
            }
        }
        Err(Error::Verbs(error)) => assert!(
            matches!(error.name(), Some("ENOSYS" | "EPERM" | "EACCES" | "ENOENT")),
            "{error} is not among the reasons that a machine has"
        ),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_texts_of_statuses_are_its_own() {
    let Some(library) = installed() else { return };
    for code in 0..24 {
        assert_eq!(result::wc_status_str(&library, code).unwrap(), Status(code).text(), "status {code}");
    }
}
