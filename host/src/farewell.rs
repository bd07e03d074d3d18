//! Goodbyes between the processes of a communicator.
//!
//! Memory that a peer has open must not be freed, so a rank must know when its peers have closed theirs; and it must
//! know that from processes whose driver context may be lost. Each rank has a datagram socket in Linux's abstract
//! namespace, named after the rendezvous: nothing in the file system, and gone with the process.
//!
//! A goodbye to a rank that does not listen for long may be lost, because the system queues only a few datagrams (ten
//! by default). So a socket that was there once and is there no more is a goodbye too: a rank drops its socket after
//! it has closed its peers' memory, and never if it could not.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::store::Pause;

/// How far a rank is in leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    /// None of its kernels will touch a peer's memory any more.
    Quiet = 1,
    /// The same, of a rank that closes its communicator when nothing has gone wrong.
    Closed = 2,
    /// It has closed its peers' memory.
    Gone = 3,
}

/// This rank's socket.
#[derive(Debug)]
pub(crate) struct Farewell {
    socket: UnixDatagram,
    generation: u64,
    rank: usize,
    /// The stage that each rank has told, as a number.
    told: Vec<AtomicU8>,
    /// The ranks that have told [`Stage::Closed`].
    closed: Vec<AtomicBool>,
    /// The ranks whose sockets were there when the communicator was built. (Those of another network namespace never
    /// are.)
    met: Vec<AtomicBool>,
}

/// How often a waiting rank looks whether the others' sockets are still there.
const PRESENCE_INTERVAL: Duration = Duration::from_millis(50);

impl Farewell {
    /// The socket of `rank` in the rendezvous `generation`.
    pub(crate) fn open(generation: u64, rank: usize, world_size: usize) -> Result<Self, Error> {
        let open = || {
            let socket = UnixDatagram::bind_addr(&address(generation, rank)?)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = open()
            .map_err(|source| Error::System { what: "cannot open a socket for goodbyes".into(), source })?;
        let told = (0..world_size).map(|_| AtomicU8::new(0)).collect();
        let closed = (0..world_size).map(|_| AtomicBool::new(false)).collect();
        let met = (0..world_size).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { socket, generation, rank, told, closed, met })
    }

    /// Notes whose sockets are there; to be called once all ranks have opened theirs.
    pub(crate) fn meet(&self) {
        for (rank, met) in self.met.iter().enumerate() {
            met.store(self.is_there(rank), Ordering::Relaxed);
        }
    }

