use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::*;
use crate::exec::{AddressSpace, Block, Executor, Region, Turn, TurnEnd};
use meshreduce_emulator_ptx::{Fault, FaultKind, Kernel, Launch, Module};

mod unannounced;

/// An address space with nothing in it.
struct Nothing;

impl AddressSpace for Nothing {
    fn version(&self) -> u64 {
        0
    }

    fn find(&self, _: u64) -> Result<Region, String> {
        Err("nothing is allocated".to_owned())
    }
}

/// Blocks that do what a function says, by kernel name and block index.
struct Scripted<F>(Arc<F>);

struct ScriptedBlock<F> {
    script: Arc<F>,
    launch: Arc<Launch>,
    index: [u32; 3],
}

impl<F: Fn(&str, [u32; 3]) -> TurnEnd + Send + Sync + 'static> Executor for Scripted<F> {
    fn block(&self, launch: &Arc<Launch>, index: [u32; 3]) -> Box<dyn Block> {
        Box::new(ScriptedBlock { script: Arc::clone(&self.0), launch: Arc::clone(launch), index })
    }
}

impl<F: Fn(&str, [u32; 3]) -> TurnEnd + Send + Sync> Block for ScriptedBlock<F> {
    fn run(&mut self, _: &dyn AddressSpace, _: u64) -> Turn {
        Turn { instructions: 1, end: (self.script)(&self.launch.kernel.name, self.index) }
    }
}

fn kernel(name: &str) -> Arc<Kernel> {
    let text = format!(".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry {name}() {{ ret; }}");
    Module::parse(&text).unwrap().kernel(name).unwrap()
}

fn launch(name: &str, blocks: u32) -> Op {
    let launch = Launch {
        kernel: kernel(name),
        grid: [blocks, 1, 1],
        block: [1024, 1, 1],
        params: Box::new([]),
        dynamic_shared: 0,
    };
    Op::Launch { launch: Arc::new(launch), shared_bytes: 0 }
}

/// A device with two multiprocessors of 1,024 threads each.
fn engine(script: impl Fn(&str, [u32; 3]) -> TurnEnd + Send + Sync + 'static) -> Engine {
    engine_with(script, Duration::from_secs(60))
}

fn engine_with(
    script: impl Fn(&str, [u32; 3]) -> TurnEnd + Send + Sync + 'static,
    deadlock_after: Duration,
) -> Engine {
    Engine::start(setup(script, deadlock_after)).unwrap()
}

fn setup(
    script: impl Fn(&str, [u32; 3]) -> TurnEnd + Send + Sync + 'static,
    deadlock_after: Duration,
) -> Setup {
    let limits = Limits {
        multiprocessors: 2,
        threads_per_multiprocessor: 1024,
        shared_per_multiprocessor: 64 << 10,
        shared_reserved_per_block: 0,
    };
    let executor = Arc::new(Scripted(Arc::new(script)));
    Setup {
        name: "test".to_owned(),
        limits,
        executor,
        memory: Arc::new(Nothing),
        instructions: Arc::default(),
        deadlock_after,
    }
}

fn stream(engine: &Engine, kind: StreamKind) -> (u64, Arc<Health>) {
    let health = Arc::new(Health::default());
    (engine.add_stream(1, Arc::clone(&health), kind), health)
}

fn idle_script(_: &str, _: [u32; 3]) -> TurnEnd {
    TurnEnd::Done
}

fn fault(kernel: &str) -> TurnEnd {
    TurnEnd::Fault(Box::new(Fault {
        kernel: kernel.to_owned(),
        line: 4,
        text: "trap;".to_owned(),
        block: [0; 3],
        thread: [0; 3],
        kind: FaultKind::Trap,
    }))
}

/// Appends `word` to `log` when the stream gets there.
fn note(log: &Arc<Mutex<Vec<&'static str>>>, word: &'static str) -> Op {
    let log = Arc::clone(log);
    Op::Run(Box::new(move || log.lock().unwrap().push(word)))
}

/// An operation that holds its stream up until the sender is dropped.
fn gate() -> (mpsc::Sender<()>, Op) {
    let (open, wait) = mpsc::channel::<()>();
    (
        open,
        Op::Callback(Box::new(move || {
            let _ = wait.recv();
        })),
    )
}

