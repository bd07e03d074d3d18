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
use meshreduce_emulator_weak_memory::litmus::{
    Expectation, Judgement, Litmus, compare, judge, parse, parse_bounded, random, shrink,
};
use serde::Serialize;

use crate::repository;

/// Seeds for every test unless told otherwise.
const SEEDS: u64 = 1000;

/// Check litmus tests against the axioms, and the adversary executor against both
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file, or a folder of `.litmus` files and folders, in the format of this project or of Dat3M. Default: the
    /// shipped ones
    path: Option<PathBuf>,
    /// How often loops go round, at most, for the enumerator
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    rounds: u8,
    /// What tests that only ask must give: lines `PATH,0` or `PATH,1` (does the question hold?), as Dat3M has them
    #[arg(long, value_name = "CSV")]
    expected: Option<PathBuf>,
    /// What `--expected` is about: whether the question holds, or whether every execution ends
    #[arg(long, value_enum, default_value_t = About::Condition)]
    about: About,
    /// Pass over files that are not understood, and say which
    #[arg(long)]
    lenient: bool,
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

/// What a file of expectations is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum About {
    Condition,
    Termination,
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
    /// Whether some execution has a data race.
    racy: bool,
    /// The first seed in which the executor reported one.
    race_seed: Option<u64>,
    /// Whether every execution ends; not there if that is not known.
    terminates: Option<bool>,
    /// Runs of the executor that would not have ended.
    hung: usize,
    /// Why the executor was not asked.
    unfit: Option<String>,
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
    /// Tests with a data race in some execution, and those of them in which the executor reported one.
    racy: usize,
    racy_seen: usize,
    /// Tests that the executor was not asked about.
    unfit: usize,
    /// Tests about which something was expected, and those of them that gave it.
    expected: usize,
    as_expected: usize,
    /// Files that were passed over.
    passed_over: Vec<String>,
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
        let (tests, passed_over) = self.tests()?;
        let expected = self.expected.as_deref().map(Expectations::read).transpose()?;
        let progress = progress(tests.len() as u64);
        let mut rows = Vec::new();
        let (mut asked, mut met) = (0, 0);
        for (file, test) in &tests {
            progress.set_message(test.name.clone());
            let judged = judge(test, seeds.clone());
            let mut row = row(file, test, &judged);
            if let Some(wanted) = expected.as_ref().and_then(|all| all.of(file)) {
                asked += 1;
                let found = match self.about {
                    About::Condition => Some(judged.possible == (test.verdict != Expectation::Asked(false))),
                    About::Termination => judged.allowed.terminates(),
                };
                met += usize::from(found == Some(wanted));
                if found != Some(wanted) {
                    let found = found.map_or("not known", |found| if found { "1" } else { "0" });
                    row.failures.push(format!("{} is expected and {found} is found", u8::from(wanted)));
                    row.ok = false;
                }
            }
            rows.push(row);
            progress.inc(1);
        }
        progress.finish_and_clear();
        let totals = Totals { expected: asked, as_expected: met, passed_over, ..totals(&rows, seeds) };
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

    /// The tests to judge, with the files they are in; and the files that are not understood, if they are passed over.
    fn tests(&self) -> Result<(Vec<FileTest>, Vec<String>)> {
        let path =
            self.path.clone().unwrap_or_else(|| repository::root().join("emulator/weak-memory/litmus"));
        let (mut tests, mut passed_over) = (Vec::new(), Vec::new());
        for file in files(&path)? {
            let shown = repository::shown(&file);
            let text = fs::read_to_string(&file).with_context(|| format!("reading {shown}"))?;
            match parse_bounded(&shown, &text, self.rounds.into()) {
                Ok(found) => tests.extend(found.into_iter().map(|test| (shown.clone(), test))),
                Err(error) if self.lenient => passed_over.push(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(filter) = &self.filter {
            tests.retain(|(_, test)| test.name.contains(filter));
        }
        ensure!(!tests.is_empty(), "there is no such litmus test in {}", repository::shown(&path));
        Ok((tests, passed_over))
    }
}

/// A test with the file it is in.
type FileTest = (String, Litmus);

/// What is expected, by path.
struct Expectations(Vec<(String, bool)>);

impl Expectations {
    fn read(path: &Path) -> Result<Self> {
        let shown = repository::shown(path);
        let text = fs::read_to_string(path).with_context(|| format!("reading {shown}"))?;
        let line = |(number, line): (usize, &str)| {
            let (path, value) = line.rsplit_once(',').context("no `PATH,0` or `PATH,1`")?;
            let value = match value.trim() {
                "0" => false,
                "1" => true,
                _ => bail!("{shown}:{}: no `PATH,0` or `PATH,1`", number + 1),
            };
            Ok((path.trim().to_owned(), value))
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        Ok(Self(lines.map(line).collect::<Result<_>>()?))
    }

    /// Paths may begin elsewhere than those of the expectations: the end counts.
    fn of(&self, file: &str) -> Option<bool> {
        let same = |(path, _): &&(String, bool)| Path::new(file).ends_with(path);
        self.0.iter().find(same).map(|(_, value)| *value)
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let shown = repository::shown(path);
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = folder.read_dir().with_context(|| format!("reading {}", repository::shown(&folder)))?;
        for entry in entries {
            let entry = entry?.path();
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "litmus") {
                files.push(entry);
            }
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
        let ends = match judged.allowed.terminates() {
            Some(true) => "all executions end",
            Some(false) => "some execution does not end",
            None => "whether executions end is not known",
        };
        let racy = if judged.allowed.racy { "some has" } else { "none has" };
        let condition = word(judged.possible);
        failures.push(format!("the axioms make its condition {condition}; {racy} a data race; {ends}"));
    }
    let replay = |seed: u64| format!("cargo xtask litmus {file} --filter {} --seed {seed}", test.name);
    for (outcome, seed) in judged.excess() {
        let outcome = outcome.describe(test);
        failures.push(format!("the executor gave {outcome}, which no execution has: {}", replay(seed)));
    }
    if let Some(seed) = judged.false_race() {
        failures.push(format!("the executor reported a data race, which no execution has: {}", replay(seed)));
    }
    if let Some((seed, report)) = judged.stopped.first() {
        let runs = judged.stopped.len();
        failures.push(format!("the executor stopped in {runs} runs: {}\n{report}", replay(*seed)));
    }
    Row {
        file: file.to_owned(),
        line: test.line,
        test: test.name.clone(),
        stated: match test.verdict {
            Expectation::Allowed => "allowed",
            Expectation::Forbidden => "forbidden",
            Expectation::Asked(_) => "asked",
        },
        enumerator: word(judged.possible),
        racy: judged.allowed.racy,
        race_seed: judged.race,
        terminates: judged.allowed.terminates(),
        hung: judged.hung.len(),
        unfit: judged.unfit.as_ref().map(ToString::to_string),
        allowed: judged.allowed.outcomes.len(),
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
    let racy = || rows.iter().filter(|row| row.racy);
    Totals {
        racy: racy().count(),
        racy_seen: racy().filter(|row| row.race_seed.is_some()).count(),
        unfit: rows.iter().filter(|row| row.unfit.is_some()).count(),
        expected: 0,
        as_expected: 0,
        passed_over: Vec::new(),
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
        "data race",
        "ends",
        "ok",
    ]);
    for row in rows {
        table.add_row([
            row.test.clone(),
            row.stated.to_owned(),
            row.enumerator.to_owned(),
            format!("{} / {}", row.seen, row.allowed),
            format!("{} / {}", row.weak_seen, row.weak_allowed),
            match (&row.unfit, row.condition_seed) {
                (Some(_), _) => "not run".to_owned(),
                (None, Some(seed)) => seed.to_string(),
                (None, None) => "-".to_owned(),
            },
            match (row.racy, row.race_seed) {
                (false, _) => "none".to_owned(),
                (true, None) => "yes".to_owned(),
                (true, Some(seed)) => format!("yes, seed {seed}"),
            },
            match row.terminates {
                Some(true) => "always".to_owned(),
                Some(false) if row.hung > 0 => format!("not always, {} seeds", row.hung),
                Some(false) => "not always".to_owned(),
                None => "not known".to_owned(),
            },
            if row.ok { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    println!("{table}");
    for row in rows.iter().filter(|row| !row.ok) {
        for failure in &row.failures {
            println!("FAIL {}:{} {}: {failure}", row.file, row.line, row.test);
        }
    }
    let Totals { tests, failed, seeds, racy, racy_seen, .. } = totals;
    for file in &totals.passed_over {
        println!("passed over: {file}");
    }
    if totals.expected > 0 {
        println!("{} of {} as expected", totals.as_expected, totals.expected);
    }
    println!("{tests} tests, {failed} failed; executor: seeds {} to {}", seeds.start, seeds.end);
    println!("{racy} tests with a data race in some execution, reported in {racy_seen}");
    if totals.unfit > 0 {
        println!("{} tests not run on the executor", totals.unfit);
    }
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
