//! Puts the empty `libcuda.a` beside this file on the link path.
//!
//! `cust_raw` always links with `-lcuda`. The archive satisfies that where no driver is installed; the symbols come
//! from this crate. Cargo passes the path on to every binary that depends on this crate, so that a dependent needs
//! no copy of the archive.

fn main() {
    let link = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("link/lib64");
    println!("cargo:rustc-link-search=native={}", link.display());
    println!("cargo:rerun-if-changed=link/lib64/libcuda.a");
}
