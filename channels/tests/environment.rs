//! The allow list in the environment, which a process has but once: this program starts itself.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use meshreduce_channels::{ALLOWED, Context, Error, Registry, RegistryError};

/// What a process with this allow list says.
fn with(list: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["a_process_with_an_allow_list", "--exact", "--ignored", "--nocapture"]).env(ALLOWED, list);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text.lines().find_map(|line| line.split_once("SAYS ")).unwrap().1.to_owned()
}

#[test]
#[ignore = "another test starts it as a process"]
fn a_process_with_an_allow_list() {
    match Context::new(&Registry::default(), &[]) {
        Ok(context) => {
            let report = context.report();
            let viable = report.rows.iter().filter(|row| row.reason.is_none());
            println!("SAYS {}", viable.map(|row| row.name.as_str()).collect::<Vec<_>>().join(" "));
        }
        Err(Error::Registry(error @ RegistryError::UnknownName { .. })) => println!("SAYS {error}"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_environment_gives_choice_and_order() {
    assert_eq!(with("basic"), "basic");
    assert_eq!(with("basic,xth"), "basic xth");
    assert_eq!(with(" cuda_xth, cuda_basic "), "xth basic");
    assert!(with("").starts_with("xth "), "an empty list is none");
    assert!(
        with("basic,pigeon")
            .starts_with("\"pigeon\" is not a channel (in the allow list \"basic,pigeon\"); there are xth, ")
    );
}
