//! Streams, events and callbacks.

use std::sync::{Arc, PoisonError};

use super::{
    Driver, Error, Handle, Result,
    context::{Context, DefaultStream},
    graph::Work,
    handles::new_handle,
};
use crate::engine::{Event, Op, StreamKind};

/// A stream that the program made.
pub(super) struct Stream {
    handle: Handle,
    pub(super) context: Arc<Context>,
    /// Its number in the engine.
    pub(super) id: u64,
    flags: u32,
    priority: i32,
}

/// An event that the program made.
pub(super) struct EventObject {
    pub(super) context: Arc<Context>,
    event: Arc<Event>,
    flags: u32,
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

/// The legacy default stream, other than by 0.
const LEGACY: Handle = 1;
/// The calling thread's default stream.
const PER_THREAD: Handle = 2;
const NON_BLOCKING: u32 = 1;
const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;
const EXTERNAL: u32 = 1;
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

    /// `cuStreamDestroy_v2`: what was submitted is still done. A capture of the stream is invalidated.
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
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], [`Error::InvalidContext`], or the failure of the current context.
    pub fn stream_id(&self, stream: Handle) -> Result<u64> {
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

    /// `cuEventCreate`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`], [`Error::InvalidValue`] for unknown flags, [`Error::NotSupported`] for events between
    /// processes.
    pub fn event_create(&self, flags: u32) -> Result<Handle> {
        let context = self.working()?;
        if flags & !(BLOCKING_SYNC | DISABLE_TIMING | INTERPROCESS) != 0 {
            return Err(Error::InvalidValue);
        }
        if flags & INTERPROCESS != 0 {
            return Err(if flags & DISABLE_TIMING == 0 { Error::InvalidValue } else { Error::NotSupported });
        }
        let handle = new_handle();
        self.events.insert(handle, Arc::new(EventObject { context, event: Arc::default(), flags }));
        Ok(handle)
    }

    /// `cuEventDestroy_v2`: what waits for it still does.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn event_destroy(&self, event: Handle) -> Result<()> {
        self.events.remove(event)?;
        self.forget_captured_event(event);
        Ok(())
    }

    /// `cuEventRecord`. In a stream that is being captured it marks what has been captured so far, for streams that
    /// are to join the capture or that join again.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`] also if event and stream are of different contexts, or the failure of the context.
    pub fn event_record(&self, event: Handle, stream: Handle) -> Result<()> {
        let (object, target) = self.event_and_stream(event, stream)?;
        if self.capture_record(&target, event)? {
            return Ok(());
        }
        self.submit(&target, object.record_op())
    }

    /// `cuEventRecordWithFlags` with `CU_EVENT_RECORD_EXTERNAL`: if it is captured, every launch of the graph records
    /// the event, for whoever waits outside of it.
    ///
    /// # Errors
    ///
    /// As [`Driver::event_record`].
    pub fn event_record_external(&self, event: Handle, stream: Handle) -> Result<()> {
        let (object, target) = self.event_and_stream(event, stream)?;
        if self.capture_external(&target, &object, Work::Record)? {
            return Ok(());
        }
        self.event_record(event, stream)
    }

    fn event_and_stream(&self, event: Handle, stream: Handle) -> Result<(Arc<EventObject>, Target)> {
        let event = self.events.find(event)?;
        let target = self.target(stream)?;
        if event.context.handle != target.context.handle {
            return Err(Error::InvalidHandle);
        }
        Ok((event, target))
    }

    /// `cuEventQuery`. An event that was never recorded counts as done.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`], and those of [`Driver::event_synchronize`].
    pub fn event_query(&self, event: Handle) -> Result<()> {
        let handle = event;
        let event = self.events.find(handle)?;
        event.context.check()?;
        self.permit_event_wait(handle)?;
        let done = event.event.has_reached(event.event.recorded());
        if done { event.context.check() } else { Err(Error::NotReady) }
    }

    /// `cuEventSynchronize`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], the failure of the event's context, [`Error::CapturedEvent`] if its latest record was
    /// captured, or [`Error::StreamCaptureUnsupported`] if a capture forbids the call.
    pub fn event_synchronize(&self, event: Handle) -> Result<()> {
        let handle = event;
        let event = self.events.find(handle)?;
        event.context.check()?;
        self.permit_event_wait(handle)?;
        event.event.wait(event.event.recorded());
        event.context.check()
    }

    /// `cuEventElapsedTime`, in milliseconds.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`] also if either was made without timing or never recorded, [`Error::NotReady`], or the
    /// failure of the context.
    pub fn event_elapsed(&self, start: Handle, end: Handle) -> Result<f32> {
        let (start, end) = (self.events.find(start)?, self.events.find(end)?);
        for event in [&start, &end] {
            event.context.check()?;
            if event.flags & DISABLE_TIMING != 0 || event.event.recorded() == 0 {
                return Err(Error::InvalidHandle);
            }
        }
        start.event.milliseconds_until(&end.event).ok_or(Error::NotReady)
    }

    /// `cuStreamWaitEvent`: the stream waits for the event's latest record; without one, not at all. With an event that
    /// was captured the stream joins the capture, unless `flags` is 1 (`CU_EVENT_WAIT_EXTERNAL`) and the stream is
    /// being captured: then every launch of the graph waits for the event.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], [`Error::InvalidValue`] for other flags, the failure of the stream's context, or what
    /// is against the rules of captures: [`Error::StreamCaptureIsolation`], [`Error::StreamCaptureMerge`],
    /// [`Error::StreamCaptureImplicit`], [`Error::CapturedEvent`].
    pub fn stream_wait_event(&self, stream: Handle, event: Handle, flags: u32) -> Result<()> {
        let target = self.target(stream)?;
        let object = self.events.find(event)?;
        if flags & !EXTERNAL != 0 {
            return Err(Error::InvalidValue);
        }
        if flags & EXTERNAL != 0 && self.capture_external(&target, &object, Work::Wait)? {
            return Ok(());
        }
        if self.capture_wait(&target, event)? {
            return Ok(());
        }
        self.submit(&target, object.wait_op())
    }
}
