//! Runs a plan and shows what came of it.
#![forbid(unsafe_code)]

mod all_nodes;
mod left_out;

use meshreduce_arguments::Plan;
use meshreduce_wire::{Collective, Isa};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use meshreduce_emulator_node::node::Node;
use meshreduce_wire::{MAX_RANKS, MIN_RANKS};
use serde::Serialize;

use crate::cluster::{Cluster, Exit, Placement, this_program};
use crate::emulated_node::EmulatedNode;
use crate::job::{Case, Event, ForcedTopology, Job, Mismatch};
use crate::plan::{cases, placement};
use crate::tally::Tally;
use crate::{probe, tables};
use left_out::LeftOut;

/// Runs the plan; `false` if anything was not as it should be.
///
/// # Errors
/// If the plan cannot be run at all: an unknown node, a worker that cannot be started.
pub fn run(plan: &Plan) -> Result<bool> {
    if plan.all_nodes {
        return all_nodes::run(plan);
    }
    let place = Place::choose(plan)?;
    let devices = place.devices;
    ensure!(devices >= MIN_RANKS, "{}: {devices} devices, where {MIN_RANKS} ranks need one each", place.name);
    let most = devices.min(MAX_RANKS);
    let world_size = plan.ranks.unwrap_or(most);
    ensure!(
        world_size <= most,
        "--ranks {world_size}: every rank needs a device, and {} has {devices}; --ranks takes {MIN_RANKS} to {most} there",
        place.name,
    );
    let directory = tempfile::tempdir().context("making a directory for the store")?;
    let job = job(plan, world_size, directory.path())?;
    if !plan.json {
        let launches = job.launches;
        let placement = placement_name(placement(plan));
        println!("{}, {world_size} ranks as {placement}, launches: {launches}", place.name);
    }
    let cluster = Cluster::start(&this_program()?, &job, placement(plan), &place.environment)?;
    let bar = progress(&job, plan.json);
    let results = Results::gather(&cluster, &job, &bar);
    bar.finish_and_clear();
    let exits = cluster.wait()?;
    results.show(&job, &place, plan, &exits)
}

/// The plan's job for ranks 0 up to `world_size`, rank r on device r.
fn job(plan: &Plan, world_size: usize, store: &Path) -> Result<Job> {
    let deadline = Duration::try_from_secs_f64(plan.deadline).context("the deadline")?;
    Ok(Job {
        ranks: (0..world_size).collect(),
        world_size,
        devices: (0..world_size as u32).collect(),
        store: store.to_owned(),
        cases: cases(plan)?,
        launches: plan.launches(),
        seed: plan.seed,
        ptx: plan.ptx.clone(),
        isa: plan.isa.unwrap_or(Isa::V84),
        deadline_ms: deadline.as_millis() as u64,
        rendezvous_ms: 60_000,
        lanes: 1,
        first_call_number: 0,
        shared_devices: false,
        force_topology: plan.force_topology,
        faults: Vec::new(),
    })
}

fn placement_name(placement: Placement) -> &'static str {
    match placement {
        Placement::Processes => "processes",
        Placement::Threads => "threads of one process",
    }
}

