//! Keeps the library in memory once it is there: its communicators have threads, which must not lose their code to a
//! `dlclose`. And gives it the real one's SONAME, so that whoever asks for that name later gets the same library, from
//! wherever it was opened first.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnccl.so.2");
}
