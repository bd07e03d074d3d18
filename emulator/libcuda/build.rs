//! Keeps the library in memory once it is there: its devices have threads, which must not lose their code to a
//! `dlclose`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
