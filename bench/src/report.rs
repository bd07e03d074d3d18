//! What a person or a program reads.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use meshreduce::Collective;

use crate::measure::Measured;
use crate::place::Place as Machine;
use crate::plan::Work;
use crate::row::{Absent, Latency, Mode, OWN, Place, Row};

/// Everything that a run has to say.
pub struct Report<'a> {
    /// Where it ran.
    pub machine: &'a Machine,
    /// What was to be done.
    pub work: &'a Work,
    /// What was measured.
    pub measured: &'a Measured,
}

impl Report<'_> {
    /// What a reader must know before the first number; nothing where ranks have GPUs of their own.
    pub(crate) fn warning(&self) -> Option<String> {
        if self.machine.emulated {
            Some(
                "EMULATED: every time below is the emulator's, which runs PTX on this machine's CPU. It is no property \
                 of the kernels or of any GPU; only #wrong means something."
                    .into(),
            )
        } else if self.work.shared_device {
            Some(format!(
                "SHARED: all {} ranks run on one GPU. The times are those of protocol and kernels, which share its \
                 multiprocessors and memory; no NVLink is involved.",
                self.work.ranks
            ))
        } else {
            None
        }
    }

    /// What a drawing is called.
    pub fn title(&self) -> String {
        let mut names: Vec<_> = self.work.cases.iter().map(|case| case.collective.name()).collect();
        names.dedup();
        format!("{}, {} ranks on {}", names.join(", "), self.work.ranks, self.machine.device)
    }

    /// The warning in few words, for a drawing.
    pub fn short_warning(&self) -> Option<&'static str> {
        match (self.machine.emulated, self.work.shared_device) {
            (true, _) => Some("EMULATED: times of the emulator, no property of the kernels"),
            (false, true) => Some("All ranks on one GPU: protocol and kernels, no NVLink"),
            (false, false) => None,
        }
    }

    /// Whether every result of ours was right, and everything that was asked for by name was measured.
    pub fn is_well(&self) -> bool {
        let Measured { rows, absent, .. } = self.measured;
        !rows.is_empty()
            && rows.iter().all(|row| row.implementation != OWN || row.wrong.is_none_or(|wrong| wrong == 0))
            && !absent.iter().any(|absent| absent.asked)
    }

    /// Tables with what their columns mean.
    pub fn text(&self) -> String {
        let Machine { device, devices, cuda, driver, .. } = self.machine;
        let Work { ranks, iterations, warmup, isa, .. } = self.work;
        let mut text = format!(
            "# {ranks} ranks, threads of one process; {devices} x {device}; CUDA {cuda} ({driver})\n\
             # kernels in PTX ISA {isa}, where there are some and all ranks take it, else in an earlier one\n\
             # {iterations} measured calls (or replays) after {warmup} that are not\n"
        );
        if let Some(warning) = self.warning() {
            let _ = writeln!(text, "#\n# {warning}\n#");
        }
        if !self.measured.floor.is_empty() {
            let _ = writeln!(text, "# The floor: what no call can be faster than.\n{}\n", self.floor_table());
        }
        if !self.measured.latencies.is_empty() {
            let _ = writeln!(
                text,
                "# Single steps on one device, each behind the one before, within a kernel.\n{}\n",
                self.latency_table()
            );
        }
        if !self.measured.rows.is_empty() {
            let _ = write!(
                text,
                "# time: mean of back-to-back calls between two CUDA events, on the slowest rank. algbw: bytes / time.\n\
                 # busbw: algbw x 2(n-1)/n of an all-reduce. Of other collectives the size is that of a slice; algbw counts all\n\
                 # slices that a rank sends or receives, and busbw is algbw x (n-1)/n; of broadcast and reduce both are of the\n\
                 # message. #wrong: elements that differ from the reference, bit by bit, on all ranks.\n\
                 # graph xN: replays of a graph of N calls, divided by N.\n{}\n\n\
                 # Single calls, of each the slowest rank, in us. device: from the event behind the call before to the\n\
                 # event behind it (CUDA events; plain launches wait for the host where it is slower than the device).\n\
                 # host: launch and synchronisation, by the host's clock. For a graph: a replay, divided by its calls.\n{}\n",
                self.bandwidth_table(),
                self.percentile_table()
            );
        }
        if self.measured.rows.iter().any(|row| row.implementation != OWN) {
            text += "# Others: their ranks are processes. On a GPU that they share, processes take turns (unless MPS runs), and\n\
                     # what is measured is mostly that. Their #wrong counts wrong small integers, not bits.\n";
        }
        if !self.measured.absent.is_empty() {
            let _ = writeln!(text, "\n# Not measured:");
        }
        for Absent { what, reason, .. } in &self.measured.absent {
            let _ = writeln!(text, "#   {what}: {reason}");
        }
        text
    }

    /// Rows that differ in place alone, together.
    fn pairs(&self) -> Vec<[Option<&Row>; 2]> {
        let mut pairs: Vec<[Option<&Row>; 2]> = Vec::new();
        for row in &self.measured.rows {
            let slot = usize::from(row.place == Place::In);
            let alike = |pair: &[Option<&Row>; 2]| {
                pair[slot].is_none() && pair[1 - slot].is_some_and(|other| key(other) == key(row))
            };
            match pairs.iter_mut().rev().find(|pair| alike(pair)) {
                Some(pair) => pair[slot] = Some(row),
                None => {
                    let mut pair = [None, None];
                    pair[slot] = Some(row);
                    pairs.push(pair);
                }
            }
        }
        pairs
    }

    fn bandwidth_table(&self) -> Table {
        let places = ["time", "algbw", "busbw", "#wrong"];
        let units = ["(us)", "(GB/s)", "(GB/s)", ""];
        let cells = |row: Option<&Row>| match row {
            None => ["-", "-", "-", "-"].map(String::from),
            Some(row) => [
                micros(row.times.time_us),
                format!("{:.2}", row.algbw_gbps),
                format!("{:.2}", row.busbw_gbps),
                row.wrong.map_or("N/A".into(), |wrong| wrong.to_string()),
            ],
        };
        self.pair_table(&places, &units, cells)
    }

    fn percentile_table(&self) -> Table {
        let places = ["device p50", "device p99", "host p50", "host p99"];
        let cells = |row: Option<&Row>| match row {
            None => ["-", "-", "-", "-"].map(String::from),
            Some(Row { times, .. }) => {
                [times.device_p50_us, times.device_p99_us, times.host_p50_us, times.host_p99_us].map(micros)
            }
        };
        self.pair_table(&places, &["(us)"; 4], cells)
    }

    fn pair_table(
        &self,
        columns: &[&str; 4],
        units: &[&str; 4],
        cells: impl Fn(Option<&Row>) -> [String; 4],
    ) -> Table {
        let mut header: Vec<String> = ["size\n(B)", "count\n(elements)", "type\n", "redop\n", "by\n"]
            .into_iter()
            .map(|name| format!("\n{name}"))
            .collect();
        for place in ["out-of-place", "in-place"] {
            for (index, (column, unit)) in columns.iter().zip(units).enumerate() {
                let place = if index == 0 { place } else { "" };
                header.push(format!("{place}\n{column}\n{unit}"));
            }
        }
        let mut table = new_table(header);
        for pair in self.pairs() {
            let ([Some(row), _] | [_, Some(row)]) = pair else { continue };
            let mut line = vec![
                row.bytes.to_string(),
                row.count.to_string(),
                row.dtype.clone(),
                row.op.clone(),
                by(row),
            ];
            line.extend(pair.into_iter().flat_map(&cells));
            table.add_row(line);
        }
        align(&mut table, &[2, 3, 4]);
        table
    }

    fn floor_table(&self) -> Table {
        let header = ["floor", "mode", "mean us", "p50 us", "p99 us", "host p50 us", "host p99 us"];
        let mut table = new_table(header.map(String::from).to_vec());
        for floor in &self.measured.floor {
            let host = |value: Option<f64>| value.map_or("-".into(), micros);
            table.add_row([
                floor.what.clone(),
                floor.mode.map_or("within a kernel", Mode::name).into(),
                micros(floor.time_us),
                micros(floor.p50_us),
                micros(floor.p99_us),
                host(floor.host_p50_us),
                host(floor.host_p99_us),
            ]);
        }
        align(&mut table, &[0, 1]);
        table
    }

    fn latency_table(&self) -> Table {
        let mut table = new_table(["step", "PTX", "ns", "cycles"].map(String::from).to_vec());
        for Latency { what, ptx, nanoseconds, cycles, .. } in &self.measured.latencies {
            table.add_row([what.clone(), ptx.clone(), format!("{nanoseconds:.1}"), format!("{cycles:.1}")]);
        }
        align(&mut table, &[0, 1]);
        table
    }
}

