//! From a call to its backend.

use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use meshreduce::RawStream;
use meshreduce_device::{ContextState, PrimaryContext};
use tracing::level_filters::LevelFilter;
use tracing::span::EnteredSpan;

use super::site::Site;
use super::slot::Slot;
use super::watch::{Message, Noted, Watched};
use super::{ProcessGroup, Shared};
use crate::backend::{Backend, Made, Request};
use crate::call::Call;
use crate::clock;
use crate::error::Error;
use crate::flight_recorder::{Begun, EntryId};
use crate::types::{Device, Operation};
use crate::work::{Outcome, Progress, Work};

/// How a call is made through a handle.
#[derive(Clone, Copy)]
pub(super) struct CallOptions {
    pub(super) blocking: bool,
    /// The memory is somebody's again as soon as the call has failed.
    pub(super) lent: bool,
    pub(super) location: &'static Location<'static>,
}

/// A call that its backend is about to get.
struct Handed<'a> {
    slot: &'a Slot,
    backend: &'a Arc<dyn Backend>,
    request: Request,
    entry: EntryId,
    /// Of memory that is somebody's again as soon as the call has failed: where that is.
    lent: Option<Device>,
}

impl ProcessGroup {
    /// Makes a call: the lowest level, for memory of any kind and for calls that go on while the caller does other things.
    ///
    /// A call on device memory is enqueued on the handle's stream, and the host does not wait. What is enqueued there behind it sees
    /// its result; the [`Work`] need not be kept.
    ///
    /// ```no_run
    /// # use meshreduce_process_group::{BufferMut, Call, Error, ProcessGroup, ReduceOp};
    /// # fn step(group: &ProcessGroup, activations: &mut impl BufferMut, stream: *mut std::ffi::c_void) -> Result<(), Error> {
    /// // SAFETY: a stream of the primary context of the group's device, and it outlives the handle.
    /// let group = unsafe { group.on_stream(stream) }; // of the crate cust: `&stream`
    /// let tensor = activations.tensor_mut();
    /// // SAFETY: only kernels on this stream use the activations until it has been waited for.
    /// unsafe { group.start(&Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }) }?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Graphs
    ///
    /// While the stream is being captured the call becomes a part of the graph. Its backend must be there before
    /// ([`ProcessGroup::connect`], by all ranks); the [`Work`] of a captured call cannot be waited for or asked. A capture counts as
    /// one call in [`ProcessGroup::usage`], the sequence numbers and the flight recorder; replays are seen by none of them. (The
    /// mesh's kernels keep the deadline of the handle; other backends' calls have none in a graph.) All ranks replay in the same order among their other calls on the group's device.
    ///
    /// # Safety
    ///
    /// The call's tensors are valid for what the call does with them, and nothing else uses them, until the call has ended:
    /// until [`Work`] says so, or what comes behind it on its stream runs. If the call is captured, this holds for every replay.
    ///
    /// # Errors
    ///
    /// Nothing goes on in that case. [`Error::Call`] for what makes no sense on this rank alone; [`Error::NoBackend`],
    /// [`Error::WrongDevice`], [`Error::Unsupported`]; [`Error::NotMade`] and [`Error::MadeInCapture`] for a backend's first call;
    /// [`Error::Mismatch`] if calls are checked; after the end of the group its cause; the backend's own.
    #[track_caller]
    pub unsafe fn start(&self, call: &Call<'_>) -> Result<Work, Error> {
        // SAFETY: the caller vouches for the tensors, and did for the stream when it was set.
        unsafe {
            self.make_call(call, CallOptions { blocking: false, lent: false, location: Location::caller() })
        }
    }

