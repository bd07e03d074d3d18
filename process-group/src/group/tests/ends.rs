//! Who hears of the ends of calls and groups, in which words, and what is left of them.

use super::*;
use crate::Tensor;
use crate::group::watchdog::look_at_messages;
use crate::tensor::{Buffer as _, BufferMut as _, Parts};

pub(super) const SHORT: Option<Duration> = Some(Duration::from_millis(1));

/// Waits until `is_so`.
pub(super) fn until(is_so: impl Fn() -> bool) {
    let limit = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < limit, "it never comes to that");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn late(work: &Work) -> (u64, Vec<usize>) {
    match work.wait(Some(LONG)).unwrap_err() {
        Error::Timeout { sequence, missing, .. } => (sequence, missing),
        error => panic!("{error}"),
    }
}

#[test]
fn a_deadline_is_not_lost_behind_a_later_call_without_one() {
    let (group, _) = group(0, 2, "cpu:open");
    let (mut a, mut b) = ([0.0], [0.0]);
    let first = start(&group.with_deadline(SHORT), &mut a).unwrap();
    let _second = start(&group.with_deadline(None), &mut b).unwrap();
    assert_eq!(late(&first), (1, vec![1]));
}

#[test]
fn a_deadline_is_not_lost_behind_an_earlier_call_with_a_longer_one() {
    let (group, _) = group(0, 2, "cpu:open");
    let (mut a, mut b) = ([0.0], [0.0]);
    let first = start(&group.with_deadline(None), &mut a).unwrap();
    // The watching thread has come to the first one.
    std::thread::sleep(Duration::from_millis(200));
    let _second = start(&group.with_deadline(SHORT), &mut b).unwrap();
    assert_eq!(late(&first), (1, vec![1]));
}

#[test]
fn ranks_that_wait_in_the_first_call_that_has_not_ended_are_not_missing() {
    let store = Arc::<MemoryStore>::default();
    let (here, notes) = group_over(&store, 0, 3, "cpu:open");
    let (other, _) = group_over(&store, 1, 3, "cpu:open");
    let mut data = [[0.0]; 11];
    let [theirs, second, ours @ ..] = &mut data;
    let theirs = [start(&other, theirs).unwrap(), start(&other, second).unwrap()];
    let here = here.with_deadline(Some(Duration::from_millis(200)));
    let ours: Vec<_> = ours.iter_mut().map(|data| start(&here, data).unwrap()).collect();
    notes.pending.lock().unwrap()[0].end(Ok(Outcome::default()));
    // The other rank is in the second call, as this one is, whatever this one has called since.
    assert_eq!(late(&ours[1]), (2, vec![2]));
    drop((theirs, ours));
}

#[test]
fn of_many_calls_at_once_those_who_have_come_to_the_fewest_are_named() {
    let store = Arc::<MemoryStore>::default();
    let (here, notes) = group_over(&store, 0, 4, "cpu:open");
    let (some, _) = group_over(&store, 1, 4, "cpu:open");
    let (fewer, _) = group_over(&store, 2, 4, "cpu:open");
    let (all, _) = group_over(&store, 3, 4, "cpu:open");
    let mut data = [[0.0]; 50];
    let (mut calls, mut left) = (Vec::new(), &mut data[..]);
    for (group, count) in [(&some, 12), (&fewer, 8), (&all, 15)] {
        let (own, others) = left.split_at_mut(count);
        calls.extend(own.iter_mut().map(|data| start(group, data).unwrap()));
        left = others;
    }
    let here = here.with_deadline(Some(Duration::from_millis(200)));
    let ours: Vec<_> = left.iter_mut().map(|data| start(&here, data).unwrap()).collect();
    // The first ones, which are looked at one by one, have ended, and then only the last is.
    notes.pending.lock().unwrap()[..3].iter().for_each(|pending| pending.end(Ok(Outcome::default())));
    assert_eq!(late(&ours[14]), (15, vec![2]));
    drop((calls, ours));
}

