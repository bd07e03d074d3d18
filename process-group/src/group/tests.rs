//! The group over a backend that does nothing of itself: the tests say when its calls end, and how.

use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use meshreduce_store::{MemoryStore, Store};

use super::*;
use crate::backend::{BackendContext, BackendFactory, Registry, Request};
use crate::call::Call;
use crate::flight_recorder::State;
use crate::types::{DType, Operation, ReduceOp};
use crate::work::{Completion, Outcome, Work};

const LONG: Duration = Duration::from_secs(60);

/// A call that the test ends.
#[derive(Debug, Default)]
pub(super) struct Pending {
    end: Mutex<Option<Result<Outcome, Error>>>,
    changed: Condvar,
}

impl Pending {
    pub(super) fn end(&self, result: Result<Outcome, Error>) {
        self.end.lock().unwrap().get_or_insert(result);
        self.changed.notify_all();
    }
}

impl Completion for Pending {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        self.end.lock().unwrap().clone().transpose()
    }

    fn wait(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error> {
        let mut ended = self.end.lock().unwrap();
        while ended.is_none() {
            let left = end.map_or(LONG, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(None);
            }
            ended = self.changed.wait_timeout(ended, left).unwrap().0;
        }
        ended.clone().transpose()
    }

    unsafe fn wait_on(&self, _stream: RawStream) -> Result<(), Error> {
        Ok(())
    }
}

/// What all fake backends of a test have done.
#[derive(Debug, Default)]
struct Notes {
    made: AtomicUsize,
    failures_to_make: AtomicUsize,
    calls: Mutex<Vec<String>>,
    pending: Mutex<Vec<Arc<Pending>>>,
    /// How often one was asked what has gone wrong, and how often one was aborted.
    asked: AtomicUsize,
    aborts: AtomicUsize,
    /// How calls end, by their places, when one is shut down.
    at_shutdown: Mutex<Vec<(usize, Result<Outcome, Error>)>>,
    /// Why they are over, though no call says so.
    over: Mutex<Option<Error>>,
}

#[derive(Debug)]
struct Fake {
    name: Arc<str>,
    rank: usize,
    notes: Arc<Notes>,
    goes_on: bool,
    own: Mutex<Vec<Arc<Pending>>>,
}

impl Backend for Fake {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn supports(&self, call: &Call<'_>) -> Result<(), String> {
        match call.dtype() {
            Some(DType::I16) => Err("it has no 16-bit integers".to_owned()),
            _ => Ok(()),
        }
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        let text = format!("{}: {} {call}", self.rank, request.sequence);
        self.notes.calls.lock().unwrap().push(text);
        if !self.goes_on {
            return Ok(Work::done(&self.name, Outcome::default()));
        }
        let pending = Arc::new(Pending::default());
        self.notes.pending.lock().unwrap().push(Arc::clone(&pending));
        self.own.lock().unwrap().push(Arc::clone(&pending));
        Ok(Work::pending(&self.name, pending))
    }

    fn abort(&self, cause: &Error) {
        self.notes.aborts.fetch_add(1, SeqCst);
        self.own.lock().unwrap().iter().for_each(|pending| pending.end(Err(cause.clone())));
    }

    fn error(&self) -> Option<Error> {
        self.notes.asked.fetch_add(1, SeqCst);
        // A call that it has only refused is no end of it.
        let ends = |error: &Error| !matches!(error, Error::Default(_));
        let over = self.notes.over.lock().unwrap().clone();
        over.or_else(|| self.own.lock().unwrap().iter().find_map(|pending| pending.poll().err().filter(ends)))
    }

