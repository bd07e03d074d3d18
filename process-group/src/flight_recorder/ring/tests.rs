use std::collections::BTreeMap;
use std::panic::Location;
use std::time::Duration;

use super::*;
use crate::call::Call;
use crate::tensor::{Buffer as _, Parts};
use crate::types::{DType, Device, Operation, ReduceOp};

/// A recorder with one group of four ranks, and its calls.
struct Calls {
    recorder: FlightRecorder,
    host: Arc<str>,
}

impl Calls {
    fn new(capacity: usize) -> Self {
        let recorder = FlightRecorder::new(2, capacity);
        assert_eq!(recorder.add_group(&"one".into(), "", &Arc::from([0, 1, 2, 3])), 0);
        Self { recorder, host: "host".into() }
    }

    fn begin(&self, call: &Call<'_>, collective_sequence: u64, p2p_sequence: u64) -> EntryId {
        self.begin_on(&self.host, call, collective_sequence, p2p_sequence)
    }

    fn begin_on(&self, backend: &Arc<str>, call: &Call<'_>, collective: u64, p2p: u64) -> EntryId {
        self.recorder.begin(&Begun {
            group: 0,
            backend,
            call,
            collective_sequence: collective,
            p2p_sequence: p2p,
            created: Instant::now(),
            deadline: Some(Duration::from_secs(60)),
            location: Location::caller(),
        })
    }

    fn barrier(&self, sequence: u64) -> EntryId {
        self.begin(&BARRIER, sequence, 0)
    }

    /// By record number.
    fn states(&self) -> Vec<(u64, State)> {
        self.recorder.snapshot().entries.iter().map(|entry| (entry.record, entry.state)).collect()
    }

    /// Enqueued, started, completed.
    fn status(&self) -> (u64, u64, u64) {
        let status = self.recorder.status(0);
        (status.last_enqueued, status.last_started, status.last_completed)
    }
}

const BARRIER: Call<'static> = Call::Barrier { device: Device::Cpu };

fn now() -> Instant {
    Instant::now()
}

#[test]
fn an_entry_says_what_the_call_was() {
    let calls = Calls::new(4);
    let (input, output) = ([1_i64; 3].tensor(), [0_i64; 3].tensor());
    let line = line!() + 1;
    calls.begin(&Call::AllReduce { input, output, op: ReduceOp::Max }, 1, 0);
    calls.begin(&Call::Recv { output, peer: Some(3), tag: 0 }, 1, 1);
    let entries = calls.recorder.snapshot().entries;
    let entry = &entries[0];
    assert_eq!((entry.record, entry.group, &*entry.backend), (0, 0, "host"));
    assert_eq!((entry.operation, entry.dtype), (Operation::AllReduce, Some(DType::I64)));
    assert_eq!((entry.inputs.counts(), entry.outputs.counts()), (&[3][..], &[3][..]));
    assert_eq!((entry.device, entry.peer, entry.batched), (Some(Device::Cpu), None, None));
    assert_eq!(
        (entry.state, entry.is_p2p, entry.deadline),
        (State::Scheduled, false, Some(Duration::from_secs(60)))
    );
    assert!(entry.location.file().ends_with("ring/tests.rs") && entry.location.line() < line);
    assert_eq!(entry.caller.thread_name.as_deref(), std::thread::current().name());
    assert_eq!((entries[1].operation, entries[1].peer, entries[1].is_p2p), (Operation::Recv, Some(3), true));
    assert_eq!((entries[1].inputs.tensors(), entries[1].outputs.total()), (0, 3));
}

#[test]
fn the_ring_keeps_the_last_calls_in_their_order() {
    let calls = Calls::new(3);
    for sequence in 1..=8 {
        calls.barrier(sequence);
        let kept: Vec<u64> = calls.states().iter().map(|(record, _)| *record).collect();
        assert_eq!(kept, (sequence.saturating_sub(3)..sequence).collect::<Vec<_>>());
    }
}

