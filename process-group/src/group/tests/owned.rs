//! Calls that take their buffers, over the backend `host`.

use super::*;

/// Runs `body` on two ranks that are threads.
fn on_two(body: impl Fn(&ProcessGroup) + Sync) {
    let store = Arc::<MemoryStore>::default();
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let (store, body) = (Arc::clone(&store), &body);
            scope.spawn(move || {
                let config = "cpu:host".parse().unwrap();
                let group =
                    ProcessGroup::builder(store as _, rank, 2).backend(config).dump_to(None).build().unwrap();
                body(&group);
                group.shutdown().unwrap();
            });
        }
    });
}

fn ended<B>(owned: Result<Owned<B>, Error>) -> B {
    let (buffers, outcome) = owned.unwrap().wait();
    outcome.unwrap();
    buffers
}

#[test]
fn every_call_has_a_form_that_takes_its_buffers_and_gives_them_back() {
    on_two(|group| {
        let rank = group.rank();
        let (own, other, is_root) = (rank as i32 + 1, 2 - rank as i32, rank == 0);
        let sum = ReduceOp::Sum;
        assert_eq!(ended(group.all_reduce_owned(vec![own; 3], sum)), [3; 3]);
        assert_eq!(
            ended(group.all_reduce_into_owned(vec![own; 3], vec![0; 3], sum)),
            (vec![own; 3], vec![3; 3])
        );
        assert_eq!(ended(group.reduce_owned(vec![own], sum, 1)), [if is_root { 1 } else { 3 }]);
        assert_eq!(ended(group.broadcast_owned(vec![own], 1)), [2]);
        let two = || vec![vec![own], vec![own; 2]];
        assert_eq!(ended(group.broadcast_coalesced_owned(two(), 0)), [vec![1], vec![1; 2]]);
        assert_eq!(ended(group.all_reduce_coalesced_owned(two(), sum)), [vec![3], vec![3; 2]]);
        assert_eq!(ended(group.all_gather_single_owned(vec![own], vec![0; 2])).1, [1, 2]);
        let parts = || vec![vec![0], vec![0]];
        assert_eq!(ended(group.all_gather_owned(vec![own], parts())).1, [[1], [2]]);
        let of_root = |parts: Vec<Vec<i32>>| if is_root { parts } else { Vec::new() };
        let gathered = of_root(vec![vec![1], vec![2]]);
        assert_eq!(ended(group.gather_owned(vec![own], of_root(parts()), 0)).1, gathered);
        assert_eq!(ended(group.scatter_owned(of_root(vec![vec![7], vec![8]]), vec![0], 0)).1, [own + 6]);
        assert_eq!(ended(group.reduce_scatter_single_owned(vec![1, 2], vec![0], sum)).1, [2 * own]);
        assert_eq!(ended(group.reduce_scatter_owned(vec![vec![1], vec![2]], vec![0], sum)).1, [2 * own]);
        let sent = vec![10 * own, 10 * own + 1];
        let received = [10 + rank as i32, 20 + rank as i32];
        assert_eq!(ended(group.all_to_all_single_owned(sent.clone(), vec![0; 2])), (sent, received.to_vec()));
        let split =
            ((vec![own; 3], &[1, 2][..]), (vec![0; if is_root { 2 } else { 4 }], &[own as usize; 2][..]));
        let expected = if is_root { vec![1, 2] } else { vec![1, 1, 2, 2] };
        assert_eq!(ended(group.all_to_all_split_owned(split.0, split.1)).1, expected);
        let lists = (vec![vec![10 * own], vec![10 * own + 1]], parts());
        assert_eq!(ended(group.all_to_all_owned(lists.0, lists.1)).1, received.map(|part| vec![part]));
        ended(group.barrier_owned(Device::Cpu));
        let receives = group.recv_owned(vec![0], Some(1 - rank), 5);
        assert_eq!(ended(group.send_owned(vec![own], 1 - rank, 5)), [own]);
        assert_eq!(ended(receives), [other]);
    });
}

#[test]
fn a_call_that_is_refused_gives_its_error_and_one_that_is_dropped_is_waited_for() {
    on_two(|group| {
        // Parts for two ranks are two.
        let refused = group.all_gather_owned(vec![1_u8], vec![vec![0_u8]]).unwrap_err();
        assert!(matches!(refused, Error::Call { .. }), "{refused}");
        drop(group.all_to_all_single_owned(vec![1_u8; 2], vec![0_u8; 2]).unwrap());
        assert_eq!(group.status().last_completed, 1);
    });
}

#[test]
fn what_is_shown_of_a_call_shows_nothing_of_its_buffer() {
    on_two(|group| {
        let mut pending = group.all_reduce_owned(vec![123_456_i32; 4], ReduceOp::Sum).unwrap();
        let while_it_may_go_on = format!("{pending:?}");
        let (buffer, outcome) = block_on(&mut pending);
        outcome.unwrap();
        assert_eq!(buffer, [246_912; 4]);
        drop(buffer);
        for shown in [while_it_may_go_on, format!("{pending:?}")] {
            assert!(shown.starts_with("Owned {"), "{shown}");
            assert!(!shown.contains("123456") && !shown.contains("246912"), "{shown}");
        }
    });
}

#[test]
fn of_several_calls_that_wait_for_a_rank_the_first_one_is_late_and_names_that_rank() {
    let store = Arc::<MemoryStore>::default();
    let has_ended = std::sync::Barrier::new(3);
    std::thread::scope(|scope| {
        for rank in 0..3 {
            let (store, has_ended) = (Arc::clone(&store), &has_ended);
            scope.spawn(move || {
                let group = ProcessGroup::builder(store as _, rank, 3)
                    .backend("cpu:host".parse().unwrap())
                    .dump_to(None)
                    .build()
                    .unwrap();
                group.barrier(Device::Cpu).unwrap();
                if rank != 1 {
                    let group = group.with_deadline(Some(Duration::from_secs(2)));
                    let calls = [(); 3].map(|()| group.all_reduce_owned(vec![1_i32], ReduceOp::Sum).unwrap());
                    let errors = calls.map(|call| call.wait().1.unwrap_err());
                    let Error::Timeout { sequence, missing, .. } = &errors[0] else { panic!("{errors:?}") };
                    assert_eq!((*sequence, &**missing), (2, &[1][..]), "{errors:?}");
                }
                has_ended.wait();
                drop(group);
            });
        }
    });
}
