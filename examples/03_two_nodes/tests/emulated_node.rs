//! The whole example on an emulated HGX H100.

use std::process::Command;

use meshreduce_checks::emulated_node::EmulatedNode;

/// What the example prints, which must end well.
fn printed(arguments: &[&str]) -> String {
    let node = EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}"));
    let program = std::env::var_os("CARGO_BIN_EXE_03_two_nodes").expect("cargo says where it is");
    let output = Command::new(program).args(arguments).envs(node.environment()).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn eight_ranks_of_two_nodes_reduce_over_both_levels() {
    let text = printed(&[]);
    assert!(text.contains("2 nodes of 4 ranks: the sum is right on all of them"), "{text}");
    assert!(text.contains("1 call over both levels (mesh, NCCL, mesh), 0 by NCCL alone"), "{text}");
}

#[test]
fn slices_need_not_be_equal() {
    assert!(printed(&["--nodes", "3", "--ranks", "2", "--elements", "37"]).contains("3 nodes of 2 ranks"));
}
