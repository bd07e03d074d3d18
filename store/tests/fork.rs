//! A process that forks, without exec, while its threads use a file store: fork servers and daemons do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshreduce_store::{FileStore, Store, StoreError};

/// More than the system needs when it is busy, much less than the 10 s that a writer waits for a lock.
const SOON: Duration = Duration::from_secs(5);
const FORKS: usize = 150;

/// A child process: killed and waited for when dropped.
struct Child(libc::pid_t);

impl Child {
    /// Forks. The child runs `act`, says with its exit status whether that returned `Ok`, and nothing of this process ends
    /// in it.
    fn fork(act: impl FnOnce() -> Result<(), StoreError>) -> Self {
        // SAFETY: the child uses of this process what `act` uses. glibc's allocator is usable in the child of a process with
        // threads, and the store is what is tried here.
        match unsafe { libc::fork() } {
            0 => {
                let status = i32::from(act().is_err());
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(status) }
            }
            pid => {
                assert!(pid > 0, "{}", std::io::Error::last_os_error());
                Self(pid)
            }
        }
    }

    /// Whether it ended well, waiting for its end.
    fn ends_well(self) -> bool {
        let mut status = 0;
        // SAFETY: `status` is there; the process is a child that nobody else waits for.
        let waited = unsafe { libc::waitpid(self.0, &mut status, 0) };
        let well = waited == self.0 && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        std::mem::forget(self);
        well
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// Longer than any test, but not for ever: a test that is killed kills none of these.
fn outlive() -> Result<(), StoreError> {
    std::thread::sleep(SOON * 12);
    Ok(())
}

/// In memory, where there is such a place: writers spend most of their time under the lock there.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// Says that it is done when it is dropped, whatever happens.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `forks` while another thread writes all the time; says how long the longest write took, and how many there were.
fn while_writing(store: &FileStore, forks: impl FnOnce()) -> (Duration, u64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut longest, mut writes) = (Duration::ZERO, 0);
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                store.add("written", 1).expect("a lock");
                longest = longest.max(start.elapsed());
                writes += 1;
            }
            (longest, writes)
        });
        {
            let _done = Done(&done);
            forks();
        }
        writer.join().expect("no write fails")
    })
}

#[test]
fn children_that_are_forked_while_a_thread_writes_have_no_part_in_its_lock() {
    let folder = folder();
    let store = FileStore::open(folder.path()).expect("a store");
    let mut children = Vec::new();
    let (longest, writes) = while_writing(&store, || {
        for _ in 0..FORKS {
            children.push(Child::fork(outlive));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert!(longest < SOON, "{longest:?} for one of {writes} writes");
    assert_eq!(store.add("written", 0).expect("the number of writes"), writes as i64);
}

#[test]
fn children_that_are_forked_while_a_thread_writes_can_write_too() {
    let folder = folder();
    let store = FileStore::open(folder.path()).expect("a store");
    let start = Instant::now();
    let (_, writes) = while_writing(&store, || {
        for _ in 0..FORKS {
            let child = Child::fork(|| {
                store.add("forked", 1)?;
                FileStore::open(folder.path())?.add("forked", 1).map(drop)
            });
            assert!(child.ends_well());
        }
    });
    let took = start.elapsed();
    assert!(took < SOON * 4, "{took:?}");
    assert_eq!(store.add("forked", 0).expect("a number"), 2 * FORKS as i64);
    assert_eq!(store.add("written", 0).expect("the number of writes"), writes as i64);
}

#[test]
fn a_writer_that_is_killed_leaves_no_lock_to_its_children() {
    let folder = folder();
    let store = FileStore::open(folder.path()).expect("a store");
    for round in 0..10 {
        // The writer forks children that outlive it, which tell their numbers, and is killed while its thread writes.
        let writer = Child::fork(|| {
            let store = FileStore::open(folder.path())?;
            while_writing(&store, || {
                for child in 0..10 {
                    let orphan = Child::fork(outlive);
                    let key = format!("orphan/{round}/{child}");
                    store.set(&key, orphan.0.to_string().as_bytes()).expect("a lock");
                    std::mem::forget(orphan);
                }
                std::thread::sleep(SOON * 12);
            });
            Ok(())
        });
        let keys: Vec<String> = (0..10).map(|child| format!("orphan/{round}/{child}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let orphans = store.multi_get(&keys, SOON * 4).expect("all its children");
        drop(writer);
        let start = Instant::now();
        let result = store.set("k", b"");
        for orphan in orphans {
            let pid = String::from_utf8(orphan).expect("a number").parse().expect("a number");
            // SAFETY: an orphan that sleeps until it is killed.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        result.expect("a lock");
        assert!(start.elapsed() < SOON);
    }
}
