//! The command: what a person or a program reads.

use std::time::Instant;

use anyhow::{Result, ensure};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use meshreduce_arguments::Mutants;
use meshreduce_wire::{Algorithm, Isa, MAX_RANKS};
use serde::Serialize;

use crate::adversary::Kernels;

use super::given::{self, Detection};
use super::{MutantResult, Seeds, Set, count, judge_all};

/// Seeds, if the command line does not say how many: within these all die that are not listed.
const SEEDS: u64 = 3000;
/// Seeds of calls that cannot end well for a text that is given.
const GIVEN_SEEDS: u64 = 200;
/// Least share of the mutants that are not equivalent, in percent, that must be killed.
const LEAST: f64 = 100.0;

#[derive(Serialize)]
struct Totals {
    mutants: usize,
    equivalent: usize,
    killed: usize,
    survived: usize,
    killed_percent: f64,
    seeds: u64,
    most_seeds: u64,
    seconds: f64,
    ok: bool,
}

/// Runs, and says whether all is as it must be; of a given text, whether it was found out.
///
/// # Errors
/// If a mutation does not apply.
pub fn run(arguments: &Mutants) -> Result<bool> {
    if let Some(file) = &arguments.ptx {
        let lint = arguments.linted.iter().map(|what| Detection {
            detector: "lint",
            found: !what.is_empty(),
            what: if what.is_empty() { "nothing".to_owned() } else { what.clone() },
        });
        let mut all: Vec<Detection> = lint.collect();
        all.extend(given::judge(file, arguments.seeds.unwrap_or(GIVEN_SEEDS))?);
        return given::show(&all, arguments.json);
    }
    let is_wanted = |known: &Algorithm| arguments.algorithm.is_none_or(|only| only == *known);
    let mut sets = Vec::new();
    for algorithm in Algorithm::every().filter(is_wanted) {
        let has = |isa: &Isa| {
            arguments.isa.is_none_or(|only| only == *isa) && Kernels::are_shipped(algorithm, *isa)
        };
        for isa in Isa::ALL.into_iter().filter(has) {
            let ranks = if algorithm.is_of_cube_mesh() { &[MAX_RANKS][..] } else { &arguments.ranks };
            for &ranks in ranks {
                sets.extend(Set::all(algorithm, ranks, isa)?);
            }
        }
    }
    let begin = Instant::now();
    let total = count(&sets, &arguments.filter);
    ensure!(total > 0, "there is no mutant with '{}' in its name", arguments.filter);
    let bar = ProgressBar::new(total as u64);
    if arguments.json {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{elapsed} [{bar:30}] {pos}/{len} mutants  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let of_others = arguments.seeds.unwrap_or(SEEDS);
    let seeds = Seeds { of_survivors: arguments.survivor_seeds, of_others };
    let verdicts = judge_all(&sets, &arguments.filter, seeds, |verdict| {
        bar.set_message(verdict.name.clone());
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    let totals = totals(&verdicts, of_others, begin.elapsed().as_secs_f64());
    if arguments.json {
        let all = serde_json::json!({ "totals": totals, "mutants": verdicts });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else if arguments.markdown {
        print!("{}", markdown(&verdicts, &totals));
    } else {
        println!("{}", table(&verdicts));
        println!("{}", sentence(&totals));
    }
    if arguments.stories && !arguments.json {
        for verdict in verdicts.iter().filter(|verdict| !verdict.story.is_empty()) {
            println!("\n{}, {} ranks\n{}", verdict.name, verdict.ranks, verdict.story);
        }
    }
    for verdict in verdicts.iter().filter(|verdict| !verdict.is_expected()) {
        match &verdict.killed_by {
            Some(by) => eprintln!(
                "{}, {} ranks: listed as a survivor, but killed by {by} (seed {})\n{}",
                verdict.name, verdict.ranks, verdict.seeds, verdict.story
            ),
            None => {
                eprintln!("{}, {} ranks: survived {} seeds", verdict.name, verdict.ranks, verdict.seeds)
            }
        }
    }
    Ok(totals.ok)
}

fn totals(verdicts: &[MutantResult], seeds: u64, seconds: f64) -> Totals {
    let equivalent = verdicts.iter().filter(|verdict| verdict.equivalent).count();
    let real = verdicts.iter().filter(|verdict| !verdict.equivalent);
    let killed = real.clone().filter(|verdict| verdict.killed_by.is_some());
    let most_seeds = killed.clone().map(|verdict| verdict.seeds).max().unwrap_or(0);
    let (killed, real) = (killed.count(), real.count());
    let killed_percent = if real == 0 { 100.0 } else { 100.0 * killed as f64 / real as f64 };
    Totals {
        mutants: verdicts.len(),
        equivalent,
        killed,
        survived: real - killed,
        killed_percent,
        seeds,
        most_seeds,
        seconds,
        ok: killed_percent >= LEAST && verdicts.iter().all(MutantResult::is_expected),
    }
}

fn sentence(totals: &Totals) -> String {
    let Totals { mutants, equivalent, killed, survived, killed_percent, seeds, most_seeds, seconds, .. } =
        totals;
    format!(
        "{mutants} mutants: {equivalent} equivalent, {killed} killed ({killed_percent:.1} % of those that are not \
         equivalent), {survived} survived; of {seeds} seeds the slowest death took {most_seeds}; {seconds:.0} s"
    )
}

fn row(verdict: &MutantResult) -> [String; 6] {
    let by = match (&verdict.killed_by, verdict.reason) {
        (Some(by), _) => format!("{by} ({})", verdict.while_.unwrap_or("")),
        (None, Some(reason)) if verdict.equivalent => format!("equivalent: {reason}"),
        (None, Some(reason)) => format!("survives: {reason}"),
        (None, None) => "SURVIVED".to_owned(),
    };
    let change = match (verdict.before.as_str(), verdict.after.as_str()) {
        ("", _) => String::new(),
        (before, "") => format!("{before} -> nothing"),
        (before, after) => format!("{before} -> {after}"),
    };
    let line = if verdict.line == 0 { String::new() } else { verdict.line.to_string() };
    [verdict.name.clone(), verdict.ranks.to_string(), line, change, by, verdict.seeds.to_string()]
}

const HEADER: [&str; 6] = ["mutant", "ranks", "line", "change", "killed by (while)", "seeds"];

fn table(verdicts: &[MutantResult]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(HEADER);
    for verdict in verdicts {
        let mut row = row(verdict);
        // A long change is cut here; JSON and Markdown have it whole.
        if row[3].chars().count() > 60 {
            row[3] = row[3].chars().take(57).collect::<String>() + "...";
        }
        table.add_row(row);
    }
    table
}

fn markdown(verdicts: &[MutantResult], totals: &Totals) -> String {
    let mut text = format!("| {} |\n|{}\n", HEADER.join(" | "), "---|".repeat(HEADER.len()));
    for verdict in verdicts {
        let mut row = row(verdict);
        if !row[3].is_empty() {
            row[3] = format!("`{}`", row[3].replace('|', "\\|"));
        }
        text += &format!("| {} |\n", row.join(" | "));
    }
    text + "\n" + &sentence(totals) + "\n"
}
