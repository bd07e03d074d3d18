//! Groups on NCCL leave nothing behind, however they end. Alone in its file, because it counts what its process holds.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, Instant};

use meshreduce_checks::latch::Latch;
use meshreduce_tests::on_nccl::{FAR, Numbers, groups, start};

/// What a process can leak, counted.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
}

fn holdings() -> Holdings {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    Holdings { descriptors: count("/proc/self/fd"), threads: count("/proc/self/task") }
}

/// Makes a group, uses both of its communicators, and ends it in order or by an abort.
fn round(in_order: bool) {
    let over = Latch::new(2);
    groups(
        2,
        |builder| builder,
        |group| {
            let numbers = Numbers::new(group.rank(), 100, 1.0);
            let message = if group.rank() == 0 { numbers.send(1) } else { numbers.recv(0) };
            for call in [numbers.all_reduce(), message] {
                start(&group, &call).unwrap().wait(None).unwrap();
            }
            over.meet();
            if in_order {
                group.shutdown().unwrap();
            } else {
                group.abort("a round is over");
            }
        },
    );
}

#[test]
fn forty_groups_leave_nothing_behind() {
    for in_order in [true, false] {
        (0..4).for_each(|_| round(in_order));
        let settled = |wanted: Option<&Holdings>| {
            // Threads that abort or watch end a moment after those that they work for.
            let end = Instant::now() + FAR;
            loop {
                let now = holdings();
                std::thread::sleep(Duration::from_millis(50));
                if now == holdings() && wanted.is_none_or(|wanted| *wanted == now) || Instant::now() > end {
                    return now;
                }
            }
        };
        let before = settled(None);
        (0..20).for_each(|_| round(in_order));
        assert_eq!(settled(Some(&before)), before, "in order: {in_order}");
    }
}
