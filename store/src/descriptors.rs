//! Descriptors that go from process to process with bytes of a Unix socket.
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Descriptors that go with one call, at most.
pub const MOST: usize = 16;

/// Sends bytes, as many as the system takes, and the descriptors with the first of them. Without descriptors, by any socket.
///
/// # Errors
///
/// The system's; [`Errno::INVAL`] for more than [`MOST`].
pub fn send(socket: impl AsFd, parts: &[IoSlice<'_>], files: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if files.len() > MOST || (!files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files))) {
        return Err(Errno::INVAL);
    }
    rustix::net::sendmsg(socket, parts, &mut control, SendFlags::NOSIGNAL)
}

/// What has come with one call.
#[derive(Debug)]
pub struct Received {
    /// How many bytes.
    pub bytes: usize,
    /// The descriptors.
    pub files: Vec<OwnedFd>,
    /// More were sent than have come: more than [`MOST`], or this process can have no more (unix(7), `SCM_RIGHTS`).
    pub is_cut: bool,
}

/// Receives bytes, and the descriptors that come with them.
///
/// # Errors
///
/// The system's.
pub fn receive(socket: impl AsFd, into: &mut [u8]) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.extend(passed);
        }
    }
    Ok(Received { bytes: message.bytes, files, is_cut: message.flags.contains(ReturnFlags::CTRUNC) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_come_with_the_first_byte_and_no_more_than_may() {
        let (near, far) = UnixStream::pair().unwrap();
        let files = [near.as_fd(); MOST + 1];
        assert_eq!(send(&near, &[IoSlice::new(b"ab")], &files).unwrap_err(), Errno::INVAL);
        assert_eq!(send(&near, &[IoSlice::new(b"a"), IoSlice::new(b"b")], &files[..2]).unwrap(), 2);
        assert_eq!(send(&near, &[IoSlice::new(b"c")], &[]).unwrap(), 1);
        let mut place = [0];
        let mut come = || {
            let Received { bytes, files, is_cut } = receive(&far, &mut place).unwrap();
            (bytes, files.len(), is_cut, place[0])
        };
        assert_eq!([come(), come(), come()], [(1, 2, false, b'a'), (1, 0, false, b'b'), (1, 0, false, b'c')]);
    }
}
