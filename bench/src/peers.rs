//! Whom the library is compared with, where they are on the machine: NCCL, and torch's symmetric memory.
//!
//! A Python script that this program carries runs them, each rank a process, and says what it measured and what it could
//! not measure. Nothing of theirs is linked.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use meshreduce::Collective;
use serde::{Deserialize, Serialize};

use crate::measure::{OnProgress, ProgressEvent};
use crate::plan::Work;
use crate::row::{Absent, Mode, Place, Row, Samples, Times};

const SCRIPT: &str = include_str!("peers.py");
/// What the script itself may take beside the two: to import torch, and to see what can be run.
const START: Duration = Duration::from_secs(20);
/// The environment variable that names another Python than `python3`.
pub const PYTHON: &str = "MESHREDUCE_PYTHON";
const PEERS: [&str; 2] = ["NCCL", "torch symmetric memory"];

/// What the script is given.
#[derive(Serialize)]
struct Job {
    ranks: usize,
    shared: bool,
    warmup: usize,
    iterations: usize,
    graph_calls: Option<usize>,
    seconds: f64,
    cases: Vec<Case>,
}

#[derive(Serialize)]
struct Case {
    dtype: &'static str,
    op: &'static str,
    bytes: usize,
    count: usize,
}

/// A line of the script's.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Samples(Measured),
    Absent { what: String, reason: String },
}

/// Times of the slowest rank, in microseconds of a call.
#[derive(Debug, Deserialize)]
struct Measured {
    implementation: String,
    algorithm: String,
    mode: Mode,
    graph_calls: usize,
    place: Place,
    dtype: String,
    op: String,
    bytes: usize,
    count: usize,
    batch_us: f64,
    device_us: Vec<f64>,
    host_us: Vec<f64>,
    wrong: Option<usize>,
}

/// Measures them on the machine's GPUs, each for at most `limit`; what cannot be measured says why. Each row is heard at once.
///
/// # Errors
/// If the script can neither be run nor be found absent: no temporary file, a pipe that breaks.
pub fn measure(work: &Work, emulated: bool, limit: Duration, hear: OnProgress<'_>) -> Result<()> {
    let absent =
        |reason: &str| nobody(reason).into_iter().for_each(|absent| hear(ProgressEvent::Absent(absent)));
    if !work.cases.iter().any(|case| case.collective == Collective::AllReduce) {
        absent("of other collectives than all-reduce nothing is compared");
        return Ok(());
    }
    if emulated {
        absent("not on an emulated node: they come with compiled GPU code and need a GPU");
        return Ok(());
    }
    let python = std::env::var_os(PYTHON).unwrap_or_else(|| "python3".into());
    let mut command = Command::new(&python);
    // What leads to an emulated node or to this program's own settings is not theirs.
    command.env_remove("MESHREDUCE_DRIVER");
    match run(&mut command, work, limit, hear) {
        Err(error)
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == ErrorKind::NotFound) =>
        {
            absent(&format!("there is no {}", python.to_string_lossy()));
        }
        Err(error) => absent(&format!("{error:#}")),
        Ok(()) => {}
    }
    Ok(())
}

fn nobody(reason: &str) -> Vec<Absent> {
    PEERS.map(|what| Absent { what: what.into(), reason: reason.into(), asked: false }).to_vec()
}

