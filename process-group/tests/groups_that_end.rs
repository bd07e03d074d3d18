//! How groups over the backend `host` end, and what of it other ranks and other threads see. Ranks are threads.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use meshreduce_process_group::store::{MemoryStore, Store, TcpStore};
use meshreduce_process_group::{
    Builder, Device, Error, GroupOptions, HostFactory, ProcessGroup, ReduceOp, Registry,
};

/// Longer than any of these tests may take.
const FAR: Duration = Duration::from_secs(60);

/// Rank `rank` on a host of its own, if `apart`.
fn builder(store: &Arc<MemoryStore>, rank: usize, world_size: usize, apart: bool) -> Builder {
    builder_over(Arc::clone(store) as _, rank, world_size, apart)
}

fn builder_over(store: Arc<dyn Store>, rank: usize, world_size: usize, apart: bool) -> Builder {
    let factory = HostFactory::new();
    let mut registry = Registry::empty();
    registry.register(if apart { factory.host_id(format!("host {rank}")) } else { factory }).unwrap();
    ProcessGroup::builder(store, rank, world_size)
        .registry(registry)
        .backend("cpu:host".parse().unwrap())
        .timeout(FAR)
        .deadline(Some(FAR))
        .dump_to(None)
}

fn on_ranks(world_size: usize, body: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for rank in 0..world_size {
            let body = &body;
            scope.spawn(move || body(rank));
        }
    });
}

#[test]
fn a_rank_that_has_done_its_part_and_drops_its_group_does_not_end_the_call_for_others() {
    for apart in [false, true] {
        let store = Arc::default();
        let (gone, is_gone) = mpsc::channel();
        let (gone, is_gone) = (std::sync::Mutex::new(gone), std::sync::Mutex::new(is_gone));
        on_ranks(2, |rank| {
            let group = builder(&store, rank, 2, apart).build().unwrap();
            group.barrier(Device::Cpu).unwrap();
            let mut data = [rank as f32; 4];
            if rank == 1 {
                group.broadcast(&mut data, 1).unwrap();
                drop(group);
                return gone.lock().unwrap().send(()).unwrap();
            }
            is_gone.lock().unwrap().recv_timeout(FAR).unwrap();
            group.broadcast(&mut data, 1).unwrap();
            assert_eq!(data, [1.0; 4]);
            let error = group.barrier(Device::Cpu).unwrap_err();
            assert!(matches!(error, Error::RankDied { rank: 1, .. }), "{error}");
        });
    }
}

#[test]
fn a_rank_that_fails_does_not_keep_those_who_shut_down_waiting_and_they_are_told() {
    for apart in [false, true] {
        let store = Arc::default();
        on_ranks(2, |rank| {
            let group = builder(&store, rank, 2, apart).build().unwrap();
            if rank == 0 {
                // Sent at once, since it is short: this rank is done with it.
                group.send(&[1.0_f32; 4], 1, 0).unwrap();
                // Whether it hears of the failure before or after it has come to the end is a matter of time: it hears of it.
                let ended = group.shutdown();
                assert!(matches!(ended, Err(Error::Mismatch { .. })), "{ended:?}");
            } else {
                let error = group.recv(&mut [0.0_f32; 5], 0, 0).unwrap_err();
                assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            }
        });
    }
}

#[test]
fn a_wait_that_ends_early_says_so_and_the_call_ends_well_when_the_others_come() {
    for apart in [false, true] {
        let (store, waited) = (Arc::default(), std::sync::Barrier::new(2));
        on_ranks(2, |rank| {
            let group = builder(&store, rank, 2, apart).build().unwrap();
            group.barrier(Device::Cpu).unwrap();
            let sum = || group.all_reduce_owned(vec![rank as f32 + 1.0; 1000], ReduceOp::Sum).unwrap();
            let (data, result) = match rank {
                0 => {
                    let early = Duration::from_millis(20);
                    let pending = sum();
                    let error = pending.work().wait(Some(early)).unwrap_err();
                    assert!(
                        matches!(error, Error::StillRunning { waited, .. } if waited >= early),
                        "{error}"
                    );
                    assert!(error.to_string().contains("it goes on") && group.error().is_none(), "{error}");
                    let pending = pending.wait_for(early).unwrap_err();
                    waited.wait();
                    pending.wait()
                }
                _ => {
                    waited.wait();
                    sum().wait()
                }
            };
            result.unwrap();
            assert_eq!(data, [3.0; 1000]);
            group.shutdown().unwrap();
        });
    }
}

