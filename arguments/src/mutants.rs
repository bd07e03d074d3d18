//! `mutants`: which, and how long each is tried.

use std::path::PathBuf;

use clap::Args;
use meshreduce_wire::{Algorithm, Isa};

/// Seeds for those that are known not to die.
pub const SURVIVOR_SEEDS: u64 = 20;

/// Changes the shipped kernels in one place at a time and lets the adversary find out.
#[derive(Args)]
pub struct Mutants {
    /// One algorithm only; else all
    #[arg(long, value_parser = named)]
    pub algorithm: Option<Algorithm>,
    /// One PTX ISA only; else all in which the algorithm has a text
    #[arg(long, value_name = "V", value_parser = |text: &str| text.parse::<Isa>())]
    pub isa: Option<Isa>,
    /// Ranks, but in a hybrid cube mesh: each of these
    #[arg(long, value_delimiter = ',', default_values_t = [2, 3])]
    pub ranks: Vec<usize>,
    /// A mutant must die within these
    /// [default: 3000; with --ptx 200]
    #[arg(long)]
    pub seeds: Option<u64>,
    /// Those that are known not to die are run on these, and not on so many as the others
    #[arg(long, default_value_t = SURVIVOR_SEEDS)]
    pub survivor_seeds: u64,
    /// Only mutants whose names contain this
    #[arg(long, default_value = "")]
    pub filter: String,
    /// Instead of mutants of the shipped texts: this text, whose kernels have names of shipped ones, before every detector (lint, the
    /// main job, the adversary, calls that cannot end well)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["algorithm", "isa", "ranks", "survivor_seeds", "filter", "markdown", "stories"])]
    pub ptx: Option<PathBuf>,
    /// What the lint has found in that text
    #[arg(long, hide = true, requires = "ptx")]
    pub linted: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print Markdown
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// Tell how each mutant died
    #[arg(long)]
    pub stories: bool,
}

/// The algorithm of that name, also one of slices or of lists.
fn named(name: &str) -> Result<Algorithm, String> {
    let known = || Algorithm::every().map(Algorithm::name).collect::<Vec<_>>().join(", ");
    let found = Algorithm::every().find(|algorithm| algorithm.name() == name);
    found.ok_or_else(|| format!("not a known algorithm ({})", known()))
}
