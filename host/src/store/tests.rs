//! How every store behaves: one suite, run against each of them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::clock::fake;
use super::{FileStore, MAX_KEY, MAX_VALUE, MemoryStore, PrefixStore, Store, StoreError, TcpStore};

const LONG: Duration = Duration::from_secs(30);

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
        Self(tempfile::tempdir().unwrap())
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

/// A client of a TCP store over IPv6 (over IPv4 where the machine has none), where one rank is the host itself.
struct TcpHost(std::sync::Arc<TcpStore>);

impl Place for TcpHost {
    fn new() -> Self {
        let host = TcpStore::host("[::1]:0").or_else(|_| TcpStore::host("127.0.0.1:0"));
        Self(std::sync::Arc::new(host.unwrap()))
    }

    fn rank(&self) -> Box<dyn Store> {
        Box::new(PrefixStore::new("all", self.0.clone()))
    }

    fn reach(&self) -> Option<String> {
        Some(format!("prefix:{}", self.0.local_addr()))
    }
}

/// A part of a store that others use too.
struct Prefixed(tempfile::TempDir);

impl Place for Prefixed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(folder.path()).unwrap();
        for key in ["k", "n", "here", "there", "al/k", "alll/k"] {
            store.set(key, b"somebody else's").unwrap();
        }
        Self(folder)
    }

    fn rank(&self) -> Box<dyn Store> {
        Box::new(PrefixStore::new("all", Box::new(FileStore::open(self.0.path()).unwrap())))
    }
}

macro_rules! every_store {
    ($($behaviour:ident)*) => {
        every_store! { @ file File [$($behaviour)*] }
        every_store! { @ memory Memory [$($behaviour)*] }
        every_store! { @ tcp Tcp [$($behaviour)*] }
        every_store! { @ tcp_host_prefixed TcpHost [$($behaviour)*] }
        every_store! { @ file_prefixed Prefixed [$($behaviour)*] }
    };
    (@ $module:ident $place:ident [$($behaviour:ident)*]) => {
        mod $module {
            use super::{$place, Place};
            $(
                #[test]
                fn $behaviour() {
                    super::$behaviour(&$place::new());
                }
            )*
        }
    };
}

every_store! {
    a_value_is_what_was_set_last
    values_may_hold_any_bytes_up_to_the_limit
    keys_may_hold_any_text_up_to_the_limit
    compare_set_exchanges_exactly_what_is_expected
    add_counts_from_nothing_and_refuses_what_is_no_number
    waiting_ends_as_soon_as_the_last_key_comes
    what_is_missing_is_named
    no_timeout_is_early
    waiting_for_nothing_takes_no_time
    one_of_many_wins_a_compare_set
    threads_that_add_lose_nothing_and_readers_never_see_a_half
    a_waiting_thread_does_not_hold_up_another_on_the_same_handle
    processes_that_add_lose_nothing
}

fn a_value_is_what_was_set_last(place: &impl Place) {
    let (a, b) = (place.rank(), place.rank());
    assert_eq!(b.try_get("k").unwrap(), None);
    a.set("k", b"one").unwrap();
    assert_eq!(b.try_get("k").unwrap().as_deref(), Some(&b"one"[..]));
    b.set("k", b"").unwrap();
    assert_eq!(a.try_get("k").unwrap().as_deref(), Some(&b""[..]));
    assert!(a.delete("k").unwrap());
    assert!(!b.delete("k").unwrap());
    assert_eq!(b.try_get("k").unwrap(), None);
}

