//! What a person or a program reads in the end.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::measure::Measured;
use crate::place::Place as Machine;
use crate::plan::Work;
use crate::row::{Absent, Floor, Mode, OWN, Place, Row};

/// Everything that a run has to say.
pub struct Report<'a> {
    /// Where it ran.
    pub machine: &'a Machine,
    /// What was to be done.
    pub work: &'a Work,
    /// What was measured.
    pub measured: &'a Measured,
}

/// One line of JSON.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Machine {
        #[serde(flatten)]
        machine: &'a Machine,
        ranks: usize,
        shared_device: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        warning: Option<String>,
    },
    AllReduce {
        #[serde(flatten)]
        row: &'a Row,
        emulated: bool,
        shared_device: bool,
    },
    Floor {
        #[serde(flatten)]
        floor: &'a Floor,
        emulated: bool,
        shared_device: bool,
    },
    Absent {
        #[serde(flatten)]
        absent: &'a Absent,
    },
}

impl Report<'_> {
    /// What a reader must know before the first number; nothing where ranks have GPUs of their own.
    fn warning(&self) -> Option<String> {
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
        format!("All-reduce, {} ranks on {}", self.work.ranks, self.machine.device)
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

    /// One JSON object a line.
    ///
    /// # Errors
    /// If something cannot be written as JSON.
    pub fn json(&self) -> Result<String> {
        let (emulated, shared_device) = (self.machine.emulated, self.work.shared_device);
        let Measured { rows, floor, absent } = self.measured;
        let machine = Line::Machine {
            machine: self.machine,
            ranks: self.work.ranks,
            shared_device,
            warning: self.warning(),
        };
        let lines = std::iter::once(machine)
            .chain(floor.iter().map(|floor| Line::Floor { floor, emulated, shared_device }))
            .chain(rows.iter().map(|row| Line::AllReduce { row, emulated, shared_device }))
            .chain(absent.iter().map(|absent| Line::Absent { absent }));
        let mut text = String::new();
        for line in lines {
            text += &serde_json::to_string(&line)?;
            text.push('\n');
        }
        Ok(text)
    }

    /// The rows as comma-separated values, with a header.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "implementation,algorithm,mode,graph_calls,place,dtype,op,ranks,bytes,count,iterations,time_us,\
             device_p50_us,device_p99_us,host_p50_us,host_p99_us,algbw_gbps,busbw_gbps,wrong,emulated,shared_device\n",
        );
        for row in &self.measured.rows {
            let times = row.times;
            let place = if row.place == Place::Out { "out" } else { "in" };
            let fields = [
                quoted(&row.implementation),
                quoted(&row.algorithm),
                row.mode.name().into(),
                row.graph_calls.to_string(),
                place.into(),
                row.dtype.clone(),
                row.op.clone(),
                row.ranks.to_string(),
                row.bytes.to_string(),
                row.count.to_string(),
                row.iterations.to_string(),
                times.time_us.to_string(),
                times.device_p50_us.to_string(),
                times.device_p99_us.to_string(),
                times.host_p50_us.to_string(),
                times.host_p99_us.to_string(),
                row.algbw_gbps.to_string(),
                row.busbw_gbps.to_string(),
                row.wrong.map(|wrong| wrong.to_string()).unwrap_or_default(),
                self.machine.emulated.to_string(),
                self.work.shared_device.to_string(),
            ];
            text += &fields.join(",");
            text.push('\n');
        }
        text
    }

    /// Tables with what their columns mean.
    pub fn text(&self) -> String {
        let Machine { device, devices, cuda, driver, .. } = self.machine;
        let Work { ranks, iterations, warmup, .. } = self.work;
        let mut text = format!(
            "# {ranks} ranks, threads of one process; {devices} x {device}; CUDA {cuda} ({driver})\n\
             # {iterations} measured calls (or replays) after {warmup} that are not\n"
        );
        if let Some(warning) = self.warning() {
            let _ = writeln!(text, "#\n# {warning}\n#");
        }
        if !self.measured.floor.is_empty() {
            let _ = writeln!(
                text,
                "# The floor: what no all-reduce can be faster than.\n{}\n",
                self.floor_table()
            );
        }
        if !self.measured.rows.is_empty() {
            let _ = write!(
                text,
                "# time: mean of back-to-back calls between two CUDA events, on the slowest rank. algbw: bytes / time.\n\
                 # busbw: algbw x 2(n-1)/n. #wrong: elements that differ from the reference, bit by bit, on all ranks.\n\
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
}

/// What rows of one line share.
fn key(row: &Row) -> (&str, &str, Mode, usize, &str, &str, usize) {
    let Row { implementation, algorithm, mode, graph_calls, dtype, op, bytes, .. } = row;
    (implementation, algorithm, *mode, *graph_calls, dtype, op, *bytes)
}

/// Who did it how.
fn by(row: &Row) -> String {
    let name = match row.implementation.as_str() {
        OWN => row.algorithm.clone(),
        other => format!("{other} {}", row.algorithm).trim_end().to_owned(),
    };
    match row.mode {
        Mode::Plain => name,
        Mode::Graph => format!("{name}, graph x{}", row.graph_calls),
    }
}

/// Four significant digits are more than a clock gives.
fn micros(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
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
mod tests {
    use super::*;
    use crate::plan::Way;
    use crate::row::Times;
    use meshreduce::Algorithm;
    use serde_json::Value;

    fn machine(emulated: bool) -> Machine {
        Machine { emulated, device: "H100".into(), devices: 8, cuda: "12.9".into(), driver: "libcuda".into() }
    }

    fn work(shared_device: bool) -> Work {
        Work {
            ranks: 4,
            shared_device,
            topology: None,
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

    fn measured() -> Measured {
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
    fn json_is_an_object_a_line_that_says_whether_it_is_emulated() {
        let report = Report { machine: &machine(true), work: &work(false), measured: &measured() };
        let lines: Vec<Value> =
            report.json().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["machine", "floor", "all_reduce", "all_reduce", "all_reduce", "absent"]);
        assert!(lines[..5].iter().all(|line| line["emulated"] == true));
        assert!(lines[0]["warning"].as_str().unwrap().contains("EMULATED"));
        assert_eq!(
            (&lines[2]["time_us"], &lines[2]["place"], &lines[2]["mode"]),
            (&4.0.into(), &"out".into(), &"plain".into())
        );
    }

    #[test]
    fn csv_has_a_line_a_row_and_as_many_fields_as_its_header() {
        let measured = measured();
        let csv = Report { machine: &machine(true), work: &work(false), measured: &measured }.csv();
        let fields: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(fields, [21; 4]);
        assert_eq!(quoted("a,\"b"), "\"a,\"\"b\"");
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
