//! What the driver refuses or loses while calls run: nobody is told that a kernel has ended which has not.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cust::context::{Context, CurrentContext};
use cust::device::Device;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use cust_raw::{CUgraph, CUresult, CUstreamCaptureMode_enum as Mode};
use half::bf16;
use meshreduce::{Bf16, DType, Error, Lane, MemoryStore, Op, Outcome, Store, StoreError, Work, rendezvous};
use meshreduce_checks::in_process::{BRIEF, alone, config, fail_driver_calls, open_driver, ranks};
use meshreduce_checks::latch::Latch;
use meshreduce_checks::stream::{NonBlocking, RawStream};

const COUNT: usize = 4096;
const UNKNOWN: u32 = 999;

fn ones() -> DeviceBuffer<Bf16> {
    let buffer = DeviceBuffer::from_slice(&[Bf16::from(bf16::ONE); COUNT]).unwrap();
    CurrentContext::synchronize().unwrap();
    buffer
}

fn assert_filled(buffer: &DeviceBuffer<Bf16>, value: f32) {
    let found = buffer.as_host_vec().unwrap();
    assert!(found.iter().all(|element| bf16::from(*element).to_f32() == value), "{:?}", found[0]);
}

fn raw_call(lane: &mut Lane, data: &DeviceBuffer<Bf16>, stream: &NonBlocking) -> Result<Work, Error> {
    let address = data.as_device_ptr().as_raw();
    // SAFETY: the tests keep the buffers until all work has ended.
    unsafe { lane.all_reduce_raw(address, address, COUNT, DType::Bf16, Op::Sum, stream.raw()) }
}

/// Whether rank 1 makes its call, late: before that rank 0's kernel, which waits for it, cannot have ended.
#[derive(Default)]
struct LateCall(AtomicBool);