#[test]
fn a_call_that_is_no_longer_kept_changes_no_other_but_counts() {
    let calls = Calls::new(2);
    let first = calls.barrier(1);
    calls.barrier(2);
    calls.barrier(3);
    calls.recorder.started(first, now());
    assert_eq!(calls.status(), (3, 1, 0));
    calls.recorder.ended(first, true, now());
    assert_eq!(calls.states(), [(1, State::Scheduled), (2, State::Scheduled)]);
    assert_eq!(calls.status(), (3, 1, 1));
}

#[test]
fn a_recorder_of_no_calls_knows_how_far_its_groups_are() {
    let calls = Calls::new(0);
    let id = calls.barrier(1);
    calls.recorder.started(id, now());
    calls.recorder.ended(id, true, now());
    calls.recorder.ended_through(0, &calls.host, 1, now());
    assert_eq!((calls.states(), calls.status()), (vec![], (1, 1, 1)));
}

#[test]
fn states_never_go_back() {
    let calls = Calls::new(4);
    let id = calls.barrier(1);
    calls.recorder.ended(id, true, now());
    let ended = calls.recorder.snapshot().entries[0].clone();
    assert_eq!((ended.state, ended.started), (State::Completed, ended.ended));
    calls.recorder.started(id, now());
    calls.recorder.ended(id, false, now());
    let after = calls.recorder.snapshot().entries[0].clone();
    assert_eq!((after.state, after.started, after.ended), (State::Completed, ended.started, ended.ended));
    let id = calls.barrier(2);
    calls.recorder.started(id, now());
    calls.recorder.ended(id, false, now());
    calls.recorder.ended(id, true, now());
    calls.recorder.ended_through(0, &calls.host, 2, now());
    assert_eq!(calls.states()[1], (1, State::Failed));
    assert_eq!(calls.status(), (2, 2, 1));
}

#[test]
fn a_call_that_fails_before_its_backend_has_it_was_not_started() {
    let calls = Calls::new(4);
    calls.recorder.ended(calls.barrier(1), false, now());
    let entry = calls.recorder.snapshot().entries[0].clone();
    assert_eq!((entry.state, entry.started), (State::Failed, None));
    assert!(entry.ended.is_some());
    assert_eq!(calls.status(), (1, 0, 0));
}

#[test]
fn all_collectives_of_a_backend_up_to_one_end_together() {
    let calls = Calls::new(8);
    let other: Arc<str> = "other".into();
    let tensor = [0_u8; 1].tensor();
    calls.barrier(1);
    calls.begin_on(&other, &BARRIER, 2, 0);
    calls.begin(&Call::Send { input: tensor, peer: 0, tag: 0 }, 2, 1);
    calls.barrier(3);
    calls.barrier(4);
    calls.recorder.add_group(&"two".into(), "", &Arc::from([2, 3]));
    calls.recorder.ended_through(0, &"host".into(), 3, now());
    let states: Vec<State> = calls.states().into_iter().map(|(_, state)| state).collect();
    use State::{Completed, Scheduled};
    assert_eq!(states, [Completed, Scheduled, Scheduled, Completed, Scheduled]);
    assert_eq!(calls.status(), (4, 3, 3));
    assert_eq!(calls.recorder.status(1), Status::default());
}

#[test]
fn sends_and_receives_do_not_count_as_collectives() {
    let calls = Calls::new(8);
    let tensor = [0_f32; 2].tensor();
    let send = Call::Send { input: tensor, peer: 0, tag: 0 };
    for (sequence, call) in [(1, send), (2, Call::Batch(&[send, send]))] {
        let id = calls.begin(&call, 0, sequence);
        calls.recorder.started(id, now());
        calls.recorder.ended(id, true, now());
    }
    assert_eq!(calls.status(), (0, 0, 0));
    let entries = calls.recorder.snapshot().entries;
    assert!(entries.iter().all(|entry| entry.is_p2p && entry.state == State::Completed));
    assert_eq!((entries[1].operation, entries[1].batched), (Operation::Batch, Some(Operation::Send)));
    assert_eq!(entries[1].inputs.counts(), [2, 2]);
}

