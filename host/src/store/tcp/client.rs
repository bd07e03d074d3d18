//! A client: as many connections as it has threads that ask at once, and one answer to the question whether the server
//! is still there.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::frame::{self, Timed};
use super::message::{Malformed, Reply, Request, VERSION};
use crate::store::clock::{Deadline, LONGEST_WAIT};
use crate::store::{Pause, Store, StoreError, check, check_key};

/// How long a client waits for an answer, beyond the time that it asked the server to wait.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Most keys that are waited for in one request.
const KEYS_AT_ONCE: usize = 256;

#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    /// Tells the server from a later one at the same address, which would not have this one's keys.
    instance: u64,
    answer_limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<TcpStream>,
    /// Why the store is lost. A store that was lost stays so.
    lost: Option<String>,
}

/// Why an attempt to connect failed.
enum Refusal {
    /// Another attempt may succeed.
    ForNow(io::Error),
    /// It will not get better.
    ForGood(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::ForNow(error)
    }
}

/// Connects and greets.
fn open(address: SocketAddr, limit: Duration) -> Result<(TcpStream, u64), Refusal> {
    // The system wants some time; it takes whole microseconds.
    let limit = limit.clamp(Duration::from_millis(1), LONGEST_WAIT);
    let stream = TcpStream::connect_timeout(&address, limit)?;
    if stream.local_addr()? == stream.peer_addr()? {
        // Nobody listens there, and the system happened to give this socket the very port that it connects to.
        return Err(io::Error::from(ErrorKind::ConnectionRefused).into());
    }
    stream.set_nodelay(true)?;
    let reply = ask(&stream, &Request::Hello { version: VERSION }, limit)?;
    match reply {
        Ok(Reply::Welcome { version: VERSION, instance }) => Ok((stream, instance)),
        Ok(Reply::Welcome { version, .. }) => {
            Err(Refusal::ForGood(format!("it speaks version {version} of the protocol, not {VERSION}")))
        }
        Ok(Reply::Full) => Err(io::Error::other("it has too many connections").into()),
        Ok(_) | Err(Malformed) => Err(Refusal::ForGood("what listens there is no store".into())),
    }
}

fn ask(stream: &TcpStream, request: &Request, limit: Duration) -> io::Result<Result<Reply, Malformed>> {
    let mut timed = Timed::new(stream, limit);
    frame::write(&mut timed, &request.to_bytes())?;
    match frame::read(&mut timed) {
        Ok(reply) => Ok(Reply::from_bytes(&reply)),
        Err(error) if error.kind() == ErrorKind::InvalidData => Ok(Err(Malformed)),
        Err(error) => Err(error),
    }
}

