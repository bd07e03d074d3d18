//! The whole example on an emulated HGX H100.

use std::process::Command;

use meshreduce_checks::emulated_node::EmulatedNode;

/// What the example prints, which must end well.
fn printed(arguments: &[&str]) -> String {
    let node = EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}"));
    let program = std::env::var_os("CARGO_BIN_EXE_02_two_backends").expect("cargo says where it is");
    let output = Command::new(program).args(arguments).envs(node.environment()).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_cpu_tensor_and_a_cuda_tensor_go_to_their_backends() {
    let text = printed(&[]);
    for line in [
        "2 ranks, backends cpu:host,cuda:mesh",
        "all_reduce of a CPU tensor: 3 everywhere, by host",
        "all_reduce of a CUDA tensor: 3 everywhere, by mesh (1 itself, 0 by what is behind it)",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_world_of_one_is_a_world() {
    assert!(printed(&["--ranks", "1"]).contains("1 ranks, backends"));
}
