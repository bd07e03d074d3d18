//! The end of a rank's connections: what is still to be said is said, and what still comes is read and forgotten.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::failure::FAILED;
use super::super::wire::{Broken, Tcp, Wire};
use super::{Mailbox, TURN};
use crate::error::Error;

/// How often it is looked whether the other ends have taken something.
const PAUSE: Duration = Duration::from_millis(1);

/// Says what is still to be said, and closes; waits for the other ends to have it, at most so long.
///
/// A socket that is closed with something unread in it, or gets something later, resets the connection (RFC 1122, 4.2.2.13), and a
/// reset may overtake what was said last: the other rank would take this one for dead. It would also read nothing as long as it only
/// writes what nobody takes here.
pub(in super::super) fn drain(mailbox: &Mutex<Mailbox>, most: Duration) {
    let begun = Instant::now();
    let wait = |is_done: &dyn Fn(&mut Mailbox) -> bool| {
        loop {
            let mut own = mailbox.lock().unwrap_or_else(PoisonError::into_inner);
            own.discard_from_all();
            if is_done(&mut own) || begun.elapsed() >= most {
                return own;
            }
            drop(own);
            std::thread::sleep(PAUSE);
        }
    };
    wait(&Mailbox::flush).close();
    drop(wait(&|own| own.is_delivered()));
}

impl Mailbox {
    /// What a rank has sent makes no sense, or was its last word: nothing more is taken of it. (It would be found again and again, where
    /// it stays in a ring.)
    pub(super) fn stop_receiving(&mut self, peer: usize) {
        let link = &mut self.links[peer];
        link.is_read_closed = true;
        link.left.get_or_insert(FAILED);
    }

    /// Reads what comes from a rank of which nothing more is taken; whether that was something.
    pub(super) fn discard_from(&mut self, peer: usize) -> Result<bool, Error> {
        let Wire::Tcp(tcp) = &mut self.links[peer].wire else { return Ok(false) };
        match discard(tcp, TURN) {
            Ok(count) => Ok(count > 0),
            Err(broken) => self.broke(peer, &broken).map(|()| false),
        }
    }

    /// Reads what comes from anybody, and forgets it.
    fn discard_from_all(&mut self) {
        for link in &mut self.links {
            let Wire::Tcp(tcp) = &mut link.wire else { continue };
            let mut left = TURN;
            while left > 0 && !link.broken {
                match discard(tcp, left) {
                    // Whoever says no more may still listen.
                    Ok(0) | Err(Broken::Closed) => break,
                    Ok(count) => left -= count,
                    Err(_) => link.broken = true,
                }
            }
        }
    }
}

/// Reads on and forgets it.
pub(super) fn discard(tcp: &mut Tcp, most: usize) -> Result<usize, Broken> {
    let mut scratch = [0; 4096];
    tcp.read(&mut scratch[..most.min(4096)])
}
