//! The command: what a person or a program reads.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use meshreduce_emulator_weak_memory::path::Step;
use meshreduce_wire::{Algorithm, DType, Op};
use serde_json::json;

use super::rules::{RULES, broken};
use super::{Outcome, Subject, count, page, shipped};
use crate::plan::bytes;

/// The message that the page is of, in bytes.
const BYTES: usize = 8 << 10;

/// Counts the longest dependent path through the shipped kernels: round trips over NVLink, local accesses, fences.
#[derive(Args)]
pub struct CountPath {
    /// Change nothing; fail when the page is stale or a path is longer than its family's rule allows
    #[arg(long)]
    check: bool,
    /// Only these algorithms, with commas; the page is left as it is
    #[arg(long, value_name = "A", value_delimiter = ',', value_parser = |text: &str| text.parse::<Algorithm>())]
    algorithm: Vec<Algorithm>,
    /// Only these world sizes, with commas; the page is left as it is
    #[arg(long, value_delimiter = ',')]
    ranks: Vec<usize>,
    /// Message sizes with commas: bytes, or with the suffix KiB or MiB; the page is left as it is [default: 8KiB]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = bytes)]
    bytes: Vec<usize>,
    /// Element type
    #[arg(long, default_value = "bf16", value_parser = |text: &str| text.parse::<DType>())]
    dtype: DType,
    /// Operation
    #[arg(long, default_value = "sum", value_parser = |text: &str| text.parse::<Op>())]
    op: Op,
    /// Print JSON, with the steps of every path
    #[arg(long)]
    json: bool,
    /// Print the steps of every path
    #[arg(long)]
    steps: bool,
    /// The page to write or to check
    #[arg(long, value_name = "FILE", hide = true)]
    page: Option<PathBuf>,
}

impl CountPath {
    /// Runs, and says whether all is as it must be.
    ///
    /// # Errors
    /// If a kernel goes wrong, or the page is stale.
    pub fn run(&self) -> Result<bool> {
        let sizes = if self.bytes.is_empty() { vec![BYTES] } else { self.bytes.clone() };
        let wanted = |algorithm: &Algorithm, ranks: &usize| {
            (self.algorithm.is_empty() || self.algorithm.contains(algorithm))
                && (self.ranks.is_empty() || self.ranks.contains(ranks))
        };
        let mut outcomes = Vec::new();
        for (algorithm, ranks, isa) in
            shipped().into_iter().filter(|(algorithm, ranks, _)| wanted(algorithm, ranks))
        {
            for &bytes in &sizes {
                let subject = Subject { algorithm, ranks, isa, dtype: self.dtype, op: self.op, bytes };
                let outcome = count(subject);
                outcomes.push(
                    outcome.with_context(|| {
                        format!("{algorithm} over {ranks} ranks, {bytes} bytes, ISA {isa}")
                    })?,
                );
            }
        }
        ensure!(!outcomes.is_empty(), "there is no such kernel");
        let counted: Vec<_> = outcomes.iter().map(|outcome| outcome.counted.clone()).collect();
        let failures: Vec<String> = counted.iter().flat_map(|counted| broken(&RULES, counted)).collect();
        if self.json {
            let all: Vec<_> = outcomes.iter().map(described).collect();
            println!("{}", serde_json::to_string_pretty(&json!({ "paths": all, "broken": failures }))?);
        } else {
            print!("{}", page::counts(&counted));
            for outcome in outcomes.iter().filter(|_| self.steps) {
                println!("\n{}, {} ranks", outcome.counted.family, outcome.counted.ranks);
                outcome.steps.iter().for_each(|step| println!("  {}", line(step)));
            }
        }
        if let Some(file) = self.page.as_ref().filter(|_| !self.is_a_look()) {
            let old = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            let new = page::filled(&old, &page::generated(&counted, &RULES))?;
            match (self.check, new == old) {
                (true, false) => bail!("docs/path.md is stale; `cargo xtask path` makes it anew"),
                (true, true) => eprintln!("docs/path.md is what the kernels give"),
                (false, _) => fs::write(file, new).with_context(|| format!("writing {}", file.display()))?,
            }
        }
        failures.iter().for_each(|failure| eprintln!("{failure}"));
        Ok(failures.is_empty())
    }

    /// Whether it is only a look at some kernels.
    fn is_a_look(&self) -> bool {
        let some = !(self.algorithm.is_empty() && self.ranks.is_empty() && self.bytes.is_empty());
        some || self.json || self.steps || (self.dtype, self.op) != (DType::Bf16, Op::Sum)
    }
}

fn described(outcome: &Outcome) -> serde_json::Value {
    let steps = outcome.steps.iter().map(|step| {
        let Step { kind, place, device, block, thread, line, text } = step;
        json!({
            "kind": kind.to_string(), "place": place, "device": device, "block": block, "thread": thread,
            "line": line, "text": text,
        })
    });
    let steps: Vec<_> = steps.collect();
    json!({ "counted": outcome.counted, "steps": steps })
}

fn line(step: &Step) -> String {
    let Step { kind, place, device, block, thread, line, text } = step;
    let place = if place.is_empty() { String::new() } else { format!("  of {place}") };
    format!("{kind:15} by device {device}, block {block}, thread {thread}{place}\n      line {line}: {text}")
}
