//! A client: as many connections as it has threads that ask at once, and one answer to the question whether the server
//! is still there.
//!
//! Two servers at one address, one after the other, are told apart by a connection that is made first and used for nothing else,
//! the *witness*. What answers on it is the server to which it was made. So a further connection, once made, is to the same
//! server if the witness still answers; and if a connection was closed though the witness answers, the server refused what it
//! was asked. Nothing has to lie in the store for that, where others would see it.

mod connect;
mod operations;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::protocol::{Numbering, Opcode, Requests};
use crate::StoreError;
use crate::clock::{Deadline, Pause};
use connect::{ConnectError, Opened};
use wire::{RequestError, Wire};

/// How long a server may be silent while it is to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a server that has closed a connection may take to answer in the old numbering.
const OLD_LIMIT: Duration = Duration::from_secs(1);

/// What a server does that its protocol leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// One of this crate.
    Own,
    /// One that answers `GET` of what is not there, and may end a wait for what has not come: torch's with libuv.
    Answering,
    /// One that closes the connection for `GET` of what is not there, and does not end a wait for what comes by a
    /// compare_set: torch's without libuv.
    Closing,
}

/// Operations that not every server has.
#[derive(Debug, Default)]
struct Known {
    queues: OnceLock<bool>,
    list_keys: OnceLock<bool>,
    barrier: OnceLock<bool>,
}

#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    answer_limit: Duration,
    numbering: Numbering,
    peer: Peer,
    known: Known,
    witness: Mutex<Wire>,
    idle: Mutex<Vec<Wire>>,
    /// Why the store is lost. A store that was lost stays so.
    reason: OnceLock<String>,
}

impl Client {
    /// Connects to one of the addresses that `resolve` gives, trying for at most `timeout`.
    pub(super) fn connect(
        place: &str,
        resolve: &dyn Fn() -> io::Result<Vec<SocketAddr>>,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        Self::connect_within(place, resolve, timeout, ANSWER_LIMIT)
    }

    fn connect_within(
        place: &str,
        resolve: &dyn Fn() -> io::Result<Vec<SocketAddr>>,
        timeout: Duration,
        answer_limit: Duration,
    ) -> Result<Self, StoreError> {
        let unreachable = |source: ConnectError| StoreError::Unreachable {
            place: place.to_owned(),
            waited: timeout,
            source: source.into(),
        };
        let deadline = Deadline::after(timeout);
        let mut pause = Pause::new(timeout);
        // The last attempt may have little time: what an earlier one was told says more.
        let mut last: Option<ConnectError> = None;
        loop {
            let opened = resolve()
                .map_err(ConnectError::from)
                .and_then(|addresses| Self::reach(&addresses, deadline.left()))
                .and_then(|(opened, numbering)| Self::greet(opened, numbering, answer_limit));
            let failure = match opened {
                Ok(client) => return Ok(client),
                Err(failure) if failure.is_final() => return Err(unreachable(failure)),
                Err(failure) => failure,
            };
            let failure = match last.take() {
                Some(earlier) if failure.says_less_than(&earlier) => earlier,
                _ => failure,
            };
            if !pause.again() {
                return Err(unreachable(failure));
            }
            last = Some(failure);
        }
    }

    /// Connects to one of the addresses in one numbering or the other: a server of torch before 2.2 closes connections that
    /// begin with the later one, and goes on with its others.
    fn reach(addresses: &[SocketAddr], timeout: Duration) -> Result<(Opened, Numbering), ConnectError> {
        let open = |numbering, timeout| Ok((connect::open(addresses, numbering, timeout)?, numbering));
        let deadline = Deadline::after(timeout);
        match open(Numbering::Validated, timeout) {
            Err(ConnectError::Closed) => {
                open(Numbering::Bare, deadline.left().min(OLD_LIMIT)).map_err(|_| ConnectError::Closed)
            }
            other => other,
        }
    }