/// Where the ranks run.
struct Place {
    name: String,
    devices: usize,
    environment: Vec<(&'static str, OsString)>,
}

impl Place {
    fn choose(plan: &Plan) -> Result<Self> {
        if plan.node.is_none() {
            let real = probe::devices_of_machine()?;
            if real.names.len() >= 2 {
                let name = format!("{} x {}", real.names.len(), real.names[0]);
                return Ok(Self { name, devices: real.names.len(), environment: Vec::new() });
            }
        }
        let name = plan.node.as_deref().unwrap_or("hgx-h100");
        let node = Node::load(name)?;
        let devices = node.gpus.len();
        let shown = format!("emulated node {}", node.name);
        Ok(Self { name: shown, devices, environment: EmulatedNode::new(name)?.environment() })
    }
}

fn progress(job: &Job, quiet: bool) -> ProgressBar {
    progress_of((job.cases.len() * job.world_size) as u64, quiet)
}

fn progress_of(total: u64, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if quiet {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{elapsed} [{bar:30}] {pos}/{len} results  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// What all workers said.
#[derive(Default)]
struct Results {
    cases: Vec<BTreeMap<usize, CaseResult>>,
    unsupported: BTreeMap<usize, String>,
    not_applicable: BTreeMap<usize, String>,
    failures: Vec<(usize, Option<usize>, String)>,
    ready: usize,
    closed: usize,
}

struct CaseResult {
    digest: String,
    mismatch: Option<Mismatch>,
    micros: u64,
    instructions: Option<u64>,
}

/// One line of the report.
#[derive(Serialize)]
struct Line<'a> {
    node: &'a str,
    collective: String,
    algorithm: String,
    dtype: String,
    /// `None` where nothing is reduced.
    op: Option<String>,
    ranks: usize,
    bytes: usize,
    launches: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    force_topology: Option<ForcedTopology>,
    ran: bool,
    /// Whether the result was right; `None` if the case did not run.
    ok: Option<bool>,
    result: String,
    micros_per_launch: Option<f64>,
    instructions: Option<u64>,
}

impl Results {
    fn gather(cluster: &Cluster, job: &Job, bar: &ProgressBar) -> Self {
        let mut results =
            Self { cases: job.cases.iter().map(|_| BTreeMap::new()).collect(), ..Self::default() };
        for event in cluster.events() {
            match event {
                Event::Ready { .. } => {
                    results.ready += 1;
                    bar.set_message("ranks are ready");
                }
                Event::NotApplicable { rank, reason } => drop(results.not_applicable.insert(rank, reason)),
                Event::Case { rank, case, digest, mismatch, micros, instructions } => {
                    bar.inc(1);
                    bar.set_message(describe(&job.cases[case]));
                    results.cases[case].insert(rank, CaseResult { digest, mismatch, micros, instructions });
                }
                Event::Unsupported { case, reason, .. } => {
                    bar.inc(1);
                    results.unsupported.insert(case, reason);
                }
                Event::Failed { rank, case, message, .. } => results.failures.push((rank, case, message)),
                Event::Closed { .. } => results.closed += 1,
            }
        }
        results
    }

    fn show(&self, job: &Job, place: &Place, plan: &Plan, exits: &[Exit]) -> Result<bool> {
        let lines: Vec<Line> = (0..job.cases.len()).map(|index| self.line(index, job, place, plan)).collect();
        let mut left_out = LeftOut::default();
        left_out.add(&place.name, job.world_size, &lines);
        if plan.json {
            for line in &lines {
                println!("{}", serde_json::to_string(line)?);
            }
        } else {
            if lines.iter().any(|line| line.ran) {
                println!("{}", table(&lines, tables::width()));
            }
            lines.iter().filter(|line| line.ok == Some(false)).for_each(|line| println!("{}", wrong(line)));
            left_out.lines().for_each(|line| println!("{line}"));
        }
        self.complain(job, exits);
        let mut verdict = Tally::default();
        lines.iter().for_each(|line| verdict.count(line.ok));
        // What nobody asked for by name may be left out, but not everything.
        let checked_something = verdict.run > 0;
        for algorithm in plan.algorithm.iter().filter(|_| checked_something) {
            let name = algorithm.to_string();
            let cases = lines.iter().filter(|line| line.algorithm == name && !line.ran).count();
            if cases > 0 {
                verdict
                    .problem(format!("{name} was asked for by name, and {cases} of its cases did not run"));
            }
        }
        self.end(exits).into_iter().for_each(|problem| verdict.problem(problem));
        verdict.show(plan.json, &left_out.reasons())
    }

    /// What is wrong with how ranks and processes ended: every rank that had a communicator must have closed it, and no
    /// process have failed.
    fn end(&self, exits: &[Exit]) -> Vec<String> {
        let mut problems = Vec::new();
        if self.closed != self.ready {
            problems.push(format!("{} of {} communicators were closed", self.closed, self.ready));
        }
        let failed = exits.iter().filter(|exit| !exit.status.success());
        problems.extend(failed.map(|exit| format!("ranks {:?} ended with {}", exit.ranks, exit.status)));
        problems
    }

    /// Says on standard error what ranks and processes said of themselves.
    fn complain(&self, job: &Job, exits: &[Exit]) {
        // What is so for all ranks is said with the cases.
        if self.not_applicable.len() < job.ranks.len() {
            for (rank, reason) in &self.not_applicable {
                eprintln!("rank {rank}: not applicable: {reason}");
            }
        }
        for (rank, case, message) in &self.failures {
            let case = case.map(|case| format!(" in {}", describe(&job.cases[case]))).unwrap_or_default();
            eprintln!("rank {rank}{case}: {message}");
        }
        exits.iter().for_each(|exit| eprint!("{}", exit.stderr));
    }

    fn line<'a>(&self, index: usize, job: &Job, place: &'a Place, plan: &Plan) -> Line<'a> {
        let case = &job.cases[index];
        let ranks = &self.cases[index];
        let left_out = self.left_out(index, job);
        let result = left_out.clone().map_or_else(|| self.result(index, job), Err);
        let slowest = ranks.values().map(|rank| rank.micros).max();
        Line {
            node: &place.name,
            collective: case.collective.to_string(),
            algorithm: case.algorithm.to_string(),
            dtype: case.dtype.to_string(),
            op: case.collective.reduces().then(|| case.op.to_string()),
            ranks: job.world_size,
            bytes: case.bytes,
            launches: job.launches,
            force_topology: job.force_topology,
            ran: left_out.is_none(),
            ok: left_out.is_none().then_some(result.is_ok()),
            result: result.unwrap_or_else(|problem| problem),
            micros_per_launch: slowest.map(|micros| micros as f64 / job.launches as f64),
            instructions: self.instructions(index, placement(plan)),
        }
    }

