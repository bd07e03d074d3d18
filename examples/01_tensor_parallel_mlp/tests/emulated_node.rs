//! The whole example on an emulated HGX H100: the table, the exit code, and what happens where there is no driver.

use std::process::{Command, Output};

use meshreduce_checks::emulated_node::EmulatedNode;

fn example(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO_BIN_EXE_01_tensor_parallel_mlp").expect("cargo says where it is");
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn run_on_emulated_node(arguments: &[&str]) -> Output {
    let node = EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}"));
    example(arguments).envs(node.environment()).output().expect("the example can be started")
}

fn assert_every_rank_is_right(output: &Output, world_size: usize) {
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    let right =
        table.lines().filter(|line| line.contains(" 93.4 %") && line.trim_end().ends_with("yes")).count();
    assert_eq!(right, world_size, "{table}");
}

#[test]
fn eight_processes_agree_with_the_unsharded_network() {
    assert_every_rank_is_right(&run_on_emulated_node(&["--processes"]), 8);
}

#[test]
fn three_threads_agree_with_the_unsharded_network() {
    assert_every_rank_is_right(&run_on_emulated_node(&["--ranks", "3", "--threads"]), 3);
}

#[test]
fn more_ranks_than_devices_is_an_error_that_says_so() {
    let node = EmulatedNode::new("a100x4").unwrap_or_else(|error| panic!("{error}"));
    let output = example(&["--ranks", "5"]).envs(node.environment()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("no CUDA device 4"), "{message}");
}

#[test]
fn without_a_driver_the_example_says_so_and_fails() {
    let output = example(&[]).env("MESHREDUCE_DRIVER", "/nonexistent/libcuda.so.1").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("/nonexistent/libcuda.so.1"), "{message}");
}
