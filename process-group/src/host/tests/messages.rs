//! Sends and receives.

use super::*;
use crate::tensor::{Buffer, BufferMut};

fn send(data: &[f32], peer: usize, tag: u32) -> Call<'static> {
    Call::Send { input: data.tensor(), peer, tag }
}

fn receive(data: &mut [f32], peer: Option<usize>, tag: u32) -> Call<'static> {
    Call::Recv { output: data.tensor_mut(), peer, tag }
}

/// Short, longer than a message that is sent unasked, longer than rings and socket buffers.
const LENGTHS: [usize; 5] = [0, 1, 1000, 20_000, 3_000_000];

#[test]
fn messages_come_by_peer_and_tag_in_order() {
    for hosts in ["aa", "ab"] {
        on_hosts(hosts, |rank| {
            for length in LENGTHS {
                let of = |value: u16| vec![f32::from(value); length];
                match rank.rank {
                    0 => {
                        for value in [1, 2] {
                            rank.call(&send(&of(value), 1, 7)).unwrap();
                        }
                        rank.call(&send(&of(3), 1, 8)).unwrap();
                    }
                    _ => {
                        let mut got = [of(0), of(0), of(0)];
                        let [a, b, c] = &mut got;
                        // What was sent last is asked for first: the others wait, those that are long with their sender.
                        let calls = [receive(c, Some(0), 8), receive(a, Some(0), 7), receive(b, Some(0), 7)];
                        let works: Vec<_> = calls.iter().map(|call| rank.begin(call).unwrap()).collect();
                        for work in works {
                            assert_eq!(ended(work).unwrap().source, Some(0));
                        }
                        assert_eq!(got, [of(1), of(2), of(3)]);
                    }
                }
            }
        });
    }
}

#[test]
fn ranks_that_all_send_first_do_not_wait_for_one_another() {
    for hosts in ["aa", "ab", "aab"] {
        on_hosts(hosts, |rank| {
            for length in LENGTHS {
                let next = (rank.rank + 1) % rank.world;
                let before = (rank.rank + rank.world - 1) % rank.world;
                let out = vec![vec![rank.rank as f32; length]; 20];
                let mut inn = vec![vec![-1.0; length]; 20];
                let sends: Vec<_> = out.iter().map(|out| rank.begin(&send(out, next, 0)).unwrap()).collect();
                for inn in &mut inn {
                    rank.call(&receive(inn, Some(before), 0)).unwrap();
                }
                for work in sends {
                    ended(work).unwrap();
                }
                assert!(inn.iter().flatten().all(|value| *value == before as f32));
            }
        });
    }
}

#[test]
fn a_batch_of_a_thousand_in_any_order_ends() {
    for hosts in ["aa", "ab"] {
        on_hosts(hosts, |rank| {
            let peer = 1 - rank.rank;
            for length in [3, 6000] {
                let out: Vec<Vec<f32>> = (0..1000).map(|at| vec![at as f32; length]).collect();
                let mut inn = vec![vec![0.0; length]; 1000];
                let mut calls: Vec<_> = out.iter().zip(0..).map(|(out, tag)| send(out, peer, tag)).collect();
                calls.extend(inn.iter_mut().zip(0..).map(|(inn, tag)| receive(inn, Some(peer), tag)));
                // Each rank in an order of its own.
                let stride = [1009, 1511][rank.rank];
                let calls: Vec<_> = (0..calls.len()).map(|at| calls[at * stride % calls.len()]).collect();
                match length {
                    3 => rank.call(&Call::Batch(&calls)).unwrap(),
                    _ => ended(rank.begin(&Call::Batch(&calls)).unwrap()).unwrap(),
                };
                assert_eq!(inn, out);
            }
        });
    }
}

