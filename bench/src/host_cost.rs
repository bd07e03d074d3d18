//! What the library costs on the host: its calls against a driver that does nothing, and the rendezvous over each store.
//! No GPU is needed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use meshreduce::{
    Communicator, Config, FileStore, MemoryStore, Outcome, Store, TcpStore, Topology, rendezvous,
};
use serde::{Deserialize, Serialize};

use crate::bars;
use crate::calls::{OPERATIONS, Subject};
use crate::noop_driver::{self, calls_of};
use crate::place::Place;
use crate::statistics::percentile;

/// One measured line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// A call of the library on a driver that does nothing.
    HostCost {
        /// Which.
        operation: String,
        /// Nanoseconds of a call, median over batches.
        nanos_p50: f64,
        /// The same, 99th percentile over batches.
        nanos_p99: f64,
        /// The median over that of an empty launch through the same driver.
        empty_launches: f64,
        /// Driver calls, by name.
        driver_calls: BTreeMap<String, u64>,
    },
    /// A rendezvous of ranks that are threads, from the moment when all have started until the last is ready.
    Rendezvous {
        /// The driver below it.
        driver: String,
        /// Over which store.
        store: String,
        /// The number of ranks.
        ranks: usize,
        /// Milliseconds, median of the runs.
        millis_p50: f64,
        /// Milliseconds, fastest run.
        millis_min: f64,
        /// Milliseconds, slowest run.
        millis_max: f64,
        /// How often it was run.
        runs: usize,
    },
}

/// What one process measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The library's calls, on the no-op driver.
    Calls,
    /// Rendezvous on the no-op driver: the library and the store alone.
    RendezvousNoop,
    /// Rendezvous on the driver of the environment.
    RendezvousNode,
}

impl Part {
    const ALL: [Self; 3] = [Self::Calls, Self::RendezvousNoop, Self::RendezvousNode];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::RendezvousNoop => "rendezvous-noop",
            Self::RendezvousNode => "rendezvous-node",
        }
    }
}

impl std::str::FromStr for Part {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|part| part.name() == text);
        found.with_context(|| format!("'{text}' is no part of the host cost"))
    }
}

/// Measures a part in this process, which has no driver open yet.
///
/// # Errors
/// If the driver is not there, or a rank fails.
pub fn measure(part: Part) -> Result<Vec<Line>> {
    match part {
        Part::Calls => calls(),
        Part::RendezvousNoop => {
            noop_driver::open()?;
            let config = Config::default().force_topology(Some(Topology::FullyConnected));
            all_rendezvous("no-op", 21, 8, &config)
        }
        Part::RendezvousNode => {
            let machine = Place::look()?;
            let kind = if machine.emulated { "emulated node of" } else { "real" };
            let driver = format!("{kind} {} x {}", machine.devices, machine.device);
            all_rendezvous(&driver, 3, machine.devices, &Config::default())
        }
    }
}

/// Calls of a batch, and batches.
const BATCH: u32 = 1_000;
const BATCHES: usize = 301;

fn calls() -> Result<Vec<Line>> {
    let mut subject = Subject::new()?;
    let mut samples = vec![Vec::with_capacity(BATCHES); OPERATIONS.len()];
    // One batch of each in turn, so that what disturbs the machine for a while disturbs all alike. The first is not
    // kept.
    for round in 0..=BATCHES {
        for (operation, samples) in OPERATIONS.iter().zip(&mut samples) {
            let start = Instant::now();
            for _ in 0..BATCH {
                (operation.run)(&mut subject)?;
            }
            if round > 0 {
                samples.push(start.elapsed().as_nanos() as f64 / f64::from(BATCH));
            }
        }
    }
    let empty = percentile(&samples[0], 50.0).context("no samples")?;
    let mut lines = Vec::new();
    for (operation, samples) in OPERATIONS.iter().zip(&samples) {
        let median = percentile(samples, 50.0).context("no samples")?;
        lines.push(Line::HostCost {
            operation: operation.name.to_owned(),
            nanos_p50: median,
            nanos_p99: percentile(samples, 99.0).context("no samples")?,
            empty_launches: median / empty,
            driver_calls: calls_of(|| (operation.run)(&mut subject))?.into_iter().collect(),
        });
    }
    subject.close()?;
    Ok(lines)
}

