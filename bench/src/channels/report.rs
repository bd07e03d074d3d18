//! What a person, a spreadsheet or a program is shown.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use comfy_table::Table;
use meshreduce_bench::plot::{Series, draw_lines};
use meshreduce_checks::tables::{table, width};
use serde::Serialize;

use super::measure::CHAINED;
use super::row::{Absent, Extra, Row};

/// Everything of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Where it was measured.
    pub(crate) machine: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) extras: Vec<Extra>,
    pub(crate) absent: Vec<Absent>,
}

/// What stands above all that was measured on a stand-in.
const WARNING: &str =
    "EMULATED: rows with an E are of the emulated node's driver and libibverbs, not of hardware";

impl Report {
    fn is_emulated(&self) -> bool {
        self.rows.iter().any(|row| row.emulated) || self.extras.iter().any(|extra| extra.emulated)
    }

    /// Tables.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n", self.machine);
        if self.is_emulated() {
            text += WARNING;
            text += "\n";
        }
        text += "Latencies are half round trips, in us; GB/s of messages that follow each other.\n\n";
        let _ = writeln!(text, "{}\n", self.messages());
        if !self.extras.is_empty() {
            let _ = writeln!(text, "{}\n", self.others());
        }
        for Absent { way, why } in &self.absent {
            let _ = writeln!(text, "not measured: {way}: {why}");
        }
        for line in self.ratios() {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn messages(&self) -> Table {
        let mut table = table(width(), ["bytes", "way", "", "least", "p50", "p99", "GB/s"], &[0, 3, 4, 5, 6]);
        for row in &self.rows {
            table.add_row([
                size(row.bytes),
                row.way.clone(),
                mark(row.emulated),
                micros(row.least_us),
                micros(row.p50_us),
                micros(row.p99_us),
                format!("{:.2}", row.gbps),
            ]);
        }
        table
    }

    fn others(&self) -> Table {
        let mut table = table(width(), ["way", "", "what", "value", ""], &[3]);
        for Extra { way, what, value, unit, emulated } in &self.extras {
            table.add_row([way.clone(), mark(*emulated), what.clone(), micros(*value), unit.clone()]);
        }
        table
    }

    /// How near `basic` on host memory comes to copies through its slots, at the largest size.
    fn ratios(&self) -> Vec<String> {
        let Some(bytes) = self.rows.iter().map(|row| row.bytes).max() else { return Vec::new() };
        let largest = || self.rows.iter().filter(|row| row.bytes == bytes);
        let Some(floor) = largest().find(|row| row.way == CHAINED) else { return Vec::new() };
        let basic = largest().filter(|row| row.way.starts_with("basic cpu") && !row.way.contains("TCP"));
        let line = |row: &Row| {
            let (least, median) = (row.least_us / floor.least_us, row.p50_us / floor.p50_us);
            let rate = row.gbps / floor.gbps;
            format!(
                "{}, {}: {median:.2} times {CHAINED} (of the least: {least:.2}); one behind the other at {rate:.2} of their rate",
                row.way,
                size(bytes)
            )
        };
        basic.map(line).collect()
    }

    /// Comma-separated, with a header.
    pub(crate) fn csv(&self) -> String {
        let mut text = "way,bytes,messages,least_us,p50_us,p99_us,gbps,emulated\n".to_owned();
        for row in &self.rows {
            let Row { way, bytes, messages, least_us, p50_us, p99_us, gbps, emulated } = row;
            let _ = writeln!(
                text,
                "\"{way}\",{bytes},{messages},{least_us:.3},{p50_us:.3},{p99_us:.3},{gbps:.4},{emulated}"
            );
        }
        text
    }

    /// Medians over sizes. `None`: there is nothing to draw.
    pub(crate) fn svg(&self) -> Option<String> {
        let mut series = Series::new();
        for row in self.rows.iter().filter(|row| row.p50_us > 0.0) {
            let name = if row.emulated { format!("{} (E)", row.way) } else { row.way.clone() };
            series.entry(name).or_default().push((row.bytes as f64, row.p50_us));
        }
        series.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
        draw_lines(&series, "Channels: half round trip, median", self.is_emulated().then_some(WARNING))
    }
}

fn mark(emulated: bool) -> String {
    if emulated { "E".to_owned() } else { String::new() }
}

fn micros(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(way: &str, bytes: usize, p50_us: f64, emulated: bool) -> Row {
        Row {
            way: way.to_owned(),
            bytes,
            messages: 3,
            least_us: p50_us / 2.0,
            p50_us,
            p99_us: 2.0 * p50_us,
            gbps: 1.5,
            emulated,
        }
    }

    fn report() -> Report {
        let rows = vec![
            row(CHAINED, 1 << 20, 100.0, false),
            row("basic cpu, two processes", 1 << 20, 130.0, false),
            row("basic cpu, two processes, TCP", 1 << 20, 900.0, false),
            row("ipc cuda, two processes", 1 << 20, 50.0, true),
            row("basic cpu, two processes", 8, 3.0, false),
        ];
        let absent = vec![Absent { way: "gdr cuda".to_owned(), why: "there is no NIC".to_owned() }];
        Report { machine: "a machine".to_owned(), rows, extras: Vec::new(), absent }
    }

    #[test]
    fn emulated_rows_say_so_everywhere() {
        let text = report().text();
        assert!(text.contains("EMULATED"), "{text}");
        let line = text.lines().find(|line| line.contains("ipc cuda")).unwrap();
        assert!(line.contains("┆ E ┆"), "{line}");
        assert!(
            report()
                .csv()
                .contains("\"ipc cuda, two processes\",1048576,3,25.000,50.000,100.000,1.5000,true\n")
        );
        let svg = report().svg().unwrap();
        assert!(svg.contains("EMULATED") && svg.contains("ipc cuda, two processes (E)"), "{svg}");
        let mut real = report();
        real.rows.retain(|row| !row.emulated);
        assert!(!real.text().contains("EMULATED") && !real.svg().unwrap().contains("EMULATED"));
    }

    #[test]
    fn basic_is_compared_with_copies_at_the_largest_size() {
        let text = report().text();
        let said = "1.30 times two memcpys through slots (of the least: 1.30); one behind the other at 1.00 of their rate";
        assert!(text.contains(&format!("basic cpu, two processes, 1 MiB: {said}")), "{text}");
        assert_eq!(text.matches(" times two memcpys").count(), 1, "{text}");
        assert!(text.contains("not measured: gdr cuda: there is no NIC"), "{text}");
    }

    #[test]
    fn tables_fit_the_screen() {
        for table in [report().messages()] {
            for line in table.lines() {
                assert!(line.chars().count() <= usize::from(width()), "{line}");
            }
        }
        assert!(Report::default().svg().is_none());
    }
}
