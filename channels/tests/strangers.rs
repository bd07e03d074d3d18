//! Strangers at a listener's door. The only test of its program: it looks for the port on which the process listens.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use meshreduce_channels::Device;
use support::{LINKS, SOON, bytes, context, listening_port, registry};

#[test]
fn strangers_do_not_push_out_who_is_waited_for() {
    let links = LINKS[2].1;
    let (one, other) =
        (context(&registry("basic"), links, "one"), context(&registry("basic"), links, "other"));
    let listener = one.listener().unwrap();
    let port = listening_port();
    let knock = |at: usize| {
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
        if at.is_multiple_of(3) {
            stranger.write_all(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n").unwrap();
        }
        stranger
    };
    let (at_one, at_other, strangers) = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept(SOON).unwrap());
        // More than there is room for, who stay.
        let mut strangers: Vec<_> = (0..400).map(knock).collect();
        let connecting = scope.spawn(|| other.connect_to(listener.address(), SOON).unwrap());
        strangers.extend((400..500).map(knock));
        (accepting.join().unwrap(), connecting.join().unwrap(), strangers)
    });
    let sent = at_one.send(bytes(1, 10), Device::Cpu, None);
    assert_eq!(at_other.recv(vec![0_u8; 10], Device::Cpu, None).wait(SOON).unwrap().0, bytes(1, 10));
    sent.wait(SOON).unwrap();
    // One who says something else is shown the door without a word.
    let mut first = &strangers[0];
    first.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = Vec::new();
    // It may be a reset.
    let _ = first.read_to_end(&mut answer);
    assert!(answer.is_empty());
}
