//! Ranks whose calls on the mesh differ in whether they have elements at all, and what ranks leave that are aborted while they make one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshreduce_checks::in_process::alone;
use meshreduce_process_group::store::{MemoryStore, PrefixStore, Store, StoreError, TcpStore};
use meshreduce_process_group::{
    Call, DType, Device, DeviceType, Error, Parts, ProcessGroup, ReduceOp, Tensor, Usage,
};
use meshreduce_tests::on_nccl::{FAR, Numbers, open, start, with_stores};

const RANKS: usize = 3;

fn group(store: Arc<dyn Store>, rank: usize, name: &str) -> ProcessGroup {
    let store = PrefixStore::new(name, store).unwrap();
    ProcessGroup::builder(Arc::new(store), rank, RANKS)
        .backend("cuda:mesh".parse().unwrap())
        .cuda_device(rank as u32)
        .forbid_fallback(true)
        .timeout(FAR)
        .deadline(Some(FAR))
        .dump_to(None)
        .build()
        .unwrap()
}

/// The collectives of the mesh, each with so many elements for a rank; and its name in a mismatch.
const KINDS: [&str; 7] =
    ["all_reduce", "broadcast", "reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"];

fn make(group: &ProcessGroup, kind: &str, count: usize) -> Result<(), Error> {
    let (rank, root) = (group.rank(), 1);
    let (one, other) = (Numbers::new(rank, 64, 1.0), Numbers::new(rank, 64, 0.0));
    let part = |of: &Numbers, count: usize| Tensor { count, ..of.tensor() };
    let (input, output) = (part(&one, count), part(&other, count));
    let (inputs, outputs) = (part(&one, RANKS * count), part(&other, RANKS * count));
    let op = ReduceOp::Sum;
    let call = match kind {
        "all_reduce" => Call::AllReduce { input, output, op },
        "broadcast" => Call::Broadcast { tensor: input, root },
        "reduce" => Call::Reduce { input, output: (rank == root).then_some(output), op, root },
        "all_gather" => Call::AllGather { input, outputs: Parts::Whole(outputs) },
        "reduce_scatter" => Call::ReduceScatter { inputs: Parts::Whole(inputs), output, op },
        "all_to_all" => Call::AllToAll { inputs: Parts::Whole(inputs), outputs: Parts::Whole(outputs) },
        _ => Call::Barrier { device: Device::Cuda(rank as u32) },
    };
    let ended = start(group, &call).and_then(|work| work.wait(Some(FAR)).map(|_| ()));
    // Nothing uses the memory any more when it is freed.
    one.read();
    ended
}

#[test]
fn ranks_of_which_one_has_no_elements_for_a_call_are_told_that_they_differ_and_do_not_wait() {
    for (empty, few) in KINDS[..6].iter().map(|kind| (*kind, *kind)).chain([
        ("all_reduce", "barrier"),
        ("all_reduce", "all_gather"),
        ("broadcast", "all_reduce"),
    ]) {
        // Whether it is one that has nothing, or all others.
        for alone in [0, 5] {
            let told = with_stores(RANKS, |store, rank| {
                let group = group(store, rank, "world");
                make(&group, "all_reduce", 5).unwrap();
                let (kind, count) = if (rank == 0) == (alone == 0) { (empty, 0) } else { (few, 5) };
                match make(&group, kind, count) {
                    Err(Error::Mismatch { sequence: 2, ranks, calls, .. }) => {
                        assert!(ranks.0 != ranks.1 && (ranks.0 == 0 || ranks.1 == 0), "{ranks:?}");
                        format!("{} | {}", calls.0, calls.1)
                    }
                    other => panic!("{empty} of nothing, {few} of {alone} on rank 0: {other:?}"),
                }
            });
            let is_said = |text: &String| text.contains(&format!("{empty} ")) && text.contains("of 0 ");
            assert!(told.iter().any(is_said), "{empty}: {told:?}");
        }
    }
}

#[test]
fn calls_for_which_no_rank_has_elements_are_the_meshs_as_all_others() {
    let usages = with_stores(RANKS, |store, rank| {
        let group = group(store, rank, "world");
        for _ in 0..2 {
            for kind in KINDS {
                make(&group, kind, 0).unwrap();
                make(&group, kind, 3).unwrap();
            }
        }
        let usage = group.usage(DeviceType::Cuda);
        group.shutdown().unwrap();
        usage
    });
    let expected = Usage { own: 4 * KINDS.len() as u64, fallback: 0 };
    assert_eq!(usages, [Some(expected); RANKS]);
}

#[test]
fn ranks_that_reduce_nothing_of_different_types_or_by_different_operations_are_told() {
    for (dtypes, ops) in
        [([DType::F32, DType::Bf16], [ReduceOp::Sum; 2]), ([DType::F32; 2], [ReduceOp::Sum, ReduceOp::Max])]
    {
        with_stores(RANKS, |store, rank| {
            let group = group(store, rank, "world");
            make(&group, "barrier", 0).unwrap();
            let which = usize::from(rank == 1);
            let (dtype, device) = (dtypes[which], Device::Cuda(rank as u32));
            let tensor = Tensor { address: 0, count: 0, dtype, device };
            let call = Call::AllReduce { input: tensor, output: tensor, op: ops[which] };
            let ended = start(&group, &call).and_then(|work| work.wait(Some(FAR)).map(|_| ()));
            assert!(matches!(ended, Err(Error::Mismatch { .. })), "{ended:?}");
        });
    }
}

