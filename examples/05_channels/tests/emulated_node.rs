//! The whole example, in host memory and on an emulated HGX H100.

use std::ffi::OsString;
use std::process::Command;

use meshreduce_checks::gdr::Node;

/// What the example prints, which must end well, with these kinds of channels allowed.
fn printed(channels: &str, arguments: &[&str], environment: &[(&str, OsString)]) -> String {
    let program = std::env::var_os("CARGO_BIN_EXE_05_channels").expect("cargo says where it is");
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().cloned()).env("MESHREDUCE_CHANNELS", channels);
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn tensors_in_host_memory_go_around_without_a_driver() {
    let text = printed("basic", &["--host", "--ranks", "5", "--bytes", "100003"], &[]);
    for rank in 0..5 {
        let expected = format!("rank {rank}: tensors of 5 ranks, every byte of 100003 right, by basic");
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn tensors_of_four_gpus_go_around() {
    let node = Node::new("hgx-h100");
    let text = printed("ipc,basic", &["--ranks", "4"], &node.environment());
    assert_eq!(text.matches("by ipc").count(), 4, "{text}");
}
