//! Events, as the driver knows them.

use std::sync::Arc;

use super::context::Context;
use crate::engine::{Event, Op};
use crate::memory::SharedMarks;

/// An event that the program made.
pub(super) struct EventObject {
    pub(super) context: Arc<Context>,
    pub(super) event: Arc<Event>,
    pub(super) flags: u32,
    /// Of an event of this process's that others can open.
    pub(super) marks: Option<Arc<SharedMarks>>,
}

impl EventObject {
    /// A new record of the event.
    pub(super) fn record_op(&self) -> Op {
        Op::Record(Arc::clone(&self.event), self.event.record())
    }

    /// A wait for the event's latest record.
    pub(super) fn wait_op(&self) -> Op {
        Op::Wait(Arc::clone(&self.event), self.event.recorded())
    }
}
