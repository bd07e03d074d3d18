//! Contexts.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::ThreadId,
};

use super::error::{Error, Result};
use super::handles::{Handle, new_handle};
use crate::engine::{Engine, Health, StreamKind};

/// A context.
pub(super) struct Context {
    pub(super) handle: Handle,
    /// Index of the device in the node.
    pub(super) device: usize,
    pub(super) flags: AtomicU32,
    pub(super) health: Arc<Health>,
    pub(super) is_primary: bool,
    pub(super) destroyed: AtomicBool,
    /// Held while it is being destroyed and something of it may still run.
    pub(super) stopping: Mutex<()>,
    /// The legacy default stream.
    pub(super) default_stream: DefaultStream,
    /// Stack size, printf buffer and heap, as last set.
    pub(super) limits: Mutex<[u64; 3]>,
    /// Default streams of threads.
    pub(super) thread_streams: Mutex<HashMap<ThreadId, DefaultStream>>,
}

/// A stream that the program did not make.
#[derive(Clone, Copy)]
pub(super) struct DefaultStream {
    /// Its number in the engine, which another device's stream may have too.
    pub(super) id: u64,
    /// What `cuStreamGetId` answers. It is taken from the handles, which are the ids of all other streams.
    pub(super) unique: u64,
}

impl DefaultStream {
    pub(super) fn new(engine: &Engine, context: Handle, health: &Arc<Health>, kind: StreamKind) -> Self {
        Self { id: engine.add_stream(context, Arc::clone(health), kind), unique: new_handle() }
    }
}

impl Context {
    /// The context's failure as an error.
    pub(super) fn check(&self) -> Result<()> {
        if self.destroyed.load(Ordering::Acquire) {
            // Whoever is told so takes it that nothing of the context's uses memory any more.
            drop(self.stopping.lock());
            return Err(Error::ContextIsDestroyed);
        }
        match self.health.failure() {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }
}

/// The primary context of a device.
#[derive(Default)]
pub(super) struct Primary {
    pub(super) context: Option<Arc<Context>>,
    pub(super) users: u32,
    pub(super) flags: u32,
}

/// What `cuDevicePrimaryCtxGetState` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryState {
    /// Its flags.
    pub flags: u32,
    /// Whether anybody holds it.
    pub active: bool,
}
