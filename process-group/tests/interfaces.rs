//! The network interface by which the ranks of `host` reach one another between hosts. Ranks are threads, each on a host of its own.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_process_group::host::NoInterface;
use meshreduce_process_group::store::{MemoryStore, Store as _};
use meshreduce_process_group::{Device, Error, HostFactory, ProcessGroup, ReduceOp, Registry};

/// Longer than any of these tests may take.
const FAR: Duration = Duration::from_secs(60);

fn group(store: &Arc<MemoryStore>, rank: usize, interface: &str) -> ProcessGroup {
    let mut registry = Registry::empty();
    registry.register(HostFactory::new().host_id(format!("host {rank}")).interface(interface)).unwrap();
    ProcessGroup::builder(Arc::clone(store) as _, rank, 2)
        .registry(registry)
        .backend("cpu:host".parse().unwrap())
        .timeout(FAR)
        .deadline(Some(FAR))
        .dump_to(None)
        .build()
        .unwrap()
}

#[test]
fn hosts_reach_one_another_by_the_one_that_is_named() {
    let store = Arc::<MemoryStore>::default();
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let store = &store;
            scope.spawn(move || {
                let group = group(store, rank, "lo");
                let mut data = [rank as f32 + 1.0; 1000];
                group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
                assert_eq!(data, [3.0; 1000]);
                group.shutdown().unwrap();
            });
        }
    });
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn one_that_is_not_there_is_named_with_those_that_are_before_anybody_is_waited_for() {
    let store = Arc::<MemoryStore>::default();
    // The other rank never comes.
    let (group, begun) = (group(&store, 0, "lo, nowhere0"), Instant::now());
    let error = group.barrier(Device::Cpu).unwrap_err();
    let Error::NotMade { backend, source, .. } = &error else { panic!("{error:?}") };
    let missing: &NoInterface = source.downcast_ref().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!((&**backend, &*missing.name), ("host", "nowhere0"));
    assert!(
        missing.known.iter().any(|name| name == "lo") && error.to_string().contains("nowhere0"),
        "{error}"
    );
    assert!(begun.elapsed() < FAR / 2, "{:?}", begun.elapsed());
    drop(group);
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}
