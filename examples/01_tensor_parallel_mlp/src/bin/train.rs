//! Trains the network and writes its weights; with `--check`, compares them with those of the repository instead.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Parser;
use tensor_parallel_mlp::{
    data::Digits,
    model::TRAINED,
    training::{SEED, train},
};

/// Trains the network of this example.
#[derive(Parser)]
struct Arguments {
    /// Where the weights go [default: those of the repository, if `cargo run` started this]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write nothing; fail unless the weights are those of the repository, bit for bit.
    #[arg(long)]
    check: bool,
    /// Where the random numbers start; the weights of the repository have the default.
    #[arg(long, default_value_t = SEED, conflicts_with = "check")]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let Arguments { out, check, seed } = Arguments::parse();
    let mlp = train(&Digits::training(), seed, |epoch, accuracy| {
        println!("epoch {epoch:2}: {:5.1} % of the training images right", 100.0 * accuracy);
    });
    let held_out = Digits::held_out();
    let accuracy = held_out.accuracy(&mlp.classify(&mlp.unsharded(&held_out.pixels)));
    println!(
        "in bf16: {:.1} % of {} held-out images right (always the commonest digit: {:.1} %)",
        100.0 * accuracy,
        held_out.len(),
        100.0 * held_out.majority_share()
    );
    let bytes = mlp.to_safetensors()?;
    if check {
        ensure!(bytes == TRAINED, "the weights differ from those of the repository");
        println!("the weights are those of the repository, bit for bit");
    } else {
        let package = || std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let out = out.or_else(|| Some(package()?.join("weights/mlp.safetensors")));
        let out = out.context("say with --out where the weights go")?;
        std::fs::write(&out, bytes).with_context(|| format!("cannot write {}", out.display()))?;
        println!("wrote {}", out.display());
    }
    Ok(())
}
