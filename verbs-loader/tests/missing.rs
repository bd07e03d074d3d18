//! What a program sees where there is no libibverbs, or something else of that name.

use std::path::Path;

use meshreduce_verbs_loader::{Error, Library};

#[test]
fn a_machine_without_it_says_what_was_tried() {
    let missing = Path::new("/nonexistent/verbs/libibverbs.so.1");
    // SAFETY: there is no such library.
    let Err(Error::NotFound { tried }) = (unsafe { Library::open(missing) }) else { panic!("it was found") };
    let [attempt] = tried.as_slice() else { panic!("{tried:?}") };
    assert_eq!(attempt.library, missing);
    assert!(attempt.message.contains("No such file"), "{attempt}");
}

#[test]
fn both_names_are_tried_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    // SAFETY: the folder is empty.
    let Err(Error::NotFound { tried }) = (unsafe { Library::open(folder.path()) }) else {
        panic!("it was found")
    };
    let tried: Vec<_> = tried.into_iter().map(|attempt| attempt.library).collect();
    assert_eq!(tried, ["libibverbs.so.1", "libibverbs.so"].map(|name| folder.path().join(name)));
}

#[test]
fn a_library_of_another_kind_is_refused_by_what_it_lacks() {
    // SAFETY: this process has the C library already; it is refused before anything in it is called.
    let refused = unsafe { Library::open("libc.so.6") };
    let Err(Error::NotVerbs { library, missing }) = refused else { panic!("{refused:?}") };
    assert_eq!(library, Path::new("libc.so.6"));
    assert!(missing.contains(&"ibv_open_device") && missing.contains(&"ibv_query_port"), "{missing:?}");
}