#[test]
fn ranks_that_each_broadcast_last_hear_of_it_at_the_end() {
    let store = Arc::default();
    on_ranks(2, |rank| {
        let group = builder(&store, rank, 2, false).build().unwrap();
        // Each only writes, and is done.
        group.broadcast(&mut [1.0_f32; 4], rank).unwrap();
        let error = group.shutdown().unwrap_err();
        assert!(matches!(error, Error::Mismatch { sequence: 1, .. }), "{error}");
    });
}

fn abort_while_it_shuts_down(group: &ProcessGroup) {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| group.shutdown());
        while group.error().is_none() {
            std::thread::yield_now();
        }
        group.abort("it takes too long");
        assert!(waiting.join().unwrap().unwrap_err().to_string().contains("too long"));
    });
}

#[test]
fn an_abort_ends_a_shutdown_that_waits() {
    for pends in [true, false] {
        shut_down_alone(pends);
    }
}

/// Rank 0 shuts down, which rank 1 never does; with a receive that goes on if `pends`.
fn shut_down_alone(pends: bool) {
    let store = Arc::default();
    let (down, is_down) = mpsc::channel();
    let (down, is_down) = (std::sync::Mutex::new(down), std::sync::Mutex::new(is_down));
    on_ranks(2, |rank| {
        let group = builder(&store, rank, 2, false).deadline(None).build().unwrap();
        group.barrier(Device::Cpu).unwrap();
        if rank == 1 {
            return is_down.lock().unwrap().recv_timeout(FAR).unwrap();
        }
        if pends {
            // Nobody sends: it is waited for first.
            let pending = group.recv_owned(vec![0_u8], Some(1), 0).unwrap();
            abort_while_it_shuts_down(&group);
            assert!(pending.wait().1.unwrap_err().to_string().contains("too long"));
        } else {
            abort_while_it_shuts_down(&group);
        }
        down.lock().unwrap().send(()).unwrap();
    });
}

#[test]
fn what_waits_for_ranks_that_never_come_ends_with_an_abort() {
    let group = builder(&Arc::default(), 0, 2, false).build().unwrap();
    let collective = group.all_reduce_owned(vec![1.0_f32], ReduceOp::Sum).unwrap();
    let message = group.recv_owned(vec![1.0_f32], Some(1), 0).unwrap();
    group.abort("nobody comes");
    for error in [collective.wait().1.unwrap_err(), message.wait().1.unwrap_err()] {
        assert_eq!(error.to_string(), "group world was aborted: nobody comes");
    }
}

#[test]
fn what_waits_for_ranks_that_never_come_ends_with_its_deadline() {
    let short = Some(Duration::from_millis(20));
    let group = || builder(&Arc::default(), 0, 2, false).deadline(short).build().unwrap();
    let message = group().recv_owned(vec![1.0_f32], Some(1), 0).unwrap().wait().1.unwrap_err();
    let collective = group().all_reduce_owned(vec![1.0_f32], ReduceOp::Sum).unwrap().wait().1.unwrap_err();
    let blocking = group().all_reduce(&mut [1.0_f32], ReduceOp::Sum).unwrap_err();
    // Whether the call or the making of the backend is late first is a matter of time.
    for error in [message, collective, blocking] {
        let is_late = matches!(error, Error::Timeout { .. } | Error::NotMade { .. } | Error::Aborted { .. });
        assert!(is_late, "{error}");
    }
}