#[test]
fn a_call_that_has_failed_is_not_late_and_does_not_make_the_first_one_so() {
    let (group, notes) = group(0, 2, "cpu:open");
    let (mut a, mut b) = ([0.0], [0.0]);
    let first = start(&group.with_deadline(None), &mut a).unwrap();
    let second = start(&group.with_deadline(SHORT), &mut b).unwrap();
    notes.pending.lock().unwrap()[1].end(Err(Error::Default("refused")));
    // It is held until its time is up, and looked at then.
    let last = || group.shared.slot(DeviceType::Cpu).watch().lines[0].last().map(|last| last.sequence);
    until(|| last().is_none_or(|last| last == 1));
    assert!(second.is_completed().is_err());
    assert!(!first.is_completed().unwrap());
}

#[test]
fn a_shutdown_that_is_seen_by_the_watching_thread_is_no_failure() {
    let (group, notes) = group(0, 2, "cpu:open");
    let (mut a, mut b) = ([0.0], [0.0]);
    let [first, _second] = [&mut a, &mut b].map(|data| start(&group, data).unwrap());
    // It looks at a backend that is being shut down, having looked at the group a moment before.
    let down = Error::ShutDown { group: "world".into() };
    notes.pending.lock().unwrap()[1].end(Err(down));
    let asked = notes.asked.load(SeqCst);
    until(|| notes.asked.load(SeqCst) >= asked + 2);
    assert_eq!(notes.aborts.load(SeqCst), 0);
    assert!(!first.is_completed().unwrap());
}

#[test]
fn an_abort_ends_a_checked_call_that_waits_for_the_others() {
    let store = Arc::<MemoryStore>::default();
    let (registry, _) = registry();
    let group = ProcessGroup::builder(Arc::clone(&store) as _, 0, 2)
        .backend("cpu:done".parse().unwrap())
        .registry(registry)
        .check_calls(true)
        .dump_to(None)
        .build()
        .unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| group.with_deadline(None).barrier(Device::Cpu).unwrap_err());
        until(|| store.check(&["calls/1/0"]).unwrap());
        group.abort("nobody comes");
        assert_eq!(waits.join().unwrap().to_string(), "group world was aborted: nobody comes");
    });
    drop(group);
}

