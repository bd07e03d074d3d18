//! Every shipped node, several numbers of ranks, every algorithm, type and operation: one table.

use std::iter;

use anyhow::{Context, Result};
use comfy_table::{ColumnConstraint, Table, Width};
use indicatif::ProgressBar;
use meshreduce::Algorithm;
use meshreduce_arguments::Plan;
use meshreduce_emulator_node::node::{Gpu, Node};

use super::left_out::LeftOut;
use super::{Line, Place, Results, job, placement_name, progress_of, wrong};
use crate::cluster::{Cluster, this_program};
use crate::emulated_node::EmulatedNode;
use crate::job::{ForcedTopology, Job};
use crate::plan::{cases, placement};
use crate::tables;
use crate::tally::Tally;

/// Numbers of ranks that are run where the node has as many devices.
const RANKS: [usize; 4] = [2, 4, 6, 8];

/// Runs the plan on every shipped node; `false` if anything was not as it should be, or nothing was run.
pub(super) fn run(plan: &Plan) -> Result<bool> {
    let stages = Stage::all(plan)?;
    let cases = cases(plan)?.len();
    let total: usize = stages.iter().map(|stage| stage.ranks * cases).sum();
    let bar = progress_of(total as u64, plan.json);
    let mut summary = Summary::new();
    let mut ran: Vec<Algorithm> = Vec::new();
    let mut done = 0;
    for stage in &stages {
        bar.set_message(stage.title());
        stage.run(plan, &bar, &mut summary, &mut ran)?;
        // What was not applicable is done too.
        done += stage.ranks * cases;
        bar.set_position(done as u64);
    }
    bar.finish_and_clear();
    if !plan.json {
        println!("{}", heading(plan));
        let width = tables::width();
        println!("{}", summary.table(plan, width));
        summary.left_out.table(width).into_iter().for_each(|table| println!("{table}"));
    }
    let Summary { mut tally, left_out, .. } = summary;
    for algorithm in plan.algorithms().iter().filter(|algorithm| !ran.contains(algorithm)) {
        tally.problem(format!("{algorithm} ran nowhere"));
    }
    tally.show(plan.json, &left_out.reasons())
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
        summary: &mut Summary,
        ran: &mut Vec<Algorithm>,
    ) -> Result<()> {
        let directory = tempfile::tempdir().context("making a directory for the store")?;
        let job = Job { force_topology: self.forced, ..job(plan, self.ranks, directory.path())? };
        let place = Place {
            name: self.node.name.clone(),
            devices: self.node.gpus.len(),
            environment: EmulatedNode::new(&self.node.name)?.environment(),
        };
        let cluster = Cluster::start(&this_program()?, &job, placement(plan), &place.environment)?;
        let results = Results::gather(&cluster, &job, bar);
        let exits = cluster.wait()?;
        let lines: Vec<Line> =
            (0..job.cases.len()).map(|case| results.line(case, &job, &place, plan)).collect();
        for (line, case) in lines.iter().zip(&job.cases).filter(|(line, _)| line.ran) {
            if !ran.contains(&case.algorithm) {
                ran.push(case.algorithm);
            }
            if line.ok == Some(false) {
                bar.suspend(|| eprintln!("{}: {}", self.title(), wrong(line)));
            }
        }
        if plan.json {
            for line in &lines {
                println!("{}", serde_json::to_string(line)?);
            }
        }
        summary.add(self, plan, &lines);
        let before = summary.tally.problems.len();
        // What the description links completely must have run, whatever the library made of it.
        let skipped = results.not_applicable.values().next().filter(|_| self.linked() && self.access());
        let mut problem = |what: String| summary.tally.problem(format!("{}: {what}", self.title()));
        if let Some(reason) = skipped {
            problem(format!("every pair is linked, and yet not applicable: {reason}"));
        }
        results.end(&exits).into_iter().for_each(&mut problem);
        if !results.failures.is_empty() {
            problem("ranks failed".to_owned());
        }
        if lines.iter().any(|line| line.ok == Some(false)) || summary.tally.problems.len() > before {
            bar.suspend(|| results.complain(&job, &exits));
        }
        Ok(())
    }
}

