//! The semantics of the driver API over an emulated node.
//!
//! [`Driver`] has one method per function of the API (several, where the C names are variants of one thing), with
//! results in place of out-parameters. The package `libcuda` puts the C names on them. Handles are numbers; a wrong
//! one is answered with an error.
//!
//! Modules with the names of things (`context`, `stream`, `graph`) hold what these are, [`state`] all of them together,
//! and modules in the plural (`contexts`, `streams`, `graphs`) the functions.

mod capture;
mod captures;
mod context;
mod contexts;
mod copies;
mod copy;
mod device;
mod direct_rdma;
mod error;
mod event;
mod events;
mod fork;
mod graph;
mod graphs;
mod handles;
mod launch;
mod memory;
mod memory_op;
mod memory_ops;
mod module;
mod modules;
mod replay;
mod state;
mod stream;
mod streams;
mod visible;

pub use capture::{CaptureInfo, CaptureMode, CaptureStatus};
pub use captures::exchange_capture_mode;
pub use context::PrimaryState;
pub use copy::Pattern;
pub use direct_rdma::DeviceFile;
pub use error::{Error, Result, name as error_name, text as error_text};
pub use fork::is_forked_child;
pub use graph::NodeType;
pub use handles::Handle;
pub use launch::{LaunchConfig, Parameters};
pub use memory::PointerAttribute;
pub use memory_op::{MemoryOp, Operand};
pub use modules::{FunctionAttribute, LoadError};
pub use state::{DEFAULT_NODE, Driver, OnFlush, Options, driver, init, node_from_env, version};
