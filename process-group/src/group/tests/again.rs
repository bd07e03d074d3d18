//! Groups over keys that those have left who were killed in a group before them.

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use meshreduce_store::StoreError;

use super::*;

/// A rank's way to the store, which ends when it is killed. As far as anybody can tell its process goes on: it might be on another host.
#[derive(Debug, Clone)]
struct Mortal(Arc<MemoryStore>, Arc<AtomicBool>, Arc<OnceLock<Vec<u8>>>);

impl Mortal {
    fn over(store: &Arc<MemoryStore>) -> Self {
        Self(Arc::clone(store), Arc::default(), Arc::default())
    }

    /// From now on it has this for everybody who looks for a roster.
    fn has_rosters(&self, roster: Vec<u8>) {
        self.2.set(roster).unwrap();
    }

    fn kill(&self) {
        self.1.store(true, SeqCst);
    }

    fn revive(&self) {
        self.1.store(false, SeqCst);
    }

    fn living(&self) -> Result<&MemoryStore, StoreError> {
        let killed =
            || StoreError::Refused { place: "of the test".into(), problem: "this rank was killed".into() };
        (!self.1.load(SeqCst)).then_some(&*self.0).ok_or_else(killed)
    }

    /// Waits in pieces: whoever is killed waits no more.
    fn in_pieces<T>(
        &self,
        timeout: Duration,
        wait: impl Fn(&MemoryStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        loop {
            match wait(self.living()?) {
                Err(StoreError::Timeout { .. }) if begun.elapsed() < timeout => {}
                ended => return ended,
            }
        }
    }
}

const PIECE: Duration = Duration::from_millis(5);

impl Store for Mortal {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.living()?.set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.in_pieces(timeout, |store| store.get(key, timeout.min(PIECE)))
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.living()?.check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.in_pieces(timeout, |store| store.wait(keys, timeout.min(PIECE)))
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.living()?.add(key, delta)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        match self.2.get() {
            Some(roster) if key.ends_with("/roster") => Ok(roster.clone()),
            _ => self.living()?.compare_set(key, expected, desired),
        }
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.living()?.delete(key)
    }
}

fn built(
    store: impl Store + 'static,
    rank: usize,
    world_size: usize,
    checks: bool,
) -> (ProcessGroup, Arc<Notes>) {
    let (registry, notes) = registry();
    let group = ProcessGroup::builder(Arc::new(store), rank, world_size)
        .backend("cpu:done".parse().unwrap())
        .registry(registry)
        .timeout(LONG)
        .deadline(Some(LONG))
        .check_calls(checks)
        .dump_to(None)
        .build()
        .unwrap();
    (group, notes)
}

fn died(rank: usize) -> Error {
    Error::RankDied { rank, group: "world".into(), how: "its process has ended".to_owned() }
}

fn has(store: &MemoryStore, key: &str) -> bool {
    store.list_keys().unwrap().iter().any(|one| one.ends_with(key))
}

/// Rank `rank` does something in a group of its own until `key` is there, and is killed then.
fn killed(
    store: &Arc<MemoryStore>,
    rank: usize,
    checks: bool,
    key: &str,
    act: impl FnOnce(&ProcessGroup) -> Result<(), Error> + Send,
) {
    let way = Mortal::over(store);
    std::thread::scope(|scope| {
        let group = built(way.clone(), rank, 2, checks).0;
        let acts = scope.spawn(move || act(&group).unwrap_err());
        ends::until(|| has(store, key));
        way.kill();
        acts.join().unwrap();
    });
}

fn missing(result: Result<(), Error>) -> Vec<usize> {
    match result.unwrap_err() {
        Error::NotAtBarrier { ranks, .. } => ranks,
        error => panic!("{error}"),
    }
}

const BRIEF: Duration = Duration::from_millis(50);

