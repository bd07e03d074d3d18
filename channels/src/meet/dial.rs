//! Connecting to a listener that one was told of.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use meshreduce_store::clock::Deadline;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::address::{Address, Place};
use super::listener::socket_name;
use super::{Links, local_listener, preamble};
use crate::link::{Link, Socket};

/// How long a listener that was reached may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// One try to reach `address`.
///
/// # Errors
///
/// Why it failed, for people.
pub(crate) fn reach(
    address: &Address,
    own: &Place,
    links: Links,
    deadline: Deadline,
) -> Result<Link, String> {
    if links.memory && address.place.is_process_of(own) {
        return match local_listener::knock(&address.cookie) {
            Some(half) => Ok(Link::Memory(half)),
            None => Err("the listener has gone".to_owned()),
        };
    }
    let mut why = Vec::new();
    if links.unix && address.place.is_near(own) {
        match reach_unix(address, deadline) {
            Ok(link) => return Ok(link),
            Err(error) => why.push(format!("its Unix socket: {error}")),
        }
    }
    let tcp = if links.tcp { address.tcp_from(own) } else { Vec::new() };
    if !tcp.is_empty() {
        match reach_tcp(address, &tcp, deadline) {
            Ok(link) => return Ok(link),
            Err(error) => why.push(error),
        }
    }
    if why.is_empty() {
        why.push("it has no address that leads there".to_owned());
    }
    Err(why.join("; "))
}

fn reach_unix(address: &Address, deadline: Deadline) -> io::Result<Link> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // It does not wait for a listener whose queue is full: that is tried again.
    rustix::net::connect(
        &socket,
        &SocketAddrUnix::new_abstract_name(socket_name(&address.name).as_bytes())?,
    )?;
    let stream = UnixStream::from(socket);
    prove(&stream, address, deadline)?;
    Ok(Link::Socket(Socket::unix(stream)?))
}

/// Tries all addresses at once; the first that answers as promised is it.
fn reach_tcp(address: &Address, targets: &[SocketAddr], deadline: Deadline) -> Result<Link, String> {
    let mut why = Vec::new();
    let mut trying: Vec<(SocketAddr, OwnedFd)> = Vec::new();
    for target in targets {
        match begin(*target) {
            Ok(socket) => trying.push((*target, socket)),
            Err(error) => why.push(format!("{target}: {error}")),
        }
    }
    while !trying.is_empty() && !deadline.has_passed() {
        let mut watched: Vec<_> =
            trying.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::OUT)).collect();
        poll(&mut watched, deadline.left()).map_err(|error| error.to_string())?;
        let ready: Vec<bool> = watched.iter().map(|watched| !watched.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        let done = trying.extract_if(.., |_| ready.next().unwrap_or(false)).collect::<Vec<_>>();
        for (target, socket) in done {
            let connected = || {
                sockopt::socket_error(&socket)??;
                let stream = TcpStream::from(socket);
                prove(&stream, address, deadline)?;
                tracing::debug!(%target, local = ?stream.local_addr().ok(), "connected");
                Ok(Link::Socket(Socket::tcp(stream)?))
            };
            match connected() {
                Ok(link) => return Ok(link),
                Err::<_, io::Error>(error) => why.push(format!("{target}: {error}")),
            }
        }
    }
    why.extend(trying.iter().map(|(target, _)| format!("{target}: no answer")));
    Err(why.join("; "))
}

fn begin(target: SocketAddr) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

fn poll(watched: &mut [PollFd<'_>], most: Duration) -> io::Result<()> {
    let most = most.min(Duration::from_secs(3600));
    let time = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
    match rustix::event::poll(watched, Some(&time)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Shows that one was told, and sees that it is the listener that one was told of.
fn prove<S: AsFd>(stream: &S, address: &Address, deadline: Deadline) -> io::Result<()>
where
    for<'a> &'a S: Read + Write,
{
    let mut stream = (stream, stream.as_fd());
    // An empty buffer takes it whole.
    stream.0.write_all(&preamble(&address.cookie))?;
    let mut answer = [0; 16];
    let mut come = 0;
    let limit = Deadline::after(deadline.left().min(ANSWER));
    while come < answer.len() {
        match stream.0.read(&mut answer[come..]) {
            Ok(0) => return Err(io::Error::other("another process listens there, or the listener has gone")),
            Ok(count) => come += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if limit.has_passed() {
                    return Err(io::Error::other("the listener does not answer"));
                }
                poll(&mut [PollFd::from_borrowed_fd(stream.1, PollFlags::IN)], limit.left())?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if answer == address.answer { Ok(()) } else { Err(io::Error::other("another process listens there")) }
}