    fn shutdown(&self, _timeout: Duration) -> Result<(), Error> {
        for (call, result) in self.notes.at_shutdown.lock().unwrap().drain(..) {
            self.own.lock().unwrap()[call].end(result);
        }
        self.notes.over.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

/// `done`: calls have ended when they return; `open`: the test ends them.
struct FakeFactory(&'static str, Arc<Notes>);

impl BackendFactory for FakeFactory {
    fn name(&self) -> &str {
        self.0
    }

    fn devices(&self) -> &[DeviceType] {
        &DeviceType::ALL
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        let Self(name, notes) = self;
        notes.made.fetch_add(1, SeqCst);
        if notes.failures_to_make.load(SeqCst) > 0 {
            notes.failures_to_make.fetch_sub(1, SeqCst);
            return Err(context.not_made(&(*name).into(), "not this time"));
        }
        let rank = context.group.rank;
        let (notes, goes_on) = (Arc::clone(notes), *name == "open");
        Ok(Arc::new(Fake { name: (*name).into(), rank, notes, goes_on, own: Mutex::default() }))
    }
}

fn registry() -> (Registry, Arc<Notes>) {
    let (mut registry, notes) = (Registry::empty(), Arc::<Notes>::default());
    registry.register(FakeFactory("done", Arc::clone(&notes))).unwrap();
    registry.register(FakeFactory("open", Arc::clone(&notes))).unwrap();
    (registry, notes)
}

/// A group whose ranks compare their calls, three of which have ended.
fn group_with_checked_calls(store: &Arc<MemoryStore>, rank: usize, world_size: usize) -> ProcessGroup {
    let group = ProcessGroup::builder(Arc::clone(store) as _, rank, world_size)
        .backend("cpu:done".parse().unwrap())
        .registry(registry().0)
        .check_calls(true)
        .dump_to(None)
        .build()
        .unwrap();
    for _ in 0..3 {
        group.all_reduce(&mut [0.0_f32; 4], ReduceOp::Sum).unwrap();
    }
    group
}

fn group_over(
    store: &Arc<MemoryStore>,
    rank: usize,
    world_size: usize,
    config: &str,
) -> (ProcessGroup, Arc<Notes>) {
    let (registry, notes) = registry();
    let group = ProcessGroup::builder(Arc::clone(store) as _, rank, world_size)
        .backend(config.parse().unwrap())
        .registry(registry)
        .timeout(LONG)
        .dump_to(None)
        .build()
        .unwrap();
    (group, notes)
}

fn group(rank: usize, world_size: usize, config: &str) -> (ProcessGroup, Arc<Notes>) {
    group_over(&Arc::default(), rank, world_size, config)
}

fn start(group: &ProcessGroup, data: &mut [f32]) -> Result<Work, Error> {
    let tensor = crate::BufferMut::tensor_mut(data);
    let call = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
    // SAFETY: the backend of these tests touches no memory.
    unsafe { group.start(&call) }
}

#[test]
fn a_backend_is_made_with_its_first_call_and_only_once() {
    let (group, notes) = group(0, 1, "cpu:done");
    assert_eq!(notes.made.load(SeqCst), 0);
    for _ in 0..3 {
        group.all_reduce(&mut [1.0_f32], ReduceOp::Sum).unwrap();
    }
    assert_eq!(notes.made.load(SeqCst), 1);
    assert_eq!(notes.calls.lock().unwrap().last().unwrap(), "0: 3 all_reduce (sum) of 1 f32 on cpu");
}

#[test]
fn a_backend_that_could_not_be_made_is_tried_again_with_the_next_call() {
    let (group, notes) = group(0, 1, "cpu:done");
    notes.failures_to_make.store(1, SeqCst);
    let error = group.connect(DeviceType::Cpu).unwrap_err();
    assert_eq!(error.to_string(), "backend done of group world cannot be made: not this time");
    group.connect(DeviceType::Cpu).unwrap();
    assert_eq!(notes.made.load(SeqCst), 2);
}

#[test]
fn calls_that_cannot_be_are_refused_and_do_not_count() {
    let (group, notes) = group(0, 2, "cpu:done");
    let error = group.broadcast(&mut [0_u8; 4], 2).unwrap_err();
    assert_eq!(error.to_string(), "broadcast on group world: root 2 is not one of 2 ranks");
    let error = group.all_reduce(&mut [0_i16; 4], ReduceOp::Max).unwrap_err();
    assert_eq!(
        error.to_string(),
        "backend done does not support all_reduce (max) of i16 (group world, device cpu): it has no 16-bit integers"
    );
    let error = group.barrier(Device::Cuda(0)).unwrap_err();
    assert_eq!(error.to_string(), "group world has no backend for cuda: its configuration is \"cpu:done\"");
    assert_eq!(group.sequence_numbers(), (0, 0));
    assert!(notes.calls.lock().unwrap().is_empty());
}

#[test]
fn a_device_is_named_and_never_guessed() {
    let (group, _) = group(0, 2, "done");
    let error = group.barrier(Device::Cuda(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "group world uses no CUDA device, but the call is on cuda:0: name the device when the group is made (Builder::cuda_device)"
    );
    let (registry, _) = registry();
    let group = ProcessGroup::builder(Arc::<MemoryStore>::default(), 0, 2)
        .backend("done".parse().unwrap())
        .registry(registry)
        .cuda_device(1)
        .build()
        .unwrap();
    let error = group.barrier(Device::Cuda(0)).unwrap_err();
    assert!(matches!(error, Error::WrongDevice { expected: Some(Device::Cuda(1)), .. }), "{error}");
    group.connect(DeviceType::Cuda).unwrap();
    assert!(matches!(group.barrier(Device::Cuda(0)), Err(Error::WrongDevice { .. })));
}

#[test]
fn a_group_says_what_it_is() {
    let (group, _) = group(1, 3, "cpu:done");
    assert_eq!(
        (group.name(), group.rank(), group.world_size(), group.ranks()),
        ("world", 1, 3, &[0, 1, 2][..])
    );
    assert_eq!(group.backend_config().to_string(), "cpu:done");
    assert_eq!(group.backend(DeviceType::Cpu).map(|name| &**name), Some("done"));
    assert_eq!((group.backend(DeviceType::Cuda), group.backends().count()), (None, 1));
    assert!(matches!(
        ProcessGroup::builder(Arc::<MemoryStore>::default(), 3, 3).build(),
        Err(Error::InvalidRank { rank: 3, world_size: 3 })
    ));
    assert!(matches!(
        ProcessGroup::builder(Arc::<MemoryStore>::default(), 0, usize::MAX / 2).build(),
        Err(Error::TooManyRanks { .. })
    ));
}

#[test]
fn collectives_and_sends_count_by_themselves_and_in_every_group() {
    let (group, _) = group(0, 3, "cpu:done");
    let part = group.new_group(&[2, 0], &GroupOptions::default()).unwrap().member().unwrap();
    group.all_reduce(&mut [0.0_f32], ReduceOp::Sum).unwrap();
    group.send(&[0_i8], 1, 0).unwrap();
    group.barrier(Device::Cpu).unwrap();
    part.barrier(Device::Cpu).unwrap();
    assert_eq!((group.sequence_numbers(), part.sequence_numbers()), ((2, 1), (1, 0)));
    assert_eq!((group.status().last_enqueued, group.status().last_completed), (2, 2));
    let entries = group.flight_recorder().snapshot().entries;
    let seen: Vec<_> = entries.iter().map(|entry| (entry.group, entry.operation, entry.state)).collect();
    let done = State::Completed;
    let expected = [
        (0, Operation::AllReduce, done),
        (0, Operation::Send, done),
        (0, Operation::Barrier, done),
        (1, Operation::Barrier, done),
    ];
    assert_eq!(seen, expected);
    assert!(entries[0].location.file().ends_with("tests.rs"));
}

/// Runs `rank` on a thread for every rank of a world.
fn ranks<T: Send>(world_size: usize, rank: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let rank = &rank;
        let threads: Vec<_> = (0..world_size).map(|number| scope.spawn(move || rank(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_wait_that_ends_early_changes_nothing() {
    let (group, notes) = group(0, 1, "cpu:open");
    let mut data = [0.0];
    let work = start(&group, &mut data).unwrap();
    let error = work.wait(Some(Duration::from_millis(1))).unwrap_err();
    assert!(
        error.to_string().starts_with("all_reduce number 1 on group world has not ended after"),
        "{error}"
    );
    assert!(!work.is_completed().unwrap());
    notes.pending.lock().unwrap()[0].end(Ok(Outcome::from_rank(7)));
    assert_eq!(work.wait(None).unwrap().source, Some(7));
    assert!(work.is_completed().unwrap());
    assert_eq!((work.sequence(), &**work.backend()), (Some(1), "open"));
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A future's output, by this thread, which sleeps until it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park_timeout(LONG);
    }
}

#[test]
fn an_abort_ends_what_is_pending_and_everything_after_with_its_cause() {
    let (group, _) = group(0, 1, "cpu:open");
    let told = Arc::<Mutex<Vec<String>>>::default();
    let note = Arc::clone(&told);
    group.on_abort(move |info, cause| note.lock().unwrap().push(format!("{}: {cause}", info.name)));
    let mut data = [0.0];
    let work = start(&group, &mut data).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| group.abort("the engine stops"));
        let error = work.wait(None).unwrap_err();
        assert_eq!(error.to_string(), "group world was aborted: the engine stops");
    });
    group.abort("once more");
    assert_eq!(
        start(&group, &mut [0.0]).unwrap_err().to_string(),
        "group world was aborted: the engine stops"
    );
    assert_eq!(*told.lock().unwrap(), ["world: group world was aborted: the engine stops"]);
    assert!(matches!(group.shutdown(), Err(Error::Aborted { .. })));
    assert!(matches!(group.new_group(&[0], &GroupOptions::default()), Err(Error::Aborted { .. })));
}

#[test]
fn a_group_is_shut_down_once_and_takes_no_calls_then() {
    let (group, _) = group(0, 1, "cpu:done");
    group.barrier(Device::Cpu).unwrap();
    group.shutdown().unwrap();
    group.shutdown().unwrap();
    assert_eq!(group.barrier(Device::Cpu).unwrap_err().to_string(), "group world was shut down");
}

#[test]
fn completions_are_told_once_each() {
    let (group, notes) = group(0, 1, "cpu:open");
    let told = Arc::<Mutex<Vec<u64>>>::default();
    let note = Arc::clone(&told);
    group.on_completion(move |call| note.lock().unwrap().push(call.sequence));
    let mut data = [[0.0]; 3];
    let works: Vec<_> = data.iter_mut().map(|data| start(&group, data).unwrap()).collect();
    notes.pending.lock().unwrap().iter().for_each(|pending| pending.end(Ok(Outcome::default())));
    works.iter().for_each(|work| {
        work.wait(None).unwrap();
    });
    group.shutdown().unwrap();
    let mut told = told.lock().unwrap().clone();
    told.sort_unstable();
    assert_eq!(told, [1, 2, 3]);
}

#[test]
fn a_call_that_is_late_names_who_has_not_come() {
    let store = Arc::<MemoryStore>::default();
    let (here, _) = group_over(&store, 0, 3, "cpu:open");
    let (other, _) = group_over(&store, 1, 3, "cpu:open");
    let (absent, _) = group_over(&store, 2, 3, "cpu:open");
    let (mut a, mut b) = ([0.0], [0.0]);
    let _theirs = start(&other.with_deadline(Some(LONG)), &mut b).unwrap();
    let begun = Instant::now();
    // Who is late looks for what the others have told of their progress.
    while !store.list_keys().unwrap().iter().any(|key| key.ends_with("progress/1")) {
        assert!(begun.elapsed() < LONG, "{:?}", store.list_keys());
        std::thread::yield_now();
    }
    let work = start(&here.with_deadline(Some(Duration::from_millis(1))), &mut a).unwrap();
    match work.wait(Some(LONG)).unwrap_err() {
        Error::Timeout { operation: Operation::AllReduce, sequence: 1, missing, .. } => {
            assert_eq!(missing, [2])
        }
        error => panic!("{error}"),
    }
    drop((here, other, absent, work, _theirs));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

/// A rank that leaves a group deletes what others have told of it, and the next group over the same keys may have begun.
#[test]
fn what_a_rank_has_told_is_told_again_while_a_call_goes_on() {
    let store = Arc::<MemoryStore>::default();
    let (group, _) = group_over(&store, 0, 2, "cpu:open");
    let mut data = [0.0];
    let _goes_on = start(&group.with_deadline(Some(LONG)), &mut data).unwrap();
    let told = || store.list_keys().unwrap().into_iter().find(|key| key.ends_with("progress/0"));
    for _ in 0..3 {
        let begun = Instant::now();
        let key = loop {
            match told() {
                Some(key) => break key,
                None => assert!(begun.elapsed() < LONG),
            }
            std::thread::yield_now();
        };
        store.delete(&key).unwrap();
    }
    drop((group, _goes_on));
    assert_eq!(told(), None, "nothing is told behind the end");
}

#[test]
fn a_call_that_is_late_does_not_keep_the_ends_of_other_groups_from_being_seen() {
    let (group, notes) = group(0, 2, "cpu:open");
    // The group is looked at before its part: who looks for rank 1 for the one must not wait there.
    let part = group.new_group(&[0, 1], &GroupOptions::default()).unwrap().member().unwrap();
    let seen = Arc::new(Mutex::new(None));
    let (its, told) = (Arc::clone(&notes), Arc::clone(&seen));
    part.on_completion(move |_| {
        let late_goes_on = matches!(its.pending.lock().unwrap()[0].poll(), Ok(None));
        *told.lock().unwrap() = Some(late_goes_on);
    });
    let late = start(&group.with_deadline(Some(Duration::from_millis(1))), &mut [0.0]).unwrap();
    let _ends = start(&part, &mut [0.0]).unwrap();
    notes.pending.lock().unwrap()[1].end(Ok(Outcome::default()));
    let error = late.wait(Some(LONG)).unwrap_err();
    assert!(matches!(&error, Error::Timeout { missing, .. } if *missing == [1]), "{error}");
    assert_eq!(*seen.lock().unwrap(), Some(true), "the late one was waited for first");
}

#[test]
fn there_is_one_default_group_at_most() {
    assert!(default_group().is_err() && destroy_default_group().is_err());
    let (group, _) = group(0, 1, "cpu:done");
    set_default_group(&group).unwrap();
    let error = set_default_group(&group).unwrap_err().to_string();
    assert!(error.contains("already"), "{error}");
    default_group().unwrap().barrier(Device::Cpu).unwrap();
    destroy_default_group().unwrap();
    assert!(matches!(group.barrier(Device::Cpu), Err(Error::ShutDown { .. })));
    set_default_group(&group).unwrap();
    destroy_default_group().unwrap();
}

#[test]
fn a_group_whose_handles_are_gone_is_over_for_what_is_pending() {
    let (group, notes) = group(0, 1, "cpu:open");
    let tensor = crate::Buffer::tensor(&[0.0_f32]);
    let call = Call::Broadcast { tensor, root: 0 };
    // SAFETY: the backend of these tests touches no memory.
    drop(unsafe { group.start(&call) }.unwrap());
    drop(group);
    let pending = notes.pending.lock().unwrap()[0].clone();
    let error = pending.wait(Some(Instant::now() + LONG)).unwrap_err();
    assert!(error.to_string().contains("all handles were dropped"), "{error}");
}

/// Rank 1 of two, with such a backend, whose flight recorder is written down as `rank_1` in a folder.
fn dumping_to(folder: &tempfile::TempDir, backend: &str) -> (ProcessGroup, Arc<Notes>) {
    let (registry, notes) = registry();
    let group = ProcessGroup::builder(Arc::<MemoryStore>::default(), 1, 2)
        .backend(backend.parse().unwrap())
        .registry(registry)
        .dump_to(Some(folder.path().join("rank_")))
        .build()
        .unwrap();
    (group, notes)
}

#[test]
fn the_flight_recorder_is_written_down_when_a_group_is_aborted() {
    let folder = tempfile::tempdir().unwrap();
    let (group, _) = dumping_to(&folder, "cpu:done");
    group.barrier(Device::Cpu).unwrap();
    group.abort("the engine stops");
    group.abort("once more");
    let names: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["rank_1"]);
}

#[test]
fn the_flight_recorder_is_written_down_when_a_call_is_late_with_the_call_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let (group, _) = dumping_to(&folder, "cpu:open");
    let late = start(&group.with_deadline(Some(Duration::from_millis(1))), &mut [0.0]).unwrap();
    assert!(matches!(late.wait(Some(LONG)), Err(Error::Timeout { sequence: 1, .. })));
    // The watching thread ends the call before it writes.
    let (file, begun) = (folder.path().join("rank_1"), Instant::now());
    while !file.exists() {
        assert!(begun.elapsed() < LONG, "nothing was written");
        std::thread::yield_now();
    }
    let entries = group.flight_recorder().snapshot().entries;
    assert_eq!((entries.len(), entries[0].state), (1, State::Failed));
    let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
    assert!(text.contains("all_reduce"), "the call is in it");
}

#[test]
fn the_flight_recorder_is_written_down_when_another_rank_has_died_and_the_group_says_why_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let (group, notes) = dumping_to(&folder, "cpu:open");
    let work = start(&group, &mut [0.0]).unwrap();
    assert!(group.error().is_none());
    let died = Error::RankDied { rank: 0, group: "world".into(), how: "its process has ended".to_owned() };
    notes.pending.lock().unwrap()[0].end(Err(died));
    assert!(matches!(work.wait(None), Err(Error::RankDied { rank: 0, .. })));
    assert!(folder.path().join("rank_1").exists());
    assert!(matches!(group.error(), Some(Error::RankDied { rank: 0, .. })));
}

#[test]
fn the_flight_recorder_is_written_down_once_by_whatever_hears_first_why_a_group_is_over() {
    type Hears = fn(&ProcessGroup);
    let hears: [Hears; 4] = [
        |group| drop(group.split(Some(0), 0, &GroupOptions::default()).unwrap_err()),
        |group| drop(group.monitored_barrier(LONG).unwrap_err()),
        |group| drop(group.shutdown().unwrap_err()),
        // Nobody but the watching thread.
        |_| {},
    ];
    for (at, hears) in hears.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (group, notes) = dumping_to(&folder, "cpu:open");
        group.connect(DeviceType::Cpu).unwrap();
        let died =
            || Error::RankDied { rank: 0, group: "world".into(), how: "its process has ended".to_owned() };
        *notes.over.lock().unwrap() = Some(died());
        hears(&group);
        let file = folder.path().join("rank_1");
        match at {
            3 => ends::until(|| file.exists()),
            _ => assert!(file.exists(), "{at}"),
        }
        std::fs::remove_file(&file).unwrap();
        assert!(group.monitored_barrier(LONG).is_err());
        assert!(!file.exists(), "{at}: it was written again");
    }
}

mod again;
mod ends;
mod futures;
mod keys;
mod making;
mod owned;
mod parts;
