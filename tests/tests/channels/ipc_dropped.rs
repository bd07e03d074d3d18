//! The channel `ipc`, when one side gives up a transfer whose chunks are under way: no side ever says that it went well unless every
//! byte has come.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use meshreduce_channels::{Error, Failed, Ipc, Memory, Registry, Slice};
use meshreduce_checks::in_process::all_driver_calls;
use meshreduce_device::Device;
use meshreduce_tests::channel_peer::{Gate, Gpu, LONG, Peer, data, eventually};
use meshreduce_tests::here;
use meshreduce_tests::rank_process::{Part, Stage, heard};

const SLOT: u64 = 4096;
/// Of which half are given to streams that are not ready.
const SLOTS: u16 = 4;
/// What the receiver asks of the driver for a chunk: to wait for it, to copy it, to say so.
const CALLS_FOR_A_CHUNK: u64 = 3;

fn channels(sees_words: bool) -> Registry {
    let mut registry = Registry::empty();
    registry.register(Ipc::default().slots(SLOTS).slot_bytes(SLOT).sees_words(sees_words)).unwrap();
    registry
}

/// Both ranks, each of which ends well, where the receiver sees what is filled and where it is told.
fn play(part: &str) {
    for part in [part.to_owned(), format!("{part}, by messages")] {
        let stage = Stage::new(here!("rank"), 2);
        let ranks = [0, 1].map(|rank| stage.start(rank, &part));
        for (rank, child) in ranks.into_iter().enumerate() {
            let (said, well) = heard(child);
            assert!(well, "rank {rank} of {part}: {said:?}");
        }
    }
}

