//! How endpoints and contexts end, and what becomes of what is under way.

#![allow(clippy::unwrap_used)]

mod support;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, Wake};
use std::time::{Duration, Instant};

use meshreduce_channels::{Device, Error, Failed, Memory, Owned, Span};
use support::{LINKS, SOON, bytes, every, pair, pair_of, registry};

const CPU: Device = Device::Cpu;

fn error_of(transfer: Owned<Vec<u8>>) -> Error {
    match transfer.wait(SOON) {
        Ok(_) => panic!("it cannot have gone well"),
        Err(failed) => {
            let error = failed.error.clone();
            assert!(failed.into_memory().is_some(), "the memory was not given back: {error}");
            error
        }
    }
}

#[test]
fn closing_an_endpoint_fails_what_is_under_way_on_both_sides() {
    for (kind, name, links) in every() {
        for length in [1, 30 << 20] {
            let (one, other) = pair_of(&registry(kind), links);
            let sends: Vec<_> = (0..3).map(|_| one.endpoint.send(vec![1_u8; length], CPU, None)).collect();
            let receives: Vec<_> = (0..2).map(|_| one.endpoint.recv(vec![0_u8; length], CPU, None)).collect();
            let theirs = other.endpoint.recv(vec![0_u8; length + 1], CPU, None);
            let more = other.endpoint.recv(vec![0_u8; length], CPU, None);
            // The first one differs, so that both channels are there.
            error_of(theirs);
            more.wait(SOON).unwrap();
            let under_way = other.endpoint.recv(vec![0_u8; length + 1], CPU, None);
            let left = other.endpoint.recv(vec![0_u8; length], CPU, None);
            error_of(under_way);
            one.endpoint.close();
            for receive in receives {
                assert!(matches!(error_of(receive), Error::Closed { .. }), "{kind} {name}");
            }
            drop(sends);
            assert!(
                matches!(error_of(left), Error::ClosedByPeer { received: 0, bytes: b, .. } if b == length as u64)
            );
            one.endpoint.join(SOON).unwrap();
            other.endpoint.join(SOON).unwrap();
            assert!(matches!(error_of(other.endpoint.send(vec![1], CPU, None)), Error::ClosedByPeer { .. }));
            assert!(matches!(error_of(one.endpoint.send(vec![1], CPU, None)), Error::Closed { .. }));
        }
    }
}

#[test]
fn closing_a_context_ends_all_its_endpoints() {
    for (kind, _, links) in every() {
        let (one, other) = pair_of(&registry(kind), links);
        let waiting = one.endpoint.recv(vec![0_u8; 10], CPU, None);
        let theirs = other.endpoint.recv(vec![0_u8; 10], CPU, None);
        one.context.close();
        assert!(matches!(error_of(waiting), Error::ContextClosed));
        assert!(matches!(error_of(theirs), Error::ClosedByPeer { .. }));
        one.context.join(SOON).unwrap();
        assert!(matches!(error_of(one.endpoint.send(vec![1], CPU, None)), Error::ContextClosed));
        one.endpoint.join(SOON).unwrap();
    }
}

#[test]
fn what_was_sent_arrives_though_the_sender_goes_at_once() {
    for (kind, name, links) in every() {
        for _ in 0..10 {
            let (one, other) = pair_of(&registry(kind), links);
            let received = other.endpoint.recv(vec![0_u8; 3 << 20], CPU, None);
            one.endpoint.send(bytes(1, 3 << 20), CPU, None).wait(SOON).unwrap();
            drop(one);
            let (received, _) =
                received.wait(SOON).unwrap_or_else(|failed| panic!("{kind} {name}: {failed}"));
            assert!(received == bytes(1, 3 << 20));
        }
    }
}

#[test]
fn what_was_received_is_acknowledged_though_the_receiver_goes_at_once() {
    for (kind, name, links) in every() {
        for _ in 0..10 {
            let (one, other) = pair_of(&registry(kind), links);
            let sent = one.endpoint.send(bytes(1, 3 << 20), CPU, None);
            other.endpoint.recv(vec![0_u8; 3 << 20], CPU, None).wait(SOON).unwrap();
            drop(other);
            sent.wait(SOON).unwrap_or_else(|failed| panic!("{kind} {name}: {failed}"));
        }
    }
}

