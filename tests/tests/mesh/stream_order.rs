//! One order of calls on several streams: right results, or a refusal.

use std::ffi::c_void;
use std::time::Duration;

use cust::context::CurrentContext;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use cust_raw::{CUevent, CUresult};
use half::bf16;
use meshreduce::{Bf16, Communicator, DType, Error, Lane, Op, StreamOrder, Work};
use meshreduce_checks::graph::Graph;
use meshreduce_checks::in_process::{BRIEF, config, driver_calls, ranks};
use meshreduce_checks::latch::Latch;
use meshreduce_checks::stream::{NonBlocking, RawStream};

const COUNT: usize = 4096;

fn filled(value: f32) -> DeviceBuffer<Bf16> {
    let buffer = DeviceBuffer::from_slice(&[Bf16::from(bf16::from_f32(value)); COUNT]).unwrap();
    CurrentContext::synchronize().unwrap();
    buffer
}

fn assert_filled(buffer: &DeviceBuffer<Bf16>, value: f32) {
    let found = buffer.as_host_vec().unwrap();
    assert!(found.iter().all(|element| bf16::from(*element).to_f32() == value), "{:?}", found[0]);
}

/// A raw call in place.
fn call(lane: &mut Lane, data: &DeviceBuffer<Bf16>, stream: impl Into<StreamOrder>) -> Result<Work, Error> {
    let address = data.as_device_ptr().as_raw();
    // SAFETY: the tests keep the buffers until all work has ended, and say the truth about the streams' order.
    unsafe { lane.all_reduce_raw(address, address, COUNT, DType::Bf16, Op::Sum, stream) }
}

fn refused(answer: Result<Work, Error>) -> bool {
    matches!(answer, Err(Error::StreamsNotOrdered { lane: 0 }))
}

#[test]
fn a_raw_call_on_another_stream_than_the_last_is_refused_until_something_orders_the_two() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (one, two) = (NonBlocking::new().unwrap(), NonBlocking::new().unwrap());
        let (a, b) = (filled(1.0), filled(64.0));
        call(&mut lane, &a, one.raw()).unwrap();
        assert!(refused(call(&mut lane, &b, two.raw())));
        assert_eq!(communicator.launches(), 1, "a refused call launches nothing");

        let mut event: CUevent = std::ptr::null_mut();
        // SAFETY: the place outlives the call; event and stream are alive.
        unsafe {
            assert_eq!(cust_raw::cuEventCreate(&mut event, 2), CUresult::CUDA_SUCCESS);
            assert_eq!(cust_raw::cuEventRecord(event, one.raw()), CUresult::CUDA_SUCCESS);
        }
        call(&mut lane, &b, StreamOrder::behind_event(two.raw(), event)).unwrap();
        // On that stream it goes on as it is, and back by the last call's own event.
        call(&mut lane, &b, two.raw()).unwrap();
        assert!(refused(call(&mut lane, &a, one.raw())));
        let last = call(&mut lane, &a, StreamOrder::behind_last_call(one.raw())).unwrap();
        // What the host has waited for orders everything behind it.
        last.synchronize().unwrap();
        call(&mut lane, &b, two.raw()).unwrap();
        two.synchronize().unwrap();
        // Of a wait for the stream the library knows nothing: the caller says so.
        assert!(refused(call(&mut lane, &a, one.raw())));
        call(&mut lane, &a, StreamOrder::assumed(one.raw())).unwrap().synchronize().unwrap();
        assert_filled(&a, 8.0);
        assert_filled(&b, 512.0);
        // SAFETY: it is not used again.
        unsafe { cust_raw::cuEventDestroy_v2(event) };
        drop((lane, one, two));
        communicator.close().unwrap();
    });
}

#[test]
fn typed_calls_on_alternating_streams_are_ordered_and_right() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = || Stream::new(StreamFlags::DEFAULT, None).unwrap();
        let streams = [stream(), stream(), stream()];
        let mut data = [filled(1.0), filled(3.0), filled(5.0)];
        for _ in 0..6 {
            for (stream, data) in streams.iter().zip(&mut data) {
                // SAFETY: the buffers live, and nothing else uses them, until all work has ended.
                unsafe { lane.all_reduce_in_place(data, Op::Sum, stream) }.unwrap();
            }
        }
        CurrentContext::synchronize().unwrap();
        for (data, first) in data.iter().zip([1.0, 3.0, 5.0]) {
            assert_filled(data, first * 64.0);
        }
        communicator.status().unwrap();
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn typed_calls_go_on_behind_a_stream_that_was_destroyed() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let mut data = filled(1.0);
        for _ in 0..20 {
            // Gone at the end of the turn, while its call may run; the next one may get the same handle.
            let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
            // SAFETY: the buffer outlives the work, which is waited for below.
            unsafe { lane.all_reduce_in_place(&mut data, Op::Max, &stream) }.unwrap();
        }
        CurrentContext::synchronize().unwrap();
        assert_filled(&data, 1.0);
        drop(lane);
        communicator.close().unwrap();
    });
}

