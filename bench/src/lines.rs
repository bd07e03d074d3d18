//! What a program reads: a line for everything that was measured, as JSON or as comma-separated values.
#![forbid(unsafe_code)]

use anyhow::Result;
use serde::Serialize;

use crate::measure::ProgressEvent;
use crate::place::Place as Machine;
use crate::report::Report;
use crate::row::{Absent, Floor, Latency, Place, Row};

/// The names of a CSV's columns.
pub(crate) const CSV_HEADER: &str = "collective,implementation,algorithm,mode,graph_calls,place,dtype,op,ranks,bytes,count,iterations,time_us,\
     device_p50_us,device_p99_us,host_p50_us,host_p99_us,algbw_gbps,busbw_gbps,wrong,emulated,shared_device";

/// One line of JSON.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Machine {
        #[serde(flatten)]
        machine: &'a Machine,
        ranks: usize,
        latest_isa: &'static str,
        shared_device: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        warning: Option<String>,
    },
    Row {
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
    Latency {
        #[serde(flatten)]
        latency: &'a Latency,
        emulated: bool,
    },
    Absent {
        #[serde(flatten)]
        absent: &'a Absent,
    },
}

impl Report<'_> {
    /// What a reader of JSON is told first.
    ///
    /// # Errors
    /// If something cannot be written as JSON.
    pub fn json_machine(&self) -> Result<String> {
        let (machine, ranks, warning) = (self.machine, self.work.ranks, self.warning());
        let (latest_isa, shared_device) = (self.work.isa.name(), self.work.shared_device);
        Ok(serde_json::to_string(&Line::Machine { machine, ranks, latest_isa, shared_device, warning })?)
    }

    /// What there is to tell, as one JSON object; nothing of what is measured only now.
    ///
    /// # Errors
    /// If something cannot be written as JSON.
    pub fn json(&self, news: &ProgressEvent) -> Result<Option<String>> {
        let (emulated, shared_device) = (self.machine.emulated, self.work.shared_device);
        let line = match news {
            ProgressEvent::Now(_) => return Ok(None),
            ProgressEvent::Floor(floor) => Line::Floor { floor, emulated, shared_device },
            ProgressEvent::Latency(latency) => Line::Latency { latency, emulated },
            ProgressEvent::Row(row) => Line::Row { row, emulated, shared_device },
            ProgressEvent::Absent(absent) => Line::Absent { absent },
        };
        Ok(Some(serde_json::to_string(&line)?))
    }

    /// A row as comma-separated values under [`CSV_HEADER`].
    pub fn csv(&self, row: &Row) -> String {
        let times = row.times;
        let place = if row.place == Place::Out { "out" } else { "in" };
        let fields = [
            row.collective.to_string(),
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
        fields.join(",")
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{machine, measured, work};
    use serde_json::Value;

    #[test]
    fn json_is_an_object_a_line_that_says_whether_it_is_emulated() {
        let (machine, work, measured) = (machine(true), work(false), measured());
        let report = Report { machine: &machine, work: &work, measured: &measured };
        let news = [
            ProgressEvent::Now("one-shot".into()),
            ProgressEvent::Floor(measured.floor[0].clone()),
            ProgressEvent::Row(measured.rows[0].clone()),
            ProgressEvent::Latency(measured.latencies[0].clone()),
            ProgressEvent::Absent(measured.absent[0].clone()),
        ];
        let mut lines = vec![report.json_machine().unwrap()];
        lines.extend(news.iter().filter_map(|news| report.json(news).unwrap()));
        let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["machine", "floor", "row", "latency", "absent"]);
        assert!(lines[..4].iter().all(|line| line["emulated"] == true));
        assert!(lines[0]["warning"].as_str().unwrap().contains("EMULATED"));
        assert_eq!(
            (&lines[2]["time_us"], &lines[2]["place"], &lines[2]["mode"]),
            (&4.0.into(), &"out".into(), &"plain".into())
        );
    }

    #[test]
    fn a_line_of_csv_has_as_many_fields_as_the_header() {
        let (machine, work, measured) = (machine(true), work(false), measured());
        let report = Report { machine: &machine, work: &work, measured: &measured };
        let fields = |line: &str| line.split(',').count();
        assert_eq!((fields(CSV_HEADER), fields(&report.csv(&measured.rows[0]))), (22, 22));
        assert!(!CSV_HEADER.contains(' '));
        assert_eq!(quoted("a,\"b"), "\"a,\"\"b\"");
    }
}
