//! Stream capture: what is pushed into a capturing stream becomes nodes of a graph and is not done.
//!
//! A capture begins in one stream, its origin. A stream that waits for an event recorded in a captured stream joins
//! the capture (a fork); the origin must wait for what it did (a join) before the capture ends. Each captured stream
//! has a *frontier*, the nodes that its next node depends on, and so has each captured event. (CUDA C++ Programming
//! Guide, "Creating a Graph Using Stream Capture".)
//!
//! What conflicts with a capture is refused and, as in the real driver, invalidates it: the capture then takes nothing
//! more, and ending it is an error. Such conflicts are waiting for or asking after a captured stream, event or
//! context; dependencies across the border of the capture; use of the legacy stream while a stream that it waits for
//! is captured; and, by the capture's mode, calls that may do any of these ([`Driver::permit_unsafe`]).

mod permission;

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
};

use super::capture::{Capture, CaptureInfo, CaptureMode, CaptureStatus, Captured, Captures, key};
use super::{
    Driver, Error, Handle, Result,
    context::Context,
    event::EventObject,
    graph::{Node, Work},
    handles::new_handle,
    stream::Target,
};

thread_local! {
    static MODE: Cell<CaptureMode> = const { Cell::new(CaptureMode::Global) };
}

/// `cuThreadExchangeStreamCaptureMode`: sets the calling thread's mode and answers what it was.
pub fn exchange_capture_mode(mode: CaptureMode) -> CaptureMode {
    MODE.replace(mode)
}

impl Driver {
    fn captures(&self) -> MutexGuard<'_, Captures> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without a capture anywhere, which is nearly always, nothing below needs to be asked.
    fn nothing_is_captured(&self) -> bool {
        self.capturing.load(Ordering::Acquire) == 0
    }

    fn end_capture(&self, captures: &mut Captures, id: u64) -> Option<Capture> {
        let ended = captures.end(id);
        self.capturing.store(captures.live.len(), Ordering::Release);
        ended
    }

    /// `cuStreamBeginCapture_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::StreamCaptureUnsupported`] for the legacy stream, [`Error::IllegalState`] if the stream is being
    /// captured already, [`Error::InvalidHandle`], or the failure of the stream's context.
    pub fn stream_begin_capture(&self, stream: Handle, mode: CaptureMode) -> Result<()> {
        let target = self.target(stream)?;
        if target.is_legacy {
            return Err(Error::StreamCaptureUnsupported);
        }
        let mut captures = self.captures();
        if captures.streams.contains_key(&key(&target)) {
            return Err(Error::IllegalState);
        }
        let graph = self.graph_create();
        // Handles are never used twice, so one of them also numbers the capture.
        let id = new_handle();
        let captured = Captured {
            frontier: Arc::default(),
            context: target.context.handle,
            is_blocking: target.is_blocking,
        };
        let capture = Capture {
            mode,
            thread: std::thread::current().id(),
            origin: key(&target),
            context: target.context.handle,
            graph,
            is_valid: true,
            streams: HashMap::from([(key(&target), captured)]),
        };
        captures.streams.insert(key(&target), id);
        captures.live.insert(id, capture);
        self.capturing.store(captures.live.len(), Ordering::Release);
        Ok(())
    }

    /// `cuStreamEndCapture`: the graph.
    ///
    /// A fork counts as joined when the origin depends on all that it captured.
    ///
    /// # Errors
    ///
    /// [`Error::IllegalState`] if the stream is not being captured. While the capture goes on:
    /// [`Error::StreamCaptureUnmatched`] if it did not begin in this stream, [`Error::StreamCaptureWrongThread`] if it
    /// began in another thread and is not [`CaptureMode::Relaxed`]. With its end: [`Error::StreamCaptureInvalidated`],
    /// [`Error::StreamCaptureUnjoined`].
    pub fn stream_end_capture(&self, stream: Handle) -> Result<Handle> {
        let target = self.target(stream)?;
        let mut captures = self.captures();
        let id = *captures.streams.get(&key(&target)).ok_or(Error::IllegalState)?;
        let capture = captures.live.get(&id).ok_or(Error::IllegalState)?;
        if capture.origin != key(&target) {
            return Err(Error::StreamCaptureUnmatched);
        }
        if capture.mode != CaptureMode::Relaxed && capture.thread != std::thread::current().id() {
            return Err(Error::StreamCaptureWrongThread);
        }
        let capture = self.end_capture(&mut captures, id).ok_or(Error::IllegalState)?;
        drop(captures);
        let is_joined = capture.is_joined(&*self.graphs.find(capture.graph)?);
        if capture.is_valid && is_joined {
            return Ok(capture.graph);
        }
        self.graph_destroy(capture.graph)?;
        Err(if capture.is_valid { Error::StreamCaptureUnjoined } else { Error::StreamCaptureInvalidated })
    }

