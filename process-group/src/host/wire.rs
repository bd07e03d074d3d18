//! Wires: what carries frames from one rank to another, a pair of rings in shared memory or a TCP connection.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::delivered::is_delivered;
use super::frame::{HEADER, Header, MOST_DATA};
use super::ring::{Corrupt, Reader, Writer};
use super::segment::{AWAKE, IN_STEP, Segment};

/// A rank of the same island: its memory, and what wakes its progress thread.
#[derive(Clone, Debug)]
pub(super) struct Neighbour {
    pub(super) rank: usize,
    pub(super) segment: Arc<Segment>,
    pub(super) bell: Arc<OwnedFd>,
}

/// Wakes the progress thread that sleeps on it.
pub(super) fn ring(bell: &OwnedFd) {
    // A counter that is full has not been looked at yet: it is awake, or will be.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

impl Neighbour {
    /// There is mail for it, or room for its own.
    #[inline]
    pub(super) fn ring_for_mail(&self) {
        // Either its thread, before it sleeps, sees what was put in or taken out, or this sees that it sleeps.
        fence(Ordering::SeqCst);
        self.wake(AWAKE);
    }

    /// Wakes its progress thread if it sleeps more deeply than `depth`.
    #[inline]
    fn wake(&self, depth: u32) {
        let state = &self.segment.control().mail.0.state;
        if state.load(Ordering::Relaxed) > depth && state.swap(AWAKE, Ordering::SeqCst) != AWAKE {
            ring(&self.bell);
        }
    }

    /// Wakes its progress thread if that sleeps for a step, which was said before a fence.
    pub(super) fn ring_for_step(&self) {
        self.wake(IN_STEP - 1);
    }
}

/// A connection, nonblocking, with what was read ahead.
#[derive(Debug)]
pub(super) struct Tcp {
    stream: Arc<TcpStream>,
    ahead: Box<[u8]>,
    from: usize,
    to: usize,
}

/// Bytes that are read ahead.
const AHEAD: usize = 64 << 10;
/// Longer reads go past what is read ahead.
const LONG: usize = 16 << 10;

/// A way from this rank to another one and back.
#[derive(Debug)]
pub(super) enum Wire {
    /// To oneself.
    Nowhere,
    /// Rings.
    Shared {
        /// Into the neighbour's segment.
        out: Writer,
        /// In the own segment.
        inn: Reader,
        /// Whose.
        neighbour: Neighbour,
    },
    /// A connection.
    Tcp(Tcp),
}

/// Why a wire is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The other end is closed.
    #[error("its connection was closed")]
    Closed,
    /// The system says so.
    #[error("its connection broke: {0}")]
    System(#[from] std::io::Error),
    /// The other end is not one of ours.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

impl Tcp {
    pub(super) fn new(stream: Arc<TcpStream>) -> Self {
        Self { stream, ahead: vec![0; AHEAD].into(), from: 0, to: 0 }
    }

    /// Reads what has come into one after the other; 0: nothing has.
    fn fetch(&self, into: &mut [IoSliceMut<'_>]) -> Result<usize, Broken> {
        loop {
            match (&*self.stream).read_vectored(into) {
                Ok(0) => return Err(Broken::Closed),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes what has come, as much as fits; says how much.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Broken> {
        if self.from == self.to {
            let mut ahead = std::mem::take(&mut self.ahead);
            // Long data go straight to where they belong, and with them the header behind them, for which nothing more need be asked.
            let direct = if bytes.len() >= LONG { bytes.len() } else { 0 };
            let most = if direct > 0 { HEADER } else { AHEAD };
            let got =
                self.fetch(&mut [IoSliceMut::new(&mut bytes[..direct]), IoSliceMut::new(&mut ahead[..most])]);
            self.ahead = ahead;
            let got = got?;
            (self.from, self.to) = (0, got.saturating_sub(direct));
            if direct > 0 {
                return Ok(got.min(direct));
            }
        }
        let count = bytes.len().min(self.to - self.from);
        bytes[..count].copy_from_slice(&self.ahead[self.from..self.from + count]);
        self.from += count;
        Ok(count)
    }

    fn write(&self, head: &[u8], body: &[u8]) -> Result<usize, Broken> {
        // No signal where the other end is gone.
        let flags = SendFlags::NOSIGNAL;
        loop {
            let parts = [IoSlice::new(head), IoSlice::new(body)];
            match rustix::net::sendmsg(&self.stream, &parts, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => return Ok(count),
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Broken::System(error.into())),
            }
        }
    }
}

impl Wire {
    /// Sends as much of a frame as can be sent without waiting, of which so many bytes have been sent; says how much. Into a ring a
    /// frame goes as a whole, if it does.
    #[inline]
    pub(super) fn write(&mut self, header: &Header, data: &[u8], sent: usize) -> Result<usize, Broken> {
        match self {
            Wire::Nowhere => Ok(0),
            Wire::Shared { out, .. } => Ok(if out.write(header, data)? { HEADER + data.len() } else { 0 }),
            Wire::Tcp(tcp) => {
                let head = header.encode();
                tcp.write(&head[sent.min(HEADER)..], &data[sent.saturating_sub(HEADER)..])
            }
        }
    }

    /// Most bytes of data in a frame.
    pub(super) fn piece(&self) -> usize {
        match self {
            Wire::Shared { out, .. } => out.piece().min(MOST_DATA),
            _ => MOST_DATA,
        }
    }

    /// Whether the other end must be told of it where something was put in or taken out.
    pub(super) fn neighbour(&self) -> Option<&Neighbour> {
        match self {
            Wire::Shared { neighbour, .. } => Some(neighbour),
            _ => None,
        }
    }

    /// Whether a ring has a frame.
    pub(super) fn has_frame(&self) -> bool {
        matches!(self, Wire::Shared { inn, .. } if inn.has_frame())
    }

    /// Whether a ring that was full may have room.
    pub(super) fn has_more_room(&self) -> bool {
        matches!(self, Wire::Shared { out, .. } if out.has_more_room())
    }

    /// Whether the writer at the other end has waited for room.
    pub(super) fn was_full(&self) -> bool {
        matches!(self, Wire::Shared { inn, .. } if inn.was_full())
    }

    /// Nothing more comes from this end.
    pub(super) fn close(&self) {
        if let Wire::Tcp(tcp) = self {
            // It may be broken already.
            let _ = tcp.stream.shutdown(std::net::Shutdown::Write);
        }
    }

    /// Whether the other end has all that was said, as far as that can be told.
    pub(super) fn is_delivered(&self) -> bool {
        match self {
            Wire::Tcp(tcp) => is_delivered(&*tcp.stream),
            _ => true,
        }
    }
}
