//! `channel-check`: one side of a scenario of channels over RDMA; see `--help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use meshreduce_checks::gdr::Arguments;
use meshreduce_checks::gdr::program::run;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
