//! The streams of callers.

use std::marker::PhantomData;
use std::sync::Arc;

use meshreduce_device::{Device, RawStream, Stream, Word};

use crate::channel::Ready;
use crate::devices::Devices;
use crate::error::Error;

/// A stream of a device's primary context, for as long as it is borrowed.
#[derive(Clone, Copy, Debug)]
pub struct OnStream<'a> {
    stream: RawStream,
    ordinal: u32,
    alive: PhantomData<&'a Stream>,
}

impl<'a> OnStream<'a> {
    /// A stream of any crate; a default stream is that of the device.
    ///
    /// # Safety
    ///
    /// For as long as the value lives it is a stream of the primary context of the CUDA device with this ordinal, and no graph is
    /// captured from it.
    pub unsafe fn raw(ordinal: u32, stream: RawStream) -> Self {
        Self { stream, ordinal, alive: PhantomData }
    }

    pub(crate) fn ordinal(self) -> u32 {
        self.ordinal
    }

    /// Makes the stream wait until the word is 1.
    pub(crate) fn wait_for(self, word: &Word) -> Result<(), Error> {
        // SAFETY: whoever has made the value vouches for the stream, or it is borrowed.
        Ok(unsafe { word.enqueue_wait(1, self.stream) }?)
    }
}

impl<'a> From<&'a Stream> for OnStream<'a> {
    fn from(stream: &'a Stream) -> Self {
        Self { stream: stream.raw(), ordinal: stream.context().ordinal(), alive: PhantomData }
    }
}

/// What a transfer waits for before it touches its memory: what has been enqueued on a stream, or nothing. Made from a stream, an
/// [`OnStream`], or `None`.
#[derive(Clone, Copy, Debug)]
pub struct After<'a>(Option<OnStream<'a>>);

impl After<'_> {
    /// Nothing.
    pub const NOTHING: After<'static> = After(None);

    /// The stream's device.
    pub(crate) fn device(&self) -> Option<Device> {
        self.0.map(|stream| Device::Cuda(stream.ordinal))
    }

    /// Records what has been enqueued so far.
    pub(crate) fn record(self, devices: &Devices) -> Result<Ready, Error> {
        let Some(OnStream { stream, ordinal, .. }) = self.0 else { return Ok(Ready::Now) };
        let event = devices.event(ordinal)?;
        // SAFETY: whoever has made the value vouches for the stream, which is of the device's primary context, as the event is.
        unsafe { event.record(stream) }.map_err(|error| event.context().cause_of(error))?;
        Ok(Ready::Behind(Arc::clone(&event)))
    }
}

impl After<'_> {
    /// Has the stream tell when what has been enqueued so far is done: for what begins with a message, or on another device.
    pub(crate) fn tell(self, devices: &Devices) -> Result<Ready, Error> {
        let Some(OnStream { stream, ordinal, .. }) = self.0 else { return Ok(Ready::Now) };
        match devices.word(ordinal) {
            Ok(word) => {
                // SAFETY: whoever has made the value vouches for the stream; it is the word's only write.
                unsafe { word.enqueue_write(1, stream) }?;
                Ok(Ready::Told(word, 1))
            }
            // A driver that is too old for words.
            Err(Error::NoDevice { .. }) => self.record(devices),
            Err(error) => Err(error),
        }
    }
}

impl<'a> From<OnStream<'a>> for After<'a> {
    fn from(stream: OnStream<'a>) -> Self {
        Self(Some(stream))
    }
}

impl<'a> From<&'a Stream> for After<'a> {
    fn from(stream: &'a Stream) -> Self {
        Self(Some(stream.into()))
    }
}

impl<'a> From<Option<&'a Stream>> for After<'a> {
    fn from(stream: Option<&'a Stream>) -> Self {
        Self(stream.map(OnStream::from))
    }
}
