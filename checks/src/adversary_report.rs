//! `test-multigpu --adversary`: many seeds, a table, and the story of the first that fails.
#![forbid(unsafe_code)]

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use meshreduce_arguments::Plan;
use meshreduce_emulator_weak_memory::adversary::{Options, Summary};
use meshreduce_wire::{Algorithm, Isa};
use serde::Serialize;

use crate::adversary::{Kernels, RunFailure, SliceKernels};
use crate::tables;
use crate::tally::Tally;

/// Seeds, if the command line does not say how many.
const SEEDS: u64 = 200;

/// How many seeds of the other algorithms one of the cube mesh's eight ranks counts for.
const CUBE_MESH_SHARE: u64 = 10;

/// One line of the report.
#[derive(Serialize)]
struct Line {
    algorithm: String,
    isa: String,
    ranks: usize,
    first_seed: u64,
    seeds: u64,
    ok: bool,
    result: String,
    failing_seed: Option<u64>,
    replay: Option<String>,
    instructions: u64,
    seconds: f64,
}

/// What plays the seeds of a case.
enum Player {
    AllReduces(Kernels),
    Slices(Box<SliceKernels>),
}

impl Player {
    fn of(plan: &Plan, (algorithm, ranks, isa): (Algorithm, usize, Isa)) -> Result<Self> {
        if algorithm.is_of_slices() {
            let kernels =
                SliceKernels::with_those_of(algorithm, ranks, isa)?.with_lists()?.with_focus(algorithm);
            let kernels = match plan.collective[..] {
                [collective] => kernels.with_collective(collective),
                _ => kernels,
            };
            return Ok(Player::Slices(Box::new(kernels)));
        }
        let kernels = match &plan.ptx {
            Some(file) => {
                let text =
                    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
                Kernels::parse(&text, algorithm, ranks)?
            }
            None => Kernels::shipped(algorithm, ranks, isa)?,
        };
        Ok(Player::AllReduces(kernels))
    }

    /// The ISA: of a text that was given it is not known before.
    fn isa(&self, wanted: Isa) -> Isa {
        match self {
            Player::AllReduces(kernels) => kernels.isa,
            Player::Slices(_) => wanted,
        }
    }

    fn play(&self, seed: u64, options: Options) -> Result<Result<Summary, RunFailure>> {
        match self {
            Player::AllReduces(kernels) => kernels.play(seed, options),
            Player::Slices(kernels) => kernels.play(seed, options),
        }
    }

    /// What a seed launches, in words.
    fn scenario(&self, seed: u64) -> String {
        match self {
            Player::AllReduces(kernels) => format!("{:?}", kernels.scenario(seed)),
            Player::Slices(kernels) => format!("{:?}", kernels.scenario(seed)),
        }
    }
}