    /// Finds out who it is that has answered.
    fn greet(opened: Opened, numbering: Numbering, answer_limit: Duration) -> Result<Self, ConnectError> {
        let failed = |failure| match failure {
            RequestError::Closed => ConnectError::Closed,
            RequestError::Io(error) => error.into(),
            RequestError::Nonsense(_) | RequestError::TooLong(_) => ConnectError::Nonsense,
        };
        let Opened { stream, address, is_own } = opened;
        let witness = Wire::new(stream, answer_limit)?;
        let peer = match is_own {
            true => Peer::Own,
            false => {
                // On a connection of its own, which may have to go.
                let opened = connect::open(&[address], numbering, answer_limit)?;
                let mut asked = Wire::new(opened.stream, answer_limit)?;
                let answer =
                    asked.send(Requests::to(numbering).mark(Opcode::Get)).and_then(|()| asked.value());
                match answer {
                    Ok(_) => Peer::Answering,
                    Err(RequestError::Closed) => Peer::Closing,
                    Err(other) => return Err(failed(other)),
                }
            }
        };
        let known = Known::default();
        if peer == Peer::Own && numbering == Numbering::Validated {
            for operation in [&known.queues, &known.list_keys, &known.barrier] {
                operation.get_or_init(|| true);
            }
        }
        Ok(Self {
            address,
            answer_limit,
            numbering,
            peer,
            known,
            witness: Mutex::new(witness),
            idle: Mutex::default(),
            reason: OnceLock::new(),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    // Every change is a single step, so a thread that panicked has left it whole.
    fn idle(&self) -> MutexGuard<'_, Vec<Wire>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> Requests {
        Requests::to(self.numbering)
    }

    fn place(&self) -> String {
        self.address.to_string()
    }

    /// Notes that the store is lost, unless that is known.
    fn lose(&self, problem: &str) -> StoreError {
        let reason = self.reason.get_or_init(|| problem.to_owned());
        self.idle().clear();
        StoreError::Lost { place: self.place(), source: reason.clone().into() }
    }

    fn refused(&self, problem: &str) -> StoreError {
        StoreError::Refused { place: self.place(), problem: problem.to_owned() }
    }

    /// Whether the server is still the one to which this client connected.
    fn ask_witness(&self) -> Result<(), StoreError> {
        let mut witness = self.witness.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = witness.send(self.requests().check_mark()).and_then(|()| witness.all_there());
        drop(witness);
        answer.map(drop).map_err(|failure| match failure {
            RequestError::Closed => self.lose("the server has closed all connections"),
            RequestError::Io(error) => self.lose(&error.to_string()),
            RequestError::Nonsense(what) => self.lose(&format!("the server answers {what}")),
            RequestError::TooLong(bytes) => self.lose(&format!("the server answers with {bytes} bytes")),
        })
    }

    /// A connection that nobody else uses.
    fn connection(&self) -> Result<Wire, StoreError> {
        if let Some(reason) = self.reason.get() {
            return Err(self.lose(reason));
        }
        let idle = self.idle().pop();
        idle.map_or_else(|| self.open(), Ok)
    }

    /// A further connection.
    fn open(&self) -> Result<Wire, StoreError> {
        let deadline = Deadline::after(self.answer_limit);
        let mut pause = Pause::new(self.answer_limit);
        loop {
            let opened = connect::open(&[self.address], self.numbering, deadline.left())
                .and_then(|opened| Ok(Wire::new(opened.stream, self.answer_limit)?));
            match opened {
                Ok(wire) => return self.ask_witness().map(|()| wire),
                // It was there: if nobody listens any more it has ended.
                Err(failure) if failure.is_final() || failure.is_refusal() => {
                    return Err(self.lose(&failure.to_string()));
                }
                Err(failure) => {
                    if !pause.again() {
                        self.ask_witness()?;
                        return Err(self.refused(&format!("no further connection: {failure}")));
                    }
                }
            }
        }
    }

    /// Sends requests and reads what is answered, on a connection that nobody else uses meanwhile.
    fn exchange<T>(
        &self,
        requests: Requests,
        read: impl FnOnce(&mut Wire) -> Result<T, RequestError>,
    ) -> Result<T, StoreError> {
        let mut wire = self.connection()?;
        match wire.send(requests).and_then(|()| read(&mut wire)) {
            Ok(answer) => {
                self.idle().push(wire);
                Ok(answer)
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    fn failed(&self, failure: RequestError) -> StoreError {
        match failure {
            RequestError::Closed => match self.ask_witness() {
                Ok(()) => self.refused("it closed the connection over this request"),
                Err(lost) => lost,
            },
            RequestError::Io(error) => self.lose(&error.to_string()),
            RequestError::Nonsense(what) => self.lose(&format!("its answer is {what}")),
            RequestError::TooLong(bytes) => {
                self.refused(&format!("a value has {bytes} bytes, which no store here holds"))
            }
        }
    }

    /// Whether the server has an operation. What may close a connection is tried on one of its own, and once.
    fn has(
        &self,
        known: &OnceLock<bool>,
        requests: impl FnOnce() -> Requests,
        read: impl FnOnce(&mut Wire) -> Result<(), RequestError>,
    ) -> Result<bool, StoreError> {
        if let Some(known) = known.get() {
            return Ok(*known);
        }
        if self.numbering == Numbering::Bare {
            return Ok(*known.get_or_init(|| false));
        }
        let mut wire = self.open()?;
        let has = match wire.send(requests()).and_then(|()| read(&mut wire)) {
            Ok(()) => true,
            Err(RequestError::Closed) => {
                self.ask_witness()?;
                false
            }
            Err(failure) => return Err(self.failed(failure)),
        };
        if has {
            self.idle().push(wire);
        }
        Ok(*known.get_or_init(|| has))
    }

    #[cfg(test)]
    pub(super) fn connect_impatiently(address: SocketAddr, answer_limit: Duration) -> Self {
        let connected =
            Self::connect_within("there", &|| Ok(vec![address]), Duration::from_secs(60), answer_limit);
        connected.unwrap()
    }
}
