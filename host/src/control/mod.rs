//! Control connections: how the ranks of a communicator tell each other that they leave it.
//!
//! Memory that a peer has mapped must not be freed, so a rank must know when its peers have unmapped it, and when none of
//! their kernels touches it any more; it must know that also from processes whose device context is lost. Each pair of
//! ranks has one stream socket for it, made at the rendezvous ([`connect`]) and only with the process that the rendezvous
//! names: both sides show what they were told through the store and nobody else knows, and the kernel says which process
//! is at the other end. The socket's end is a message too: a process that ends, however it does, closes it.
//!
//! The sockets lie in Linux's abstract namespace, which is one for each network namespace: nothing in the file system,
//! nothing left behind.
#![forbid(unsafe_code)]

pub(crate) mod connect;

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};

/// What a rank tells the others when it leaves. Each is one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Message {
    /// It does not close its communicator but drops it. None of its kernels will touch a peer's memory any more.
    Dropped = 1 << 0,
    /// It closes its communicator, in which nothing has failed. None of its kernels will touch a peer's memory any more.
    Closed = 1 << 1,
    /// It closes its communicator, in which something has failed. As above.
    ClosedAfterFailure = 1 << 2,
    /// It has unmapped its peers' memory.
    Unmapped = 1 << 3,
}

/// The connection has ended: nothing more will come.
const ENDED: u8 = 1 << 4;

/// What is known of a peer's leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerStatus(u8);

impl PeerStatus {
    fn any(self, messages: &[Message]) -> bool {
        messages.iter().any(|message| self.0 & *message as u8 != 0)
    }

    /// It closes its communicator, well or after a failure.
    pub(crate) fn closes(self) -> bool {
        self.any(&[Message::Closed, Message::ClosedAfterFailure])
    }

    /// It closes its communicator, and nothing had failed.
    pub(crate) fn closes_well(self) -> bool {
        self.any(&[Message::Closed])
    }

    /// It has dropped its communicator without closing it.
    pub(crate) fn drops(self) -> bool {
        self.any(&[Message::Dropped])
    }

    /// It has said that none of its kernels touches other ranks' memory.
    pub(crate) fn is_quiet(self) -> bool {
        self.closes() || self.drops()
    }

    /// It has said that it has nothing of other ranks mapped.
    pub(crate) fn has_unmapped(self) -> bool {
        self.any(&[Message::Unmapped])
    }

    /// Its connection has ended. Without a goodbye before it that is the end of its process, whose context the driver may
    /// still be taking down.
    fn has_ended(self) -> bool {
        self.0 & ENDED != 0
    }

    /// Its connection ended before it said that it leaves.
    pub(crate) fn vanished(self) -> bool {
        self.has_ended() && !self.closes() && !self.drops()
    }
}

/// The connection to one peer.
#[derive(Debug)]
struct Peer {
    socket: UnixStream,
    heard: AtomicU8,
}

impl Peer {
    fn heard(&self) -> PeerStatus {
        PeerStatus(self.heard.load(Ordering::Relaxed))
    }

    /// Notes what has come, without waiting.
    fn receive(&self) {
        let mut bytes = [0; 16];
        loop {
            match (&self.socket).read(&mut bytes) {
                Ok(0) => return self.note(ENDED),
                Ok(count) => bytes[..count].iter().for_each(|message| self.note(*message & !ENDED)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The peer ended with something unread.
                Err(_) => return self.note(ENDED),
            }
        }
    }

    fn note(&self, message: u8) {
        self.heard.fetch_or(message, Ordering::Relaxed);
    }
}

/// This rank's connections.
#[derive(Debug)]
pub(crate) struct Control {
    /// By rank; `None` for this one.
    peers: Vec<Option<Peer>>,
}

/// How often a waiting rank asks who has died otherwise: a forked child keeps its parent's sockets open.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(50);

impl Control {
    /// Over connected sockets that do not block, by rank.
    fn new(sockets: Vec<Option<UnixStream>>) -> Self {
        let peer = |socket| Peer { socket, heard: AtomicU8::new(0) };
        Self { peers: sockets.into_iter().map(|socket| socket.map(peer)).collect() }
    }