/// Where ranks can meet.
#[derive(Clone, Copy)]
enum Meeting {
    Memory,
    File,
    Tcp,
}

fn all_rendezvous(driver: &str, runs: usize, devices: usize, config: &Config) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (name, meeting) in [("memory", Meeting::Memory), ("file", Meeting::File), ("TCP", Meeting::Tcp)] {
        for ranks in 2..=devices.min(8) {
            let mut millis = Vec::new();
            for _ in 0..runs {
                millis.push(one_rendezvous(ranks, meeting, config)?.as_secs_f64() * 1e3);
            }
            let sample = |percent| percentile(&millis, percent).context("no samples");
            lines.push(Line::Rendezvous {
                driver: driver.to_owned(),
                store: name.to_owned(),
                ranks,
                millis_p50: sample(50.0)?,
                millis_min: sample(0.0)?,
                millis_max: sample(100.0)?,
                runs,
            });
        }
    }
    Ok(lines)
}

/// A store for every rank, open and connected.
struct Stores {
    by_rank: Vec<Arc<dyn Store>>,
    /// Where the files of a file store are.
    _folder: Option<tempfile::TempDir>,
}

fn stores(ranks: usize, meeting: Meeting) -> Result<Stores> {
    let timeout = Duration::from_secs(30);
    let mut stores: Vec<Arc<dyn Store>> = Vec::new();
    let mut folder = None;
    match meeting {
        Meeting::Memory => {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            stores.extend((0..ranks).map(|_| Arc::clone(&store)));
        }
        Meeting::File => {
            let directory = tempfile::tempdir()?;
            for _ in 0..ranks {
                stores.push(Arc::new(FileStore::open(directory.path())?));
            }
            folder = Some(directory);
        }
        Meeting::Tcp => {
            let host = TcpStore::host("127.0.0.1:0")?;
            let address = host.local_addr();
            stores.push(Arc::new(host));
            for _ in 1..ranks {
                stores.push(Arc::new(TcpStore::connect(address, timeout)?));
            }
        }
    }
    Ok(Stores { by_rank: stores, _folder: folder })
}

fn one_rendezvous(ranks: usize, meeting: Meeting, config: &Config) -> Result<Duration> {
    let stores = stores(ranks, meeting)?;
    let start = Barrier::new(ranks);
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = stores
            .by_rank
            .iter()
            .enumerate()
            .map(|(rank, store)| {
                let start = &start;
                scope.spawn(move || -> Result<(Instant, Instant)> {
                    start.wait();
                    let began = Instant::now();
                    let outcome = rendezvous(store.as_ref(), rank, ranks, rank as u32, config);
                    let ended = Instant::now();
                    match outcome? {
                        Outcome::Ready(communicator) => Communicator::close(communicator)?,
                        Outcome::NotApplicable(reason) => bail!("not applicable: {reason}"),
                    }
                    Ok((began, ended))
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(times) => times,
            Err(_) => bail!("a rank panicked"),
        });
        joined.collect::<Result<Vec<_>>>()
    })?;
    // Clients leave before their host does.
    stores.by_rank.into_iter().rev().for_each(drop);
    let began = times.iter().map(|(began, _)| *began).max().context("no ranks")?;
    let ended = times.iter().map(|(_, ended)| *ended).max().context("no ranks")?;
    Ok(ended.saturating_duration_since(began))
}

