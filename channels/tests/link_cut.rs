//! A link that is cut. The only test of its program: it shuts every socket that the process has.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use meshreduce_channels::{Device, Error, Owned};
use rustix::net::{Shutdown, shutdown};
use support::{LINKS, SOON, pair};

const CPU: Device = Device::Cpu;

fn error_of(transfer: Owned<Vec<u8>>) -> Error {
    transfer.wait(SOON).map(drop).unwrap_err().into()
}

#[test]
fn a_link_that_is_cut_is_a_lost_peer() {
    for (_, links) in &LINKS[1..] {
        let (one, other) = pair(*links);
        let waiting = one.endpoint.recv(vec![0_u8; 10], CPU, None);
        let sending = one.endpoint.send(vec![0_u8; 30 << 20], CPU, None);
        let begun = Instant::now();
        cut_all_links();
        for transfer in [waiting, sending] {
            match error_of(transfer) {
                Error::PeerLost { peer, .. } => assert!(peer.starts_with("other (process ")),
                error => panic!("{error}"),
            }
        }
        // As long as the send that was announced before the cut, which it may meet.
        match error_of(other.endpoint.recv(vec![0; 30 << 20], CPU, None)) {
            Error::PeerLost { peer, .. } => assert!(peer.starts_with("one (process ")),
            error => panic!("{error}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        one.endpoint.join(SOON).unwrap();
    }
}

fn cut_all_links() {
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let fd: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        if target.to_str().unwrap().starts_with("socket:") {
            // SAFETY: the descriptor is open: nothing in this program closes a socket at this moment.
            let socket = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}
