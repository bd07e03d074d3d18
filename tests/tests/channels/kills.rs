//! A peer that is killed or stopped while transfers over `basic` are under way: an error that names it, in time, and nothing is left
//! (the party that survives sees to that itself, at its end).
//!
//! A dozen moments of each; 200 with `cargo test -p meshreduce-tests --test channels -- --ignored kills`.
#![forbid(unsafe_code)]

use meshreduce_checks::channels::Cast;
use meshreduce_tests::channels::kills::{Fate, play};

fn host(links: &str) -> Cast {
    Cast::new("basic", "cpu", "cpu").in_processes().over(links)
}

fn devices(links: &str) -> Cast {
    Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes().over(links)
}

#[test]
fn killed_with_host_memory_on_a_unix_socket() {
    play(&host("unix"), Fate::Killed, 12);
}

#[test]
fn killed_with_host_memory_on_tcp() {
    play(&host("tcp"), Fate::Killed, 12);
}

#[test]
fn killed_with_devices_on_a_unix_socket() {
    play(&devices("unix"), Fate::Killed, 12);
}

#[test]
fn killed_with_devices_on_tcp() {
    play(&devices("tcp"), Fate::Killed, 12);
}

#[test]
fn stopped_with_host_memory_on_a_unix_socket() {
    play(&host("unix"), Fate::Stopped, 6);
}

#[test]
fn stopped_with_host_memory_on_tcp() {
    play(&host("tcp"), Fate::Stopped, 6);
}

#[test]
fn stopped_with_devices_on_a_unix_socket() {
    play(&devices("unix"), Fate::Stopped, 6);
}

#[test]
fn stopped_with_devices_on_tcp() {
    play(&devices("tcp"), Fate::Stopped, 6);
}

#[test]
#[ignore = "takes minutes"]
fn killed_with_host_memory_on_a_unix_socket_at_200_moments() {
    play(&host("unix"), Fate::Killed, 200);
}

#[test]
#[ignore = "takes minutes"]
fn killed_with_devices_on_a_unix_socket_at_200_moments() {
    play(&devices("unix"), Fate::Killed, 200);
}

#[test]
#[ignore = "takes minutes"]
fn killed_with_devices_on_tcp_at_200_moments() {
    play(&devices("tcp"), Fate::Killed, 200);
}

#[test]
#[ignore = "takes minutes"]
fn stopped_with_devices_on_a_unix_socket_at_200_moments() {
    play(&devices("unix"), Fate::Stopped, 200);
}
