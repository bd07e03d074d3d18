//! Finding a server: at several addresses at once, where a name has several.
//!
//! As RFC 8305 has it for browsers: each address has a quarter of a second before the next one is tried beside it, and whatever
//! answers first is taken. So an address that drops packets, or that of an interface without a route, costs that and no more.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::clock::{self, Deadline};
use crate::tcp::protocol::{NO, Numbering, Requests, YES};

/// How long an address has before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);

/// How long addresses have before the name is asked for again: it may have come to mean others.
const ROUND: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("what listens there takes connections and says nothing: no c10d store")]
    Silent,
    #[error(
        "what listens there closes connections that begin as those of c10d: no c10d store, or a full one"
    )]
    Closed,
    #[error("what listens there answers as no c10d store does")]
    Nonsense,
}

impl ConnectError {
    /// Whether another attempt would come to the same.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Nonsense)
    }

    /// Whether it may have come to this only because there was little time.
    pub(super) fn says_less_than(&self, earlier: &Self) -> bool {
        match self {
            Self::Io(error) => error.kind() == ErrorKind::TimedOut,
            Self::Silent => matches!(earlier, Self::Closed),
            Self::Closed | Self::Nonsense => false,
        }
    }

    /// Whether nobody listens.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == ErrorKind::ConnectionRefused)
    }
}

/// A connection to a c10d store.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    /// Whether the server is one of this crate.
    pub(super) is_own: bool,
}

/// A connection that is being made.
struct Attempt {
    address: SocketAddr,
    stream: TcpStream,
    numbering: Numbering,
    /// Whether the greeting has been sent.
    is_greeted: bool,
}

impl Attempt {
    fn begin(address: SocketAddr, numbering: Numbering) -> io::Result<Self> {
        // Mio's do not wait for the other end.
        let stream = TcpStream::from(mio::net::TcpStream::connect(address)?);
        Ok(Self { address, stream, numbering, is_greeted: false })
    }

    fn waits_for(&self) -> PollFlags {
        if self.is_greeted { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Goes on as far as it can; what the other end has answered once it has, as a c10d store does.
    fn go_on(&mut self) -> Result<Option<bool>, ConnectError> {
        if !self.is_greeted {
            if let Some(error) = self.stream.take_error()? {
                return Err(error.into());
            }
            let peer = match self.stream.peer_addr() {
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(None),
                peer => peer?,
            };
            if self.stream.local_addr()? == peer {
                // Nobody listens there, and the system happened to give this socket the very port that it connects to.
                return Err(io::Error::from(ErrorKind::ConnectionRefused).into());
            }
            self.stream.set_nodelay(true)?;
            // A few bytes fit the socket's buffer.
            self.stream.write_all(&greeting(self.numbering)).map_err(gone)?;
            self.is_greeted = true;
        }
        let mut bytes = [0; 2];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(ConnectError::Closed),
            Ok(1) if matches!(bytes[0], YES | NO) => Ok(Some(bytes[0] == YES)),
            Ok(_) => Err(ConnectError::Nonsense),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(gone(error)),
        }
    }
}

/// What a connection begins with: a question that every server answers. (The clients of torch that came after 2.4 begin with a
/// `PING`, which servers before do not know.)
fn greeting(numbering: Numbering) -> Vec<u8> {
    let requests = Requests::to(numbering);
    match numbering {
        Numbering::Validated => requests.validate().check_mark(),
        Numbering::Bare => requests.check_mark(),
    }
    .into_bytes()
}

/// What a server does that has something against the greeting.
fn gone(error: io::Error) -> ConnectError {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => ConnectError::Closed,
        _ => ConnectError::Io(error),
    }
}

/// Keeps what says most: nonsense only where it is all there is, because anything else may get better.
fn note(failure: &mut Option<ConnectError>, other: ConnectError) {
    if failure.as_ref().is_none_or(ConnectError::is_final) {
        *failure = Some(other);
    }
}

/// Connects to the first of `addresses` that answers as a c10d store, trying for at most `timeout` and not for long.
pub(super) fn open(
    addresses: &[SocketAddr],
    numbering: Numbering,
    timeout: Duration,
) -> Result<Opened, ConnectError> {
    let end = Deadline::after(timeout.min(ROUND));
    let mut next = addresses.iter();
    let mut stagger = Deadline::after(Duration::ZERO);
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut failure = None;
    loop {
        // Each one that failed makes room for the next at once.
        while attempts.is_empty() || stagger.has_passed() {
            let Some(address) = next.next() else { break };
            match Attempt::begin(*address, numbering) {
                Ok(attempt) => {
                    attempts.push(attempt);
                    stagger = Deadline::after(STAGGER);
                }
                Err(error) => note(&mut failure, error.into()),
            }
        }
        let mut index = 0;
        while index < attempts.len() {
            match attempts[index].go_on() {
                Ok(Some(is_own)) => {
                    let Attempt { stream, address, .. } = attempts.swap_remove(index);
                    stream.set_nonblocking(false)?;
                    return Ok(Opened { stream, address, is_own });
                }
                Ok(None) => index += 1,
                Err(other) => {
                    note(&mut failure, other);
                    attempts.remove(index);
                    stagger = Deadline::after(Duration::ZERO);
                }
            }
        }
        if attempts.is_empty() && next.len() == 0 {
            let nowhere = || io::Error::new(ErrorKind::NotFound, "the name has no address").into();
            return Err(failure.unwrap_or_else(nowhere));
        }
        if end.has_passed() {
            let silent = attempts.iter().any(|attempt| attempt.is_greeted);
            let timed_out = || io::Error::new(ErrorKind::TimedOut, "no answer in time").into();
            return Err(match silent {
                true => ConnectError::Silent,
                false => failure.unwrap_or_else(timed_out),
            });
        }
        if !attempts.is_empty() {
            let until = if next.len() > 0 { stagger.sooner(end) } else { end };
            let mut fds: Vec<PollFd<'_>> =
                attempts.iter().map(|attempt| PollFd::new(&attempt.stream, attempt.waits_for())).collect();
            clock::poll(&mut fds, until)?;
        }
    }
}
