//! A folder stands for the libraries in it.

use meshreduce_nccl_loader::{LoadError, status, use_library};

#[test]
fn both_names_are_tried_in_a_folder() {
    let folder = env!("CARGO_MANIFEST_DIR");
    // SAFETY: no library lies in this package's folder.
    unsafe { use_library(folder) }.unwrap();
    let Err(LoadError::Open { tried }) = status() else { panic!("{:?}", status()) };
    let tried: Vec<_> = tried.into_iter().map(|attempt| attempt.library).collect();
    assert_eq!(tried, ["libnccl.so.2", "libnccl.so"].map(|name| std::path::Path::new(folder).join(name)));
}
