//! Waiting.

use super::*;

every_store! {
    waiting_ends_as_soon_as_the_last_key_comes
    a_key_that_has_been_there_is_not_waited_for_again
    what_is_missing_is_named
    no_timeout_is_early
    waiting_for_nothing_takes_no_time
    a_waiting_thread_does_not_hold_up_another_on_the_same_handle
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
            b.compare_set("everywhere", b"", b"3").unwrap();
            assert_eq!(b.get("sum", LONG).unwrap(), b"4");
            b.append("log", b"5").unwrap();
        });
        assert_eq!(a.get("there", LONG).unwrap(), b"2");
        a.wait(&["here", "there", "everywhere"], Duration::MAX).unwrap();
        a.add("sum", 4).unwrap();
        assert_eq!(a.multi_get(&["log", "sum"], LONG).unwrap(), [b"5", b"4"]);
    });
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert!(start.elapsed() < LONG);
}

fn a_key_that_has_been_there_is_not_waited_for_again(place: &impl Place) {
    let (a, b) = (place.rank(), place.rank());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| a.wait(&["first", "second"], LONG));
        // Much longer than those sleep who look again and again, and than one is late on a busy machine.
        std::thread::sleep(Duration::from_millis(1000));
        b.set("first", b"1").unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(b.delete("first").unwrap());
        assert!(!waiting.is_finished());
        b.set("second", b"2").unwrap();
        waiting.join().unwrap().unwrap();
    });
    match b.wait(&["first", "second"], Duration::ZERO) {
        Err(StoreError::Timeout { keys, .. }) => assert_eq!(keys, ["first"], "it was there before"),
        other => panic!("{other:?}"),
    }
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

/// By the system's clock and briefly here; by a fake clock, to the nanosecond, below.
fn no_timeout_is_early(place: &impl Place) {
    let store = place.rank();
    for micros in [1, 999, 1_000, 1_001, 20_300] {
        let timeout = Duration::from_micros(micros);
        let in_full = |wait: &dyn Fn() -> Result<(), StoreError>| {
            let start = Instant::now();
            assert!(matches!(wait(), Err(StoreError::Timeout { .. })));
            assert!(start.elapsed() >= timeout, "{:?} of {timeout:?}", start.elapsed());
        };
        in_full(&|| store.get("there", timeout).map(drop));
        in_full(&|| store.wait(&["there"], timeout));
        in_full(&|| store.multi_get(&["there"], timeout).map(drop));
        in_full(&|| store.queue_pop("there", timeout).map(drop));
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

fn a_waiting_thread_does_not_hold_up_another_on_the_same_handle(place: &impl Place) {
    let store = place.rank();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.get("late", LONG).unwrap());
        let popping = scope.spawn(|| store.queue_pop("late too", LONG).unwrap());
        for _ in 0..20 {
            store.add("n", 1).unwrap();
        }
        assert!(!waiting.is_finished() && !popping.is_finished());
        store.set("late", b"come").unwrap();
        assert_eq!(waiting.join().unwrap(), b"come");
        assert!(!popping.is_finished());
        store.queue_push("late too", b"as well").unwrap();
        assert_eq!(popping.join().unwrap(), b"as well");
    });
}

/// Waits of every kind under a fake clock: in full, and not much longer.
fn is_never_early_by_a_fake_clock(store: &dyn Store, slack: Duration) {
    store.set("here", b"").unwrap();
    for timeout in [0, 1, 999_999, 1_000_000, 12_345_678, 3_600_000_000_000].map(Duration::from_nanos) {
        let in_full = |wait: &dyn Fn() -> Result<(), StoreError>| {
            let (result, took) = fake::timed(wait);
            match result {
                Err(StoreError::Timeout { keys, waited }) => {
                    assert_eq!((keys, waited), (vec!["there".into()], timeout));
                }
                other => panic!("{other:?}"),
            }
            assert!(took >= timeout && took < timeout + slack, "{took:?} of {timeout:?}");
        };
        in_full(&|| store.get("there", timeout).map(drop));
        in_full(&|| store.wait(&["here", "there"], timeout));
        in_full(&|| store.multi_get(&["here", "there"], timeout).map(drop));
        in_full(&|| store.queue_pop("there", timeout).map(drop));
        in_full(&|| store.barrier("there", 100, timeout));
    }
}

#[test]
fn a_memory_store_is_never_early_though_it_wakes_for_nothing() {
    is_never_early_by_a_fake_clock(&MemoryStore::new(), Duration::from_micros(1));
}

#[test]
fn a_file_store_is_never_early() {
    is_never_early_by_a_fake_clock(&*File::new().rank(), Duration::from_micros(1));
}

#[test]
fn a_store_that_has_the_least_waits_as_the_others() {
    /// Leaves to the trait what it does by itself.
    struct Plain(MemoryStore);

    impl Store for Plain {
        fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
            self.0.set(key, value)
        }
        fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
            self.0.get(key, timeout)
        }
        fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
            self.0.check(keys)
        }
        fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
            self.0.wait(keys, timeout)
        }
        fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
            self.0.add(key, delta)
        }
        fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
            self.0.compare_set(key, expected, desired)
        }
        fn delete(&self, key: &str) -> Result<bool, StoreError> {
            self.0.delete(key)
        }
    }

    let store = Plain(MemoryStore::new());
    let (result, took) = fake::timed(|| store.barrier("b", 2, LONG));
    match result {
        Err(StoreError::Timeout { keys, waited }) => assert_eq!((&*keys[0], waited), ("b", LONG)),
        other => panic!("{other:?}"),
    }
    assert!(took >= LONG && took < LONG + Duration::from_micros(1), "{took:?}");
    store.barrier("b", 2, Duration::ZERO).unwrap();
    assert!(matches!(store.barrier("", 1, LONG), Err(StoreError::InvalidKey { .. })));
    store.multi_set(&[("x", b"1"), ("y", b"2")]).unwrap();
    assert_eq!(store.multi_get(&["y", "x"], LONG).unwrap(), [b"2", b"1"]);
    for (operation, result) in [
        ("append", store.append("k", b"")),
        ("list_keys", store.num_keys().map(drop)),
        ("queue_push", store.queue_push("k", b"")),
        ("queue_pop", store.queue_pop("k", LONG).map(drop)),
        ("queue_len", store.queue_len("k").map(drop)),
    ] {
        assert_eq!(result.unwrap_err().to_string(), format!("this store has no {operation}"));
    }
}