    fn is_there(&self, rank: usize) -> bool {
        let connected =
            UnixDatagram::unbound().and_then(|socket| socket.connect_addr(&address(self.generation, rank)?));
        !connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    /// Tells every other rank.
    pub(crate) fn tell(&self, stage: Stage) {
        for peer in (0..self.told.len()).filter(|peer| *peer != self.rank) {
            let message = [self.rank as u8, stage as u8];
            let sent = address(self.generation, peer)
                .and_then(|address| self.socket.send_to_addr(&message, &address));
            match sent {
                // A peer that is gone need not be told.
                Err(error) if error.kind() != ErrorKind::ConnectionRefused => {
                    tracing::debug!(%error, peer, "a goodbye could not be sent");
                }
                _ => {}
            }
        }
    }

    /// Waits at most `limit` until each rank has told `stage`, or `excused` says that it need not. Returns the ranks
    /// that have not.
    pub(crate) fn wait(&self, stage: Stage, limit: Duration, excused: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut pause = Pause::new(limit);
        let mut looked = None;
        loop {
            self.receive();
            if looked.is_none_or(|at: Instant| at.elapsed() >= PRESENCE_INTERVAL) {
                looked = Some(Instant::now());
                self.note_who_has_left();
            }
            let told = |rank: &usize| self.told[*rank].load(Ordering::Relaxed) >= stage as u8;
            let missing: Vec<usize> = (0..self.told.len())
                .filter(|rank| *rank != self.rank && !told(rank) && !excused(*rank))
                .collect();
            if missing.is_empty() || !pause.again() {
                return missing;
            }
        }
    }

    /// Whether `peer` has told [`Stage::Closed`], as far as this rank has heard.
    pub(crate) fn has_closed(&self, peer: usize) -> bool {
        self.receive();
        self.closed[peer].load(Ordering::Relaxed)
    }

    fn note_who_has_left(&self) {
        for (rank, told) in self.told.iter().enumerate() {
            let waited_for = rank != self.rank && told.load(Ordering::Relaxed) < Stage::Gone as u8;
            if waited_for && self.met[rank].load(Ordering::Relaxed) && !self.is_there(rank) {
                told.store(Stage::Gone as u8, Ordering::Relaxed);
            }
        }
    }

    fn receive(&self) {
        let mut message = [0; 2];
        while let Ok(2) = self.socket.recv(&mut message) {
            if let Some(told) = self.told.get(usize::from(message[0])) {
                told.fetch_max(message[1], Ordering::Relaxed);
                if message[1] == Stage::Closed as u8 {
                    self.closed[usize::from(message[0])].store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

fn address(generation: u64, rank: usize) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("meshreduce/{generation:016x}/{rank}"))
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, Hasher, RandomState};

    use super::*;

    /// A rendezvous that no other process knows of.
    fn generation() -> u64 {
        RandomState::new().build_hasher().finish()
    }

    #[test]
    fn ranks_hear_each_other_and_name_who_is_silent() {
        let generation = generation();
        let ranks: Vec<_> = (0..3).map(|rank| Farewell::open(generation, rank, 3).unwrap()).collect();
        ranks[1].tell(Stage::Gone);
        ranks[2].tell(Stage::Quiet);
        let moment = Duration::from_millis(20);
        assert!(ranks[0].wait(Stage::Quiet, Duration::from_secs(10), |_| false).is_empty());
        assert_eq!(ranks[0].wait(Stage::Gone, moment, |_| false), [2]);
        assert!(ranks[0].wait(Stage::Gone, moment, |rank| rank == 2).is_empty());
    }

    #[test]
    fn a_rank_that_is_gone_is_no_obstacle_to_speaking() {
        let generation = generation();
        let rank = Farewell::open(generation, 0, 2).unwrap();
        rank.tell(Stage::Quiet);
        assert_eq!(rank.wait(Stage::Quiet, Duration::ZERO, |_| false), [1]);
    }

    #[test]
    fn a_socket_that_is_gone_says_goodbye_even_if_its_words_were_lost() {
        let generation = generation();
        let ranks: Vec<_> = (0..3).map(|rank| Farewell::open(generation, rank, 3).unwrap()).collect();
        ranks.iter().for_each(Farewell::meet);
        let [listener, talker, silent] = <[Farewell; 3]>::try_from(ranks).unwrap();
        // Far more than the system keeps for a rank that does not listen.
        (0..600).for_each(|_| talker.tell(Stage::Quiet));
        drop(talker);
        drop(silent);
        assert!(listener.wait(Stage::Gone, Duration::from_secs(10), |_| false).is_empty());
    }

    #[test]
    fn a_socket_that_never_was_there_is_no_goodbye() {
        let generation = generation();
        let rank = Farewell::open(generation, 0, 2).unwrap();
        rank.meet();
        assert_eq!(rank.wait(Stage::Gone, Duration::from_millis(20), |_| false), [1]);
    }

    #[test]
    fn a_rank_that_leaves_after_a_failure_has_not_closed() {
        let generation = generation();
        let ranks: Vec<_> = (0..3).map(|rank| Farewell::open(generation, rank, 3).unwrap()).collect();
        ranks[1].tell(Stage::Quiet);
        ranks[1].tell(Stage::Gone);
        ranks[2].tell(Stage::Closed);
        assert!(ranks[0].wait(Stage::Quiet, Duration::from_secs(10), |_| false).is_empty());
        assert!(!ranks[0].has_closed(1));
        assert!(ranks[0].has_closed(2));
    }
}
