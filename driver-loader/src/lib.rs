//! Defines the functions of the CUDA driver API and forwards them to a library that is opened on first use.
//!
//! `cust` and `cust_raw` link against `libcuda.so.1`: a binary that contains them does not even start where there is
//! no NVIDIA driver. This crate defines every `cu*` function that `cust_raw` declares, so that the linker finds them
//! here, and opens the driver when the first one is called. Which library that is:
//!
//! 1. the one given to [`use_library`], else
//! 2. the one that the environment variable `MESHREDUCE_DRIVER` names, else
//! 3. `libcuda.so.1`, by the dynamic loader's rules.
//!
//! Without a driver every function answers `CUDA_ERROR_NO_DEVICE`, and [`status`] has the reason. A function that the
//! driver does not have answers `CUDA_ERROR_NOT_SUPPORTED`. An error code that `cust_raw` has no name for becomes
//! `CUDA_ERROR_UNKNOWN`, because a Rust enum must not hold a value that it does not declare;
//! [`unnamed_code`] tells the last such code.
//!
//! A binary gets these definitions by depending on this crate and mentioning it
//! (`use meshreduce_driver_loader as _;` is enough). Where the CUDA toolkit is installed they take precedence over
//! the toolkit's stub library.
//!
//! # Building
//!
//! `cust_raw`'s build script wants to see a directory that looks like a CUDA installation; any directory with a
//! `lib64` in it will do. A crate that depends on this one and is built where there is no CUDA toolkit needs these
//! two lines in its `.cargo/config.toml`:
//!
//! ```toml
//! [env]
//! CUDA_LIBRARY_PATH = "/usr"
//! ```

mod forward;
mod library;
mod names;
mod table;

pub use forward::unnamed_code;
pub use library::{AlreadyOpen, LoadError, library_directory, library_path, status, symbol, use_library};
