//! Runs a plan and shows what came of it.
#![forbid(unsafe_code)]

mod all_nodes;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use meshreduce_emulator::node::Node;
use serde::Serialize;

use crate::cluster::{Cluster, Exit, Placement, this_program};
use crate::emulated_node::EmulatedNode;
use crate::job::{Case, Event, ForcedTopology, Job, Mismatch};
use crate::plan::Plan;
use crate::probe;

/// Runs the plan; `false` if anything was not as it should be.
///
/// # Errors
/// If the plan cannot be run at all: an unknown node, a worker that cannot be started.
pub fn run(plan: &Plan) -> Result<bool> {
    if plan.all_nodes {
        return all_nodes::run(plan);
    }
    let place = Place::choose(plan)?;
    let world_size = plan.ranks.unwrap_or(place.devices.min(8));
    ensure!(
        world_size <= place.devices,
        "{world_size} ranks need as many devices; {} has {}",
        place.name,
        place.devices
    );
    let directory = tempfile::tempdir().context("making a directory for the store")?;
    let job = job(plan, world_size, directory.path())?;
    if !plan.json {
        println!("{}, {world_size} ranks as {}", place.name, placement_name(plan.placement()));
    }
    let cluster = Cluster::start(&this_program()?, &job, plan.placement(), &place.environment)?;
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
        cases: plan.cases()?,
        launches: plan.launches(),
        seed: plan.seed,
        ptx: plan.ptx.clone(),
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
    algorithm: String,
    dtype: String,
    op: String,
    ranks: usize,
    bytes: usize,
    launches: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    force_topology: Option<ForcedTopology>,
    ran: bool,
    ok: bool,
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
        if plan.json {
            for line in &lines {
                println!("{}", serde_json::to_string(line)?);
            }
        } else {
            println!("{}", table(&lines));
        }
        self.complain(job, exits);
        let asked = |case: &Case| plan.algorithm.contains(&case.algorithm);
        // What nobody asked for by name may be left out, but not everything.
        let left_out_in_vain = lines.iter().zip(&job.cases).any(|(line, case)| !line.ran && asked(case));
        let all_ok = lines.iter().all(|line| line.ok || !line.ran) && lines.iter().any(|line| line.ran);
        Ok(all_ok && !left_out_in_vain && self.ended_well(exits))
    }

    /// Every rank that had a communicator has closed it, and no process failed.
    fn ended_well(&self, exits: &[Exit]) -> bool {
        self.closed == self.ready && exits.iter().all(|exit| exit.status.success())
    }

    /// Says on standard error what ranks and processes said of themselves.
    fn complain(&self, job: &Job, exits: &[Exit]) {
        for (rank, reason) in &self.not_applicable {
            eprintln!("rank {rank}: not applicable: {reason}");
        }
        for (rank, case, message) in &self.failures {
            let case = case.map(|case| format!(" in {}", describe(&job.cases[case]))).unwrap_or_default();
            eprintln!("rank {rank}{case}: {message}");
        }
        for exit in exits.iter().filter(|exit| !exit.status.success() || !exit.stderr.is_empty()) {
            if !exit.status.success() {
                eprintln!("ranks {:?} ended with {}", exit.ranks, exit.status);
            }
            eprint!("{}", exit.stderr);
        }
    }

    fn line<'a>(&self, index: usize, job: &Job, place: &'a Place, plan: &Plan) -> Line<'a> {
        let case = &job.cases[index];
        let ranks = &self.cases[index];
        let result = self.verdict(index, job);
        let slowest = ranks.values().map(|rank| rank.micros).max();
        Line {
            node: &place.name,
            algorithm: case.algorithm.to_string(),
            dtype: case.dtype.to_string(),
            op: case.op.to_string(),
            ranks: job.world_size,
            bytes: case.bytes,
            launches: job.launches,
            force_topology: job.force_topology,
            ran: self.not_applicable.is_empty() && !self.unsupported.contains_key(&index),
            ok: result.is_ok(),
            result: result.unwrap_or_else(|problem| problem),
            micros_per_launch: slowest.map(|micros| micros as f64 / job.launches as f64),
            instructions: self.instructions(index, plan.placement()),
        }
    }

    fn verdict(&self, index: usize, job: &Job) -> Result<String, String> {
        if let Some(reason) = self.not_applicable.values().next() {
            return Err(format!("not applicable: {reason}"));
        }
        if let Some(reason) = self.unsupported.get(&index) {
            return Err(format!("not run: {reason}"));
        }
        let ranks = &self.cases[index];
        if let Some((rank, wrong)) =
            ranks.iter().find_map(|(rank, case)| Some((rank, case.mismatch.as_ref()?)))
        {
            return Err(format!("rank {rank}: {}", explain(wrong)));
        }
        let missing: Vec<_> = job.ranks.iter().filter(|rank| !ranks.contains_key(rank)).collect();
        if !missing.is_empty() {
            return Err(format!("no result of ranks {missing:?}"));
        }
        let mut digests = ranks.values().map(|case| &case.digest);
        let first = digests.next();
        match digests.all(|digest| Some(digest) == first) {
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
    format!("{} {} {} {} bytes", case.algorithm, case.dtype, case.op, case.bytes)
}

fn explain(mismatch: &Mismatch) -> String {
    match mismatch {
        Mismatch::Element { launch, element, got, want } => {
            format!("launch {launch}, element {element} is 0x{got}, must be 0x{want}")
        }
        Mismatch::Guard { launch, offset } => {
            format!("launch {launch} wrote outside its output, at byte {offset}")
        }
        Mismatch::Input { launch, offset } => format!("launch {launch} wrote its input, at byte {offset}"),
    }
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "algorithm",
        "dtype",
        "op",
        "ranks",
        "bytes",
        "launches",
        "result",
        "us/launch",
        "PTX instructions",
    ]);
    for line in lines {
        table.add_row([
            line.algorithm.clone(),
            line.dtype.clone(),
            line.op.clone(),
            line.ranks.to_string(),
            line.bytes.to_string(),
            line.launches.to_string(),
            if line.ok || !line.ran { line.result.clone() } else { format!("WRONG: {}", line.result) },
            line.micros_per_launch.map_or("-".into(), |micros| format!("{micros:.0}")),
            line.instructions.map_or("-".into(), |count| count.to_string()),
        ]);
    }
    for column in [3, 4, 5, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