    /// Why a case did not run, if it did not.
    fn left_out(&self, index: usize, job: &Job) -> Option<String> {
        // That the library does not apply must be what all ranks say.
        let not_applicable = self.not_applicable.values().next();
        let not_applicable = not_applicable.filter(|_| self.not_applicable.len() == job.ranks.len());
        not_applicable.or(self.unsupported.get(&index)).cloned()
    }

    fn result(&self, index: usize, job: &Job) -> Result<String, String> {
        let ranks = &self.cases[index];
        if let Some((rank, wrong)) =
            ranks.iter().find_map(|(rank, case)| Some((rank, case.mismatch.as_ref()?)))
        {
            return Err(format!("rank {rank}: {wrong}"));
        }
        let missing: Vec<_> = job.ranks.iter().filter(|rank| !ranks.contains_key(rank)).collect();
        if !missing.is_empty() {
            return Err(format!("no result of ranks {missing:?}"));
        }
        if !matches!(job.cases[index].collective, Collective::AllReduce | Collective::AllGather) {
            return Ok("the reference's bits".to_owned());
        }
        let mut digests = ranks.values().map(|case| &case.digest);
        let first = digests.next().ok_or("no result")?;
        match digests.all(|digest| digest == first) {
            true => Ok("bit-identical".to_owned()),
            false => Err("ranks differ".to_owned()),
        }
    }

