//! `litmus`: the litmus tests before all their judges (`docs/litmus.md`).

use std::num::NonZero;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::{fs, io::IsTerminal as _};

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use meshreduce_emulator::litmus::{Judgement, Litmus, Verdict, compare, judge, parse, random, shrink};
use serde::Serialize;

use crate::repository;

/// Seeds for every test unless told otherwise.
const SEEDS: u64 = 1000;

/// Check litmus tests against the axioms, and the adversary executor against both
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file, or a folder of `.litmus` files. Default: the shipped ones
    path: Option<PathBuf>,
    /// Only tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// Runs of the executor for every test [default: 1000, with --seed 1]
    #[arg(long)]
    seeds: Option<u64>,
    /// The seed of the first run [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Instead of the tests: random programs, their outcomes and data races [the first is number --seed]
    #[arg(long, value_name = "N", conflicts_with_all = ["path", "filter"])]
    random: Option<u64>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs of the executor for every random program, through races and stopping at them.
const RANDOM_SEEDS: u64 = 300;

/// A line of the table.
#[derive(Serialize)]
struct Row {
    file: String,
    line: u32,
    test: String,
    stated: &'static str,
    enumerator: &'static str,
    /// Outcomes that the axioms allow.
    allowed: usize,
    /// Those that the executor had.
    seen: usize,
    /// Allowed outcomes that sequential consistency does not have.
    weak_allowed: usize,
    weak_seen: usize,
    /// The first seed that met the condition.
    condition_seed: Option<u64>,
    ok: bool,
    /// What is wrong, with the seed that replays it.
    failures: Vec<String>,
}

/// What is below the table.
#[derive(Serialize)]
struct Totals {
    tests: usize,
    failed: usize,
    seeds: Range<u64>,
    allowed: usize,
    seen: usize,
    weak_allowed: usize,
    weak_seen: usize,
    /// Tests whose condition is allowed, and those of them whose condition the executor met.
    conditions_allowed: usize,
    conditions_seen: usize,
}

/// What the random programs gave.
#[derive(Default, Serialize)]
struct RandomTotals {
    programs: u64,
    /// Outcomes that the axioms allow, and those that the executor had.
    allowed: usize,
    seen: usize,
    /// Programs with a data race in some execution, and those of them in which the executor reported one.
    racy: u64,
    racy_seen: u64,
    /// The first program on which they disagree: its seed, the seed of the run, what it did, the text.
    wrong: Option<(u64, u64, String, String)>,
}

impl Args {
    /// Runs the command; fails if any judge disagrees.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if let Some(count) = self.random {
            return self.random(count);
        }
        let first = self.seed.unwrap_or(0);
        let count = self.seeds.unwrap_or(if self.seed.is_some() { 1 } else { SEEDS });
        let seeds = first..first.checked_add(count).context("--seed and --seeds go beyond 64 bits")?;
        let tests = self.tests()?;
        let progress = progress(tests.len() as u64);
        let mut rows = Vec::new();
        for (file, test) in &tests {
            progress.set_message(test.name.clone());
            let judged = judge(test, seeds.clone());
            let judged = judged.with_context(|| format!("{file}:{}: {}", test.line, test.name))?;
            rows.push(row(file, test, &judged));
            progress.inc(1);
        }
        progress.finish_and_clear();
        let totals = totals(&rows, seeds);
        if self.json {
            let all = serde_json::json!({ "tests": rows, "totals": totals });
            println!("{}", serde_json::to_string_pretty(&all)?);
        } else {
            print(&rows, &totals);
        }
        Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Compares the executor with the axioms on random programs; fails at the first on which they disagree.
    fn random(self, count: u64) -> Result<ExitCode> {
        let first = self.seed.unwrap_or(0);
        let end = first.checked_add(count).context("--seed and --random go beyond 64 bits")?;
        let seeds = 0..self.seeds.unwrap_or(RANDOM_SEEDS);
        let progress = progress(count);
        let next = AtomicU64::new(first);
        let totals = Mutex::new(RandomTotals::default());
        let work = || -> Result<()> {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return Ok(());
                }
                let text = random(seed);
                let [test] = &parse("random", &text)?[..] else { bail!("not one program:\n{text}") };
                let comparison = compare(test, seeds.clone());
                progress.inc(1);
                let mut totals = totals.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                totals.programs += 1;
                totals.allowed += comparison.allowed.outcomes.len();
                totals.seen += comparison.seen;
                totals.racy += u64::from(comparison.allowed.racy);
                totals.racy_seen += u64::from(comparison.races > 0);
                if let Some((run, wrong)) = comparison.wrong
                    && totals.wrong.as_ref().is_none_or(|(known, ..)| seed < *known)
                {
                    totals.wrong = Some((seed, run, wrong, text));
                    next.store(end, Ordering::Relaxed);
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let join = |worker: ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().try_for_each(join)
        })?;
        progress.finish_and_clear();
        let totals = totals.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.json {
            println!("{}", serde_json::to_string_pretty(&totals)?);
        } else {
            let RandomTotals { programs, allowed, seen, racy, racy_seen, .. } = totals;
            println!(
                "{programs} random programs, {} runs each and as many that stop at data races: {seen} of {allowed} \
                 allowed outcomes; a data race in some execution of {racy} programs, reported in {racy_seen}",
                seeds.end
            );
        }
        let Some((seed, run, wrong, text)) = totals.wrong else { return Ok(ExitCode::SUCCESS) };
        println!("FAIL cargo xtask litmus --random 1 --seed {seed}: run {run} gave {wrong}\n{text}");
        println!("what it needs of that:\n{}", shrink(&text, seeds));
        Ok(ExitCode::FAILURE)
    }

    /// The tests to judge, with the files they are in.
    fn tests(&self) -> Result<Vec<(String, Litmus)>> {
        let path = self.path.clone().unwrap_or_else(|| repository::root().join("emulator/litmus"));
        let mut tests = Vec::new();
        for file in files(&path)? {
            let shown = repository::shown(&file);
            let text = fs::read_to_string(&file).with_context(|| format!("reading {shown}"))?;
            tests.extend(parse(&shown, &text)?.into_iter().map(|test| (shown.clone(), test)));
        }
        if let Some(filter) = &self.filter {
            tests.retain(|(_, test)| test.name.contains(filter));
        }
        ensure!(!tests.is_empty(), "there is no such litmus test in {}", repository::shown(&path));
        Ok(tests)
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let shown = repository::shown(path);
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir().with_context(|| format!("reading {shown}"))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "litmus") {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!("there is no .litmus file in {shown}");
    }
    files.sort();
    Ok(files)
}

