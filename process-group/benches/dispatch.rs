//! What a group costs on top of its backend: `cargo bench -p meshreduce-process-group --bench dispatch`.
//!
//! The backend does nothing, so that what is left is the group: its checks, the sequence number, the flight recorder, two looks
//! at the clock. The goal is under 100 ns a call. What is printed last is measured in turns and in one run, so that other load on
//! the machine hits both alike.

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use meshreduce_process_group::store::MemoryStore;
use meshreduce_process_group::{
    Backend, BackendContext, BackendFactory, BufferMut, Call, DeviceType, Error, Outcome, ProcessGroup,
    ReduceOp, Registry, Request, Work,
};

/// Takes every call and does nothing.
struct Null {
    name: Arc<str>,
}

impl fmt::Debug for Null {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Null")
    }
}

impl Backend for Null {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn supports(&self, _call: &Call<'_>) -> Result<(), String> {
        Ok(())
    }

    unsafe fn start(&self, _call: &Call<'_>, _request: &Request) -> Result<Work, Error> {
        Ok(Work::done(&self.name, Outcome::default()))
    }

    fn abort(&self, _cause: &Error) {}

    fn error(&self) -> Option<Error> {
        None
    }

    fn shutdown(&self, _timeout: Duration) -> Result<(), Error> {
        Ok(())
    }
}

/// Makes it.
struct NullFactory;

impl BackendFactory for NullFactory {
    fn name(&self) -> &str {
        "null"
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cpu]
    }

    fn create(&self, _context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(Null { name: "null".into() }))
    }
}

fn group() -> Result<ProcessGroup, Error> {
    let mut registry = Registry::empty();
    registry.register(NullFactory)?;
    let group = ProcessGroup::builder(Arc::new(MemoryStore::new()), 0, 1)
        .registry(registry)
        .backend("null".parse()?)
        .build()?;
    group.connect(DeviceType::Cpu)?;
    Ok(group)
}

const ROUNDS: usize = 501;
const CALLS: u32 = 1000;

/// Nanoseconds of one of `CALLS` calls.
fn time(mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..CALLS).for_each(|_| call());
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let group = group().unwrap_or_else(|error| panic!("{error}"));
    let backend = group.made(DeviceType::Cpu).map(Arc::clone).unwrap_or_else(|| panic!("it was made"));
    let mut data = [1_f32; 1024];
    let tensor = data.tensor_mut();
    let call = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
    let request = Request::new();
    // SAFETY, of all calls: the backend touches no memory.
    let direct = || {
        // SAFETY: see above.
        let work = unsafe { backend.start(black_box(&call), &request) };
        black_box(work.is_ok());
    };
    let start = || {
        // SAFETY: see above.
        let work = unsafe { group.start(black_box(&call)) };
        black_box(work.is_ok());
    };
    let mut waiting = data;
    let mut and_wait = || {
        black_box(group.all_reduce(black_box(&mut waiting), ReduceOp::Sum).is_ok());
    };

    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("backend.start", |bencher| bencher.iter(direct));
    criterion.bench_function("group.start", |bencher| bencher.iter(start));
    criterion.bench_function("group.all_reduce", |bencher| bencher.iter(&mut and_wait));
    criterion.final_summary();

    let rounds: Vec<[f64; 3]> =
        (0..ROUNDS).map(|_| [time(direct), time(start), time(&mut and_wait)]).collect();
    let of = |at: usize| median(rounds.iter().map(|round| round[at]).collect());
    let over = |at: usize| median(rounds.iter().map(|round| round[at] - round[0]).collect());
    println!("in turns, median of {ROUNDS} rounds: backend.start {:.1} ns", of(0));
    for (at, name) in [(1, "group.start"), (2, "group.all_reduce")] {
        let (all, over) = (of(at), over(at));
        let verdict = if over < 100.0 { "under" } else { "NOT UNDER" };
        println!("{name} {all:.1} ns: {over:.1} ns over the backend's own, {verdict} the goal of 100 ns");
    }
}