#[test]
fn parts_that_differ_in_length_are_seen() {
    let calls = Calls::new(8);
    let tensor = [0_f32; 4].tensor();
    let gather = |outputs| Call::AllGather { input: tensor.slice(0, 1), outputs };
    let parts = [tensor.slice(0, 1), tensor.slice(1, 3)];
    calls.begin(&gather(Parts::Whole(tensor)), 1, 0);
    calls.begin(&gather(Parts::Split { tensor, counts: &[1, 1, 1, 1] }), 2, 0);
    calls.begin(&gather(Parts::Split { tensor, counts: &[1, 0, 2, 1] }), 3, 0);
    calls.begin(&gather(Parts::List(&parts)), 4, 0);
    calls.begin(&Call::Batch(&[gather(Parts::List(&parts))]), 5, 0);
    let uneven: Vec<bool> =
        calls.recorder.snapshot().entries.iter().map(|entry| entry.has_uneven_parts).collect();
    assert_eq!(uneven, [false, false, true, true, true]);
}

#[test]
fn many_threads_record_at_once_and_nothing_is_lost() {
    const THREADS: u64 = 8;
    const EACH: u64 = 200;
    let calls = Calls::new((THREADS * EACH) as usize);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let calls = &calls;
            let body = move || {
                for call in 0..EACH {
                    let id = calls.barrier(1 + thread * EACH + call);
                    calls.recorder.started(id, now());
                    calls.recorder.ended(id, call.is_multiple_of(2), now());
                    calls.recorder.snapshot();
                }
            };
            std::thread::Builder::new().name(format!("caller {thread}")).spawn_scoped(scope, body).unwrap();
        }
    });
    let entries = calls.recorder.snapshot().entries;
    assert_eq!(entries.len() as u64, THREADS * EACH);
    let mut by_thread: BTreeMap<Arc<str>, Vec<u64>> = BTreeMap::new();
    for (number, entry) in (0..).zip(&entries) {
        let well = (entry.collective_sequence - 1).is_multiple_of(2);
        assert_eq!((entry.record, entry.state == State::Completed), (number, well));
        let name = entry.caller.thread_name.clone().unwrap();
        by_thread.entry(name).or_default().push(entry.collective_sequence);
    }
    assert_eq!(by_thread.len() as u64, THREADS);
    assert!(by_thread.values().all(|sequences| sequences.is_sorted() && sequences.len() as u64 == EACH));
    assert_eq!(calls.status(), (THREADS * EACH, THREADS * EACH, THREADS * EACH - 1));
}

#[test]
fn groups_that_are_gone_go_with_their_calls_and_dumps_name_the_others_as_before() {
    let recorder = FlightRecorder::new(0, 4);
    let add = |name: &str| recorder.add_group(&name.into(), "", &Arc::from([0]));
    let call = |group: u32| {
        recorder.begin(&Begun {
            group,
            backend: &"host".into(),
            call: &BARRIER,
            collective_sequence: 1,
            p2p_sequence: 0,
            created: now(),
            deadline: None,
            location: Location::caller(),
        });
    };
    let world = add("world");
    for number in 0..1000 {
        let part = add(&format!("part {number}"));
        call(part);
        recorder.remove_group(part);
    }
    let last = add("last");
    call(world);
    call(last);
    assert!(recorder.ring().groups.len() < 2 * GONE, "{}", recorder.ring().groups.len());
    let Snapshot { groups, entries, .. } = recorder.snapshot();
    let names: Vec<&str> = entries.iter().map(|entry| &*groups[entry.group as usize].name).collect();
    assert_eq!(names, ["part 998", "part 999", "world", "last"]);
    assert_eq!((&*groups[0].name, &*groups[groups.len() - 1].name), ("world", "last"));
}

