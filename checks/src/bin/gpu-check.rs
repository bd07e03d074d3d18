//! `gpu-check`: what must hold on a machine with GPUs; see `--help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use meshreduce_checks::gpu_check::{Arguments, run};

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
