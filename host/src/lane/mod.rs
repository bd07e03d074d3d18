//! Lanes: where calls are launched.

mod calls;
mod collectives;
mod exchange_kind;
mod group;
mod order;
mod plan;
mod slice_plan;
mod slices;
mod state;

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshreduce_device::{self as device, DriverError, RawStream};
use meshreduce_wire::launch::IN_PLACE;
use meshreduce_wire::{DType, LaunchParams, Op};

use crate::error::Error;
use crate::shared::{Shared, nanoseconds};
use crate::work::Work;
use order::{LastCall, WaitFor};
use plan::{Kind, Plan};
use slice_plan::SlicePlan;
pub use slices::RawSlice;
pub(crate) use slices::{SliceCall, is_alike_to_all};

pub(crate) use calls::{Calls, Recorded};
pub use exchange_kind::ExchangeKind;
pub(crate) use exchange_kind::decode;
pub use group::RawTensor;
pub use order::StreamOrder;
pub(crate) use state::{LaneState, Pages};

/// One order of calls: signal pad and staging of its own.
///
/// All ranks must make the same calls on a lane in the same order; ranks that differ get [`Error::LaunchMismatch`]. Calls
/// that are enqueued on different streams must be ordered: typed calls see to it themselves, raw calls say how
/// ([`StreamOrder`]). Two streams that are to run at the same time, or two graphs that are replayed at the same time, need
/// a lane each.
///
/// A failure on one lane ends all lanes of the communicator.
///
/// A lane is `Send` but not `Sync`, and its calls take `&mut self`.
#[derive(Debug)]
pub struct Lane {
    shared: Arc<Shared>,
    state: Arc<LaneState>,
    /// How long kernels wait for a peer; 0: for ever.
    deadline_ns: u64,
    /// Of what that was made, if it is not the communicator's.
    deadline: Option<Option<Duration>>,
    /// Given back to the communicator at the end.
    calls: Calls,
    /// Not `Sync`.
    _one_thread: PhantomData<Cell<()>>,
}

/// An all-reduce's memory and kind.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) count: usize,
    pub(crate) dtype: DType,
    pub(crate) op: Op,
}

/// A call that runs, or will.
struct Enqueued {
    /// Behind it, if there was to be one.
    event: Option<Arc<Recorded>>,
    /// Its number on the lane.
    number: u64,
    /// It went into a graph.
    captured: bool,
}

impl Enqueued {
    /// The work object of a call that was to be observed.
    fn observed(self) -> Work {
        let event = self.event.expect("an event is behind what is observed");
        Work::new(event, self.number, self.captured)
    }
}

impl Lane {
    pub(crate) fn new(shared: Arc<Shared>, state: Arc<LaneState>) -> Self {
        let (calls, deadline_ns) = (shared.lend(state.index), shared.deadline_ns);
        Self { shared, state, deadline_ns, deadline: None, calls, _one_thread: PhantomData }
    }

    /// The lane's number, equal on all ranks.
    pub fn index(&self) -> u32 {
        self.state.index
    }

    /// The kernels of the calls that are made from now on through this value wait so long for their peers, instead of what
    /// [`crate::Config::deadline`] says; `None`: for ever. Less than a microsecond is one. Ranks may differ: the first whose deadline
    /// passes ends the call on all. A graph keeps the deadlines with which its calls were captured.
    #[inline]
    pub fn set_deadline(&mut self, deadline: Option<Duration>) {
        // Most calls have the one of those before.
        if self.deadline != Some(deadline) {
            self.deadline = Some(deadline);
            self.deadline_ns = nanoseconds(deadline.map(|deadline| deadline.max(Duration::from_micros(1))));
        }
    }

    /// Gives the work objects of all calls on this lane something that they can be told by ([`Work::label`]), at no cost to a call.
    /// The first label that a lane is given stays, as long as its communicator; says whether this is it.
    pub fn set_label(&mut self, label: impl Any + Send + Sync) -> bool {
        self.state.label().set(Box::new(label)).is_ok()
    }

