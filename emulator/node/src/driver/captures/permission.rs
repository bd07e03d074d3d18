//! What a capture forbids: calls that would wait for captured work, or could.

use super::MODE;
use crate::driver::capture::{Capture, CaptureMode, key};
use crate::driver::{Driver, Error, Handle, Result, context::Context, stream::Target};

impl Driver {
    /// Refuses what cannot be captured, if the stream is being captured; the capture is invalid then.
    pub(in crate::driver) fn refuse_capture(&self, target: &Target, reason: Error) -> Result<()> {
        if !self.is_captured(target)? {
            return Ok(());
        }
        let mut captures = self.captures();
        match captures.of(key(target))? {
            Some(id) => captures.refuse(id, reason),
            None => Ok(()),
        }
    }

    /// Checks a call that could wait for, or implicitly synchronise with, captured work: it is forbidden while this
    /// thread has a capture that is not relaxed, or, unless the thread itself says so by
    /// [`exchange_capture_mode`], any thread has a global one. The captures that forbid it are invalidated.
    ///
    /// # Errors
    ///
    /// [`Error::StreamCaptureUnsupported`].
    pub(in crate::driver) fn permit_unsafe(&self) -> Result<()> {
        if self.nothing_is_captured() {
            return Ok(());
        }
        let (mode, thread) = (MODE.get(), std::thread::current().id());
        let forbids = |capture: &Capture| match mode {
            CaptureMode::Relaxed => false,
            _ if capture.thread == thread && capture.mode != CaptureMode::Relaxed => true,
            mode => mode == CaptureMode::Global && capture.mode == CaptureMode::Global,
        };
        let mut captures = self.captures();
        if !captures.live.values().any(forbids) {
            return Ok(());
        }
        captures.invalidate(|_, capture| forbids(capture));
        Err(Error::StreamCaptureUnsupported)
    }

    /// Checks that the host may wait for a stream or ask after it.
    pub(in crate::driver) fn permit_stream_wait(&self, target: &Target) -> Result<()> {
        self.refuse_capture(target, Error::StreamCaptureUnsupported)?;
        self.permit_unsafe()
    }

    /// Checks that the host may wait for a context: none of its streams is being captured.
    pub(in crate::driver) fn permit_context_wait(&self, context: &Context) -> Result<()> {
        if self.nothing_is_captured() {
            return Ok(());
        }
        let inside =
            |capture: &Capture| capture.streams.values().any(|stream| stream.context == context.handle);
        let mut captures = self.captures();
        if captures.live.values().any(inside) {
            captures.invalidate(|_, capture| inside(capture));
            return Err(Error::StreamCaptureUnsupported);
        }
        drop(captures);
        self.permit_unsafe()
    }

    /// Checks that the host may wait for an event or ask after it.
    pub(in crate::driver) fn permit_event_wait(&self, event: Handle) -> Result<()> {
        let mut captures = self.captures();
        match captures.events.get(&event).map(|(id, _)| *id) {
            Some(id) => captures.refuse(id, Error::CapturedEvent),
            None => {
                drop(captures);
                self.permit_unsafe()
            }
        }
    }
}
