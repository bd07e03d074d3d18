//! A child that was forked from a process with a context. The only test of its program: children of programs with other tests
//! have those threads' locks.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use meshreduce_channels::{Device, Error, Pages};
use meshreduce_store::MemoryStore;
use support::{LINKS, SOON, bytes, pair};

#[test]
fn a_forked_child_is_told_and_the_parent_goes_on() {
    let (one, other) = pair(LINKS[1].1);
    let (region, counter) = (other.context.register(vec![0_u8; 10]).unwrap(), other.endpoint.counter());
    let own = one.context.register(bytes(2, 10)).unwrap();
    let write = || {
        let (to, counter) = (region.descriptor(), counter.descriptor());
        one.endpoint.write(&own, &to, Pages::range(0, 0, 10), &counter, None)
    };
    let waiting = other.endpoint.recv(vec![0_u8; 10], Device::Cpu, None);
    // SAFETY: the child allocates, which glibc allows it, and ends without running anything at exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_forked = |error: &Error| matches!(error, Error::Forked);
        let sent = one.endpoint.send(vec![1_u8; 10], Device::Cpu, None).wait(SOON);
        let waited = waiting.wait(Duration::from_millis(100));
        let good = sent.is_err_and(|failed| is_forked(&failed.error) && failed.into_memory().is_some())
            && waited.is_err_and(|failed| is_forked(&failed.error))
            && one.context.listener().is_err_and(|error| is_forked(&error))
            && counter.failure().is_some_and(|error| is_forked(&error))
            && other.endpoint.counter().wait(0, SOON).is_err_and(|error| is_forked(&error))
            && counter.reset().is_err_and(|error| is_forked(&error))
            && write().wait(SOON).is_err_and(|error| is_forked(&error))
            && one.context.connect(&MemoryStore::new(), "a name", SOON).is_err_and(|error| is_forked(&error))
            && one.context.join(SOON).is_err_and(|error| is_forked(&error));
        drop((one, other));
        // SAFETY: the process ends here.
        unsafe { libc::_exit(if good { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: the place outlives the call, and the child is this process's.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    one.endpoint.send(bytes(1, 10), Device::Cpu, None).wait(SOON).unwrap();
    assert_eq!(waiting.wait(SOON).unwrap().0, bytes(1, 10));
    write().wait(SOON).unwrap();
    assert_eq!(counter.wait(1, SOON).unwrap(), 1, "what the child has refused was told to nobody");
}