    /// Tells every other rank.
    pub(crate) fn tell(&self, message: Message) {
        for (rank, peer) in self.peers.iter().enumerate() {
            let Some(peer) = peer else { continue };
            // A few bytes in a connection's life always fit its buffer.
            match send(&peer.socket, &[message as u8], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) => {}
                // A peer that is gone need not be told.
                Err(error) => tracing::debug!(%error, rank, "a peer could not be told"),
            }
        }
    }

    /// What has been heard of `rank` so far.
    pub(crate) fn heard(&self, rank: usize) -> PeerStatus {
        self.peers.get(rank).and_then(Option::as_ref).map_or(PeerStatus(0), |peer| {
            peer.receive();
            peer.heard()
        })
    }

    /// Waits at most `limit` until of every other rank `enough` has been heard, or `excused` says that it need not.
    /// Returns the ranks of which it has not.
    pub(crate) fn wait(
        &self,
        limit: Duration,
        enough: impl Fn(PeerStatus) -> bool,
        excused: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let end = Instant::now().checked_add(limit);
        loop {
            let mut missing = Vec::new();
            let mut sockets = Vec::new();
            for (rank, peer) in self.peers.iter().enumerate() {
                let Some(peer) = peer else { continue };
                peer.receive();
                if enough(peer.heard()) || excused(rank) {
                    continue;
                }
                missing.push(rank);
                if !peer.heard().has_ended() {
                    sockets.push(PollFd::from_borrowed_fd(peer.socket.as_fd(), PollFlags::IN));
                }
            }
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if missing.is_empty() || left.is_zero() {
                return missing;
            }
            let pause = left.min(LIVENESS_INTERVAL);
            let pause = Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) };
            // A signal that interrupts is one more look.
            let _ = poll(&mut sockets, Some(&pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` ranks, all connected.
    pub(crate) fn ranks(count: usize) -> Vec<Control> {
        let mut sockets: Vec<Vec<Option<UnixStream>>> = (0..count).map(|_| Vec::new()).collect();
        for a in 0..count {
            sockets[a].push(None);
            for b in a + 1..count {
                let (one, other) = UnixStream::pair().unwrap();
                one.set_nonblocking(true).unwrap();
                other.set_nonblocking(true).unwrap();
                // By rank: those of lower ranks came in earlier turns.
                sockets[a].push(Some(one));
                sockets[b].push(Some(other));
            }
        }
        sockets.into_iter().map(Control::new).collect()
    }

    const LONG: Duration = Duration::from_secs(20);
    const MOMENT: Duration = Duration::from_millis(20);

    #[test]
    fn ranks_hear_each_other_and_name_who_is_silent() {
        let ranks = ranks(3);
        ranks[1].tell(Message::Closed);
        ranks[1].tell(Message::Unmapped);
        ranks[2].tell(Message::Dropped);
        assert!(ranks[0].wait(LONG, PeerStatus::is_quiet, |_| false).is_empty());
        assert_eq!(ranks[0].wait(MOMENT, PeerStatus::has_unmapped, |_| false), [2]);
        assert!(ranks[0].wait(MOMENT, PeerStatus::has_unmapped, |rank| rank == 2).is_empty());
        assert!(ranks[0].heard(1).closes_well() && !ranks[0].heard(2).closes());
    }

    #[test]
    fn a_rank_that_ends_is_noticed_and_told_apart_from_one_that_said_goodbye() {
        let mut ranks = ranks(3);
        ranks[1].tell(Message::ClosedAfterFailure);
        ranks.truncate(1);
        assert!(ranks[0].wait(LONG, PeerStatus::has_ended, |_| false).is_empty());
        assert!(ranks[0].heard(1).closes() && !ranks[0].heard(1).closes_well());
        assert!(!ranks[0].heard(1).vanished());
        assert!(ranks[0].heard(2).vanished());
        assert!(!ranks[0].heard(2).is_quiet(), "its kernels may still run: its process decides");
        // Telling those that are gone does no harm.
        ranks[0].tell(Message::Unmapped);
    }

    #[test]
    fn waiting_ends_when_a_message_comes_and_not_when_the_time_is_up() {
        let mut ranks = ranks(2);
        let other = ranks.pop().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(MOMENT);
                other.tell(Message::Closed);
            });
            assert!(ranks[0].wait(Duration::MAX, PeerStatus::is_quiet, |_| false).is_empty());
        });
    }
}