    /// Enqueues an all-reduce of `count` elements at `input` into `output` on `stream`: the lowest level, for
    /// pointers and streams of any crate. `input` and `output` may be equal (in place) and must otherwise not overlap.
    /// `stream` is a stream's handle, or a [`StreamOrder`]. A count of 0 moves nothing, and is a launch like any other: a rank that has
    /// nothing where others have something hears of that, and so do they.
    ///
    /// This is four driver calls: which stream it is, whether it is being captured, a kernel launch, and an event behind
    /// it. If the stream is being captured into a graph, the call becomes a node of it; see the crate's documentation for
    /// what holds for replays.
    ///
    /// The device's context need not be current; what is current stays so. A default stream (null, `CU_STREAM_LEGACY`,
    /// `CU_STREAM_PER_THREAD`) is that of the device's primary context; the per-thread one of two threads is two streams.
    ///
    /// # Safety
    ///
    /// - `input` and `output` are device addresses of `count` elements that the communicator's device can access, valid
    ///   until the work has ended and not used otherwise before; if the call is captured, this holds for every replay. (A
    ///   replay after the communicator's end, which is a mistake, see [`crate::Communicator`], reads the input and writes
    ///   nothing.)
    /// - `stream` is a stream of the device's primary context, and no other thread begins or ends a capture of it during
    ///   the call.
    /// - Calls of a lane never run at the same time. What is enqueued on one stream does not. A call on another stream than
    ///   the lane's last one is refused unless a [`StreamOrder`] is given, and what that says must be true: an event was
    ///   recorded behind the last call, or the streams are ordered otherwise. A stream that was destroyed while a call on it
    ///   ran is another stream than one which is later given the same handle; before CUDA 12.0 the library cannot tell the
    ///   two apart, and the caller must. Replays of graphs are ordered by the caller.
    ///
    /// # Errors
    ///
    /// Nothing was launched, or runs any more, in any case; a graph whose capture the driver spoilt meanwhile may have the
    /// call. [`Error::Misaligned`] unless the addresses are multiples of the
    /// element's size, [`Error::PartialOverlap`], [`Error::NoAlgorithm`] or, for a forced algorithm,
    /// [`Error::Unsupported`]; [`Error::StreamsNotOrdered`]; [`Error::StreamNotOnDevice`]; [`Error::Capturing`] for the
    /// legacy default stream while another stream is being captured; [`Error::ContextReset`]; after a failure of the
    /// communicator, that failure again.
    pub unsafe fn all_reduce_raw(
        &mut self,
        input: u64,
        output: u64,
        count: usize,
        dtype: DType,
        op: Op,
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        // SAFETY: the caller vouches for the pointers, the stream and its order.
        unsafe { self.enqueue_work(Message { input, output, count, dtype, op }, stream.into()) }
    }

