//! Every shipped node, several numbers of ranks, every algorithm, type and operation: one table.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::ProgressBar;
use meshreduce::Algorithm;
use meshreduce_emulator::node::{Gpu, Node};

use super::{Line, Place, Results, job, progress_of};
use crate::cluster::{Cluster, this_program};
use crate::emulated_node::EmulatedNode;
use crate::job::{ForcedTopology, Job};
use crate::plan::Plan;

/// Numbers of ranks that are run where the node has as many devices.
const RANKS: [usize; 4] = [2, 4, 6, 8];

/// Runs the plan on every shipped node; `false` if anything was not as it should be.
pub(super) fn run(plan: &Plan) -> Result<bool> {
    let stages = Stage::all(plan)?;
    let cases = plan.cases()?.len();
    let total: usize = stages.iter().map(|stage| stage.ranks * cases).sum();
    let bar = progress_of(total as u64, plan.json);
    let mut table = Summary::new(plan);
    let mut all_well = true;
    let mut ran: Vec<Algorithm> = Vec::new();
    let mut done = 0;
    for stage in &stages {
        bar.set_message(stage.title());
        all_well &= stage.run(plan, &bar, &mut table, &mut ran)?;
        // What was not applicable is done too.
        done += stage.ranks * cases;
        bar.set_position(done as u64);
    }
    bar.finish_and_clear();
    if !plan.json {
        println!("{}\nok: every rank has the bits of the reference", table.table);
    }
    for algorithm in plan.algorithms().iter().filter(|algorithm| !ran.contains(algorithm)) {
        eprintln!("{algorithm} ran nowhere");
        all_well = false;
    }
    Ok(all_well)
}

/// Some ranks on one node.
struct Stage {
    node: Node,
    ranks: usize,
    forced: Option<ForcedTopology>,
}

impl Stage {
    fn all(plan: &Plan) -> Result<Vec<Self>> {
        let mut stages = Vec::new();
        for name in Node::shipped() {
            let node = Node::load(name)?;
            let devices = node.gpus.len();
            let stage = |ranks, forced| Self { node: node.clone(), ranks, forced };
            let numbers = plan.ranks.map_or(RANKS.to_vec(), |ranks| vec![ranks]);
            let numbers: Vec<usize> = numbers.into_iter().filter(|ranks| *ranks <= devices).collect();
            stages.extend(numbers.iter().map(|ranks| stage(*ranks, plan.force_topology)));
            // Where peer access goes further than links do, algorithms that the links do not suggest can be forced.
            let last = numbers.last().map(|ranks| stage(*ranks, Some(ForcedTopology::FullyConnected)));
            stages
                .extend(last.filter(|last| plan.force_topology.is_none() && last.access() && !last.linked()));
        }
        Ok(stages)
    }

    fn pairs(&self, related: impl Fn(&Gpu, &Gpu, usize) -> bool) -> bool {
        let gpus = &self.node.gpus[..self.ranks];
        (0..self.ranks).all(|a| (0..self.ranks).all(|b| a == b || related(&gpus[a], &gpus[b], b)))
    }

    /// Whether the description gives every pair of the ranks' devices access to each other.
    fn access(&self) -> bool {
        self.pairs(|a, _, b| a.p2p[b])
    }

    /// Whether the description links every pair of the ranks' devices.
    fn linked(&self) -> bool {
        self.pairs(|a, other, b| {
            a.links_to(b) > 0 || (a.links_to_switches() > 0 && other.links_to_switches() > 0)
        })
    }

    fn title(&self) -> String {
        format!(
            "{}, {} ranks{}",
            self.node.name,
            self.ranks,
            if self.forced.is_some() { ", forced" } else { "" }
        )
    }

    fn run(
        &self,
        plan: &Plan,
        bar: &ProgressBar,
        table: &mut Summary,
        ran: &mut Vec<Algorithm>,
    ) -> Result<bool> {
        let directory = tempfile::tempdir().context("making a directory for the store")?;
        let job = Job { force_topology: self.forced, ..job(plan, self.ranks, directory.path())? };
        let place = Place {
            name: self.node.name.clone(),
            devices: self.node.gpus.len(),
            environment: EmulatedNode::new(&self.node.name)?.environment(),
        };
        let cluster = Cluster::start(&this_program()?, &job, plan.placement(), &place.environment)?;
        let results = Results::gather(&cluster, &job, bar);
        let exits = cluster.wait()?;
        let lines: Vec<Line> =
            (0..job.cases.len()).map(|case| results.line(case, &job, &place, plan)).collect();
        for (line, case) in lines.iter().zip(&job.cases).filter(|(line, _)| line.ran) {
            if !ran.contains(&case.algorithm) {
                ran.push(case.algorithm);
            }
            if !line.ok {
                bar.suspend(|| {
                    eprintln!(
                        "{}: {} {} {} {} bytes: {}",
                        self.title(),
                        line.algorithm,
                        line.dtype,
                        line.op,
                        line.bytes,
                        line.result
                    );
                });
            }
        }
        if plan.json {
            for line in &lines {
                println!("{}", serde_json::to_string(line)?);
            }
        }
        table.add(self, plan, &lines);
        let right = lines.iter().all(|line| line.ok || !line.ran);
        // What the description links completely must have run, whatever the library made of it.
        let skipped = results.not_applicable.values().next().filter(|_| self.linked() && self.access());
        if let Some(reason) = skipped {
            bar.suspend(|| {
                eprintln!("{}: every pair is linked, and yet not applicable: {reason}", self.title())
            });
        }
        let well = right && skipped.is_none() && results.ended_well(&exits) && results.failures.is_empty();
        if !well {
            bar.suspend(|| results.complain(&job, &exits));
        }
        Ok(well)
    }
}

