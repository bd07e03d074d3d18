//! Graphs that are replayed when their communicator is gone, which nobody should do: nothing happens, to anybody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cust::context::{Context, CurrentContext};
use cust::device::Device;
use cust::memory::mem_get_info;
use cust::stream::Stream;
use meshreduce::store::MemoryStore;
use meshreduce::{Algorithm, Communicator, DType, Error, Lane, Op, Outcome, rendezvous};
use meshreduce_checks::graph::Graph;
use meshreduce_checks::in_process::{again_on, config, fail_driver_calls, is_again_on, ranks};
use meshreduce_checks::latch::Latch;
use meshreduce_tests::calls::{Buffers, CALLS, call, limits, new_stream, replay};
use meshreduce_tests::here;

fn capture(buffers: &[Buffers], lane: &mut Lane, stream: &Stream) -> Graph {
    Graph::capture(stream, || {
        for each in buffers {
            each.enqueue(lane, stream).expect("a captured call");
        }
    })
}

fn finish(stream: &Stream) {
    stream.synchronize().expect("no kernel touched what was freed");
}

/// Captures all calls and replays them, before and after the end of the communicator.
fn replay_beyond_the_end(communicator: Communicator, orderly: bool, all_have_replayed: &Latch) {
    let rank = communicator.rank();
    let mut lane = communicator.lane(0).unwrap();
    let stream = new_stream();
    let mut buffers = Buffers::all(&CALLS);
    let graph = capture(&buffers, &mut lane, &stream);
    buffers.iter_mut().for_each(|each| each.write(0, rank));
    replay(&graph, &stream);
    stream.synchronize().unwrap();
    buffers.iter().for_each(|each| each.assert_reduced(0, &communicator));

    drop(lane);
    // Whoever drops its communicator aborts the others'.
    all_have_replayed.meet();
    match orderly {
        true => communicator.close().expect("an orderly end"),
        false => drop(communicator),
    }
    for round in 1..4 {
        Buffers::assert_untouched(&mut buffers, round, rank, || {
            (0..round).for_each(|_| replay(&graph, &stream));
            finish(&stream);
        });
    }
    CurrentContext::synchronize().expect("a context that works");
}

#[test]
fn replays_after_an_orderly_end_leave_everything_as_it_is() {
    let latch = Latch::new(4);
    ranks(4, &config().limits(limits()), |communicator| replay_beyond_the_end(communicator, true, &latch));
}

#[test]
fn replays_after_a_communicator_was_dropped_leave_everything_as_it_is() {
    let latch = Latch::new(3);
    ranks(3, &config().limits(limits()), |communicator| replay_beyond_the_end(communicator, false, &latch));
}

/// Not a test of its own: what the next test runs in a process that sees another node.
#[test]
fn on_this_node() {
    if !is_again_on("dgx-1v") {
        return;
    }
    for orderly in [true, false] {
        let latch = Latch::new(8);
        ranks(8, &config().limits(limits()), |communicator| {
            let algorithm = |bytes| communicator.select(bytes, DType::Bf16, Op::Sum);
            assert_eq!(algorithm(4 << 10), Some(Algorithm::HybridCubeMeshLl));
            assert_eq!(algorithm(8 << 10), Some(Algorithm::HybridCubeMesh));
            replay_beyond_the_end(communicator, orderly, &latch);
        });
    }
}

#[test]
fn replays_on_a_hybrid_cube_mesh_leave_everything_as_it_is() {
    again_on("dgx-1v", here!("on_this_node"));
}