/// Runs the script under this interpreter, each peer for at most `limit`, and tells what it says as it says it.
fn run(python: &mut Command, work: &Work, limit: Duration, hear: OnProgress<'_>) -> Result<()> {
    let mut script = tempfile::Builder::new().suffix(".py").tempfile().context("writing the script")?;
    script.write_all(SCRIPT.as_bytes())?;
    let all_reduces = work.cases.iter().filter(|case| case.collective == Collective::AllReduce);
    let cases = all_reduces.map(|case| Case {
        dtype: case.dtype.name(),
        op: case.op.name(),
        bytes: case.bytes,
        count: case.count(),
    });
    let job = Job {
        ranks: work.ranks,
        shared: work.shared_device,
        warmup: work.warmup,
        iterations: work.iterations,
        graph_calls: work.graph_calls,
        seconds: limit.as_secs_f64(),
        cases: cases.collect(),
    };
    let mut child = python
        .arg(script.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // An interpreter that ends before it has read the job says so by saying nothing.
    let _ =
        child.stdin.take().context("the script's input")?.write_all(serde_json::to_string(&job)?.as_bytes());
    let output = child.stdout.take().context("the script's output")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            // What came before an error is still worth reading. Nobody listens any more if the limit has passed.
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let end = Instant::now() + limit * PEERS.len() as u32 + START;
    let mut heard = Heard::default();
    let ended = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => heard.line(&String::from_utf8_lossy(&line), work, hear),
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    // Its ranks end with it.
    let _ = child.kill();
    child.wait()?;
    heard.end(if ended { None } else { Some(limit) }, hear);
    Ok(())
}

/// Of which peers something was heard.
#[derive(Default)]
struct Heard {
    anything: bool,
}

impl Heard {
    /// A line of the script's. Those of others (NCCL greets on standard output) are left out.
    fn line(&mut self, line: &str, work: &Work, hear: OnProgress<'_>) {
        let news = match serde_json::from_str::<Line>(line) {
            Ok(Line::Absent { what, reason }) => {
                Some(ProgressEvent::Absent(Absent { what, reason, asked: false }))
            }
            Ok(Line::Samples(measured)) => row(measured, work).map(ProgressEvent::Row),
            Err(_) => None,
        };
        if let Some(news) = news {
            self.anything = true;
            hear(news);
        }
    }

    /// The script has ended, or was ended after each peer had this long.
    fn end(self, ended_after: Option<Duration>, hear: OnProgress<'_>) {
        let absent =
            |reason: &str| nobody(reason).into_iter().for_each(|absent| hear(ProgressEvent::Absent(absent)));
        match ended_after {
            Some(limit) => {
                absent(&format!("the script did not end, with {} s for each", limit.as_secs_f64()))
            }
            None if !self.anything => absent("the script said nothing"),
            None => {}
        }
    }
}

fn row(measured: Measured, work: &Work) -> Option<Row> {
    let Measured { implementation, algorithm, mode, graph_calls, place, dtype, op, bytes, count, .. } =
        measured;
    let iterations = measured.device_us.len();
    let samples = Samples {
        batches: vec![measured.batch_us],
        device: measured.device_us,
        host: measured.host_us,
        wrong: 0,
    };
    let row = Row {
        collective: Collective::AllReduce,
        implementation,
        algorithm,
        mode,
        graph_calls,
        place,
        dtype,
        op,
        ranks: work.ranks,
        bytes,
        count,
        iterations,
        times: Times::of_slowest(&[samples])?,
        algbw_gbps: 0.0,
        busbw_gbps: 0.0,
        wrong: measured.wrong,
    };
    Some(row.with_bandwidth())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::measure::Measured;
    use meshreduce::{DType, Op};

    fn work() -> Work {
        Work {
            ranks: 2,
            shared_device: true,
            topology: None,
            isa: meshreduce::Isa::V84,
            ways: Vec::new(),
            cases: vec![crate::plan::Case {
                collective: Collective::AllReduce,
                dtype: DType::Bf16,
                op: Op::Sum,
                bytes: 1024,
            }],
            warmup: 1,
            iterations: 3,
            graph_calls: None,
            floor: None,
            deadline: Duration::from_secs(1),
        }
    }

    /// What is heard of a script that says this.
    fn heard(said: &str) -> Measured {
        let measured = Mutex::new(Measured::default());
        let hear = |news| measured.lock().unwrap().hear(news);
        let mut heard = Heard::default();
        said.lines().for_each(|line| heard.line(line, &work(), &hear));
        heard.end(None, &hear);
        measured.into_inner().unwrap()
    }

    #[test]
    fn what_the_script_says_becomes_rows_and_reasons() {
        let said = r#"NCCL version 2.30.1+cuda12.9
{"kind":"samples","implementation":"NCCL","algorithm":"2.30.1","mode":"graph","graph_calls":20,"place":"in","dtype":"bf16","op":"sum","bytes":1024,"count":512,"batch_us":2.0,"device_us":[1.0,4.0,2.0],"host_us":[9.0,8.0,7.0],"wrong":0}
{"kind":"absent","what":"torch symmetric memory","reason":"rank 0 ended: no"}
{"kind":"samples","implementation":"cut off"#;
        let measured = heard(said);
        assert_eq!(measured.rows.len(), 1);
        let row = &measured.rows[0];
        assert_eq!((row.implementation.as_str(), row.mode, row.place), ("NCCL", Mode::Graph, Place::In));
        assert_eq!((row.times.time_us, row.times.device_p50_us, row.times.host_p99_us), (2.0, 2.0, 9.0));
        assert_eq!((row.iterations, row.ranks, row.wrong), (3, 2, Some(0)));
        assert_eq!(row.algbw_gbps, 0.512);
        assert_eq!(measured.absent.len(), 1);
        assert_eq!(measured.absent[0].reason, "rank 0 ended: no");
    }

    #[test]
    fn a_script_that_says_nothing_is_two_peers_that_are_absent() {
        let measured = heard("Killed\n");
        assert!(measured.rows.is_empty());
        assert_eq!(measured.absent.len(), 2);
    }

    #[test]
    fn on_an_emulated_node_there_are_none() {
        let measured = Mutex::new(Measured::default());
        measure(&work(), true, Duration::ZERO, &|news| measured.lock().unwrap().hear(news)).unwrap();
        let Measured { rows, absent, .. } = measured.into_inner().unwrap();
        assert!(rows.is_empty());
        assert!(absent.iter().all(|absent| absent.reason.contains("emulated node")));
        assert_eq!(absent.iter().map(|absent| absent.what.as_str()).collect::<Vec<_>>(), PEERS);
    }

    const FAR: Duration = Duration::from_secs(60);

    /// A module that stands in for torch.
    fn with_torch(module: &str, limit: Duration) -> Vec<Absent> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("torch.py"), module).unwrap();
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", folder.path());
        let measured = Mutex::new(Measured::default());
        let hear = |news| measured.lock().unwrap().hear(news);
        if let Err(error) = run(&mut python, &work(), limit, &hear) {
            eprintln!("skipping: there is no python3: {error:#}");
            return Vec::new();
        }
        let Measured { rows, absent, .. } = measured.into_inner().unwrap();
        assert!(rows.is_empty());
        assert_eq!(absent.iter().map(|absent| absent.what.as_str()).collect::<Vec<_>>(), PEERS);
        absent
    }

    #[test]
    fn a_machine_without_torch_or_without_a_gpu_says_which() {
        for absent in with_torch("raise ImportError('libcudart is not there')", FAR) {
            assert!(absent.reason.contains("cannot import torch: libcudart is not there"), "{absent:?}");
        }
        let blind = "__version__ = '2.9'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n";
        for absent in with_torch(blind, FAR) {
            assert_eq!(absent.reason, "torch 2.9 sees no GPU");
        }
    }
    /// The least that the script asks of torch before it starts ranks, which then import it and stay.
    const STAYS: &str = r#"
import sys, time, types
if sys.argv[1:2] == ["rank"]:
    time.sleep(600)
__version__ = "2.9"
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 8)
    nccl = types.SimpleNamespace(version=lambda: (2, 30, 1))
distributed = types.ModuleType("torch.distributed")
distributed.is_available = distributed.is_nccl_available = lambda: True
distributed._symmetric_memory = types.ModuleType("torch.distributed._symmetric_memory")
sys.modules["torch.distributed"] = distributed
sys.modules["torch.distributed._symmetric_memory"] = distributed._symmetric_memory
ops = types.SimpleNamespace(symm_mem=types.SimpleNamespace(one_shot_all_reduce_out=0, two_shot_all_reduce_=0))
__path__ = []
"#;

    #[test]
    fn a_peer_that_does_not_come_to_an_end_is_not_run_beyond_its_limit() {
        for absent in with_torch(STAYS, Duration::from_millis(300)) {
            assert!(
                absent.reason.starts_with("not run: ranks [0, 1] did not end within 0.3 s"),
                "{absent:?}"
            );
        }
    }
}
