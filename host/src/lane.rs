//! Lanes: where all-reduces are launched.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use cust::memory::{DeviceCopy, DeviceSlice};
use cust_raw::{CUdeviceptr, CUresult, CUstream};
use meshreduce_wire::launch::{HostPage, IN_PLACE};
use meshreduce_wire::{DType, Geometry, LaunchDescriptor, LaunchParams, Op};

use crate::communicator::{LAUNCHES, Shared};
use crate::driver::{self, Event, MappedHost, PrimaryContext, check};
use crate::element::Element;
use crate::error::{DriverError, Error};
use crate::event_pool::EventPool;
use crate::farewell::Farewell;
use crate::record;
use crate::store::Pause;
use crate::work::Work;

/// What a lane's work objects share with it.
#[derive(Debug)]
pub(crate) struct LaneState {
    pub(crate) index: u32,
    pub(crate) taken: AtomicBool,
    pub(crate) page: MappedHost<HostPage>,
    /// Device address of the lane's context.
    address: CUdeviceptr,
    rank: usize,
    context: Arc<PrimaryContext>,
    /// Gone with the communicator.
    farewell: Weak<Farewell>,
    /// For its calls.
    events: EventPool,
    /// A graph has kernels of this lane, so that the host does not know when the last one runs.
    captured: AtomicBool,
    /// Behind the last launch that was not captured.
    last: Mutex<Option<Arc<Event>>>,
}

impl LaneState {
    pub(crate) fn new(
        context: &Arc<PrimaryContext>,
        index: u32,
        address: CUdeviceptr,
        rank: usize,
        farewell: &Arc<Farewell>,
    ) -> Result<Self, Error> {
        Ok(Self {
            index,
            taken: AtomicBool::new(false),
            page: MappedHost::new(context, HostPage::default())?,
            address,
            rank,
            context: Arc::clone(context),
            farewell: Arc::downgrade(farewell),
            events: EventPool::new(context),
            captured: AtomicBool::new(false),
            last: Mutex::new(None),
        })
    }

    /// What the kernels have left behind.
    pub(crate) fn status(&self) -> Result<(), Error> {
        match record::read(&self.page) {
            Some(found) => Err(match record::translate(&found, self.rank, self.index) {
                // A peer that did not come because it had closed: that says more than the time that was waited.
                Error::PeerTimeout { rank, peer, .. } if self.has_closed(peer) => {
                    Error::Closed { rank, peer }
                }
                error => error,
            }),
            // A kernel that never had to wait does not look at the host's wish; the lane is over all the same.
            None if record::abort_flag(&self.page).load(Ordering::Relaxed) != 0 => Err(Error::Aborted),
            None => Ok(()),
        }
    }

    fn has_closed(&self, peer: usize) -> bool {
        self.farewell.upgrade().is_some_and(|farewell| farewell.has_closed(peer))
    }

    /// Whether a graph has kernels of this lane.
    pub(crate) fn has_captures(&self) -> bool {
        self.captured.load(Ordering::Relaxed)
    }

    /// Waits at most `limit` for the last launch, and as long for the last replay; says whether no kernel runs.
    pub(crate) fn drain(&self, limit: Duration) -> bool {
        // Replays have no event of the library's: wait for all that the context has.
        self.drain_launches(limit) && (!self.has_captures() || self.context.finish(limit))
    }

    fn drain_launches(&self, limit: Duration) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(last) = last else { return true };
        let mut pause = Pause::new(limit);
        loop {
            match last.has_passed() {
                // An error is a lost context, whose kernels are stopped.
                Ok(true) | Err(_) => return true,
                Ok(false) if pause.again() => {}
                Ok(false) => {
                    *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
                    return false;
                }
            }
        }
    }
}

/// One order of all-reduces: signal pad and staging of its own, one stream at a time.
///
/// All ranks must make the same calls on a lane in the same order; ranks that differ get
/// [`Error::LaunchMismatch`]. Work on a second stream may follow work on a first one only if the streams are ordered
/// (an event, a synchronisation). Two streams that are not, or two graphs that are replayed at the same time, need a
/// lane each.
///
/// A lane is `Send` but not `Sync`, and its calls take `&mut self`.
#[derive(Debug)]
pub struct Lane {
    shared: Arc<Shared>,
    state: Arc<LaneState>,
    /// Not `Sync`.
    _one_thread: PhantomData<Cell<()>>,
}

/// What is known of the stream of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Capture {
    /// It is being captured into a graph.
    Yes,
    /// It is not.
    No,
}

impl Lane {
    pub(crate) fn new(shared: Arc<Shared>, state: Arc<LaneState>) -> Self {
        Self { shared, state, _one_thread: PhantomData }
    }

    /// The lane's number, equal on all ranks.
    pub fn index(&self) -> u32 {
        self.state.index
    }