/// Not a test of its own: what the tests below run as processes.
#[test]
fn rank() {
    let Some(part) = Part::of_this_process() else { return };
    let (name, sees_words) = match part.name.strip_suffix(", by messages") {
        Some(name) => (name.to_owned(), false),
        None => (part.name.clone(), true),
    };
    let peer = Peer::meet(part, &channels(sees_words), &[Device::Cuda(0), Device::Cuda(1)]);
    match name.as_str() {
        "the send is dropped" => held(&peer, Dropped::Send),
        "the receive is dropped" => held(&peer, Dropped::Receive),
        "closed" => closed(&peer),
        "no bytes" => no_bytes(&peer),
        "at any moment" => at_any_moment(&peer),
        other => panic!("there is no part {other}"),
    }
    // Whoever closes takes along what the other one has under way.
    peer.meet_at("the end");
    peer.end();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dropped {
    Send,
    Receive,
}

/// Transfers that go well, in both directions.
fn go_well(peer: &Peer, gpu: &Gpu, number: u64) {
    let rank = peer.part.rank as u64;
    let remote = Device::Cuda(1 - rank as u32);
    let received = peer.endpoint.recv(gpu.empty(5 * SLOT), remote, None);
    let sent = peer.endpoint.send(gpu.memory(&data(2 * number + rank, 5 * SLOT)), remote, None);
    let (memory, _) = received.wait(LONG).unwrap();
    gpu.assert_holds(memory.address(), 2 * number + 1 - rank, 5 * SLOT);
    sent.wait(LONG).unwrap();
}

fn is_remote<M: Memory>(failed: &Failed<M>, expected: &str) -> bool {
    matches!(&failed.error, Error::Remote { what, .. } if what.contains(expected))
}

/// Rank 0 sends behind a stream that stands still, and all chunks of it are with the receiver when one of the two drops it. The
/// stream goes on only when the receive has ended.
fn held(peer: &Peer, dropped: Dropped) {
    let gpu = Gpu::new(peer.part.rank as u32);
    go_well(peer, &gpu, 0);
    for (round, chunks) in [1, 2].into_iter().enumerate() {
        let bytes = chunks * SLOT;
        if peer.part.rank == 0 {
            let held = Gpu::new(0);
            let memory = held.memory(&data(99, bytes));
            let gate = Gate::shut(&held);
            let sent = peer.endpoint.send(memory, Device::Cuda(1), &held.stream);
            peer.part.hear(&format!("all of {round} is staged"));
            if dropped == Dropped::Send {
                sent.abort();
            }
            peer.part.hear(&format!("{round} has failed"));
            drop(gate);
            let failed = sent.wait(LONG).expect_err("nothing has come");
            let is_it = match dropped {
                Dropped::Send => matches!(failed.error, Error::Dropped),
                Dropped::Receive => is_remote(&failed, "the receive was dropped"),
            };
            assert!(is_it && failed.into_memory().is_some());
        } else {
            let memory = gpu.empty(bytes);
            let before = all_driver_calls();
            let received = peer.endpoint.recv(memory, Device::Cuda(0), None);
            let all = before + chunks * CALLS_FOR_A_CHUNK;
            eventually("the chunks are announced", || all_driver_calls() >= all);
            peer.part.tell(&format!("all of {round} is staged"), b"");
            if dropped == Dropped::Receive {
                received.abort();
            }
            let failed = received.wait(LONG).expect_err("nothing has come");
            let is_it = match dropped {
                Dropped::Send => is_remote(&failed, "the send was dropped"),
                Dropped::Receive => matches!(failed.error, Error::Dropped),
            };
            assert!(is_it && failed.into_memory().is_some());
            peer.part.tell(&format!("{round} has failed"), b"");
        }
        go_well(peer, &gpu, 1 + round as u64);
    }
}

#[test]
fn a_receive_whose_send_is_dropped_while_its_chunks_are_awaited_fails_on_both_sides() {
    play("the send is dropped");
}

#[test]
fn a_receive_that_is_dropped_while_its_chunks_are_awaited_fails_on_both_sides() {
    play("the receive is dropped");
}

/// Rank 0 closes the endpoint while a send of it is staged behind a stream that stands still.
fn closed(peer: &Peer) {
    let gpu = Gpu::new(peer.part.rank as u32);
    go_well(peer, &gpu, 0);
    let remote = Device::Cuda(1 - peer.part.rank as u32);
    if peer.part.rank == 0 {
        let held = Gpu::new(0);
        let [staged, unstaged] = [99, 98].map(|number| held.memory(&data(number, SLOT)));
        let empty = gpu.empty(SLOT);
        let gate = Gate::shut(&held);
        let staged = peer.endpoint.send(staged, remote, &held.stream);
        peer.part.hear("it is staged");
        let unstaged = peer.endpoint.send(unstaged, remote, &held.stream);
        let received = peer.endpoint.recv(empty, remote, None);
        peer.endpoint.close();
        // Those of which nothing is enqueued end without the stream, and give their memory back.
        let ended = [unstaged.wait(LONG), received.wait(LONG)];
        assert!(!staged.poll().unwrap(), "its memory is still to be read");
        peer.part.hear("it has failed");
        drop(gate);
        for failed in ended.into_iter().chain([staged.wait(LONG)]) {
            let failed = failed.unwrap_err();
            assert!(matches!(failed.error, Error::Closed { .. }), "{failed}");
            assert!(failed.into_memory().is_some());
        }
    } else {
        let memory = gpu.empty(SLOT);
        let before = all_driver_calls();
        let received = peer.endpoint.recv(memory, remote, None);
        eventually("the chunk is announced", || all_driver_calls() >= before + CALLS_FOR_A_CHUNK);
        peer.part.tell("it is staged", b"");
        let failed = received.wait(LONG).expect_err("nothing has come");
        assert!(matches!(failed.error, Error::ClosedByPeer { .. }), "{failed}");
        assert!(failed.into_memory().is_some());
        peer.part.tell("it has failed", b"");
    }
}

#[test]
fn an_endpoint_that_is_closed_ends_all_but_what_is_enqueued_behind_a_stream_that_stands_still() {
    play("closed");
}

/// Holds up whoever wakes it.
struct HoldUp {
    held: Sender<()>,
    go: Mutex<Receiver<()>>,
}

impl Wake for HoldUp {
    fn wake(self: Arc<Self>) {
        self.held.send(()).unwrap();
        // Whoever has the other end is told nothing if it is gone, and then this goes on too.
        let _ = self.go.lock().unwrap().recv();
    }
}

/// Rank 1 wants a message of no bytes, and drops it while rank 0, whose progress thread is held up, has not answered: the send fails too.
fn no_bytes(peer: &Peer) {
    let gpu = Gpu::new(peer.part.rank as u32);
    let nothing = || Slice::new(gpu.empty(1), 0..0).unwrap();
    let remote = Device::Cuda(1 - peer.part.rank as u32);
    if peer.part.rank == 0 {
        let ((held, is_held), (go, may_go)) = (channel(), channel());
        let waker = Waker::from(Arc::new(HoldUp { held, go: Mutex::new(may_go) }));
        let mut first = pin!(peer.endpoint.send(gpu.empty(SLOT), remote, None));
        assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let sends = [1, 2].map(|_| peer.endpoint.send(nothing(), remote, None));
        peer.part.tell("they are started", b"");
        is_held.recv_timeout(LONG).unwrap();
        peer.part.tell("it is held up", b"");
        peer.part.hear("they were dropped");
        drop(go);
        for sent in sends {
            let failed = sent.wait(LONG).expect_err("its receive was dropped");
            assert!(is_remote(&failed, "the receive was dropped") && failed.into_memory().is_some());
        }
        assert!(matches!(first.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(_))));
    } else {
        peer.part.hear("they are started");
        peer.endpoint.recv(gpu.empty(SLOT), remote, None).wait(LONG).unwrap();
        peer.part.hear("it is held up");
        let [wanted, next] = [1, 2].map(|_| peer.endpoint.recv(nothing(), remote, None));
        // What ends later was begun later, so the sender was told of both.
        for received in [next, wanted] {
            received.abort();
            let failed = received.wait(LONG).expect_err("nothing has come");
            assert!(matches!(failed.error, Error::Dropped) && failed.into_memory().is_some());
        }
        peer.part.tell("they were dropped", b"");
    }
    go_well(peer, &gpu, 1);
}

