//! As many ranks at once as a job has.

use super::*;

every_store! {
    sixty_four_ranks_at_once_lose_nothing_and_take_nothing_twice
}

fn sixty_four_ranks_at_once_lose_nothing_and_take_nothing_twice(place: &impl Place) {
    const RANKS: usize = 64;
    const EACH: usize = 2;
    let arrived = AtomicUsize::new(0);
    let keys: Vec<String> = (0..RANKS).map(|rank| format!("from/{rank}")).collect();
    let mut taken: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..RANKS)
            .map(|rank| {
                let (store, keys, arrived) = (place.rank(), &keys, &arrived);
                scope.spawn(move || {
                    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                    store.set(keys[rank], &[rank as u8; 100]).unwrap();
                    store.add("sum", rank as i64).unwrap();
                    for value in 0..EACH {
                        store.queue_push("queue", &[rank as u8, value as u8]).unwrap();
                    }
                    store.wait(&keys, LONG).unwrap();
                    let all = store.multi_get(&keys, LONG).unwrap();
                    assert!(all.iter().enumerate().all(|(rank, value)| *value == [rank as u8; 100]));
                    arrived.fetch_add(1, Ordering::SeqCst);
                    store.barrier("all have pushed", RANKS, LONG).unwrap();
                    assert_eq!(arrived.load(Ordering::SeqCst), RANKS);
                    assert_eq!(store.add("sum", 0).unwrap(), (RANKS * (RANKS - 1) / 2) as i64);
                    [(); EACH].map(|()| store.queue_pop("queue", LONG).unwrap())
                })
            })
            .collect();
        ranks.into_iter().flat_map(|rank| rank.join().unwrap()).collect()
    });
    taken.sort_unstable();
    let pushed = (0..RANKS).flat_map(|rank| (0..EACH).map(move |value| vec![rank as u8, value as u8]));
    assert_eq!(taken, pushed.collect::<Vec<_>>());
    assert_eq!(place.rank().queue_len("queue").unwrap(), 0);
}