impl Client {
    /// Connects to the first of the addresses that `resolve` gives and that takes it, trying for at most `timeout`.
    pub(super) fn connect(
        place: &str,
        resolve: &dyn Fn() -> io::Result<Vec<SocketAddr>>,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let unreachable =
            |source| StoreError::Unreachable { place: place.to_owned(), waited: timeout, source };
        let deadline = Deadline::after(timeout);
        let mut pause = Pause::new(timeout);
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        loop {
            match resolve() {
                Ok(addresses) => {
                    for address in addresses {
                        match open(address, deadline.left()) {
                            Ok((stream, instance)) => {
                                let state = Mutex::new(State { idle: vec![stream], lost: None });
                                return Ok(Self { address, instance, answer_limit: ANSWER_LIMIT, state });
                            }
                            // The last attempt has little time: what an earlier one was told says more.
                            Err(Refusal::ForNow(error))
                                if error.kind() == ErrorKind::TimedOut
                                    && last.kind() != ErrorKind::NotFound => {}
                            Err(Refusal::ForNow(error)) => last = error,
                            Err(Refusal::ForGood(problem)) => return Err(unreachable(problem.into())),
                        }
                    }
                }
                Err(error) => last = error,
            }
            if !pause.again() {
                return Err(unreachable(last.into()));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn with_answer_limit(mut self, limit: Duration) -> Self {
        self.answer_limit = limit;
        self
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    // Every change is a single step, so a thread that panicked has left it whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, problem: &str) -> StoreError {
        StoreError::Lost { place: self.address.to_string(), source: problem.into() }
    }

    /// Notes that the store is lost, unless that is known.
    fn lose(&self, problem: String) -> StoreError {
        let mut state = self.state();
        state.idle.clear();
        let problem = state.lost.get_or_insert(problem);
        self.lost(problem)
    }

    /// A connection that nobody else uses.
    fn connection(&self) -> Result<TcpStream, StoreError> {
        {
            let mut state = self.state();
            if let Some(problem) = &state.lost {
                return Err(self.lost(problem));
            }
            if let Some(stream) = state.idle.pop() {
                return Ok(stream);
            }
        }
        let deadline = Deadline::after(self.answer_limit);
        let mut pause = Pause::new(self.answer_limit);
        loop {
            match open(self.address, deadline.left()) {
                Ok((stream, instance)) if instance == self.instance => return Ok(stream),
                Ok(_) => return Err(self.lose("another server has taken its place".into())),
                Err(Refusal::ForGood(problem)) => return Err(self.lose(problem)),
                // It was there: if nobody listens any more it has ended.
                Err(Refusal::ForNow(error)) => {
                    if error.kind() == ErrorKind::ConnectionRefused || !pause.again() {
                        return Err(self.lose(error.to_string()));
                    }
                }
            }
        }
    }

    fn ask(&self, request: &Request, wait: Duration) -> Result<Reply, StoreError> {
        let stream = self.connection()?;
        match ask(&stream, request, self.answer_limit.saturating_add(wait)) {
            Ok(Ok(reply)) => {
                self.state().idle.push(stream);
                Ok(reply)
            }
            Ok(Err(malformed)) => Err(self.lose(malformed.to_string())),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(self.lose("the server closed the connection".into()))
            }
            Err(error) => Err(self.lose(error.to_string())),
        }
    }

    /// Asks about `key`; `read` takes what it expects from the reply.
    fn about<T>(
        &self,
        key: &str,
        request: &Request,
        wait: Duration,
        read: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, StoreError> {
        match self.ask(request, wait)? {
            Reply::Corrupt(problem) => Err(StoreError::Corrupt { key: key.to_owned(), problem }),
            reply => read(reply).ok_or_else(|| self.lose("its answer fits no question".into())),
        }
    }

    /// What is under `key`, as soon as there is something, but at the latest when the server has waited for `wait`.
    fn value(&self, key: &str, wait: Duration) -> Result<Option<Vec<u8>>, StoreError> {
        let request = Request::Get { key: key.to_owned(), wait };
        self.about(key, &request, wait, |reply| match reply {
            Reply::Value(value) => Some(value),
            _ => None,
        })
    }

    /// Those of `keys` that are missing when the deadline has passed.
    fn missing(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<String>, StoreError> {
        let mut keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        loop {
            // Read before asking: only an answer to a question that was asked after the end is the last one.
            let left = deadline.left();
            let wait = left.min(super::LONGEST_SERVER_WAIT);
            let known = keys.len();
            let request = Request::Wait { keys, wait };
            keys = self.about("", &request, wait, |reply| match reply {
                Reply::Missing(keys) if keys.len() <= known => Some(keys),
                _ => None,
            })?;
            if keys.is_empty() || left.is_zero() {
                return Ok(keys);
            }
        }
    }
}

impl Store for Client {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        let request = Request::Set { key: key.to_owned(), value: value.to_vec() };
        self.about(key, &request, Duration::ZERO, |reply| (reply == Reply::Done).then_some(()))
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_key(key)?;
        self.value(key, Duration::ZERO)
    }

    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        desired: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        check(key, desired.unwrap_or_default())?;
        // No value is longer than the longest, so a longer one stands for any value that is not there.
        let expected = expected.map(|value| value[..value.len().min(crate::store::MAX_VALUE + 1)].to_vec());
        let request =
            Request::CompareSet { key: key.to_owned(), expected, desired: desired.map(<[u8]>::to_vec) };
        self.about(key, &request, Duration::ZERO, |reply| match reply {
            Reply::Value(value) => Some(value),
            _ => None,
        })
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        check_key(key)?;
        let request = Request::Add { key: key.to_owned(), delta };
        self.about(key, &request, Duration::ZERO, |reply| match reply {
            Reply::Number(sum) => Some(sum),
            _ => None,
        })
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        let request = Request::Delete { key: key.to_owned() };
        self.about(key, &request, Duration::ZERO, |reply| match reply {
            Reply::Deleted(was_there) => Some(was_there),
            _ => None,
        })
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        check_key(key)?;
        let deadline = Deadline::after(timeout);
        loop {
            // Read before asking, as in `missing`.
            let left = deadline.left();
            if let Some(value) = self.value(key, left.min(super::LONGEST_SERVER_WAIT))? {
                return Ok(value);
            }
            if left.is_zero() {
                return Err(StoreError::Timeout { keys: vec![key.to_owned()], waited: timeout });
            }
        }
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let deadline = Deadline::after(timeout);
        let mut missing = Vec::new();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            missing.extend(self.missing(keys, deadline)?);
        }
        match missing.is_empty() {
            true => Ok(()),
            false => Err(StoreError::Timeout { keys: missing, waited: timeout }),
        }
    }
}