/// What rows of one line share.
fn key(row: &Row) -> (Collective, &str, &str, Mode, usize, &str, &str, usize) {
    let Row { collective, implementation, algorithm, mode, graph_calls, dtype, op, bytes, .. } = row;
    (*collective, implementation, algorithm, *mode, *graph_calls, dtype, op, *bytes)
}

/// Who did it how, and what where it is no all-reduce.
fn by(row: &Row) -> String {
    let name = match (row.implementation.as_str(), row.collective) {
        (OWN, Collective::AllReduce) => row.algorithm.clone(),
        (OWN, other) => format!("{other} by {}", row.algorithm),
        (other, _) => format!("{other} {}", row.algorithm).trim_end().to_owned(),
    };
    match row.mode {
        Mode::Plain => name,
        Mode::Graph => format!("{name}, graph x{}", row.graph_calls),
    }
}

/// A row in a few words, for whoever watches.
pub fn watched(row: &Row) -> String {
    let place = if row.place == Place::Out { "out of place" } else { "in place" };
    let wrong =
        row.wrong.filter(|wrong| *wrong > 0).map_or(String::new(), |wrong| format!(", {wrong} WRONG"));
    let (time, p50, p99) =
        (micros(row.times.time_us), micros(row.times.device_p50_us), micros(row.times.device_p99_us));
    let Row { dtype, op, bytes, .. } = row;
    format!("{} {dtype} {op} {bytes} bytes {place}: {time} us (p50 {p50}, p99 {p99}){wrong}", by(row))
}

