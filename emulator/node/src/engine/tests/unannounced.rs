//! Waiting for what nobody announces.

use super::*;

/// A wait until the flag is set, and the flag.
fn until() -> (Arc<AtomicBool>, Op) {
    let flag = Arc::new(AtomicBool::new(false));
    let is_so = Arc::clone(&flag);
    (flag, Op::Until(Box::new(move || is_so.load(Ordering::Acquire))))
}

#[test]
fn a_stream_waits_for_what_nobody_announces_and_others_do_not() {
    let engine = engine(idle_script);
    let (waiting, _) = stream(&engine, StreamKind::NonBlocking);
    let (free, _) = stream(&engine, StreamKind::NonBlocking);
    let log = Arc::default();
    let (flag, op) = until();
    engine.submit(waiting, op).unwrap();
    engine.submit(waiting, note(&log, "behind")).unwrap();
    engine.submit(free, note(&log, "beside")).unwrap();
    engine.submit(free, launch("k", 3)).unwrap();
    engine.wait(free);
    assert!(!engine.is_idle(waiting));
    assert_eq!(*log.lock().unwrap(), ["beside"]);
    flag.store(true, Ordering::Release);
    engine.wait(waiting);
    assert_eq!(*log.lock().unwrap(), ["beside", "behind"]);
}

#[test]
fn what_nobody_announces_is_seen_while_blocks_wait_too() {
    let over = Arc::new(AtomicBool::new(false));
    let script = {
        let over = Arc::clone(&over);
        move |_: &str, _| if over.load(Ordering::Acquire) { TurnEnd::Done } else { TurnEnd::Spinning }
    };
    let engine = engine(script);
    let (kernels, _) = stream(&engine, StreamKind::NonBlocking);
    let (waiting, _) = stream(&engine, StreamKind::NonBlocking);
    engine.submit(kernels, launch("k", 2)).unwrap();
    let (flag, op) = until();
    engine.submit(waiting, op).unwrap();
    flag.store(true, Ordering::Release);
    engine.wait(waiting);
    assert!(!engine.is_idle(kernels));
    over.store(true, Ordering::Release);
    engine.wait(kernels);
}

#[test]
fn a_wait_that_nobody_ends_ends_with_its_context() {
    let engine = engine(idle_script);
    let (waiting, health) = stream(&engine, StreamKind::NonBlocking);
    let log: Arc<Mutex<Vec<_>>> = Arc::default();
    let (_flag, op) = until();
    engine.submit(waiting, op).unwrap();
    engine.submit(waiting, note(&log, "behind")).unwrap();
    engine.stop_context(1, &health);
    engine.wait(waiting);
    assert!(log.lock().unwrap().is_empty());
    assert!(health.failure().is_some());
}

/// An event of which the only record is never reached.
struct NeverReached {
    is_abandoned: bool,
}

impl Marks for NeverReached {
    fn record(&self) -> u64 {
        1
    }

    fn recorded(&self) -> u64 {
        1
    }

    fn reach(&self, _: u64) {}

    fn has_reached(&self, _: u64) -> bool {
        false
    }

    fn is_abandoned(&self, _: u64) -> bool {
        self.is_abandoned
    }
}

#[test]
fn a_stream_that_waits_for_the_event_of_a_dead_process_fails_in_the_end_and_for_a_live_ones_waits_on() {
    let engine = engine_with(idle_script, Duration::from_millis(150));
    for is_abandoned in [false, true] {
        let (waiting, health) = stream(&engine, StreamKind::NonBlocking);
        let event = Arc::new(Event::shared(Arc::new(NeverReached { is_abandoned })));
        engine.submit(waiting, Op::Wait(Arc::clone(&event), 1)).unwrap();
        if is_abandoned {
            engine.wait(waiting);
            assert_eq!(health.failure(), Some(StickyError::LaunchTimeout));
            assert!(!event.wait(1, Duration::from_millis(150)), "nor does the host wait for ever");
        } else {
            std::thread::sleep(Duration::from_millis(600));
            assert!(!engine.is_idle(waiting) && health.failure().is_none());
            engine.stop_context(1, &health);
        }
    }
}
