//! The word of a counter in device memory.

use std::sync::Arc;

use meshreduce_device::{DeviceMemory, DriverError, PrimaryContext, Stream, enqueue_write_value64};

use super::Counters;
use crate::error::Error;

/// The stream on which words of a device are written: one for all counters of an endpoint, so that each is written in order.
pub(super) fn stream(counters: &Counters, ordinal: u32) -> Result<Arc<Stream>, Error> {
    if let Some(stream) = counters.table().streams.get(&ordinal) {
        return Ok(Arc::clone(stream));
    }
    let context = PrimaryContext::retain(ordinal)?;
    let stream = Arc::new(Stream::new(&context)?);
    // Another thread may have been quicker.
    Ok(Arc::clone(counters.table().streams.entry(ordinal).or_insert(stream)))
}

#[derive(Debug)]
pub(super) struct DeviceWord {
    memory: DeviceMemory,
    stream: Arc<Stream>,
}

impl DeviceWord {
    pub(super) fn new(stream: &Arc<Stream>) -> Result<Self, DriverError> {
        let memory = DeviceMemory::new(stream.context(), 8)?;
        Ok(Self { memory, stream: Arc::clone(stream) })
    }

    pub(super) fn ordinal(&self) -> u32 {
        self.stream.context().ordinal()
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Enqueues that it holds `value`, in the order of the calls. It waits for nothing else: the stream is for this alone.
    pub(super) fn show(&self, value: u64) -> Result<(), DriverError> {
        let (context, stream) = (self.stream.context(), self.stream.raw());
        // SAFETY: the word is aligned, as every allocation, and is freed only when the stream, which is alive and of that context,
        // has done everything.
        unsafe { enqueue_write_value64(context, self.memory.address(), value, stream) }
    }
}

impl Drop for DeviceWord {
    fn drop(&mut self) {
        // Nothing but such writes is on the stream: it does not take long.
        if let Err(error) = self.stream.synchronize() {
            tracing::warn!(%error, "the stream of a counter's word");
        }
    }
}
