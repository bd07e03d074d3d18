//! Tables, verdicts and drawings.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use meshreduce_arguments::bench::Operation;
use meshreduce_bench::plot::{Series, draw_lines};
use serde::Serialize;

use crate::contestant::{Name, processors};
use crate::measure::{Measured, Point};
use crate::peers::SET_UP;

/// What is said of one operation among so many processes.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    processes: usize,
    processors: usize,
    operation: Operation,
    /// Threads of other programs that wanted a processor, on average, just after the measurement.
    others_running: f64,
    contestants: Vec<Measured>,
    goals: Vec<Goal>,
}

/// A goal and what came of it.
#[derive(Debug, PartialEq, Serialize)]
struct Goal {
    peer: Name,
    verdict: GoalStatus,
    /// Sizes where it was missed, and how many times ours the peer took.
    missed: Vec<(usize, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum GoalStatus {
    Met,
    Missed,
    /// Ours, or the peer, was not measured.
    Absent,
    /// More processes than processors: what is measured is the scheduler.
    NotJudged,
}

/// How many times ours a peer must take. Not slower is up to a twentieth, which runs differ by.
fn goal(peer: Name, bytes: usize) -> Option<f64> {
    match peer {
        Name::Gloo if bytes <= 64 << 10 => Some(2.0),
        Name::Gloo => Some(1.5),
        Name::OpenmpiShared => Some(0.95),
        _ => None,
    }
}

fn goal_text(peer: Name) -> &'static str {
    match peer {
        Name::Gloo => "gloo takes at least 2x as long up to 64 KiB, 1.5x beyond",
        _ => "not slower than OpenMPI through shared memory",
    }
}

impl Report {
    /// Of what was measured.
    pub(crate) fn new(processes: usize, operation: Operation, contestants: Vec<Measured>) -> Result<Self> {
        let processors = processors();
        let goals = match operation {
            Operation::AllReduce => goals(&contestants, processes <= processors),
            Operation::PingPong => Vec::new(),
        };
        Ok(Self { processes, processors, operation, others_running: others_running()?, contestants, goals })
    }

    /// Whether no goal was missed, and none could not be judged for want of a contestant.
    pub(crate) fn goals_are_met(&self) -> bool {
        self.goals.iter().all(|goal| matches!(goal.verdict, GoalStatus::Met | GoalStatus::NotJudged))
    }

    fn title(&self) -> String {
        let Self { operation, processes, processors, .. } = self;
        let what = match operation {
            Operation::AllReduce => "all_reduce, f32, sum, in place",
            Operation::PingPong => "send and recv, one way",
        };
        format!("{what}: {processes} processes on {processors} processors")
    }

    fn warning(&self) -> Option<String> {
        (self.others_running > 0.3).then(|| {
            let others = self.others_running;
            format!("LOUD: {others:.1} threads of other programs ran meanwhile; trust no time, and ratios with care")
        })
    }

    /// For a terminal of 80 columns.
    pub(crate) fn text(&self) -> String {
        let mut text =
            format!("{}\nmicroseconds: median, minimum; x is the peer's median over ours\n", self.title());
        let measured: Vec<&Measured> = self.contestants.iter().filter(|one| !one.points.is_empty()).collect();
        if !measured.is_empty() {
            let _ = writeln!(text, "{}", table(&measured));
        }
        for one in &self.contestants {
            if let Some(reason) = &one.absent {
                let _ = writeln!(text, "{}: {reason}", one.name.text());
            }
        }
        if self.contestants.iter().any(|one| one.absent.is_some() && !one.name.is_ours()) {
            let _ = writeln!(text, "to have all peers: {SET_UP}");
        }
        for goal in &self.goals {
            let _ = writeln!(text, "goal, {}: {}", goal_text(goal.peer), goal.result());
        }
        if let Some(warning) = self.warning() {
            let _ = writeln!(text, "{warning}");
        }
        text.push('\n');
        text
    }