    /// Makes a call and waits for its end; gives what is wanted of what came of it.
    ///
    /// # Safety
    ///
    /// The call's tensors are valid for what the call does with them, and nothing else uses them, until this returns.
    #[inline]
    pub(super) unsafe fn make_and_wait<T>(
        &self,
        call: &Call<'_>,
        location: &'static Location<'static>,
        wanted: impl FnOnce(&Outcome) -> T,
    ) -> Result<T, Error> {
        self.outside_of_captures(call)?;
        let way = CallOptions { blocking: true, lent: true, location };
        let at_once = |_: &Shared| Made::Ended(Outcome::default());
        // SAFETY: the caller vouches for the tensors.
        let made = unsafe { self.make_by(call, way, at_once, |begun| self.hand_over_and_wait(call, begun)) };
        let outcome = match made? {
            Made::Ended(outcome) => return Ok(wanted(&outcome)),
            Made::GoesOn(work) => work.finish(),
        };
        if outcome.is_err() {
            self.shared.drain(call.device());
        }
        outcome.map(|outcome| wanted(&outcome))
    }

    /// Refuses a call whose memory is only lent, while its stream is being captured: a graph keeps it.
    #[inline]
    pub(super) fn outside_of_captures(&self, call: &Call<'_>) -> Result<(), Error> {
        let Some(Device::Cuda(_)) = call.device() else { return Ok(()) };
        match self.shared.settings.cuda_device {
            Some(ordinal) if is_captured(ordinal, self.stream) => {
                let (operation, group) = (call.operation(), Arc::clone(&self.shared.info.name));
                Err(Error::WaitInCapture { operation, group })
            }
            _ => Ok(()),
        }
    }

    /// # Safety
    ///
    /// As for [`ProcessGroup::start`].
    pub(super) unsafe fn make_call(&self, call: &Call<'_>, way: CallOptions) -> Result<Work, Error> {
        let at_once = |shared: &Shared| Work::done(&shared.info.name, Outcome::default());
        // SAFETY: the caller's promise, until the call has ended.
        unsafe { self.make_by(call, way, at_once, |begun| self.hand_over(call, begun)) }
    }

    /// Looks whether a call can be made, numbers and records it, and has it made by `hand_over`. What is for nothing is `at_once`.
    ///
    /// # Safety
    ///
    /// As for [`ProcessGroup::start`]; `hand_over` hands it to the backend, and needs no more than [`Backend::start`].
    #[inline(always)]
    unsafe fn make_by<'a, T>(
        &'a self,
        call: &Call<'_>,
        way: CallOptions,
        at_once: impl FnOnce(&Shared) -> T,
        hand_over: impl FnOnce(&Handed<'a>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let shared = &*self.shared;
        shared.alive()?;
        let info = &*shared.info;
        let operation = call.operation();
        call.check(info.rank, info.world_size).map_err(|source| Error::Call {
            operation,
            group: Arc::clone(&info.name),
            source,
        })?;
        let Some(device) = call.device() else {
            // An empty batch.
            return Ok(at_once(shared));
        };
        let deadline = self.deadline.unwrap_or(shared.settings.deadline);
        let slot = shared.slot(device.kind());
        let backend = match slot.made() {
            Some(backend) => {
                shared.check_device(call, device)?;
                backend
            }
            None => {
                // In the order in which a caller would ask: is there a backend, is it for this device, can it be made.
                shared.context(device.kind())?;
                shared.check_device(call, device)?;
                let made = shared.make(device.kind(), Some((self.stream, deadline)));
                made.map_err(|error| shared.failed(error))?
            }
        };
        backend.supports(call).map_err(|why| unsupported(&**backend, call, device, shared, why))?;
        let start = clock::now();
        let is_p2p = call.is_point_to_point();
        let recorder = &shared.family.recorder;
        let checked = match shared.settings.check_calls && !is_p2p {
            false => None,
            true => {
                let numbers = recorder.in_turn(|| shared.count(is_p2p));
                let compared = self.shared.compare_calls(backend, call, numbers.0, deadline);
                compared.map_err(|error| shared.failed(error))?;
                Some(numbers)
            }
        };
        let mut begun = Begun {
            group: shared.record,
            backend: backend.name(),
            call,
            collective_sequence: 0,
            p2p_sequence: 0,
            created: start,
            deadline,
            location: way.location,
        };
        let (entry, numbers) =
            recorder.begin_in_turn(&mut begun, || checked.unwrap_or_else(|| shared.count(is_p2p)));
        let sequence = if is_p2p { numbers.1 } else { numbers.0 };
        let request = Request {
            sequence,
            start,
            deadline,
            stream: self.stream,
            blocking: way.blocking,
            entry: Some(entry),
            names: shared.hooks.want_completions(),
        };
        // By reference: moving it takes longer than building it.
        hand_over(&Handed { slot, backend, request, entry, lent: way.lent.then_some(device) })
    }