fn values_may_hold_any_bytes_up_to_the_limit(place: &impl Place) {
    let store = place.rank();
    let longest: Vec<u8> = (0..MAX_VALUE).map(|at| (at * 7 % 251) as u8).collect();
    let other: Vec<u8> = longest.iter().map(|byte| !byte).collect();
    store.set("k", &longest).unwrap();
    assert!(store.try_get("k").unwrap().unwrap() == longest);
    assert!(store.compare_set("k", Some(&longest), Some(&other)).unwrap().unwrap() == longest);
    let longer = vec![0; MAX_VALUE + 1];
    for result in
        [store.set("k", &longer).map(|()| None), store.compare_set("k", Some(&other), Some(&longer))]
    {
        match result {
            Err(StoreError::ValueTooLong { bytes, .. }) => assert_eq!(bytes, MAX_VALUE + 1),
            other => panic!("{other:?}"),
        }
    }
    assert!(store.compare_set("k", Some(&longer), None).unwrap().unwrap() == other, "no value is so long");
    assert!(store.try_get("k").unwrap().unwrap() == other);
}

fn keys_may_hold_any_text_up_to_the_limit(place: &impl Place) {
    let store = place.rank();
    let keys = ["a", "a/b", "a+b", "a.b", ".lock", ".writing", "..", "/", "a b", "%2b", "ключ", "a\nb"];
    for (number, key) in keys.iter().enumerate() {
        store.set(key, &[number as u8]).unwrap();
    }
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(store.try_get(key).unwrap(), Some(vec![number as u8]), "{key:?}");
    }
    let long = "x".repeat(MAX_KEY + 1);
    let refused = |result: Result<(), StoreError>| match result {
        Err(StoreError::InvalidKey { .. }) => {}
        other => panic!("{other:?}"),
    };
    refused(store.set(&long, b""));
    refused(store.try_get(&long).map(drop));
    refused(store.compare_set(&long, None, None).map(drop));
    refused(store.add(&long, 1).map(drop));
    refused(store.delete(&long).map(drop));
    refused(store.get(&long, LONG).map(drop));
    refused(store.wait(&["a", &long], LONG));
}

fn compare_set_exchanges_exactly_what_is_expected(place: &impl Place) {
    let store = place.rank();
    assert_eq!(store.compare_set("k", Some(b"x"), Some(b"y")).unwrap(), None);
    assert_eq!(store.try_get("k").unwrap(), None, "nothing is not x");
    assert_eq!(store.compare_set("k", None, None).unwrap(), None);
    assert_eq!(store.compare_set("k", Some(b""), Some(b"y")).unwrap(), None, "nothing is not empty");
    assert_eq!(store.compare_set("k", None, Some(b"y")).unwrap(), None);
    assert_eq!(store.compare_set("k", None, Some(b"z")).unwrap().as_deref(), Some(&b"y"[..]));
    assert_eq!(store.compare_set("k", Some(b"y"), None).unwrap().as_deref(), Some(&b"y"[..]));
    assert_eq!(store.try_get("k").unwrap(), None);
}

fn add_counts_from_nothing_and_refuses_what_is_no_number(place: &impl Place) {
    let store = place.rank();
    assert_eq!(store.add("n", 40).unwrap(), 40);
    assert_eq!(store.add("n", -42).unwrap(), -2);
    assert_eq!(store.try_get("n").unwrap().as_deref(), Some(&b"-2"[..]));
    store.set("n", i64::MAX.to_string().as_bytes()).unwrap();
    for value in [&b"x"[..], b"", &[0xff], i64::MAX.to_string().as_bytes()] {
        store.set("n", value).unwrap();
        match store.add("n", 1) {
            Err(StoreError::Corrupt { key, .. }) => assert!(key.ends_with('n'), "{key}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(store.try_get("n").unwrap().as_deref(), Some(value), "it is left as it was");
    }
}

fn waiting_ends_as_soon_as_the_last_key_comes(place: &impl Place) {
    let (a, b) = (place.rank(), place.rank());
    a.set("here", b"1").unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            b.set("there", b"2").unwrap();
            std::thread::sleep(Duration::from_millis(30));
            b.compare_set("everywhere", None, Some(b"3")).unwrap();
            assert_eq!(b.get("sum", LONG).unwrap(), b"4");
        });
        assert_eq!(a.get("there", LONG).unwrap(), b"2");
        a.wait(&["here", "there", "everywhere"], Duration::MAX).unwrap();
        a.add("sum", 4).unwrap();
    });
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert!(start.elapsed() < LONG);
}