    /// [`Lane::all_reduce_raw`] without an event behind it and without a work object: one driver call less, for callers
    /// that order and wait by streams of their own. [`crate::Communicator::status`] tells what became of it, and the end of
    /// the communicator waits for all that the device's primary context has to do.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`].
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_reduce_raw`].
    pub unsafe fn all_reduce_raw_unobserved(
        &mut self,
        input: u64,
        output: u64,
        count: usize,
        dtype: DType,
        op: Op,
        stream: impl Into<StreamOrder>,
    ) -> Result<(), Error> {
        // SAFETY: the caller vouches for the pointers, the stream and its order.
        unsafe { self.enqueue(Message { input, output, count, dtype, op }, stream.into(), false) }.map(|_| ())
    }

    /// [`Lane::enqueue`] with a work object.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`].
    pub(crate) unsafe fn enqueue_work(
        &mut self,
        message: Message,
        order: StreamOrder,
    ) -> Result<Work, Error> {
        // SAFETY: the caller vouches for all of it.
        Ok(unsafe { self.enqueue(message, order, true) }?.observed())
    }

    /// All-reduces and waits: returns only when no kernel of the call runs any more, whatever the driver refuses meanwhile.
    ///
    /// # Safety
    ///
    /// The message's addresses are valid for the time of the call; `order` says the truth. `stream` is a stream.
    #[cfg_attr(not(feature = "cust"), allow(dead_code))] // the typed calls are built on it
    pub(crate) unsafe fn enqueue_and_wait(
        &mut self,
        message: Message,
        order: StreamOrder,
    ) -> Result<(), Error> {
        // SAFETY: the caller vouches for all of it.
        unsafe { self.and_wait(order, |lane| lane.enqueue(message, order, true)) }
    }

    /// The same of another collective.
    ///
    /// # Safety
    ///
    /// As for [`Lane::enqueue_and_wait`].
    #[cfg_attr(not(feature = "cust"), allow(dead_code))] // the typed calls are built on it
    pub(crate) unsafe fn enqueue_slices_and_wait(
        &mut self,
        call: &SliceCall,
        order: StreamOrder,
    ) -> Result<(), Error> {
        // SAFETY: the caller vouches for all of it.
        unsafe { self.and_wait(order, |lane| lane.enqueue_slices(call, order)) }
    }

    /// Waits for what `enqueue` enqueues, on the stream of `order`.
    ///
    /// # Safety
    ///
    /// As for [`Lane::enqueue_and_wait`].
    unsafe fn and_wait(
        &mut self,
        order: StreamOrder,
        enqueue: impl FnOnce(&mut Self) -> Result<Enqueued, Error>,
    ) -> Result<(), Error> {
        let stream = order.stream;
        let context = self.state.context();
        // SAFETY: the caller vouches for the stream.
        if unsafe { device::is_capturing(context, stream) }.map_err(|error| self.refusal(error))? {
            return Err(Error::Capturing);
        }
        let Enqueued { event, number, captured } = enqueue(self)?;
        if captured {
            // A capture of the stream began meanwhile, on another thread.
            return Err(Error::Capturing);
        }
        // SAFETY: the launch has shown that it is a stream of this context.
        let settled = unsafe { self.state.settle(stream, event.as_ref().map(|recorded| &recorded.event)) };
        settled.map_err(|error| self.refusal(error))?;
        self.state.note_ended(number);
        self.state.status()
    }

    unsafe fn enqueue(
        &mut self,
        message: Message,
        order: StreamOrder,
        observed: bool,
    ) -> Result<Enqueued, Error> {
        let Message { input, output, count, dtype, op } = message;
        if count == 0 {
            // SAFETY: the caller vouches for the stream and its order; there is no memory.
            return unsafe { self.enqueue_slices(&SliceCall::all_reduce_of_nothing(dtype, op), order) };
        }
        let state = &*self.state;
        state.status()?;
        let bytes = (count as u64).saturating_mul(dtype.size() as u64);
        check_addresses(input, output, bytes, dtype)?;
        let plan = self.plan(&message)?;
        let mut params = self.launch_params(&message, &plan);
        // SAFETY: the module is loaded for as long as `shared`; the kernels take one `LaunchParams`; what it leads to lives as
        // long as `shared`, and the counters, without which nothing of it is touched, outlive it with the module if this is
        // captured. The caller vouches for the pointers and the stream, and for its order.
        unsafe {
            self.submit(order, observed, |stream, done| {
                while *done < plan.launches(&message) {
                    plan.set(*done, &message, &mut params);
                    let (blocks, threads) = (plan.geometry.blocks, plan.geometry.threads);
                    plan.function.launch(blocks, threads, stream, &params)?;
                    *done += 1;
                }
                Ok(())
            })
        }
    }

    /// How an all-reduce of elements is launched.
    #[inline]
    fn plan(&mut self, message: &Message) -> Result<Plan, Error> {
        let Message { count, dtype, op, .. } = *message;
        let bytes = (count as u64).saturating_mul(dtype.size() as u64);
        self.calls.plans.of(Kind { count, dtype, op }, bytes, &self.shared)
    }

    /// What its launches are given, but for where each begins.
    #[inline]
    fn launch_params(&self, message: &Message, plan: &Plan) -> LaunchParams {
        let Plan { descriptor, tag, scale, kind, .. } = *plan;
        let flags = if message.input == message.output { IN_PLACE } else { 0 };
        LaunchParams { descriptor, tag, scale, kind, flags, ..self.launch_of_nothing() }
    }

    /// What every launch of the lane is given.
    #[inline]
    fn launch_of_nothing(&self) -> LaunchParams {
        LaunchParams {
            lane: self.state.params,
            input: 0,
            output: 0,
            count: 0,
            descriptor: 0,
            deadline_ns: self.deadline_ns,
            tag: 0,
            flags: 0,
            scale: 1.0,
            kind: 0,
        }
    }

    fn slice_plan(&self, call: &SliceCall) -> Result<SlicePlan, Error> {
        SlicePlan::new(call, self.launch_of_nothing(), &self.shared)
    }

    /// [`Lane::enqueue`] of another collective, with a work object.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`].
    pub(crate) unsafe fn enqueue_slices_work(
        &mut self,
        call: &SliceCall,
        order: StreamOrder,
    ) -> Result<Work, Error> {
        // SAFETY: the caller vouches for all of it.
        Ok(unsafe { self.enqueue_slices(call, order) }?.observed())
    }

    /// Enqueues a collective other than an all-reduce, in as many launches as it needs.
    unsafe fn enqueue_slices(&mut self, call: &SliceCall, order: StreamOrder) -> Result<Enqueued, Error> {
        self.state.status()?;
        let plan = self.slice_plan(call)?;
        let world_size = self.shared.world_size();
        // SAFETY: as for an all-reduce; kernels of slices take one `SliceParams`.
        unsafe {
            self.submit(order, true, |stream, done| {
                while *done < plan.pieces() {
                    let (geometry, params) = plan.launch(call, *done, world_size);
                    plan.kernel.function.launch(geometry.blocks, geometry.threads, stream, &params)?;
                    *done += 1;
                }
                Ok(())
            })
        }
    }

    /// Launches what `launch` launches, on the stream and behind the call that `order` says, and puts an event behind it if it is
    /// to be `observed`. `launch` counts its launches in its second argument: it is called again where the driver first wanted the
    /// context to be current, and goes on from there.
    ///
    /// # Safety
    ///
    /// The caller vouches for the stream and its order; what is launched may run now, and if the stream is captured again and again.
    unsafe fn submit(
        &mut self,
        order: StreamOrder,
        observed: bool,
        mut launch: impl FnMut(RawStream, &mut u64) -> Result<(), DriverError>,
    ) -> Result<Enqueued, Error> {
        let state = &*self.state;
        let stream = order.stream;
        let context = state.context();
        // SAFETY: the caller vouches for the stream.
        let capture = unsafe { device::capture_id(context, stream) }.map_err(|error| self.refusal(error))?;
        // SAFETY: as above.
        let identity = unsafe { stream.identity(context, capture) }.map_err(|error| self.refusal(error))?;
        // What has ended orders nothing any more. (Of captured calls nobody knows.)
        let orders = |last: &&LastCall| capture.is_some() || !state.is_known_to_have_ended(last);
        let last = self.calls.last(capture).filter(orders);
        if let Some(wait) = order.wait_for(last, identity, state.index)? {
            let waits = match &wait {
                // SAFETY: the caller vouches for the stream and the event.
                WaitFor::Given(event) => unsafe { event.wait_on(context, stream) },
                // SAFETY: the caller vouches for the stream.
                WaitFor::Own(recorded) => unsafe { recorded.event.wait_on(stream) },
            };
            waits.map_err(|error| self.refusal(error))?;
        }
        if capture.is_some() || !observed {
            // Before there is anything that could run or be replayed.
            state.note_unobserved(capture.is_some());
        }
        let event = observed.then(|| self.calls.event(&self.state)).transpose();
        let event = event.map_err(|error| self.refusal(error))?;
        let mut done = 0;
        let launched = context.on_stream(stream, || launch(stream, &mut done));
        if let Err(error) = launched {
            event.into_iter().for_each(|event| self.calls.give_back(event));
            if done > 0 {
                // A part of the call runs, or is in the graph, and peers wait for the rest: the communicator is over, and nothing may
                // run behind the error.
                self.shared.abort();
                if capture.is_none() {
                    // SAFETY: the caller vouches for the stream, and the launch before has shown that it is one of this context.
                    let _lost = unsafe { state.settle(stream, None) };
                }
            }
            return Err(self.refused_launch(error));
        }
        state.launches().add();
        let number = self.calls.count();
        // SAFETY: the caller vouches for the stream, and the launch has shown that it is one of this context.
        let recorded = event.as_ref().map_or(Ok(()), |recorded| unsafe { recorded.event.record(stream) });
        // A call whose event was not recorded is followed by none that could wait for it.
        let event = event.filter(|_| recorded.is_ok());
        self.calls.note(LastCall { stream: identity, event: event.clone(), number }, capture);
        if let Err(error) = recorded {
            if capture.is_none() {
                // The caller learns of an error, so nothing may run behind it.
                // SAFETY: as above.
                let _lost = unsafe { state.settle(stream, None) };
            }
            return Err(self.refusal(error));
        }
        Ok(Enqueued { event, number, captured: capture.is_some() })
    }

    /// The last call outside of captures, as its work object tells of it; `None` if there was none, or it was made without an event.
    /// Whoever has the lane need not keep the work object of each call to see the end of the last one.
    pub fn last_work(&self) -> Option<Work> {
        let last = self.calls.last(None)?;
        Some(Work::new(Arc::clone(last.event.as_ref()?), last.number, false))
    }

    /// Checks that `address` lies in memory of the communicator's device.
    ///
    /// # Errors
    ///
    /// [`Error::NotOnDevice`] with what the driver knows of it.
    pub fn check_pointer(&self, address: u64) -> Result<(), Error> {
        Ok(device::check_pointer(self.state.context(), address)?)
    }

    /// Whether the kernels of the communicator that have ended did so without failure.
    ///
    /// # Errors
    ///
    /// As [`crate::Communicator::status`].
    pub fn status(&self) -> Result<(), Error> {
        self.state.status()
    }

    /// A driver's refusal to launch, as the library's error: the kernel is there, so what is no good is the stream.
    fn refused_launch(&self, error: DriverError) -> Error {
        match self.refusal(error) {
            Error::Driver(source) if source.wants_context() => {
                Error::StreamNotOnDevice { device: self.state.context().ordinal(), source }
            }
            error => error,
        }
    }

    /// A driver's refusal, as the library's error.
    fn refusal(&self, error: DriverError) -> Error {
        Error::of_driver(error, self.state.context())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.take_back(self.state.index, std::mem::take(&mut self.calls));
        self.state.taken.store(false, Ordering::Release);
    }
}

