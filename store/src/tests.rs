//! How every store behaves: one suite, run against each of them.

use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::clock::fake;
use super::{FileStore, MAX_KEY, MAX_VALUE, MIN_ROOM, MemoryStore, PrefixStore, Store, StoreError, TcpStore};

mod many;
mod model;
mod queues;
mod waits;

const LONG: Duration = Duration::from_secs(30);

/// A folder in memory, where the system has such a place: a disk that is busy with others may stand still for longer than a
/// writer waits for the lock.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A store under test.
trait Place: Sized + Sync {
    fn new() -> Self;

    /// A store as one of several ranks has it.
    fn rank(&self) -> Box<dyn Store>;

    /// How a process reaches it, where one can.
    fn reach(&self) -> Option<String> {
        None
    }
}

struct File(tempfile::TempDir);

impl Place for File {
    fn new() -> Self {
        Self(folder())
    }

    fn rank(&self) -> Box<dyn Store> {
        Box::new(FileStore::open(self.0.path()).unwrap())
    }

    fn reach(&self) -> Option<String> {
        Some(format!("file:{}", self.0.path().display()))
    }
}

struct Memory(MemoryStore);

impl Place for Memory {
    fn new() -> Self {
        Self(MemoryStore::new())
    }

    fn rank(&self) -> Box<dyn Store> {
        Box::new(self.0.clone())
    }
}

/// A client of a TCP store.
struct Tcp(TcpStore);

impl Place for Tcp {
    fn new() -> Self {
        Self(TcpStore::host("127.0.0.1:0").unwrap())
    }

    fn rank(&self) -> Box<dyn Store> {
        Box::new(TcpStore::connect(self.0.local_addr(), LONG).unwrap())
    }

    fn reach(&self) -> Option<String> {
        Some(format!("tcp:{}", self.0.local_addr()))
    }
}

/// A part of a TCP store over IPv6 (over IPv4 where the machine has none), where one rank is the host itself.
struct TcpHost(std::sync::Arc<TcpStore>);

impl Place for TcpHost {
    fn new() -> Self {
        let host = TcpStore::host("[::1]:0").or_else(|_| TcpStore::host("127.0.0.1:0"));
        Self(std::sync::Arc::new(host.unwrap()))
    }

    fn rank(&self) -> Box<dyn Store> {
        Box::new(PrefixStore::new("all", std::sync::Arc::clone(&self.0)).unwrap())
    }

    fn reach(&self) -> Option<String> {
        Some(format!("tcp-prefix:{}", self.0.local_addr()))
    }
}

/// A part of a store that others use too.
struct Prefixed(tempfile::TempDir);

impl Place for Prefixed {
    fn new() -> Self {
        let folder = folder();
        let store = FileStore::open(folder.path()).unwrap();
        for key in ["k", "n", "here", "there", "al/k", "alll/k", "all"] {
            store.set(key, b"somebody else's").unwrap();
            store.queue_push(&format!("{key}-q"), b"somebody else's").unwrap();
        }
        Self(folder)
    }

    fn rank(&self) -> Box<dyn Store> {
        Box::new(PrefixStore::new("all", Box::new(FileStore::open(self.0.path()).unwrap())).unwrap())
    }

    fn reach(&self) -> Option<String> {
        Some(format!("prefix:{}", self.0.path().display()))
    }
}

/// A part of a part.
struct Nested(MemoryStore);

impl Place for Nested {
    fn new() -> Self {
        Self(MemoryStore::new())
    }

    fn rank(&self) -> Box<dyn Store> {
        let outer = PrefixStore::new("a/b", Box::new(self.0.clone())).unwrap();
        Box::new(PrefixStore::new("ц %", Box::new(outer)).unwrap())
    }
}

/// A part of a part of a part of a store that is elsewhere, as process groups of process groups have it.
struct TcpNested(TcpStore);

impl TcpNested {
    /// As it is seen by a client, below an outermost prefix.
    fn below(outermost: &str, client: TcpStore) -> Box<dyn Store> {
        let outer = PrefixStore::new(outermost, Box::new(client)).unwrap();
        let middle = PrefixStore::new("group/1", Box::new(outer)).unwrap();
        Box::new(PrefixStore::new("ц %", Box::new(middle)).unwrap())
    }
}

impl Place for TcpNested {
    fn new() -> Self {
        let host = TcpStore::host("127.0.0.1:0").unwrap();
        for key in ["k", "job/k", "job/group/1/k", "job/group/1/ц %", "job/group/1/ц %k", "job/group/2/ц %/k"]
        {
            host.set(key, b"somebody else's").unwrap();
            host.queue_push(key, b"somebody else's").unwrap();
        }
        Self(host)
    }

