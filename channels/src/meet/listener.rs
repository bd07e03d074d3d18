//! Listening for those who were told of it.
//!
//! Who connects says at once what shows that he was told ([`PREAMBLE`] bytes); who says something else, or nothing for a while, is
//! dropped. There is room for a bounded number of strangers. While it is taken no more are let in, and whoever was silent for
//! longer than [`GRACE`] leaves; so strangers delay those who are waited for, and never push them out.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_store::clock::Deadline;
use meshreduce_store::sockets::{abstract_name, listen, random};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::address::{Address, Place};
use super::local_listener::LocalListener;
use super::{Links, PREAMBLE, preamble};
use crate::error::Error;
use crate::link::{Link, Socket};

/// Connections that have not shown yet who they are.
const MOST_STRANGERS: usize = 128;
/// How long a stranger may stay when others wait for its place; those who were told speak as soon as they are connected.
const GRACE: Duration = Duration::from_millis(200);
/// How long a stranger may stay in any case.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);

/// How long it sleeps when the system cannot let anybody in.
const SHORT: Duration = Duration::from_millis(50);

/// Who has come, if anybody has. One who has left before it was let in, or an address that is not reached any more, is nobody.
fn come<T>(accepted: io::Result<T>) -> io::Result<Option<T>> {
    match accepted {
        Ok(come) => Ok(Some(come)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Err(error),
            _ => Ok(None),
        },
    }
}

/// If there is no room left, has those leave who have been silent for long enough; whether there is room again.
fn show_out(strangers: &mut Vec<Stranger>) -> bool {
    let before = strangers.len();
    if before >= MOST_STRANGERS {
        strangers.retain(|stranger| stranger.since.elapsed() < GRACE);
    }
    strangers.len() < before
}

/// Sockets on which a process listens, and what shows who has been told of them.
#[derive(Debug)]
pub(crate) struct Listeners {
    address: Address,
    unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
    here: Option<Arc<LocalListener>>,
    strangers: Mutex<Vec<Stranger>>,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(bytes),
            Stream::Tcp(stream) => stream.read(bytes),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn into_link(self) -> io::Result<Link> {
        Ok(Link::Socket(match self {
            Stream::Unix(stream) => Socket::unix(stream)?,
            Stream::Tcp(stream) => Socket::tcp(stream)?,
        }))
    }
}

#[derive(Debug)]
struct Stranger {
    stream: Stream,
    said: Vec<u8>,
    since: Instant,
}

/// The name of an abstract socket.
pub(crate) fn socket_name(name: &[u8; 16]) -> String {
    abstract_name("channels", name)
}

impl Listeners {
    /// Listens, for connections of these kinds.
    pub(crate) fn open(place: &Place, links: Links) -> Result<Self, Error> {
        Self::try_open(place, links).map_err(|source| Error::System {
            what: "it is not possible to listen for connections".into(),
            source: source.into(),
        })
    }

    fn try_open(place: &Place, links: Links) -> io::Result<Self> {
        let (name, cookie, answer) = (random()?, random()?, random()?);
        let mut address = Address { place: place.clone(), name, cookie, answer, tcp: Vec::new() };
        let here = if links.memory { Some(LocalListener::open(cookie)?) } else { None };
        let unix = if links.unix {
            Some(UnixListener::bind_addr(&UnixAddr::from_abstract_name(socket_name(&name))?)?)
        } else {
            None
        };
        if let Some(unix) = &unix {
            unix.set_nonblocking(true)?;
        }
        let mut tcp = None;
        if links.tcp {
            let (listener, addresses) = listen(None)?;
            (tcp, address.tcp) = (Some(listener), addresses);
        }
        Ok(Self { address, unix, tcp, here, strangers: Mutex::default() })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection of one who was told.
    ///
    /// # Errors
    ///
    /// What happened last, if none comes before the deadline; `None`: nothing.
    pub(crate) fn accept(&self, deadline: Deadline) -> Result<Link, Option<String>> {
        let mut last = None;
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(half) = self.here.as_ref().and_then(|listener| listener.take()) {
                return Ok(Link::Memory(half));
            }
            let let_in = self.let_in(&mut strangers);
            if let Err(error) = &let_in {
                last = Some(format!("a connection cannot be taken in: {error}"));
            }
            match self.hear(&mut strangers) {
                Ok(Some(link)) => return Ok(link),
                Ok(None) => {}
                Err(error) => last = Some(error.to_string()),
            }
            // Also for one who never sleeps here: the next are let in before anything else.
            if show_out(&mut strangers) {
                continue;
            }
            if deadline.has_passed() {
                return Err(last);
            }
            self.sleep(&mut strangers, deadline, let_in.is_ok()).map_err(|error| Some(error.to_string()))?;
        }
    }

