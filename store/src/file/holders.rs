//! Processes that hold the lock and are stopped or killed, and cleaners that remove it.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Flock, FlockType, Pid, Signal, fcntl_getlk, kill_process};

use super::record::Kind;
use super::{BUSY, FileStore, LOCK_TIMEOUT, Lock, lock};
use crate::clock::fake;
use crate::{Store, StoreError};

const LONG: Duration = Duration::from_secs(60);

/// Another process that does to a store what its orders say, until it is killed.
struct Rank {
    child: Child,
    /// What it says, a line for each thing that has been done.
    said: BufReader<ChildStdout>,
}

const FOLDER: &str = "MESHREDUCE_TEST_FOLDER";
const ORDERS: &str = "MESHREDUCE_TEST_ORDERS";

/// Not a test of its own: what [`Rank`]s run.
#[test]
fn another_process() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let store = FileStore::open(folder).unwrap();
    let orders = std::env::var(ORDERS).unwrap();
    match orders.rsplit_once(' ').unwrap() {
        // Says where the lines begin, which come after what the test harness says.
        ("add", times) => {
            println!("\nready");
            let times = times.parse::<usize>().unwrap();
            add_by_two_threads(&store, |added| added < times / 2);
        }
        // However fast this machine is, it is still at it when it is to be stopped.
        ("add until", "told") => {
            println!("\nready");
            let told = AtomicBool::new(false);
            let added = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
                    told.store(true, Ordering::Relaxed);
                });
                add_by_two_threads(&store, |_| !told.load(Ordering::Relaxed))
            });
            println!("{added}");
        }
        ("everything", rank) => {
            println!("\nready");
            for number in 1_u64.. {
                store.set(&format!("last/{rank}"), number.to_string().as_bytes()).unwrap();
                println!("set {number}");
                store.add("sum", 1).unwrap();
                println!("add");
                store.append("log", format!("{rank}.{number},").as_bytes()).unwrap();
                println!("append {rank}.{number}");
                store.queue_push("q", format!("{rank}.{number}").as_bytes()).unwrap();
                println!("push {rank}.{number}");
                if number % 3 == 0 {
                    let value = String::from_utf8(store.queue_pop("q", LONG).unwrap()).unwrap();
                    println!("pop {value}");
                }
                store.set(&format!("temporary/{rank}"), b"").unwrap();
                store.delete(&format!("temporary/{rank}")).unwrap();
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Adds 1 to `n` as long as each of two threads, with what comes of that for record locks, is to `go_on` after so many; says
/// how many that were.
fn add_by_two_threads(store: &FileStore, go_on: impl Fn(usize) -> bool + Sync) -> usize {
    let add = || {
        let mut added = 0;
        while go_on(added) {
            store.add("n", 1).unwrap();
            added += 1;
        }
        added
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(add);
        add() + other.join().unwrap()
    })
}

impl Rank {
    fn start(folder: &Path, orders: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "file::holders::another_process", "--nocapture"])
            .env(FOLDER, folder)
            .env(ORDERS, orders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != "ready\n" {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ends before it begins");
        }
        Self { child, said }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether all of it stands still.
    fn is_stopped(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let mut stats = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
        stats.all(|stat| stat.rsplit(") ").next().is_some_and(|after_name| after_name.starts_with('T')))
    }

    /// Stops it at a moment in which it holds the file `of` gives, and says what that is called.
    fn stop_while_it_holds(&mut self, of: impl Fn() -> Option<PathBuf>) -> PathBuf {
        let end = Instant::now() + LONG;
        while Instant::now() < end {
            self.signal(Signal::STOP);
            while !self.is_stopped() {
                // The dead are never seen stopped.
                assert_eq!(self.child.try_wait().unwrap(), None, "it ended before it was stopped");
                std::thread::yield_now();
            }
            if let Some(path) = of()
                && holder(&path) == Some(self.pid())
            {
                return path;
            }
            self.signal(Signal::CONT);
            std::thread::sleep(Duration::from_micros(300));
        }
        panic!("it never holds the lock");
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who holds a record lock of a file.
fn holder(path: &Path) -> Option<u32> {
    let file = fs::OpenOptions::new().write(true).open(path).ok()?;
    let held = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).unwrap()?;
    Some(held.pid?.as_raw_pid() as u32)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn written(folder: &Path) -> Option<PathBuf> {
    let name = names(folder).into_iter().find(|name| name.starts_with(".writing"))?;
    Some(folder.join(name))
}

/// In memory, where writers spend most of their time in the critical section, if there is such a place.
fn fast_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn locked<T: std::fmt::Debug>(result: Result<T, StoreError>, by: u32) -> Duration {
    match result {
        Err(error @ StoreError::Locked { holder, waited, .. }) => {
            assert_eq!(holder, Some(by), "{error}");
            let said = error.to_string();
            assert!(said.contains(&format!("/.lock, which is held by process {by}")), "{said}");
            waited
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stopped_holder_is_named_in_time_and_readers_go_on() {
    let folder = fast_folder();
    let store = FileStore::open(folder.path()).unwrap();
    store.set("here", b"1").unwrap();
    store.set("other", b"").unwrap();
    store.queue_push("q", b"2").unwrap();
    let mut rank = Rank::start(folder.path(), "add 1000000000");
    let path = folder.path().join(lock::NAME);
    rank.stop_while_it_holds(|| Some(path.clone()));

    let probe = b"nobody's";
    let (_, took) = fake::timed(|| {
        assert_eq!(store.get("here", Duration::ZERO).unwrap(), b"1");
        assert!(store.check(&["here", "q"]).unwrap());
        store.wait(&["q"], Duration::ZERO).unwrap();
        assert_eq!(store.compare_set("here", probe, probe).unwrap(), b"1");
        assert_eq!(store.compare_set("none", probe, probe).unwrap(), probe);
        assert_eq!(store.queue_len("q").unwrap(), 1);
        assert!(store.list_keys().unwrap().contains(&"here".to_owned()));
        assert!(!store.delete("none").unwrap());
        FileStore::open(folder.path()).unwrap();
    });
    assert!(took < Duration::from_micros(1), "nobody waits for anything: {took:?}");

    let writes: [&dyn Fn() -> Result<(), StoreError>; 7] = [
        &|| store.set("here", b"3"),
        &|| store.add("n", 1).map(drop),
        &|| store.append("here", b"3"),
        &|| store.compare_set("here", b"1", b"3").map(drop),
        &|| store.delete("here").map(drop),
        &|| store.queue_push("q", b"3"),
        &|| store.multi_set(&[("here", b"3")]),
    ];
    for write in writes {
        let (result, took) = fake::timed(write);
        assert_eq!(locked(result, rank.pid()), LOCK_TIMEOUT);
        assert!(took >= LOCK_TIMEOUT && took < LOCK_TIMEOUT + Duration::from_micros(10), "{took:?}");
    }
    for timeout in [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(20)] {
        let timed: [&dyn Fn() -> Result<(), StoreError>; 2] =
            [&|| store.queue_pop("q", timeout).map(drop), &|| store.barrier("b", 2, timeout)];
        for act in timed {
            let (result, took) = fake::timed(act);
            let waited = locked(result, rank.pid());
            assert!(waited <= timeout.max(BUSY) && took >= waited, "{waited:?}, {took:?} of {timeout:?}");
            assert!(took < timeout.max(BUSY) + Duration::from_micros(10), "{took:?} of {timeout:?}");
        }
    }
    assert_eq!(store.get("here", LONG).unwrap(), b"1");

    rank.signal(Signal::CONT);
    store.set("here", b"3").unwrap();
    assert_eq!(store.queue_pop("q", LONG).unwrap(), b"2");
}

#[test]
fn a_thread_of_the_own_process_that_holds_the_lock_is_named_too() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (FileStore::open(folder.path()).unwrap(), FileStore::open(folder.path()).unwrap());
    let held = one.lock().unwrap();
    let (result, _) = fake::timed(|| other.set("k", b""));
    locked(result, std::process::id());
    let (result, _) = fake::timed(|| FileStore::open(folder.path()));
    locked(result, std::process::id());
    drop(held);
    other.set("k", b"").unwrap();
}

#[test]
fn a_thread_that_writes_all_the_time_leaves_gaps_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (FileStore::open(folder.path()).unwrap(), FileStore::open(folder.path()).unwrap());
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let results: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let held = one.lock();
                begun.store(true, Ordering::Relaxed);
                // A thousand times as long as the gap.
                std::thread::sleep(Duration::from_millis(3));
                drop(held.unwrap());
            }
        });
        while !begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let results = (0..20).map(|_| {
            let start = Instant::now();
            Lock::acquire(&other.folder, LONG).map(|_| start.elapsed())
        });
        let results = results.collect();
        done.store(true, Ordering::Relaxed);
        results
    });
    let waits = results.into_iter().map(|wait: Result<Duration, StoreError>| wait.unwrap());
    // Some milliseconds each, unless the system has let one of the two sleep. Of two that do not give way, one waits for seconds
    // until it hits a gap by chance.
    let mut waits: Vec<Duration> = waits.collect();
    waits.sort_unstable();
    assert!(waits[10] < Duration::from_millis(500), "{waits:?}");
}

