//! Groups of host memory at the ends of what their arguments allow. Ranks are threads.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::Arc;
use std::time::Duration;

use meshreduce_process_group::store::{MemoryStore, PrefixStore, Store};
use meshreduce_process_group::{
    Builder, CallError, Device, Error, GroupOptions, Membership, ProcessGroup, ReduceOp, Work,
};

/// Longer than any of these tests may take.
const FAR: Duration = Duration::from_secs(60);

fn builder(store: &Arc<MemoryStore>, rank: usize, world_size: usize) -> Builder {
    ProcessGroup::builder(Arc::clone(store) as _, rank, world_size)
        .backend("cpu:host".parse().unwrap())
        .timeout(FAR)
        .deadline(Some(FAR))
        .dump_to(None)
}

fn on_ranks<T: Send>(world_size: usize, body: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let body = &body;
        let ranks: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || body(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Starts an all-reduce and leaves the end to whoever wants it; the buffer comes back with it.
fn begin(group: &ProcessGroup, data: &mut [f32]) -> Result<Work, Error> {
    use meshreduce_process_group::{BufferMut as _, Call};
    let tensor = data.tensor_mut();
    // SAFETY: the tests wait for the call, or for the end of the group, before they use the buffer or let it go.
    unsafe { group.start(&Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }) }
}

#[test]
fn deadlines_and_timeouts_may_be_as_long_as_a_duration_is() {
    for (timeout, deadline) in [(Duration::MAX, Some(Duration::MAX)), (Duration::MAX, None), (FAR, Some(FAR))]
    {
        let store = Arc::default();
        on_ranks(2, |rank| {
            let group = builder(&store, rank, 2).timeout(timeout).deadline(deadline).build().unwrap();
            let mut data = [rank as f32; 3];
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            assert_eq!(data, [1.0; 3]);
            let work = begin(&group, &mut data).unwrap();
            work.wait(Some(Duration::MAX)).unwrap();
            assert_eq!(data, [2.0; 3]);
            match rank {
                0 => group.send(&data, 1, 7).unwrap(),
                _ => assert_eq!(group.recv_any(&mut data, 7).unwrap(), 0),
            }
            group.monitored_barrier(Duration::MAX).unwrap();
            let part = group.split(Some(u32::MAX), [i64::MAX, i64::MIN][rank], &GroupOptions::default());
            let part = part.unwrap().member().unwrap();
            assert_eq!(part.ranks(), [1, 0]);
            part.with_deadline(Some(Duration::MAX)).barrier(Device::Cpu).unwrap();
            part.shutdown().unwrap();
            group.shutdown().unwrap();
        });
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_recorder_of_more_calls_than_can_be_kept_is_an_error() {
    for calls in [1_000_001, 1 << 40, usize::MAX] {
        let error = builder(&Arc::default(), 0, 1).recorded_calls(calls).build().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the flight recorder: {calls} calls cannot be kept: 1000000 are the most")
        );
    }
}

#[test]
fn a_deadline_of_nothing_is_a_timeout_at_once_and_never_a_hang() {
    for made_before in [false, true] {
        let store = Arc::default();
        on_ranks(2, |rank| {
            let group = builder(&store, rank, 2).build().unwrap();
            if made_before {
                group.barrier(Device::Cpu).unwrap();
            }
            if rank == 1 {
                return;
            }
            let hurried = group.with_deadline(Some(Duration::ZERO));
            let error = hurried.barrier(Device::Cpu).unwrap_err();
            let is_late = matches!(&error, Error::Timeout { .. } | Error::NotMade { .. });
            // The other rank may have left first.
            assert!(is_late || matches!(error, Error::RankDied { rank: 1, .. }), "{error}");
        });
    }
    let group = builder(&Arc::default(), 0, 2).build().unwrap();
    let error = group.monitored_barrier(Duration::ZERO).unwrap_err();
    assert!(matches!(&error, Error::NotAtBarrier { ranks, .. } if *ranks == [1]), "{error}");
}

#[test]
fn parts_of_parts_of_parts_are_groups_and_leave_nothing() {
    let store = Arc::default();
    on_ranks(8, |rank| {
        let world = builder(&store, rank, 8).build().unwrap();
        let mut groups = vec![world];
        // Halves, quarters, and single ranks: by splits and by names in turn.
        for level in 0..3 {
            let (group, options) = (groups.last().unwrap(), GroupOptions::default());
            let (place, half) = (group.rank(), group.world_size() / 2);
            let first = if place < half { 0 } else { half };
            let part = match level % 2 {
                0 => group.split(Some((place / half) as u32), 0, &options).unwrap(),
                _ => group.new_group(&(first..first + half).collect::<Vec<_>>(), &options).unwrap(),
            };
            groups.push(part.member().unwrap());
        }
        for (level, group) in groups.iter().enumerate().rev() {
            let size = 8 >> level;
            let mut data = [group.ranks()[group.rank()] as i64];
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            let first = rank / size * size;
            assert_eq!(data, [(first..first + size).sum::<usize>() as i64], "{}", group.name());
            assert_eq!(group.sequence_numbers(), (1, 0));
        }
        // From the outermost on, or the other way round.
        if rank < 4 {
            groups.reverse();
        }
        groups.iter().for_each(|group| group.shutdown().unwrap());
    });
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn who_has_no_color_is_in_no_group_also_if_nobody_has_one() {
    let store = Arc::default();
    on_ranks(3, |rank| {
        let group = builder(&store, rank, 3).build().unwrap();
        let none = group.split(None, 0, &GroupOptions::default()).unwrap();
        assert!(matches!(none, Membership::NotAMember { .. }), "{none:?}");
        let part = group.split((rank == 1).then_some(0), 5, &GroupOptions::default()).unwrap();
        match part {
            Membership::Member(part) => {
                assert_eq!((rank, part.rank(), part.world_size()), (1, 0, 1));
                part.barrier(Device::Cpu).unwrap();
                part.shutdown().unwrap();
            }
            Membership::NotAMember { .. } => assert_ne!(rank, 1),
        }
        group.barrier(Device::Cpu).unwrap();
        group.shutdown().unwrap();
    });
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn names_may_be_any_text_until_they_are_too_long_for_the_store() {
    let store = Arc::default();
    on_ranks(2, |rank| {
        let world = builder(&store, rank, 2).name("gr\u{f6}\u{df}e / 0:\n").build().unwrap();
        for name in ["", "/", "../..", "a/b", "0#1", "\u{1d50a}", "world", "split 1/0"] {
            let options = GroupOptions::default().name(name);
            let part = world.new_group(&[0, 1], &options).unwrap().member().unwrap();
            let mut data = [1_u8];
            part.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            assert_eq!(data, [2], "{name:?}");
            part.shutdown().unwrap();
        }
        let long = GroupOptions::default().name(&"n".repeat(5000));
        let error = world.new_group(&[0, 1], &long).unwrap_err();
        assert!(matches!(error, Error::Store { .. }), "{error}");
        // Down to where there is no room for a level more.
        let mut groups = vec![world];
        let error = loop {
            let options = GroupOptions::default().name(&"m".repeat(500));
            match groups.last().unwrap().new_group(&[0, 1], &options) {
                Ok(part) => groups.push(part.member().unwrap()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Store { .. }) && groups.len() > 3, "{error}");
        for group in groups.iter().rev() {
            match group.barrier(Device::Cpu) {
                Ok(()) => group.shutdown().unwrap(),
                Err(error) => assert!(error.to_string().contains("key"), "{error}"),
            }
        }
    });
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn a_receive_from_any_rank_in_a_world_of_one_is_refused() {
    let group = builder(&Arc::default(), 0, 1).build().unwrap();
    let error = group.with_deadline(None).recv_any(&mut [0.0_f32], 0).unwrap_err();
    assert!(matches!(error, Error::Call { source: CallError::NobodyElse, .. }), "{error}");
    assert_eq!(group.sequence_numbers(), (0, 0));
    group.shutdown().unwrap();
}

#[test]
fn ranks_that_call_two_groups_in_different_orders_are_told_in_which_call_of_which_each_of_them_waits() {
    let store = Arc::default();
    let both_have_failed = std::sync::Barrier::new(2);
    on_ranks(2, |rank| {
        let world = builder(&store, rank, 2).name("a").build().unwrap();
        let other = world.new_group(&[0, 1], &GroupOptions::default().name("b")).unwrap().member().unwrap();
        let mut data = [1.0_f32];
        for group in [&world, &other] {
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
        }
        let (first, name) = [(&world, "a"), (&other, "a/b")][rank];
        let error = first.with_deadline(Some(Duration::from_secs(1))).all_reduce(&mut data, ReduceOp::Sum);
        both_have_failed.wait();
        match error.unwrap_err() {
            Error::Timeout { group, sequence: 2, missing, .. } => {
                assert_eq!((&*group, missing), (name, vec![1 - rank]));
            }
            error => panic!("{error}"),
        }
    });
}

#[test]
fn calls_are_numbered_on_after_calls_that_failed() {
    let store = Arc::default();
    on_ranks(2, |rank| {
        let group = builder(&store, rank, 2).build().unwrap();
        let mut data = [1.0_f32; 4];
        for number in 1..=3 {
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            // Refused here, whatever the other rank calls, and not counted.
            group.broadcast(&mut data, 2).unwrap_err();
            group.send(&data, rank, 0).unwrap_err();
            group.all_reduce_into(&[0.0; 3], &mut data, ReduceOp::Sum).unwrap_err();
            assert_eq!(group.sequence_numbers(), (number, 0));
        }
        let work = begin(&group, &mut data).unwrap();
        assert_eq!(work.sequence(), Some(4));
        work.wait(None).unwrap();
        group.shutdown().unwrap();
    });
}

#[test]
fn groups_below_nested_prefixes_of_one_store_do_not_meet() {
    let store = Arc::new(MemoryStore::new());
    let below = |prefixes: &[&str]| {
        prefixes.iter().fold(Arc::clone(&store) as Arc<dyn Store>, |store, prefix| {
            Arc::new(PrefixStore::new(prefix, store).unwrap())
        })
    };
    let places = [vec!["a"], vec!["a", "b"], vec!["b", "a"], vec!["a", "b", "c"]];
    on_ranks(2 * places.len(), |thread| {
        let (rank, place) = (thread % 2, thread / 2);
        let group = ProcessGroup::builder(below(&places[place]), rank, 2).timeout(FAR).dump_to(None);
        let group = group.build().unwrap();
        for _ in 0..20 {
            let mut data = [place as i32];
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            assert_eq!(data, [2 * place as i32]);
        }
        group.shutdown().unwrap();
    });
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}