    /// Draws the medians into `path`, whose name gets operation and processes.
    pub(crate) fn draw(&self, path: &Path) -> Result<()> {
        let lines: Series = self
            .contestants
            .iter()
            .map(|one| {
                let points = one.points.iter().map(|point| (point.bytes as f64, point.median_us));
                (one.name.text().to_owned(), points.collect())
            })
            .filter(|(_, points): &(String, Vec<_>)| !points.is_empty())
            .collect();
        let Some(drawing) = draw_lines(&lines, &self.title(), self.warning().as_deref()) else {
            return Ok(());
        };
        let path = self.drawing(path);
        std::fs::write(&path, drawing).with_context(|| format!("writing {}", path.display()))?;
        eprintln!("drawn: {}", path.display());
        Ok(())
    }

    fn drawing(&self, path: &Path) -> PathBuf {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!("{stem}-{}-{}.svg", self.operation, self.processes))
    }
}

impl Goal {
    fn result(&self) -> String {
        match self.verdict {
            GoalStatus::Met => "met".to_owned(),
            GoalStatus::NotJudged => "not judged, there are more processes than processors".to_owned(),
            GoalStatus::Absent => "not judged, not both were measured".to_owned(),
            GoalStatus::Missed => {
                let missed: Vec<String> = self
                    .missed
                    .iter()
                    .map(|(bytes, ratio)| format!("{} ({ratio:.2}x)", size(*bytes)))
                    .collect();
                format!("MISSED at {}", missed.join(", "))
            }
        }
    }
}

fn points(contestants: &[Measured], name: Name) -> &[Point] {
    contestants.iter().find(|one| one.name == name).map_or(&[], |one| &one.points)
}

fn goals(contestants: &[Measured], is_judged: bool) -> Vec<Goal> {
    let ours = points(contestants, Name::Host);
    [Name::Gloo, Name::OpenmpiShared]
        .map(|peer| {
            let ratios = ratios(ours, points(contestants, peer));
            let missed: Vec<(usize, f64)> = ratios
                .iter()
                .copied()
                .filter(|(bytes, ratio)| goal(peer, *bytes).is_some_and(|goal| *ratio < goal))
                .collect();
            let verdict = match (is_judged, ratios.is_empty(), missed.is_empty()) {
                (false, ..) => GoalStatus::NotJudged,
                (true, true, _) => GoalStatus::Absent,
                (true, false, true) => GoalStatus::Met,
                (true, false, false) => GoalStatus::Missed,
            };
            Goal { peer, verdict, missed }
        })
        .into()
}

/// By size: how many times ours the peer takes.
fn ratios(ours: &[Point], peers: &[Point]) -> Vec<(usize, f64)> {
    let peer = |bytes: usize| peers.iter().find(|point| point.bytes == bytes);
    ours.iter()
        .filter_map(|point| Some((point.bytes, peer(point.bytes)?.median_us / point.median_us)))
        .collect()
}

