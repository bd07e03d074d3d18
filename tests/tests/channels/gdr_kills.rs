//! A peer that is killed or stopped while transfers go over RDMA: an error that names it, in time, and nothing is left: no thread,
//! memory, descriptor, registration or queue pair.
#![forbid(unsafe_code)]

use meshreduce_checks::channels::Cast;
use meshreduce_checks::gdr::node::TWO;
use meshreduce_tests::channels::kills::{Fate, play};

fn on_one_node() -> Cast {
    Cast::new("gdr", "cuda:0", "cuda:1").on_adapters_of(TWO).in_processes()
}

fn on_two_nodes() -> Cast {
    Cast::new("gdr", "cuda:0", "cuda:1").on_two_nodes(TWO, TWO).over("tcp")
}

fn host_memory() -> Cast {
    Cast::new("gdr", "cpu", "cpu").on_two_nodes(TWO, TWO).over("tcp")
}

#[test]
fn killed_on_one_node() {
    play(&on_one_node(), Fate::Killed, 4);
}

#[test]
fn killed_on_another_node() {
    play(&on_two_nodes(), Fate::Killed, 4);
}

#[test]
fn killed_with_host_memory() {
    play(&host_memory(), Fate::Killed, 2);
}

#[test]
fn stopped_on_one_node() {
    play(&on_one_node(), Fate::Stopped, 1);
}

#[test]
fn stopped_on_another_node() {
    play(&on_two_nodes(), Fate::Stopped, 1);
}

#[test]
#[ignore = "the long form: some minutes"]
fn two_hundred_times() {
    std::thread::scope(|scope| {
        scope.spawn(|| play(&on_one_node(), Fate::Killed, 60));
        scope.spawn(|| play(&on_two_nodes(), Fate::Killed, 50));
        scope.spawn(|| play(&host_memory(), Fate::Killed, 30));
        scope.spawn(|| play(&on_one_node(), Fate::Stopped, 40));
        scope.spawn(|| play(&on_two_nodes(), Fate::Stopped, 20));
    });
}
