//! Starts worker processes, listens to them, and ends them.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::job::{Event, Job};

/// How ranks are spread over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// One process a rank.
    Processes,
    /// All ranks are threads of one process.
    Threads,
}

/// The running workers of one communicator.
pub struct Cluster {
    workers: Vec<Worker>,
    events: Receiver<Event>,
}

struct Worker {
    ranks: Vec<usize>,
    child: Child,
    readers: Vec<JoinHandle<String>>,
}

/// How a worker process ended.
#[derive(Debug)]
pub struct Exit {
    /// The ranks that it ran.
    pub ranks: Vec<usize>,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Cluster {
    /// Starts `program worker` for the ranks of `job`, with `environment` added to this process's.
    ///
    /// # Errors
    /// If a process cannot be started; those already started are ended.
    pub fn start(
        program: &Path,
        job: &Job,
        placement: Placement,
        environment: &[(&'static str, OsString)],
    ) -> Result<Self> {
        let groups: Vec<Vec<usize>> = match placement {
            Placement::Processes => job.ranks.iter().map(|&rank| vec![rank]).collect(),
            Placement::Threads => vec![job.ranks.clone()],
        };
        let (sender, events) = channel();
        let mut cluster = Self { workers: Vec::new(), events };
        for ranks in groups {
            let worker = Worker::start(program, Job { ranks, ..job.clone() }, environment, sender.clone())?;
            cluster.workers.push(worker);
        }
        Ok(cluster)
    }

    /// What the workers say, in the order in which it arrives; ends when all of them have ended.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.events.iter()
    }

    /// Process ids, by worker.
    pub fn pids(&self) -> Vec<u32> {
        self.workers.iter().map(|worker| worker.child.id()).collect()
    }

    /// Waits for the workers to end.
    ///
    /// # Errors
    /// If a process cannot be waited for.
    pub fn wait(mut self) -> Result<Vec<Exit>> {
        std::mem::take(&mut self.workers).into_iter().map(Worker::wait).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            // A worker that has already ended cannot be killed again; there is nothing to do about either.
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
    }
}

impl Worker {
    fn start(
        program: &Path,
        job: Job,
        environment: &[(&'static str, OsString)],
        events: Sender<Event>,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let text = serde_json::to_string(&job)?;
        child.stdin.take().context("worker's stdin")?.write_all(text.as_bytes())?;
        let stdout = child.stdout.take().context("worker's stdout")?;
        let mut stderr = child.stderr.take().context("worker's stderr")?;
        let stdout = std::thread::spawn(move || {
            let mut other = String::new();
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    // Nobody listens any more once the cluster is dropped.
                    Ok(event) => drop(events.send(event)),
                    Err(_) => other += &(line + "\n"),
                }
            }
            other
        });
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What came before the error is still worth showing.
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Ok(Self { ranks: job.ranks, child, readers: vec![stdout, stderr] })
    }

    fn wait(mut self) -> Result<Exit> {
        let status = self.child.wait()?;
        let stderr = self.readers.into_iter().filter_map(|reader| reader.join().ok()).collect();
        Ok(Exit { ranks: self.ranks, status, stderr })
    }
}

/// The program that runs as worker: this one.
///
/// # Errors
/// If the system does not say which it is.
pub fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("finding this program's own file")
}