fn progress(tests: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    ProgressBar::new(tests).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "forbidden" }
}

fn row(file: &str, test: &Litmus, judged: &Judgement) -> Row {
    let mut failures = Vec::new();
    if !judged.verdict_holds(test) {
        failures.push(format!("the axioms make its condition {}", word(judged.possible)));
    }
    let replay = |seed: u64| format!("cargo xtask litmus {file} --filter {} --seed {seed}", test.name);
    for (outcome, seed) in judged.excess() {
        let outcome = outcome.describe(test);
        failures.push(format!("the executor gave {outcome}, which no execution has: {}", replay(seed)));
    }
    if let Some((seed, report)) = judged.stopped.first() {
        let runs = judged.stopped.len();
        failures.push(format!("the executor stopped in {runs} runs: {}\n{report}", replay(*seed)));
    }
    Row {
        file: file.to_owned(),
        line: test.line,
        test: test.name.clone(),
        stated: word(test.verdict == Verdict::Allowed),
        enumerator: word(judged.possible),
        allowed: judged.allowed.len(),
        seen: judged.seen.len(),
        weak_allowed: judged.weak.len(),
        weak_seen: judged.weak_seen(),
        condition_seed: judged.reached(test),
        ok: judged.holds(test),
        failures,
    }
}

fn totals(rows: &[Row], seeds: Range<u64>) -> Totals {
    let sum = |of: fn(&Row) -> usize| rows.iter().map(of).sum();
    let possible = |row: &&Row| row.enumerator == word(true);
    Totals {
        tests: rows.len(),
        failed: rows.iter().filter(|row| !row.ok).count(),
        seeds,
        allowed: sum(|row| row.allowed),
        seen: sum(|row| row.seen),
        weak_allowed: sum(|row| row.weak_allowed),
        weak_seen: sum(|row| row.weak_seen),
        conditions_allowed: rows.iter().filter(possible).count(),
        conditions_seen: rows.iter().filter(possible).filter(|row| row.condition_seed.is_some()).count(),
    }
}

fn print(rows: &[Row], totals: &Totals) {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header([
        "test",
        "stated",
        "enumerator",
        "outcomes seen / allowed",
        "weak",
        "condition met by seed",
        "ok",
    ]);
    for row in rows {
        table.add_row([
            row.test.clone(),
            row.stated.to_owned(),
            row.enumerator.to_owned(),
            format!("{} / {}", row.seen, row.allowed),
            format!("{} / {}", row.weak_seen, row.weak_allowed),
            row.condition_seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string()),
            if row.ok { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    println!("{table}");
    for row in rows.iter().filter(|row| !row.ok) {
        for failure in &row.failures {
            println!("FAIL {}:{} {}: {failure}", row.file, row.line, row.test);
        }
    }
    let Totals { tests, failed, seeds, .. } = totals;
    println!("{tests} tests, {failed} failed; executor: seeds {} to {}", seeds.start, seeds.end);
    println!(
        "executor reached {} of {} allowed outcomes, {} of {} weak ones ({:.0} %), and the condition of {} of {} \
         tests that allow it",
        totals.seen,
        totals.allowed,
        totals.weak_seen,
        totals.weak_allowed,
        100.0 * totals.weak_seen as f64 / totals.weak_allowed.max(1) as f64,
        totals.conditions_seen,
        totals.conditions_allowed,
    );
}