    /// Lets in who waits at the listener.
    ///
    /// # Errors
    ///
    /// Somebody waits, and the system has nothing to let it in with: descriptors or memory.
    fn let_in(&self, strangers: &mut Vec<Stranger>) -> io::Result<()> {
        let next = || -> io::Result<Option<Stream>> {
            let unix = self.unix.as_ref().map(|listener| come(listener.accept())).transpose()?.flatten();
            if let Some((stream, _)) = unix {
                return Ok(Some(Stream::Unix(stream)));
            }
            let tcp = self.tcp.as_ref().map(|listener| come(listener.accept())).transpose()?.flatten();
            Ok(tcp.map(|(stream, _)| Stream::Tcp(stream)))
        };
        while strangers.len() < MOST_STRANGERS {
            let Some(stream) = next()? else { return Ok(()) };
            let is_ready = match &stream {
                Stream::Unix(stream) => stream.set_nonblocking(true).is_ok(),
                Stream::Tcp(stream) => stream.set_nonblocking(true).is_ok(),
            };
            if is_ready {
                strangers.push(Stranger { stream, said: Vec::new(), since: Instant::now() });
            }
        }
        Ok(())
    }

    /// Hears what strangers say; the first who was told leaves their midst.
    fn hear(&self, strangers: &mut Vec<Stranger>) -> io::Result<Option<Link>> {
        let wanted = preamble(&self.address.cookie);
        let mut at = 0;
        while let Some(stranger) = strangers.get_mut(at) {
            match stranger.listen() {
                Ok(false) if stranger.since.elapsed() < LONGEST_SILENCE => at += 1,
                Ok(true) if stranger.said == wanted => {
                    let mut stream = strangers.swap_remove(at).stream;
                    // An empty buffer takes it whole.
                    return match stream.write(&self.address.answer)? {
                        count if count == self.address.answer.len() => stream.into_link().map(Some),
                        _ => Err(ErrorKind::WriteZero.into()),
                    };
                }
                _ => drop(strangers.swap_remove(at)),
            }
        }
        Ok(None)
    }

    /// Sleeps until somebody comes or speaks. Whoever waits and cannot be let in wakes nobody.
    fn sleep(&self, strangers: &mut [Stranger], deadline: Deadline, lets_in: bool) -> io::Result<()> {
        let mut most = deadline.left().min(if lets_in { Duration::from_secs(1) } else { SHORT });
        let is_full = strangers.len() >= MOST_STRANGERS;
        if is_full {
            let oldest = strangers.iter().map(|stranger| stranger.since.elapsed()).max().unwrap_or(GRACE);
            most = most.min(GRACE.saturating_sub(oldest));
        }
        let mut watched = Vec::new();
        if let Some(listener) = &self.here {
            watched.push(PollFd::new(&listener.bell, PollFlags::IN));
        }
        if !is_full && lets_in {
            watched.extend(self.unix.as_ref().map(|listener| PollFd::new(listener, PollFlags::IN)));
            watched.extend(self.tcp.as_ref().map(|listener| PollFd::new(listener, PollFlags::IN)));
        }
        for stranger in strangers.iter() {
            watched.push(PollFd::from_borrowed_fd(stranger.stream.fd(), PollFlags::IN));
        }
        let time = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
        match rustix::event::poll(&mut watched, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Stranger {
    /// Whether it has said as much as those who were told say.
    fn listen(&mut self) -> io::Result<bool> {
        let mut bytes = [0; PREAMBLE];
        while self.said.len() < PREAMBLE {
            let left = PREAMBLE - self.said.len();
            match self.stream.read(&mut bytes[..left]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.said.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_never_sleeps_shows_strangers_out_and_lets_the_next_one_in() {
        let links = Links { memory: false, unix: true, tcp: false };
        let listeners = Listeners::open(&Place::current().unwrap(), links).unwrap();
        let at = UnixAddr::from_abstract_name(socket_name(&listeners.address.name)).unwrap();
        let now = || Deadline::after(Duration::ZERO);
        // The queue at the listener is shorter, perhaps.
        let mut silent: Vec<UnixStream> = Vec::new();
        while silent.len() < MOST_STRANGERS {
            silent.push(UnixStream::connect_addr(&at).unwrap());
            assert!(listeners.accept(now()).is_err());
        }
        for stranger in listeners.strangers.lock().unwrap().iter_mut() {
            stranger.since -= GRACE;
        }
        let mut told = UnixStream::connect_addr(&at).unwrap();
        told.write_all(&preamble(&listeners.address.cookie)).unwrap();
        listeners.accept(now()).unwrap();
        let mut answer = [0; 16];
        told.read_exact(&mut answer).unwrap();
        assert_eq!(answer, listeners.address.answer);
    }
}
