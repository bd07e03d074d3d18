//! Queues and barriers.

use super::*;

every_store! {
    a_queue_gives_in_order_what_was_put_in
    queues_and_values_have_names_of_their_own
    a_queue_is_there_while_something_is_in_it
    each_value_of_a_queue_goes_to_one
    a_pop_that_waits_in_vain_is_a_timeout
    nobody_passes_a_barrier_before_all_have_come
    a_barrier_to_which_not_all_come_is_a_timeout
}

fn a_queue_gives_in_order_what_was_put_in(place: &impl Place) {
    let (a, b) = (place.rank(), place.rank());
    for value in [&b"1"[..], b"", b"2", b"2"] {
        a.queue_push("q", value).unwrap();
    }
    b.queue_push("other", b"3").unwrap();
    assert_eq!((b.queue_len("q").unwrap(), b.queue_len("none").unwrap()), (4, 0));
    assert_eq!([(); 4].map(|()| b.queue_pop("q", LONG).unwrap()), [&b"1"[..], b"", b"2", b"2"]);
    assert_eq!((a.queue_len("q").unwrap(), a.queue_len("other").unwrap()), (0, 1));
}

fn queues_and_values_have_names_of_their_own(place: &impl Place) {
    let store = place.rank();
    store.queue_push("k", b"queued").unwrap();
    let probe = b"nobody's";
    assert_eq!(store.compare_set("k", probe, probe).unwrap(), probe, "a queue is no value");
    assert!(!store.delete("k").unwrap());
    assert!(store.list_keys().unwrap().is_empty());
    assert_eq!(store.add("k", 1).unwrap(), 1);
    assert_eq!(store.num_keys().unwrap(), 1);
    store.append("k", b"0").unwrap();
    assert_eq!(store.get("k", LONG).unwrap(), b"10");
    assert!(store.delete("k").unwrap());
    assert_eq!((store.queue_len("k").unwrap(), store.queue_pop("k", LONG).unwrap()), (1, b"queued".to_vec()));
    store.set("k", b"set").unwrap();
    assert_eq!(store.queue_len("k").unwrap(), 0);
}

fn a_queue_is_there_while_something_is_in_it(place: &impl Place) {
    let (a, b) = (place.rank(), place.rank());
    a.queue_push("q", b"").unwrap();
    assert!(b.check(&["q"]).unwrap());
    b.wait(&["q", "q"], Duration::ZERO).unwrap();
    b.queue_pop("q", LONG).unwrap();
    assert!(!a.check(&["q"]).unwrap());
    assert!(matches!(a.wait(&["q"], Duration::ZERO), Err(StoreError::Timeout { .. })));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            b.queue_push("q", b"").unwrap();
        });
        a.wait(&["q"], LONG).unwrap();
    });
}

fn each_value_of_a_queue_goes_to_one(place: &impl Place) {
    const EACH: u8 = 40;
    let found: Vec<u8> = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let store = place.rank();
                scope.spawn(move || {
                    let values = std::iter::from_fn(|| {
                        let value = store.queue_pop("q", LONG).unwrap();
                        value.first().copied()
                    });
                    values.collect::<Vec<u8>>()
                })
            })
            .collect();
        let givers: Vec<_> = (0..2)
            .map(|giver| {
                let store = place.rank();
                scope.spawn(move || {
                    for value in 0..EACH {
                        store.queue_push("q", &[giver * EACH + value]).unwrap();
                    }
                })
            })
            .collect();
        givers.into_iter().for_each(|giver| giver.join().unwrap());
        (0..3).for_each(|_| place.rank().queue_push("q", b"").unwrap());
        takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
    });
    let mut sorted = found.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..2 * EACH).collect::<Vec<_>>(), "{found:?}");
}

fn a_pop_that_waits_in_vain_is_a_timeout(place: &impl Place) {
    let store = place.rank();
    for timeout in [Duration::ZERO, Duration::from_millis(15)] {
        let start = Instant::now();
        match store.queue_pop("q", timeout) {
            Err(StoreError::Timeout { keys, waited }) => assert_eq!((&*keys[0], waited), ("q", timeout)),
            other => panic!("{other:?}"),
        }
        assert!(start.elapsed() >= timeout);
    }
    store.queue_push("q", b"1").unwrap();
    assert_eq!(store.queue_pop("q", Duration::ZERO).unwrap(), b"1");
}

fn nobody_passes_a_barrier_before_all_have_come(place: &impl Place) {
    const RANKS: usize = 4;
    for round in 0..5 {
        let (key, arrived) = (format!("barrier/{round}"), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for rank in 0..RANKS {
                let (store, key, arrived) = (place.rank(), &key, &arrived);
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(rank as u64 * 3));
                    arrived.fetch_add(1, Ordering::SeqCst);
                    store.barrier(key, RANKS, LONG).unwrap();
                    assert_eq!(arrived.load(Ordering::SeqCst), RANKS);
                });
            }
        });
    }
    place.rank().barrier("alone", 1, Duration::ZERO).unwrap();
}

fn a_barrier_to_which_not_all_come_is_a_timeout(place: &impl Place) {
    let store = place.rank();
    let (timeout, start) = (Duration::from_millis(15), Instant::now());
    match store.barrier("b", 2, timeout) {
        Err(StoreError::Timeout { keys, waited }) => assert_eq!((&*keys[0], waited), ("b", timeout)),
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() >= timeout);
}

/// Where a store has barriers of its own.
fn who_comes_again_counts_once(store: &dyn Store) {
    let key = "k".repeat(MAX_KEY);
    for _ in 0..3 {
        assert!(matches!(store.barrier(&key, 2, Duration::ZERO), Err(StoreError::Timeout { .. })));
    }
    assert_eq!(store.num_keys().unwrap(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| store.barrier(&key, 2, LONG).unwrap());
        store.barrier(&key, 2, LONG).unwrap();
    });
}

#[test]
fn who_comes_to_a_barrier_in_a_file_again_counts_once() {
    who_comes_again_counts_once(&*File::new().rank());
}

#[test]
fn who_comes_to_a_barrier_in_memory_again_counts_once() {
    who_comes_again_counts_once(&*Memory::new().rank());
}

#[test]
fn a_value_is_not_waited_for_as_a_queue_nor_a_queue_as_a_value() {
    for store in [File::new().rank(), Memory::new().rank()] {
        store.set("value", b"").unwrap();
        store.queue_push("queue", b"").unwrap();
        for (result, said) in [
            (store.queue_pop("value", LONG), "it is a value and no queue"),
            (store.get("queue", LONG), "it is a queue"),
        ] {
            match result {
                Err(StoreError::Corrupt { problem, .. }) => assert_eq!(problem, said),
                other => panic!("{other:?}"),
            }
        }
    }
}