    /// Enqueues an all-reduce of `count` elements at `input` into `output` on `stream`: the lowest level, for
    /// pointers and streams of any crate. `input` and `output` may be equal (in place) and must otherwise not overlap.
    /// This is two driver calls: a kernel launch, and an event behind it. A count of 0 launches nothing.
    ///
    /// The device's context need not be current; what is current stays so.
    ///
    /// # Safety
    ///
    /// `input` and `output` are device addresses of `count` elements that the communicator's device can access, valid
    /// until the work has ended and not used otherwise before; `stream` is a stream of the device's primary context
    /// that is not being captured (for one that is: [`Lane::all_reduce_raw_captured`]).
    ///
    /// # Errors
    ///
    /// Before anything is launched: [`Error::Misaligned`] unless the addresses are multiples of the element's size,
    /// [`Error::PartialOverlap`], [`Error::NoAlgorithm`] or, for a forced algorithm, [`Error::MessageTooLong`] and
    /// [`Error::Unsupported`]; after a failure on this lane, that failure again.
    pub unsafe fn all_reduce_raw(
        &mut self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
        dtype: DType,
        op: Op,
        stream: CUstream,
    ) -> Result<Work, Error> {
        // SAFETY: the caller vouches for the pointers and the stream, and that it is not being captured.
        unsafe { self.enqueue(input, output, count, dtype, op, stream, Capture::No) }
    }