#[test]
fn a_holder_that_is_killed_holds_nothing_and_what_it_left_is_removed() {
    let folder = fast_folder();
    let store = FileStore::open(folder.path()).unwrap();
    for lock_is_removed in [false, true] {
        let mut rank = Rank::start(folder.path(), "add 1000000000");
        store.wait(&["n"], LONG).unwrap();
        let left = rank.stop_while_it_holds(|| written(folder.path()));
        drop(rank);
        assert!(left.exists(), "or this shows nothing");
        if lock_is_removed {
            fs::remove_file(folder.path().join(lock::NAME)).unwrap();
        }
        let before = store.get("n", LONG).unwrap();
        store.set("k", b"").unwrap();
        assert_eq!(names(folder.path()), [".lock", "k", "n"]);
        assert_eq!(store.get("n", LONG).unwrap(), before);
        assert!(store.add("n", 1).unwrap() > 0);
    }
}

#[test]
fn whoever_makes_a_new_lock_waits_for_the_holder_of_the_old_one() {
    let folder = fast_folder();
    let store = FileStore::open(folder.path()).unwrap();
    let mut rank = Rank::start(folder.path(), "add until told");
    rank.stop_while_it_holds(|| written(folder.path()));
    fs::remove_file(folder.path().join(lock::NAME)).unwrap();
    for _ in 0..2 {
        // The first one makes a lock; it is still new for the second.
        let (result, _) = fake::timed(|| store.add("n", 1));
        locked(result, rank.pid());
    }
    rank.signal(Signal::CONT);
    for _ in 0..100 {
        store.add("n", 1).unwrap();
    }
    drop(rank.child.stdin.take());
    let mut added = String::new();
    rank.said.read_line(&mut added).unwrap();
    assert_eq!(store.add("n", 0).unwrap(), added.trim().parse::<i64>().unwrap() + 100);
    assert!(rank.child.wait().unwrap().success());
    assert_eq!(names(folder.path()), [".lock", "n"]);
}

