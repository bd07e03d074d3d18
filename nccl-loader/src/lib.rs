//! Opens NCCL when it is first needed, and calls its functions.
//!
//! Nothing here links against NCCL: a program starts, and its other parts work, where there is none. Which library is
//! opened:
//!
//! 1. the one given to [`use_library`], else
//! 2. the one that the environment variable `MESHREDUCE_NCCL` names, else
//! 3. `libnccl.so.2`, then `libnccl.so`, by the dynamic loader's rules.
//!
//! 1 and 2 may also name a folder that holds one of the two: the package `nvidia-nccl-cu12` of PyPI puts
//! `libnccl.so.2`, and no `libnccl.so`, into `site-packages/nvidia/nccl/lib`. Whoever may set a process's environment
//! chooses the code that it runs, by this variable as by `LD_PRELOAD`.
//!
//! Two layers:
//!
//! - [`sys`] has NCCL's types and functions as `nccl.h` has them. Each function finds NCCL's when it is first called,
//!   or says why it cannot: [`Unavailable`].
//! - [`result`] has the same functions with results in place of out-parameters, and an [`Error`] with NCCL's own words.
//!   It keeps no policy: nothing is retried, and nothing is freed for the caller.
//!
//! Functions that came after NCCL 2.7 are optional: where the library has no such function, the call answers
//! [`Missing`] with the version that has it. [`functions`] lists them all.
//!
//! ```
//! use meshreduce_nccl_loader::{result, status, version};
//!
//! match status() {
//!     Ok(()) => println!("NCCL {}, {} bytes of id", version()?, result::unique_id()?.internal.len()),
//!     Err(reason) => println!("without NCCL: {reason}"),
//! }
//! # Ok::<(), meshreduce_nccl_loader::Error>(())
//! ```

mod error;
mod library;
mod resolve;
pub mod result;
pub mod sys;
mod version;

pub use error::{Error, Missing, NcclError, Progress, TooOld, Unavailable};
pub use library::{AlreadyOpen, Attempt, LoadError, library_path, status, symbol, use_library};
pub use sys::functions;
pub use version::{Version, check_version, version};