    fn rank(&self) -> Box<dyn Store> {
        Self::below("job", TcpStore::connect(self.0.local_addr(), LONG).unwrap())
    }

    fn reach(&self) -> Option<String> {
        Some(format!("tcp-nested:{}", self.0.local_addr()))
    }
}

macro_rules! every_store {
    ($($behaviour:ident)*) => {
        every_store! { @ file File [$($behaviour)*] }
        every_store! { @ memory Memory [$($behaviour)*] }
        every_store! { @ tcp Tcp [$($behaviour)*] }
        every_store! { @ tcp_host_prefixed TcpHost [$($behaviour)*] }
        every_store! { @ file_prefixed Prefixed [$($behaviour)*] }
        every_store! { @ memory_nested Nested [$($behaviour)*] }
        every_store! { @ tcp_nested TcpNested [$($behaviour)*] }
    };
    (@ $module:ident $place:ident [$($behaviour:ident)*]) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $behaviour() {
                    super::$behaviour(&$place::new());
                }
            )*
        }
    };
}
use every_store;

every_store! {
    a_value_is_what_was_set_last
    values_may_hold_any_bytes_up_to_the_limit
    keys_may_hold_any_text_up_to_the_limit
    compare_set_exchanges_exactly_what_is_expected
    add_counts_from_nothing_and_refuses_what_is_no_number
    append_goes_on_from_what_is_there_up_to_the_limit
    many_are_set_and_had_at_once
    keys_are_listed_as_they_were_given
    one_of_many_wins_a_compare_set
    threads_that_write_lose_nothing_and_readers_never_see_a_half
    processes_that_add_lose_nothing
}

/// What is under a key now, by the look that a rendezvous takes.
fn look(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    let nothing = b"what nobody stores";
    let found = store.compare_set(key, nothing, nothing).unwrap();
    assert_eq!(store.check(&[key]).unwrap(), found != nothing, "{key:?}");
    (found != nothing).then_some(found)
}

fn a_value_is_what_was_set_last(place: &impl Place) {
    let (a, b) = (place.rank(), place.rank());
    assert_eq!(look(&*b, "k"), None);
    a.set("k", b"one").unwrap();
    assert_eq!(look(&*b, "k").as_deref(), Some(&b"one"[..]));
    b.set("k", b"").unwrap();
    assert_eq!(look(&*a, "k").as_deref(), Some(&b""[..]));
    assert_eq!(a.get("k", LONG).unwrap(), b"");
    assert!(a.delete("k").unwrap());
    assert!(!b.delete("k").unwrap());
    assert_eq!(look(&*b, "k"), None);
    assert!(!a.check(&["k"]).unwrap());
    assert!(a.check(&[]).unwrap());
}

fn values_may_hold_any_bytes_up_to_the_limit(place: &impl Place) {
    let store = place.rank();
    let longest: Vec<u8> = (0..MAX_VALUE).map(|at| (at * 7 % 251) as u8).collect();
    let other: Vec<u8> = longest.iter().map(|byte| !byte).collect();
    store.set("k", &longest).unwrap();
    assert!(store.get("k", LONG).unwrap() == longest);
    assert!(store.compare_set("k", &longest, &other).unwrap() == other);
    let longer = vec![0; MAX_VALUE + 1];
    for result in [
        store.set("k", &longer),
        store.compare_set("k", &other, &longer).map(drop),
        store.multi_set(&[("k", &longer)]),
        store.append("k", b"1"),
        store.queue_push("k", &longer),
    ] {
        match result {
            Err(StoreError::ValueTooLong { bytes, key }) => assert_eq!((bytes, &*key), (MAX_VALUE + 1, "k")),
            other => panic!("{other:?}"),
        }
    }
    assert!(store.compare_set("k", &longer, b"").unwrap() == other, "no value is so long");
    assert!(store.get("k", LONG).unwrap() == other);
    store.queue_push("q", &longest).unwrap();
    assert!(store.queue_pop("q", LONG).unwrap() == longest);
}

