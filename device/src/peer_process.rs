//! Which process is at the other end of a socket.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The process id of the one that has connected to, or listened for, this connection (`SO_PEERCRED`, unix(7)), in this
/// process's pid namespace. `None` if it is not to be seen from there: the system says 0 then.
pub fn peer_process_id(socket: &UnixStream) -> Option<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open while the socket is borrowed; the place is as long as is said, and both outlive the
    // call.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut length,
        )
    };
    let pid = u32::try_from(credentials.pid).ok()?;
    (answer == 0 && pid != 0).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_pair_are_this_process() {
        let (one, other) = UnixStream::pair().unwrap();
        assert_eq!(peer_process_id(&one), Some(std::process::id()));
        assert_eq!(peer_process_id(&other), Some(std::process::id()));
    }
}
