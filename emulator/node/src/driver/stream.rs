//! Streams, as the driver knows them.

use std::sync::Arc;

use super::context::Context;
use super::handles::Handle;

/// A stream that the program made.
pub(super) struct Stream {
    pub(super) handle: Handle,
    pub(super) context: Arc<Context>,
    /// Its number in the engine.
    pub(super) id: u64,
    pub(super) flags: u32,
    pub(super) priority: i32,
}

/// A stream as an operation needs it.
pub(super) struct Target {
    pub(super) context: Arc<Context>,
    pub(super) id: u64,
    /// It is the legacy default stream.
    pub(super) is_legacy: bool,
    /// The legacy default stream waits for it.
    pub(super) is_blocking: bool,
}
