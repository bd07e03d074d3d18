//! A C program that was compiled with the real header and linked with the real library, on the stand-in.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::path::Path;
use std::process::Command;

use support::*;

#[test]
fn a_program_of_the_real_header_runs_on_the_stand_in() {
    if !Path::new("/usr/include/infiniband/verbs.h").is_file() {
        eprintln!("skipping: there is no infiniband/verbs.h (Debian: libibverbs-dev)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c_program.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let compiled =
        Command::new(&compiler).arg("-Wall").arg("-o").args([&program, &source]).arg("-libverbs").output();
    let compiled = match compiled {
        Ok(compiled) => compiled,
        Err(error) => {
            eprintln!("skipping: there is no C compiler: {}: {error}", compiler.display());
            return;
        }
    };
    assert!(compiled.status.success(), "{compiled:?}");
    library();
    std::os::unix::fs::symlink(
        support::folder().join("libmeshreduce_libibverbs.so"),
        folder.path().join("libibverbs.so.1"),
    )
    .unwrap();
    let ran = Command::new(&program).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "all 100000 bytes\n");
    // The dynamic loader complains of a library without the versions that the program was linked with.
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
}
