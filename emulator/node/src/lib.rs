//! An emulated multi-GPU node that executes PTX.
//!
//! Layers, each of which knows only those above it in this list:
//!
//! 1. [`exec`]: runs blocks of a decoded program, instruction by instruction, over an address space.
//! 2. [`node`], [`memory`], [`engine`]: a described node: devices, allocations, streams and the residency of blocks.
//! 3. [`driver`], [`nvml`]: the semantics of the driver API and of NVML over that node.
//!
//! The C names are put on by two thin packages, `libcuda` and `libnvidia-ml`, so that a program that links this
//! crate as a library gets no `cu*` symbols from it.

pub mod driver;
pub mod engine;
pub mod exec;
pub mod memory;
pub mod node;
pub mod nvml;
