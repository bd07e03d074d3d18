//! What goes wrong ends in a typed error on all ranks.

use rustix::event::{EventfdFlags, eventfd};

use super::super::connect::Listening;
use super::*;
use crate::tensor::{BufferMut, Parts};
use crate::types::ReduceOp;

const HOSTS: [&str; 6] = ["aa", "ab", "aaa", "aab", "aabb", "abc"];

fn all_reduce(data: &mut [f32]) -> Call<'static> {
    let tensor = data.tensor_mut();
    Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }
}

#[test]
fn ranks_that_disagree_on_length_type_reduction_or_root_get_a_mismatch() {
    for hosts in HOSTS {
        for (short, long) in [(3, 4), (10, 100_000), (200_000, 200_001)] {
            let errors = on_hosts(hosts, |rank| {
                let mut data = vec![1.0; if rank.rank == 1 { long } else { short }];
                rank.call(&all_reduce(&mut data)).and_then(|_| rank.barrier()).unwrap_err()
            });
            expect_mismatch(hosts, &errors, &format!("all_reduce (sum) of {long} f32"));
        }
        let errors = on_hosts(hosts, |rank| {
            let (mut floats, mut integers) = ([1.0_f32; 4], [1_i32; 4]);
            let tensor = if rank.rank == 0 { floats.tensor_mut() } else { integers.tensor_mut() };
            let call = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Max };
            rank.call(&call).and_then(|_| rank.barrier()).unwrap_err()
        });
        expect_mismatch(hosts, &errors, "i32");
        let errors = on_hosts(hosts, |rank| {
            let mut data = [1.0_f32; 4];
            let call = Call::Broadcast { tensor: data.tensor_mut(), root: usize::from(rank.rank == 1) };
            rank.call(&call).and_then(|_| rank.barrier()).and_then(|_| rank.barrier()).unwrap_err()
        });
        expect_mismatch(hosts, &errors, "with root 1");
    }
}