/// The table: a row for node and ranks, a column for each algorithm.
struct Summary {
    rows: Vec<String>,
    /// Of the longest name of a node, which is never broken.
    widest: u16,
    /// By row: what came of each algorithm's cases.
    cells: Vec<Vec<String>>,
    left_out: LeftOut,
    tally: Tally,
}

impl Summary {
    fn new() -> Self {
        Self {
            rows: Vec::new(),
            widest: 0,
            cells: Vec::new(),
            left_out: LeftOut::default(),
            tally: Tally::default(),
        }
    }

    fn add(&mut self, stage: &Stage, plan: &Plan, lines: &[Line]) {
        let mut node = stage.node.name.clone();
        if let Some(forced) = stage.forced {
            node += match forced {
                ForcedTopology::FullyConnected => " (forced fully connected)",
                ForcedTopology::HybridCubeMesh => " (forced hybrid cube mesh)",
            };
        }
        lines.iter().for_each(|line| self.tally.count(line.ok));
        self.left_out.add(&node, stage.ranks, lines);
        self.rows.push(format!("{} of {node}", stage.ranks));
        self.widest = self.widest.max(stage.node.name.len() as u16);
        self.cells.push(plan.algorithms().iter().map(|algorithm| cell(*algorithm, lines)).collect());
    }

    fn table(&self, plan: &Plan, width: u16) -> Table {
        // In words, between which a title may be broken.
        let titles = plan.algorithms().into_iter().map(|algorithm| algorithm.to_string().replace('-', " "));
        let header = iter::once("ranks of node".to_owned()).chain(titles);
        let mut table = tables::table(width, header, &[]);
        if let Some(nodes) = table.column_mut(0) {
            let padding = nodes.padding_width();
            nodes.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(self.widest + padding)));
        }
        for (row, cells) in self.rows.iter().zip(&self.cells) {
            table.add_row(iter::once(row).chain(cells));
        }
        table
    }
}

/// All cases of an algorithm.
fn cell(algorithm: Algorithm, lines: &[Line]) -> String {
    let name = algorithm.to_string();
    let ran: Vec<bool> =
        lines.iter().filter(|line| line.algorithm == name).filter_map(|line| line.ok).collect();
    match (ran.len(), ran.iter().filter(|ok| !**ok).count()) {
        (0, _) => "-".to_owned(),
        (ran, 0) => format!("ok {ran}"),
        (ran, wrong) => format!("WRONG {wrong} of {ran}"),
    }
}

/// What the numbers in the table count.
fn heading(plan: &Plan) -> String {
    fn list<T: ToString>(items: &[T]) -> String {
        items.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
    }
    format!(
        "every shipped node, ranks as {}; the cases of an algorithm are\n{} x {} x {} bytes, launches: {}",
        placement_name(placement(plan)),
        list(&plan.dtypes()),
        list(&plan.ops()),
        list(&plan.sizes()),
        plan.launches()
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;

    #[test]
    fn the_table_fits_the_screen() {
        let plan = crate::plan::tests::of_all_nodes();
        let mut summary = Summary::new();
        let node = Node::load("dgx-1v-p2p").unwrap();
        let stage = Stage { node, ranks: 8, forced: Some(ForcedTopology::HybridCubeMesh) };
        let lines: Vec<Line> = Algorithm::ALL
            .iter()
            .flat_map(|algorithm| {
                (0..36).map(move |case| line(&algorithm.to_string(), Some(case > 20), "ranks differ"))
            })
            .collect();
        summary.add(&stage, &plan, &lines);
        for width in [80, 120] {
            let table = summary.table(&plan, width);
            tables::assert_fits(&table, width.into());
            assert!(table.to_string().contains("dgx-1v-p2p"), "{table}");
        }
        let algorithms = Algorithm::ALL.len();
        assert_eq!((summary.tally.run, summary.tally.failed), (36 * algorithms, 21 * algorithms));
    }

    #[test]
    fn a_cell_says_how_many_cases_ran_and_how_many_were_wrong() {
        let of = |oks: &[Option<bool>]| {
            let lines: Vec<Line> = oks.iter().map(|ok| line("one-shot", *ok, "")).collect();
            cell(Algorithm::OneShot, &lines)
        };
        assert_eq!(of(&[Some(true), Some(true), None]), "ok 2");
        assert_eq!(of(&[Some(true), Some(false), None]), "WRONG 1 of 2");
        assert_eq!(of(&[None, None]), "-");
    }
}