#[test]
fn calls_that_start_as_soon_as_they_are_made_are_started_wherever_that_is_looked_for() {
    for capacity in [0, 2] {
        let calls = Calls::new(capacity);
        let made: Vec<_> = (1..=2).map(|sequence| calls.barrier(sequence)).collect();
        calls.recorder.started_at_once(made[0], now());
        assert_eq!(calls.status(), (2, 1, 0), "capacity {capacity}");
        calls.recorder.started_at_once(made[1], now());
        calls.recorder.ended(made[0], false, now());
        calls.recorder.ended(made[1], true, now());
        if capacity > 0 {
            assert_eq!(calls.states(), [(0, State::Failed), (1, State::Completed)]);
            let entries = calls.recorder.snapshot().entries;
            assert!(entries.iter().all(|entry| entry.started == Some(entry.created)), "{entries:?}");
        }
        assert_eq!(calls.status(), (2, 2, 2), "capacity {capacity}");
        // Those whose place another one has taken count, and say nothing of that one.
        let made: Vec<_> = (3..=5).map(|sequence| calls.barrier(sequence)).collect();
        calls.recorder.started_at_once(made[2], now());
        calls.recorder.started_at_once(made[0], now());
        if capacity > 0 {
            assert_eq!(calls.states(), [(3, State::Scheduled), (4, State::Started)]);
        }
        assert_eq!(calls.status(), (5, 5, 2), "capacity {capacity}");
        calls.barrier(6);
        calls.barrier(7);
        assert_eq!(calls.status(), (7, 5, 2), "capacity {capacity}");
    }
}

#[test]
fn calls_that_end_as_soon_as_they_are_made_count_wherever_that_is_looked_for() {
    for capacity in [0, 2] {
        let calls = Calls::new(capacity);
        let before = clock::now();
        let made: Vec<_> = (1..=2).map(|sequence| calls.barrier(sequence)).collect();
        made.iter().for_each(|made| calls.recorder.ended_at_once(*made));
        assert_eq!(calls.status(), (2, 2, 2), "capacity {capacity}");
        if capacity > 0 {
            assert_eq!(calls.states(), [(0, State::Completed), (1, State::Completed)]);
            // By clocks that differ by less.
            let little = Duration::from_secs(1);
            let near = before.checked_sub(little).unwrap()..clock::now() + little;
            let entries = calls.recorder.snapshot().entries;
            assert!(entries.iter().all(|entry| near.contains(&entry.ended.unwrap())), "{entries:?}");
        }
        // Nobody looks before others have their places.
        calls.recorder.ended_at_once(calls.barrier(3));
        calls.recorder.started_at_once(calls.barrier(4), now());
        for sequence in 5..=7 {
            calls.barrier(sequence);
        }
        assert_eq!(calls.status(), (7, 4, 3), "capacity {capacity}");
    }
}

#[test]
fn calls_of_threads_that_are_numbered_in_their_turn_stand_in_the_order_of_their_numbers() {
    let calls = Calls::new(1000);
    let counter = AtomicU64::new(0);
    let next = || {
        let next = counter.load(Ordering::Relaxed) + 1;
        counter.store(next, Ordering::Relaxed);
        (next, 0)
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let mut begun = Begun {
                        group: 0,
                        backend: &calls.host,
                        call: &BARRIER,
                        collective_sequence: 0,
                        p2p_sequence: 0,
                        created: now(),
                        deadline: None,
                        location: Location::caller(),
                    };
                    calls.recorder.begin_in_turn(&mut begun, next);
                }
            });
        }
    });
    let numbers: Vec<_> =
        calls.recorder.snapshot().entries.iter().map(|entry| entry.collective_sequence).collect();
    assert_eq!(numbers, (1..=400).collect::<Vec<_>>());
}
