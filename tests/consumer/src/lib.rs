//! A shared library with meshreduce in it, whose exported symbols `cargo xtask consumer` looks at.

/// Whether there is a CUDA driver: 1 or 0.
#[unsafe(no_mangle)]
pub extern "C" fn consumer_has_a_driver() -> i32 {
    i32::from(meshreduce::loader::status().is_ok())
}
