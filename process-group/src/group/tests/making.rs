//! How the making of a backend ends that not all ranks come to.

use super::ends::{SHORT, until};
use super::*;

/// A backend that is made when all ranks have met.
struct Meets(Mutex<std::sync::mpsc::Sender<()>>);

impl BackendFactory for Meets {
    fn name(&self) -> &str {
        "meets"
    }

    fn devices(&self) -> &[DeviceType] {
        &DeviceType::ALL
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        let name = self.name().into();
        self.0.lock().unwrap().send(()).unwrap();
        context.until_end().meet(&name, &[])?;
        Err(context.not_made(&name, "all have met"))
    }
}

#[test]
fn an_abort_ends_the_making_of_a_backend_and_others_wait_for_it_no_longer_than_their_calls_may() {
    let (making, is_made) = std::sync::mpsc::channel();
    let mut registry = Registry::empty();
    registry.register(Meets(Mutex::new(making))).unwrap();
    let group = ProcessGroup::builder(Arc::<MemoryStore>::default(), 0, 2)
        .backend("cpu:meets".parse().unwrap())
        .registry(registry)
        .timeout(Duration::from_secs(3600))
        .dump_to(None)
        .build()
        .unwrap();
    std::thread::scope(|scope| {
        let connects = scope.spawn(|| group.connect(DeviceType::Cpu).unwrap_err());
        is_made.recv().unwrap();
        let error = group.with_deadline(SHORT).barrier(Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("another thread is still at it"), "{error}");
        let waits = scope.spawn(|| group.barrier(Device::Cpu).unwrap_err());
        group.abort("nobody comes");
        for error in [connects.join().unwrap(), waits.join().unwrap()] {
            assert_eq!(error.to_string(), "group world was aborted: nobody comes");
        }
    });
}

#[test]
fn a_rank_that_is_aborted_before_its_backend_is_made_ends_the_making_on_the_others() {
    let store = Arc::<MemoryStore>::default();
    let group = |rank: usize| {
        ProcessGroup::builder(Arc::clone(&store) as _, rank, 3)
            .timeout(Duration::from_secs(3600))
            .deadline(None)
            .dump_to(None)
            .build()
            .unwrap()
    };
    let (before, after, other) = (group(0), group(1), group(2));
    let named = |error: Error| {
        assert_eq!(error.to_string(), "group world was aborted: rank 2: out of memory");
    };
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| before.barrier(Device::Cpu).unwrap_err());
        until(|| before.made(DeviceType::Cpu).is_some());
        other.abort("out of memory");
        named(waits.join().unwrap());
    });
    // One that comes later hears it too, and of the first that was aborted alone.
    after.abort("it heard of that elsewhere");
    named(group(1).barrier(Device::Cpu).unwrap_err());
    drop((before, after, other));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    // Nor does anybody wait for it to split the group.
    let (here, other) = (group(0), group(2));
    other.abort("out of memory");
    named(here.split(Some(0), 0, &GroupOptions::default()).unwrap_err());
}

#[test]
fn an_abort_is_heard_of_a_rank_that_has_left_since_and_does_not_end_the_next_group_over_the_same_keys() {
    let store = Arc::<MemoryStore>::default();
    let group = |rank: usize| {
        ProcessGroup::builder(Arc::clone(&store) as _, rank, 2)
            .timeout(LONG)
            .deadline(Some(LONG))
            .dump_to(None)
            .build()
            .unwrap()
    };
    let (old, gone) = (group(0), group(1));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| old.barrier(Device::Cpu).unwrap_err());
        until(|| old.made(DeviceType::Cpu).is_some());
        gone.abort("of the past");
        drop(gone);
        assert_eq!(waits.join().unwrap().to_string(), "group world was aborted: rank 1: of the past");
    });
    drop(old);
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    // One whose ranks were killed leaves it behind.
    let killed = group(1);
    killed.abort("of the past");
    until(|| store.check(&["aborted"]).unwrap());
    let told = store.get("aborted", LONG).unwrap();
    drop(killed);
    store.set("aborted", &told).unwrap();
    let ended = ranks(2, |rank| {
        let group = group(rank);
        group.barrier(Device::Cpu)?;
        group.shutdown()
    });
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

/// A group over the backend `host`.
fn on_host(store: &Arc<MemoryStore>, rank: usize, world_size: usize, timeout: Duration) -> ProcessGroup {
    ProcessGroup::builder(Arc::clone(store) as _, rank, world_size)
        .backend("cpu:host".parse().unwrap())
        .timeout(timeout)
        .dump_to(None)
        .build()
        .unwrap()
}

