//! The emulated node behind NVML's C names: a drop-in `libnvidia-ml.so.1`.
//!
//! The semantics are in [`meshreduce_emulator_node::nvml`]; here are only the names, the C types, and the rule that nothing
//! unwinds into C. Functions that are not here are found missing by name, which is how NVML's callers, who resolve
//! what they use, learn that a driver does not have them.

mod abi;
mod functions;
