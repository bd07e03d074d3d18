//! How groups and parts of groups begin and end, and what calls say then, for every backend of host memory.

use meshreduce_checks::groups::case::{Case, CollectiveCall, cases};
use meshreduce_checks::groups::profile::Profile;
use meshreduce_checks::groups::runner::{
    FAR, Judged, Meeting, group, judge, refused, threads, threads_and_keys,
};
use meshreduce_checks::in_process::BRIEF;
use meshreduce_process_group::{DType, Device, DeviceType, Error, GroupOptions, ProcessGroup, ReduceOp};
use std::sync::Barrier;
use std::time::Duration;

fn sum(count: usize) -> Case {
    Case::new(CollectiveCall::AllReduce { count, op: ReduceOp::Sum }, DType::F32)
}

fn is_right(group: &ProcessGroup, profile: &Profile, seed: u64) {
    assert_eq!(judge(group, profile, &sum(33), seed), Ok(Judged::Right), "{}", profile.name);
}

#[test]
fn parts_of_a_group_are_groups_that_end_in_any_order() {
    for profile in Profile::all(DeviceType::Cpu) {
        threads(Meeting::Memory, 4, |store, rank| {
            let world = group(&profile, store, rank, 4).unwrap();
            is_right(&world, &profile, 1);
            // Ranks are sorted, whatever order they are named in; who is none of them has none.
            let outer = world.new_group(&[3, 0], &GroupOptions::default()).unwrap().member().ok();
            assert_eq!(outer.as_ref().map(ProcessGroup::rank), [Some(0), None, None, Some(1)][rank]);
            // By parity, the highest rank first.
            let half = world.split(Some(rank as u32 % 2), -(rank as i64), &GroupOptions::default()).unwrap();
            let half = half.member().unwrap();
            assert_eq!((half.rank(), half.ranks()), (1 - rank / 2, &[2 + rank % 2, rank % 2][..]));
            for (number, case) in cases(2).iter().step_by(40).enumerate() {
                judge(&half, &profile, case, number as u64).unwrap();
            }
            if let Some(outer) = outer {
                is_right(&outer, &profile, 2);
                outer.shutdown().unwrap();
            }
            match rank % 2 {
                0 => {
                    half.shutdown().unwrap();
                    world.shutdown().unwrap();
                }
                _ => {
                    world.shutdown().unwrap();
                    is_right(&half, &profile, 3);
                    half.shutdown().unwrap();
                }
            }
        });
    }
}

#[test]
fn groups_that_are_shut_down_together_are_named_in_any_order() {
    for profile in Profile::all(DeviceType::Cpu) {
        threads(Meeting::Memory, 3, |store, rank| {
            let world = group(&profile, store, rank, 3).unwrap();
            let part = || world.new_group(&[0, 1, 2], &GroupOptions::default()).unwrap().member().unwrap();
            let (one, other) = (part(), part());
            for group in [&world, &one, &other] {
                is_right(group, &profile, 1);
            }
            let mut order = [&world, &one, &other];
            order.rotate_left(rank);
            ProcessGroup::shutdown_all(&order).unwrap();
            for group in order {
                assert!(matches!(group.barrier(Device::Cpu), Err(Error::ShutDown { .. })));
            }
        });
    }
}

#[test]
fn after_the_end_of_a_group_calls_say_so() {
    for profile in Profile::all(DeviceType::Cpu) {
        threads(Meeting::Memory, 2, |store, rank| {
            let group = group(&profile, store, rank, 2).unwrap();
            is_right(&group, &profile, 1);
            group.shutdown().unwrap();
            group.shutdown().expect("a second time does nothing");
            group.abort("too late");
            assert!(matches!(group.barrier(Device::Cpu), Err(Error::ShutDown { .. })));
        });
    }
}

#[test]
fn an_aborted_group_fails_with_the_cause_and_aborting_again_changes_nothing() {
    for profile in Profile::all(DeviceType::Cpu) {
        threads_and_keys(Meeting::Memory, 2, |store, rank| {
            let group = group(&profile, store, rank, 2).unwrap();
            is_right(&group, &profile, 1);
            group.abort("a test wants it");
            group.abort("again");
            for result in [group.barrier(Device::Cpu), group.shutdown()] {
                match result {
                    Err(Error::Aborted { cause, .. }) => assert_eq!(cause, "a test wants it"),
                    other => panic!("{other:?}"),
                }
            }
        });
    }
}

