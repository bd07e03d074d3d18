//! How many driver calls each of the library's calls is, counted by a driver that does nothing else.

use meshreduce_bench::calls::{OPERATIONS, Subject};
use meshreduce_bench::noop_driver::calls_of;

/// What each operation calls, by name of the operation.
const EXPECTED: [(&str, &[(&str, u64)]); 11] = [
    ("empty launch", &[("cuLaunchKernel", 1)]),
    ("empty launch + event record", &[("cuLaunchKernel", 1), ("cuEventRecord", 1)]),
    (
        "all_reduce_raw",
        &[("cuLaunchKernel", 1), ("cuStreamIsCapturing", 1), ("cuStreamGetId", 1), ("cuEventRecord", 1)],
    ),
    (
        "all_reduce_in_place (typed, checked)",
        &[
            ("cuCtxPushCurrent_v2", 1),
            ("cuCtxPopCurrent_v2", 1),
            ("cuThreadExchangeStreamCaptureMode", 2),
            ("cuLaunchKernel", 1),
            ("cuStreamIsCapturing", 1),
            ("cuStreamGetId", 1),
            ("cuEventRecord", 1),
            ("cuPointerGetAttribute", 2),
        ],
    ),
    (
        "all_reduce (typed, checked, out of place)",
        &[
            ("cuCtxPushCurrent_v2", 2),
            ("cuCtxPopCurrent_v2", 2),
            ("cuThreadExchangeStreamCaptureMode", 4),
            ("cuLaunchKernel", 1),
            ("cuStreamIsCapturing", 1),
            ("cuStreamGetId", 1),
            ("cuEventRecord", 1),
            ("cuPointerGetAttribute", 4),
        ],
    ),
    (
        "group.start, backend mesh",
        &[("cuLaunchKernel", 1), ("cuStreamIsCapturing", 1), ("cuStreamGetId", 1), ("cuEventRecord", 1)],
    ),
    (
        "all_reduce_raw + synchronize",
        &[
            ("cuCtxPushCurrent_v2", 1),
            ("cuCtxPopCurrent_v2", 1),
            ("cuThreadExchangeStreamCaptureMode", 2),
            ("cuLaunchKernel", 1),
            ("cuStreamIsCapturing", 1),
            ("cuStreamGetId", 1),
            ("cuEventRecord", 1),
            ("cuEventSynchronize", 1),
        ],
    ),
    ("select", &[]),
    ("work.wait", &[("cuStreamWaitEvent", 1)]),
    (
        "work.synchronize",
        &[
            ("cuCtxPushCurrent_v2", 1),
            ("cuCtxPopCurrent_v2", 1),
            ("cuThreadExchangeStreamCaptureMode", 2),
            ("cuEventSynchronize", 1),
        ],
    ),
    (
        "work.is_finished",
        &[
            ("cuCtxPushCurrent_v2", 1),
            ("cuCtxPopCurrent_v2", 1),
            ("cuThreadExchangeStreamCaptureMode", 2),
            ("cuEventQuery", 1),
        ],
    ),
];

#[test]
fn every_call_makes_the_driver_calls_that_it_needs_and_no_other() {
    let mut subject = Subject::new().unwrap();
    for (operation, (name, expected)) in OPERATIONS.into_iter().zip(EXPECTED) {
        assert_eq!(operation.name, name);
        // The first calls create the events of the lane's pool: also those that the watchdog of a group looks at.
        for _ in 0..16 {
            (operation.run)(&mut subject).unwrap();
        }
        for _ in 0..100 {
            let made = calls_of(|| (operation.run)(&mut subject)).unwrap();
            let made: Vec<(&str, u64)> = made.iter().map(|(name, count)| (name.as_str(), *count)).collect();
            assert_eq!(made, expected, "{name}");
        }
    }
    subject.close().unwrap();
}

#[test]
fn a_captured_call_asks_for_the_capture_and_not_for_the_stream_whose_id_is_not_to_be_had() {
    let mut subject = Subject::new().unwrap();
    let all_reduce = OPERATIONS.iter().find(|operation| operation.name == "all_reduce_raw").unwrap().run;
    subject
        .captured(|subject| {
            // The first calls create the events of the lane's pool.
            for _ in 0..16 {
                all_reduce(subject)?;
            }
            for _ in 0..100 {
                let made = calls_of(|| all_reduce(subject))?;
                let made: Vec<(&str, u64)> =
                    made.iter().map(|(name, count)| (name.as_str(), *count)).collect();
                let expected = [
                    ("cuLaunchKernel", 1),
                    ("cuStreamIsCapturing", 1),
                    ("cuStreamGetCaptureInfo", 1),
                    ("cuEventRecord", 1),
                ];
                assert_eq!(made, expected);
            }
            Ok(())
        })
        .unwrap();
    subject.close().unwrap();
}

/// (A process of two ranks: each thread counts its own calls.)
#[test]
fn kernels_are_loaded_once_for_the_communicators_of_a_device() {
    use meshreduce::{Config, MemoryStore, Outcome, Topology, rendezvous};

    meshreduce_bench::noop_driver::open().unwrap();
    let stores = [MemoryStore::new(), MemoryStore::new(), MemoryStore::new()];
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let stores = &stores;
            scope.spawn(move || {
                let config = Config::default()
                    .force_topology(Some(Topology::FullyConnected))
                    .communicators_per_device(2);
                let make = |store: &MemoryStore| {
                    let mut made = None;
                    let calls = calls_of(|| {
                        // Devices that no other test of this process has.
                        made = Some(rendezvous(store, rank, 2, rank as u32 + 4, &config)?);
                        Ok(())
                    });
                    let loads =
                        calls.unwrap().into_iter().filter(|(name, _)| name.starts_with("cuModuleLoad"));
                    match made {
                        Some(Outcome::Ready(communicator)) => {
                            (communicator, loads.map(|(_, count)| count).sum::<u64>())
                        }
                        _ => panic!("the driver that does nothing has two devices"),
                    }
                };
                let (first, loads) = make(&stores[0]);
                assert!(loads > 0 && first.kernels_took().is_some());
                let (second, again) = make(&stores[1]);
                assert_eq!((again, second.kernels_took()), (0, None));
                first.close().unwrap();
                second.close().unwrap();
                // Nobody has them any more.
                let (third, again) = make(&stores[2]);
                assert_eq!(again, loads);
                assert!(third.kernels_took().is_some());
                third.close().unwrap();
            });
        }
    });
}