#[test]
fn a_rank_that_was_killed_at_a_monitored_barrier_has_not_come_to_one_of_the_next_group() {
    let store = Arc::<MemoryStore>::default();
    killed(&store, 1, false, "barrier/0/came/1", |group| group.monitored_barrier(LONG));
    let (zero, _) = group_over(&store, 0, 2, "cpu:done");
    assert_eq!(missing(zero.monitored_barrier(BRIEF)), [1], "the one that came was of another group");
    let (one, _) = group_over(&store, 1, 2, "cpu:done");
    assert_eq!(missing(one.monitored_barrier(BRIEF)), [1], "it hears that it was missing");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| one.monitored_barrier(LONG));
        zero.monitored_barrier(LONG).unwrap();
        other.join().unwrap().unwrap();
    });
    drop((zero, one));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn what_a_rank_0_that_was_killed_has_told_of_a_barrier_is_not_heard_in_the_next_group() {
    for all_came in [false, true] {
        let store = Arc::<MemoryStore>::default();
        std::thread::scope(|scope| {
            // Rank 1 is killed before it has taken back what it was told, or never comes.
            let (zero, one) = (Mortal::over(&store), Mortal::over(&store));
            let group = built(zero.clone(), 0, 2, false).0;
            let other = built(one.clone(), 1, 2, false).0;
            match all_came {
                true => {
                    let comes = scope.spawn(move || {
                        other.monitored_barrier(LONG).unwrap();
                        assert!(matches!(other.monitored_barrier(LONG), Err(Error::Store { .. })));
                    });
                    group.monitored_barrier(LONG).unwrap();
                    ends::until(|| has(&store, "barrier/1/came/1"));
                    one.kill();
                    comes.join().unwrap();
                    group.monitored_barrier(LONG).unwrap();
                }
                false => assert_eq!(missing(group.monitored_barrier(BRIEF)), [1]),
            }
            one.kill();
            zero.kill();
        });
        let number = usize::from(all_came);
        assert!(has(&store, &format!("barrier/{number}/told/1")), "{:?}", store.list_keys());
        let come = |rank| {
            let (group, _) = group_over(&store, rank, 2, "cpu:done");
            group.connect(DeviceType::Cpu).unwrap();
            group
        };
        let (zero, one) = (come(0), come(1));
        for number in 0..=number {
            std::thread::scope(|scope| {
                let comes = scope.spawn(|| one.monitored_barrier(LONG));
                // It has come, and waits for this one.
                let key = format!("barrier/{number}/came/1");
                ends::until(|| has(&store, &key) || comes.is_finished());
                assert!(!comes.is_finished(), "it has heard something of the past");
                zero.monitored_barrier(LONG).unwrap();
                comes.join().unwrap().unwrap();
            });
        }
        drop((zero, one));
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn who_has_given_up_a_rank_0_of_another_group_and_was_killed_is_not_heard() {
    let store = Arc::<MemoryStore>::default();
    let way = Mortal::over(&store);
    let (group, _) = built(way.clone(), 1, 3, false);
    assert_eq!(missing(group.monitored_barrier(Duration::ZERO)), [0, 2]);
    way.kill();
    drop(group);
    assert!(has(&store, "barrier/0/given_up"));
    let groups: Vec<_> = (0..3).map(|rank| group_over(&store, rank, 3, "cpu:done").0).collect();
    groups.iter().for_each(|group| group.connect(DeviceType::Cpu).unwrap());
    std::thread::scope(|scope| {
        let others: Vec<_> =
            groups[1..].iter().map(|group| scope.spawn(|| group.monitored_barrier(LONG))).collect();
        groups[0].monitored_barrier(LONG).unwrap();
        others.into_iter().for_each(|other| other.join().unwrap().unwrap());
    });
    groups.into_iter().for_each(drop);
    let left = store.list_keys().unwrap();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn calls_of_ranks_that_were_killed_are_not_compared_with_those_of_the_next_group() {
    for calls in [0, 3] {
        let store = Arc::<MemoryStore>::default();
        let sum = |group: &ProcessGroup| group.all_reduce(&mut [0.0_f32; 4], ReduceOp::Sum);
        std::thread::scope(|scope| {
            let ways = [Mortal::over(&store), Mortal::over(&store)];
            let groups = [0, 1].map(|rank| built(ways[rank].clone(), rank, 2, true).0);
            let works: Vec<_> = groups
                .into_iter()
                .enumerate()
                .map(|(rank, group)| {
                    scope.spawn(move || {
                        (0..calls).for_each(|_| sum(&group).unwrap());
                        // One comes to a call more.
                        if rank == 1 {
                            sum(&group).unwrap_err();
                        } else {
                            group.connect(DeviceType::Cpu).unwrap();
                            std::mem::forget(group);
                        }
                    })
                })
                .collect();
            ends::until(|| has(&store, &format!("calls/{}/1", calls + 1)));
            ways.iter().for_each(Mortal::kill);
            works.into_iter().for_each(|work| work.join().unwrap());
        });
        assert!(has(&store, &format!("calls/{}/1", calls + 1)));
        let groups = ranks(2, |rank| {
            let (group, _) = built(Mortal::over(&store), rank, 2, true);
            (0..calls).for_each(|_| sum(&group).unwrap());
            group.barrier(Device::Cpu).unwrap();
            group
        });
        // (This backend does not wait for the others.)
        groups.iter().for_each(|group| group.shutdown().unwrap());
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn the_last_of_a_group_deletes_what_those_have_left_who_were_killed_at_its_barriers_and_calls() {
    type Comes = fn(&ProcessGroup) -> Result<(), Error>;
    let ways: [(bool, &str, Comes); 3] = [
        (false, "barrier/0/came/1", |group| group.monitored_barrier(LONG)),
        (true, "calls/1/1", |group| group.barrier(Device::Cpu)),
        (true, "calls/1/1", |group| group.all_reduce(&mut [0.0_f32], ReduceOp::Sum)),
    ];
    for (checks, key, comes) in ways {
        let store = Arc::<MemoryStore>::default();
        let (zero, notes) = built(Mortal::over(&store), 0, 2, checks);
        // It has made no call.
        zero.connect(DeviceType::Cpu).unwrap();
        killed(&store, 1, checks, key, comes);
        let died =
            Error::RankDied { rank: 1, group: "world".into(), how: "its process has ended".to_owned() };
        *notes.over.lock().unwrap() = Some(died);
        assert!(zero.shutdown().is_err());
        drop(zero);
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new(), "{key}");
    }
}

#[test]
fn what_no_rank_tells_is_an_error_with_its_key() {
    let store = Arc::<MemoryStore>::default();
    let key_of = |result: Result<(), Error>| match result.unwrap_err() {
        Error::Store { source, .. } => match &*source {
            StoreError::Corrupt { key, .. } => key.clone(),
            error => panic!("{error}"),
        },
        error => panic!("{error}"),
    };
    let far =
        [&u64::MAX.to_le_bytes()[..], &[0; 8], &[1], &1_u64.to_le_bytes(), &99_u32.to_le_bytes()].concat();
    // (Of 28 zeros: who has given up, and nobody was missing.)
    for garbage in [&b"all came"[..], b"", &[0xff; 17], &[0; 28], &far] {
        for (rank, key) in [(1, "told/1"), (0, "came/1"), (0, "given_up")] {
            let (group, _) = group_over(&store, rank, 2, "cpu:done");
            let key = format!("barrier/0/{key}");
            store.set(&key, garbage).unwrap();
            assert_eq!(key_of(group.monitored_barrier(LONG)), key, "{garbage:?}");
            drop(group);
            store.delete(&key).unwrap();
        }
        let (group, _) = built(Mortal::over(&store), 0, 2, true);
        store.set("calls/1/1", garbage).unwrap();
        assert_eq!(key_of(group.barrier(Device::Cpu)), "calls/1/1", "{garbage:?}");
        drop(group);
        store.delete("calls/1/1").unwrap();
    }
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

fn split(group: &ProcessGroup) -> Result<ProcessGroup, Error> {
    group.split(Some(0), 0, &GroupOptions::default()).and_then(Membership::member)
}

#[test]
fn how_a_split_of_a_group_has_failed_whose_ranks_were_killed_the_next_group_does_not_hear() {
    for splits in 0..2 {
        let store = Arc::<MemoryStore>::default();
        let (way, other) = (Mortal::over(&store), Mortal::over(&store));
        let ((zero, notes), one) = (built(way.clone(), 0, 2, false), built(other.clone(), 1, 2, false).0);
        zero.connect(DeviceType::Cpu).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..splits {
                let comes = scope.spawn(|| split(&one).unwrap());
                split(&zero).unwrap();
                comes.join().unwrap();
            }
            // Rank 1 does not come to the next one, and is gone.
            let waits = scope.spawn(|| split(&zero).unwrap_err());
            ends::until(|| has(&store, "/first/0"));
            *notes.over.lock().unwrap() = Some(died(1));
            assert!(matches!(waits.join().unwrap(), Error::RankDied { rank: 1, .. }));
        });
        way.kill();
        other.kill();
        drop((zero, one));
        assert!(has(&store, "/roster") && has(&store, "/verdict"), "{:?}", store.list_keys());
        // The rank that comes first may find what the one has told that was killed.
        for first in 0..2 {
            let groups = ranks(2, |rank| {
                let (group, _) = group_over(&store, rank, 2, "cpu:done");
                if rank != first {
                    ends::until(|| {
                        store.list_keys().unwrap().iter().any(|key| key.ends_with("/first/0")) || rank == 0
                    });
                }
                (0..=splits).for_each(|_| drop(split(&group).unwrap()));
                group
            });
            groups.into_iter().for_each(drop);
        }
    }
}

#[test]
fn a_split_to_which_a_rank_does_not_come_names_it_and_leaves_nothing() {
    // Rank 1 waits for a rank 0 that is in the group, or for one that is not.
    for (comes, are_there) in [(0, true), (1, true), (1, false)] {
        let store = Arc::<MemoryStore>::default();
        let groups = [0, 1].map(|rank| {
            ProcessGroup::builder(Arc::clone(&store) as _, rank, 2)
                .backend("cpu:done".parse().unwrap())
                .registry(registry().0)
                .timeout(BRIEF)
                .dump_to(None)
                .build()
                .unwrap()
        });
        if are_there {
            groups.iter().for_each(|group| group.connect(DeviceType::Cpu).unwrap());
        }
        let error = split(&groups[comes]).unwrap_err();
        let is_missing = |cause: &meshreduce::Error| matches!(cause, meshreduce::Error::RanksMissing { ranks, .. } if *ranks == [1 - comes]);
        match &error {
            Error::NotMade { source, .. } => {
                assert!(source.downcast_ref().is_some_and(is_missing), "{error}")
            }
            _ => panic!("{error}"),
        }
        groups.iter().for_each(|group| group.shutdown().unwrap());
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn what_a_split_has_left_that_failed_goes_with_the_group_also_where_that_ends_in_order() {
    let store = Arc::<MemoryStore>::default();
    let way = Mortal::over(&store);
    let (zero, one) = (built(way.clone(), 0, 2, false).0, built(Mortal::over(&store), 1, 2, false).0);
    [&zero, &one].into_iter().for_each(|group| group.connect(DeviceType::Cpu).unwrap());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| split(&zero).unwrap_err());
        ends::until(|| has(&store, "/first/0"));
        // It loses the store for a moment.
        way.kill();
        waits.join().unwrap();
        way.revive();
    });
    assert!(has(&store, "/roster"), "{:?}", store.list_keys());
    [&zero, &one].into_iter().for_each(|group| group.shutdown().unwrap());
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn a_store_that_has_something_of_every_split_keeps_nobody_there() {
    let store = Arc::<MemoryStore>::default();
    let way = Mortal::over(&store);
    let (zero, notes) = built(way.clone(), 0, 2, false);
    zero.connect(DeviceType::Cpu).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| split(&zero).unwrap_err());
        ends::until(|| has(&store, "/first/0"));
        *notes.over.lock().unwrap() = Some(died(1));
        waits.join().unwrap();
    });
    let roster = store.list_keys().unwrap().into_iter().find(|key| key.ends_with("/roster")).unwrap();
    way.has_rosters(store.get(&roster, LONG).unwrap());
    assert!(zero.shutdown().is_err());
    drop(zero);
    assert!(has(&store, "/roster"), "it was asked for all of them");
}

