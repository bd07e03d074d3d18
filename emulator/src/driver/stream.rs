//! Streams, events and callbacks.

use std::sync::{Arc, PoisonError};

use super::{Driver, Error, Handle, Result, context::Context, handles::new_handle};
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
}

/// The legacy default stream, other than by 0.
const LEGACY: Handle = 1;
/// The calling thread's default stream.
const PER_THREAD: Handle = 2;
const NON_BLOCKING: u32 = 1;
const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;
/// From the least to the greatest priority, which is the smaller number.
const PRIORITIES: (i32, i32) = (0, -5);

impl Driver {
    /// The stream that a handle means; its context must be able to work.
    pub(super) fn target(&self, stream: Handle) -> Result<Target> {
        let target = match stream {
            0 | LEGACY => {
                let context = self.current()?;
                Target { id: context.default_stream, context }
            }
            PER_THREAD => {
                let context = self.current()?;
                let mut streams = context.thread_streams.lock().unwrap_or_else(PoisonError::into_inner);
                let engine = self.engine_of(&context)?;
                let id = *streams.entry(std::thread::current().id()).or_insert_with(|| {
                    engine.add_stream(context.handle, Arc::clone(&context.health), StreamKind::Blocking)
                });
                drop(streams);
                Target { context, id }
            }
            handle => {
                let stream = self.streams.find(handle)?;
                Target { context: Arc::clone(&stream.context), id: stream.id }
            }
        };
        target.context.check()?;
        Ok(target)
    }

    pub(super) fn submit(&self, target: &Target, op: Op) -> Result<()> {
        Ok(self.engine_of(&target.context)?.submit(target.id, op)?)
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

    /// `cuStreamDestroy_v2`: what was submitted is still done.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn stream_destroy(&self, stream: Handle) -> Result<()> {
        let stream = self.streams.remove(stream)?;
        self.engine_of(&stream.context)?.remove_stream(stream.id);
        Ok(())
    }

    /// `cuStreamSynchronize`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], or the failure of the stream's context.
    pub fn stream_synchronize(&self, stream: Handle) -> Result<()> {
        self.finish(&self.target(stream)?)
    }

    /// `cuStreamQuery`.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`] while there is work, [`Error::InvalidHandle`], or the failure of the stream's context.
    pub fn stream_query(&self, stream: Handle) -> Result<()> {
        let target = self.target(stream)?;
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

    /// `cuStreamGetId`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn stream_id(&self, stream: Handle) -> Result<u64> {
        match stream {
            0..=PER_THREAD => Ok(self.target(stream)?.id),
            handle => Ok(self.streams.find(handle)?.handle),
        }
    }

    /// `cuStreamIsCapturing`: never; capture is not emulated.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn stream_is_capturing(&self, stream: Handle) -> Result<bool> {
        self.target(stream).map(|_| false)
    }

    /// `cuCtxGetStreamPriorityRange`: least and greatest.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`].
    pub fn stream_priority_range(&self) -> Result<(i32, i32)> {
        self.working().map(|_| PRIORITIES)
    }

    /// `cuLaunchHostFunc` and `cuStreamAddCallback`: `call` runs in the stream's order, on a thread of the driver's.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], or the failure of the stream's context.
    pub fn launch_host_function(&self, stream: Handle, call: Box<dyn FnOnce() + Send>) -> Result<()> {
        self.submit(&self.target(stream)?, Op::Callback(call))
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
        self.events.remove(event).map(|_| ())
    }

    /// `cuEventRecord`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`] also if event and stream are of different contexts, or the failure of the context.
    pub fn event_record(&self, event: Handle, stream: Handle) -> Result<()> {
        let event = self.events.find(event)?;
        let target = self.target(stream)?;
        if event.context.handle != target.context.handle {
            return Err(Error::InvalidHandle);
        }
        let number = event.event.record();
        self.submit(&target, Op::Record(Arc::clone(&event.event), number))
    }

    /// `cuEventQuery`. An event that was never recorded counts as done.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`], [`Error::InvalidHandle`], or the failure of the event's context.
    pub fn event_query(&self, event: Handle) -> Result<()> {
        let event = self.events.find(event)?;
        event.context.check()?;
        let done = event.event.has_reached(event.event.recorded());
        if done { event.context.check() } else { Err(Error::NotReady) }
    }

    /// `cuEventSynchronize`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], or the failure of the event's context.
    pub fn event_synchronize(&self, event: Handle) -> Result<()> {
        let event = self.events.find(event)?;
        event.context.check()?;
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

    /// `cuStreamWaitEvent`: the stream waits for the event's latest record; without one, not at all.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], [`Error::InvalidValue`] for flags other than 0, or the failure of the stream's context.
    pub fn stream_wait_event(&self, stream: Handle, event: Handle, flags: u32) -> Result<()> {
        let target = self.target(stream)?;
        let event = self.events.find(event)?;
        // 1 (external) is for captures; outside of one it changes nothing.
        if flags & !1 != 0 {
            return Err(Error::InvalidValue);
        }
        let number = event.event.recorded();
        self.submit(&target, Op::Wait(Arc::clone(&event.event), number))
    }
}
