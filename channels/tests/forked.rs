//! A child that was forked from a process with a context. The only test of its program: children of programs with other tests
//! have those threads' locks.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use meshreduce_channels::{Device, Error};
use support::{LINKS, SOON, bytes, pair};

#[test]
fn a_forked_child_is_told_and_the_parent_goes_on() {
    let (one, other) = pair(LINKS[1].1);
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
}
