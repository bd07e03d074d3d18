//! A peer that is killed or stopped while transfers are under way: an error that names it, in time, and nothing is left.
#![forbid(unsafe_code)]

use meshreduce_tests::channels::Cast;
use meshreduce_tests::channels::kills::{Fate, play};

fn host(links: &str) -> Cast {
    Cast::new("basic", "cpu", "cpu").in_processes().over(links)
}

fn devices(links: &str) -> Cast {
    Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes().over(links)
}

#[test]
fn killed_with_host_memory_on_a_unix_socket() {
    play(&host("unix"), Fate::Killed, 60);
}

#[test]
fn killed_with_host_memory_on_tcp() {
    play(&host("tcp"), Fate::Killed, 40);
}

#[test]
fn killed_with_devices_on_a_unix_socket() {
    play(&devices("unix"), Fate::Killed, 40);
}

#[test]
fn killed_with_devices_on_tcp() {
    play(&devices("tcp"), Fate::Killed, 20);
}

#[test]
fn stopped_with_host_memory_on_a_unix_socket() {
    play(&host("unix"), Fate::Stopped, 16);
}

#[test]
fn stopped_with_host_memory_on_tcp() {
    play(&host("tcp"), Fate::Stopped, 8);
}

#[test]
fn stopped_with_devices_on_a_unix_socket() {
    play(&devices("unix"), Fate::Stopped, 8);
}

#[test]
fn stopped_with_devices_on_tcp() {
    play(&devices("tcp"), Fate::Stopped, 8);
}
