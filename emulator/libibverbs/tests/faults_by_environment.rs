//! Faults that hold from the first call on.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use support::*;

#[test]
fn the_variable_sets_faults_before_the_first_call() {
    if std::env::var_os("MESHREDUCE_TEST_ROLE").is_none() {
        let faults = "fail=ibv_get_device_list ENOSYS 0 1; duplicate_names=on;nonsense=1";
        let output =
            again("the_variable_sets_faults_before_the_first_call", "MESHREDUCE_VERBS_FAULTS", faults);
        assert!(output.contains("`nonsense=1` is no fault"), "{output}");
        return;
    }
    assert_eq!(library().devices().unwrap_err().errno(), Some(libc::ENOSYS));
    assert_eq!(library().devices().unwrap().named("near").count(), 6);
    fault("duplicate_names", "off");
    assert_eq!(library().devices().unwrap().named("near").count(), 1);
}

#[test]
fn an_environment_without_a_node_is_a_reason() {
    if std::env::var_os("MESHREDUCE_TEST_ROLE").is_none() {
        let output = again("an_environment_without_a_node_is_a_reason", "MESHREDUCE_NODE", "no-such-node");
        assert!(output.contains("there is no node `no-such-node`"), "{output}");
        return;
    }
    assert_eq!(library().devices().unwrap_err().errno(), Some(libc::EINVAL));
}

/// Runs a test of this program in a process of its own with this variable, and answers what it says on stderr.
fn again(test: &str, variable: &str, value: &str) -> String {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command.env("MESHREDUCE_TEST_ROLE", "1").env("MESHREDUCE_NODE", node_file()).env(variable, value);
    let output = command.env(LIBRARIES, folder()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