fn what_is_missing_is_named(place: &impl Place) {
    let store = place.rank();
    store.set("here", b"1").unwrap();
    let timeout = Duration::from_millis(20);
    match store.wait(&["there", "here", "everywhere"], timeout) {
        Err(StoreError::Timeout { keys, waited }) => {
            assert_eq!(keys, ["there", "everywhere"]);
            assert_eq!(waited, timeout);
        }
        other => panic!("{other:?}"),
    }
    match store.get("there", timeout) {
        Err(StoreError::Timeout { keys, waited }) => {
            assert_eq!((keys, waited), (vec!["there".into()], timeout))
        }
        other => panic!("{other:?}"),
    }
    let many: Vec<String> = (0..1000).map(|number| format!("many/{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    match store.wait(&many, timeout) {
        Err(StoreError::Timeout { keys, .. }) => assert_eq!(keys, many),
        other => panic!("{other:?}"),
    }
}

/// By the system's clock and briefly here; by a fake clock, to the nanosecond, in the tests of the single stores.
fn no_timeout_is_early(place: &impl Place) {
    let store = place.rank();
    for micros in [1, 999, 1_000, 1_001, 20_300] {
        let timeout = Duration::from_micros(micros);
        let start = Instant::now();
        assert!(matches!(store.get("there", timeout), Err(StoreError::Timeout { .. })));
        assert!(start.elapsed() >= timeout, "{:?} of {timeout:?}", start.elapsed());
        let start = Instant::now();
        assert!(matches!(store.wait(&["there"], timeout), Err(StoreError::Timeout { .. })));
        assert!(start.elapsed() >= timeout, "{:?} of {timeout:?}", start.elapsed());
    }
}

fn waiting_for_nothing_takes_no_time(place: &impl Place) {
    let store = place.rank();
    store.set("here", b"1").unwrap();
    store.wait(&[], Duration::ZERO).unwrap();
    store.wait(&["here", "here"], Duration::ZERO).unwrap();
    assert_eq!(store.get("here", Duration::ZERO).unwrap(), b"1");
    assert!(matches!(store.get("there", Duration::ZERO), Err(StoreError::Timeout { .. })));
}

fn one_of_many_wins_a_compare_set(place: &impl Place) {
    for round in 0..10 {
        let key = format!("verdict/{round}");
        let found: Vec<(u8, Option<Vec<u8>>)> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..6)
                .map(|rank| {
                    let (store, key) = (place.rank(), &key);
                    scope.spawn(move || (rank, store.compare_set(key, None, Some(&[rank])).unwrap()))
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let winners: Vec<u8> = found.iter().filter(|(_, old)| old.is_none()).map(|(rank, _)| *rank).collect();
        assert_eq!(winners.len(), 1, "{found:?}");
        assert!(found.iter().all(|(rank, old)| *rank == winners[0] || old.as_deref() == Some(&winners)));
    }
}

fn threads_that_add_lose_nothing_and_readers_never_see_a_half(place: &impl Place) {
    let shared = place.rank();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            // Two threads share a handle, two have their own.
            let own = place.rank();
            let shared = &shared;
            scope.spawn(move || {
                let store = if thread < 2 { shared } else { &own };
                for _ in 0..50 {
                    store.add("n", 1).unwrap();
                    store.set("blob", &[thread; 5000]).unwrap();
                    let blob = store.try_get("blob").unwrap().unwrap();
                    assert!(blob.len() == 5000 && blob.iter().all(|byte| *byte == blob[0]));
                }
            });
        }
    });
    assert_eq!(shared.add("n", 0).unwrap(), 200);
}