#[test]
fn a_stream_does_its_operations_in_order() {
    let engine = engine(idle_script);
    let (stream, _) = stream(&engine, StreamKind::Blocking);
    let log = Arc::default();
    for word in ["a", "b", "c"] {
        engine.submit(stream, note(&log, word)).unwrap();
        engine.submit(stream, launch("k", 3)).unwrap();
    }
    engine.wait(stream);
    assert_eq!(*log.lock().unwrap(), ["a", "b", "c"]);
    assert!(engine.is_idle(stream));
}

#[test]
fn a_function_that_blocks_holds_up_no_function_of_another_stream() {
    let engine = engine(idle_script);
    let (held, _) = stream(&engine, StreamKind::Blocking);
    let (free, _) = stream(&engine, StreamKind::Blocking);
    let (open, op) = gate();
    engine.submit(held, op).unwrap();
    let called = Arc::new(AtomicU64::new(0));
    for _ in 0..3 {
        let called = Arc::clone(&called);
        let call = move || {
            called.fetch_add(1, Ordering::Relaxed);
        };
        engine.submit(free, Op::Callback(Box::new(call))).unwrap();
    }
    engine.wait(free);
    assert_eq!(called.load(Ordering::Relaxed), 3);
    assert!(!engine.is_idle(held));
    drop(open);
    engine.wait(held);
}

#[test]
fn streams_do_not_wait_for_each_other() {
    let engine = engine(idle_script);
    let (held, _) = stream(&engine, StreamKind::Blocking);
    let (free, _) = stream(&engine, StreamKind::Blocking);
    let (open, op) = gate();
    engine.submit(held, op).unwrap();
    engine.submit(free, launch("k", 1)).unwrap();
    engine.wait(free);
    assert!(!engine.is_idle(held));
    drop(open);
    engine.wait(held);
}

#[test]
fn the_legacy_stream_and_blocking_streams_wait_for_each_other() {
    let engine = engine(idle_script);
    let (legacy, _) = stream(&engine, StreamKind::Legacy);
    let (blocking, _) = stream(&engine, StreamKind::Blocking);
    let (free, _) = stream(&engine, StreamKind::NonBlocking);
    let log = Arc::default();
    let (open, op) = gate();
    engine.submit(blocking, op).unwrap();
    engine.submit(blocking, note(&log, "blocking before")).unwrap();
    engine.submit(legacy, note(&log, "legacy")).unwrap();
    engine.submit(blocking, note(&log, "blocking after")).unwrap();
    engine.submit(free, note(&log, "non-blocking")).unwrap();
    engine.wait(free);
    drop(open);
    engine.wait_context(1);
    assert_eq!(*log.lock().unwrap(), ["non-blocking", "blocking before", "legacy", "blocking after"]);
}

#[test]
fn the_legacy_stream_of_another_context_is_no_concern() {
    let engine = engine(idle_script);
    let (legacy, health) = stream(&engine, StreamKind::Legacy);
    let other = engine.add_stream(2, health, StreamKind::Blocking);
    let (open, op) = gate();
    engine.submit(legacy, op).unwrap();
    engine.submit(other, launch("k", 1)).unwrap();
    engine.wait(other);
    drop(open);
}

#[test]
fn a_stream_waits_for_an_event_of_another_device() {
    let (first, second) = (engine(idle_script), engine(idle_script));
    let (a, _) = stream(&first, StreamKind::NonBlocking);
    let (b, _) = stream(&second, StreamKind::NonBlocking);
    let (log, event) = (Arc::default(), Arc::new(Event::default()));
    let (open, op) = gate();
    first.submit(a, op).unwrap();
    first.submit(a, note(&log, "first")).unwrap();
    let number = event.record();
    first.submit(a, Op::Record(Arc::clone(&event), number)).unwrap();
    second.submit(b, Op::Wait(Arc::clone(&event), number)).unwrap();
    second.submit(b, note(&log, "second")).unwrap();
    assert!(!event.has_reached(number));
    drop(open);
    second.wait(b);
    assert_eq!(*log.lock().unwrap(), ["first", "second"]);
}