#[test]
fn a_call_that_goes_on_ends_when_another_thread_aborts() {
    for profile in Profile::all(DeviceType::Cpu).into_iter().filter(|profile| profile.names_victims) {
        let over = Barrier::new(2);
        threads_and_keys(Meeting::Memory, 2, |store, rank| {
            let group = group(&profile, store, rank, 2).unwrap();
            is_right(&group, &profile, 1);
            let call = || {
                std::thread::scope(|scope| {
                    let call = scope.spawn(|| group.barrier(Device::Cpu));
                    while group.sequence_numbers().0 < 2 {
                        std::thread::yield_now();
                    }
                    group.abort("another thread wants it");
                    call.join().unwrap()
                })
            };
            let result = (rank == 0).then(call);
            // The other rank's group is there until then. What is wrong is said behind it, for else the other would wait for ever.
            over.wait();
            assert!(matches!(result, None | Some(Err(Error::Aborted { .. }))), "{result:?}");
        });
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_when_the_deadline_passes() {
    for profile in Profile::all(DeviceType::Cpu).into_iter().filter(|profile| profile.names_victims) {
        let over = Barrier::new(3);
        let (results, _) = threads_and_keys(Meeting::Memory, 3, |store, rank| {
            let group = group(&profile, store, rank, 3).unwrap();
            is_right(&group, &profile, 1);
            let result = (rank != 1).then(|| group.with_deadline(Some(BRIEF)).barrier(Device::Cpu));
            over.wait();
            result
        });
        let mut timeouts = 0;
        for result in results.into_iter().flatten() {
            match result {
                Err(Error::Timeout { sequence: 2, missing, .. }) if missing == [1] => timeouts += 1,
                // Whose deadline passes a moment later may hear of the first one's.
                Err(Error::Aborted { cause, .. }) if cause.contains("rank 1 did not come to it") => {}
                other => panic!("{}: {other:?}", profile.name),
            }
        }
        assert!(timeouts > 0, "{}", profile.name);
    }
}

#[test]
fn a_monitored_barrier_names_all_ranks_that_did_not_come_and_ends_nothing() {
    for profile in Profile::all(DeviceType::Cpu) {
        let tried = Barrier::new(4);
        threads(Meeting::Memory, 4, |store, rank| {
            let group = group(&profile, store, rank, 4).unwrap();
            is_right(&group, &profile, 1);
            let result = (rank % 2 == 0).then(|| group.monitored_barrier(Duration::from_millis(500)));
            tried.wait();
            match result {
                None => {}
                // A rank that came late, on a machine that stands still, is named as well.
                Some(Err(Error::NotAtBarrier { ranks, .. })) => {
                    assert!(ranks.contains(&1) && ranks.contains(&3), "{ranks:?}");
                }
                other => panic!("{other:?}"),
            }
            is_right(&group, &profile, 2);
            group.shutdown().unwrap();
        });
    }
}

#[test]
fn two_groups_are_used_by_two_threads_at_once() {
    for profile in Profile::all(DeviceType::Cpu) {
        let some: Vec<Case> = cases(3).into_iter().step_by(17).collect();
        threads(Meeting::Memory, 3, |store, rank| {
            let world = group(&profile, store, rank, 3).unwrap();
            let options = GroupOptions::default().name("other");
            let other = world.new_group(&[0, 1, 2], &options).unwrap().member().unwrap();
            std::thread::scope(|scope| {
                for group in [&world, &other] {
                    scope.spawn(|| {
                        for (number, case) in some.iter().enumerate() {
                            judge(group, &profile, case, number as u64).unwrap();
                        }
                    });
                }
            });
            other.shutdown().unwrap();
            world.shutdown().unwrap();
        });
    }
}

#[test]
fn sixty_four_ranks_are_a_group() {
    const RANKS: usize = 64;
    let even = vec![5; RANKS];
    let some = [
        sum(100),
        Case::new(CollectiveCall::AllGather { counts: even.clone() }, DType::I16),
        Case::new(CollectiveCall::ReduceScatter { counts: even, op: ReduceOp::Avg }, DType::Bf16),
        Case::new(CollectiveCall::Broadcast { count: 9, root: 63 }, DType::F64),
    ];
    for profile in Profile::all(DeviceType::Cpu).into_iter().filter(|profile| profile.name != "mpi") {
        let judged = threads(Meeting::Memory, RANKS, |store, rank| {
            meshreduce_checks::groups::runner::rank(&profile, store, (rank, RANKS), &some, 1).unwrap()
        });
        assert_eq!(refused(&some, &judged), Ok(0), "{}", profile.name);
    }
}

#[test]
fn every_blocking_call_does_what_its_name_says() {
    for profile in Profile::all(DeviceType::Cpu) {
        threads(Meeting::Memory, 3, |store, rank| {
            let group = group(&profile, store, rank, 3).unwrap().with_deadline(Some(FAR));
            let own = rank as i32;
            let (mut data, mut single, mut all) = ([own, 10 * own], [0; 2], [0; 6]);
            group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            assert_eq!(data, [3, 30]);
            group.all_reduce_into(&[own, 1], &mut single, ReduceOp::Max).unwrap();
            assert_eq!(single, [2, 1]);
            data = [own; 2];
            group.reduce(&mut data, ReduceOp::Sum, 1).unwrap();
            assert_eq!(data, [if rank == 1 { 3 } else { own }; 2]);
            data = [own; 2];
            group.broadcast(&mut data, 2).unwrap();
            assert_eq!(data, [2; 2]);
            let mut several = [vec![own; 3], vec![own; 1]];
            group.broadcast_coalesced(&mut several, 1).unwrap();
            assert_eq!(several, [vec![1; 3], vec![1; 1]]);
            let mut several = [vec![own; 3], vec![own; 1]];
            group.all_reduce_coalesced(&mut several, ReduceOp::Sum).unwrap();
            assert_eq!(several, [vec![3; 3], vec![3; 1]]);
            group.all_gather_single(&[own; 2], &mut all).unwrap();
            assert_eq!(all, [0, 0, 1, 1, 2, 2]);
            let mut uneven = [vec![9; 1], vec![9; 2], vec![9; 3]];
            group.all_gather(&vec![own; rank + 1], &mut uneven).unwrap();
            assert_eq!(uneven, [vec![0; 1], vec![1; 2], vec![2; 3]]);
            let mut gathered = if rank == 1 { vec![vec![9; 1]; 3] } else { vec![] };
            group.gather(&[own], &mut gathered, 1).unwrap();
            assert!(gathered.iter().flatten().copied().eq(0..gathered.len() as i32), "{gathered:?}");
            let scattered = if rank == 0 { vec![[5, 0], [6, 1], [7, 2]] } else { vec![] };
            group.scatter(&scattered, &mut single, 0).unwrap();
            assert_eq!(single, [5 + own, own]);
            group.reduce_scatter_single(&[0, 1, 2, 3, 4, 5], &mut single, ReduceOp::Sum).unwrap();
            assert_eq!(single, [6 * own, 6 * own + 3]);
            group.reduce_scatter(&[[1, 1], [2, 2], [3, 3]], &mut single, ReduceOp::Sum).unwrap();
            assert_eq!(single, [3 * (own + 1); 2]);
            group.all_to_all_single(&[own; 6], &mut all).unwrap();
            assert_eq!(all, [0, 0, 1, 1, 2, 2]);
            // Rank r sends nothing to itself, one to the next and two to the one before.
            let (mut sent, mut received) = ([0; 3], [0; 3]);
            (sent[(rank + 1) % 3], sent[(rank + 2) % 3]) = (1, 2);
            (received[(rank + 2) % 3], received[(rank + 1) % 3]) = (1, 2);
            let mut three = [9; 3];
            group.all_to_all_split((&[own; 3], &sent), (&mut three, &received)).unwrap();
            let from = received.iter().enumerate().flat_map(|(rank, count)| vec![rank as i32; *count]);
            assert_eq!(three.to_vec(), from.collect::<Vec<_>>());
            let mut listed = [[9], [9], [9]];
            group.all_to_all(&[[own], [own], [own]], &mut listed).unwrap();
            assert_eq!(listed, [[0], [1], [2]]);
            match rank {
                0 => group.send(&[42], 1, 0).unwrap(),
                1 => {
                    group.recv(&mut listed[0], 0, 0).unwrap();
                    assert_eq!((listed[0], group.recv_any(&mut listed[1], 5).unwrap()), ([42], 2));
                    assert_eq!(listed[1], [43]);
                }
                _ => group.send(&[43], 1, 5).unwrap(),
            }
            group.barrier(Device::Cpu).unwrap();
            group.monitored_barrier(FAR).unwrap();
            group.shutdown().unwrap();
        });
    }
}
