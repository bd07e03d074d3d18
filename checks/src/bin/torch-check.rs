//! `torch-check`: stores, launcher and flight recorder against a real PyTorch; see `--help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use meshreduce_checks::torch_check::{Arguments, run};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