#[test]
fn who_connects_on_host_waits_for_all_ranks_and_hears_who_did_not_come() {
    let store = Arc::<MemoryStore>::default();
    let has_come = std::sync::atomic::AtomicBool::new(false);
    let ended = ranks(2, |rank| {
        let group = on_host(&store, rank, 2, LONG);
        if rank == 1 {
            std::thread::sleep(Duration::from_millis(200));
            has_come.store(true, SeqCst);
        }
        group.connect(DeviceType::Cpu)?;
        assert!(has_come.load(SeqCst), "rank 0 does not wait");
        group.shutdown()
    });
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    let begun = Instant::now();
    let error = on_host(&store, 0, 2, Duration::from_secs(1)).connect(DeviceType::Cpu).unwrap_err();
    assert!(matches!(error, Error::NotMade { .. }), "{error}");
    assert!(error.to_string().contains("rank 1 did not come"), "{error}");
    assert!(begun.elapsed() < LONG / 2);
    // An abort ends it.
    let group = on_host(&store, 0, 2, LONG);
    std::thread::scope(|scope| {
        let connects = scope.spawn(|| group.connect(DeviceType::Cpu).unwrap_err());
        until(|| group.made(DeviceType::Cpu).is_some());
        group.abort("nobody comes");
        assert_eq!(connects.join().unwrap().to_string(), "group world was aborted: nobody comes");
    });
}

#[test]
fn a_call_that_is_late_before_the_ranks_of_host_have_met_names_who_has_not_come() {
    let store = Arc::<MemoryStore>::default();
    let (here, other) = (on_host(&store, 0, 3, LONG), on_host(&store, 1, 3, LONG));
    // It comes, and waits for no end.
    let call = Call::Barrier { device: Device::Cpu };
    // SAFETY: a barrier has no tensors.
    let works = [&here, &other].map(|group| unsafe { group.with_deadline(None).start(&call) }.unwrap());
    let error = here.with_deadline(Some(Duration::from_millis(300))).barrier(Device::Cpu).unwrap_err();
    assert!(matches!(&error, Error::Timeout { sequence: 2, missing, .. } if *missing == [2]), "{error}");
    drop(works);
}

/// What a rank tells that is this process, or one on this host with another number.
fn progress_of(pid: u32) -> Vec<u8> {
    let own = meshreduce_store::identity::Member::current().unwrap();
    let process = meshreduce_store::identity::Process { pid, ..own.process };
    let mut told = meshreduce_store::codec::Writer::new();
    told.u64(0);
    told.u8(0);
    told.u64(1);
    meshreduce_store::identity::Member { process, ..own }.write(&mut told);
    told.into_bytes()
}

#[test]
fn a_part_is_made_no_longer_when_the_group_that_it_is_of_has_seen_a_member_die() {
    let (making, is_made) = std::sync::mpsc::channel();
    let (mut registry, notes) = registry();
    registry.register(Meets(Mutex::new(making))).unwrap();
    let group = ProcessGroup::builder(Arc::<MemoryStore>::default(), 0, 4)
        .backend("cpu:open".parse().unwrap())
        .registry(registry)
        .timeout(Duration::from_secs(3600))
        .dump_to(None)
        .build()
        .unwrap();
    let options = GroupOptions::default().backend("cpu:meets".parse().unwrap());
    let part = |ranks: &[usize]| group.new_group(ranks, &options).unwrap().member().unwrap();
    let (with, without) = (part(&[0, 2]), part(&[0, 1, 3]));
    let work = start(&group.with_deadline(None), &mut [0.0]).unwrap();
    let parent = Arc::downgrade(&group.shared);
    let dead = |part: &ProcessGroup| crate::group::parents::dead_member(&part.shared.info, &parent);
    std::thread::scope(|scope| {
        let connects = scope.spawn(|| with.connect(DeviceType::Cpu).unwrap_err());
        is_made.recv().unwrap();
        let died = Error::RankDied { rank: 2, group: "world".into(), how: "it is gone".to_owned() };
        notes.pending.lock().unwrap()[0].end(Err(died));
        until(|| group.made(DeviceType::Cpu).unwrap().error().is_some());
        // It may only have left this group.
        assert!(dead(&with).is_none());
        group.shared.store.set("progress/2", &progress_of(i32::MAX as u32)).unwrap();
        let error = connects.join().unwrap();
        let is_named = matches!(&error, Error::RankDied { rank: 1, group, .. } if **group == *with.name());
        assert!(is_named, "{error}");
    });
    assert!(dead(&without).is_none(), "it has no such member");
    // A process that is being killed closes its sockets before it looks dead: nobody is left here to take away what it has told.
    let of_part = Arc::clone(&with.shared.store);
    of_part.set("progress/1", &progress_of(std::process::id())).unwrap();
    with.abort("a member has died");
    drop(with);
    assert_eq!(of_part.list_keys().unwrap(), Vec::<String>::new());
    drop(work);
}
