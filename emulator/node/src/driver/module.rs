//! Modules and functions, as the driver knows them.

use std::sync::{Arc, atomic::AtomicU32};

use meshreduce_emulator_ptx as ptx;

use super::context::Context;
use super::handles::Handle;

/// A loaded module.
pub(super) struct Module {
    pub(super) context: Arc<Context>,
    pub(super) program: ptx::Module,
}

/// A kernel of a loaded module.
pub(super) struct Function {
    pub(super) context: Arc<Context>,
    pub(super) module: Handle,
    pub(super) kernel: Arc<ptx::Kernel>,
    pub(super) ptx_version: i32,
    /// Most dynamic shared memory of a block, in bytes.
    pub(super) max_dynamic_shared: AtomicU32,
}
