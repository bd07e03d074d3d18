//! Communicators leave nothing behind. Alone in its file, because it counts what its process holds.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Barrier;

use cust::context::{Context, CurrentContext};
use cust::device::Device;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use cust_raw::CUresult;
use half::bf16;
use meshreduce::store::FileStore;
use meshreduce::{Bf16, Op, Outcome, rendezvous};
use meshreduce_checks::graph::Graph;
use meshreduce_checks::in_process::{config, open_driver};

fn ones(count: usize) -> DeviceBuffer<Bf16> {
    let buffer = DeviceBuffer::from_slice(&vec![Bf16::from(bf16::ONE); count]).expect("device memory");
    CurrentContext::synchronize().expect("the copy");
    buffer
}

/// What a process can leak, counted.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    device_memory: Vec<usize>,
    shared_memory: BTreeSet<String>,
    left_in_store: usize,
}

fn holdings(store: &std::path::Path) -> Holdings {
    let names = |directory: &str| {
        fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .collect::<Vec<_>>()
    };
    let device_memory = (0..2)
        .map(|ordinal| {
            let _context = Context::new(Device::get_device(ordinal).expect("a device")).expect("its context");
            cust::memory::mem_get_info().expect("free memory").0
        })
        .collect();
    let shared = names("/dev/shm").into_iter().map(|name| name.to_string_lossy().into_owned());
    Holdings {
        descriptors: names("/proc/self/fd").len(),
        device_memory,
        shared_memory: shared.filter(|name| name.contains("meshreduce")).collect(),
        left_in_store: fs::read_dir(store).into_iter().flatten().count(),
    }
}

/// What a communicator with captured calls leaves on each device: the counters of its lane.
fn left_by_captures(communicators: usize) -> usize {
    communicators * meshreduce_wire::counters::BYTES.next_multiple_of(GRANULARITY) as usize
}

/// Device memory is given out in multiples of this.
const GRANULARITY: u64 = 512;

#[test]
fn communicators_created_and_closed_a_thousand_times_leave_nothing_but_what_captured_graphs_may_need() {
    open_driver();
    cust::init(cust::CudaFlags::empty()).expect("the driver");
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Every so many turns there is an all-reduce, plain or captured.
    let cycle = |turns: usize, every: usize, captured: bool| {
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            for rank in 0..2 {
                let (directory, barrier) = (directory.path(), &barrier);
                scope.spawn(move || {
                    let store = FileStore::open(directory).expect("a store");
                    for turn in 0..turns {
                        let outcome = rendezvous(&store, rank, 2, rank as u32, &config());
                        let Ok(Outcome::Ready(communicator)) = outcome else {
                            panic!("turn {turn}: {outcome:?}")
                        };
                        if turn % every == 0 {
                            let device = Device::get_device(rank as u32).expect("the device");
                            let _context = Context::new(device).expect("its context");
                            let stream = Stream::new(StreamFlags::DEFAULT, None).expect("a stream");
                            let mut data = ones(100);
                            let mut lane = communicator.lane(0).expect("a lane");
                            if captured {
                                // SAFETY: `data` lives until the replay has ended.
                                let mut call =
                                    || unsafe { lane.all_reduce_in_place(&mut data, Op::Sum, &stream) };
                                let graph =
                                    Graph::capture(&stream, || drop(call().expect("a captured call")));
                                // SAFETY: as above.
                                let launched = unsafe { graph.launch(&stream) };
                                assert_eq!(launched, CUresult::CUDA_SUCCESS);
                                stream.synchronize().expect("the replay");
                            } else {
                                let done = lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream);
                                done.expect("an all-reduce");
                            }
                            let result = data.as_host_vec().expect("the result");
                            assert!(result.iter().all(|value| bf16::from(*value).to_f32() == 2.0));
                        }
                        communicator.close().expect("an orderly end");
                        barrier.wait();
                    }
                });
            }
        });
    };
    cycle(5, 1, false);
    cycle(1, 1, true);
    let before = holdings(directory.path());
    cycle(1000, 50, false);
    assert_eq!(holdings(directory.path()), before);
    cycle(20, 1, true);
    let after = holdings(directory.path());
    // The emulated node keeps a descriptor for each piece of device memory, here one a rank.
    let descriptors = before.descriptors + 2 * 20;
    let device_memory = before.device_memory.iter().map(|free| free - left_by_captures(20)).collect();
    assert_eq!(after, Holdings { descriptors, device_memory, ..before });
}