/// Four significant digits are more than a clock gives.
fn micros(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

fn new_table(header: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table
}

/// Aligns every column to the right but those.
fn align(table: &mut Table, left: &[usize]) {
    for index in 0..table.column_count() {
        if let Some(column) = table.column_mut(index).filter(|_| !left.contains(&index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::Way;
    use crate::row::{Floor, Times};
    use meshreduce::Algorithm;

    pub(crate) fn machine(emulated: bool) -> Machine {
        Machine { emulated, device: "H100".into(), devices: 8, cuda: "12.9".into(), driver: "libcuda".into() }
    }

    pub(crate) fn work(shared_device: bool) -> Work {
        Work {
            ranks: 4,
            shared_device,
            topology: None,
            isa: meshreduce::Isa::V84,
            ways: vec![Way::Forced(Algorithm::OneShot)],
            cases: Vec::new(),
            warmup: 1,
            iterations: 5,
            graph_calls: Some(20),
            floor: None,
            deadline: std::time::Duration::from_secs(1),
        }
    }

    fn row(place: Place, mode: Mode, time_us: f64) -> Row {
        Row {
            collective: Collective::AllReduce,
            implementation: "meshreduce".into(),
            algorithm: "one-shot".into(),
            mode,
            graph_calls: if mode == Mode::Graph { 20 } else { 1 },
            place,
            dtype: "bf16".into(),
            op: "sum".into(),
            ranks: 4,
            bytes: 8192,
            count: 4096,
            iterations: 5,
            times: Times {
                time_us,
                device_p50_us: 3.25,
                device_p99_us: 123.456,
                host_p50_us: 9.5,
                host_p99_us: 12.0,
            },
            algbw_gbps: 0.0,
            busbw_gbps: 0.0,
            wrong: Some(0),
        }
        .with_bandwidth()
    }

    pub(crate) fn measured() -> Measured {
        Measured {
            rows: vec![
                row(Place::Out, Mode::Plain, 4.0),
                row(Place::In, Mode::Plain, 8.0),
                row(Place::Out, Mode::Graph, 2.0),
            ],
            floor: vec![Floor {
                what: "empty kernel".into(),
                mode: Some(Mode::Plain),
                iterations: 5,
                time_us: 2.0,
                p50_us: 2.0,
                p99_us: 2.5,
                host_p50_us: Some(7.0),
                host_p99_us: None,
            }],
            latencies: vec![Latency {
                what: "fence".into(),
                ptx: "fence.acq_rel.gpu".into(),
                steps: 8,
                nanoseconds: 123.45,
                cycles: 210.04,
            }],
            absent: vec![Absent { what: "NCCL".into(), reason: "no python3".into(), asked: false }],
        }
    }

    #[test]
    fn the_table_has_the_columns_of_nccl_tests_and_both_places_in_a_line() {
        let text = Report { machine: &machine(false), work: &work(false), measured: &measured() }.text();
        let line = text.lines().find(|line| line.contains("one-shot ")).expect(&text);
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "8192", "4096", "bf16", "sum", "one-shot", "4.00", "2.05", "3.07", "0", "8.00", "1.02",
                "1.54", "0"
            ]
        );
        let graph = text.lines().find(|line| line.contains("graph x20")).expect(&text);
        assert!(graph.trim_end().ends_with('-'), "what was not measured in place: {graph}");
        assert!(text.contains("NCCL: no python3"), "{text}");
        assert!(text.contains("empty kernel"), "{text}");
    }

    #[test]
    fn where_times_are_not_what_they_seem_the_report_says_so() {
        let measured = measured();
        let text = |emulated, shared| {
            Report { machine: &machine(emulated), work: &work(shared), measured: &measured }.text()
        };
        assert!(text(true, false).contains("no property of the kernels"));
        assert!(text(true, true).contains("no property of the kernels"));
        assert!(text(false, true).contains("no NVLink is involved"));
        let real = text(false, false);
        assert!(!real.contains("EMULATED") && !real.contains("SHARED"));
    }

    #[test]
    fn whoever_watches_reads_who_did_what_how_fast_and_whether_it_was_wrong() {
        let mut row = row(Place::In, Mode::Graph, 4.0);
        assert_eq!(
            watched(&row),
            "one-shot, graph x20 bf16 sum 8192 bytes in place: 4.00 us (p50 3.25, p99 123.5)"
        );
        row.wrong = Some(3);
        assert!(watched(&row).ends_with(", 3 WRONG"));
    }

    #[test]
    fn a_run_is_well_if_nothing_is_wrong_and_nothing_that_was_asked_for_is_missing() {
        let (machine, work) = (machine(true), work(false));
        let well = |measured: &Measured| Report { machine: &machine, work: &work, measured }.is_well();
        let mut measured = measured();
        assert!(well(&measured));
        measured.absent[0].asked = true;
        assert!(!well(&measured));
        measured.absent.clear();
        measured.rows[1].wrong = Some(1);
        assert!(!well(&measured));
        assert!(!well(&Measured::default()), "nothing measured is not well");
    }
}
