//! `test-torch`: against which PyTorch.

use std::path::PathBuf;

use clap::Args;

/// Checks stores, launcher and flight recorder against a real PyTorch; skipped where there is no torch of at least 2.1
#[derive(Args, Debug)]
pub struct TestTorch {
    /// A Python interpreter that has torch
    #[arg(long, default_value = "python3")]
    pub python: PathBuf,
    /// One JSON record a check, and one for the verdict, in place of text
    #[arg(long)]
    pub json: bool,
}