fn keys_may_hold_any_text_up_to_the_limit(place: &impl Place) {
    let store = place.rank();
    let (longest, other) = ("x".repeat(store.room()), "x".repeat(store.room() - 1) + "y");
    let unusual = "ж".repeat(MIN_ROOM / 2);
    let mut keys = vec!["a", "a/b", "a+b", "a.b", ".lock", ".writing", "..", "/", "a b", "%2b", "a\nb", "\0"];
    keys.extend(["a~queue", "ключ", "A", "~", "a/", "/a", &longest, &other, &unusual]);
    for (number, key) in keys.iter().enumerate() {
        store.set(key, &[number as u8]).unwrap();
        store.queue_push(key, &[!number as u8]).unwrap();
    }
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(look(&*store, key), Some(vec![number as u8]), "{key:?}");
        assert_eq!(store.queue_pop(key, LONG).unwrap(), [!number as u8], "{key:?}");
    }
    let long = "x".repeat(store.room() + 1);
    for (key, bytes) in [(&*long, store.room() + 1), ("", 0)] {
        let refused = |result: Result<(), StoreError>| match result {
            Err(StoreError::InvalidKey { key: found, bytes: length, most }) => {
                assert_eq!((&*found, length), (key, bytes));
                assert!(most == store.room() || key.is_empty(), "{most}");
            }
            other => panic!("{other:?}"),
        };
        refused(store.set(key, b""));
        refused(store.multi_set(&[(key, &[])]));
        refused(store.check(&["a", key]).map(drop));
        refused(store.compare_set(key, b"", b"").map(drop));
        refused(store.add(key, 1).map(drop));
        refused(store.append(key, b"").map(drop));
        refused(store.delete(key).map(drop));
        refused(store.get(key, LONG).map(drop));
        refused(store.multi_get(&[key, "a"], LONG).map(drop));
        refused(store.wait(&["not there", key], LONG));
        refused(store.queue_push(key, b""));
        refused(store.queue_pop(key, LONG).map(drop));
        refused(store.queue_len(key).map(drop));
    }
    assert!(matches!(store.barrier("", 1, LONG), Err(StoreError::InvalidKey { .. })));
}

fn compare_set_exchanges_exactly_what_is_expected(place: &impl Place) {
    let store = place.rank();
    assert_eq!(store.compare_set("k", b"x", b"y").unwrap(), b"x", "as if it were there");
    assert_eq!(look(&*store, "k"), None, "nothing is not x");
    assert_eq!(store.compare_set("k", b"", b"y").unwrap(), b"y", "nothing is empty");
    assert_eq!(store.compare_set("k", b"", b"z").unwrap(), b"y");
    assert_eq!(store.compare_set("k", b"x", b"z").unwrap(), b"y");
    assert_eq!(store.compare_set("k", b"y", b"z").unwrap(), b"z");
    assert_eq!(store.compare_set("k", b"z", b"").unwrap(), b"");
    assert_eq!(look(&*store, "k").as_deref(), Some(&b""[..]), "empty is not nothing");
    assert_eq!(store.compare_set("k", b"", b"w").unwrap(), b"w");
    assert_eq!(store.get("k", LONG).unwrap(), b"w");
    assert_eq!(store.compare_set("new", b"", b"").unwrap(), b"");
    assert!(store.check(&["new"]).unwrap());
}

fn add_counts_from_nothing_and_refuses_what_is_no_number(place: &impl Place) {
    let store = place.rank();
    assert_eq!(store.add("n", 40).unwrap(), 40);
    assert_eq!(store.add("n", -42).unwrap(), -2);
    assert_eq!(look(&*store, "n").as_deref(), Some(&b"-2"[..]));
    assert_eq!(store.add("none", 0).unwrap(), 0);
    assert_eq!(look(&*store, "none").as_deref(), Some(&b"0"[..]));
    for value in [&b"x"[..], b"", b" 1", &[0xff], i64::MAX.to_string().as_bytes()] {
        store.set("n", value).unwrap();
        match store.add("n", 1) {
            Err(StoreError::Corrupt { key, .. }) => assert_eq!(key, "n"),
            other => panic!("{other:?}"),
        }
        assert_eq!(look(&*store, "n").as_deref(), Some(value), "it is left as it was");
    }
    store.set("n", i64::MIN.to_string().as_bytes()).unwrap();
    assert_eq!(store.add("n", i64::MAX).unwrap(), -1);
}

fn append_goes_on_from_what_is_there_up_to_the_limit(place: &impl Place) {
    let store = place.rank();
    store.append("log", b"").unwrap();
    assert_eq!(look(&*store, "log").as_deref(), Some(&b""[..]));
    store.append("log", b"one").unwrap();
    store.append("log", b",two").unwrap();
    assert_eq!(store.get("log", LONG).unwrap(), b"one,two");
    store.set("n", b"4").unwrap();
    store.append("n", b"1").unwrap();
    assert_eq!(store.add("n", 1).unwrap(), 42);
    store.set("log", &vec![7; MAX_VALUE - 1]).unwrap();
    store.append("log", &[8]).unwrap();
    match store.append("log", &[9, 9]) {
        Err(StoreError::ValueTooLong { bytes, .. }) => assert_eq!(bytes, MAX_VALUE + 2),
        other => panic!("{other:?}"),
    }
    let all = store.get("log", LONG).unwrap();
    assert_eq!((all.len(), all[0], all[MAX_VALUE - 1]), (MAX_VALUE, 7, 8));
}

