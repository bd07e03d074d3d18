//! A process that has as many descriptors as it may have. The only test of its program: the limit is the process's.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::*;

#[test]
fn a_queue_pair_that_there_was_no_descriptor_for_is_made_when_there_is_one_again() {
    let near = open("near");
    let domain = near.protection_domain().unwrap();
    let completions = near.completion_queue(8).unwrap();
    let config = Wish::default().config;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    let made = domain.queue_pair(&completions, &completions, &config);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(made.unwrap_err().to_string().contains("EMFILE"));
    domain.queue_pair(&completions, &completions, &config).unwrap();
    // And it works.
    connected();
}