impl LateCall {
    /// Rank 1 calls now.
    fn comes(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether a kernel that waits for it has ended on the stream, before this was called.
    fn has_ended(&self, stream: &impl RawStream) -> bool {
        self.0.load(Ordering::Acquire) && is_idle(stream)
    }
}

/// Whether nothing runs on the stream. The driver may note that some time after the last thing on it has ended.
fn is_idle(stream: &impl RawStream) -> bool {
    let moment = Instant::now() + Duration::from_secs(60);
    loop {
        // SAFETY: the stream is alive while it is borrowed.
        if unsafe { cust_raw::cuStreamQuery(stream.raw()) } == CUresult::CUDA_SUCCESS {
            return true;
        }
        if Instant::now() >= moment {
            return false;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Another thread of this process captures a graph in the global mode, until it is told to end; says how that ended.
struct ForeignCapture {
    end: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<CUresult>,
}

impl ForeignCapture {
    fn begin(device: u32) -> Self {
        let (begun, wait) = mpsc::channel();
        let (end, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _context = Context::new(Device::get_device(device).unwrap()).unwrap();
            let stream = NonBlocking::new().unwrap();
            let mode = Mode::CU_STREAM_CAPTURE_MODE_GLOBAL;
            // SAFETY: the stream is alive.
            let began = unsafe { cust_raw::cuStreamBeginCapture_v2(stream.raw(), mode) };
            assert_eq!(began, CUresult::CUDA_SUCCESS);
            begun.send(()).unwrap();
            told.recv().unwrap();
            let mut graph: CUgraph = std::ptr::null_mut();
            // SAFETY: the stream is alive, and the place outlives the call.
            unsafe { cust_raw::cuStreamEndCapture(stream.raw(), &mut graph) }
        });
        wait.recv().unwrap();
        Self { end, thread }
    }

    fn end(self) -> CUresult {
        self.end.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

#[test]
fn the_safe_call_waits_for_its_kernel_while_another_thread_captures_and_leaves_the_capture_alone() {
    let (all_are_set_up, capturing, rank_0_is_done) = (Latch::new(2), Latch::new(1), Latch::new(1));
    let late = LateCall::default();
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
        let mut data = ones();
        all_are_set_up.meet();
        if communicator.rank() == 0 {
            let capture = ForeignCapture::begin(communicator.device());
            capturing.come();
            lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream).unwrap();
            assert_eq!(capture.end(), CUresult::CUDA_SUCCESS, "the capture was not spoilt");
            assert!(late.has_ended(&stream), "it came back before its kernel had ended");
            rank_0_is_done.come();
        } else {
            capturing.wait();
            // Rank 0's kernel runs for as long as this one does not.
            std::thread::sleep(Duration::from_millis(200));
            late.comes();
            lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream).unwrap();
            rank_0_is_done.wait();
        }
        assert_filled(&data, 2.0);
        drop(lane);
        communicator.close().unwrap();
    });
}

/// Rank 0's call cannot be followed by an event; rank 1 makes its own a moment later.
fn without_record(call: impl Fn(&mut Lane, &mut DeviceBuffer<Bf16>, &Stream) -> Result<(), Error> + Sync) {
    let (all_are_set_up, rank_0_is_done) = (Latch::new(2), Latch::new(1));
    let late = LateCall::default();
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
        let mut data = ones();
        all_are_set_up.meet();
        if communicator.rank() == 0 {
            fail_driver_calls("cuEventRecord", UNKNOWN, 0, 1);
            let failed = call(&mut lane, &mut data, &stream);
            assert!(
                matches!(&failed, Err(Error::Driver(error)) if error.call == "cuEventRecord"),
                "{failed:?}"
            );
            assert!(late.has_ended(&stream), "an error came back before the kernel had ended");
            rank_0_is_done.come();
        } else {
            std::thread::sleep(Duration::from_millis(200));
            late.comes();
            call(&mut lane, &mut data, &stream).unwrap();
            rank_0_is_done.wait();
        }
        assert_filled(&data, 2.0);
        // The lane goes on, on the same stream or on another.
        let other = Stream::new(StreamFlags::DEFAULT, None).unwrap();
        let stream = if communicator.rank() == 0 { &stream } else { &other };
        lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, stream).unwrap();
        assert_filled(&data, 4.0);
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn the_safe_call_waits_for_its_kernel_where_no_event_can_be_recorded_behind_it() {
    without_record(|lane, data, stream| lane.all_reduce_in_place_and_wait(data, Op::Sum, stream));
}

#[test]
fn a_call_that_answers_with_an_error_has_nothing_running() {
    without_record(|lane, data, stream| {
        let address = data.as_device_ptr().as_raw();
        // SAFETY: the buffer outlives the work, which is waited for.
        let work =
            unsafe { lane.all_reduce_raw(address, address, COUNT, DType::Bf16, Op::Sum, stream.as_inner()) };
        work.and_then(|work| work.synchronize())
    });
}

#[test]
fn waiting_goes_on_where_the_driver_refuses_the_event_for_a_while() {
    let late = LateCall::default();
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
        let mut data = ones();
        fail_driver_calls("cuEventSynchronize", UNKNOWN, 0, 1);
        fail_driver_calls("cuStreamSynchronize", UNKNOWN, 0, 1);
        if communicator.rank() == 1 {
            std::thread::sleep(Duration::from_millis(200));
            late.comes();
        }
        lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream).unwrap();
        assert!(late.has_ended(&stream));
        assert_filled(&data, 2.0);
        fail_driver_calls("cuEventSynchronize", UNKNOWN, 0, 0);
        fail_driver_calls("cuStreamSynchronize", UNKNOWN, 0, 0);
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn a_driver_that_refuses_to_say_is_not_taken_for_kernels_that_have_ended() {
    // Not initialised, no context, a foreign capture, a stale handle, anything.
    for code in [3, 201, 900, 400, UNKNOWN] {
        let (all_are_set_up, late) = (Latch::new(2), LateCall::default());
        ranks(2, &config(), |communicator| {
            let mut lane = communicator.lane(0).unwrap();
            let stream = NonBlocking::new().unwrap();
            let data = ones();
            all_are_set_up.meet();
            if communicator.rank() == 1 {
                std::thread::sleep(Duration::from_millis(150));
                late.comes();
            }
            raw_call(&mut lane, &data, &stream).unwrap();
            drop(lane);
            if communicator.rank() == 0 {
                // Its kernel waits for rank 1's. Were it taken for ended, rank 1's would lose the memory it reads.
                fail_driver_calls("cuEventQuery", code, 0, 1_000_000);
            }
            communicator.close().unwrap();
            fail_driver_calls("cuEventQuery", code, 0, 0);
            assert!(late.has_ended(&stream));
            assert_filled(&data, 2.0);
        });
    }
}

#[test]
fn everything_works_on_a_thread_without_a_current_context() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (stream, other) = (NonBlocking::new().unwrap(), NonBlocking::new().unwrap());
        let data = ones();
        let work = raw_call(&mut lane, &data, &stream).unwrap();
        // As an async runtime's blocking thread: nothing was ever made current there.
        std::thread::scope(|scope| {
            let (stream, other) = (&stream, &other);
            let data = &data;
            let elsewhere = scope.spawn(move || {
                // SAFETY: the stream is alive.
                unsafe { work.wait_raw(other.raw()) }.unwrap();
                work.synchronize().unwrap();
                assert!(work.is_finished().unwrap());
                raw_call(&mut lane, data, stream).unwrap().synchronize().unwrap();
                lane.check_pointer(data.as_device_ptr().as_raw()).unwrap();
                communicator.status().unwrap();
                drop(lane);
                communicator.close().unwrap();
                let mut current = std::ptr::null_mut();
                // SAFETY: the place outlives the call.
                unsafe { cust_raw::cuCtxGetCurrent(&mut current) };
                assert!(current.is_null(), "nothing was left current");
            });
            elsewhere.join().unwrap();
        });
        assert_filled(&data, 4.0);
    });
}