    /// Gives a call to its backend, and notes what that has made of it. (By itself, so that the work is where it is wanted from the
    /// first: moving it takes longer than looking at it.)
    ///
    /// # Safety
    ///
    /// As for [`Backend::start`].
    unsafe fn hand_over(&self, call: &Call<'_>, begun: &Handed<'_>) -> Result<Work, Error> {
        let shared = &*self.shared;
        // SAFETY: the caller's promise.
        let mut started = shared.traced(call, begun, || unsafe { begun.backend.start(call, &begun.request) });
        match &mut started {
            Ok(work) => match work.progress {
                Progress::Done(outcome, _) => {
                    work.sequence = Some(begun.request.sequence);
                    shared.ended_at_once(call, begun, &outcome);
                }
                _ => self.goes_on(call, begun, work),
            },
            Err(_) => shared.not_started(begun.entry, &mut started, begun.lent),
        }
        started
    }

    /// The same of a call that is waited for. One that goes on is still to be waited for.
    ///
    /// # Safety
    ///
    /// As for [`Backend::start`].
    unsafe fn hand_over_and_wait(&self, call: &Call<'_>, begun: &Handed<'_>) -> Result<Made, Error> {
        let shared = &*self.shared;
        // SAFETY: the caller's promise.
        let mut made = shared.traced(call, begun, || unsafe { begun.backend.make(call, &begun.request) });
        match &mut made {
            Ok(Made::Ended(outcome)) => shared.ended_at_once(call, begun, outcome),
            Ok(Made::GoesOn(work)) => self.goes_on(call, begun, work),
            Err(_) => shared.not_started(begun.entry, &mut made, begun.lent),
        }
        made
    }

    /// A call goes on: its end is looked for, and whoever has the work finds the group by it.
    #[inline]
    fn goes_on(&self, call: &Call<'_>, begun: &Handed<'_>, work: &mut Work) {
        // (One that comes from another group has a site too.)
        let is_followed = work.sequence.is_some() && work.site.is_none();
        work.sequence = Some(begun.request.sequence);
        self.shared.note(call, begun, work, is_followed);
        work.site = Some(Site { group: Arc::clone(&self.shared), operation: call.operation() });
    }
}

impl Shared {
    /// Does something in the span of a call. Without a subscriber that wants it that is a look at one number, here where most calls go on.
    #[inline]
    fn traced<T>(&self, call: &Call<'_>, begun: &Handed<'_>, act: impl FnOnce() -> T) -> T {
        if LevelFilter::current() < LevelFilter::DEBUG {
            return act();
        }
        let span = self.span(call.operation(), begun.request.sequence, begun.backend.name());
        let made = act();
        // A subscriber that panics (its hook has said so) must not unwind past a call that goes on: whoever has its memory would let go of it.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(span)));
        made
    }

    #[cold]
    fn span(&self, operation: Operation, sequence: u64, backend: &str) -> EnteredSpan {
        let (group, rank, operation) = (&*self.info.name, self.info.rank, operation.name());
        tracing::debug_span!("call", group, rank, operation, sequence, backend).entered()
    }

    /// A call has ended while it was made.
    #[inline]
    fn ended_at_once(&self, call: &Call<'_>, begun: &Handed<'_>, outcome: &Outcome) {
        let recorder = &self.family.recorder;
        // Of a receive from any rank: whom it was from.
        if let (Call::Recv { peer: None, .. }, Some(source)) = (call, outcome.source) {
            recorder.received_from(begun.entry, source);
        }
        recorder.ended_at_once(begun.entry);
        self.completed(call.operation(), begun.request.sequence);
    }