#[test]
fn writers_lose_nothing_while_a_cleaner_removes_the_lock_all_the_time() {
    const EACH: i64 = 1500;
    let folder = fast_folder();
    let store = FileStore::open(folder.path()).unwrap();
    let done = AtomicBool::new(false);
    let mut removed = 0;
    std::thread::scope(|scope| {
        let cleaner = scope.spawn(|| {
            let mut removed = 0;
            while !done.load(Ordering::Relaxed) {
                removed += usize::from(fs::remove_file(folder.path().join(lock::NAME)).is_ok());
                std::thread::sleep(Duration::from_micros(removed as u64 % 4 * 50));
            }
            removed
        });
        let ranks: Vec<Rank> = (0..3).map(|_| Rank::start(folder.path(), &format!("add {EACH}"))).collect();
        let own = scope.spawn(|| (0..EACH).try_for_each(|_| store.add("n", 1).map(drop)));
        let results: Vec<_> = ranks.into_iter().map(|mut rank| rank.child.wait().unwrap()).collect();
        let own = own.join();
        done.store(true, Ordering::Relaxed);
        removed = cleaner.join().unwrap();
        own.unwrap().unwrap();
        assert!(results.iter().all(|status| status.success()));
    });
    assert_eq!(store.add("n", 0).unwrap(), 4 * EACH, "the lock was removed {removed} times");
    assert!(removed > 0, "there is nothing to be lost");
    assert_eq!(names(folder.path()), [".lock", "n"]);
}

/// What ranks said before they were killed.
#[derive(Default)]
struct Told {
    adds: usize,
    last: Vec<(String, u64)>,
    appended: Vec<String>,
    pushed: Vec<String>,
    popped: Vec<String>,
    /// How many may have taken something that they could not tell any more.
    pops_not_told: usize,
}