#[test]
fn a_context_that_was_reset_is_a_typed_error_everywhere_and_no_crash() {
    let all_are_done = Latch::new(2);
    ranks(2, &config().timeout(BRIEF).lanes(2), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let data = ones();
        let stream = NonBlocking::new().unwrap();
        let work = raw_call(&mut lane, &data, &stream).unwrap();
        work.synchronize().unwrap();
        all_are_done.meet();
        let device = communicator.device();
        if communicator.rank() == 0 {
            // SAFETY: what is gone with the context is not used again here, but by the library, which must notice.
            let reset = unsafe { cust_raw::cuDevicePrimaryCtxReset_v2(device as i32) };
            assert_eq!(reset, CUresult::CUDA_SUCCESS);
            let is_reset =
                |error: &Error| matches!(error, Error::ContextReset { device: said } if *said == device);
            let again = raw_call(&mut lane, &data, &stream).map(drop).unwrap_err();
            assert!(is_reset(&again), "{again:?}");
            assert!(is_reset(&work.synchronize().unwrap_err()));
            assert!(is_reset(&work.is_finished().unwrap_err()));
            communicator.status().unwrap();
            communicator.abort();
            drop((lane, work));
            let closed = communicator.close().unwrap_err();
            assert!(is_reset(closed.error()), "{closed:?}");
            // They went with the context.
            std::mem::forget((data, stream));
        } else {
            drop(lane);
            // Rank 0 closes, if only after a failure.
            communicator.close().unwrap();
        }
    });
}

#[test]
fn a_driver_that_does_not_tell_the_contexts_number_has_not_reset_it() {
    let late = LateCall::default();
    let all_are_set_up = Latch::new(2);
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = NonBlocking::new().unwrap();
        let data = ones();
        all_are_set_up.meet();
        if communicator.rank() == 1 {
            std::thread::sleep(Duration::from_millis(150));
            late.comes();
        }
        raw_call(&mut lane, &data, &stream).unwrap();
        drop(lane);
        fail_driver_calls("cuCtxGetId", UNKNOWN, 0, 1_000_000);
        fail_driver_calls("cuEventQuery", UNKNOWN, 0, 1);
        communicator.close().unwrap();
        fail_driver_calls("cuCtxGetId", UNKNOWN, 0, 0);
        fail_driver_calls("cuEventQuery", UNKNOWN, 0, 0);
        assert!(late.has_ended(&stream));
        assert_filled(&data, 2.0);
    });
}

