//! `cargo xtask` acts on the checkout in which it is started, not on the one in which it was built.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// What makes a folder a checkout, and one PTX text that `lint-ptx` refuses.
fn checkout() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("Cargo.toml", "[workspace]\n"),
        ("xtask/Cargo.toml", "[package]\nname = \"xtask\"\n"),
        ("host/Cargo.toml", "[package]\nname = \"meshreduce\"\n"),
        ("host/ptx/one_of_the_copy.ptx", "this is no PTX\n"),
        ("bench/ptx/another_of_the_copy.ptx", "nor is this\n"),
        ("docs/nodes/README", ""),
    ] {
        let file = folder.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    folder
}

/// What `lint-ptx` says, started as `cargo run` starts it in the checkout `told`, or as a shell does.
fn lint(told: Option<&Path>, from: &Path) -> (bool, String) {
    let mut command = Command::new(std::env::var_os("CARGO_BIN_EXE_xtask").unwrap());
    command.arg("lint-ptx").current_dir(from).env_remove("CARGO_MANIFEST_DIR");
    command.envs(told.map(|told| ("CARGO_MANIFEST_DIR", told.join("xtask"))));
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn the_checkout_that_cargo_names_counts_wherever_the_user_is() {
    let (copy, elsewhere) = (checkout(), tempfile::tempdir().unwrap());
    let (well, said) = lint(Some(copy.path()), elsewhere.path());
    assert!(!well && said.contains("host/ptx/one_of_the_copy.ptx"), "{said}");
    assert!(!said.contains("one_shot"), "{said}");
}

#[test]
fn without_cargo_it_is_the_checkout_around_the_user() {
    let copy = checkout();
    for from in ["", "docs/nodes"] {
        let (well, said) = lint(None, &copy.path().join(from));
        assert!(!well && said.contains("one_of_the_copy.ptx") && !said.contains("one_shot"), "{said}");
    }
}

#[test]
fn outside_a_checkout_there_is_nothing_to_act_on() {
    let elsewhere = tempfile::tempdir().unwrap();
    let (well, said) = lint(None, elsewhere.path());
    assert!(!well && said.contains("is a checkout of meshreduce"), "{said}");
}
