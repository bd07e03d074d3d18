//! A connection to a server: requests go in one write, answers are read within a time.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::clock::{self, Deadline};
use crate::limits::MAX_VALUE;
use crate::tcp::protocol::{CANCELED, Numbering, Opcode, Requests, YES};

/// What became of a request.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The server closed the connection.
    Closed,
    /// It does not answer, or the system cannot reach it.
    Io(io::Error),
    /// The answer cannot be one.
    Nonsense(&'static str),
    /// The answer is a value of so many bytes, which no store of this crate could hold.
    TooLong(u64),
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Closed,
            // What the system says of a time that is over does not tell much.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Self::Io(io::Error::new(ErrorKind::TimedOut, "no answer in time"))
            }
            _ => Self::Io(error),
        }
    }
}

#[derive(Debug)]
pub(super) struct Wire {
    from: BufReader<TcpStream>,
}

impl Wire {
    /// A connection whose server may be silent for at most `limit` while it is to answer.
    pub(super) fn new(stream: TcpStream, limit: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        crate::tcp::keep_alive(&stream);
        Ok(Self { from: BufReader::new(stream) })
    }

    /// Sends requests.
    pub(super) fn send(&mut self, requests: Requests) -> Result<(), RequestError> {
        // What is left of an answer would be taken for the next one.
        if !self.from.buffer().is_empty() {
            return Err(RequestError::Nonsense("more than was asked for"));
        }
        Ok(self.from.get_mut().write_all(&requests.into_bytes())?)
    }

    pub(super) fn byte(&mut self) -> Result<u8, RequestError> {
        let mut byte = [0];
        self.from.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// A byte that is `expected`.
    pub(super) fn expect(&mut self, expected: u8) -> Result<(), RequestError> {
        match self.byte()? {
            byte if byte == expected => Ok(()),
            _ => Err(RequestError::Nonsense("a byte that fits no question")),
        }
    }

    /// Whether a [`Opcode::Check`] found all.
    pub(super) fn all_there(&mut self) -> Result<bool, RequestError> {
        match self.byte()? {
            byte @ (0 | 1) => Ok(byte == YES),
            _ => Err(RequestError::Nonsense("neither yes nor no")),
        }
    }

    pub(super) fn number(&mut self) -> Result<i64, RequestError> {
        let mut bytes = [0; 8];
        self.from.read_exact(&mut bytes)?;
        Ok(i64::from_le_bytes(bytes))
    }

    /// How many of something.
    pub(super) fn count(&mut self) -> Result<u64, RequestError> {
        u64::try_from(self.number()?).map_err(|_| RequestError::Nonsense("fewer than none"))
    }

    /// A value, or a key, for which servers of torch do not have a limit at all.
    pub(super) fn value(&mut self) -> Result<Vec<u8>, RequestError> {
        let length = self.number()? as u64;
        if length > MAX_VALUE as u64 {
            return Err(RequestError::TooLong(length));
        }
        // Memory is taken for what comes.
        let mut bytes = Vec::new();
        self.from.by_ref().take(length).read_to_end(&mut bytes)?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err(RequestError::Closed),
        }
    }

    /// Whether what was asked to wait has come before the deadline; after that it is not waited for any more.
    pub(super) fn has_come(
        &mut self,
        deadline: Deadline,
        numbering: Numbering,
    ) -> Result<bool, RequestError> {
        while !deadline.has_passed() {
            let mut fds = [PollFd::new(self.from.get_ref(), PollFlags::IN)];
            if clock::poll(&mut fds, deadline)? {
                return self.expect(YES).map(|()| true);
            }
        }
        self.send(Requests::to(numbering).bare(Opcode::CancelWait))?;
        match self.byte()? {
            CANCELED => Ok(false),
            // It came while the cancellation went.
            YES => self.expect(CANCELED).map(|()| true),
            _ => Err(RequestError::Nonsense("a byte that fits no question")),
        }
    }
}