/// Runs the seeds of a plan; `false` if one of them failed.
///
/// # Errors
/// If there is nothing to run, or the shipped PTX cannot be read.
pub fn run(plan: &Plan) -> Result<bool> {
    let cases = cases(plan);
    ensure!(!cases.is_empty(), "no such case: the hybrid cube mesh takes 8 ranks, all others 2 to 8");
    let total = cases.iter().map(|&(algorithm, ..)| seeds(plan, algorithm)).sum();
    let bar = ProgressBar::new(total);
    if plan.json {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{elapsed} [{bar:30}] {pos}/{len} seeds  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut lines = Vec::new();
    let mut stories = Vec::new();
    for (algorithm, ranks, wanted) in cases {
        bar.set_message(format!("{algorithm} in {wanted}, {ranks} ranks"));
        let player = Player::of(plan, (algorithm, ranks, wanted))?;
        let isa = player.isa(wanted);
        let start = Instant::now();
        let (instructions, failed) = sweep(&player, plan.seed, seeds(plan, algorithm), &bar)?;
        let replay = failed.as_ref().map(|(seed, _)| replay(plan, algorithm, ranks, isa, *seed));
        lines.push(Line {
            algorithm: algorithm.to_string(),
            isa: isa.to_string(),
            ranks,
            first_seed: plan.seed,
            seeds: seeds(plan, algorithm),
            ok: failed.is_none(),
            result: failed.as_ref().map_or("clean", |(_, failure)| failure.name()).to_owned(),
            failing_seed: failed.as_ref().map(|(seed, _)| *seed),
            replay: replay.clone(),
            instructions,
            seconds: start.elapsed().as_secs_f64(),
        });
        if let (Some((seed, failure)), Some(replay)) = (failed, replay) {
            let told = if plan.explain { explained(&player, seed)? } else { failure.to_string() };
            let scenario = player.scenario(seed);
            stories.push(format!(
                "{algorithm} in PTX ISA {isa}, {ranks} ranks, seed {seed}\n{told}\nwhat was launched: {scenario}\nreplay with --seed {seed}: {replay}\n"
            ));
        }
    }
    bar.finish_and_clear();
    if plan.json {
        for line in &lines {
            println!("{}", serde_json::to_string(line)?);
        }
    } else {
        println!("{}", table(&lines, tables::width()));
    }
    stories.iter().for_each(|story| eprintln!("\n{story}"));
    let mut tally = Tally::default();
    lines.iter().for_each(|line| tally.count(Some(line.ok)));
    tally.show(plan.json, &[])
}

fn seeds(plan: &Plan, algorithm: Algorithm) -> u64 {
    let seeds = plan.seeds.unwrap_or(SEEDS);
    match algorithm {
        // All of them, where nothing else was asked for.
        _ if algorithm.is_of_cube_mesh() && plan.algorithm != [algorithm] => seeds.div_ceil(CUBE_MESH_SHARE),
        _ => seeds,
    }
}

fn cases(plan: &Plan) -> Vec<(Algorithm, usize, Isa)> {
    let mut cases = Vec::new();
    // All of them, where nothing else was asked for. A text that is given is one of all-reduces.
    let all = plan.algorithm.is_empty() && plan.collective.is_empty() && plan.ptx.is_none();
    let others = Algorithm::every().filter(|algorithm| all && !Algorithm::ALL.contains(algorithm));
    for algorithm in plan.algorithms().into_iter().chain(others) {
        let possible = if algorithm.is_of_cube_mesh() { 8..=8 } else { 2..=8 };
        // A text that is given says itself which it is.
        let wanted = |isa: &Isa| match &plan.ptx {
            Some(_) => *isa == Isa::V70,
            None => plan.isa.is_none_or(|only| only == *isa) && Kernels::are_shipped(algorithm, *isa),
        };
        for isa in Isa::ALL.into_iter().filter(wanted) {
            match plan.ranks {
                Some(ranks) => cases.extend(possible.contains(&ranks).then_some((algorithm, ranks, isa))),
                None if algorithm.is_of_cube_mesh() => cases.push((algorithm, 8, isa)),
                None => cases.extend((2..=4).map(|ranks| (algorithm, ranks, isa))),
            }
        }
    }
    cases
}

/// Runs `count` seeds on all cores: the instructions, and the lowest seed that failed.
fn sweep(
    player: &Player,
    first: u64,
    count: u64,
    bar: &ProgressBar,
) -> Result<(u64, Option<(u64, RunFailure)>)> {
    let next = AtomicU64::new(first);
    let lowest = AtomicU64::new(u64::MAX);
    let instructions = AtomicU64::new(0);
    let failed: Mutex<Option<(u64, RunFailure)>> = Mutex::new(None);
    let work = || -> Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(count) || seed > lowest.load(Ordering::Relaxed) {
                return Ok(());
            }
            match player.play(seed, Options::default())? {
                Ok(summary) => drop(instructions.fetch_add(summary.instructions, Ordering::Relaxed)),
                Err(failure) => {
                    lowest.fetch_min(seed, Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    if failed.as_ref().is_none_or(|(known, _)| seed < *known) {
                        *failed = Some((seed, failure));
                    }
                }
            }
            bar.inc(1);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let failed = failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok((instructions.into_inner(), failed))
}

/// The failure once more, with the interleaving that led to it.
fn explained(player: &Player, seed: u64) -> Result<String> {
    let again = player.play(seed, Options { trace: true, ..Options::default() })?;
    Ok(again.map_or_else(|failure| failure.to_string(), |_| "the seed did not fail again".to_owned()))
}

fn replay(plan: &Plan, algorithm: Algorithm, ranks: usize, isa: Isa, seed: u64) -> String {
    let text =
        plan.ptx.as_ref().map_or_else(|| format!("--isa {isa}"), |file| format!("--ptx {}", file.display()));
    let collective = match plan.collective[..] {
        [collective] if algorithm.is_of_slices() => format!("--collective {collective} "),
        _ => String::new(),
    };
    format!(
        "cargo xtask test-multigpu --adversary {collective}--algorithm {algorithm} {text} --ranks {ranks} --seed {seed} --seeds 1 --explain"
    )
}

fn table(lines: &[Line], width: u16) -> Table {
    let header = ["algorithm", "isa", "ranks", "seeds", "result", "instructions", "seconds"];
    let mut table = tables::table(width, header, &[2, 3, 5, 6]);
    for line in lines {
        let result = match line.failing_seed {
            Some(seed) => format!("{} (seed {seed})", line.result),
            None => line.result.clone(),
        };
        table.add_row([
            line.algorithm.clone(),
            line.isa.clone(),
            line.ranks.to_string(),
            format!("{}..{}", line.first_seed, line.first_seed.saturating_add(line.seeds)),
            result,
            line.instructions.to_string(),
            format!("{:.1}", line.seconds),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_wire::Collective;

    #[test]
    fn a_replay_takes_the_text_that_failed() {
        let of = |plan: &Plan| replay(plan, Algorithm::OneShotLl, 2, Isa::V84, 7);
        let mut plan = crate::plan::tests::of_all_nodes();
        assert!(of(&plan).contains("--algorithm one-shot-ll --isa 8.4 --ranks 2 --seed 7"));
        plan.collective = vec![Collective::Reduce];
        let of_slices = replay(&plan, Algorithm::ReduceScatterLl, 2, Isa::V84, 7);
        assert!(of_slices.contains("--collective reduce --algorithm reduce-scatter-ll --isa 8.4"));
        plan.ptx = Some("a/b.ptx".into());
        assert!(of(&plan).contains("--algorithm one-shot-ll --ptx a/b.ptx --ranks 2 --seed 7"));
    }

    #[test]
    fn the_table_fits_the_screen() {
        let line = |failing_seed| Line {
            algorithm: "hybrid-cube-mesh-ll".into(),
            isa: "8.4".into(),
            ranks: 8,
            first_seed: 1_000_000_000,
            seeds: 100_000,
            ok: false,
            result: "a read of memory that was never written".into(),
            failing_seed,
            replay: None,
            instructions: 123_456_789_012,
            seconds: 12_345.6,
        };
        for width in [80, 120] {
            let table = table(&[line(None), line(Some(1_000_000_017))], width);
            tables::assert_fits(&table, width.into());
        }
    }
}
