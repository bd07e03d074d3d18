//! Whether what was sent over a connection has come to the other end.

use std::os::fd::AsFd;

use rustix::ioctl::{Getter, ioctl};

/// Whether the other end's system has all that was written to a TCP connection, its end included if that was said. Where that cannot be
/// told, nothing is to be waited for.
pub(super) fn is_delivered(socket: impl AsFd) -> bool {
    const UNACKNOWLEDGED: rustix::ioctl::Opcode = libc::TIOCOUTQ as rustix::ioctl::Opcode;
    if rustix::net::getpeername(&socket).is_err() {
        // It is no connection any more.
        return true;
    }
    // SAFETY: the request writes one int (tcp(7), "SIOCOUTQ", which is TIOCOUTQ).
    let left = unsafe { ioctl(socket, Getter::<UNACKNOWLEDGED, libc::c_int>::new()) };
    left.map_or(true, |left| left == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::is_delivered;

    #[test]
    fn what_the_other_end_has_no_room_for_is_not_delivered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        let until_delivered = |near: &TcpStream| {
            let limit = Instant::now() + Duration::from_secs(60);
            while !is_delivered(near) {
                assert!(Instant::now() < limit);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        near.write_all(b"a word").unwrap();
        until_delivered(&near);
        while near.write(&[0; 4096]).is_ok() {}
        assert!(!is_delivered(&near));
        near.shutdown(Shutdown::Write).unwrap();
        drop(far);
        // The other end is gone, and takes nothing.
        until_delivered(&near);
    }
}