    /// `cuStreamIsCapturing`.
    ///
    /// # Errors
    ///
    /// [`Error::StreamCaptureImplicit`] for the legacy stream while a stream that it waits for is being captured (which
    /// does not hurt the capture), [`Error::InvalidHandle`], or the failure of the stream's context.
    pub fn stream_is_capturing(&self, stream: Handle) -> Result<CaptureStatus> {
        Ok(self.stream_capture_info(stream)?.map_or(CaptureStatus::None, |info| info.status))
    }

    /// `cuStreamGetCaptureInfo`; `None` if the stream is not being captured.
    ///
    /// # Errors
    ///
    /// As [`Driver::stream_is_capturing`].
    pub fn stream_capture_info(&self, stream: Handle) -> Result<Option<CaptureInfo>> {
        let target = self.target(stream)?;
        let captures = self.captures();
        if target.is_legacy && captures.live.values().any(|capture| encompasses(&target.context, capture)) {
            return Err(Error::StreamCaptureImplicit);
        }
        let Some(id) = captures.streams.get(&key(&target)) else { return Ok(None) };
        let found = captures.live.get(id);
        Ok(found.and_then(|capture| {
            let status = if capture.is_valid { CaptureStatus::Active } else { CaptureStatus::Invalidated };
            let stream = capture.streams.get(&key(&target))?;
            let dependencies = Arc::clone(&stream.frontier);
            Some(CaptureInfo { status, id: *id, graph: capture.graph, dependencies })
        }))
    }

    /// Whether what is enqueued to the stream is to be captured.
    ///
    /// # Errors
    ///
    /// [`Error::StreamCaptureInvalidated`] if its capture is; [`Error::StreamCaptureImplicit`] for the legacy stream
    /// while a stream that it waits for is being captured, which this invalidates.
    pub(super) fn is_captured(&self, target: &Target) -> Result<bool> {
        if self.nothing_is_captured() {
            return Ok(false);
        }
        let mut captures = self.captures();
        if target.is_legacy {
            let conflict = |capture: &Capture| encompasses(&target.context, capture);
            if captures.live.values().any(conflict) {
                captures.invalidate(|_, capture| conflict(capture));
                return Err(Error::StreamCaptureImplicit);
            }
        }
        Ok(captures.of(key(target))?.is_some())
    }

    /// Adds a node behind what the stream has captured.
    pub(super) fn capture(&self, target: &Target, work: Work) -> Result<()> {
        let mut captures = self.captures();
        let id = captures.of(key(target))?.ok_or(Error::IllegalState)?;
        let capture = captures.live.get_mut(&id).ok_or(Error::IllegalState)?;
        let stream = capture.streams.get_mut(&key(target)).ok_or(Error::IllegalState)?;
        let node = Node {
            handle: new_handle(),
            context: Arc::clone(&target.context),
            work,
            dependencies: Arc::clone(&stream.frontier),
        };
        stream.frontier = Arc::new([node.handle]);
        self.graphs.find(capture.graph)?.add(Arc::new(node));
        Ok(())
    }

    /// Captures a record of an event, if the stream is being captured, and says so. Otherwise the event is an ordinary
    /// one from now on.
    pub(super) fn capture_record(&self, target: &Target, event: Handle) -> Result<bool> {
        let is_captured = self.is_captured(target)?;
        let mut captures = self.captures();
        if !is_captured {
            captures.events.remove(&event);
            return Ok(false);
        }
        let id = captures.of(key(target))?.ok_or(Error::IllegalState)?;
        let stream = captures.live.get(&id).and_then(|capture| capture.streams.get(&key(target)));
        let frontier = Arc::clone(&stream.ok_or(Error::IllegalState)?.frontier);
        captures.events.insert(event, (id, frontier));
        Ok(true)
    }

