//! Sockets by which processes find one another once a store has told them of each other: names that nobody can guess, and listening
//! on all addresses of a host.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};

use rustix::net::sockopt::set_ipv6_v6only;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::interface::own_addresses;

/// Connections that wait to be accepted, as the standard library has it.
const BACKLOG: i32 = 128;

/// Random bytes from the system.
///
/// # Errors
///
/// The system's.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Two small digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the abstract socket on which those who are told `name` find a process; `purpose` keeps libraries' parts apart.
pub fn abstract_name(purpose: &str, name: &[u8]) -> String {
    format!("meshreduce/{purpose}/{}", hex(name))
}

/// Listens, without blocking, on every address of this host, at a port that the system chooses; gives the addresses under which
/// others reach it, the best first, as [`own_addresses`] has them.
///
/// # Errors
///
/// [`crate::interface::NoInterface`], in an [`io::Error`], that was named; the system's.
pub fn listen(interface: Option<&str>) -> io::Result<(TcpListener, Vec<SocketAddr>)> {
    let addresses = own_addresses(interface).map_err(io::Error::other)?;
    let listener = match bind_to_both() {
        Ok(listener) => listener,
        // The system has one family alone.
        Err(_) => TcpListener::bind("0.0.0.0:0")?,
    };
    listener.set_nonblocking(true)?;
    let own = listener.local_addr()?;
    let is_reached = |ip: &IpAddr| own.is_ipv6() || ip.is_ipv4();
    Ok((listener, addresses.into_iter().filter(is_reached).map(|ip| (ip, own.port()).into()).collect()))
}

/// One socket for both families, also where the system's own wish is one for each (`net.ipv6.bindv6only`).
fn bind_to_both() -> io::Result<TcpListener> {
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_ipv6_v6only(&socket, false)?;
    bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn whoever_listens_is_reached_under_each_of_its_addresses() {
        let (listener, addresses) = listen(Some("lo")).unwrap();
        assert!(!addresses.is_empty());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // Who has connected may be a moment under way still.
        listener.set_nonblocking(false).unwrap();
        for address in addresses {
            let stream = TcpStream::connect(address).unwrap();
            let (_, from) = listener.accept().unwrap();
            assert_eq!(from.port(), stream.local_addr().unwrap().port(), "{address}");
        }
        assert!(listen(Some("nowhere0")).unwrap_err().to_string().contains("nowhere0"));
    }

    #[test]
    fn a_listener_of_the_sixth_version_serves_the_fourth_whatever_the_system_wishes() {
        let (listener, _) = listen(None).unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            assert!(!rustix::net::sockopt::ipv6_v6only(&listener).unwrap());
            TcpStream::connect(("127.0.0.1", listener.local_addr().unwrap().port())).unwrap();
        }
    }

    #[test]
    fn names_are_random_and_readable() {
        let names = [random::<16>().unwrap(), random().unwrap()];
        assert_ne!(names[0], names[1]);
        assert_eq!(abstract_name("host", &[0, 0xab]), "meshreduce/host/00ab");
    }
}