fn expect_mismatch(hosts: &str, errors: &[Error], says: &str) {
    for error in errors {
        let Error::Mismatch { ranks, calls, .. } = error else { panic!("{hosts}: {errors:?}") };
        assert!(ranks.0 != ranks.1 && calls.0 != calls.1, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn ranks_that_call_different_operations_get_a_mismatch_and_never_a_timeout() {
    type Make = fn(&mut [f32], &mut [f32], usize) -> Call<'static>;
    let kinds: [Make; 6] = [
        |data, _, _| all_reduce(data),
        |data, _, _| Call::Broadcast { tensor: data.tensor_mut(), root: 0 },
        |data, other, _| Call::AllGather {
            input: data.tensor_mut(),
            outputs: Parts::Whole(other.tensor_mut()),
        },
        |data, other, rank| Call::Gather {
            input: data.tensor_mut(),
            outputs: (rank == 1).then(|| Parts::Whole(other.tensor_mut())),
            root: 1,
        },
        |data, other, _| Call::ReduceScatter {
            inputs: Parts::Whole(other.tensor_mut()),
            output: data.tensor_mut(),
            op: ReduceOp::Sum,
        },
        |_, _, _| Call::Barrier { device: Device::Cpu },
    ];
    for hosts in ["aa", "ab", "aab"] {
        for (at, one) in kinds.iter().enumerate() {
            for other in &kinds[at + 1..] {
                let errors = on_hosts(hosts, |rank| {
                    let (mut data, mut more) = (vec![1.0; 8], vec![1.0; 8 * rank.world]);
                    let make = if rank.rank == 0 { one } else { other };
                    let call = make(&mut data, &mut more, rank.rank);
                    rank.call(&call).and_then(|_| rank.barrier()).unwrap_err()
                });
                expect_mismatch(hosts, &errors, "rank");
            }
        }
    }
}

#[test]
fn ranks_that_differ_in_calls_in_which_nobody_waits_hear_of_it_when_they_shut_down() {
    type Make = fn(&mut [f32], &mut [f32], usize) -> Call<'static>;
    let of_root: [Make; 2] = [
        |data, _, _| Call::Broadcast { tensor: data.tensor_mut(), root: 0 },
        |data, other, rank| Call::Scatter {
            inputs: (rank == 0).then(|| Parts::Whole(other.tensor_mut())),
            output: data.tensor_mut(),
            root: 0,
        },
    ];
    let of_others: [Make; 2] = [
        |data, other, rank| Call::Gather {
            input: data.tensor_mut(),
            outputs: (rank == 0).then(|| Parts::Whole(other.tensor_mut())),
            root: 0,
        },
        |data, _, rank| {
            let input = data.tensor_mut();
            Call::Reduce { input, output: (rank == 0).then_some(input), op: ReduceOp::Sum, root: 0 }
        },
    ];
    for hosts in ["aa", "ab", "aab", "abcd"] {
        for (one, other) in of_root.iter().flat_map(|one| of_others.iter().map(move |other| (one, other))) {
            for (count, then) in [(8, false), (700, false), (8, true)] {
                let errors = on_hosts(hosts, |rank| {
                    let (mut data, mut more) = (vec![1.0; count], vec![1.0; count * rank.world]);
                    let make = if rank.rank == 0 { one } else { other };
                    let ended = rank.call(&make(&mut data, &mut more, rank.rank));
                    // What all call alike is no reason to forget it.
                    let ended = if then { ended.and_then(|_| rank.barrier()) } else { ended };
                    ended.and_then(|_| rank.backend.shutdown(FAR)).unwrap_err()
                });
                let is_told =
                    |error: &Error| matches!(error, Error::Mismatch { ranks, .. } if ranks.0 != ranks.1);
                assert!(errors.iter().all(is_told), "{hosts}: {errors:?}");
            }
        }
        for make in of_root.iter().chain(&of_others) {
            let ended = on_hosts(hosts, |rank| {
                let (mut data, mut more) = (vec![1.0; 8], vec![1.0; 8 * rank.world]);
                rank.call(&make(&mut data, &mut more, rank.rank))?;
                rank.backend.shutdown(FAR)
            });
            assert!(ended.iter().all(Result::is_ok), "{hosts}: {ended:?}");
        }
    }
}

#[test]
fn a_rank_that_has_made_one_call_more_than_others_is_named_on_all_when_they_shut_down() {
    for hosts in ["aa", "ab", "aab", "abcd"] {
        for before in [0, 3] {
            // Others leave behind the call that only one makes, so that it finds them there.
            let made = std::sync::Barrier::new(hosts.len());
            let errors = on_hosts(hosts, |rank| {
                (0..before).for_each(|_| _ = rank.barrier().unwrap());
                let mut data = [1.0_f32; 4];
                if rank.rank == 1 {
                    let call = Call::Broadcast { tensor: data.tensor_mut(), root: 1 };
                    rank.call(&call).unwrap();
                }
                made.wait();
                rank.backend.shutdown(FAR).unwrap_err()
            });
            for (rank, error) in errors.iter().enumerate() {
                let Error::Mismatch { sequence, ranks, calls, .. } = error else {
                    panic!("{hosts}: {errors:?}")
                };
                assert_eq!((ranks.0, ranks.0 == 1 || ranks.1 == 1), (rank, true), "{error}");
                let (most, least) = if rank == 1 { (&calls.0, &calls.1) } else { (&calls.1, &calls.0) };
                assert!(most.contains("broadcast") && least.contains("nothing"), "{error}");
                assert_eq!(least.contains("number 2"), before == 3, "{error}");
                assert_eq!(*sequence, before, "{error}");
            }
        }
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_when_the_deadline_has_passed() {
    for hosts in ["aa", "ab", "aab", "abab"] {
        for blocking in [true, false] {
            let errors = on_hosts(hosts, |rank| {
                rank.barrier().unwrap();
                let mut data = [1.0; 4];
                if rank.rank == 1 {
                    // It comes when the others have given up.
                    while rank.backend.error().is_none() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    return rank.call(&all_reduce(&mut data)).unwrap_err();
                }
                rank.deadline.set(Some(Duration::from_secs(1)));
                rank.start(&all_reduce(&mut data), blocking).and_then(ended).unwrap_err()
            });
            let named = |error: &Error| match error {
                Error::Timeout { missing, sequence: 1, .. } => *missing == [1],
                // Those who heard it from the first.
                Error::Aborted { cause, .. } => cause.contains("rank 1 did not come to it"),
                _ => false,
            };
            assert!(errors.iter().all(named), "{hosts} {errors:?}");
            assert!(errors.iter().any(|error| matches!(error, Error::Timeout { .. })));
        }
    }
}

#[test]
fn a_call_that_a_deadline_has_ended_on_one_rank_ends_well_on_none_that_comes_to_it_later() {
    for (hosts, calls) in [("aa", 1), ("aaa", 1), ("aaa", 3)] {
        let (is_busy, has_ended) =
            (std::sync::Barrier::new(hosts.len()), std::sync::Barrier::new(hosts.len()));
        let errors = on_hosts(hosts, |rank| {
            (0..calls).for_each(|_| _ = rank.barrier().unwrap());
            let mut data = [1.0; 4];
            let shared = &rank.backend.shared;
            let net = shared.net.get().unwrap();
            if rank.rank == 1 {
                // As one whose process was stopped, and whose progress thread has not run yet since.
                let _its_progress_thread_waits_for_this = net.mailbox();
                is_busy.wait();
                has_ended.wait();
                // A call that it had in hand before that: all data are there, and no word of the end was taken.
                assert!(shared.has_ended_well(net, calls - 1).is_ok(), "the calls before it have ended well");
                let late = shared.has_ended_well(net, calls).unwrap_err();
                let later = rank.call(&all_reduce(&mut data)).unwrap_err();
                assert_eq!(later.to_string(), late.to_string());
                return later;
            }
            is_busy.wait();
            rank.deadline.set(Some(Duration::from_millis(200)));
            let error = rank.call(&all_reduce(&mut data)).unwrap_err();
            has_ended.wait();
            error
        });
        let is_named = |error: &Error| matches!(error, Error::Timeout { missing, .. } if *missing == [1]);
        assert!(errors.iter().all(is_named), "{hosts} {errors:?}");
    }
}

#[test]
fn a_rank_that_has_failed_before_it_came_to_a_call_lets_none_end_well() {
    let has_failed = std::sync::Barrier::new(2);
    let ended = on_hosts("aa", |rank| {
        rank.barrier().unwrap();
        let (shared, mut data) = (&rank.backend.shared, [1.0_f32; 4]);
        let mail = (rank.rank == 0).then(|| shared.net.get().unwrap().mailbox());
        has_failed.wait();
        if rank.rank == 1 {
            rank.backend.abort(&Error::Aborted { group: "test".into(), cause: "enough".to_owned() });
        }
        has_failed.wait();
        // The root of a broadcast waits for nobody.
        let result = rank.call(&Call::Broadcast { tensor: data.tensor_mut(), root: 0 });
        drop(mail);
        result
    });
    assert!(ended.iter().all(|ended| matches!(ended, Err(Error::Aborted { .. }))), "{ended:?}");
}

#[test]
fn a_rank_that_fails_before_it_meets_the_others_ends_it_for_them_with_its_reason() {
    for hosts in ["aa", "ab", "aab"] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let ranks = |rank: usize, host: char| {
            let factory = HostFactory::new().host_id(host);
            let factory = if rank == 1 { factory.interface("nosuch0") } else { factory };
            // Longer than this test may take. A third rank never comes.
            Rank::within(Duration::from_secs(600), Arc::clone(&store), rank, hosts.len(), &factory)
                .backend
                .prepare()
                .unwrap_err()
        };
        let errors = std::thread::scope(|scope| {
            let ranks = &ranks;
            let threads: Vec<_> = (0..2)
                .zip(hosts.chars())
                .map(|(rank, host)| scope.spawn(move || ranks(rank, host)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let source = |error: &Error| match error {
            Error::NotMade { source, .. } => source.clone(),
            other => panic!("{other}"),
        };
        assert!(source(&errors[1]).downcast_ref::<meshreduce_store::interface::NoInterface>().is_some());
        let told = source(&errors[0]);
        let told = told.downcast_ref::<meshreduce::Error>();
        let Some(meshreduce::Error::RankFailed { rank: 1, message }) = told else { panic!("{errors:?}") };
        assert!(message.contains("nosuch0"), "{message}");
    }
}

/// Two or three ranks of which the one on host `b` tells where it listens and is heard of no more; what the others' first call gives.
fn without_the_connections_of_b(hosts: &str, timeout: Duration, deadline: Duration) -> Vec<Error> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let world = hosts.len();
    let rank = |rank, host: char| -> Option<Error> {
        if host == 'b' {
            let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
            let listening = Listening::open(bell, Some("b"), Some("lo")).unwrap();
            let context = BackendContext { timeout, ..context(Arc::clone(&store), rank, world) };
            context.meet(&"host".into(), &listening.place.encode()).unwrap();
            return None;
        }
        let factory = HostFactory::new().host_id(host).interface("lo");
        let rank = Rank::within(timeout, Arc::clone(&store), rank, world, &factory);
        rank.deadline.set(Some(deadline));
        rank.call(&all_reduce(&mut [1.0; 4])).err()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = hosts
            .chars()
            .enumerate()
            .map(|(at, host)| {
                scope.spawn({
                    let rank = &rank;
                    move || rank(at, host)
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_rank_of_another_host_that_does_not_connect_is_named_before_who_waits_for_it_gives_up() {
    for hosts in ["ab", "ba", "aba", "acb"] {
        let errors = without_the_connections_of_b(hosts, Duration::from_secs(1), Duration::from_secs(1));
        assert_eq!(errors.len(), hosts.len() - 1);
        let lost = hosts.find('b').unwrap();
        for error in errors {
            // By the rank itself, by another one, or as one that has not come to say that it is connected.
            assert!(matches!(&error, Error::NotMade { .. }), "{hosts}: {error}");
            assert!(error.to_string().contains(&format!("rank {lost}")), "{hosts}: {error}");
        }
    }
}

#[test]
fn a_call_that_ends_before_the_ranks_are_connected_names_who_is_not() {
    for hosts in ["ab", "ba"] {
        let (long, short) = (Duration::from_secs(5), Duration::from_millis(500));
        let errors = without_the_connections_of_b(hosts, long, short);
        let lost = hosts.find('b').unwrap();
        let is_named = |error: &Error| matches!(error, Error::Timeout { missing, .. } if *missing == [lost]);
        assert!(errors.len() == 1 && errors.iter().all(is_named), "{hosts}: {errors:?}");
    }
}

#[test]
fn a_receive_that_gets_nothing_ends_with_its_deadline() {
    for hosts in ["aa", "ab"] {
        for blocking in [true, false] {
            let errors = on_hosts(hosts, |rank| {
                // So that connecting takes none of the time.
                rank.barrier().unwrap();
                let mut data = [1.0_f32; 4];
                let call = Call::Recv { output: data.tensor_mut(), peer: Some(1 - rank.rank), tag: 3 };
                rank.deadline.set((rank.rank == 0).then(|| Duration::from_millis(500)));
                rank.start(&call, blocking).and_then(ended).unwrap_err()
            });
            assert!(
                matches!(&errors[0], Error::Timeout { operation: crate::Operation::Recv, missing, tag: Some(tag), .. } if *missing == [1]),
                "{errors:?}"
            );
            assert!(
                errors[0].to_string().starts_with("recv number 0 with tag 3 on group test"),
                "{}",
                errors[0]
            );
            assert!(
                matches!(&errors[1], Error::Aborted { cause, .. } if cause.starts_with("rank 0")),
                "{errors:?}"
            );
        }
    }
}

#[test]
fn an_abort_by_another_thread_ends_what_waits_on_all_ranks() {
    for hosts in HOSTS {
        for blocking in [true, false] {
            let errors = on_hosts(hosts, |rank| {
                let mut data = [1.0; 4];
                std::thread::scope(|scope| {
                    if rank.rank == rank.world - 1 {
                        // It is the one that does not come.
                        let backend = &rank.backend;
                        scope.spawn(move || {
                            let cause = Error::Aborted { group: "test".into(), cause: "enough".to_owned() };
                            backend.abort(&cause);
                            backend.abort(&cause);
                        });
                        while rank.backend.error().is_none() {
                            std::thread::yield_now();
                        }
                    }
                    rank.start(&all_reduce(&mut data), blocking).and_then(ended).unwrap_err()
                })
            });
            for error in errors {
                // Some may not have been connected yet.
                assert!(matches!(error, Error::Aborted { .. } | Error::NotMade { .. }), "{error}");
                assert!(error.to_string().contains("enough"), "{error}");
            }
        }
    }
}

#[test]
fn a_rank_that_leaves_fails_those_who_still_need_it_and_nobody_else() {
    for hosts in ["aa", "ab", "aab"] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        std::thread::scope(|scope| {
            for (rank, host) in hosts.chars().enumerate() {
                let store = Arc::clone(&store);
                let world = hosts.len();
                scope.spawn(move || {
                    let rank = Rank::new(store, rank, world, &HostFactory::new().host_id(host));
                    let mut data = [rank.rank as f32; 4];
                    let first = rank.call(&all_reduce(&mut data));
                    if rank.rank == 1 {
                        first.unwrap();
                        return drop(rank);
                    }
                    // Where there are three, one may hear of the end from another one before it has left the first.
                    let error = first.and_then(|_| rank.call(&all_reduce(&mut data))).unwrap_err();
                    assert!(matches!(error, Error::RankDied { .. }), "{error}");
                    assert!(rank.backend.error().is_some());
                });
            }
        });
    }
}

#[test]
fn a_rank_that_calls_once_more_when_others_have_shut_down_hears_that_and_they_hear_who_it_was() {
    for hosts in ["aa", "ab", "aaa", "aab", "abb", "abc"] {
        for message in [false, true] {
            let errors = on_hosts(hosts, |rank| {
                rank.barrier().unwrap();
                if rank.rank != 0 {
                    return rank.backend.shutdown(FAR).unwrap_err();
                }
                let mut inn = [0.0_f32; 4];
                match message {
                    true => rank
                        .call(&Call::Recv { output: inn.tensor_mut(), peer: Some(1), tag: 0 })
                        .unwrap_err(),
                    false => rank.barrier().unwrap_err(),
                }
            });
            let named = match &errors[0] {
                Error::PeerShutDown { rank, .. } => *rank,
                error => panic!("{hosts}: {error}"),
            };
            assert!(named != 0 && (named == 1 || !message), "{hosts}: {errors:?}");
            let cause =
                format!("rank 0 has called it once more, after rank {named} had shut it down in order");
            for error in &errors[1..] {
                assert_eq!(error.to_string(), format!("group test was aborted: {cause}"), "{hosts}");
            }
        }
    }
}

#[test]
fn who_does_not_shut_down_is_named() {
    for hosts in ["aab", "abc"] {
        let (others, all) = (std::sync::Barrier::new(2), std::sync::Barrier::new(3));
        on_hosts(hosts, |rank| {
            rank.barrier().unwrap();
            if rank.rank == 1 {
                // It stays until the others have said who is missing.
                all.wait();
                return;
            }
            others.wait();
            let error = rank.backend.shutdown(Duration::from_secs(2)).unwrap_err();
            all.wait();
            let Error::Backend { source, .. } = &error else { panic!("{error}") };
            let named = source.downcast_ref::<super::super::NotShutDown>().unwrap();
            assert_eq!(named.ranks, [1], "{error}");
            assert!(matches!(rank.barrier(), Err(Error::ShutDown { .. })));
        });
    }
}

#[test]
fn dropped_while_it_is_being_made_or_while_calls_go_on_it_ends() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    drop(Rank::new(Arc::clone(&store), 0, 2, &HostFactory::new()));
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let store = Arc::clone(&store);
            scope.spawn(move || {
                let rank = Rank::new(store, rank, 2, &HostFactory::new());
                rank.barrier().unwrap();
                let mut data = [1.0; 100];
                if rank.rank == 0 {
                    let work = rank.begin(&all_reduce(&mut data)).unwrap();
                    drop(rank);
                    assert!(matches!(ended(work).unwrap_err(), Error::Aborted { .. }));
                } else {
                    let mut inn = [1.0_f32; 4];
                    let call = Call::Recv { output: inn.tensor_mut(), peer: Some(0), tag: 0 };
                    assert!(matches!(rank.call(&call).unwrap_err(), Error::Aborted { .. }));
                }
            });
        }
    });
}

#[test]
fn an_asynchronous_call_returns_before_the_ranks_have_met() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let first = Rank::new(Arc::clone(&store), 0, 2, &HostFactory::new());
    let out = [3.0_f32; 5];
    let send = first.begin(&Call::Send { input: crate::Buffer::tensor(&out), peer: 1, tag: 0 }).unwrap();
    let barrier = first.begin(&Call::Barrier { device: Device::Cpu }).unwrap();
    let second = Rank::new(store, 1, 2, &HostFactory::new());
    let mut inn = [0.0_f32; 5];
    second.call(&Call::Recv { output: inn.tensor_mut(), peer: Some(0), tag: 0 }).unwrap();
    second.barrier().unwrap();
    ended(send).unwrap();
    ended(barrier).unwrap();
    assert_eq!(inn, out);
}

/// As when a rank is stopped before it says that it is connected, and goes on when the other has given it up and is gone.
#[test]
fn the_last_rank_to_leave_takes_back_what_it_says_to_nobody_when_it_is_connected() {
    let store = MemoryStore::new();
    let arc: Arc<dyn Store> = Arc::new(store.clone());
    let is_at = |what: &str| store.list_keys().unwrap().iter().any(|key| key.contains(what));
    let begun = Instant::now();
    let until = |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(begun.elapsed() < FAR, "{:?}", store.list_keys());
            std::thread::yield_now();
        }
    };
    // Rank 0 is met and connected with, and says nothing more.
    let listening =
        Listening::open(Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap()), None, None).unwrap();
    let _shared = listening.share(2).unwrap();
    let zero = std::thread::spawn({
        let context = context(Arc::clone(&arc), 0, 2);
        move || context.meet(&"host".into(), &listening.place.encode())
    });
    let one = Rank::within(FAR, arc, 1, 2, &HostFactory::new());
    zero.join().unwrap().unwrap();
    until(&|| is_at("connected/") && is_at("/first/1"));
    one.backend.abort(&Error::Aborted { group: "test".into(), cause: "rank 0 is gone".into() });
    one.backend.clear_away().unwrap();
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}