fn check_addresses(input: u64, output: u64, bytes: u64, dtype: DType) -> Result<(), Error> {
    let alignment = dtype.size();
    for address in [input, output] {
        if !address.is_multiple_of(alignment as u64) {
            return Err(Error::Misaligned { address, alignment });
        }
    }
    if input != output && input.abs_diff(output) < bytes {
        return Err(Error::PartialOverlap { input, output, bytes });
    }
    Ok(())
}

const _: () = {
    const fn moves<T: Send>() {}
    moves::<Lane>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_must_be_aligned_to_the_element_only() {
        check_addresses(0x1002, 0x1002, 64, DType::Bf16).unwrap();
        check_addresses(0x1004, 0x2004, 64, DType::F32).unwrap();
        for (input, output) in [(0x1001, 0x2000), (0x1000, 0x2002)] {
            match check_addresses(input, output, 64, DType::F32) {
                Err(Error::Misaligned { address, alignment: 4 }) => assert!(!address.is_multiple_of(4)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn buffers_are_equal_or_apart() {
        check_addresses(0x1000, 0x1040, 64, DType::Bf16).unwrap();
        check_addresses(0x1040, 0x1000, 64, DType::Bf16).unwrap();
        for output in [0x1002, 0x103e, 0xfc2] {
            assert!(matches!(
                check_addresses(0x1000, output, 64, DType::Bf16),
                Err(Error::PartialOverlap { input: 0x1000, bytes: 64, .. })
            ));
        }
    }
}
