//! Events, also those that several processes have.

use std::sync::{Arc, PoisonError, Weak};

use super::{
    Driver, Error, Handle, Result, event::EventObject, graph::Work, handles::new_handle, stream::Target,
};
use crate::{
    engine::{Event, Marks},
    memory::{Exported, IpcHandle, MemoryError, SharedMarks},
};

const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;
const EXTERNAL: u32 = 1;

impl EventObject {
    /// Checks that the stream is not being captured if the event is one between processes.
    fn refuse_capture(&self, driver: &Driver, target: &Target) -> Result<()> {
        if self.flags & INTERPROCESS == 0 {
            return Ok(());
        }
        driver.refuse_capture(target, Error::StreamCaptureUnsupported)
    }
}

impl Driver {
    /// `cuEventCreate`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`], [`Error::InvalidValue`] for unknown flags and for an event between processes that has
    /// times, [`Error::OperatingSystem`].
    pub fn event_create(&self, flags: u32) -> Result<Handle> {
        let context = self.working()?;
        if flags & !(BLOCKING_SYNC | DISABLE_TIMING | INTERPROCESS) != 0 {
            return Err(Error::InvalidValue);
        }
        if flags & INTERPROCESS == 0 {
            return Ok(self.add_event(EventObject { context, event: Arc::default(), flags, marks: None }));
        }
        if flags & DISABLE_TIMING == 0 {
            return Err(Error::InvalidValue);
        }
        let marks = Arc::new(SharedMarks::new(self.memory.instance())?);
        let event = Arc::new(Event::shared(Arc::clone(&marks) as Arc<dyn Marks>));
        Ok(self.add_event(EventObject { context, event, flags, marks: Some(marks) }))
    }

    fn add_event(&self, event: EventObject) -> Handle {
        let handle = new_handle();
        self.events.insert(handle, Arc::new(event));
        handle
    }

    /// `cuIpcGetEventHandle`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`] also if the event was not made for other processes, or by another one.
    pub fn ipc_event_handle(&self, event: Handle) -> Result<[u8; 64]> {
        let event = self.events.find(event)?;
        event.context.check()?;
        let marks = event.marks.as_ref().ok_or(Error::InvalidHandle)?;
        Ok(marks.export().map_err(|_| Error::InvalidHandle)?.to_bytes())
    }

    /// `cuIpcOpenEventHandle`: another process's event, in the current context. While it is open here, it can be opened
    /// again, also if the process that made it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`] in the process that made it, [`Error::MapFailed`] if it is no handle of this node's or
    /// the event is gone, or the failure of the context.
    pub fn ipc_open_event(&self, handle: &[u8; 64]) -> Result<Handle> {
        let context = self.working()?;
        let handle = IpcHandle::from_bytes(handle, Exported::Event).map_err(|_| Error::MapFailed)?;
        let mut imported = self.imported_events.lock().unwrap_or_else(PoisonError::into_inner);
        imported.retain(|_, event| event.strong_count() > 0);
        let event = match imported.get(&handle).and_then(Weak::upgrade) {
            Some(event) => event,
            None => {
                let marks =
                    SharedMarks::open(&handle, self.memory.instance()).map_err(|error| match error {
                        MemoryError::BadHandle(reason) => {
                            eprintln!(
                                "meshreduce emulator: cuIpcOpenEventHandle: not a valid handle: {reason}"
                            );
                            Error::MapFailed
                        }
                        other => other.into(),
                    })?;
                let event = Arc::new(Event::shared(Arc::new(marks)));
                imported.insert(handle, Arc::downgrade(&event));
                event
            }
        };
        drop(imported);
        let flags = DISABLE_TIMING | INTERPROCESS;
        Ok(self.add_event(EventObject { context, event, flags, marks: None }))
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
    /// [`Error::InvalidHandle`] also if event and stream are of different contexts, the failure of the context, or
    /// [`Error::StreamCaptureUnsupported`] if the stream is being captured and the event is one between processes.
    pub fn event_record(&self, event: Handle, stream: Handle) -> Result<()> {
        let (object, target) = self.event_and_stream(event, stream)?;
        object.refuse_capture(self, &target)?;
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
        object.refuse_capture(self, &target)?;
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
    /// captured, [`Error::StreamCaptureUnsupported`] if a capture forbids the call, or [`Error::LaunchTimeout`] if the
    /// process that made the record ended before it was reached and that was long ago. (The real driver waits on.)
    pub fn event_synchronize(&self, event: Handle) -> Result<()> {
        let handle = event;
        let event = self.events.find(handle)?;
        event.context.check()?;
        self.permit_event_wait(handle)?;
        if !event.event.wait(event.event.recorded(), self.options.deadlock_after) {
            eprintln!(
                "meshreduce emulator: cuEventSynchronize: the process that recorded the event has ended before it happened"
            );
            return Err(Error::LaunchTimeout);
        }
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
