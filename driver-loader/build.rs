//! Puts the empty `libcuda.a` beside this file on the link path, for `cust_raw`.
//!
//! `cust_raw` always links with `-lcuda`. The archive satisfies that where no driver is installed; the symbols come
//! from this crate. Cargo passes the path on to every binary that depends on this crate, so that a dependent needs
//! no copy of the archive.

fn main() {
    println!("cargo:rerun-if-changed=link/lib64/libcuda.a");
    if std::env::var_os("CARGO_FEATURE_CUST").is_some() {
        // As it is now, not when this was built: a checkout may have been copied with its target directory.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the package's folder");
        let link = std::path::Path::new(&package).join("link/lib64");
        println!("cargo:rustc-link-search=native={}", link.display());
    }
}
