//! A backend of somebody else's, registered at run time: `through-store` makes broadcasts, barriers and all-reduces of f32 in host
//! memory through the group's store. It is slow, and whole: it waits as long as a call may take, is aborted, and leaves no keys.
//!
//! `cargo xtask consumer` builds and runs this outside of the workspace.

mod through_store;

use std::sync::Arc;
use std::time::Duration;

use meshreduce_process_group::store::{MemoryStore, Store};
use meshreduce_process_group::{Device, Error, ProcessGroup, ReduceOp, Registry};

const RANKS: usize = 3;

fn main() {
    let store = Arc::new(MemoryStore::new());
    std::thread::scope(|scope| {
        for rank in 0..RANKS {
            let store = Arc::clone(&store);
            scope.spawn(move || rank_of(store, rank).unwrap_or_else(|error| panic!("rank {rank}: {error}")));
        }
    });
    assert!(store.list_keys().expect("the store").is_empty(), "keys were left behind");
    println!("a backend from outside serves a group of {RANKS}");
}

fn rank_of(store: Arc<MemoryStore>, rank: usize) -> Result<(), Error> {
    let mut registry = Registry::default();
    registry.register(through_store::Factory)?;
    let group = ProcessGroup::builder(store, rank, RANKS)
        .registry(registry)
        .backend("cpu:through-store".parse()?)
        .deadline(Some(Duration::from_secs(60)))
        .build()?;

    let mut data = [rank as f32, 1.0];
    group.all_reduce(&mut data, ReduceOp::Sum)?;
    assert_eq!(data, [3.0, 3.0]);
    group.broadcast(&mut data[..1], 2)?;
    group.barrier(Device::Cpu)?;

    // What it lacks is refused in the group's words, before anything is sent.
    let refused = group.all_reduce(&mut [0_i64; 2], ReduceOp::Sum).expect_err("it has no i64");
    let text = "backend through-store does not support all_reduce (sum) of i64 (group world, device cpu): it is for f32";
    assert_eq!(refused.to_string(), text);
    group.shutdown()
}