    /// Captures a wait for an event, if stream or event are being captured, and says so.
    ///
    /// # Errors
    ///
    /// [`Error::StreamCaptureIsolation`] for a captured stream and an event that was not captured,
    /// [`Error::StreamCaptureMerge`] for those of two captures, [`Error::CapturedEvent`] if the event's capture is
    /// over, [`Error::StreamCaptureImplicit`] for the legacy stream, [`Error::StreamCaptureInvalidated`].
    pub(super) fn capture_wait(&self, target: &Target, event: Handle) -> Result<bool> {
        self.is_captured(target)?;
        let mut captures = self.captures();
        let own = captures.of(key(target))?;
        let captured = captures.events.get(&event).cloned();
        let (from, frontier) = match (own, captured) {
            (None, None) => return Ok(false),
            (Some(id), None) => return captures.refuse(id, Error::StreamCaptureIsolation),
            (_, Some(captured)) => captured,
        };
        let Some(valid) = captures.live.get(&from).map(|capture| capture.is_valid) else {
            own.into_iter().for_each(|id| captures.invalidate(|other, _| *other == id));
            return Err(Error::CapturedEvent);
        };
        if let Some(id) = own.filter(|id| *id != from) {
            captures.invalidate(|other, _| [id, from].contains(other));
            return Err(Error::StreamCaptureMerge);
        }
        if !valid {
            return Err(Error::StreamCaptureInvalidated);
        }
        if target.is_legacy {
            return captures.refuse(from, Error::StreamCaptureImplicit);
        }
        captures.streams.insert(key(target), from);
        let capture = captures.live.get_mut(&from).ok_or(Error::IllegalState)?;
        let stream = capture.streams.entry(key(target)).or_insert_with(|| Captured {
            frontier: Arc::default(),
            context: target.context.handle,
            is_blocking: target.is_blocking,
        });
        let new = frontier.iter().filter(|node| !stream.frontier.contains(node));
        stream.frontier = stream.frontier.iter().chain(new).copied().collect();
        Ok(true)
    }

    /// Captures a record or wait that takes place when the graph is replayed (`CU_EVENT_RECORD_EXTERNAL`,
    /// `CU_EVENT_WAIT_EXTERNAL`), if the stream is being captured, and says so.
    pub(super) fn capture_external(
        &self,
        target: &Target,
        event: &Arc<EventObject>,
        work: fn(Arc<EventObject>) -> Work,
    ) -> Result<bool> {
        if !self.is_captured(target)? {
            return Ok(false);
        }
        self.capture(target, work(Arc::clone(event)))?;
        Ok(true)
    }

    /// An event is gone.
    pub(super) fn forget_captured_event(&self, event: Handle) {
        self.captures().events.remove(&event);
    }

    /// A stream is gone. A capture that began there is over; another goes on, and what it captured in the stream must be
    /// joined as ever.
    pub(super) fn forget_captured_stream(&self, device: usize, id: u64) {
        let stream = (device, id);
        let mut captures = self.captures();
        let Some(capture) = captures.streams.remove(&stream) else { return };
        if captures.live.get(&capture).is_some_and(|capture| capture.origin == stream)
            && let Some(ended) = self.end_capture(&mut captures, capture)
        {
            drop(captures);
            let _ = self.graph_destroy(ended.graph);
        }
    }

    /// A context is gone, and with it the captures that began in it.
    pub(super) fn forget_captures(&self, context: &Context) {
        let mut captures = self.captures();
        let over: Vec<_> = captures
            .live
            .iter()
            .filter(|(_, capture)| capture.context == context.handle)
            .map(|(id, _)| *id)
            .collect();
        let ended: Vec<_> = over.into_iter().filter_map(|id| self.end_capture(&mut captures, id)).collect();
        drop(captures);
        for capture in ended {
            let _ = self.graph_destroy(capture.graph);
        }
    }
}

/// Whether the legacy stream of the context waits for a stream of the capture.
fn encompasses(context: &Context, capture: &Capture) -> bool {
    capture.streams.values().any(|stream| stream.is_blocking && stream.context == context.handle)
}
