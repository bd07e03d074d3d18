//! Sockets whose every wait can be given up, and the listener at which ranks show that they belong.
//!
//! Whoever connects says a greeting first: the magic number of what it wants to join, and a payload. Strangers, who do
//! not know the number, are sent away, and one that says nothing keeps nobody waiting.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{NcclError, Result};
use crate::interface;

/// Asked every now and then while something is waited for; an answer ends the wait.
pub(crate) type GiveUp<'a> = &'a dyn Fn() -> Option<NcclError>;

/// How often.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// A stranger that says nothing for so long is sent away.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection may take.
const CONNECTING: Duration = Duration::from_secs(60);
/// The longest greeting, whose length is a `u16`.
const HEADER: usize = 10;

/// Waits until one of the sockets may be read (or, with `write`, written), or for a moment.
fn wait(sockets: &[&dyn AsFd], write: bool, give_up: GiveUp<'_>) -> Result<()> {
    if let Some(failure) = give_up() {
        return Err(failure);
    }
    let flags = if write { PollFlags::OUT } else { PollFlags::IN };
    let mut fds: Vec<_> =
        sockets.iter().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), flags)).collect();
    match poll(&mut fds, Some(&TICK)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(NcclError::system("poll", &error)),
    }
}

use std::os::fd::AsFd;

fn lost(error: &std::io::Error) -> NcclError {
    NcclError::remote(format!("a rank has left while the communicator was made: {error}"))
}

/// Fills `bytes` from a socket that does not block.
pub(crate) fn read(socket: &mut TcpStream, bytes: &mut [u8], give_up: GiveUp<'_>) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match socket.read(&mut bytes[done..]) {
            Ok(0) => return Err(lost(&ErrorKind::UnexpectedEof.into())),
            Ok(more) => done += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(&[&*socket], false, give_up)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&error)),
        }
    }
    Ok(())
}

/// Writes all of `bytes` to a socket that does not block.
pub(crate) fn write(socket: &mut TcpStream, mut bytes: &[u8], give_up: GiveUp<'_>) -> Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(done) => bytes = &bytes[done..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(&[&*socket], true, give_up)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&error)),
        }
    }
    Ok(())
}

/// Connects and greets.
pub(crate) fn connect(to: SocketAddr, magic: u64, payload: &[u8], give_up: GiveUp<'_>) -> Result<TcpStream> {
    let began = Instant::now();
    let mut socket = loop {
        if let Some(failure) = give_up() {
            return Err(failure);
        }
        match TcpStream::connect_timeout(&to, Duration::from_secs(1)) {
            Ok(socket) => break socket,
            Err(error) if error.kind() == ErrorKind::TimedOut && began.elapsed() < CONNECTING => {}
            Err(error) => return Err(NcclError::remote(format!("connecting to {to}: {error}"))),
        }
    };
    prepare(&socket)?;
    let length =
        u16::try_from(payload.len()).map_err(|error| NcclError::internal(format!("greeting: {error}")))?;
    let greeting = [&magic.to_le_bytes()[..], &length.to_le_bytes(), payload].concat();
    write(&mut socket, &greeting, give_up)?;
    Ok(socket)
}

fn prepare(socket: &TcpStream) -> Result<()> {
    let prepared = socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true));
    prepared.map_err(|error| NcclError::system("preparing a socket", &error))
}

/// A listener and who has come to it.
pub(crate) struct Listener {
    listener: TcpListener,
    magic: u64,
    waiting: Vec<Unidentified>,
}

struct Unidentified {
    socket: TcpStream,
    said: Vec<u8>,
    since: Instant,
}

impl Listener {
    /// Listens at the interface that the environment names.
    pub(crate) fn open(magic: u64) -> Result<Self> {
        let address = interface::address()?;
        let failed = |error: &std::io::Error| NcclError::system(&format!("listening at {address}"), error);
        let listener = TcpListener::bind((address, 0)).map_err(|error| failed(&error))?;
        listener.set_nonblocking(true).map_err(|error| failed(&error))?;
        Ok(Self { listener, magic, waiting: Vec::new() })
    }

    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|error| NcclError::system("an address", &error))
    }

    /// For a listener that was opened before the number was known.
    pub(crate) fn set_magic(&mut self, magic: u64) {
        self.magic = magic;
    }

    /// The next one that greets as it must, and the payload of its greeting.
    pub(crate) fn next(&mut self, give_up: GiveUp<'_>) -> Result<(TcpStream, Vec<u8>)> {
        loop {
            let mut sockets: Vec<&dyn AsFd> = vec![&self.listener];
            sockets.extend(self.waiting.iter().map(|guest| &guest.socket as &dyn AsFd));
            wait(&sockets, false, give_up)?;
            loop {
                match self.listener.accept() {
                    Ok((socket, _)) if prepare(&socket).is_ok() => {
                        self.waiting.push(Unidentified { socket, said: Vec::new(), since: Instant::now() });
                    }
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => break,
                    // What went wrong with one connection is no reason to close the listener.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(NcclError::system("accept", &error)),
                }
            }
            let magic = self.magic;
            self.waiting.retain_mut(|guest| guest.listen(magic));
            if let Some(index) = self.waiting.iter().position(Unidentified::is_done) {
                let guest = self.waiting.swap_remove(index);
                return Ok((guest.socket, guest.said[HEADER..].to_vec()));
            }
        }
    }
}

impl Unidentified {
    fn length(&self) -> Option<usize> {
        let length = self.said.get(8..HEADER)?;
        Some(HEADER + usize::from(u16::from_le_bytes([length[0], length[1]])))
    }

    fn is_done(&self) -> bool {
        self.length() == Some(self.said.len())
    }

    /// Hears more of the greeting, and no byte beyond it. False if this is a stranger.
    fn listen(&mut self, magic: u64) -> bool {
        loop {
            let wanted = self.length().unwrap_or(HEADER);
            if self.said.len() >= 8 && self.said[..8] != magic.to_le_bytes() {
                return false;
            }
            if self.is_done() {
                return true;
            }
            let mut bytes = vec![0; wanted - self.said.len()];
            match self.socket.read(&mut bytes) {
                Ok(0) => return false,
                Ok(more) => self.said.extend(&bytes[..more]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return self.since.elapsed() < PATIENCE;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

/// Whether whoever is at the other end has hung up.
pub(crate) fn has_left(socket: &TcpStream) -> bool {
    match socket.peek(&mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_sent_away_and_silent_ones_keep_nobody_waiting() {
        let mut listener = Listener::open(7).unwrap();
        let address = listener.address().unwrap();
        let never = || None;
        let _silent = TcpStream::connect(address).unwrap();
        let mut stranger = connect(address, 8, b"let me in", &never).unwrap();
        let _friend = connect(address, 7, b"rank 3", &never).unwrap();
        let (_socket, payload) = listener.next(&never).unwrap();
        assert_eq!(payload, b"rank 3");
        assert!(read(&mut stranger, &mut [0], &never).is_err());
    }

    #[test]
    fn a_wait_is_given_up() {
        let mut listener = Listener::open(7).unwrap();
        let failure = listener.next(&|| Some(NcclError::usage("enough"))).unwrap_err();
        assert_eq!(failure, NcclError::usage("enough"));
    }
}
