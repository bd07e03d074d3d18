//! An emulated multi-GPU node that executes PTX.
//!
//! Layers, each of which knows only those above it in this list:
//!
//! 1. [`ptx`]: text to a checked, decoded program.
//! 2. [`exec`]: runs blocks of that program, instruction by instruction, over an address space.
//! 3. `node`, `memory`, `engine`: a described node: devices, allocations, streams and the residency of blocks.
//! 4. `driver`, `nvml`: the semantics of the driver API and of NVML over that node.
//!
//! Beside them, [`litmus`] holds tests of the memory model and an oracle for them that shares nothing with `exec`, and
//! [`path`] counts the steps that kernels must wait for one after the other.
//!
//! The C names are put on by two thin packages, `libcuda` and `libnvidia-ml`, so that a program that links this
//! crate as a library gets no `cu*` symbols from it.

pub mod driver;
pub mod engine;
pub mod exec;
pub mod litmus;
pub mod memory;
pub mod node;
pub mod nvml;
pub mod path;
pub mod ptx;