#[test]
fn whoever_sends_first_is_received_from_any() {
    for hosts in ["aaa", "aab"] {
        on_hosts(hosts, |rank| {
            for length in LENGTHS {
                rank.barrier().unwrap();
                if rank.rank > 0 {
                    rank.call(&send(&vec![rank.rank as f32; length], 0, 5)).unwrap();
                    continue;
                }
                let mut sources = Vec::new();
                for _ in 1..rank.world {
                    let mut inn = vec![0.0; length];
                    let source = rank.call(&receive(&mut inn, None, 5)).unwrap().source.unwrap();
                    assert!(inn.iter().all(|value| *value == source as f32));
                    sources.push(source);
                }
                sources.sort_unstable();
                assert_eq!(sources, (1..rank.world).collect::<Vec<_>>());
            }
            rank.barrier().unwrap();
        });
    }
}

#[test]
fn messages_go_on_while_a_collective_waits() {
    for hosts in ["aa", "ab"] {
        on_hosts(hosts, |rank| {
            let peer = 1 - rank.rank;
            let mut sum = [1.0_f32; 8];
            let tensor = sum.tensor_mut();
            let all_reduce =
                Call::AllReduce { input: tensor, output: tensor, op: crate::types::ReduceOp::Sum };
            // On rank 0 the collective waits, for rank 1 comes to it only after the messages.
            let waits = (rank.rank == 0).then(|| rank.begin(&all_reduce).unwrap());
            for length in [10, 100_000] {
                let out = vec![rank.rank as f32; length];
                let mut inn = vec![-1.0; length];
                let work = rank.begin(&send(&out, peer, 1)).unwrap();
                rank.call(&receive(&mut inn, Some(peer), 1)).unwrap();
                ended(work).unwrap();
                assert!(inn.iter().all(|value| *value == peer as f32));
            }
            match waits {
                Some(work) => ended(work).unwrap(),
                None => rank.call(&all_reduce).unwrap(),
            };
            assert_eq!(sum, [2.0; 8]);
        });
    }
}

#[test]
fn two_threads_send_while_a_third_waits_in_a_collective() {
    for hosts in ["aa", "ab"] {
        on_hosts(hosts, |rank| {
            let peer = 1 - rank.rank;
            let backend = &rank.backend;
            let make = |call: &Call<'_>, sequence: u64| {
                let stream = std::ptr::null_mut::<u8>().into();
                let (start, deadline) = (Instant::now(), Some(FAR));
                let request = Request { sequence, start, deadline, stream, blocking: true, ..Request::new() };
                // SAFETY: it has ended when this returns.
                unsafe { backend.start(call, &request) }.and_then(ended).unwrap()
            };
            let (make, ready) = (&make, &std::sync::Barrier::new(3));
            std::thread::scope(|scope| {
                if rank.rank == 0 {
                    scope.spawn(move || {
                        ready.wait();
                        make(&Call::Barrier { device: Device::Cpu }, 0);
                    });
                }
                for tag in [1_u32, 2] {
                    scope.spawn(move || {
                        if rank_is_first(peer) {
                            ready.wait();
                        }
                        for round in 0..50_u64 {
                            let length = 1 + round as usize * 700;
                            let out = vec![round as f32; length];
                            let mut inn = vec![-1.0; length];
                            let (input, output) = (out.tensor(), inn.tensor_mut());
                            let calls = [
                                Call::Send { input, peer, tag },
                                Call::Recv { output, peer: Some(peer), tag },
                            ];
                            make(&Call::Batch(&calls), round);
                            assert_eq!(inn, out);
                        }
                    });
                }
            });
            if rank.rank == 1 {
                make(&Call::Barrier { device: Device::Cpu }, 0);
            }
        });
    }
}

/// Whether this is rank 0, whose peer is 1.
fn rank_is_first(peer: usize) -> bool {
    peer == 1
}