fn table(measured: &[&Measured]) -> Table {
    let ours = measured.iter().find(|one| one.name == Name::Host).map_or(&[][..], |one| &one.points);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header = vec!["size".to_owned()];
    for one in measured {
        header.push(one.name.text().replace(' ', "\n"));
        match one.name {
            Name::Host => header.push("min".to_owned()),
            // Its minimum is in the JSON: the line is full.
            Name::HostBf16 => {}
            _ => header.extend(["min".to_owned(), "x".to_owned()]),
        }
    }
    table.set_header(header);
    let longest = measured.iter().max_by_key(|one| one.points.len());
    for bytes in longest.into_iter().flat_map(|one| &one.points).map(|point| point.bytes) {
        let mut row = vec![size(bytes)];
        for one in measured {
            let point = one.points.iter().find(|point| point.bytes == bytes);
            let cell =
                |value: fn(&Point) -> f64| point.map_or_else(|| "-".to_owned(), |point| short(value(point)));
            row.push(cell(|point| point.median_us));
            if one.name != Name::HostBf16 {
                row.push(cell(|point| point.minimum_us));
            }
            if !one.name.is_ours() {
                let ratio = ratios(ours, &one.points).into_iter().find(|(of, _)| *of == bytes);
                row.push(ratio.map_or_else(|| "-".to_owned(), |(_, ratio)| format!("{}x", short(ratio))));
            }
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
        column.set_padding((0, 1));
    }
    table
}

/// Three digits, or all of a long number.
fn short(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

/// Threads that want a processor now, but for this one, on average over half a second. The ranks sleep or are gone.
fn others_running() -> Result<f64> {
    const LOOKS: u32 = 25;
    let mut sum = 0;
    for _ in 0..LOOKS {
        let text = std::fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
        let running = text.split_whitespace().nth(3).and_then(|word| word.split_once('/')?.0.parse().ok());
        let running: u32 = running.with_context(|| format!("no load in {text:?}"))?;
        sum += running.saturating_sub(1);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(f64::from(sum) / f64::from(LOOKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: Name, medians: &[(usize, f64)]) -> Measured {
        let point = |(bytes, median_us): &(usize, f64)| Point {
            bytes: *bytes,
            minimum_us: median_us / 2.0,
            median_us: *median_us,
            mean_us: *median_us,
            calls: 9,
        };
        Measured { name, points: medians.iter().map(point).collect(), absent: None }
    }

    fn report(gloo: f64, processes: usize) -> Report {
        let sizes = [4, 64 << 10, 64 << 20];
        let at = |median: f64| sizes.map(|size| (size, median * 1000.0));
        let contestants = vec![
            measured(Name::Host, &at(10.0)),
            measured(Name::HostBf16, &at(11.0)),
            measured(Name::Gloo, &at(10.0 * gloo)),
            measured(Name::OpenmpiShared, &at(9.8)),
            measured(Name::OpenmpiTcp, &at(99.9)),
        ];
        let goals = goals(&contestants, processes <= 2);
        let operation = Operation::AllReduce;
        Report { processes, processors: 2, operation, others_running: 0.0, contestants, goals }
    }

    #[test]
    fn goals_are_judged_by_size_and_only_where_processes_fit() {
        let verdicts = |report: Report| report.goals.iter().map(|goal| goal.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(report(2.1, 2)), [GoalStatus::Met, GoalStatus::Met]);
        let missed = report(1.8, 2);
        assert_eq!(missed.goals[0].missed.iter().map(|(bytes, _)| *bytes).collect::<Vec<_>>(), [4, 64 << 10]);
        assert!(!missed.goals_are_met());
        assert!(missed.text().contains("MISSED at 4 B (1.80x), 64 KiB (1.80x)\n"), "{}", missed.text());
        assert_eq!(verdicts(report(0.1, 4)), [GoalStatus::NotJudged, GoalStatus::NotJudged]);
        let absent = goals(&[measured(Name::Host, &[(4, 1.0)])], true);
        assert_eq!(absent[0].verdict, GoalStatus::Absent);
    }

    #[test]
    fn a_table_fits_a_terminal_of_80_columns() {
        let text = report(250.0, 2).text();
        let widest =
            text.lines().filter(|line| !line.starts_with("goal")).map(|line| line.chars().count()).max();
        assert!(widest.unwrap() <= 80, "{widest:?}\n{text}");
        assert!(text.contains("64 MiB") && text.contains("250x"), "{text}");
    }

    #[test]
    fn a_missing_peer_is_said_to_be_missing_and_how_to_have_it() {
        let mut report = report(3.0, 2);
        report.contestants[2].points.clear();
        report.contestants[2].absent = Some("there is no g++".to_owned());
        let text = report.text();
        assert!(text.contains("gloo: there is no g++\n") && text.contains(SET_UP), "{text}");
    }
}