    /// PTX instructions of the case: what every process's counter gained since the case before.
    fn instructions(&self, index: usize, placement: Placement) -> Option<u64> {
        let counter = |index: usize, rank: usize| self.cases[index].get(&rank)?.instructions;
        let before = |rank| (0..index).rev().find_map(|index| counter(index, rank)).unwrap_or(0);
        let ranks: Vec<usize> = self.cases[index].keys().copied().collect();
        match placement {
            Placement::Processes => {
                ranks.iter().map(|&rank| Some(counter(index, rank)? - before(rank))).sum()
            }
            // One process, one counter: the last rank to finish has the whole of it.
            Placement::Threads => {
                let now = ranks.iter().filter_map(|&rank| counter(index, rank)).max()?;
                Some(now - ranks.iter().map(|&rank| before(rank)).max()?)
            }
        }
    }
}

fn describe(case: &Case) -> String {
    let Case { collective, algorithm, dtype, op, bytes, .. } = case;
    let op = if collective.reduces() { format!(" {op}") } else { String::new() };
    format!("{collective} {algorithm} {dtype}{op} {bytes} bytes")
}

/// What is wrong with a case.
fn wrong(line: &Line) -> String {
    let Line { collective, algorithm, dtype, op, bytes, result, .. } = line;
    let op = op.as_ref().map_or(String::new(), |op| format!(" {op}"));
    format!("WRONG: {collective} {algorithm} {dtype}{op} {bytes} bytes: {result}")
}

fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => bytes.to_string(),
    }
}

/// The cases that ran. What is the same for all of them stands above the table.
fn table(lines: &[Line], width: u16) -> Table {
    let header = ["algorithm", "dtype", "op", "bytes", "result", "us", "PTX instr."];
    let mut table = tables::table(width, header, &[3, 5, 6]);
    for line in lines.iter().filter(|line| line.ran) {
        let Line { collective, algorithm, .. } = line;
        let tells =
            collective == Collective::AllReduce.name() || algorithm.trim_end_matches("-ll") == collective;
        table.add_row([
            if tells { algorithm.clone() } else { format!("{collective}: {algorithm}") },
            line.dtype.clone(),
            line.op.clone().unwrap_or_else(|| "-".to_owned()),
            size(line.bytes),
            if line.ok == Some(true) { "ok" } else { "WRONG" }.to_owned(),
            line.micros_per_launch.map_or("-".into(), |micros| format!("{micros:.0}")),
            line.instructions.map_or("-".into(), |count| count.to_string()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn line(algorithm: &str, ok: Option<bool>, result: &str) -> Line<'static> {
        Line {
            node: "node",
            collective: "all-reduce".to_owned(),
            algorithm: algorithm.to_owned(),
            dtype: "bf16".to_owned(),
            op: Some("sum".to_owned()),
            ranks: 8,
            bytes: 10 << 20,
            launches: 3,
            force_topology: None,
            ran: ok.is_some(),
            ok,
            result: result.to_owned(),
            micros_per_launch: Some(12_345_678.9),
            instructions: Some(12_345_678_901),
        }
    }

    #[test]
    fn the_table_fits_the_screen_and_keeps_numbers_whole() {
        let difference = "rank 7: launch 2, element 5242879 is 0x3f80, must be 0x3f81";
        let lines = [
            line("hybrid-cube-mesh", Some(true), "bit-identical"),
            line("hybrid-cube-mesh", Some(false), difference),
            line("one-shot", None, "the topology is hybrid cube mesh"),
        ];
        for width in [80, 120] {
            let text = table(&lines, width);
            tables::assert_fits(&text, width.into());
            let text = text.to_string();
            assert!(text.contains("12345678901") && text.contains("hybrid-cube-mesh"), "{text}");
            assert!(text.contains("WRONG") && !text.contains("one-shot"), "{text}");
        }
        assert_eq!(
            wrong(&lines[1]),
            format!("WRONG: all-reduce hybrid-cube-mesh bf16 sum 10485760 bytes: {difference}")
        );
    }

    #[test]
    fn a_case_that_did_not_run_is_neither_right_nor_wrong() {
        let line = serde_json::to_value(line("one-shot", None, "why")).unwrap();
        assert_eq!((&line["ok"], &line["ran"]), (&serde_json::Value::Null, &serde_json::json!(false)));
    }
}
