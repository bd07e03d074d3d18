//! Keeps the library in memory once it is there: its thread must not lose its code to a `dlclose`. Gives it the real
//! one's SONAME, so that whoever asks for that name later gets the same library, from wherever it was opened first. And
//! defines the versions of libibverbs' symbols, which `src/export/versions.rs` gives to them: rustc's own version script
//! lists what Rust exports, without versions, and a linker that takes both is needed; rustc's own (LLD) does.

use std::fmt::Write as _;
use std::path::PathBuf;

/// In the order in which each inherits from the one before.
const VERSIONS: [&str; 11] =
    ["1.0", "1.1", "1.5", "1.6", "1.7", "1.8", "1.9", "1.10", "1.11", "1.12", "1.13"];

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
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libibverbs.so.1");
}
