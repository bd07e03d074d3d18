//! What ranks tell one another through the store, how long it stays, and what it costs.

use meshreduce_store::StoreError;

use super::*;

/// A store that counts what it is asked.
#[derive(Debug, Default)]
struct Counting(MemoryStore, AtomicUsize);

impl Counting {
    fn asked(&self) -> &MemoryStore {
        self.1.fetch_add(1, SeqCst);
        &self.0
    }
}

impl Store for Counting {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.asked().set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.asked().get(key, timeout)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.asked().check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.asked().wait(keys, timeout)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.asked().add(key, delta)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.asked().compare_set(key, expected, desired)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.asked().delete(key)
    }
}

/// Groups of all ranks of a world, over one store, each with a call that has ended.
fn groups(store: &Arc<Counting>, world_size: usize) -> Vec<ProcessGroup> {
    let group = |rank| {
        let group = ProcessGroup::builder(Arc::clone(store) as _, rank, world_size)
            .backend("cpu:done".parse().unwrap())
            .registry(registry().0)
            .dump_to(None)
            .build()
            .unwrap();
        group.barrier(Device::Cpu).unwrap();
        group
    };
    (0..world_size).map(group).collect()
}

#[test]
fn the_end_of_a_group_takes_a_store_few_requests_a_rank_in_whatever_order_ranks_come_to_it() {
    const WORLD: usize = 128;
    for aborts in [false, true] {
        for backwards in [false, true] {
            let store = Arc::<Counting>::default();
            let mut groups = groups(&store, WORLD);
            if backwards {
                groups.reverse();
            }
            let before = store.1.load(SeqCst);
            for group in groups {
                match aborts {
                    true => group.abort("the engine stops"),
                    false => group.shutdown().unwrap(),
                }
                drop(group);
            }
            let asked = store.1.load(SeqCst) - before;
            // All of them look at all others: 128 * 127 = 16,256. A rank looks at (N + 1) / (k + 1) others until it finds the first of k
            // that are still there: 128 (1 + 1/2 + ... + 1/128) = 695 in all.
            // At a good end each looks at eight.
            let most = 16 * WORLD;
            assert!(asked < most, "aborts: {aborts}, backwards: {backwards}: {asked}");
            assert_eq!(store.0.list_keys().unwrap(), Vec::<String>::new());
        }
    }
}

