//! What calls on CUDA devices say within a capture, where it is not that they became a part of the graph.

use cust::memory::DeviceBuffer;
use meshreduce_checks::graph::Graph;
use meshreduce_checks::stream::{NonBlocking, RawStream as _};
use meshreduce_process_group::{Call, DeviceType, Error, Operation, ProcessGroup, ReduceOp};
use meshreduce_tests::on_nccl::{Numbers, builder, on, start, with_stores};

const COUNT: usize = 100;

/// What `call` says within a capture, which it does not spoil, and which stays empty.
fn refused<T: std::fmt::Debug>(stream: &NonBlocking, call: impl FnOnce() -> Result<T, Error>) -> Error {
    let mut said = None;
    Graph::capture(stream, || said = Some(call()));
    said.unwrap().unwrap_err()
}

/// That the backend `name` would be made within a capture.
fn assert_made(error: &Error, name: &str) {
    assert!(matches!(error, Error::MadeInCapture { backend, .. } if **backend == *name), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&format!("its backend {name} within a capture")), "{text}");
    assert!(text.contains("ProcessGroup::connect"), "{text}");
}

/// Captures a call, replays it twice, and looks at the sum.
fn is_captured_and_replayed(group: &ProcessGroup, stream: &NonBlocking, numbers: &mut Numbers) {
    let graph = Graph::capture(stream, || {
        start(group, &numbers.all_reduce()).unwrap();
    });
    for round in 1..=2 {
        numbers.fill(round as f32);
        // SAFETY: the numbers are there, and the group is.
        assert_eq!(unsafe { graph.launch(stream) }, cust_raw::CUresult::CUDA_SUCCESS);
        stream.synchronize().unwrap();
        assert_eq!(numbers.read(), [2.0 * round as f32; COUNT]);
    }
}

#[test]
fn a_backend_is_not_made_within_a_capture_and_takes_calls_there_once_it_is_made() {
    for name in ["nccl", "mesh"] {
        with_stores(2, |store, rank| {
            let group =
                builder(store, rank, 2).backend(format!("cuda:{name}").parse().unwrap()).build().unwrap();
            let stream = NonBlocking::new().unwrap();
            let (mut numbers, captured) = (Numbers::new(rank, COUNT, 1.0), on(&group, stream.raw()));
            assert_made(&refused(&stream, || start(&captured, &numbers.all_reduce())), name);
            assert_eq!(group.sequence_numbers(), (0, 0), "it was no call");
            assert!(group.made(DeviceType::Cuda).is_none() && group.error().is_none());
            group.connect(DeviceType::Cuda).unwrap();
            is_captured_and_replayed(&captured, &stream, &mut numbers);
            group.shutdown().unwrap();
        });
    }
}

#[test]
fn what_is_behind_the_mesh_is_not_made_within_a_capture_either() {
    with_stores(2, |store, rank| {
        let group = builder(store, rank, 2).backend("cuda:mesh".parse().unwrap()).build().unwrap();
        let stream = NonBlocking::new().unwrap();
        let (mut numbers, captured) = (Numbers::new(rank, COUNT, 1.0), on(&group, stream.raw()));
        // (Connecting would make both.)
        start(&captured, &numbers.all_reduce()).unwrap().wait(None).unwrap();
        let tensor = numbers.tensor();
        let product = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Product };
        assert_made(&refused(&stream, || start(&captured, &product)), "nccl");
        let work = start(&captured, &product).unwrap();
        work.wait(None).unwrap();
        assert_eq!((&**work.backend(), numbers.read()), ("nccl", vec![4.0; COUNT]));
        is_captured_and_replayed(&captured, &stream, &mut numbers);
        group.shutdown().unwrap();
    });
}

#[test]
fn a_call_that_waits_is_refused_within_a_capture() {
    for name in ["nccl", "mesh"] {
        with_stores(2, |store, rank| {
            let group =
                builder(store, rank, 2).backend(format!("cuda:{name}").parse().unwrap()).build().unwrap();
            group.connect(DeviceType::Cuda).unwrap();
            let stream = NonBlocking::new().unwrap();
            let captured = on(&group, stream.raw());
            let mut lent = DeviceBuffer::from_slice(&[1.0_f32; COUNT]).unwrap();
            let errors = [
                (Operation::AllReduce, refused(&stream, || captured.all_reduce(&mut lent, ReduceOp::Sum))),
                (Operation::Broadcast, refused(&stream, || captured.broadcast(&mut lent, 0))),
            ];
            for (operation, error) in errors {
                assert!(matches!(&error, Error::WaitInCapture { operation: its, .. } if *its == operation));
                assert!(error.to_string().contains("ProcessGroup::start"), "{error}");
            }
            let numbers = Numbers::new(rank, COUNT, 1.0);
            start(&captured, &numbers.all_reduce()).unwrap().wait(None).unwrap();
            assert_eq!(numbers.read(), [2.0; COUNT]);
            group.shutdown().unwrap();
        });
    }
}

#[test]
fn sends_and_receives_of_the_mesh_are_refused_within_a_capture_before_and_after_the_first() {
    with_stores(2, |store, rank| {
        let group = builder(store, rank, 2).backend("cuda:mesh".parse().unwrap()).build().unwrap();
        group.connect(DeviceType::Cuda).unwrap();
        let stream = NonBlocking::new().unwrap();
        let (numbers, captured) = (Numbers::new(rank, COUNT, rank as f32), on(&group, stream.raw()));
        let transfer = if rank == 0 { numbers.send(1) } else { numbers.recv(0) };
        for _ in 0..2 {
            let error = refused(&stream, || start(&captured, &transfer));
            let operation = transfer.operation();
            assert!(matches!(&error, Error::TransferInCapture { operation: its, .. } if *its == operation));
            let text = error.to_string();
            assert!(text.contains(operation.name()) && text.contains("outside of the capture"), "{text}");
            start(&captured, &transfer).unwrap().wait(None).unwrap();
            assert_eq!(numbers.read(), [0.0; COUNT]);
        }
        group.shutdown().unwrap();
    });
}
