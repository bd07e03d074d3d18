//! Captures, as the driver knows them.

use std::{collections::HashMap, sync::Arc, thread::ThreadId};

use super::error::{Error, Result};
use super::graph::Graph;
use super::handles::Handle;
use super::stream::Target;

/// Which calls a capture forbids to which threads (`CUstreamCaptureMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CaptureMode {
    /// Potentially unsafe calls of all threads.
    Global = 0,
    /// Potentially unsafe calls of the thread that captures.
    ThreadLocal = 1,
    /// None.
    Relaxed = 2,
}

impl CaptureMode {
    /// The mode with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Global, Self::ThreadLocal, Self::Relaxed].get(number as usize).copied()
    }
}

/// Whether a stream is being captured (`CUstreamCaptureStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CaptureStatus {
    /// It is not.
    None = 0,
    /// It is.
    Active = 1,
    /// It is, by a capture that was invalidated and can only be ended.
    Invalidated = 2,
}

/// What `cuStreamGetCaptureInfo` answers of a stream that is being captured.
#[derive(Clone, Debug)]
pub struct CaptureInfo {
    /// Whether the capture is still valid.
    pub status: CaptureStatus,
    /// The capture's number, unique in the process.
    pub id: u64,
    /// The graph that is being made.
    pub graph: Handle,
    /// What the stream's next node will depend on. The driver keeps this list until the next call that changes it.
    pub dependencies: Arc<[Handle]>,
}

/// All captures of a driver.
#[derive(Default)]
pub(super) struct Captures {
    pub(super) live: HashMap<u64, Capture>,
    /// The capture of every captured stream.
    pub(super) streams: HashMap<StreamKey, u64>,
    /// Events whose latest record was captured, with what had been captured then.
    pub(super) events: HashMap<Handle, (u64, Arc<[Handle]>)>,
}

/// A stream, also one without a handle: the engine's device and number.
pub(super) type StreamKey = (usize, u64);

pub(super) struct Capture {
    pub(super) mode: CaptureMode,
    pub(super) thread: ThreadId,
    pub(super) origin: StreamKey,
    pub(super) context: Handle,
    pub(super) graph: Handle,
    pub(super) is_valid: bool,
    pub(super) streams: HashMap<StreamKey, Captured>,
}

/// A stream of a capture.
pub(super) struct Captured {
    pub(super) frontier: Arc<[Handle]>,
    pub(super) context: Handle,
    pub(super) is_blocking: bool,
}

impl Capture {
    /// Whether the origin depends on all that was captured in other streams.
    pub(super) fn is_joined(&self, graph: &Graph) -> bool {
        let Some(origin) = self.streams.get(&self.origin) else { return false };
        let mut frontiers = self.streams.values().flat_map(|stream| stream.frontier.iter());
        frontiers.all(|node| graph.depend_on(&origin.frontier, *node))
    }
}

impl Captures {
    /// Invalidates captures; what they captured is of no use any more.
    pub(super) fn invalidate(&mut self, which: impl Fn(&u64, &Capture) -> bool) {
        self.live
            .iter_mut()
            .filter(|(id, capture)| which(id, capture))
            .for_each(|(_, capture)| capture.is_valid = false);
    }

    /// Invalidates one capture and says what the reason was.
    pub(super) fn refuse<T>(&mut self, id: u64, reason: Error) -> Result<T> {
        self.invalidate(|other, _| *other == id);
        Err(reason)
    }

    /// The valid capture of a stream.
    pub(super) fn of(&self, stream: StreamKey) -> Result<Option<u64>> {
        match self.streams.get(&stream) {
            Some(id) if self.live.get(id).is_some_and(|capture| capture.is_valid) => Ok(Some(*id)),
            Some(_) => Err(Error::StreamCaptureInvalidated),
            None => Ok(None),
        }
    }

    /// Takes a capture out; its streams are ordinary ones again.
    pub(super) fn end(&mut self, id: u64) -> Option<Capture> {
        self.streams.retain(|_, other| *other != id);
        self.live.remove(&id)
    }
}

pub(super) fn key(target: &Target) -> StreamKey {
    (target.context.device, target.id)
}