/// A broadcast of what rank 1 has, `i32` there and `f32` elsewhere.
fn broadcast_of_two_types(check_calls: bool) -> Vec<Result<f32, Error>> {
    with_stores(RANKS, |store, rank| {
        let group = ProcessGroup::builder(store, rank, RANKS)
            .backend("cuda:mesh".parse().unwrap())
            .cuda_device(rank as u32)
            .timeout(FAR)
            .deadline(Some(FAR))
            .check_calls(check_calls)
            .dump_to(None)
            .build()
            .unwrap();
        let numbers = Numbers::new(rank, 4, rank as f32);
        let dtype = if rank == 1 { DType::I32 } else { DType::F32 };
        let call = Call::Broadcast { tensor: Tensor { dtype, ..numbers.tensor() }, root: 1 };
        start(&group, &call)?.wait(Some(FAR))?;
        group.shutdown().unwrap();
        Ok(numbers.read()[3])
    })
}

#[test]
fn what_only_moves_may_have_two_types_of_one_size_unless_calls_are_checked() {
    for moved in broadcast_of_two_types(false) {
        assert_eq!(moved.unwrap(), 1.0);
    }
    for refused in broadcast_of_two_types(true) {
        match refused {
            Err(Error::Mismatch { ranks: (0, 1), calls, .. }) => {
                assert!(calls.0.contains("of 4 f32") && calls.1.contains("of 4 i32"), "{calls:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A store that stops before its n-th use of a backend's keys, until it is told to go on.
struct Stops {
    store: Arc<dyn Store>,
    left: AtomicUsize,
    reached: Mutex<Sender<()>>,
    goes_on: Mutex<Receiver<()>>,
}

impl Stops {
    fn look(&self, key: &str) {
        if key.contains("backend/") && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.reached.lock().unwrap().send(()).unwrap();
            self.goes_on.lock().unwrap().recv().unwrap();
        }
    }
}

impl Store for Stops {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.look(key);
        self.store.set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.look(key);
        self.store.get(key, timeout)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.look(keys[0]);
        self.store.check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.look(keys[0]);
        self.store.wait(keys, timeout)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.look(key);
        self.store.add(key, delta)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.look(key);
        self.store.compare_set(key, expected, desired)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.look(key);
        self.store.delete(key)
    }
}

/// Aborts rank 0 before its `n`th use of the store while the mesh is made. What is left then; `None`: the mesh was made before that.
fn left_by_an_abort(connect: &(impl Fn() -> Arc<dyn Store> + Sync), n: usize) -> Option<Vec<String>> {
    let ((reached, is_reached), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
    let (reached, goes_on) = (Mutex::new(reached), Mutex::new(goes_on));
    let stops = Stops { store: connect(), left: AtomicUsize::new(n), reached, goes_on };
    let aborted = std::thread::scope(|scope| {
        let ended = |rank: usize| {
            let group = group(connect(), rank, "world");
            // Whoever has made it all the same hears of the abort at the end.
            group.connect(DeviceType::Cuda).and_then(|()| group.shutdown())
        };
        let others = [1, 2].map(|rank| scope.spawn(move || ended(rank)));
        let group = group(Arc::new(stops), 0, "world");
        let making = scope.spawn({
            let group = group.clone();
            move || group.connect(DeviceType::Cuda)
        });
        let aborted = loop {
            match is_reached.recv_timeout(Duration::from_millis(5)) {
                Ok(()) => {
                    group.abort("on purpose");
                    go_on.send(()).unwrap();
                    break true;
                }
                Err(_) if making.is_finished() => break false,
                Err(_) => {}
            }
        };
        let made = making.join().unwrap();
        match (aborted, made) {
            (false, made) => made.and_then(|()| group.shutdown()).unwrap(),
            (true, Err(error)) => assert!(error.to_string().contains("on purpose"), "{n}: {error}"),
            (true, Ok(())) => {}
        }
        drop(group);
        for other in others {
            let ended = other.join().unwrap();
            assert_eq!(ended.is_err(), aborted, "{n}: {ended:?}");
        }
        aborted
    });
    aborted.then(|| connect().list_keys().unwrap())
}

#[test]
fn a_rank_that_is_aborted_anywhere_while_a_mesh_is_made_leaves_no_keys() {
    let _alone = alone();
    open();
    let memory = MemoryStore::new();
    let host = TcpStore::host("127.0.0.1:0").unwrap();
    let address = host.local_addr().to_string();
    let over_tcp = || Arc::new(TcpStore::connect(&address, FAR).unwrap()) as Arc<dyn Store>;
    // Looks that ranks repeat while they wait for one another are uses too: fewer of the later ones.
    let uses = std::iter::successors(Some(2), |n| Some(2 * n + 1));
    for (turn, n) in uses.enumerate() {
        let left = match turn % 3 {
            2 => left_by_an_abort(&over_tcp, n),
            _ => left_by_an_abort(&|| Arc::new(memory.clone()) as _, n),
        };
        match left {
            Some(left) => assert_eq!(left, Vec::<String>::new(), "before use {n}"),
            None => return assert!(n > 10, "{n}"),
        }
    }
}
