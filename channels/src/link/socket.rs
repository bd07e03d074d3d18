//! A link over a Unix or a TCP socket.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use meshreduce_store::descriptors;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::frame::{HEADER, Header};
use super::{Broken, Incoming, MOST_FILES, Queue};

/// Bytes that are read beyond the message that is being read: several small ones come with one call of the system.
const AHEAD: usize = 64 << 10;
/// Parts that go with one call of the system.
const PARTS: usize = 48;
/// Descriptors that have come and were not claimed yet.
const MOST_PENDING: usize = 4 * MOST_FILES;

/// A connected socket that does not block.
#[derive(Debug)]
pub(crate) struct Socket {
    file: OwnedFd,
    is_unix: bool,
    /// Bytes of the queue's first message, header and all, that the system has.
    sent: usize,
    /// What has come: `begin..end` was not looked at yet.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    files: VecDeque<OwnedFd>,
    /// Nothing more is sent.
    is_finished: bool,
}

impl Socket {
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::new(stream.into(), true))
    }

    /// # Errors
    ///
    /// The system's.
    pub(crate) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self::new(stream.into(), false))
    }

    fn new(file: OwnedFd, is_unix: bool) -> Self {
        Self {
            file,
            is_unix,
            sent: 0,
            buffer: Vec::new(),
            begin: 0,
            end: 0,
            files: VecDeque::new(),
            is_finished: false,
        }
    }

    pub(super) fn is_unix(&self) -> bool {
        self.is_unix
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn flush(&mut self, queue: &mut Queue) -> Result<bool, Broken> {
        let mut moved = false;
        while !queue.is_empty() {
            match self.send_some(queue) {
                Ok(0) => return Err(Broken::Lost("the connection takes nothing any more".to_owned())),
                Ok(mut bytes) => {
                    moved = true;
                    while let Some(first) = queue.front_mut() {
                        let left = HEADER + first.len() - self.sent;
                        // They went with the first byte.
                        first.files.clear();
                        if bytes < left {
                            self.sent += bytes;
                            break;
                        }
                        bytes -= left;
                        self.sent = 0;
                        queue.pop();
                        if bytes == 0 {
                            break;
                        }
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(moved)
    }

    /// Hands the system the beginning of the queue; how many bytes it has taken.
    fn send_some(&self, queue: &Queue) -> Result<usize, Errno> {
        let mut headers: Vec<[u8; HEADER]> = Vec::new();
        // A message with descriptors goes first or not yet: they belong to its first byte.
        let behind = |(at, message): &(usize, &super::Outgoing)| *at == 0 || message.files.is_empty();
        let messages: Vec<_> =
            queue.iter().enumerate().take_while(behind).take(PARTS / 3).map(|(_, message)| message).collect();
        headers.extend(messages.iter().map(|message| message.header().encode()));
        let mut parts = Vec::with_capacity(PARTS);
        let mut skip = self.sent;
        for (header, message) in headers.iter().zip(&messages) {
            let payload = message.payload.as_ref().map_or(&[][..], |payload| payload.bytes());
            for part in [&header[..], &message.head, payload] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    parts.push(IoSlice::new(&part[skipped..]));
                }
            }
        }
        let files: Vec<BorrowedFd<'_>> = match messages.first() {
            Some(first) if self.sent == 0 => first.files.iter().map(AsFd::as_fd).collect(),
            _ => Vec::new(),
        };
        descriptors::send(&self.file, &parts, &files)
    }

    pub(super) fn fill(&mut self) -> Result<bool, Broken> {
        let needed = match Header::decode(&self.buffer[self.begin..self.end]).map_err(Broken::Malformed)? {
            Some(header) => HEADER + header.length,
            None => HEADER,
        };
        // Room behind what is there, for the whole of the message and some more.
        let have = self.end - self.begin;
        if have >= needed + AHEAD {
            return Ok(false);
        }
        let room = needed.saturating_sub(have) + AHEAD;
        if self.end + room > self.buffer.len() {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, have);
            if self.end + room > self.buffer.len() {
                self.buffer.resize(self.end + room, 0);
            }
        }
        let place = &mut self.buffer[self.end..self.end + room];
        let received = match descriptors::receive(&self.file, place) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(lost(error)),
        };
        // There was room for as many as a message may have: the system had none to give.
        let is_short = received.is_cut && received.files.len() < MOST_FILES;
        self.files.extend(received.files);
        if is_short {
            return Err(Broken::Short(Errno::MFILE));
        }
        if self.files.len() > MOST_PENDING {
            return Err(Broken::Malformed(format!(
                "{} descriptors that belong to no message",
                self.files.len()
            )));
        }
        if received.bytes == 0 {
            return Err(Broken::Lost("the connection has ended".to_owned()));
        }
        self.end += received.bytes;
        Ok(true)
    }

    pub(super) fn next(&mut self) -> Result<Option<Incoming<'_>>, Broken> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        }
        let there = &self.buffer[self.begin..self.end];
        let Some(header) = Header::decode(there).map_err(Broken::Malformed)? else { return Ok(None) };
        let Some(bytes) = there.get(HEADER..HEADER + header.length) else { return Ok(None) };
        if self.files.len() < header.files {
            let (said, come) = (header.files, self.files.len());
            return Err(Broken::Malformed(format!("{said} descriptors were to come, {come} have")));
        }
        let files = self.files.drain(..header.files).collect();
        self.begin += HEADER + header.length;
        Ok(Some(Incoming { kind: header.kind, channel: header.channel, bytes, files }))
    }

    pub(super) fn finish(&mut self) -> bool {
        if !self.is_finished {
            self.is_finished = true;
            // Already gone: reading tells.
            let _ = rustix::net::shutdown(&self.file, Shutdown::Write);
        }
        true
    }

    pub(super) fn wait(&self, writes: bool, most: Duration) -> io::Result<()> {
        let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let time = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(&self.file, flags)], Some(&time)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn lost(error: Errno) -> Broken {
    Broken::Lost(match error {
        Errno::CONNRESET | Errno::PIPE => "the connection has ended".to_owned(),
        error => format!("the connection has failed: {}", io::Error::from(error)),
    })
}
