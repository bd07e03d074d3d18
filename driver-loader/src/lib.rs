//! Opens the CUDA driver when it is first needed, and calls its functions.
//!
//! A binary that links against `libcuda.so.1` does not even start where there is no NVIDIA driver. This crate links
//! against nothing: [`sys`] has the functions that meshreduce calls, each of which finds the driver's when it is first
//! called. Which library that is:
//!
//! 1. the one given to [`use_library`], else
//! 2. the one that the environment variable `MESHREDUCE_DRIVER` names, else
//! 3. `libcuda.so.1`, by the dynamic loader's rules.
//!
//! Whoever may set a process's environment chooses the code that it runs, by this variable as by `LD_PRELOAD`.
//!
//! Without a driver every function answers `CUDA_ERROR_NO_DEVICE`, and [`status`] has the reason. A function that the
//! driver does not have answers `CUDA_ERROR_NOT_SUPPORTED`.
//!
//! # The feature `cust`
//!
//! `cust` and `cust_raw` do link against `libcuda.so.1`. With the feature `cust` this crate *defines* every `cu*` symbol
//! that `cust_raw` declares, so that the linker finds them here, and forwards them likewise. An error code that
//! `cust_raw` has no name for becomes `CUDA_ERROR_UNKNOWN`, because a Rust enum must not hold a value that it does not
//! declare; [`unnamed_code`] tells the last such code. A binary gets the definitions by depending on this crate with the
//! feature and mentioning it (`use meshreduce_driver_loader as _;` is enough). Where the CUDA toolkit is installed they
//! take precedence over the toolkit's stub library. Without the feature this crate defines no `cu*` symbol.
//!
//! `cust_raw`'s build script wants to see a directory that looks like a CUDA installation; any directory with a `lib64`
//! in it will do. A crate that depends on this one with the feature and is built where there is no CUDA toolkit needs
//! these two lines in its `.cargo/config.toml`:
//!
//! ```toml
//! [env]
//! CUDA_LIBRARY_PATH = "/usr"
//! ```

#[cfg(feature = "cust")]
mod cust;
mod library;
mod resolve;
pub mod sys;

#[cfg(feature = "cust")]
pub use cust::unnamed_code;
pub use library::{AlreadyOpen, LoadError, library_directory, library_path, status, symbol, use_library};