fn default_stream(handle: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(handle)
}

#[test]
fn the_default_stream_of_each_thread_is_a_stream_of_its_own_and_the_legacy_one_is_one() {
    const LEGACY: usize = 1;
    const PER_THREAD: usize = 2;
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let data = filled(1.0);
        call(&mut lane, &data, default_stream(0)).unwrap();
        call(&mut lane, &data, default_stream(LEGACY)).unwrap();
        assert!(refused(call(&mut lane, &data, default_stream(PER_THREAD))));
        call(&mut lane, &data, StreamOrder::behind_last_call(default_stream(PER_THREAD))).unwrap();
        call(&mut lane, &data, default_stream(PER_THREAD)).unwrap();
        std::thread::scope(|scope| {
            let (lane, data) = (&mut lane, &data);
            // No context is current there: a call enters the communicator's.
            let elsewhere = scope.spawn(move || {
                let first = refused(call(lane, data, default_stream(PER_THREAD)));
                let second = call(lane, data, StreamOrder::behind_last_call(default_stream(PER_THREAD)));
                (first, second.unwrap().synchronize())
            });
            let (refused, waited) = elsewhere.join().unwrap();
            assert!(refused, "the same handle is another stream on another thread");
            waited.unwrap();
        });
        assert_filled(&data, 32.0);
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn a_default_stream_is_the_communicators_whatever_is_current() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let stream = NonBlocking::new().unwrap();
        let data = filled(1.0);
        let context =
            |device| cust::context::Context::new(cust::device::Device::get_device(device).unwrap()).unwrap();
        let elsewhere = context(5);
        for handle in [0, 2, 0, 2] {
            if communicator.rank() == 1 {
                // Rank 0's first call runs for as long, and would run beside its second one.
                std::thread::sleep(Duration::from_millis(50));
            }
            call(&mut lane, &data, StreamOrder::behind_last_call(stream.raw())).unwrap();
            call(&mut lane, &data, StreamOrder::behind_last_call(default_stream(handle))).unwrap();
        }
        drop(elsewhere);
        let _own = context(communicator.device());
        CurrentContext::synchronize().unwrap();
        communicator.status().unwrap();
        assert_filled(&data, 256.0);
        drop((lane, stream));
        communicator.close().unwrap();
    });
}

#[test]
fn the_order_within_a_capture_is_remembered_while_another_one_goes_on() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (one, two, other) =
            (NonBlocking::new().unwrap(), NonBlocking::new().unwrap(), NonBlocking::new().unwrap());
        let data = filled(1.0);
        let mut join: CUevent = std::ptr::null_mut();
        // SAFETY: the place outlives the call.
        assert_eq!(unsafe { cust_raw::cuEventCreate(&mut join, 2) }, CUresult::CUDA_SUCCESS);
        let graph = Graph::capture(&one, || {
            // SAFETY: events and streams are alive. The second stream joins the capture here.
            unsafe {
                assert_eq!(cust_raw::cuEventRecord(join, one.raw()), CUresult::CUDA_SUCCESS);
                assert_eq!(cust_raw::cuStreamWaitEvent(two.raw(), join, 0), CUresult::CUDA_SUCCESS);
            }
            call(&mut lane, &data, one.raw()).unwrap();
            drop(Graph::capture(&other, || drop(call(&mut lane, &data, other.raw()).unwrap())));
            assert!(refused(call(&mut lane, &data, two.raw())), "the first capture's order is forgotten");
            let last = call(&mut lane, &data, StreamOrder::behind_last_call(two.raw())).unwrap();
            // SAFETY: the stream is alive: the branch comes back to where the capture began.
            unsafe { last.wait_raw(one.raw()) }.unwrap();
        });
        // SAFETY: the buffer is kept until the stream has ended.
        assert_eq!(unsafe { graph.launch(&one) }, CUresult::CUDA_SUCCESS);
        one.synchronize().unwrap();
        assert_filled(&data, 4.0);
        // SAFETY: it is not used again.
        unsafe { cust_raw::cuEventDestroy_v2(join) };
        drop((graph, lane, one, two, other));
        communicator.close().unwrap();
    });
}

