//! From a call to its backend.

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use meshreduce::RawStream;
use meshreduce_device::{ContextState, PrimaryContext};

use super::site::Site;
use super::slot::Slot;
use super::watch::{By, Message, Noted, Watched};
use super::{ProcessGroup, Shared};
use crate::backend::{Backend, Request};
use crate::call::Call;
use crate::clock;
use crate::error::Error;
use crate::flight_recorder::{Begun, EntryId};
use crate::types::Device;
use crate::work::{Outcome, Progress, Work};

/// How a call is made through a handle.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) blocking: bool,
    /// The memory is somebody's again as soon as the call has failed.
    pub(super) lent: bool,
    pub(super) location: &'static Location<'static>,
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
        unsafe { self.make_call(call, Way { blocking: false, lent: false, location: Location::caller() }) }
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
        // SAFETY: the caller vouches for the tensors.
        let started = unsafe { self.make_call(call, Way { blocking: true, lent: true, location }) };
        // Looked at where it is: moving it takes longer than the rest.
        if let Ok(Work { progress: Progress::Done(outcome, _), .. }) = &started {
            return Ok(wanted(outcome));
        }
        let outcome = started?.finish();
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
    pub(super) unsafe fn make_call(&self, call: &Call<'_>, way: Way) -> Result<Work, Error> {
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
            return Ok(Work::done(&info.name, Outcome::default()));
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
                shared.make(device.kind(), Some((self.stream, deadline)))?
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
                shared.compare_calls(call, numbers.0, deadline)?;
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
            has_names: slot.names_of_mesh().get().is_some(),
        };
        // SAFETY: the caller vouches for the tensors until the call has ended; they were checked, and are the backend's device's.
        // The stream is one of that device's primary context, as who set it vouched.
        unsafe { self.hand_over(call, (slot, backend), &request, entry, way.lent.then_some(device)) }
    }

    /// Gives a call to its backend, and notes what that has made of it. (By itself, so that the work is where it is wanted from the
    /// first: moving it takes longer than looking at it.)
    ///
    /// # Safety
    ///
    /// As for [`Backend::start`].
    unsafe fn hand_over(
        &self,
        call: &Call<'_>,
        (slot, backend): (&Slot, &Arc<dyn Backend>),
        request: &Request,
        entry: EntryId,
        lent: Option<Device>,
    ) -> Result<Work, Error> {
        let shared = &*self.shared;
        let (operation, sequence) = (call.operation(), request.sequence);
        let name = backend.name();
        let span = tracing::debug_span!(
            "call",
            group = &*shared.info.name,
            rank = shared.info.rank,
            operation = operation.name(),
            sequence,
            backend = &**name
        );
        let within = span.enter();
        // SAFETY: the caller's promise.
        let mut started = unsafe { backend.start(call, request) };
        drop(within);
        match &mut started {
            Ok(work) => {
                work.sequence = Some(sequence);
                if let Progress::Done(..) = work.progress {
                    if call.is_point_to_point() {
                        shared.note_source(entry, call, work);
                    }
                    shared.family.recorder.ended(entry, true, clock::now());
                    shared.completed(operation, sequence);
                } else {
                    shared.goes_on(entry, call, work, slot, name, request);
                    work.site = Some(Site { group: Arc::clone(&self.shared), operation });
                }
            }
            Err(_) => shared.not_started(entry, &mut started, lent),
        }
        started
    }
}

impl Shared {
    /// A call goes on: its end is looked for.
    #[inline]
    fn goes_on(
        &self,
        entry: EntryId,
        call: &Call<'_>,
        work: &Work,
        slot: &Slot,
        own: &Arc<str>,
        request: &Request,
    ) {
        let recorder = &self.family.recorder;
        let by = match &work.progress {
            Progress::Mesh(_, Some(names)) => {
                slot.names_of_mesh().get_or_init(|| Arc::clone(names));
                own
            }
            Progress::Mesh(_, None) => own,
            Progress::Done(_, by) | Progress::Other(_, by) => by,
        };
        let is_own = Arc::ptr_eq(by, own);
        if !is_own {
            recorder.taken_by(entry, by);
        }
        if work.is_captured() {
            // Its replays are seen by nobody, and their ends by whoever waits for them.
            return recorder.captured(entry);
        }
        recorder.started_at_once(entry, request.start);
        let Request { sequence, start, .. } = *request;
        let noted = Noted { entry, operation: call.operation(), sequence, start, end: request.end() };
        if call.is_point_to_point() {
            let call = Message { call: Watched { work: work.clone(), noted }, peers: call.peers() };
            slot.watch().messages.push(call);
        } else {
            let names = self.hooks.want_completions();
            let by = By { backend: by, names: slot.names_of_mesh().get() };
            slot.watch().lines[usize::from(!is_own)].follow(work, by, &noted, names);
        }
    }

    /// Of a receive from any rank that has ended: whom it was from.
    fn note_source(&self, entry: EntryId, call: &Call<'_>, work: &Work) {
        if let (Call::Recv { peer: None, .. }, Progress::Done(Outcome { source: Some(source) }, _)) =
            (call, &work.progress)
        {
            self.family.recorder.received_from(entry, *source);
        }
    }

    /// The backend did not take a call.
    #[cold]
    fn not_started(&self, entry: EntryId, started: &mut Result<Work, Error>, lent: Option<Device>) {
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
