//! The connection of two endpoints: messages in order and whole, and word at once when the other side has gone.
//!
//! A link never blocks: what it does not take stays in its [`Queue`].

mod frame;
mod memory;
mod outbox;
mod socket;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

pub(crate) use frame::{Kind, LONGEST, MOST_FILES};
pub(crate) use memory::Half;
pub(crate) use outbox::{Outbox, Outgoing, Queue};
pub(crate) use socket::Socket;

use rustix::io::Errno;

use crate::progress::Waker;

/// Why a link is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The other side has gone, or what led there.
    Lost(String),
    /// The other side says what makes no sense.
    Malformed(String),
    /// This process cannot take in what has come: it has as many descriptors as it may have.
    Short(Errno),
}

/// A message that has come.
#[derive(Debug)]
pub(crate) struct Incoming<'a> {
    pub(crate) kind: Kind,
    pub(crate) channel: u32,
    pub(crate) bytes: &'a [u8],
    pub(crate) files: Vec<OwnedFd>,
}

/// A link to another endpoint.
#[derive(Debug)]
pub(crate) enum Link {
    /// Within a process.
    Memory(Half),
    /// A Unix or a TCP socket.
    Socket(Socket),
}

impl Link {
    /// Whether descriptors can go along.
    pub(crate) fn carries_files(&self) -> bool {
        match self {
            Link::Memory(_) => true,
            Link::Socket(socket) => socket.is_unix(),
        }
    }

    /// Whether the system does not tell at once that the other side is gone, so that it is asked for signs of life.
    pub(crate) fn needs_heartbeats(&self) -> bool {
        matches!(self, Link::Socket(_))
    }

    /// What can be waited for by epoll; a link in memory wakes instead.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Link::Memory(_) => None,
            Link::Socket(socket) => Some(socket.descriptor()),
        }
    }

    /// Says whom to wake when something comes.
    pub(crate) fn wakes(&mut self, waker: &Waker) {
        if let Link::Memory(half) = self {
            half.wakes(waker);
        }
    }

    /// Gives the link what it takes; whether it has taken anything.
    pub(crate) fn flush(&mut self, queue: &mut Queue) -> Result<bool, Broken> {
        match self {
            Link::Memory(half) => half.flush(queue),
            Link::Socket(socket) => socket.flush(queue),
        }
    }

    /// Takes in what has come; whether there was anything.
    pub(crate) fn fill(&mut self) -> Result<bool, Broken> {
        match self {
            Link::Memory(half) => half.fill(),
            Link::Socket(socket) => socket.fill(),
        }
    }

    /// The next message of those taken in.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming<'_>>, Broken> {
        match self {
            Link::Memory(half) => Ok(half.next()),
            Link::Socket(socket) => socket.next(),
        }
    }

    /// Says that nothing more will be sent. `false`: the other side has all, and nothing need be read any more.
    pub(crate) fn finish(&mut self) -> bool {
        match self {
            Link::Memory(_) => false,
            Link::Socket(socket) => socket.finish(),
        }
    }

    /// Waits until something may have come, or, if `writes`, can be sent; at most `most`.
    pub(crate) fn wait(&mut self, writes: bool, most: Duration) -> io::Result<()> {
        match self {
            Link::Memory(half) => {
                half.wait(most);
                Ok(())
            }
            Link::Socket(socket) => socket.wait(writes, most),
        }
    }
}

#[cfg(test)]
mod tests;