#[test]
fn events_measure_time() {
    let engine = engine(idle_script);
    let (stream, _) = stream(&engine, StreamKind::NonBlocking);
    let (start, end) = (Arc::new(Event::default()), Arc::new(Event::default()));
    assert_eq!(start.milliseconds_until(&end), None);
    engine.submit(stream, Op::Record(Arc::clone(&start), start.record())).unwrap();
    engine.submit(stream, Op::Run(Box::new(|| std::thread::sleep(Duration::from_millis(20))))).unwrap();
    let number = end.record();
    engine.submit(stream, Op::Record(Arc::clone(&end), number)).unwrap();
    assert!(end.wait(number, Duration::ZERO));
    assert!(start.milliseconds_until(&end).unwrap() >= 20.0);
    assert!(end.milliseconds_until(&start).unwrap() <= -20.0);
}

#[test]
fn every_block_runs_once() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let script = {
        let seen = Arc::clone(&seen);
        move |_: &str, index| {
            seen.lock().unwrap().push(index);
            TurnEnd::Done
        }
    };
    let engine = engine(script);
    let (stream, _) = stream(&engine, StreamKind::Legacy);
    let launch = Launch {
        kernel: kernel("k"),
        grid: [2, 3, 4],
        block: [32, 1, 1],
        params: Box::new([]),
        dynamic_shared: 0,
    };
    engine.submit(stream, Op::Launch { launch: Arc::new(launch), shared_bytes: 0 }).unwrap();
    engine.wait(stream);
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 24);
    assert!(seen.contains(&[1, 2, 3]));
}

#[test]
fn kernels_of_two_streams_run_at_the_same_time() {
    // Each spins until the other has run.
    let ran = [AtomicBool::new(false), AtomicBool::new(false)];
    let engine = engine(move |name, _| {
        let me = usize::from(name == "b");
        ran[me].store(true, Ordering::Relaxed);
        if ran[1 - me].load(Ordering::Relaxed) { TurnEnd::Done } else { TurnEnd::Spinning }
    });
    let (a, _) = stream(&engine, StreamKind::NonBlocking);
    let (b, _) = stream(&engine, StreamKind::NonBlocking);
    engine.submit(a, launch("a", 1)).unwrap();
    engine.submit(b, launch("b", 1)).unwrap();
    engine.wait(a);
    engine.wait(b);
}

#[test]
fn no_more_blocks_run_at_once_than_fit() {
    let resident = Arc::new(Mutex::new((std::collections::HashMap::<u32, u32>::new(), 0)));
    let script = {
        let resident = Arc::clone(&resident);
        move |_: &str, [x, ..]: [u32; 3]| {
            let mut state = resident.lock().unwrap();
            let turns = state.0.entry(x).or_default();
            *turns += 1;
            if *turns == 5 {
                state.0.remove(&x);
                return TurnEnd::Done;
            }
            state.1 = state.1.max(state.0.len());
            TurnEnd::Budget
        }
    };
    let engine = engine(script);
    let (stream, _) = stream(&engine, StreamKind::Legacy);
    engine.submit(stream, launch("k", 7)).unwrap();
    engine.wait(stream);
    assert_eq!(resident.lock().unwrap().1, 2, "two multiprocessors, one block of 1,024 threads each");
}

#[test]
fn a_fault_ends_its_context_and_no_other() {
    let engine = engine(|name, _| if name == "bad" { fault(name) } else { TurnEnd::Done });
    let (bad, health) = stream(&engine, StreamKind::NonBlocking);
    let good_health = Arc::new(Health::default());
    let good = engine.add_stream(2, Arc::clone(&good_health), StreamKind::NonBlocking);
    let event = Arc::new(Event::default());
    let number = event.record();
    engine.submit(bad, launch("bad", 5)).unwrap();
    let _ = engine.submit(bad, Op::Record(Arc::clone(&event), number));
    engine.submit(good, launch("good", 5)).unwrap();
    engine.wait(bad);
    engine.wait(good);
    assert!(event.wait(number, Duration::ZERO));
    assert_eq!(health.failure(), Some(StickyError::LaunchFailed));
    assert_eq!(good_health.failure(), None);
    assert_eq!(engine.submit(bad, launch("good", 1)), Err(StickyError::LaunchFailed));
    let late = event.record();
    assert!(engine.submit(bad, Op::Record(Arc::clone(&event), late)).is_err());
    assert!(event.wait(late, Duration::ZERO));
}