#[test]
fn groups_of_other_ranks_may_have_the_same_name() {
    let store = Arc::default();
    on_ranks(4, |rank| {
        let group = builder(&store, rank, 4, false).build().unwrap();
        let named = GroupOptions::default().name("pair");
        let sum = |group: &ProcessGroup| {
            let mut data = [rank as i64];
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            data[0]
        };
        let split = group.split(Some(rank as u32 % 2), 0, &named).unwrap().member().unwrap();
        assert_eq!((split.name(), sum(&split)), ("world/pair", [2, 4][rank % 2]));
        let ranks = [rank / 2 * 2, rank / 2 * 2 + 1];
        let new = group.new_group(&ranks, &named).unwrap().member().unwrap();
        assert_eq!((new.name(), sum(&new)), ("world/pair", [1, 5][rank / 2]));
        // However names are put together.
        let inner = new.new_group(&[0, 1], &GroupOptions::default().name("x")).unwrap().member().unwrap();
        let outer = GroupOptions::default().name("pair/group/x");
        let outer = group.new_group(&ranks, &outer).unwrap().member().unwrap();
        let both = if rank % 2 == 0 { [&inner, &outer] } else { [&outer, &inner] };
        // Each rank begins with another one, and they are not taken for one another.
        let begun = both.map(|group| group.all_reduce_owned(vec![rank as i64], ReduceOp::Sum).unwrap());
        begun.into_iter().for_each(|call| {
            let (data, ended) = call.wait();
            ended.unwrap();
            assert_eq!(data, [[1, 5][rank / 2]]);
        });
        for group in [inner, outer, new, split, group] {
            group.shutdown().unwrap();
        }
    });
}

/// The states of the threads of this process with that name, as the system has them: `S` for one that sleeps.
fn states(name: &str) -> Vec<char> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let state = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (start, rest) = text.rsplit_once(") ")?;
        start.ends_with(&format!("({name}")).then(|| rest.chars().next())?
    };
    tasks.filter_map(state).collect()
}

#[test]
fn a_rank_that_was_shut_down_sleeps_until_it_is_dropped() {
    // No other test has so many ranks, and so a thread of this name.
    const RANKS: usize = 9;
    let (store, barrier) = (Arc::default(), std::sync::Barrier::new(RANKS));
    on_ranks(RANKS, |rank| {
        let group = builder(&store, rank, RANKS, false).build().unwrap();
        group.barrier(Device::Cpu).unwrap();
        if rank == RANKS - 1 {
            std::thread::scope(|scope| {
                scope.spawn(|| group.shutdown().unwrap());
                while group.error().is_none() {
                    std::thread::yield_now();
                }
                // It is the first to be down.
                std::thread::sleep(Duration::from_millis(50));
                barrier.wait();
            });
            let begun = std::time::Instant::now();
            let mut sleeps = 0;
            while sleeps < 20 {
                assert!(begun.elapsed() < FAR, "it never sleeps");
                sleeps = if states("host-8") == ['S'] { sleeps + 1 } else { 0 };
                std::thread::sleep(Duration::from_millis(1));
            }
        } else {
            barrier.wait();
            group.shutdown().unwrap();
        }
        barrier.wait();
    });
}

#[test]
fn a_store_that_goes_away_first_ends_no_call_and_is_a_typed_error_for_what_needs_it() {
    for apart in [false, true] {
        let host = Mutex::new(Some(TcpStore::host("127.0.0.1:0").unwrap()));
        let address = host.lock().unwrap().as_ref().unwrap().local_addr();
        let all = std::sync::Barrier::new(2);
        on_ranks(2, |rank| {
            let store = Arc::new(TcpStore::connect(address, FAR).unwrap());
            let group = builder_over(store, rank, 2, apart).build().unwrap();
            group.barrier(Device::Cpu).unwrap();
            all.wait();
            if rank == 0 {
                // Its host ends while both are connected.
                assert!(host.lock().unwrap().take().unwrap().close(Duration::ZERO) >= 2);
            }
            all.wait();
            let begun = Instant::now();
            let mut data = [1.0_f32; 4];
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            assert_eq!(data, [2.0; 4]);
            let part = group.new_group(&[0, 1], &GroupOptions::default()).unwrap().member().unwrap();
            let error = part.barrier(Device::Cpu).unwrap_err();
            assert!(matches!(error, Error::NotMade { .. } | Error::Store { .. }), "{error:?}");
            assert!(error.to_string().contains(&format!("the store {address} is lost")), "{error}");
            let error = group.monitored_barrier(FAR).unwrap_err();
            assert!(matches!(error, Error::Store { .. }), "{error:?}");
            group.shutdown().unwrap();
            // Nobody waits for what cannot come.
            assert!(begun.elapsed() < FAR / 2, "{:?}", begun.elapsed());
        });
    }
}
