//! Gives the library the real one's SONAME, so that whoever asks for that name later gets the same library, from
//! wherever it was opened first.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
}
