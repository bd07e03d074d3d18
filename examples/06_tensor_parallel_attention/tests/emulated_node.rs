//! The whole example on an emulated HGX H100.

use std::process::{Command, Output};

use meshreduce_checks::emulated_node::EmulatedNode;

fn example(arguments: &[&str]) -> Command {
    let program =
        std::env::var_os("CARGO_BIN_EXE_06_tensor_parallel_attention").expect("cargo says where it is");
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn run_on_emulated_node(arguments: &[&str]) -> Output {
    let node = EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}"));
    example(arguments).envs(node.environment()).output().expect("the example can be started")
}

fn assert_every_rank_is_right(output: &Output, world_size: usize) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let is_said = |rank: usize| text.contains(&format!("rank {rank} of {world_size}: heads"));
    assert!((0..world_size).all(is_said), "{text}");
}

#[test]
fn eight_ranks_agree_with_the_plain_layers() {
    assert_every_rank_is_right(&run_on_emulated_node(&[]), 8);
}

#[test]
fn heads_need_not_divide_evenly() {
    assert_every_rank_is_right(&run_on_emulated_node(&["--ranks", "3"]), 3);
}

#[test]
fn without_a_driver_the_example_says_so_and_fails() {
    let output = example(&[]).env("MESHREDUCE_DRIVER", "/nonexistent/libcuda.so.1").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("/nonexistent/libcuda.so.1"), "{message}");
}