#[test]
fn captured_calls_are_ordered_within_their_graph() {
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (one, two) = (NonBlocking::new().unwrap(), NonBlocking::new().unwrap());
        let data = filled(1.0);
        let mut join: CUevent = std::ptr::null_mut();
        // SAFETY: the place outlives the call.
        assert_eq!(unsafe { cust_raw::cuEventCreate(&mut join, 2) }, CUresult::CUDA_SUCCESS);
        let graph = Graph::capture(&one, || {
            // SAFETY: events and streams are alive. The second stream joins the capture here.
            unsafe {
                assert_eq!(cust_raw::cuEventRecord(join, one.raw()), CUresult::CUDA_SUCCESS);
                assert_eq!(cust_raw::cuStreamWaitEvent(two.raw(), join, 0), CUresult::CUDA_SUCCESS);
            }
            call(&mut lane, &data, one.raw()).unwrap();
            assert!(refused(call(&mut lane, &data, two.raw())), "two branches that nothing orders");
            let last = call(&mut lane, &data, StreamOrder::behind_last_call(two.raw())).unwrap();
            // SAFETY: the stream is alive: the branch comes back to where the capture began.
            unsafe { last.wait_raw(one.raw()) }.unwrap();
        });
        // SAFETY: the buffer is kept until the stream has ended.
        assert_eq!(unsafe { graph.launch(&one) }, CUresult::CUDA_SUCCESS);
        one.synchronize().unwrap();
        assert_filled(&data, 4.0);
        // SAFETY: it is not used again.
        unsafe { cust_raw::cuEventDestroy_v2(join) };
        drop((graph, lane, one, two));
        communicator.close().unwrap();
    });
}

#[test]
fn calls_without_an_event_work_are_one_driver_call_fewer_and_the_end_waits_for_them() {
    let other_may_come = Latch::new(1);
    ranks(2, &config(), |communicator| {
        let mut lane = communicator.lane(0).unwrap();
        let (one, two) = (NonBlocking::new().unwrap(), NonBlocking::new().unwrap());
        let data = filled(1.0);
        let address = data.as_device_ptr().as_raw();
        let unobserved = |lane: &mut Lane, stream: &NonBlocking| {
            // SAFETY: the buffer outlives the end of the communicator, which waits for the call.
            unsafe {
                lane.all_reduce_raw_unobserved(address, address, COUNT, DType::Bf16, Op::Sum, stream.raw())
            }
        };
        let before = driver_calls();
        unobserved(&mut lane, &one).unwrap();
        assert_eq!(driver_calls() - before - 1, 3);
        assert!(matches!(unobserved(&mut lane, &two), Err(Error::StreamsNotOrdered { lane: 0 })));
        let behind_last = call(&mut lane, &data, StreamOrder::behind_last_call(two.raw()));
        assert!(refused(behind_last), "there is no event to wait for");
        one.synchronize().unwrap();
        if communicator.rank() == 0 {
            // This rank ends while its kernel still waits for the other one's.
            unobserved(&mut lane, &one).unwrap();
            other_may_come.come();
        } else {
            other_may_come.wait();
            std::thread::sleep(Duration::from_millis(50));
            unobserved(&mut lane, &one).unwrap();
        }
        drop(lane);
        communicator.close().unwrap();
        assert_filled(&data, 4.0);
    });
}

/// Two lanes of one communicator.
fn lanes(communicator: &Communicator) -> (Lane, Lane) {
    (communicator.lane(0).unwrap(), communicator.lane(1).unwrap())
}

#[test]
fn a_failure_on_one_lane_ends_a_wait_on_another_at_once_and_is_told_in_full_on_both() {
    // Rank 1 makes no call on lane 0, on which rank 0 waits for it; then rank 1 waits for rank 0 on lane 1.
    let config = config().lanes(2).deadline(Some(BRIEF));
    let all_are_done = Latch::new(2);
    ranks(2, &config, |communicator| {
        let (mut first, mut second) = lanes(&communicator);
        let (one, two) = (NonBlocking::new().unwrap(), NonBlocking::new().unwrap());
        let (a, b) = (filled(1.0), filled(2.0));
        call(&mut second, &b, two.raw()).unwrap().synchronize().unwrap();
        if communicator.rank() == 0 {
            let alone = call(&mut first, &a, one.raw()).unwrap();
            let failed = alone.synchronize();
            assert!(
                matches!(failed, Err(Error::PeerTimeout { rank: 0, peer: 1, waited, .. }) if waited >= BRIEF),
                "{failed:?}"
            );
            // Without a launch, and with the same words.
            let other = call(&mut second, &b, two.raw()).map(drop);
            assert!(matches!(other, Err(Error::PeerTimeout { rank: 0, peer: 1, .. })), "{other:?}");
        } else {
            // Rank 0 never makes this call. Only the failure on the other lane ends it before its own deadline, which passes
            // half of one later.
            std::thread::sleep(BRIEF / 2);
            let ended = call(&mut second, &b, two.raw()).unwrap().synchronize();
            assert!(matches!(ended, Err(Error::PeerAborted { origin: 0, culprit: 1, .. })), "{ended:?}");
            let other = first.status();
            assert!(matches!(other, Err(Error::PeerAborted { origin: 0, culprit: 1, .. })), "{other:?}");
        }
        all_are_done.meet();
        drop((first, second));
        communicator.close().unwrap();
    });
}
