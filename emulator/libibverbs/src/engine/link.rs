//! Connections between processes: each process has one to every process that it sends requests to, and answers go back
//! on it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use crate::frame::Frame;

/// Bytes that may wait to be sent before requests stop adding to them.
const ROOM: usize = 256 << 10;
/// Bytes that are read at once.
const READ: usize = 256 << 10;

/// Processes that there can be; the upper half of a queue pair's number is its process's.
pub(crate) const SLOTS: u32 = 1 << 12;

/// Where process `slot` of this user listens. The name is abstract: the kernel takes it back however the process ends.
fn address(slot: u32) -> io::Result<SocketAddr> {
    let user = geteuid().as_raw();
    SocketAddr::from_abstract_name(format!("meshreduce-verbs-{user}-{slot}"))
}

/// Takes a slot that no other process has, and listens there.
pub(crate) fn listen() -> io::Result<(u32, UnixListener)> {
    let first = std::process::id();
    for attempt in 0..SLOTS {
        // Slot 0 is left out: so no queue pair has a number that InfiniBand keeps for management.
        let slot = first.wrapping_add(attempt) % SLOTS;
        if slot == 0 {
            continue;
        }
        match UnixListener::bind_addr(&address(slot)?) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok((slot, listener));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AddrNotAvailable.into())
}

/// A connection.
pub(crate) struct Link {
    stream: UnixStream,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are sent.
    sent: usize,
    incoming: Vec<u8>,
}

impl Link {
    pub(crate) fn connect(slot: u32) -> io::Result<Self> {
        Self::new(UnixStream::connect_addr(&address(slot)?)?)
    }

    /// A connection whose other end is a process of the same user; those of others are refused.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        if socket_peercred(&stream)?.uid != geteuid() {
            return Err(ErrorKind::PermissionDenied.into());
        }
        stream.set_nonblocking(true)?;
        Ok(Self { stream, outgoing: Vec::new(), sent: 0, incoming: Vec::new() })
    }

    /// Whether there is room for more of a message.
    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.len() - self.sent < ROOM
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    pub(crate) fn queue(&mut self, frame: &Frame, payload: &[u8]) {
        if self.sent > ROOM {
            self.outgoing.drain(..self.sent);
            self.sent = 0;
        }
        self.outgoing.extend_from_slice(&frame.encode());
        self.outgoing.extend_from_slice(payload);
    }

    /// Sends what it can without waiting.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.has_unsent() {
            match self.stream.write(&self.outgoing[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads once, and gives every frame that is complete to `take`. An error if the other end is gone or is no adapter.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(Frame, &[u8])) -> io::Result<()> {
        let have = self.incoming.len();
        self.incoming.resize(have + READ, 0);
        let result = self.stream.read(&mut self.incoming[have..]);
        self.incoming.truncate(have + result.as_ref().copied().unwrap_or(0));
        match result {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let mut at = 0;
        while let Some(head) = self.incoming.get(at..).and_then(<[u8]>::first_chunk) {
            let frame = Frame::decode(head).ok_or(ErrorKind::InvalidData)?;
            let start = at + Frame::SIZE;
            let Some(payload) = self.incoming.get(start..start + frame.bytes as usize) else { break };
            take(frame, payload);
            at = start + frame.bytes as usize;
        }
        self.incoming.drain(..at);
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
