//! The emulated node behind the driver's C names: a drop-in `libcuda.so.1`.
//!
//! The semantics are in [`meshreduce_emulator_node::driver`]; here are only the names, the C types, and the rule that
//! nothing unwinds into C. `cuGetProcAddress` finds everything that is exported. Functions that are not emulated are
//! exported too: they answer `CUDA_ERROR_NOT_SUPPORTED` and are named once on stderr.

mod abi;
mod context;
mod device;
mod direct_rdma;
mod event;
mod fault;
mod graph;
mod lookup;
mod memory;
mod memory_op;
mod missing;
mod module;
mod stream;
