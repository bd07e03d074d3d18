//! Whom the library is compared with, where they are on the machine: NCCL, and torch's symmetric memory.
//!
//! A Python script that this program carries runs them, each rank a process, and says what it measured and what it could
//! not measure. Nothing of theirs is linked.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plan::Work;
use crate::row::{Absent, Mode, Place, Row, Samples, Times};

const SCRIPT: &str = include_str!("peers.py");
/// How long each of the two has.
const LIMIT: Duration = Duration::from_secs(180);
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
    seconds: u64,
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

/// Measures them on the machine's GPUs; what cannot be measured says why.
///
/// # Errors
/// If the script can neither be run nor be found absent: no temporary file, a pipe that breaks.
pub fn measure(work: &Work, emulated: bool) -> Result<(Vec<Row>, Vec<Absent>)> {
    if emulated {
        return Ok((
            Vec::new(),
            nobody("not on an emulated node: they come with compiled GPU code and need a GPU"),
        ));
    }
    let python = std::env::var_os(PYTHON).unwrap_or_else(|| "python3".into());
    let mut command = Command::new(&python);
    // What leads to an emulated node or to this program's own settings is not theirs.
    command.env_remove("MESHREDUCE_DRIVER");
    match run(&mut command, work, LIMIT * 2 + Duration::from_secs(60)) {
        Ok(said) => Ok(parse(&said, work)),
        Err(error)
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == ErrorKind::NotFound) =>
        {
            Ok((Vec::new(), nobody(&format!("there is no {}", python.to_string_lossy()))))
        }
        Err(error) => Ok((Vec::new(), nobody(&format!("{error:#}")))),
    }
}

fn nobody(reason: &str) -> Vec<Absent> {
    PEERS.map(|what| Absent { what: what.into(), reason: reason.into(), asked: false }).to_vec()
}

/// Runs the script under this interpreter and returns what it says, cut off after `limit`.
fn run(python: &mut Command, work: &Work, limit: Duration) -> Result<String> {
    let mut script = tempfile::Builder::new().suffix(".py").tempfile().context("writing the script")?;
    script.write_all(SCRIPT.as_bytes())?;
    let cases = work.cases.iter().map(|case| Case {
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
        seconds: LIMIT.as_secs(),
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
    let mut output = child.stdout.take().context("the script's output")?;
    let (sender, ended) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth reading.
        let _ = output.read_to_end(&mut bytes);
        // Nobody listens any more if the limit has passed.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    let said = ended.recv_timeout(limit);
    // Its ranks end with it.
    let _ = child.kill();
    child.wait()?;
    said.with_context(|| format!("the script did not end within {} s", limit.as_secs()))
}

/// Rows and reasons in what the script says. Lines of others (NCCL greets on standard output) are left out; a peer of which
/// nothing was heard is absent.
fn parse(said: &str, work: &Work) -> (Vec<Row>, Vec<Absent>) {
    let (mut rows, mut absent) = (Vec::new(), Vec::new());
    for line in said.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        match line {
            Line::Absent { what, reason } => absent.push(Absent { what, reason, asked: false }),
            Line::Samples(measured) => rows.extend(row(measured, work)),
        }
    }
    if rows.is_empty() && absent.is_empty() {
        absent = nobody("the script said nothing");
    }
    (rows, absent)
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
    use super::*;
    use meshreduce::{DType, Op};

    fn work() -> Work {
        Work {
            ranks: 2,
            shared_device: true,
            topology: None,
            ways: Vec::new(),
            cases: vec![crate::plan::Case { dtype: DType::Bf16, op: Op::Sum, bytes: 1024 }],
            warmup: 1,
            iterations: 3,
            graph_calls: None,
            floor: None,
            deadline: Duration::from_secs(1),
        }
    }

    #[test]
    fn what_the_script_says_becomes_rows_and_reasons() {
        let said = r#"NCCL version 2.30.1+cuda12.9
{"kind":"samples","implementation":"NCCL","algorithm":"2.30.1","mode":"graph","graph_calls":20,"place":"in","dtype":"bf16","op":"sum","bytes":1024,"count":512,"batch_us":2.0,"device_us":[1.0,4.0,2.0],"host_us":[9.0,8.0,7.0],"wrong":0}
{"kind":"absent","what":"torch symmetric memory","reason":"rank 0 ended: no"}
{"kind":"samples","implementation":"cut off"#;
        let (rows, absent) = parse(said, &work());
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!((row.implementation.as_str(), row.mode, row.place), ("NCCL", Mode::Graph, Place::In));
        assert_eq!((row.times.time_us, row.times.device_p50_us, row.times.host_p99_us), (2.0, 2.0, 9.0));
        assert_eq!((row.iterations, row.ranks, row.wrong), (3, 2, Some(0)));
        assert_eq!(row.algbw_gbps, 0.512);
        assert_eq!(absent.len(), 1);
        assert_eq!(absent[0].reason, "rank 0 ended: no");
    }

    #[test]
    fn a_script_that_says_nothing_is_two_peers_that_are_absent() {
        let (rows, absent) = parse("Killed\n", &work());
        assert!(rows.is_empty());
        assert_eq!(absent.len(), 2);
    }

    #[test]
    fn on_an_emulated_node_there_are_none() {
        let (rows, absent) = measure(&work(), true).unwrap();
        assert!(rows.is_empty());
        assert!(absent.iter().all(|absent| absent.reason.contains("emulated node")));
        assert_eq!(absent.iter().map(|absent| absent.what.as_str()).collect::<Vec<_>>(), PEERS);
    }

    /// A module that stands in for torch.
    fn with_torch(module: &str) -> Vec<Absent> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("torch.py"), module).unwrap();
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", folder.path());
        let said = match run(&mut python, &work(), Duration::from_secs(60)) {
            Ok(said) => said,
            Err(error) => {
                eprintln!("skipping: there is no python3: {error:#}");
                return Vec::new();
            }
        };
        let (rows, absent) = parse(&said, &work());
        assert!(rows.is_empty());
        assert_eq!(absent.iter().map(|absent| absent.what.as_str()).collect::<Vec<_>>(), PEERS, "{said}");
        absent
    }

    #[test]
    fn a_machine_without_torch_or_without_a_gpu_says_which() {
        for absent in with_torch("raise ImportError('libcudart is not there')") {
            assert!(absent.reason.contains("cannot import torch: libcudart is not there"), "{absent:?}");
        }
        let blind = "__version__ = '2.9'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n";
        for absent in with_torch(blind) {
            assert_eq!(absent.reason, "torch 2.9 sees no GPU");
        }
    }
}