#[test]
fn a_send_of_no_bytes_whose_receive_is_dropped_in_time_fails_too() {
    play("no bytes");
}

/// Transfers of some slots that one side drops, or both do, at many moments. What went well on the receiver's side has every byte; what
/// went well on the sender's side did so on the receiver's.
fn at_any_moment(peer: &Peer) {
    const ROUNDS: usize = 600;
    let gpu = Gpu::new(peer.part.rank as u32);
    let mut well = Vec::new();
    for round in 0..ROUNDS {
        let bytes = [0, 100, SLOT, 3 * SLOT + 5, 9 * SLOT][round % 5];
        let (send_is_dropped, receive_is_dropped) =
            [(false, false), (true, false), (false, true), (true, true)][round / 5 % 4];
        let memory = match peer.part.rank {
            0 => gpu.memory(&data(round as u64, bytes)),
            _ => gpu.empty(bytes),
        };
        let memory = Slice::new(memory, 0..bytes).unwrap();
        let (transfer, is_dropped) = match peer.part.rank {
            0 => (peer.endpoint.send(memory, Device::Cuda(1), &gpu.stream), send_is_dropped),
            _ => (peer.endpoint.recv(memory, Device::Cuda(0), &gpu.stream), receive_is_dropped),
        };
        if is_dropped {
            (0..round * 7919 % 30_000).for_each(|_| std::hint::spin_loop());
            transfer.abort();
        }
        match transfer.wait(LONG) {
            Ok((memory, _)) => {
                if peer.part.rank == 1 {
                    gpu.assert_holds(memory.into_inner().address(), round as u64, bytes);
                }
                well.push(b'+');
            }
            Err(failed) => {
                let is_known = matches!(failed.error, Error::Dropped | Error::Remote { .. });
                assert!(is_known && (send_is_dropped || receive_is_dropped), "{round}: {failed}");
                well.push(b'-');
            }
        }
    }
    if peer.part.rank == 0 {
        peer.part.tell("outcome", &well);
    } else {
        let sent = peer.part.hear("outcome");
        let lost = (0..ROUNDS).find(|round| sent[*round] == b'+' && well[*round] == b'-');
        assert_eq!(lost, None, "sent well, and not received");
    }
}

#[test]
fn what_is_dropped_at_any_moment_goes_well_only_if_every_byte_has_come() {
    play("at any moment");
}