/// The table: a row for node, ranks, algorithm and type, with a column for each operation.
struct Summary {
    table: Table,
    last: Option<String>,
}

impl Summary {
    fn new(plan: &Plan) -> Self {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        let operations = plan.ops().iter().map(ToString::to_string).collect::<Vec<_>>();
        let columns = ["node", "ranks", "algorithm", "dtypes"].map(str::to_owned).into_iter();
        table.set_header(columns.chain(operations).chain(["bytes", "not applicable"].map(str::to_owned)));
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Self { table, last: None }
    }

    fn add(&mut self, stage: &Stage, plan: &Plan, lines: &[Line]) {
        let blank = || vec![String::new(); plan.ops().len()];
        // The same reason for all: one row.
        if let Some(reason) = shared_reason(lines) {
            return self.row(stage, "all", "all", blank(), "", reason);
        }
        for lines in lines.chunk_by(|a, b| a.algorithm == b.algorithm) {
            if let Some(reason) = shared_reason(lines) {
                self.row(stage, &lines[0].algorithm, "all", blank(), "", reason);
                continue;
            }
            // Types that fared alike share a row.
            let types: Vec<(&str, Cells)> = lines
                .chunk_by(|a, b| a.dtype == b.dtype)
                .map(|lines| (lines[0].dtype.as_str(), Cells::new(lines)))
                .collect();
            for alike in types.chunk_by(|(_, a), (_, b)| a == b) {
                let dtypes: Vec<&str> = alike.iter().map(|(dtype, _)| *dtype).collect();
                let Cells { operations, bytes, left_out } = &alike[0].1;
                self.row(stage, &lines[0].algorithm, &dtypes.join(" "), operations.clone(), bytes, left_out);
            }
        }
    }

    fn row(
        &mut self,
        stage: &Stage,
        algorithm: &str,
        dtype: &str,
        cells: Vec<String>,
        bytes: &str,
        why: &str,
    ) {
        let mut node = stage.node.name.clone();
        if let Some(forced) = stage.forced {
            node += match forced {
                ForcedTopology::FullyConnected => ", forced fully connected",
                ForcedTopology::HybridCubeMesh => ", forced hybrid cube mesh",
            };
        }
        // A node is named where its rows begin.
        let named = format!("{node} {}", stage.ranks);
        let shown = if self.last.as_ref() == Some(&named) { String::new() } else { node };
        self.last = Some(named);
        let row = [shown, stage.ranks.to_string(), algorithm.to_owned(), dtype.to_owned()];
        self.table.add_row(row.into_iter().chain(cells).chain([bytes.to_owned(), why.to_owned()]));
    }
}

/// How one algorithm and type fared.
#[derive(PartialEq)]
struct Cells {
    operations: Vec<String>,
    bytes: String,
    left_out: String,
}

impl Cells {
    fn new(lines: &[Line]) -> Self {
        let operations: Vec<&[Line]> = lines.chunk_by(|a, b| a.op == b.op).collect();
        let first = operations.first().copied().unwrap_or_default();
        let sizes = |ran: bool| {
            let sizes = first.iter().filter(|line| line.ran == ran).map(|line| size(line.bytes));
            sizes.collect::<Vec<_>>().join(" ")
        };
        let left_out = first.iter().find(|line| !line.ran);
        Self {
            bytes: sizes(true),
            left_out: left_out.map(|line| format!("{}: {}", sizes(false), reason(line))).unwrap_or_default(),
            operations: operations.into_iter().map(cell).collect(),
        }
    }
}

/// The reason for which none of the lines ran, if it is one.
fn shared_reason<'a>(lines: &'a [Line<'_>]) -> Option<&'a str> {
    let first = reason(lines.first()?);
    lines.iter().all(|line| !line.ran && reason(line) == first).then_some(first)
}

fn reason<'a>(line: &'a Line<'_>) -> &'a str {
    let result = line.result.as_str();
    let reason = ["not applicable: ", "not run: "].iter().find_map(|start| result.strip_prefix(start));
    let reason = reason.unwrap_or(result);
    // The algorithm stands in the row.
    reason.split_once("is not possible here: ").map_or(reason, |(_, why)| why)
}

/// One operation over all sizes.
fn cell(lines: &[Line]) -> String {
    let ran = lines.iter().filter(|line| line.ran).count();
    let wrong = lines.iter().filter(|line| line.ran && !line.ok).count();
    match (ran, wrong) {
        (0, _) => "-".to_owned(),
        (_, 0) => "ok".to_owned(),
        _ => format!("WRONG {wrong}/{ran}"),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => bytes.to_string(),
    }
}