#[test]
fn another_communicator_on_the_same_devices_does_not_notice() {
    let store = MemoryStore::new();
    ranks(3, &config(), |communicator| {
        let rank = communicator.rank();
        let device = communicator.device();
        let stream = new_stream();
        let mut dead = [Buffers::new(0, CALLS[0])];
        let mut lane = communicator.lane(0).unwrap();
        let graph = capture(&dead, &mut lane, &stream);
        drop(lane);
        communicator.close().expect("an orderly end");

        // It takes the memory that has just become free.
        let Ok(Outcome::Ready(other)) = rendezvous(&store, rank, 3, device, &config()) else {
            panic!("the second rendezvous")
        };
        let mut lane = other.lane(0).unwrap();
        let mut alive = [Buffers::new(1, CALLS[1])];
        let living_graph = capture(&alive, &mut lane, &stream);
        let mut plain = Buffers::new(2, call(DType::F32, Op::Sum, 3000, true));
        for round in 0..10 {
            alive[0].write(round, rank);
            plain.write(round, rank);
            Buffers::assert_untouched(&mut dead, round, rank, || {
                replay(&graph, &stream);
                replay(&living_graph, &stream);
                replay(&graph, &stream);
                plain.enqueue(&mut lane, &stream).expect("a call");
                replay(&graph, &stream);
                finish(&stream);
            });
            alive[0].assert_reduced(round, &other);
            plain.assert_reduced(round, &other);
        }
        other.status().unwrap();
        drop(lane);
        other.close().expect("an orderly end");
    });
}

#[test]
fn replays_that_another_thread_launches_during_the_end_do_no_harm() {
    ranks(2, &config(), |communicator| {
        let device = communicator.device();
        let stream = new_stream();
        let buffers = [Buffers::new(0, CALLS[0]), Buffers::new(1, CALLS[3])];
        let mut lane = communicator.lane(0).unwrap();
        let graph = capture(&buffers, &mut lane, &stream);
        drop(lane);
        let over = AtomicBool::new(false);
        let replays = Latch::new(20);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _context = Context::new(Device::get_device(device).unwrap()).expect("its context");
                while !over.load(Ordering::Relaxed) {
                    replay(&graph, &stream);
                    finish(&stream);
                    replays.come();
                }
            });
            // The ranks may come here at different times, and the first one ends the replays of all.
            replays.wait();
            drop(communicator);
            over.store(true, Ordering::Relaxed);
        });
        replay(&graph, &stream);
        finish(&stream);
    });
}

/// A driver's answer when what was enqueued has not ended.
const NOT_READY: u32 = 600;

#[test]
fn an_end_that_cannot_keep_replays_from_the_memory_in_time_frees_nothing_and_says_so() {
    let (all_have_replayed, rank_0_is_done) = (Latch::new(2), Latch::new(1));
    let closed = ranks(2, &config(), |communicator| {
        let rank = communicator.rank();
        let stream = new_stream();
        let mut buffers = [Buffers::new(0, CALLS[0])];
        let mut lane = communicator.lane(0).unwrap();
        let graph = capture(&buffers, &mut lane, &stream);
        drop(lane);
        buffers[0].write(0, rank);
        replay(&graph, &stream);
        CurrentContext::synchronize().unwrap();
        all_have_replayed.meet();
        let free = || mem_get_info().unwrap().0;
        let before = free();
        if rank == 0 {
            // That its kernels have ended is still told: the library's stream is asked for that once.
            fail_driver_calls("cuStreamQuery", NOT_READY, 1, u32::MAX);
        } else {
            rank_0_is_done.wait();
        }
        let closed = communicator.close_within(Duration::from_millis(100));
        fail_driver_calls("cuStreamQuery", NOT_READY, 0, 0);
        assert_eq!(free(), before, "rank {rank} frees what the other one or replays may use");
        if rank == 0 {
            rank_0_is_done.come();
        }
        Buffers::assert_untouched(&mut buffers, 1, rank, || {
            replay(&graph, &stream);
            finish(&stream);
        });
        closed.expect_err("there is something to say")
    });
    let told = closed[0].error();
    assert!(matches!(told, Error::KernelsRunning { rank: 0, .. }), "{told:?}");
    // Rank 0 has told nobody that its kernels have ended.
    let told = closed[1].error();
    assert!(matches!(told, Error::CloseTimeout { ranks, .. } if *ranks == [0]), "{told:?}");
}
