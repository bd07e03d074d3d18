//! Defines libibverbs' symbol versions, which `src/forward.rs` gives to its symbols. rustc's own version script lists what
//! Rust exports, without versions; a linker that takes both is needed, and rustc's own (LLD) does.
//!
//! The SONAME must *not* be libibverbs.so.1: providers ask for that name, and must get the real one.

use std::fmt::Write as _;
use std::path::PathBuf;

/// In the order in which each inherits from the one before.
const VERSIONS: [&str; 12] =
    ["1.0", "1.1", "1.5", "1.6", "1.7", "1.8", "1.9", "1.10", "1.11", "1.12", "1.13", "1.14"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut script = String::new();
    let mut parent = String::new();
    for version in VERSIONS {
        let _ = writeln!(script, "IBVERBS_{version} {{ }}{parent};");
        parent = format!(" IBVERBS_{version}");
    }
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let file = folder.join("versions.map");
    std::fs::write(&file, script).expect("cargo's own folder can be written");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--version-script={}", file.display());
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmeshreduce_rdma_peermem.so");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
