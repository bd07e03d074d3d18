//! The command: what a person or a program reads.
#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use meshreduce_arguments::Path;
use meshreduce_emulator_weak_memory::path::Step;
use meshreduce_wire::{Algorithm, DType, Op};
use serde_json::json;

use super::rules::{RULES, broken};
use super::{Outcome, Subject, count, page, shipped};

/// The message that the page is of, in bytes.
const BYTES: usize = 8 << 10;

/// Runs, and says whether all is as it must be.
///
/// # Errors
/// If a kernel goes wrong, or the page is stale.
pub fn run(arguments: &Path) -> Result<bool> {
    let sizes = if arguments.bytes.is_empty() { vec![BYTES] } else { arguments.bytes.clone() };
    let wanted = |algorithm: &Algorithm, ranks: &usize| {
        (arguments.algorithm.is_empty() || arguments.algorithm.contains(algorithm))
            && (arguments.ranks.is_empty() || arguments.ranks.contains(ranks))
    };
    let mut outcomes = Vec::new();
    for (algorithm, ranks, isa) in
        shipped().into_iter().filter(|(algorithm, ranks, _)| wanted(algorithm, ranks))
    {
        for &bytes in &sizes {
            let subject = Subject { algorithm, ranks, isa, dtype: arguments.dtype, op: arguments.op, bytes };
            let outcome = count(subject);
            outcomes.push(
                outcome
                    .with_context(|| format!("{algorithm} over {ranks} ranks, {bytes} bytes, ISA {isa}"))?,
            );
        }
    }
    ensure!(!outcomes.is_empty(), "there is no such kernel");
    let counted: Vec<_> = outcomes.iter().map(|outcome| outcome.counted.clone()).collect();
    let failures: Vec<String> = counted.iter().flat_map(|counted| broken(&RULES, counted)).collect();
    if arguments.json {
        let all: Vec<_> = outcomes.iter().map(described).collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "paths": all, "broken": failures }))?);
    } else {
        print!("{}", page::counts(&counted));
        for outcome in outcomes.iter().filter(|_| arguments.steps) {
            println!("\n{}, {} ranks", outcome.counted.family, outcome.counted.ranks);
            outcome.steps.iter().for_each(|step| println!("  {}", line(step)));
        }
    }
    if let Some(file) = arguments.page.as_ref().filter(|_| !is_a_look(arguments)) {
        let old = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let new = page::filled(&old, &page::generated(&counted, &RULES))?;
        match (arguments.check, new == old) {
            (true, false) => bail!("docs/path.md is stale; `cargo xtask path` makes it anew"),
            (true, true) => eprintln!("docs/path.md is what the kernels give"),
            (false, _) => fs::write(file, new).with_context(|| format!("writing {}", file.display()))?,
        }
    }
    failures.iter().for_each(|failure| eprintln!("{failure}"));
    Ok(failures.is_empty())
}

/// Whether it is only a look at some kernels.
fn is_a_look(arguments: &Path) -> bool {
    let some = !(arguments.algorithm.is_empty() && arguments.ranks.is_empty() && arguments.bytes.is_empty());
    some || arguments.json || arguments.steps || (arguments.dtype, arguments.op) != (DType::Bf16, Op::Sum)
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
