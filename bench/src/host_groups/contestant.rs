//! Who is measured, and how they are started.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::job::Job;
use crate::peers;
use crate::protocol::Type;
use meshreduce_arguments::bench::Operation;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Name {
    /// The backend `host`, f32.
    Host,
    /// The same, bf16.
    HostBf16,
    /// gloo over TCP.
    Gloo,
    /// OpenMPI through shared memory.
    OpenmpiShared,
    /// OpenMPI over TCP.
    OpenmpiTcp,
}

impl Name {
    /// For tables and drawings.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Name::Host => "host",
            Name::HostBf16 => "host bf16",
            Name::Gloo => "gloo",
            Name::OpenmpiShared => "ompi shm",
            Name::OpenmpiTcp => "ompi tcp",
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Name::Host | Name::HostBf16)
    }

    pub(crate) fn dtype(self) -> Type {
        if self == Name::HostBf16 { Type::Bf16 } else { Type::F32 }
    }

    /// Whether it is measured: messages have no type to tell apart, and gloo is there for its collectives.
    pub(crate) fn takes(self, operation: Operation) -> bool {
        operation == Operation::AllReduce || !matches!(self, Name::HostBf16 | Name::Gloo)
    }
}

/// One of them, and its program.
pub(crate) struct Contestant {
    pub(crate) name: Name,
    /// Its program, or why there is none.
    pub(crate) program: Result<PathBuf, String>,
}

/// All of them; the peers' programs are built in `folder`.
pub(crate) fn all(folder: &Path) -> Vec<Contestant> {
    let own = || std::env::current_exe().map_err(|error| error.to_string());
    let openmpi = peers::openmpi(folder);
    let programs = [
        (Name::Host, own()),
        (Name::HostBf16, own()),
        (Name::Gloo, peers::gloo(folder)),
        (Name::OpenmpiShared, openmpi.clone()),
        (Name::OpenmpiTcp, openmpi),
    ];
    programs.map(|(name, program)| Contestant { name, program }).into()
}

impl Contestant {
    /// Starts its ranks.
    pub(crate) fn start(&self, program: &Path, processes: usize) -> Result<Job> {
        Job::start(processes, |folder| match self.name {
            Name::Host | Name::HostBf16 => each_bound(processes, |rank| {
                let mut command = Command::new(program);
                command.arg("rank").arg(folder).args([rank.to_string(), processes.to_string()]);
                command
            }),
            Name::Gloo => {
                std::fs::create_dir(folder.join("store")).context("making gloo's store")?;
                each_rank(processes, |rank| {
                    let mut command = Command::new(program);
                    command.arg(folder).args([rank.to_string(), processes.to_string()]);
                    command
                })
            }
            Name::OpenmpiShared => mpirun(program, folder, processes, &["--mca", "btl", "vader,self"]),
            Name::OpenmpiTcp => mpirun(
                program,
                folder,
                processes,
                &["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"],
            ),
        })
    }
}

/// Processors of this machine that the program may use.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn each_rank(processes: usize, command: impl Fn(usize) -> Command) -> Result<Vec<Child>> {
    (0..processes).map(|rank| spawn(command(rank))).collect()
}

/// Each on a processor of its own where there are enough, as mpirun has its ranks. (gloo's have threads that would suffer.)
fn each_bound(processes: usize, command: impl Fn(usize) -> Command) -> Result<Vec<Child>> {
    let own = sched_getaffinity(None).context("finding the processors that may be used")?;
    let places: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|place| own.is_set(*place)).collect();
    let start = |rank: usize| {
        if processes <= places.len() {
            let mut one = CpuSet::new();
            one.set(places[rank]);
            // What is started from here inherits it.
            sched_setaffinity(None, &one).context("choosing a processor")?;
        }
        spawn(command(rank))
    };
    let children = (0..processes).map(start).collect();
    sched_setaffinity(None, &own).context("using all processors again")?;
    children
}

fn mpirun(program: &Path, folder: &Path, processes: usize, transport: &[&str]) -> Result<Vec<Child>> {
    let mut command = Command::new("mpirun");
    // OpenMPI's own messages layer, so that what it goes through is what is named.
    command.args(["-n", &processes.to_string(), "--mca", "pml", "ob1"]).args(transport);
    if processes > processors() {
        command.arg("--oversubscribe");
    }
    if rustix::process::geteuid().is_root() {
        command.arg("--allow-run-as-root");
    }
    command.arg(program).arg(folder);
    Ok(vec![spawn(command)?])
}

fn spawn(mut command: Command) -> Result<Child> {
    let name = command.get_program().to_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", Path::new(&name).display()))
}