    /// Notes a call that goes on, whose end is looked for.
    #[inline]
    fn note(&self, call: &Call<'_>, begun: &Handed<'_>, work: &Work, is_followed: bool) {
        let Handed { slot, backend, ref request, entry, .. } = *begun;
        let recorder = &self.family.recorder;
        let is_own = Arc::ptr_eq(work.backend(), backend.name());
        if !is_own {
            recorder.taken_by(entry, work.backend());
        }
        if work.is_captured() {
            // Its replays are seen by nobody, and their ends by whoever waits for them.
            return recorder.captured(entry);
        }
        recorder.started_at_once(entry, request.start);
        if is_followed {
            return;
        }
        let Request { sequence, start, names, .. } = *request;
        let noted = Noted { entry, operation: call.operation(), sequence, start, end: request.end() };
        if call.is_point_to_point() {
            let watched = Watched { work: work.clone(), noted };
            slot.watch().messages.push(Message { call: watched, peers: call.peers(), tag: call.tag() });
        } else {
            slot.watch().lines[usize::from(!is_own)].follow(work, &noted, names);
        }
    }

    /// The backend did not take a call.
    #[cold]
    fn not_started<T>(&self, entry: EntryId, started: &mut Result<T, Error>, lent: Option<Device>) {
        self.family.recorder.ended(entry, false, clock::now());
        if let Err(error) = started {
            if may_have_been_enqueued(error) {
                self.drain(lent);
            }
            *error = self.failed(error.clone());
        }
    }

    /// Returns when nothing runs any more that could touch a failed call's memory on this device. (Backends of host memory leave
    /// nothing behind.)
    #[cold]
    pub(super) fn drain(&self, device: Option<Device>) {
        if let (Some(Device::Cuda(_)), Some(ordinal)) = (device, self.settings.cuda_device) {
            drain(ordinal);
        }
    }
}

/// Whether something of a call may be on the device that its backend has refused with this error.
fn may_have_been_enqueued(error: &Error) -> bool {
    !matches!(
        error,
        Error::Unsupported { .. }
            | Error::MadeInCapture { .. }
            | Error::WaitInCapture { .. }
            | Error::TransferInCapture { .. }
            | Error::NotMade { .. }
            | Error::ShutDown { .. }
    )
}

/// That a backend does not take a call.
fn unsupported(
    backend: &dyn Backend,
    call: &Call<'_>,
    device: Device,
    shared: &Shared,
    why: String,
) -> Error {
    Error::Unsupported {
        backend: Arc::clone(backend.name()),
        operation: call.operation(),
        dtype: call.dtype(),
        op: call.op(),
        group: Arc::clone(&shared.info.name),
        device,
        why,
    }
}

/// Returns when nothing runs on the device any more that could touch a failed call's memory. Backends end what fails, so that takes
/// a moment, and as long as it must.
fn drain(ordinal: u32) {
    /// How long is waited before the log says so, again and again.
    const PATIENCE: Duration = Duration::from_secs(1);
    let Ok(context) = meshreduce_device::initialise().and_then(|()| PrimaryContext::retain(ordinal)) else {
        // Without a driver there was no call.
        return;
    };
    loop {
        match context.finish(PATIENCE) {
            Ok(true) => return,
            _ if context.state() != ContextState::Alive => return,
            Ok(false) => tracing::warn!(ordinal, "waiting for what a failed call has left on the device"),
            // The driver refuses to wait while a stream of the context is being captured.
            Err(error) => {
                tracing::warn!(ordinal, %error, "waiting for what a failed call has left on the device");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Whether `stream` is being captured. Where that cannot be told, because there is no driver for instance, it is not: what is
/// missing is said by what needs it.
pub(super) fn is_captured(ordinal: u32, stream: RawStream) -> bool {
    let Ok(context) = meshreduce_device::initialise().and_then(|_| PrimaryContext::retain(ordinal)) else {
        return false;
    };
    // SAFETY: who set the handle's stream vouched that it is a stream of the device's primary context.
    match unsafe { meshreduce_device::is_capturing(&context, stream) } {
        Ok(is) => is,
        Err(error) => error.is_about_capture(),
    }
}