#[test]
fn writers_that_are_killed_at_any_moment_lose_nothing_that_was_told() {
    const KILLS: u64 = 300;
    const AT_ONCE: u64 = 3;
    let folder = fast_folder();
    let store = FileStore::open(folder.path()).unwrap();
    let told = std::thread::scope(|scope| {
        let killers: Vec<_> = (0..AT_ONCE)
            .map(|killer| {
                let folder = folder.path();
                scope.spawn(move || {
                    let mut told = Told::default();
                    let mut seed = killer;
                    for number in 0..KILLS / AT_ONCE {
                        // Knuth's generator; its upper bits are random enough.
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let wait = Duration::from_micros((seed >> 33) % 12_000);
                        kill_one(folder, &format!("{killer}-{number}"), wait, &mut told);
                    }
                    told
                })
            })
            .collect();
        killers.into_iter().map(|killer| killer.join().unwrap()).collect::<Vec<Told>>()
    });
    store.set("after", b"").unwrap();

    // Nothing is left but the lock and records, all of them whole.
    let keys = store.list_keys().unwrap();
    let mut records: Vec<String> = keys.iter().map(|key| Kind::Value.name(key)).collect();
    records.extend([lock::NAME.to_owned(), Kind::Queue.name("q")]);
    records.sort_unstable();
    assert_eq!(names(folder.path()), records);

    // Each of the killed has done at most one thing more than it told.
    let adds: usize = told.iter().map(|told| told.adds).sum();
    let sum = store.add("sum", 0).unwrap() as usize;
    assert!((adds..=adds + KILLS as usize).contains(&sum), "{sum} of {adds}");
    assert!(adds > 0, "they come to something");
    for (rank, last) in told.iter().flat_map(|told| &told.last) {
        let found: u64 =
            String::from_utf8(store.get(&format!("last/{rank}"), LONG).unwrap()).unwrap().parse().unwrap();
        assert!((*last..=last + 1).contains(&found), "{rank}: {found} of {last}");
    }
    let log = String::from_utf8(store.get("log", LONG).unwrap()).unwrap();
    let log: Vec<&str> = log.split_terminator(',').collect();
    let appended: Vec<&String> = told.iter().flat_map(|told| &told.appended).collect();
    let in_log: HashSet<&str> = log.iter().copied().collect();
    assert_eq!(in_log.len(), log.len(), "once each");
    assert!(appended.iter().all(|one| in_log.contains(one.as_str())));
    assert!(log.len() <= appended.len() + KILLS as usize);

    // What was put into the queue is in it or was taken, by one.
    let mut taken: Vec<String> = told.iter().flat_map(|told| told.popped.clone()).collect();
    for _ in 0..store.queue_len("q").unwrap() {
        taken.push(String::from_utf8(store.queue_pop("q", LONG).unwrap()).unwrap());
    }
    let once: HashSet<&String> = taken.iter().collect();
    assert_eq!(once.len(), taken.len());
    let lost = told.iter().flat_map(|told| &told.pushed).filter(|one| !once.contains(one)).count();
    let most: usize = told.iter().map(|told| told.pops_not_told).sum();
    assert!(lost <= most, "{lost} are lost, {most} may have been taken by somebody who could not tell");
}

/// Starts a writer, kills it some time after its beginning and hears what it has said.
fn kill_one(folder: &Path, name: &str, wait: Duration, told: &mut Told) {
    let mut rank = Rank::start(folder, &format!("everything {name}"));
    std::thread::sleep(wait);
    rank.child.kill().unwrap();
    let mut text = String::new();
    rank.said.read_to_string(&mut text).unwrap();
    let (mut last, mut may_have_popped) = (0, false);
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        may_have_popped = line.starts_with("push") && last % 3 == 0;
        match line.split_once(' ') {
            None if line == "add" => told.adds += 1,
            Some(("set", number)) => last = number.parse().unwrap(),
            Some(("append", what)) => told.appended.push(what.to_owned()),
            Some(("push", what)) => told.pushed.push(what.to_owned()),
            Some(("pop", what)) => told.popped.push(what.to_owned()),
            other => panic!("{other:?}"),
        }
    }
    told.pops_not_told += usize::from(may_have_popped);
    if last > 0 {
        told.last.push((name.to_owned(), last));
    }
}