#[test]
fn lengths_and_types_that_differ_are_an_error_on_both_sides() {
    for hosts in ["aa", "ab"] {
        for (sent, taken) in [(4, 5), (5, 4), (100_000, 5), (4, 100_000)] {
            for receives_first in [false, true] {
                let errors = on_hosts(hosts, |rank| {
                    let out = vec![1.0; sent];
                    let mut inn = vec![0.0; taken];
                    let result = match rank.rank {
                        0 if receives_first => {
                            std::thread::sleep(Duration::from_millis(30));
                            rank.call(&send(&out, 1, 0))
                        }
                        0 => rank.call(&send(&out, 1, 0)),
                        _ => rank.call(&receive(&mut inn, Some(0), 0)),
                    };
                    // A short one may have been sent before it was seen.
                    result.and_then(|_| rank.barrier()).unwrap_err()
                });
                for error in errors {
                    let text = error.to_string();
                    let says = |what: &str| assert!(text.contains(what), "{text}");
                    assert!(matches!(error, Error::Mismatch { .. }), "{text}");
                    says(&format!("send of {sent} f32"));
                    says(&format!("recv of {taken} f32"));
                }
            }
        }
        let errors = on_hosts(hosts, |rank| {
            let out = [1.0_f32; 4];
            let mut inn = [0_i32; 4];
            let call = match rank.rank {
                0 => send(&out, 1, 0),
                _ => Call::Recv { output: inn.tensor_mut(), peer: Some(0), tag: 0 },
            };
            rank.call(&call).and_then(|_| rank.barrier()).unwrap_err()
        });
        assert!(errors.iter().all(|error| matches!(error, Error::Mismatch { .. })), "{errors:?}");
    }
}

#[test]
fn what_was_sent_before_its_sender_left_is_received() {
    for hosts in ["aa", "ab"] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let left = &std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for (rank, host) in hosts.chars().enumerate() {
                let store = Arc::clone(&store);
                scope.spawn(move || {
                    let rank = Rank::new(store, rank, 2, &HostFactory::new().host_id(host));
                    if rank.rank == 0 {
                        rank.call(&send(&[4.0; 10], 1, 0)).unwrap();
                        drop(rank);
                        left.wait();
                        return;
                    }
                    left.wait();
                    let mut inn = [0.0; 10];
                    rank.call(&receive(&mut inn, Some(0), 0)).unwrap();
                    assert_eq!(inn, [4.0; 10]);
                    let error = rank.call(&receive(&mut inn, Some(0), 0)).unwrap_err();
                    assert!(matches!(error, Error::RankDied { rank: 0, .. }), "{error}");
                });
            }
        });
    }
}

#[test]
fn messages_of_all_lengths_keep_their_order_however_they_go() {
    // More than a ring or a window holds, so that some go at once and some wait.
    const MESSAGES: usize = 1000;
    let length = |at: usize| [1, 4, 5, 0, 300, 4096, 5000, 1][at * 7 % 8];
    for hosts in ["aa", "ab"] {
        on_hosts(hosts, |rank| {
            for at in 0..MESSAGES {
                let mut data = vec![at as f32; length(at)];
                if rank.rank == 0 {
                    rank.call(&send(&data, 1, 0)).unwrap();
                    continue;
                }
                data.fill(-1.0);
                // Each way to receive takes the one that is next.
                match at % 5 {
                    0 => ended(rank.begin(&receive(&mut data, None, 0)).unwrap()).unwrap(),
                    1 => ended(rank.begin(&receive(&mut data, Some(0), 0)).unwrap()).unwrap(),
                    _ => rank.call(&receive(&mut data, Some(0), 0)).unwrap(),
                };
                assert!(data.iter().all(|value| *value == at as f32), "message {at}");
            }
        });
    }
}

#[test]
fn what_goes_on_by_itself_ends_after_callers_have_looked_for_messages_themselves() {
    for hosts in ["aa", "ab"] {
        on_hosts(hosts, |rank| {
            let peer = 1 - rank.rank;
            for round in 0..100_u16 {
                let short = [f32::from(round); 3];
                let mut inn = [0.0; 3];
                match rank.rank {
                    0 => rank.call(&send(&short, peer, 1)).unwrap(),
                    _ => rank.call(&receive(&mut inn, Some(peer), 1)).unwrap(),
                };
                // Nobody but the progress threads sees to these.
                let length = [10, 20_000][usize::from(round % 2)];
                let mut long = vec![f32::from(round); length];
                let work = match rank.rank {
                    0 => rank.begin(&send(&long, peer, 2)).unwrap(),
                    _ => {
                        long.fill(-1.0);
                        rank.begin(&receive(&mut long, Some(peer), 2)).unwrap()
                    }
                };
                ended(work).unwrap();
                assert!(long.iter().all(|value| *value == f32::from(round)));
            }
        });
    }
}
