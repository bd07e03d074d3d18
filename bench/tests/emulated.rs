//! Measuring on the emulated node: that it goes through, measures what was asked for, and checks the results. What the
//! clocks say there means nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use meshreduce::{Algorithm, Collective, DType, Isa, Op, Topology};
use meshreduce_bench::measure::{self, Measured, ProgressEvent};
use meshreduce_bench::plan::{Case, Way, Work};
use meshreduce_bench::row::{Mode, Place, Row};
use meshreduce_checks::in_process::{alone, fail_driver_calls, open_driver};

fn work(ranks: usize, shared_device: bool) -> Work {
    let case = |dtype, op, bytes| Case { collective: Collective::AllReduce, dtype, op, bytes };
    Work {
        ranks,
        shared_device,
        topology: shared_device.then_some(Topology::FullyConnected),
        isa: Isa::V84,
        ways: vec![
            Way::Forced(Algorithm::OneShot),
            Way::Forced(Algorithm::HybridCubeMesh),
            Way::Selected,
            Way::Forced(Algorithm::TwoShot),
            Way::Forced(Algorithm::TwoShotLl),
        ],
        cases: vec![case(DType::Bf16, Op::Sum, 20), case(DType::F32, Op::Max, 4096)],
        warmup: 1,
        iterations: 3,
        graph_calls: Some(2),
        floor: None,
        deadline: Duration::from_secs(60),
    }
}

/// Measures, and keeps what was heard of it.
fn measure(work: &Work, asked: impl Fn(Way) -> bool + Sync) -> Measured {
    let measured = Mutex::new(Measured::default());
    measure::run(work, &asked, &|news| measured.lock().unwrap().hear(news)).expect("the ranks get through");
    measured.into_inner().unwrap()
}

fn check(work: &Work) {
    let _alone = alone();
    open_driver();
    let measured = measure(work, |way| way == Way::Forced(Algorithm::HybridCubeMesh));
    let name = |row: &Row| (row.algorithm.clone(), row.bytes, row.mode, row.place);
    let mut expected = Vec::new();
    for algorithm in ["one-shot", "auto: one-shot-ll", "two-shot", "two-shot-ll"] {
        for bytes in [20, 4096] {
            for mode in [Mode::Plain, Mode::Graph] {
                for place in [Place::Out, Place::In] {
                    expected.push((algorithm.to_owned(), bytes, mode, place));
                }
            }
        }
    }
    assert_eq!(measured.rows.iter().map(name).collect::<Vec<_>>(), expected);
    for row in &measured.rows {
        assert_eq!(row.wrong, Some(0), "{row:?}");
        assert_eq!((row.ranks, row.iterations), (work.ranks, 3));
        assert_eq!(row.graph_calls, if row.mode == Mode::Graph { 2 } else { 1 });
        let times = row.times;
        let all =
            [times.time_us, times.device_p50_us, times.device_p99_us, times.host_p50_us, times.host_p99_us];
        assert!(all.iter().all(|time| time.is_finite() && *time > 0.0), "{row:?}");
        assert!(times.device_p50_us <= times.device_p99_us && times.host_p50_us <= times.host_p99_us);
    }
    assert_eq!(measured.absent.len(), 1);
    assert!(measured.absent[0].asked && measured.absent[0].reason.contains("fully connected"));
}

#[test]
fn every_way_is_measured_plain_and_replayed_and_its_results_are_right() {
    check(&work(3, false));
}

#[test]
fn ranks_that_share_a_gpu_are_measured_too() {
    check(&work(2, true));
}

#[test]
fn the_floor_is_the_empty_kernel_launched_and_replayed_and_the_flag_round_trip() {
    let _alone = alone();
    open_driver();
    for shared_device in [false, true] {
        let mut work = work(2, shared_device);
        work.ways = vec![Way::Selected];
        work.cases.truncate(1);
        work.floor = Some(2);
        let measured = measure(&work, |_| true);
        let floor: Vec<_> = measured.floor.iter().map(|floor| (floor.what.as_str(), floor.mode)).collect();
        let expected = [
            ("empty kernel", Some(Mode::Plain)),
            ("empty kernel, graph x2", Some(Mode::Graph)),
            ("flag round trip, ranks 0 and 1", None),
            ("relaxed flag round trip, ranks 0 and 1", None),
        ];
        assert_eq!(floor, expected, "{:?}", measured.absent);
        assert!(measured.floor.iter().all(|floor| floor.time_us > 0.0 && floor.p50_us <= floor.p99_us));
        let steps: HashSet<_> = measured.latencies.iter().map(|latency| latency.what.as_str()).collect();
        assert_eq!(steps.len(), measured.latencies.len(), "each has a name of its own");
        for of in
            ["arithmetic", "load, memory", "load, host's memory", "fence, system scope", "barrier, 16 warps"]
        {
            assert!(steps.contains(of), "{of}");
        }
        assert!(measured.latencies.iter().all(|latency| latency.nanoseconds > 0.0 && latency.cycles > 0.0));
    }
}

#[test]
fn a_flag_that_does_not_come_back_is_given_up_and_said() {
    let _alone = alone();
    open_driver();
    let mut work = work(2, false);
    // The deadline would also be the all-reduces', which must not fail however slow the machine is.
    work.ways.clear();
    // More round trips than there is time for.
    work.floor = Some(u64::MAX / 2);
    work.deadline = Duration::from_millis(300);
    let measured = measure(&work, |_| true);
    assert_eq!(measured.floor.len(), 2);
    assert!(measured.absent[0].reason.contains("round trips within 0.3 s"), "{:?}", measured.absent);
}

#[test]
fn what_was_measured_before_a_failure_has_been_heard() {
    let _alone = alone();
    open_driver();
    let mut work = work(2, false);
    work.ways.truncate(1);
    let rows = Mutex::new(Vec::new());
    let failed = measure::run(&work, &|_| true, &|news| {
        if let ProgressEvent::Row(row) = news {
            rows.lock().unwrap().push(row);
            // The second case's first launch fails on whichever rank has told of the last row of the first.
            if rows.lock().unwrap().len() == 4 {
                fail_driver_calls("cuLaunchKernel", 719, 0, 1);
            }
        }
    });
    let error = format!("{:#}", failed.unwrap_err());
    assert!(error.contains("4096 bytes"), "{error}");
    let rows = rows.into_inner().unwrap();
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row.bytes == 20 && row.wrong == Some(0)));
}

#[test]
fn a_message_beyond_an_algorithms_limit_is_left_out_and_said() {
    let _alone = alone();
    open_driver();
    let mut work = work(2, false);
    work.ways = vec![Way::Forced(Algorithm::OneShot)];
    work.cases = vec![Case {
        collective: Collective::AllReduce,
        dtype: DType::Bf16,
        op: Op::Sum,
        bytes: (256 << 10) + 2,
    }];
    let measured = measure(&work, |_| true);
    assert!(measured.rows.is_empty());
    assert_eq!(measured.absent.len(), 1);
    assert_eq!(measured.absent[0].reason, "beyond the limit of one-shot");
}
