//! Connections on which it is still to be said whose they are.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, IoSlice, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use meshreduce_store::descriptors;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// The connector's rank (u32, little-endian), the listener's cookie, its own cookie.
pub(super) const HELLO: usize = 4 + 16 + 16;
/// The listener's answer.
pub(super) const ANSWER: usize = 16;

pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection on which something is still to be said.
pub(super) struct Pending {
    pub(super) socket: Socket,
    /// Whom this rank has connected to; `None`: who has connected must say who it is.
    pub(super) to: Option<usize>,
    /// By which address, over TCP.
    pub(super) address: Option<SocketAddr>,
    /// Whether this rank has said what it says first, where it is the one that connects.
    pub(super) is_introduced: bool,
    pub(super) said: Vec<u8>,
    pub(super) files: Vec<OwnedFd>,
}

impl Socket {
    pub(super) fn accepted_unix(socket: UnixStream) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::Unix(socket))
    }

    pub(super) fn accepted_tcp(socket: TcpStream) -> std::io::Result<Self> {
        prepare(&socket)?;
        Ok(Self::Tcp(socket))
    }
}

impl Pending {
    /// One that has come in.
    pub(super) fn unknown(socket: Socket) -> Self {
        Self { socket, to: None, address: None, is_introduced: true, said: Vec::new(), files: Vec::new() }
    }

    /// One that this rank has begun. Over TCP the other end may not have taken it yet.
    pub(super) fn to(peer: usize, socket: Socket) -> Self {
        let is_introduced = matches!(socket, Socket::Unix(_));
        Self { to: Some(peer), is_introduced, ..Self::unknown(socket) }
    }

    /// Says `hello` once the other end has taken the connection; whether it has been said.
    pub(super) fn introduce(&mut self, hello: impl FnOnce() -> Vec<u8>) -> std::io::Result<bool> {
        let Socket::Tcp(socket) = &self.socket else { return Ok(true) };
        if self.is_introduced {
            return Ok(true);
        }
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        match socket.peer_addr() {
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
            peer => peer?,
        };
        say(socket, &hello())?;
        self.is_introduced = true;
        tracing::debug!(peer = self.to, address = ?self.address, local = ?socket.local_addr().ok(), "connected");
        Ok(true)
    }

    /// Hears on; whether all is said that is expected.
    pub(super) fn listen(&mut self, expected: usize) -> std::io::Result<bool> {
        let mut bytes = [0; HELLO];
        while self.said.len() < expected {
            let room = &mut bytes[..expected - self.said.len()];
            let got = match &mut self.socket {
                Socket::Tcp(socket) => socket.read(room),
                Socket::Unix(socket) => receive(socket, room, &mut self.files),
            };
            match got {
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

/// Begins a connection to `address`; [`Pending::introduce`] tells when it is there, or why it is not.
pub(super) fn connect_tcp(address: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = TcpStream::from(socket);
    prepare(&socket)?;
    Ok(socket)
}

/// Connects to the abstract unix socket of this name, if it takes one more connection just now.
pub(super) fn connect_unix(name: &str) -> std::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(UnixStream::from(socket))
}

/// A connection between hosts: nothing waits in it for more, and a host that is gone without a word is missed.
fn prepare(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(5))?;
    Ok(sockopt::set_tcp_keepcnt(socket, 3)?)
}

/// Says a few bytes, for which a new connection has room.
pub(super) fn say(socket: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let sent = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// Passes descriptors along with `bytes`.
pub(super) fn pass(socket: &UnixStream, bytes: &[u8], files: [&OwnedFd; 2]) -> std::io::Result<()> {
    // An empty buffer takes it whole.
    let sent = descriptors::send(socket, &[IoSlice::new(bytes)], &files.map(AsFd::as_fd))?;
    if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// Reads, and takes the descriptors that come along.
fn receive(socket: &UnixStream, bytes: &mut [u8], files: &mut Vec<OwnedFd>) -> std::io::Result<usize> {
    let received = descriptors::receive(socket, bytes)?;
    files.extend(received.files);
    if received.is_cut || files.len() > 2 {
        // Of what is passed by a rank this is the reason; a stranger may have passed more.
        let why = "this process cannot take the descriptors that were passed to it: too many open files";
        return Err(std::io::Error::other(why));
    }
    Ok(received.bytes)
}