fn part(group: &ProcessGroup) -> ProcessGroup {
    group.new_group(&[0, 1], &GroupOptions::default()).unwrap().member().unwrap()
}

#[test]
fn what_a_rank_has_left_that_was_killed_in_a_part_goes_with_the_group_of_all_ranks() {
    // What the survivor has done with it, how deep it is, and whether it keeps it for longer than the group of all ranks.
    for (uses, drops_early, depth, keeps) in [
        (false, false, 1, false),
        (false, true, 2, false),
        (true, true, 1, false),
        (true, true, 2, false),
        (true, false, 1, false),
        (false, false, 1, true),
        (true, false, 2, true),
    ] {
        let store = Arc::<MemoryStore>::default();
        let way = Mortal::over(&store);
        let ((zero, notes), one) =
            (built(Mortal::over(&store), 0, 2, false), built(way.clone(), 1, 2, false).0);
        [&zero, &one].into_iter().for_each(|group| group.connect(DeviceType::Cpu).unwrap());
        let nested = |group: &ProcessGroup| (0..depth).fold(group.clone(), |group, _| part(&group));
        let (own, its) = (nested(&zero), nested(&one));
        its.barrier(Device::Cpu).unwrap();
        if uses {
            own.barrier(Device::Cpu).unwrap();
        }
        let own = (!drops_early).then_some(own);
        way.kill();
        drop((its, one));
        assert!(has(&store, "/progress/1"), "{:?}", store.list_keys());
        *notes.over.lock().unwrap() = Some(died(1));
        let kept = own.filter(|_| keeps);
        assert!(zero.shutdown().is_err());
        drop(zero);
        drop(kept);
        let left = store.list_keys().unwrap();
        assert_eq!(left, Vec::<String>::new(), "{uses} {drops_early} {depth} {keeps}");
    }
}

#[test]
fn a_part_in_which_somebody_still_is_stays_until_that_one_leaves() {
    let store = Arc::<MemoryStore>::default();
    let (zero, one) =
        (built(Mortal::over(&store), 0, 2, false).0, built(Mortal::over(&store), 1, 2, false).0);
    let (own, its) = (part(&zero), part(&one));
    [&own, &its].into_iter().for_each(|group| group.barrier(Device::Cpu).unwrap());
    zero.connect(DeviceType::Cpu).unwrap();
    drop((own, zero));
    assert!(has(&store, "#1/progress/1"), "{:?}", store.list_keys());
    drop((its, one));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}