#[test]
fn ranks_that_came_to_a_checked_call_and_gave_up_are_not_missing_for_those_who_give_it_up_later() {
    let store = Arc::<MemoryStore>::default();
    let checked = |rank| {
        let (registry, _) = registry();
        ProcessGroup::builder(Arc::clone(&store) as _, rank, 3)
            .backend("cpu:done".parse().unwrap())
            .registry(registry)
            .check_calls(true)
            .dump_to(None)
            .build()
            .unwrap()
    };
    let (first, second) = (checked(0), checked(1));
    let missing = |group: &ProcessGroup, limit| match group
        .with_deadline(Some(Duration::from_millis(limit)))
        .barrier(Device::Cpu)
        .unwrap_err()
    {
        Error::Timeout { sequence: 1, missing, .. } => missing,
        error => panic!("{error}"),
    };
    assert_eq!(missing(&first, 50), [1, 2]);
    // It comes when the first has given up.
    assert_eq!(missing(&second, 50), [2]);
    drop((first, second));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn a_late_batch_of_sends_and_receives_names_its_peers_and_no_others() {
    let (group, _) = group(0, 5, "cpu:open");
    let (out, mut inn) = ([0.0_f32], [0.0_f32]);
    let calls = exchange(&out, &mut inn);
    // SAFETY: the backend of these tests touches no memory.
    let work = unsafe { group.with_deadline(SHORT).start(&Call::Batch(&calls)) }.unwrap();
    assert_eq!(late(&work), (1, vec![1, 3]));
}

/// The two calls of a batch.
fn exchange(out: &[f32], inn: &mut [f32]) -> [Call<'static>; 2] {
    [
        Call::Send { input: out.tensor(), peer: 3, tag: 0 },
        Call::Recv { output: inn.tensor_mut(), peer: Some(1), tag: 0 },
    ]
}

#[test]
fn sends_and_receives_that_have_ended_are_told_before_a_shutdown_returns() {
    let (group, notes) = group(0, 4, "cpu:open");
    let told = Arc::<Mutex<Vec<(Operation, u64)>>>::default();
    let note = Arc::clone(&told);
    group.on_completion(move |call| note.lock().unwrap().push((call.operation, call.sequence)));
    let (out, mut inn) = ([0.0_f32], [0.0_f32]);
    for call in exchange(&out, &mut inn) {
        // SAFETY: the backend of these tests touches no memory.
        drop(unsafe { group.start(&call) }.unwrap());
    }
    notes.pending.lock().unwrap().iter().for_each(|pending| pending.end(Ok(Outcome::default())));
    group.shutdown().unwrap();
    let mut told = told.lock().unwrap().clone();
    told.sort_unstable_by_key(|(_, sequence)| *sequence);
    assert_eq!(told, [(Operation::Send, 1), (Operation::Recv, 2)]);
    let entries = group.flight_recorder().snapshot().entries;
    assert!(entries.iter().all(|entry| entry.state == State::Completed), "{entries:?}");
}

#[test]
fn completions_are_told_and_counted_without_a_flight_recorder() {
    let (registry, notes) = registry();
    let group = ProcessGroup::builder(Arc::<MemoryStore>::default(), 0, 1)
        .backend("cpu:open".parse().unwrap())
        .registry(registry)
        .recorded_calls(0)
        .build()
        .unwrap();
    let told = Arc::<Mutex<Vec<u64>>>::default();
    let note = Arc::clone(&told);
    group.on_completion(move |call| note.lock().unwrap().push(call.sequence));
    let mut data = [[0.0]; 20];
    data.iter_mut().for_each(|data| drop(start(&group, data).unwrap()));
    notes.pending.lock().unwrap().iter().for_each(|pending| pending.end(Ok(Outcome::default())));
    // Whoever reads that has it noted first.
    assert_eq!(group.status().last_completed, 20);
    until(|| told.lock().unwrap().len() == 20);
    assert_eq!(*told.lock().unwrap(), (1..=20).collect::<Vec<_>>());
}

#[test]
fn whom_a_receive_from_any_rank_was_from_is_recorded_with_its_end() {
    let (group, notes) = group(0, 4, "cpu:open");
    let owned = group.recv_owned(vec![0.0_f32], None, 0).unwrap();
    let peer = || group.flight_recorder().snapshot().entries[0].peer;
    assert_eq!(peer(), None);
    notes.pending.lock().unwrap()[0].end(Ok(Outcome::from_rank(2)));
    assert_eq!(peer(), Some(2));
    owned.wait().1.unwrap();
}

#[test]
fn a_dump_and_whoever_has_waited_know_of_all_calls_that_have_ended() {
    let (group, notes) = group(0, 4, "cpu:open");
    let told = Arc::<Mutex<Vec<u64>>>::default();
    let note = Arc::clone(&told);
    let asks = group.clone();
    group.on_completion(move |call| {
        note.lock().unwrap().push(call.sequence);
        // A hook may read, too.
        assert!(asks.status().last_completed >= call.sequence);
    });
    let mut data = [[0.0]; 4];
    let works: Vec<_> = data.iter_mut().map(|data| start(&group, data).unwrap()).collect();
    let end = |call: usize| notes.pending.lock().unwrap()[call].end(Ok(Outcome::default()));
    (0..2).for_each(end);
    let completed = || group.flight_recorder().status(0).last_completed;
    works[1].wait(Some(LONG)).unwrap();
    assert_eq!(completed(), 2);
    end(2);
    assert!(works[2].is_completed().unwrap());
    assert_eq!(completed(), 3);
    end(3);
    let in_dump = |dump: crate::flight_recorder::Dump| {
        dump.entries.iter().filter(|entry| entry.state == "completed").count()
    };
    assert_eq!(in_dump(group.flight_recorder().dump()), 4);
    until(|| told.lock().unwrap().len() == 4);
    assert_eq!(*told.lock().unwrap(), [1, 2, 3, 4]);
}

#[test]
fn a_shutdown_names_the_rank_that_is_stopped_within_a_call_as_such() {
    let store = Arc::<MemoryStore>::default();
    let (group, notes) = group_over(&store, 0, 3, "cpu:open");
    let work = start(&group.with_deadline(None), &mut [0.0]).unwrap();
    let late = Request::new().timed_out(Operation::AllReduce, &"world".into(), vec![]);
    let Error::Timeout { operation, sequence, group: name, waited, elsewhere, tag, .. } = late else {
        panic!("{late}")
    };
    // As the backend says that knows who has come to the call.
    let late = Error::Timeout {
        operation,
        sequence,
        group: name,
        waited,
        missing: vec![],
        stopped: vec![2],
        elsewhere,
        tag,
    };
    *notes.over.lock().unwrap() = Some(late);
    let error = group.shutdown().unwrap_err();
    let Error::Timeout { missing, stopped, .. } = &error else { panic!("{error}") };
    assert_eq!((&missing[..], &stopped[..]), (&[][..], &[2][..]), "{error}");
    drop(work);
}

#[test]
fn a_rank_that_was_aborted_before_it_made_a_backend_ends_the_monitored_barrier_of_the_others() {
    let store = Arc::<MemoryStore>::default();
    let error = |aborted: usize| {
        let (groups, _notes): (Vec<_>, Vec<_>) =
            (0..3).map(|rank| group_over(&store, rank, 3, "cpu:done")).unzip();
        let others: Vec<_> = (0..3).filter(|rank| *rank != aborted).collect();
        let errors = std::thread::scope(|scope| {
            let groups = &groups;
            let barrier =
                move |rank: usize| groups[rank].monitored_barrier(Duration::from_secs(3600)).unwrap_err();
            let waits: Vec<_> =
                others.iter().map(|rank| scope.spawn(move || barrier(*rank).to_string())).collect();
            until(|| others.iter().any(|rank| store.check(&[&*format!("barrier/0/came/{rank}")]).unwrap()));
            groups[aborted].abort("it has had enough");
            waits.into_iter().map(|waits| waits.join().unwrap()).collect::<Vec<_>>()
        });
        drop(groups);
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
        errors
    };
    for aborted in [1, 0] {
        for error in error(aborted) {
            let expected = format!("rank {aborted}: it has had enough");
            assert!(error.starts_with("group world was aborted") && error.ends_with(&expected), "{error}");
        }
    }
}

#[test]
fn texts_of_checked_calls_go_with_the_last_rank_of_a_group_that_was_aborted_or_dropped() {
    for aborts in [true, false] {
        let store = Arc::<MemoryStore>::default();
        ranks(3, |rank| {
            let group = group_with_checked_calls(&store, rank, 3);
            if aborts {
                group.abort("the engine stops");
            }
        });
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new(), "aborted: {aborts}");
    }
}