/// Measures every part in a process of its own, since a process has one driver, and shows the result.
///
/// # Errors
/// If a part fails; what it says is the error. If the drawing cannot be written.
pub fn run(json: bool, svg: Option<&Path>) -> Result<()> {
    let program = std::env::current_exe().context("finding this program's own file")?;
    let mut lines: Vec<Line> = Vec::new();
    for part in Part::ALL {
        if !json {
            eprintln!("measuring: {} ...", part.name());
        }
        let output = Command::new(&program)
            .args(["host-cost-part", part.name()])
            .output()
            .with_context(|| format!("starting {}", program.display()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", part.name(), complaint.trim());
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            lines.push(serde_json::from_str(line).with_context(|| format!("reading `{line}`"))?);
        }
    }
    if let Some(path) = svg {
        let drawn = bars::draw(&lines).context("there is nothing to draw")?;
        std::fs::write(path, drawn).with_context(|| format!("writing {}", path.display()))?;
    }
    if json {
        for line in &lines {
            println!("{}", serde_json::to_string(line)?);
        }
    } else {
        println!("{}", tables(&lines));
    }
    Ok(())
}

/// The lines as a person reads them.
pub fn tables(lines: &[Line]) -> String {
    format!(
        "# Host cost of a call, on a driver that does nothing. Nanoseconds depend on this machine and on what else it\n\
         # does (p50 and p99 are over {BATCHES} batches of {BATCH} calls); ratios and driver calls travel better.\n\
         {}\n\n\
         # Rendezvous of ranks that are threads of one process: median (fastest to slowest) in milliseconds, from the\n\
         # moment when all ranks have started until the last one is ready; stores are open and connected before.\n\
         # On the no-op driver it is the library and the store; on the emulated node the emulator's loading of the\n\
         # kernels is most of it. More ranks than this machine has cores ({}) wait for each other.\n\
         {}",
        calls_table(lines),
        std::thread::available_parallelism().map_or(0, usize::from),
        rendezvous_table(lines)
    )
}

fn new_table(header: &[&str], right: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(header.iter().copied());
    for column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn calls_table(lines: &[Line]) -> Table {
    let mut table = new_table(&["call", "ns p50", "ns p99", "empty launches", "driver calls", "which"], 1..5);
    for line in lines {
        let Line::HostCost { operation, nanos_p50, nanos_p99, empty_launches, driver_calls } = line else {
            continue;
        };
        let which: Vec<String> = driver_calls.iter().map(|(name, count)| format!("{count} {name}")).collect();
        table.add_row([
            operation.clone(),
            format!("{nanos_p50:.1}"),
            format!("{nanos_p99:.1}"),
            format!("{empty_launches:.1}"),
            driver_calls.values().sum::<u64>().to_string(),
            which.join(", "),
        ]);
    }
    table
}

fn rendezvous_table(lines: &[Line]) -> Table {
    let mut rows: Vec<(String, BTreeMap<usize, String>)> = Vec::new();
    for line in lines {
        let Line::Rendezvous { driver, store, ranks, millis_p50, millis_min, millis_max, runs } = line else {
            continue;
        };
        let name = format!("{driver}, {store} store, {runs} runs");
        if rows.last().is_none_or(|(last, _)| *last != name) {
            rows.push((name, BTreeMap::new()));
        }
        if let Some((_, row)) = rows.last_mut() {
            row.insert(*ranks, format!("{millis_p50:.1} ({millis_min:.1} to {millis_max:.1})"));
        }
    }
    let mut header = vec!["driver, store".to_owned()];
    header.extend((2..=8).map(|ranks| format!("{ranks} ranks")));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = new_table(&header, 1..8);
    for (name, row) in rows {
        let cells = (2..=8).map(|ranks| row.get(&ranks).cloned().unwrap_or_default());
        table.add_row(std::iter::once(name).chain(cells));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        vec![
            Line::HostCost {
                operation: "all_reduce_raw".into(),
                nanos_p50: 120.04,
                nanos_p99: 200.0,
                empty_launches: 12.0,
                driver_calls: [("cuEventRecord".to_owned(), 1), ("cuLaunchKernel".to_owned(), 1)].into(),
            },
            Line::Rendezvous {
                driver: "no-op".into(),
                store: "file".into(),
                ranks: 8,
                millis_p50: 30.0,
                millis_min: 20.0,
                millis_max: 40.0,
                runs: 3,
            },
        ]
    }

    #[test]
    fn the_tables_name_driver_calls_and_say_what_the_times_depend_on() {
        let text = tables(&lines());
        assert!(
            text.contains("| all_reduce_raw |  120.0 |  200.0 |           12.0 |            2 |"),
            "{text}"
        );
        assert!(text.contains("1 cuEventRecord, 1 cuLaunchKernel"), "{text}");
        assert!(text.contains("30.0 (20.0 to 40.0)"), "{text}");
        assert!(text.contains("depend on this machine"), "{text}");
    }

    #[test]
    fn lines_survive_the_way_from_process_to_process() {
        for line in lines() {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        }
    }

    #[test]
    fn parts_have_names() {
        for part in Part::ALL {
            assert_eq!(part.name().parse::<Part>().unwrap(), part);
        }
        assert!("else".parse::<Part>().is_err());
    }
}
