//! Nanoseconds of every call on the host, against a driver that does nothing:
//! `cargo bench -p meshreduce-bench --bench host_cost`.

use criterion::Criterion;
use meshreduce_bench::calls::{OPERATIONS, Subject};
use meshreduce_bench::noop_driver::calls_of;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut subject = Subject::new().unwrap_or_else(|error| panic!("{error:#}"));
    let mut group = criterion.benchmark_group("host_cost");
    for operation in OPERATIONS {
        // The first calls create the events of the lane's pool.
        for _ in 0..4 {
            (operation.run)(&mut subject).unwrap_or_else(|error| panic!("{error:#}"));
        }
        let made = calls_of(|| (operation.run)(&mut subject)).unwrap_or_else(|error| panic!("{error:#}"));
        let made: Vec<String> = made.iter().map(|(name, count)| format!("{count} x {name}")).collect();
        println!("{}: driver calls: {}", operation.name, made.join(", "));
        group.bench_function(operation.name, |bencher| {
            bencher.iter(|| (operation.run)(&mut subject).unwrap_or_else(|error| panic!("{error:#}")));
        });
    }
    group.finish();
    subject.close().unwrap_or_else(|error| panic!("{error:#}"));
    criterion.final_summary();
}