fn many_are_set_and_had_at_once(place: &impl Place) {
    let (a, b) = (place.rank(), place.rank());
    a.multi_set(&[("x", b"1"), ("y", b""), ("x", b"2")]).unwrap();
    assert_eq!(b.multi_get(&["y", "x", "y"], LONG).unwrap(), [&b""[..], b"2", b""]);
    assert!(b.multi_get(&[], Duration::ZERO).unwrap().is_empty());
    a.multi_set(&[]).unwrap();
    match b.multi_get(&["x", "z"], Duration::from_millis(5)) {
        Err(StoreError::Timeout { keys, .. }) => assert_eq!(keys, ["z"]),
        other => panic!("{other:?}"),
    }
}

fn keys_are_listed_as_they_were_given(place: &impl Place) {
    let store = place.rank();
    let listed = || {
        let mut keys = store.list_keys().unwrap();
        keys.sort_unstable();
        assert_eq!(store.num_keys().unwrap(), keys.len() as u64);
        keys
    };
    assert!(listed().is_empty());
    let long = "y".repeat(store.room());
    for key in ["b/c", ".", &long, "ключ", "gone"] {
        store.set(key, b"").unwrap();
    }
    store.add("n", 1).unwrap();
    store.queue_push("q", b"").unwrap();
    store.delete("gone").unwrap();
    assert_eq!(listed(), [".", "b/c", "n", &long, "ключ"]);
}

fn one_of_many_wins_a_compare_set(place: &impl Place) {
    const RANKS: u8 = 4;
    let (together, stores) = (Barrier::new(RANKS.into()), [(); RANKS as usize].map(|()| place.rank()));
    for round in 0..50 {
        let key = format!("verdict/{round}");
        let found: Vec<(u8, Vec<u8>)> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..RANKS)
                .zip(&stores)
                .map(|(rank, store)| {
                    let (key, together) = (&key, &together);
                    scope.spawn(move || {
                        together.wait();
                        (rank, store.compare_set(key, b"", &[rank]).unwrap())
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let winners = found.iter().filter(|(rank, now)| *now == [*rank]).count();
        assert_eq!(winners, 1, "{found:?}");
        assert!(found.iter().all(|(_, now)| *now == found[0].1), "{found:?}");
    }
}

fn threads_that_write_lose_nothing_and_readers_never_see_a_half(place: &impl Place) {
    const ROUNDS: usize = 50;
    let shared = place.rank();
    let taken = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            // Two threads share a handle, two have their own.
            let own = place.rank();
            let (shared, taken) = (&shared, &taken);
            scope.spawn(move || {
                let store = if thread < 2 { shared } else { &own };
                for _ in 0..ROUNDS {
                    store.add("n", 1).unwrap();
                    store.set("blob", &[thread; 5000]).unwrap();
                    let blob = store.get("blob", LONG).unwrap();
                    assert!(blob.len() == 5000 && blob.iter().all(|byte| *byte == blob[0]));
                    store.append("log", &[thread]).unwrap();
                    store.queue_push("q", &[thread; 3]).unwrap();
                    assert_eq!(store.queue_pop("q", LONG).unwrap().len(), 3);
                    taken.fetch_add(usize::from(store.delete("blob").unwrap()), Ordering::Relaxed);
                    store.set("blob", &[thread; 5000]).unwrap();
                    assert!(store.list_keys().unwrap().contains(&"n".to_owned()));
                }
            });
        }
    });
    assert_eq!(shared.add("n", 0).unwrap(), 4 * ROUNDS as i64);
    let log = shared.get("log", LONG).unwrap();
    assert!((0..4).all(|thread| log.iter().filter(|byte| **byte == thread).count() == ROUNDS));
    assert_eq!(shared.queue_len("q").unwrap(), 0);
    assert!(taken.into_inner() >= ROUNDS, "each value is deleted once");
}

