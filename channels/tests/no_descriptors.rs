//! A process that has as many descriptors as it may have. The only test of its program: the limit is the process's.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::TcpStream;
use std::time::Duration;

use meshreduce_channels::{Counter, Device, Error, Pages};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{LINKS, SOON, bytes, context, listening_port, pair, registry};

/// Says how many descriptors this process may have; how many it might have before.
fn limit(most: Option<u64>) -> Option<u64> {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: most, ..before }).unwrap();
    before.current
}

#[test]
fn without_descriptors_what_needs_some_fails_alone_and_says_so_and_later_goes_on() {
    let (one, other) = pair(LINKS[1].1);
    let before = limit(Some(0));
    // A transfer, whose slots are shown to the other side by a descriptor.
    let sent = one.endpoint.send(bytes(1, 10), Device::Cpu, None).wait(SOON);
    limit(before);
    let failed = sent.unwrap_err();
    assert!(failed.error.to_string().contains("Too many open files"), "{}", failed.error);
    assert!(other.endpoint.recv(vec![0_u8; 10], Device::Cpu, None).wait(SOON).is_err());
    let sent = one.endpoint.send(bytes(2, 10), Device::Cpu, None);
    assert_eq!(other.endpoint.recv(vec![0_u8; 10], Device::Cpu, None).wait(SOON).unwrap().0, bytes(2, 10));
    sent.wait(SOON).unwrap();

    // A batch of writes, which has slots of its own.
    let region = other.context.register(vec![0_u8; 10]).unwrap();
    let own = one.context.register(bytes(3, 10)).unwrap();
    let (missed, counter) = (other.endpoint.counter(), other.endpoint.counter());
    let write = |counter: &Counter| {
        let (to, counter) = (region.descriptor(), counter.descriptor());
        one.endpoint.write(&own, &to, Pages::range(0, 0, 10), &counter, None).wait(SOON)
    };
    let before = limit(Some(0));
    let written = write(&missed);
    limit(before);
    let error = written.unwrap_err();
    assert!(error.to_string().contains("Too many open files"), "{error}");
    assert!(matches!(missed.wait(1, SOON), Err(Error::CountUnreachable { .. })));
    write(&counter).unwrap();
    assert_eq!(counter.wait(1, SOON).unwrap(), 1);

    // One who has come and cannot be let in.
    let hub = context(&registry("basic"), LINKS[2].1, "hub");
    let listener = hub.listener().unwrap();
    let stranger = TcpStream::connect(("127.0.0.1", listening_port())).unwrap();
    let before = limit(Some(0));
    let accepted = listener.accept(Duration::from_millis(200));
    limit(before);
    match accepted {
        Err(Error::NotConnected { last, .. }) => assert!(last.contains("Too many open files"), "{last}"),
        other => panic!("{other:?}"),
    }
    drop(stranger);
    let guest = context(&registry("basic"), LINKS[2].1, "guest");
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| guest.connect_to(listener.address(), SOON).unwrap());
        listener.accept(SOON).unwrap();
        connecting.join().unwrap();
    });
}
