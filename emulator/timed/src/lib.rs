//! How long kernels take on a described machine, **simulated**: no figure of it is a measurement.
//!
//! A [`Session`] has devices with memory and launches, all of which are given by text, address and parameter: nothing here
//! knows what a kernel is for. [`Session::run`] executes them on the machine that [`Parameters`] describe, instruction by
//! instruction and warp by warp, and tells when which ended, and, if asked, what waited for what.
//!
//! # What is simulated
//!
//! - A warp issues in order. An instruction waits for the registers that it reads or writes, for its turn at its
//!   scheduler, and where it is a fence for all that a fence waits for. Threads that part at a branch go on one group after
//!   the other, and together again where they meet.
//! - An access of a warp is cut into lines of 128 bytes with sectors of 32. Parameters, shared memory and the L1 cache (for
//!   weak loads) answer in the multiprocessor; an acquire empties the L1 cache. The rest queues for the multiprocessor's
//!   port, for the L2 cache of the device whose memory it is, on a miss for the memory behind it, and for NVLink in each
//!   direction, where each line has a header besides its data.
//! - What is loaded is what is there when the request arrives; a store is there when it has arrived. Its acknowledgement
//!   goes back, and nobody waits for it but a fence of gpu or system scope, a release, and the next kernel of the device. A
//!   fence waits also for the stores of those whom its warp has met at a barrier.
//! - Blocks begin one after the other where a multiprocessor has room; the next kernel of a device begins when all stores of
//!   the one before are acknowledged.
//!
//! # What is not
//!
//! An assembler's work: a PTX instruction counts as one machine instruction, moves, joins and parameters as none. Bank
//! conflicts, address translation, the parts of an L2 cache, instruction caches, clocks that change, and whatever else
//! happens on the machine.
#![forbid(unsafe_code)]

mod access;
mod cache;
mod device;
mod error;
mod links;
mod machine;
mod memory;
mod parameters;
mod path;
mod program;
mod request;
mod session;
mod step;
mod time;
mod warp;

pub use error::TimedError;
pub use parameters::{LaunchCost, Memory, Multiprocessor, NvLink, Order, Parameters, ParametersError};
pub use path::StepKind;
pub use session::{Kernel, Session, Step, Timed};
