//! Calls as futures, and buffers that come back.

use super::*;

#[test]
fn work_is_a_future_that_is_woken() {
    let (group, notes) = group(0, 1, "cpu:open");
    let mut data = [0.0];
    let work = start(&group, &mut data).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || block_on(work.into_future()));
        std::thread::sleep(Duration::from_millis(5));
        notes.pending.lock().unwrap()[0].end(Ok(Outcome::default()));
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_future_waits_once_however_often_it_is_polled_and_not_once_it_is_dropped() {
    let (group, _) = group(0, 1, "cpu:open");
    let watchdog = &group.shared.family.watchdog;
    let mut future = start(&group, &mut [0.0]).unwrap().into_future();
    for waker in [Waker::noop().clone(), Arc::new(Unpark(std::thread::current())).into()] {
        for _ in 0..100 {
            assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
            assert_eq!(watchdog.waiting(), 1);
        }
    }
    drop(future);
    assert_eq!(watchdog.waiting(), 0);
}

struct Panicking;

impl Wake for Panicking {
    fn wake(self: Arc<Self>) {
        panic!("on purpose");
    }
}

#[test]
fn futures_are_woken_and_ends_seen_after_a_waker_or_a_hook_has_panicked() {
    let (group, notes) = group(0, 1, "cpu:open");
    let (seen, sees) = std::sync::mpsc::channel();
    group.on_completion(move |call| {
        seen.send(call.sequence).unwrap();
        panic!("on purpose");
    });
    let end = |call: usize| notes.pending.lock().unwrap()[call].end(Ok(Outcome::default()));
    let mut data = [0.0];
    let mut future = start(&group, &mut data).unwrap().into_future();
    let waker = Arc::new(Panicking).into();
    assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
    end(0);
    assert_eq!(sees.recv_timeout(LONG), Ok(1));
    while group.shared.family.watchdog.waiting() > 0 {
        std::thread::yield_now();
    }
    let work = start(&group, &mut data).unwrap();
    std::thread::scope(|scope| {
        let woken = scope.spawn(move || block_on(work.into_future()));
        while group.shared.family.watchdog.waiting() == 0 && !woken.is_finished() {
            std::thread::yield_now();
        }
        end(1);
        woken.join().unwrap().unwrap();
    });
    assert_eq!(sees.recv_timeout(LONG), Ok(2));
}

#[test]
fn an_owned_buffer_comes_back() {
    let (group, notes) = group(0, 1, "cpu:open");
    let owned = group.all_reduce_owned(vec![5_i32; 3], ReduceOp::Sum).unwrap();
    let owned = owned.wait_for(Duration::from_millis(1)).unwrap_err();
    notes.pending.lock().unwrap()[0].end(Ok(Outcome::default()));
    let (buffer, outcome) = block_on(owned);
    outcome.unwrap();
    assert_eq!(buffer, [5; 3]);
    // One that is dropped waits for the end first.
    let dropped = group.all_reduce_owned(vec![0_u8; 3], ReduceOp::Sum).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(5));
            notes.pending.lock().unwrap()[1].end(Ok(Outcome::default()));
        });
        drop(dropped);
        assert!(notes.pending.lock().unwrap()[1].poll().unwrap().is_some());
    });
}