/// Not a test of its own: what [`processes_that_add_lose_nothing`] runs in several processes.
#[test]
fn add_in_this_process() {
    let Ok(reach) = std::env::var("MESHREDUCE_TEST_STORE") else { return };
    let (kind, at) = reach.split_once(':').unwrap();
    let store: Box<dyn Store> = match kind {
        "file" => Box::new(FileStore::open(at).unwrap()),
        "prefix" => Box::new(PrefixStore::new("all", Box::new(FileStore::open(at).unwrap())).unwrap()),
        "tcp" => Box::new(TcpStore::connect(at, LONG).unwrap()),
        "tcp-nested" => TcpNested::below("job", TcpStore::connect(at, LONG).unwrap()),
        "tcp-prefix" => {
            Box::new(PrefixStore::new("all", Box::new(TcpStore::connect(at, LONG).unwrap())).unwrap())
        }
        other => panic!("{other}"),
    };
    store.barrier("start", 4, LONG).unwrap();
    for _ in 0..100 {
        store.add("n", 1).unwrap();
    }
    store.barrier("end", 4, LONG).unwrap();
}

fn processes_that_add_lose_nothing(place: &impl Place) {
    let Some(reach) = place.reach() else { return };
    let store = place.rank();
    let children: Vec<_> = (0..3)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tests::add_in_this_process"])
                .env("MESHREDUCE_TEST_STORE", &reach)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    store.barrier("start", 4, LONG).unwrap();
    store.barrier("end", 4, LONG).unwrap();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(store.add("n", 0).unwrap(), 300);
}

#[test]
fn prefixes_keep_communicators_apart() {
    let store = MemoryStore::new();
    let a = PrefixStore::new("a", Box::new(store.clone())).unwrap();
    let b = PrefixStore::new("b", Box::new(store.clone())).unwrap();
    a.set("key", b"1").unwrap();
    assert_eq!(look(&b, "key"), None);
    assert_eq!(look(&store, "a/key").as_deref(), Some(&b"1"[..]));
    assert_eq!(b.add("n", 2).unwrap(), 2);
    assert_eq!(b.compare_set("n", b"2", b"3").unwrap(), b"3");
    b.queue_push("key", b"4").unwrap();
    assert_eq!((store.queue_len("b/key").unwrap(), a.queue_len("key").unwrap()), (1, 0));
    assert_eq!((a.list_keys().unwrap(), b.list_keys().unwrap()), (vec!["key".into()], vec!["n".into()]));
    assert!(a.delete("key").unwrap());
    let by_reference = PrefixStore::new("c", &store as &dyn Store).unwrap();
    by_reference.set("key", b"3").unwrap();
    assert_eq!(look(&store, "c/key").as_deref(), Some(&b"3"[..]));
    assert!(by_reference.inner().check(&["c/key", "b/n"]).unwrap());
}

#[test]
fn a_prefix_that_leaves_too_little_room_is_refused_when_it_is_made() {
    let store = MemoryStore::new();
    let most = MAX_KEY - MIN_ROOM - 1;
    let longest = PrefixStore::new(&"p".repeat(most), &store).unwrap();
    assert_eq!(longest.room(), MIN_ROOM);
    let key = "k".repeat(MIN_ROOM);
    longest.set(&key, b"1").unwrap();
    assert_eq!(longest.list_keys().unwrap(), [key]);
    for (prefix, over) in
        [("p".repeat(most + 1), &store as &dyn Store), ("p".into(), &longest), ("".into(), &store)]
    {
        let room = over.room();
        match PrefixStore::new(&prefix, over) {
            Err(StoreError::InvalidKey { key, bytes, most }) => {
                assert_eq!(
                    (key, bytes, most),
                    (prefix.clone(), prefix.len(), room.saturating_sub(MIN_ROOM + 1))
                );
            }
            other => panic!("{:?}", other.map(|store| store.room())),
        }
    }
}

#[test]
fn errors_name_keys_as_the_caller_knows_them_and_limits_as_they_are_there() {
    let store = MemoryStore::new();
    let outer = PrefixStore::new("outer", &store).unwrap();
    let store = PrefixStore::new("inner", &outer).unwrap();
    let text = |result: Result<(), StoreError>| result.unwrap_err().to_string();
    store.set("k", b"x").unwrap();
    assert_eq!(text(store.wait(&["k", "l"], Duration::ZERO)), "waited 0ns for l");
    assert!(text(store.add("k", 1).map(drop)).contains("record under k is corrupt: it is no number"));
    assert!(text(store.set("k", &vec![0; MAX_VALUE + 1])).starts_with("the value for k has"));
    let long = text(store.set(&"k".repeat(MAX_KEY), b""));
    assert!(long.starts_with("a key of 4096 bytes, \"kkkk") && long.contains(" 4084 is the most"), "{long}");
}