#[test]
fn ranks_that_have_left_an_aborted_group_are_not_missing_for_one_that_has_made_no_call_yet() {
    let store = Arc::<MemoryStore>::default();
    let group = |rank| group_over(&store, rank, 3, "cpu:open").0;
    let (first, second, last) = (group(0), group(1), group(2));
    last.connect(DeviceType::Cpu).unwrap();
    for group in [first, second] {
        drop(start(&group, &mut [0.0]).unwrap());
        group.abort("the engine stops");
    }
    let mut data = [0.0];
    let work = start(&last.with_deadline(Some(Duration::from_millis(1))), &mut data).unwrap();
    match work.wait(Some(LONG)).unwrap_err() {
        Error::Timeout { sequence: 1, missing, .. } => assert_eq!(missing, [] as [usize; 0]),
        error => panic!("{error}"),
    }
    drop((work, last));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn checked_calls_that_differ_name_both_and_leave_nothing() {
    let store = Arc::<MemoryStore>::default();
    let errors = ranks(3, |rank| {
        let group = group_with_checked_calls(&store, rank, 3);
        let result = match rank {
            2 => group.broadcast(&mut [0.0_f32; 4], 0),
            _ => group.all_reduce(&mut [0.0_f32; 4], ReduceOp::Sum),
        };
        // A rank may take its text back only when all have read it.
        let error = result.unwrap_err();
        assert!(matches!(group.shutdown(), Err(Error::Mismatch { .. })));
        error.to_string()
    });
    let expected = "call number 4 on group world: rank 0 calls all_reduce (sum) of 4 f32 on cpu, rank 2 calls broadcast of 4 \
                    f32 with root 0 on cpu";
    assert_eq!(errors, [expected; 3]);
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn a_monitored_barrier_names_everyone_who_did_not_come() {
    let store = Arc::<MemoryStore>::default();
    let came = ranks(4, |rank| {
        let (group, _) = group_over(&store, rank, 4, "cpu:done");
        group.monitored_barrier(LONG).unwrap();
        match rank {
            1 | 3 => None,
            _ => Some(group.monitored_barrier(Duration::from_secs(2)).unwrap_err().to_string()),
        }
    });
    let expected = "ranks 1 and 3 did not come to the barrier of group world within 2s";
    assert_eq!(came.into_iter().flatten().collect::<Vec<_>>(), [expected; 2]);
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn a_monitored_barrier_to_which_rank_0_does_not_come_names_all_that_did_not_and_a_late_rank_0_hears_of_it() {
    let store = Arc::<MemoryStore>::default();
    let brief = Duration::from_millis(200);
    let (zero, _) = group_over(&store, 0, 4, "cpu:done");
    let (three, _) = group_over(&store, 3, 4, "cpu:done");
    let names = |group: &ProcessGroup| match group.monitored_barrier(brief).unwrap_err() {
        Error::NotAtBarrier { ranks, .. } => ranks,
        error => panic!("{error}"),
    };
    let came = ranks(4, |rank| match rank {
        1 | 2 => {
            let (group, _) = group_over(&store, rank, 4, "cpu:done");
            // One of them gives up before the other.
            std::thread::sleep(brief * (rank as u32 - 1));
            Some((names(&group), group))
        }
        _ => None,
    });
    let (named, came): (Vec<_>, Vec<_>) = came.into_iter().flatten().unzip();
    assert_eq!(named, [[0, 3]; 2]);
    let begun = Instant::now();
    assert_eq!([names(&zero), names(&three)], [[0, 3]; 2], "the late ones hear what the others have said");
    assert!(begun.elapsed() < LONG / 2, "nobody waits for those who do not wait any more");
    drop((zero, three, came));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

/// Leaves a key of its own for every rank that makes it, and cannot be made.
struct Littering;

impl BackendFactory for Littering {
    fn name(&self) -> &str {
        "littering"
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cpu]
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        context.store.set(&format!("left/{}", context.group.rank), b"1").unwrap();
        Err(context.not_made(&"littering".into(), "it never can be"))
    }

    fn clear_away(&self, context: &BackendContext) -> Result<(), Error> {
        for rank in 0..context.group.world_size {
            context.store.delete(&format!("left/{rank}")).unwrap();
        }
        Ok(())
    }
}

#[test]
fn what_a_factory_leaves_goes_with_the_last_rank_also_if_that_one_never_made_it() {
    for last in 0..3 {
        let store = Arc::<MemoryStore>::default();
        let group = |rank| {
            let mut registry = registry().0;
            registry.register(Littering).unwrap();
            ProcessGroup::builder(Arc::clone(&store) as _, rank, 3)
                .backend("cpu:littering,cuda:done".parse().unwrap())
                .registry(registry)
                .cuda_device(0)
                .timeout(LONG)
                .dump_to(None)
                .build()
                .unwrap()
        };
        let mut groups: Vec<_> = (0..3).map(group).collect();
        let leave = |group: ProcessGroup| group.abort("it has no backend");
        let remains = groups.remove(last);
        // It has told that it is there, and never comes to the backend that the others cannot make.
        remains.barrier(Device::Cuda(0)).unwrap();
        for group in groups {
            assert!(matches!(group.barrier(Device::Cpu), Err(Error::NotMade { .. })));
            leave(group);
        }
        let left: Vec<_> =
            store.list_keys().unwrap().into_iter().filter(|key| key.contains("left/")).collect();
        assert!(left.len() >= 2, "somebody is still there: {left:?}");
        leave(remains);
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    }
}