    /// [`Lane::all_reduce_raw`] for a stream that is being captured: the call becomes a node of the graph. See the
    /// crate's documentation for what holds for replays. Knowing of it, the library does not ask the driver about
    /// the captured event, which would spoil the capture, and waits for replays when the communicator ends.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`], for every replay, but that the stream is being captured. A replay after the
    /// communicator's end, which is a mistake (see [`crate::Communicator`]), reads the input and writes nothing.
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_reduce_raw`].
    pub unsafe fn all_reduce_raw_captured(
        &mut self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
        dtype: DType,
        op: Op,
        stream: CUstream,
    ) -> Result<Work, Error> {
        // SAFETY: the caller vouches for the pointers and the stream, and that it is being captured.
        unsafe { self.enqueue(input, output, count, dtype, op, stream, Capture::Yes) }
    }

    /// All-reduces on any stream: asks the driver whether it is being captured.
    unsafe fn all_reduce_anywhere(
        &mut self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
        dtype: DType,
        op: Op,
        stream: CUstream,
    ) -> Result<Work, Error> {
        let mut capture = Capture::No;
        self.in_context(stream, || {
            // SAFETY: the caller vouches for the stream.
            unsafe { driver::is_capturing(stream) }
                .map(|yes| capture = if yes { Capture::Yes } else { Capture::No })
        })?;
        // SAFETY: the caller vouches for the pointers and the stream.
        unsafe { self.enqueue(input, output, count, dtype, op, stream, capture) }
    }

    #[allow(clippy::too_many_arguments)] // those of the call, and what is known of the stream
    unsafe fn enqueue(
        &mut self,
        input: CUdeviceptr,
        output: CUdeviceptr,
        count: usize,
        dtype: DType,
        op: Op,
        stream: CUstream,
        capture: Capture,
    ) -> Result<Work, Error> {
        let state = &self.state;
        state.status()?;
        if count == 0 {
            return Ok(Work::done(Arc::clone(state)));
        }
        let bytes = (count as u64).saturating_mul(dtype.size() as u64);
        check_addresses(input, output, bytes, dtype)?;
        let shared = &self.shared;
        let algorithm = shared.select(bytes, dtype, op)?;
        let function = shared.kernels.function(algorithm, dtype, op).ok_or(Error::Unsupported {
            algorithm,
            dtype,
            op,
        })?;
        let count = count as u64;
        let world_size = shared.world_size() as u32;
        let geometry = Geometry::new(algorithm, count, dtype, world_size, shared.block_cap);
        let params = LaunchParams {
            context: state.address,
            input,
            output,
            count,
            descriptor: LaunchDescriptor { algorithm, dtype, op, count }.encode(),
            deadline_ns: shared
                .deadline
                .map_or(0, |deadline| deadline.as_nanos().min(u64::MAX.into()) as u64),
            scale: if op == Op::Avg { 1.0 / world_size as f32 } else { 1.0 },
            flags: if input == output { IN_PLACE } else { 0 },
        };

        let captured = capture == Capture::Yes;
        if captured {
            // Before there is anything that could be replayed.
            state.captured.store(true, Ordering::Relaxed);
        }
        let event = state.events.take()?;
        self.in_context(stream, || {
            // SAFETY: the module is loaded for as long as `shared`; the kernels take one `LaunchParams`; its context
            // lives as long as `shared`; both outlive `shared` if this is captured. The caller vouches for the pointers
            // and the stream.
            check("cuLaunchKernel", unsafe {
                function.launch(geometry.blocks, geometry.threads, stream, &params)
            })
        })?;
        shared.launches.fetch_add(1, Ordering::Relaxed);
        LAUNCHES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller vouches for the stream.
        self.in_context(stream, || unsafe { event.record(stream) })?;
        if !captured {
            *state.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&event));
        }
        Ok(Work::new(Arc::clone(state), event, captured))
    }

    /// [`Lane::all_reduce_raw`] of a slice in place, its pointer checked.
    ///
    /// # Safety
    ///
    /// The data is not freed, and not used by anything that is not ordered behind the work, before the work has ended;
    /// `stream` belongs to the device's primary context. If it is being captured, the same holds for every replay: see
    /// [`Lane::all_reduce_raw_captured`].
    ///
    /// # Errors
    ///
    /// [`Error::NotOnDevice`], and those of [`Lane::all_reduce_raw`].
    pub unsafe fn all_reduce_in_place<T: Element + DeviceCopy>(
        &mut self,
        data: &mut DeviceSlice<T>,
        op: Op,
        stream: &cust::stream::Stream,
    ) -> Result<Work, Error> {
        let address = data.as_device_ptr().as_raw();
        if !data.is_empty() {
            self.check_pointer(address)?;
        }
        // SAFETY: the slice is device memory of this device, checked above; the caller vouches for its life.
        unsafe { self.all_reduce_anywhere(address, address, data.len(), T::DTYPE, op, stream.as_inner()) }
    }

    /// [`Lane::all_reduce_raw`] from one slice into another, pointers and lengths checked.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_in_place`], for both slices.
    ///
    /// # Errors
    ///
    /// [`Error::LengthsDiffer`], [`Error::NotOnDevice`], and those of [`Lane::all_reduce_raw`].
    pub unsafe fn all_reduce<T: Element + DeviceCopy>(
        &mut self,
        input: &DeviceSlice<T>,
        output: &mut DeviceSlice<T>,
        op: Op,
        stream: &cust::stream::Stream,
    ) -> Result<Work, Error> {
        if input.len() != output.len() {
            return Err(Error::LengthsDiffer { input: input.len(), output: output.len() });
        }
        let (from, to) = (input.as_device_ptr().as_raw(), output.as_device_ptr().as_raw());
        if !input.is_empty() {
            self.check_pointer(from)?;
            self.check_pointer(to)?;
        }
        // SAFETY: both slices are device memory of this device and equally long, checked above; the caller vouches
        // for their life.
        unsafe { self.all_reduce_anywhere(from, to, input.len(), T::DTYPE, op, stream.as_inner()) }
    }

    /// Reduces a slice in place and waits for it: the safe form, since nothing can touch the data meanwhile.
    ///
    /// # Errors
    ///
    /// Those of [`Lane::all_reduce_in_place`] and of [`Work::synchronize`].
    pub fn all_reduce_in_place_and_wait<T: Element + DeviceCopy>(
        &mut self,
        data: &mut DeviceSlice<T>,
        op: Op,
        stream: &cust::stream::Stream,
    ) -> Result<(), Error> {
        // SAFETY: the stream is alive while it is borrowed.
        if unsafe { driver::is_capturing(stream.as_inner()) }? {
            return Err(Error::Capturing);
        }
        // SAFETY: the data is borrowed until the work has ended, which is waited for here; nothing is captured. A
        // stream of another context is refused by the driver.
        unsafe { self.all_reduce_in_place(data, op, stream) }?.synchronize()
    }

    /// Checks that `address` lies in memory of the communicator's device.
    ///
    /// # Errors
    ///
    /// [`Error::NotOnDevice`] with what the driver knows of it.
    pub fn check_pointer(&self, address: CUdeviceptr) -> Result<(), Error> {
        driver::check_pointer(&self.shared.context, address)
    }

    /// Whether the kernels of this lane that have ended did so without failure.
    ///
    /// # Errors
    ///
    /// As [`crate::Communicator::status`].
    pub fn status(&self) -> Result<(), Error> {
        self.state.status()
    }

    /// Makes a driver call, in the device's context if the one that is current will not do.
    fn in_context(
        &self,
        stream: CUstream,
        mut call: impl FnMut() -> Result<(), DriverError>,
    ) -> Result<(), Error> {
        // The default stream is the current context's, whichever that is.
        if !stream.is_null() {
            const WRONG_CONTEXT: [CUresult; 2] =
                [CUresult::CUDA_ERROR_INVALID_CONTEXT, CUresult::CUDA_ERROR_INVALID_HANDLE];
            match call() {
                Err(error) if WRONG_CONTEXT.iter().any(|code| *code as i32 == error.code) => {}
                answer => return answer.map_err(fault),
            }
        }
        let _current = self.shared.context.enter()?;
        call().map_err(fault)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.state.taken.store(false, Ordering::Release);
    }
}

/// A driver's error as the library's: faults of kernels apart from the rest.
pub(crate) fn fault(error: DriverError) -> Error {
    if driver::is_fault(&error) { Error::KernelFault(error) } else { Error::Driver(error) }
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
