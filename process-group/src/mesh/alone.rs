//! A world of one: every call is a copy, or nothing.

use std::sync::Arc;
use std::time::Instant;

use meshreduce::RawStream;
use meshreduce_device::{DriverError, Event, PrimaryContext, copy_within, is_capturing};
use meshreduce_store::clock::Pause;

use crate::backend::Request;
use crate::call::Call;
use crate::error::{Cause, Error};
use crate::tensor::Tensor;
use crate::work::{Completion, Outcome, Work};

/// Makes a call of the only rank: sends and receives there are none, since a rank cannot send to itself.
///
/// # Safety
///
/// As for [`crate::Backend::start`].
///
/// # Errors
///
/// The driver's.
pub(super) unsafe fn make(
    context: &PrimaryContext,
    call: &Call<'_>,
    stream: RawStream,
) -> Result<(), DriverError> {
    let copy = |from: Tensor, to: Tensor| {
        if from.address == to.address || from.count == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for both tensors and the stream; the group has checked that they are equally long and
        // do not overlap unless they are the same.
        unsafe { copy_within(context, to.address, from.address, from.bytes() as u64, stream) }
    };
    match call {
        Call::AllReduce { input, output, .. } | Call::Reduce { input, output: Some(output), .. } => {
            copy(*input, *output)
        }
        Call::AllGather { input, outputs } | Call::Gather { input, outputs: Some(outputs), .. } => {
            copy(*input, outputs.part(0, 1))
        }
        Call::Scatter { inputs: Some(inputs), output, .. } | Call::ReduceScatter { inputs, output, .. } => {
            copy(inputs.part(0, 1), *output)
        }
        Call::AllToAll { inputs, outputs } => copy(inputs.part(0, 1), outputs.part(0, 1)),
        // SAFETY: the caller vouches for all of them.
        Call::Batch(calls) => calls.iter().try_for_each(|call| unsafe { make(context, call, stream) }),
        _ => Ok(()),
    }
}

/// The work of what was enqueued on the request's stream.
///
/// # Safety
///
/// The request's stream is a stream of the context.
///
/// # Errors
///
/// The driver's.
pub(super) unsafe fn work(
    backend: &Arc<str>,
    group: &Arc<str>,
    context: &Arc<PrimaryContext>,
    request: &Request,
) -> Result<Work, DriverError> {
    let event = Event::new(context)?;
    // SAFETY: the caller vouches for the stream.
    unsafe { event.record(request.stream) }?;
    // SAFETY: as above.
    let is_captured = unsafe { is_capturing(context, request.stream) }?;
    let recorded = Recorded { event, is_captured, backend: Arc::clone(backend), group: Arc::clone(group) };
    Ok(Work::pending(backend, Arc::new(recorded)))
}

/// An event behind what was enqueued.
#[derive(Debug)]
struct Recorded {
    event: Event,
    is_captured: bool,
    backend: Arc<str>,
    group: Arc<str>,
}

impl Recorded {
    fn error(&self, error: DriverError) -> Error {
        let (backend, group) = (Arc::clone(&self.backend), Arc::clone(&self.group));
        Error::Backend { backend, group, source: Cause::new(error) }
    }
}

impl Completion for Recorded {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        let passed = self.event.has_passed().map_err(|error| self.error(error))?;
        Ok(passed.then(Outcome::default))
    }

    fn wait(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error> {
        let Some(end) = end else {
            self.event.synchronize().map_err(|error| self.error(error))?;
            return Ok(Some(Outcome::default()));
        };
        let mut pause = Pause::new(end.saturating_duration_since(Instant::now()));
        loop {
            match self.poll()? {
                None if pause.again() => {}
                ended => return Ok(ended),
            }
        }
    }

    unsafe fn wait_on(&self, stream: RawStream) -> Result<(), Error> {
        // SAFETY: the caller vouches for the stream.
        unsafe { self.event.wait_on(stream) }.map_err(|error| self.error(error))
    }

    fn is_captured(&self) -> bool {
        self.is_captured
    }
}
