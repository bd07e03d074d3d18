//! `channels`: the doctor for channels; see `--help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use meshreduce_arguments::Channels;
use meshreduce_checks::doctor::run;

#[derive(Parser)]
#[command(name = "channels")]
struct Arguments {
    #[command(flatten)]
    channels: Channels,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().channels) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
