//! Hundreds of groups on `host` that are made and closed in any order leave nothing behind. Alone in its program: it counts what the process
//! has.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_process_group::store::{MemoryStore, Store as _};
use meshreduce_process_group::{GroupOptions, HostFactory, ProcessGroup, ReduceOp, Registry};

const FAR: Duration = Duration::from_secs(60);
const GROUPS: usize = 300;

/// Descriptors, threads, and mapped files of memory that the process has.
fn holdings() -> [usize; 3] {
    let entries = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    [entries("/proc/self/fd"), entries("/proc/self/task"), maps.matches("memfd").count()]
}

/// Two ranks, on a host of their own each if `apart`: after a few groups, and after hundreds, what the process has while the group that they
/// are made from is still there.
fn make_and_close(apart: bool) -> [[usize; 3]; 2] {
    let store = Arc::<MemoryStore>::default();
    let barrier = std::sync::Barrier::new(2);
    let counted = std::thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| {
            let (store, barrier) = (&store, &barrier);
            scope.spawn(move || {
                let factory = HostFactory::new();
                let mut registry = Registry::empty();
                registry
                    .register(if apart { factory.host_id(format!("host {rank}")) } else { factory })
                    .unwrap();
                let group = ProcessGroup::builder(Arc::clone(store) as _, rank, 2)
                    .registry(registry)
                    .backend("cpu:host".parse().unwrap())
                    .timeout(FAR)
                    .deadline(Some(FAR))
                    .dump_to(None)
                    .build()
                    .unwrap();
                let use_it = |group: &ProcessGroup| {
                    let mut data = [rank as f32 + 1.0; 100];
                    group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
                    assert_eq!(data, [3.0; 100]);
                };
                use_it(&group);
                let mut counted = [[0; 3]; 2];
                for (count, counted) in [10, GROUPS].into_iter().zip(&mut counted) {
                    let mut open = Vec::new();
                    for number in 0..count {
                        let part =
                            group.new_group(&[0, 1], &GroupOptions::default()).unwrap().member().unwrap();
                        use_it(&part);
                        open.push(part);
                        // Some live for long, and end in another order than they were made in.
                        if number % 3 != 0 {
                            open.swap_remove(number % open.len()).shutdown().unwrap();
                        }
                        // Each has threads and descriptors, of which a process may have a thousand.
                        if open.len() > 16 {
                            open.drain(..8).for_each(|part| part.shutdown().unwrap());
                        }
                    }
                    open.into_iter().rev().for_each(|part| part.shutdown().unwrap());
                    barrier.wait();
                    // By one of them: who counts has a descriptor.
                    if rank == 0 {
                        *counted = settled();
                    }
                    barrier.wait();
                }
                use_it(&group);
                group.shutdown().unwrap();
                counted
            })
        });
        ranks.map(|rank| rank.join().unwrap())[0]
    });
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    counted
}

/// What the process has when what ends has ended: nothing is less for a while.
fn settled() -> [usize; 3] {
    let limit = Instant::now() + FAR;
    let (mut least, mut since) = (holdings(), Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < limit);
        std::thread::sleep(Duration::from_millis(10));
        let now = holdings();
        if now.iter().zip(&least).any(|(now, least)| now < least) {
            (least, since) = (now, Instant::now());
        }
    }
    least
}

#[test]
fn they_leave_no_descriptor_thread_or_memory_behind_and_no_key() {
    for apart in [false, true] {
        let [few, many] = make_and_close(apart);
        assert_eq!(
            few, many,
            "descriptors, threads, mapped memory after 10 and {GROUPS} groups, apart: {apart}"
        );
    }
}
