//! Streams and callbacks.

use std::sync::{Arc, PoisonError};

use super::{
    Driver, Error, Handle, Result,
    context::DefaultStream,
    graph::Work,
    handles::new_handle,
    stream::{Stream, Target},
};
use crate::engine::{Op, StreamKind};

/// The legacy default stream, other than by 0.
const LEGACY: Handle = 1;
/// The calling thread's default stream.
const PER_THREAD: Handle = 2;
const NON_BLOCKING: u32 = 1;
/// From the least to the greatest priority, which is the smaller number.
const PRIORITIES: (i32, i32) = (0, -5);

impl Driver {
    /// The stream that a handle means; its context must be able to work.
    pub(super) fn target(&self, stream: Handle) -> Result<Target> {
        let target = match stream {
            0 | LEGACY => {
                let context = self.current()?;
                Target { id: context.default_stream.id, context, is_legacy: true, is_blocking: false }
            }
            PER_THREAD => {
                let context = self.current()?;
                let mut streams = context.thread_streams.lock().unwrap_or_else(PoisonError::into_inner);
                let engine = self.engine_of(&context)?;
                let stream = streams.entry(std::thread::current().id()).or_insert_with(|| {
                    DefaultStream::new(engine, context.handle, &context.health, StreamKind::Blocking)
                });
                let id = stream.id;
                drop(streams);
                Target { context, id, is_legacy: false, is_blocking: true }
            }
            handle => {
                let stream = self.streams.find(handle)?;
                Target {
                    context: Arc::clone(&stream.context),
                    id: stream.id,
                    is_legacy: false,
                    is_blocking: stream.flags & NON_BLOCKING == 0,
                }
            }
        };
        target.context.check()?;
        Ok(target)
    }

    pub(super) fn submit(&self, target: &Target, op: Op) -> Result<()> {
        let submitted = self.engine_of(&target.context)?.submit(target.id, op);
        // A context that was reset meanwhile is destroyed rather than failed.
        submitted.map_err(|failure| target.context.check().err().unwrap_or(failure.into()))
    }

    /// Waits for a stream and reports what became of its context.
    pub(super) fn finish(&self, target: &Target) -> Result<()> {
        self.engine_of(&target.context)?.wait(target.id);
        target.context.check()
    }

    /// `cuStreamCreateWithPriority`. Priorities are kept and answered, but all streams get equal turns.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`], [`Error::InvalidValue`] for unknown flags.
    pub fn stream_create(&self, flags: u32, priority: i32) -> Result<Handle> {
        let context = self.working()?;
        if flags & !NON_BLOCKING != 0 {
            return Err(Error::InvalidValue);
        }
        let kind = if flags & NON_BLOCKING != 0 { StreamKind::NonBlocking } else { StreamKind::Blocking };
        let id = self.engine_of(&context)?.add_stream(context.handle, Arc::clone(&context.health), kind);
        let handle = new_handle();
        let priority = priority.clamp(PRIORITIES.1, PRIORITIES.0);
        self.streams.insert(handle, Arc::new(Stream { handle, context, id, flags, priority }));
        Ok(handle)
    }

    /// `cuStreamDestroy_v2`: what was submitted is still done. A capture that began in the stream is over.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn stream_destroy(&self, stream: Handle) -> Result<()> {
        let stream = self.streams.remove(stream)?;
        self.forget_captured_stream(stream.context.device, stream.id);
        self.engine_of(&stream.context)?.remove_stream(stream.id);
        Ok(())
    }

    /// `cuStreamSynchronize`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], the failure of the stream's context, or [`Error::StreamCaptureUnsupported`] and its
    /// relatives if the stream is being captured or a capture forbids the call.
    pub fn stream_synchronize(&self, stream: Handle) -> Result<()> {
        let target = self.target(stream)?;
        self.permit_stream_wait(&target)?;
        self.finish(&target)
    }

    /// `cuStreamQuery`.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`] while there is work, and those of [`Driver::stream_synchronize`].
    pub fn stream_query(&self, stream: Handle) -> Result<()> {
        let target = self.target(stream)?;
        self.permit_stream_wait(&target)?;
        let idle = self.engine_of(&target.context)?.is_idle(target.id);
        target.context.check()?;
        if idle { Ok(()) } else { Err(Error::NotReady) }
    }

    /// `cuStreamGetFlags`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn stream_flags(&self, stream: Handle) -> Result<u32> {
        match stream {
            0..=PER_THREAD => self.current().map(|_| 0),
            handle => Ok(self.streams.find(handle)?.flags),
        }
    }

    /// `cuStreamGetPriority`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn stream_priority(&self, stream: Handle) -> Result<i32> {
        match stream {
            0..=PER_THREAD => self.current().map(|_| 0),
            handle => Ok(self.streams.find(handle)?.priority),
        }
    }

    /// `cuStreamGetCtx`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn stream_context(&self, stream: Handle) -> Result<Handle> {
        match stream {
            0..=PER_THREAD => Ok(self.current()?.handle),
            handle => Ok(self.streams.find(handle)?.context.handle),
        }
    }

    /// `cuStreamGetId`: a number that no other stream of the process has or had. 0 and `CU_STREAM_LEGACY` are one
    /// stream of the current context; `CU_STREAM_PER_THREAD` is one of the current context and the thread.
    ///
    /// As in the real driver (580), a stream that is being captured is not asked, whatever the capture's mode and the
    /// thread's: to ask spoils the capture.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], [`Error::InvalidContext`], or the failure of the current context;
    /// [`Error::StreamCaptureUnsupported`] for a stream that is being captured, [`Error::StreamCaptureImplicit`] for
    /// the legacy stream while a stream that it waits for is.
    pub fn stream_id(&self, stream: Handle) -> Result<u64> {
        // A context that has failed still tells the number of a stream, as long as there is the stream.
        if let Ok(target) = self.target(stream) {
            self.refuse_capture(&target, Error::StreamCaptureUnsupported)?;
        }
        match stream {
            0 | LEGACY => Ok(self.working()?.default_stream.unique),
            PER_THREAD => {
                let context = self.target(stream)?.context;
                let streams = context.thread_streams.lock().unwrap_or_else(PoisonError::into_inner);
                let mine = streams.get(&std::thread::current().id());
                mine.map(|stream| stream.unique).ok_or(Error::InvalidHandle)
            }
            handle => Ok(self.streams.find(handle)?.handle),
        }
    }

    /// `cuCtxGetStreamPriorityRange`: least and greatest.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`].
    pub fn stream_priority_range(&self) -> Result<(i32, i32)> {
        self.working().map(|_| PRIORITIES)
    }

    /// `cuLaunchHostFunc`: `call` runs in the stream's order, on a thread of the driver's; if it is captured, in every
    /// launch of the graph.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], or the failure of the stream's context.
    pub fn launch_host_function(&self, stream: Handle, call: Box<dyn Fn() + Send + Sync>) -> Result<()> {
        let target = self.target(stream)?;
        if self.is_captured(&target)? {
            return self.capture(&target, Work::Call(call.into()));
        }
        self.submit(&target, Op::Callback(call))
    }

    /// `cuStreamAddCallback`: `call` runs in the stream's order, on a thread of the driver's.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], the failure of the stream's context, or [`Error::StreamCaptureUnsupported`] if the
    /// stream is being captured: callbacks cannot be.
    pub fn stream_add_callback(&self, stream: Handle, call: Box<dyn FnOnce() + Send>) -> Result<()> {
        let target = self.target(stream)?;
        self.refuse_capture(&target, Error::StreamCaptureUnsupported)?;
        self.submit(&target, Op::Callback(call))
    }
}
