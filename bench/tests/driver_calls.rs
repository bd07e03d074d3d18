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