#[test]
fn a_panic_of_the_executor_is_a_failed_launch() {
    let engine = engine(|name, _| if name == "bad" { panic!("a defect") } else { TurnEnd::Done });
    let (stream, health) = stream(&engine, StreamKind::NonBlocking);
    engine.submit(stream, launch("bad", 1)).unwrap();
    engine.wait(stream);
    assert_eq!(health.failure(), Some(StickyError::LaunchFailed));
}

#[test]
fn blocks_that_wait_for_blocks_without_a_place_are_reported_not_hung_on() {
    // All blocks wait for a third one, which does not fit.
    let engine = engine_with(
        |_, [x, ..]| if x == 2 { TurnEnd::Done } else { TurnEnd::Spinning },
        Duration::from_millis(50),
    );
    let (stream, health) = stream(&engine, StreamKind::NonBlocking);
    engine.submit(stream, launch("k", 3)).unwrap();
    engine.wait(stream);
    assert_eq!(health.failure(), Some(StickyError::LaunchTimeout));
}

#[test]
fn blocks_that_wait_but_all_have_a_place_are_waited_for() {
    let began = Instant::now();
    let engine = engine_with(
        move |_, _| {
            if began.elapsed() > Duration::from_millis(300) { TurnEnd::Done } else { TurnEnd::Spinning }
        },
        Duration::from_millis(50),
    );
    let (stream, health) = stream(&engine, StreamKind::NonBlocking);
    engine.submit(stream, launch("k", 2)).unwrap();
    engine.wait(stream);
    assert_eq!(health.failure(), None);
}

#[test]
fn a_waiting_device_looks_seldom_and_takes_new_work_at_once() {
    let (looks, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let script = {
        let (looks, stop) = (Arc::clone(&looks), Arc::clone(&stop));
        move |name: &str, _| {
            if name != "waits" || stop.load(Ordering::Relaxed) {
                return TurnEnd::Done;
            }
            looks.fetch_add(1, Ordering::Relaxed);
            TurnEnd::Spinning
        }
    };
    let engine = engine(script);
    let (waits, _) = stream(&engine, StreamKind::NonBlocking);
    let (works, _) = stream(&engine, StreamKind::NonBlocking);
    let began = Instant::now();
    engine.submit(waits, launch("waits", 1)).unwrap();
    while looks.load(Ordering::Relaxed) < 10 {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(500));
    // Pauses of 20 us, growing by a quarter to 1 ms: a look a millisecond, where spinning would make thousands.
    let looked = looks.load(Ordering::Relaxed);
    let most = 100 + 2 * began.elapsed().as_millis() as u64;
    assert!(looked < most, "{looked} looks, {most} are too many");
    engine.submit(works, launch("works", 1)).unwrap();
    engine.wait(works);
    stop.store(true, Ordering::Relaxed);
    engine.wait(waits);
}

#[test]
fn a_removed_stream_still_does_what_was_submitted() {
    let engine = engine(idle_script);
    let (stream, _) = stream(&engine, StreamKind::NonBlocking);
    let log: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let (done, finished) = mpsc::channel();
    let (open, op) = gate();
    engine.submit(stream, op).unwrap();
    engine.submit(stream, note(&log, "a")).unwrap();
    engine.submit(stream, Op::Run(Box::new(move || done.send(()).unwrap()))).unwrap();
    engine.remove_stream(stream);
    drop(open);
    finished.recv().unwrap();
    assert_eq!(*log.lock().unwrap(), ["a"]);
}

#[test]
fn instructions_are_counted() {
    let setup = setup(idle_script, Duration::from_secs(60));
    let instructions = Arc::clone(&setup.instructions);
    let engine = Engine::start(setup).unwrap();
    let (stream, _) = stream(&engine, StreamKind::NonBlocking);
    engine.submit(stream, launch("k", 9)).unwrap();
    engine.wait(stream);
    assert_eq!(instructions.load(Ordering::Relaxed), 9);
}