#[test]
fn a_rank_that_has_given_up_a_call_and_left_is_not_missing_for_those_who_give_it_up_later() {
    let store = Arc::<MemoryStore>::default();
    let (first, _) = group_over(&store, 0, 3, "cpu:open");
    let (second, _) = group_over(&store, 1, 3, "cpu:open");
    let (mut a, mut b, mut c) = ([0.0], [0.0], [0.0]);
    let theirs = start(&second.with_deadline(None), &mut b).unwrap();
    let work = start(&first.with_deadline(SHORT), &mut a).unwrap();
    assert_eq!(late(&work), (1, vec![2]));
    drop((work, first));
    let last = start(&second.with_deadline(SHORT), &mut c).unwrap();
    assert_eq!(late(&theirs), (1, vec![2]));
    drop((theirs, last, second));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn a_rank_that_comes_too_late_to_a_monitored_barrier_is_told_who_was_missing() {
    let store = Arc::<MemoryStore>::default();
    let (zero, _) = group_over(&store, 0, 3, "cpu:done");
    let (late, _) = group_over(&store, 2, 3, "cpu:done");
    let text =
        |group: &ProcessGroup| group.monitored_barrier(Duration::from_millis(20)).unwrap_err().to_string();
    let expected = "ranks 1 and 2 did not come to the barrier of group world within 20ms";
    assert_eq!([text(&zero), text(&late)], [expected; 2]);
    drop((zero, late));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

#[test]
fn calls_that_end_with_a_shutdown_are_told_as_they_ended_whichever_of_them_failed() {
    for refused in [5, 1] {
        let (group, notes) = group(0, 1, "cpu:open");
        let told = Arc::<Mutex<Vec<u64>>>::default();
        let note = Arc::clone(&told);
        group.on_completion(move |call| note.lock().unwrap().push(call.sequence));
        let mut data = [[0.0]; 6];
        data.iter_mut().for_each(|data| drop(start(&group, data).unwrap()));
        let end = |call: usize| match call == refused {
            true => (call, Err(Error::Default("refused"))),
            false => (call, Ok(Outcome::default())),
        };
        *notes.at_shutdown.lock().unwrap() = (0..6).map(end).collect();
        group.shutdown().unwrap();
        let well: Vec<usize> = (0..6).filter(|call| *call != refused).collect();
        let told: Vec<usize> = told.lock().unwrap().iter().map(|sequence| *sequence as usize - 1).collect();
        assert_eq!(told, well);
        for (call, entry) in group.flight_recorder().snapshot().entries.iter().enumerate() {
            let expected = if call == refused { State::Failed } else { State::Completed };
            assert_eq!(entry.state, expected, "call {call}");
        }
    }
}

/// A call that ends just when it has been looked at so often.
#[derive(Debug)]
struct EndsAtLook(AtomicUsize);

impl Completion for EndsAtLook {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        let goes_on = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        Ok((!goes_on).then(Outcome::default))
    }

    fn wait(&self, _: Option<Instant>) -> Result<Option<Outcome>, Error> {
        self.poll()
    }

    unsafe fn wait_on(&self, _: RawStream) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_message_that_ends_while_it_is_found_to_be_late_is_told_like_any_other() {
    for looks in [0, 1, 2, 3, 1000] {
        let (group, notes) = group(0, 2, "cpu:open");
        let told = Arc::<Mutex<Vec<u64>>>::default();
        let note = Arc::clone(&told);
        group.on_completion(move |call| note.lock().unwrap().push(call.sequence));
        let out = [0.0_f32];
        let call = Call::Send { input: out.tensor(), peer: 1, tag: 0 };
        // SAFETY: the backend of these tests touches no memory.
        drop(unsafe { group.with_deadline(None).start(&call) }.unwrap());
        let slot = group.shared.slot(DeviceType::Cpu);
        {
            let mut watch = slot.watch();
            let message = &mut watch.messages[0];
            message.call.work = Work::pending(&"open".into(), Arc::new(EndsAtLook(looks.into())));
            message.call.noted.end = Some(message.call.start - 2 * crate::group::watchdog::TICK);
        }
        // The watching thread may be quicker.
        until(|| {
            look_at_messages(&group.shared, slot, &**slot.made().unwrap());
            slot.watch().messages.is_empty()
        });
        match looks < 4 {
            true => until(|| *told.lock().unwrap() == [1]),
            false => until(|| notes.aborts.load(SeqCst) == 1),
        }
        assert_eq!(told.lock().unwrap().len(), usize::from(looks < 4));
    }
}

#[test]
fn ranks_that_wait_for_others_through_the_store_hear_of_an_abort_and_of_what_a_backend_has_seen() {
    type Meets<'a> = &'a (dyn Fn(&ProcessGroup) -> Error + Sync);
    let waits = |has_zero: bool, meets: Meets<'_>, ends: &dyn Fn(&ProcessGroup, &Notes)| {
        let store = Arc::<MemoryStore>::default();
        let (zero, _) = group_over(&store, 0, 2, "cpu:open");
        if has_zero {
            zero.connect(DeviceType::Cpu).unwrap();
        }
        let (group, notes) = group_over(&store, 1, 2, "cpu:open");
        let work = start(&group.with_deadline(None), &mut [0.0]).unwrap();
        let keys = store.num_keys().unwrap();
        let error = std::thread::scope(|scope| {
            let waits = scope.spawn(|| meets(&group));
            // Whoever waits for rank 0 to be there at all says nothing.
            until(|| store.num_keys().unwrap() > keys || !has_zero);
            ends(&group, &notes);
            waits.join().unwrap()
        });
        drop(work);
        error
    };
    let split = |group: &ProcessGroup| group.split(Some(0), 0, &GroupOptions::default()).unwrap_err();
    let barrier = |group: &ProcessGroup| group.monitored_barrier(Duration::from_secs(3600)).unwrap_err();
    let meetings: [(bool, Meets<'_>); 3] = [(true, &split), (false, &split), (true, &barrier)];
    for (has_zero, meets) in meetings {
        let error = waits(has_zero, meets, &|group, _| group.abort("nobody comes"));
        assert_eq!(error.to_string(), "group world was aborted: nobody comes");
    }
    for (has_zero, meets) in meetings {
        let error = waits(has_zero, meets, &|_, notes| end_by_death(notes, 0));
        assert!(matches!(error, Error::RankDied { rank: 0, .. }), "{error}");
    }
}

/// The backend sees in its first call that a rank is gone.
fn end_by_death(notes: &Notes, rank: usize) {
    let died = Error::RankDied { rank, group: "world".into(), how: "its process has ended".to_owned() };
    notes.pending.lock().unwrap()[0].end(Err(died));
}

#[test]
fn a_death_that_rank_0_alone_has_seen_ends_a_monitored_barrier_on_all() {
    let store = Arc::<MemoryStore>::default();
    let (zero, notes) = group_over(&store, 0, 3, "cpu:open");
    let (other, _) = group_over(&store, 1, 3, "cpu:open");
    let work = start(&zero.with_deadline(None), &mut [0.0]).unwrap();
    let barrier = |group: &ProcessGroup| group.monitored_barrier(Duration::from_secs(3600)).unwrap_err();
    std::thread::scope(|scope| {
        let others = scope.spawn(|| barrier(&other));
        until(|| store.check(&["barrier/0/came/1"]).unwrap());
        let zeros = scope.spawn(|| barrier(&zero));
        end_by_death(&notes, 2);
        let error = zeros.join().unwrap();
        assert!(matches!(error, Error::RankDied { rank: 2, .. }), "{error}");
        let error = others.join().unwrap();
        assert!(
            matches!(&error, Error::Aborted { cause, .. } if cause.starts_with("rank 0: rank 2 of")),
            "{error}"
        );
    });
    drop((work, zero, other));
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

/// A call that panics whenever it is asked.
#[derive(Debug)]
struct Panics;

impl Completion for Panics {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        panic!("on purpose")
    }

    fn wait(&self, _: Option<Instant>) -> Result<Option<Outcome>, Error> {
        panic!("on purpose")
    }

    unsafe fn wait_on(&self, _: RawStream) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn futures_are_woken_after_a_call_of_a_backend_has_panicked() {
    let (group, notes) = group(0, 1, "cpu:open");
    let mut data = [0.0];
    let work = start(&group, &mut data).unwrap();
    let watchdog = &group.shared.family.watchdog;
    let panics = Work::pending(&"open".into(), Arc::new(Panics));
    watchdog.wake_when_ended(None, &panics, Waker::noop());
    until(|| watchdog.waiting() == 0);
    std::thread::scope(|scope| {
        let woken = scope.spawn(move || block_on(work.into_future()));
        until(|| watchdog.waiting() == 1 || woken.is_finished());
        notes.pending.lock().unwrap()[0].end(Ok(Outcome::default()));
        woken.join().unwrap().unwrap();
    });
}

#[test]
fn a_rank_whose_part_is_empty_makes_the_call_as_all_others_do() {
    let (registry, _) = registry();
    let group = ProcessGroup::builder(Arc::<MemoryStore>::default(), 0, 2)
        .backend("cuda:done".parse().unwrap())
        .registry(registry)
        .cuda_device(1)
        .build()
        .unwrap();
    let of =
        |address, count, ordinal| Tensor { address, count, dtype: DType::F32, device: Device::Cuda(ordinal) };
    // Where memory without elements is, no driver knows.
    let (nowhere, parts) = (of(0, 0, u32::MAX), of(4096, 8, 1));
    let start = |call: &Call<'_>| {
        // SAFETY: the backend of these tests touches no memory.
        unsafe { group.start(call) }.map(|work| work.sequence())
    };
    let counts = [0, 8];
    let gather =
        |tensor| Call::AllGather { input: nowhere, outputs: Parts::Split { tensor, counts: &counts } };
    assert_eq!(start(&gather(parts)).unwrap(), Some(1));
    let all_reduce = Call::AllReduce { input: nowhere, output: nowhere, op: ReduceOp::Sum };
    assert_eq!(start(&all_reduce).unwrap(), Some(2));
    // Memory with elements is where it is.
    assert!(matches!(start(&gather(of(4096, 8, 0))), Err(Error::WrongDevice { .. })));
    let on_host = Tensor { device: Device::Cpu, ..nowhere };
    let mixed = Call::AllGather { input: on_host, outputs: Parts::Split { tensor: parts, counts: &counts } };
    assert!(matches!(start(&mixed), Err(Error::Call { .. })));
}