/// Memory that says when it is freed, and whether somebody writes to it afterwards.
struct Watched(Vec<u8>, Arc<std::sync::atomic::AtomicBool>);

// SAFETY: as the vector.
unsafe impl Memory for Watched {
    fn span(&self) -> Span {
        self.0.span()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.1.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn memory_of_a_dropped_transfer_lives_until_nothing_uses_it() {
    let is_freed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (one, other) = pair(LINKS[1].1);
    let receive = other.endpoint.recv(Watched(vec![0; 10], Arc::clone(&is_freed)), CPU, None);
    assert!(!receive.poll().unwrap());
    drop(receive);
    let limit = Instant::now() + SOON;
    while !is_freed.load(std::sync::atomic::Ordering::SeqCst) {
        assert!(Instant::now() < limit, "it was never freed");
        std::thread::yield_now();
    }
    drop((one, other));
}

/// Memory that cannot be dropped without harm.
struct Mad(Vec<u8>);

// SAFETY: as the vector.
unsafe impl Memory for Mad {
    fn span(&self) -> Span {
        self.0.span()
    }
}

impl Drop for Mad {
    fn drop(&mut self) {
        panic!("mad");
    }
}

#[test]
fn memory_that_panics_when_it_is_dropped_harms_no_other_transfer() {
    for (kind, name, links) in every() {
        let (one, other) = pair_of(&registry(kind), links);
        let sent = one.endpoint.send(bytes(1, 10), CPU, None);
        let received = other.endpoint.recv(vec![0_u8; 10], CPU, None);
        let mad = other.endpoint.recv(Mad(vec![0; 10]), CPU, None);
        // Whoever is the last to let go of the memory drops it: this thread may be.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(mad)));
        sent.wait(SOON).unwrap();
        received.wait(SOON).unwrap();
        // The dropped one may be answered before or behind it.
        let refused = one.endpoint.send(bytes(2, 10), CPU, None);
        assert!(refused.wait(SOON).is_err(), "{kind} {name}");
        let sent = one.endpoint.send(bytes(3, 10), CPU, None);
        let (received, _) = other.endpoint.recv(vec![0_u8; 10], CPU, None).wait(SOON).unwrap();
        assert!(received == bytes(3, 10), "{kind} {name}");
        sent.wait(SOON).unwrap();
    }
}

/// Waits for a future without a runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut task = Task::from_waker(&waker);
    let mut future = pin!(future);
    let limit = Instant::now() + SOON;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut task) {
            return output;
        }
        assert!(Instant::now() < limit);
        std::thread::park_timeout(SOON);
    }
}

#[test]
fn transfers_are_futures_of_no_runtime() {
    for (kind, _, links) in every() {
        let (one, other) = pair_of(&registry(kind), links);
        let received = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                block_on(async {
                    let (first, _) = other.endpoint.recv(vec![0_u8; 10], CPU, None).await?;
                    let (second, _) = other.endpoint.recv(vec![0_u8; 3 << 20], CPU, None).await?;
                    Ok::<_, Failed<Vec<u8>>>((first, second))
                })
            });
            block_on(async {
                one.endpoint.send(bytes(1, 10), CPU, None).await.unwrap();
                one.endpoint.send(bytes(2, 3 << 20), CPU, None).await.unwrap();
            });
            receiving.join().unwrap()
        });
        let (first, second) = received.unwrap();
        assert!(first == bytes(1, 10) && second == bytes(2, 3 << 20));
    }
}

#[test]
fn a_dropped_context_does_not_hang_and_leaves_nothing() {
    for (kind, _, links) in every() {
        let (one, other) = pair_of(&registry(kind), links);
        let waiting = other.endpoint.recv(vec![0_u8; 10], CPU, None);
        let own = one.endpoint.recv(vec![0_u8; 10], CPU, None);
        let begun = Instant::now();
        drop(one);
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(matches!(error_of(own), Error::ContextClosed | Error::Closed { .. }));
        assert!(matches!(error_of(waiting), Error::ClosedByPeer { .. }));
    }
}