#[test]
fn the_safe_call_waits_on_where_neither_event_stream_nor_context_answer_at_first() {
    let late = LateCall::default();
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
        let mut data = ones();
        if communicator.rank() == 0 {
            for function in ["cuEventSynchronize", "cuStreamSynchronize", "cuCtxGetId"] {
                fail_driver_calls(function, UNKNOWN, 0, 1);
            }
        } else {
            std::thread::sleep(Duration::from_millis(200));
            late.comes();
        }
        lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream).unwrap();
        assert!(late.has_ended(&stream));
        assert_filled(&data, 2.0);
        for function in ["cuEventSynchronize", "cuStreamSynchronize", "cuCtxGetId"] {
            fail_driver_calls(function, UNKNOWN, 0, 0);
        }
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn an_abort_reaches_the_other_ranks_where_one_cannot_be_told() {
    let all_wait = Latch::new(3);
    ranks(3, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = NonBlocking::new().unwrap();
        let data = ones();
        if communicator.rank() == 0 {
            all_wait.meet();
            // The own pad, then those of ranks 1 and 2.
            fail_driver_calls("cuMemsetD32Async", UNKNOWN, 1, 1);
            communicator.abort();
        } else {
            let work = raw_call(&mut lane, &data, &stream).unwrap();
            all_wait.meet();
            if communicator.rank() == 2 {
                let ended = work.synchronize();
                assert!(matches!(ended, Err(Error::PeerAborted { origin: 0, culprit: 0, .. })), "{ended:?}");
                // Rank 1 hears of it from this one.
                communicator.abort();
            } else {
                assert!(work.synchronize().is_err());
            }
        }
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn a_function_that_the_driver_does_not_give_is_an_error_and_not_another_choice_of_algorithms() {
    let _alone = alone();
    open_driver();
    let store = MemoryStore::new();
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let store = store.clone();
            scope.spawn(move || {
                if rank == 0 {
                    fail_driver_calls("cuModuleGetFunction", UNKNOWN, 0, 1);
                }
                let met = rendezvous(&store, rank, 2, rank as u32, &config());
                assert!(matches!(met, Err(Error::Driver(_) | Error::RankFailed { rank: 0, .. })), "{met:?}");
            });
        }
    });
}

/// A store that loses the first proposal of a verdict, before it has arrived or its answer.
struct Lossy<'a> {
    store: &'a MemoryStore,
    arrives: bool,
    lost: AtomicBool,
}

impl Store for Lossy<'_> {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store.set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.store.get(key, timeout)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.store.check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.store.wait(keys, timeout)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        // What expects something is a look.
        if key.ends_with("verdict") && expected.is_empty() && !self.lost.swap(true, Ordering::Relaxed) {
            if self.arrives {
                self.store.compare_set(key, expected, desired)?;
            }
            return Err(StoreError::Timeout { keys: vec![key.to_owned()], waited: Duration::ZERO });
        }
        self.store.compare_set(key, expected, desired)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.store.add(key, delta)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.store.delete(key)
    }
}

#[test]
fn a_rank_that_loses_the_store_at_the_verdict_does_not_take_its_memory_from_ranks_that_are_ready() {
    let _alone = alone();
    open_driver();
    for arrives in [false, true] {
        let store = MemoryStore::new();
        std::thread::scope(|scope| {
            for rank in 0..2 {
                let store = &store;
                scope.spawn(move || {
                    let lossy = Lossy { store, arrives, lost: AtomicBool::new(rank == 0) };
                    match rendezvous(&lossy, rank, 2, rank as u32, &config()) {
                        Ok(Outcome::Ready(communicator)) => {
                            assert_eq!(rank, 0);
                            let _context = Context::new(Device::get_device(0).unwrap()).unwrap();
                            let mut lane = communicator.lane(0).unwrap();
                            let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
                            let failed = lane.all_reduce_in_place_and_wait(&mut ones(), Op::Sum, &stream);
                            assert!(
                                matches!(failed, Err(Error::PeerAborted { culprit: 1, .. })),
                                "{failed:?}"
                            );
                            drop(lane);
                            let closed = communicator.close().unwrap_err();
                            assert!(
                                matches!(closed.error(), Error::RanksDropped { ranks } if *ranks == [1]),
                                "{closed:?}"
                            );
                        }
                        // Whoever proposes first decides.
                        Err(error) => assert!(
                            matches!(error, Error::Store(_) | Error::RankFailed { rank: 1, .. }),
                            "{error:?}"
                        ),
                        other => panic!("{other:?}"),
                    }
                });
            }
        });
        assert!(store.list_keys().unwrap().is_empty(), "nothing stays in the store");
    }
}
