//! Which PTX texts are used: the best that all ranks take, with the same results.

use cust::context::Context;
use cust::device::Device;
use cust::memory::{CopyDestination as _, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};
use half::bf16;
use meshreduce::{Algorithm, Bf16, Communicator, DType, Isa, Op, Outcome};
use meshreduce_checks::in_process::{again_on, config, is_again_on, outcomes_each};
use meshreduce_checks::{inputs, reference};
use meshreduce_tests::here;

/// Elements of the messages: no whole number of units, whatever the ISA.
const COUNT: usize = 4_099;

fn message(rank: usize) -> Vec<u8> {
    inputs::message(5, 0, 0, rank, COUNT, DType::Bf16)
}

/// By rank, the ISA that is agreed on and the bytes of an all-reduce by packets, where rank 1 allows no later one than `isa`.
fn reduced(isa: Isa, algorithm: Algorithm, op: Op) -> Vec<(Isa, Vec<u8>)> {
    let each = |rank| {
        let own = config().force_algorithm(Some(algorithm));
        if rank == 1 { own.latest_isa(isa) } else { own }
    };
    let program = |communicator: Communicator| {
        let device = Device::get_device(communicator.device()).expect("the rank's device");
        let _context = Context::new(device).expect("its context");
        let elements = message(communicator.rank());
        let elements = elements.chunks(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).into());
        let elements: Vec<Bf16> = elements.collect();
        let mut data = DeviceBuffer::from_slice(&elements).expect("device memory");
        let stream = Stream::new(StreamFlags::NON_BLOCKING, None).expect("a stream");
        let mut lane = communicator.lane(0).expect("a lane");
        lane.all_reduce_in_place_and_wait(&mut data, op, &stream).expect("an all-reduce");
        let mut result = vec![Bf16::default(); COUNT];
        data.copy_to(&mut result).expect("a copy");
        drop(lane);
        let isa = communicator.isa();
        // Others may still be in the call, which an end without them would abort.
        communicator.close().expect("all have ended");
        (isa, result.iter().flat_map(|value| value.0.to_le_bytes()).collect())
    };
    outcomes_each(3, each, |outcome| match outcome {
        Ok(Outcome::Ready(communicator)) => program(communicator),
        other => panic!("the rendezvous came to {other:?}"),
    })
}

#[test]
fn the_best_isa_that_all_ranks_take_is_agreed_on_and_the_bits_are_the_same() {
    let messages: Vec<Vec<u8>> = (0..3).map(message).collect();
    for (algorithm, op) in [
        (Algorithm::OneShotLl, Op::Sum),
        (Algorithm::OneShotLl, Op::Min),
        (Algorithm::TwoShotLl, Op::Avg),
        (Algorithm::TwoShotLl, Op::Max),
    ] {
        let expected = reference::all_reduce(&messages, DType::Bf16, op);
        for isa in Isa::ALL {
            for (rank, (agreed, bytes)) in reduced(isa, algorithm, op).into_iter().enumerate() {
                assert_eq!(agreed, isa, "rank {rank}: rank 1 takes no later one");
                assert_eq!(bytes, expected, "rank {rank}, {algorithm}, {op}, ISA {isa}");
            }
        }
    }
}

#[test]
fn devices_of_compute_capability_7_0_take_the_text_for_all() {
    const NODE: &str = "dgx-1v";
    if !is_again_on(NODE) {
        return again_on(NODE, here!("devices_of_compute_capability_7_0_take_the_text_for_all"));
    }
    // Three of its GPUs are fully connected.
    let all = reduced(Isa::V84, Algorithm::OneShotLl, Op::Sum);
    assert!(all.iter().all(|(isa, _)| *isa == Isa::V70));
}
