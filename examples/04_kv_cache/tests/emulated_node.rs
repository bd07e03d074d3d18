//! The whole example on an emulated HGX H100.

use std::process::Command;

use meshreduce_checks::gdr::Node;

/// What the example prints, which must end well, with these kinds of channels allowed.
fn printed(channels: &str, arguments: &[&str]) -> String {
    let node = Node::new("hgx-h100");
    let program = std::env::var_os("CARGO_BIN_EXE_04_kv_cache").expect("cargo says where it is");
    let mut command = Command::new(program);
    command.args(arguments).envs(node.environment()).env("MESHREDUCE_CHANNELS", channels);
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("decode: every byte of"), "{text}");
    text
}

#[test]
fn pages_of_a_cache_go_within_a_node() {
    assert!(printed("ipc,basic", &[]).contains("by ipc"), "two processes of one host");
}

#[test]
fn the_same_program_goes_by_rdma() {
    assert!(printed("gdr", &[]).contains("by gdr"), "two GPUs, each with the adapter of its switch");
}

#[test]
fn both_ranks_may_share_a_device_and_pages_may_have_any_size() {
    let text =
        printed("ipc,basic", &["--shared-device", "--page-bytes", "1236", "--layers", "3", "--pages", "7"]);
    assert!(text.contains("3 layers of 7 pages of 1236 bytes"), "{text}");
}