fn a_waiting_thread_does_not_hold_up_another_on_the_same_handle(place: &impl Place) {
    let store = place.rank();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.get("late", LONG).unwrap());
        for _ in 0..20 {
            store.add("n", 1).unwrap();
        }
        assert!(!waiting.is_finished());
        store.set("late", b"come").unwrap();
        assert_eq!(waiting.join().unwrap(), b"come");
    });
}

/// Not a test of its own: what [`processes_that_add_lose_nothing`] runs in several processes.
#[test]
fn add_in_this_process() {
    let Ok(reach) = std::env::var("MESHREDUCE_TEST_STORE") else { return };
    let (kind, at) = reach.split_once(':').unwrap();
    let store: Box<dyn Store> = match kind {
        "file" => Box::new(FileStore::open(at).unwrap()),
        "tcp" => Box::new(TcpStore::connect(at, LONG).unwrap()),
        "prefix" => Box::new(PrefixStore::new("all", Box::new(TcpStore::connect(at, LONG).unwrap()))),
        other => panic!("{other}"),
    };
    store.wait(&["go"], LONG).unwrap();
    for _ in 0..100 {
        store.add("n", 1).unwrap();
    }
}

fn processes_that_add_lose_nothing(place: &impl Place) {
    let Some(reach) = place.reach() else { return };
    let store = place.rank();
    let children: Vec<_> = (0..3)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "store::tests::add_in_this_process"])
                .env("MESHREDUCE_TEST_STORE", &reach)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    store.set("go", b"").unwrap();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(store.add("n", 0).unwrap(), 300);
}

/// Waits of every kind under a fake clock: in full, and not much longer.
fn is_never_early_by_a_fake_clock(store: &dyn Store, slack: Duration) {
    for timeout in [0, 1, 999_999, 1_000_000, 12_345_678, 3_600_000_000_000].map(Duration::from_nanos) {
        let (result, took) = fake::timed(|| store.get("there", timeout));
        assert!(matches!(result, Err(StoreError::Timeout { .. })));
        assert!(took >= timeout && took < timeout + slack, "{took:?} of {timeout:?}");
        let (result, took) = fake::timed(|| store.wait(&["here", "there"], timeout));
        assert!(matches!(result, Err(StoreError::Timeout { .. })));
        assert!(took >= timeout && took < timeout + slack, "{took:?} of {timeout:?}");
    }
}

#[test]
fn a_memory_store_is_never_early_though_it_wakes_for_nothing() {
    is_never_early_by_a_fake_clock(&MemoryStore::new(), Duration::from_micros(1));
}

#[test]
fn looking_again_and_again_is_never_early() {
    /// Leaves waiting to the trait.
    struct Plain(MemoryStore);

    impl Store for Plain {
        fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
            self.0.set(key, value)
        }
        fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.try_get(key)
        }
        fn compare_set(
            &self,
            key: &str,
            expected: Option<&[u8]>,
            desired: Option<&[u8]>,
        ) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.compare_set(key, expected, desired)
        }
        fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
            self.0.add(key, delta)
        }
        fn delete(&self, key: &str) -> Result<bool, StoreError> {
            self.0.delete(key)
        }
    }

    is_never_early_by_a_fake_clock(&Plain(MemoryStore::new()), Duration::from_millis(1));
}

#[test]
fn prefixes_keep_communicators_apart() {
    let store = MemoryStore::new();
    let a = PrefixStore::new("a", Box::new(store.clone()));
    let b = PrefixStore::new("b", Box::new(store.clone()));
    a.set("key", b"1").unwrap();
    assert_eq!(b.try_get("key").unwrap(), None);
    assert_eq!(store.try_get("a/key").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(b.add("n", 2).unwrap(), 2);
    assert_eq!(b.compare_set("n", Some(b"2"), None).unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(store.try_get("b/n").unwrap(), None);
    assert!(a.delete("key").unwrap());
    let by_reference = PrefixStore::new("c", &store as &dyn Store);
    by_reference.set("key", b"3").unwrap();
    assert_eq!(store.try_get("c/key").unwrap().as_deref(), Some(&b"3"[..]));
}
