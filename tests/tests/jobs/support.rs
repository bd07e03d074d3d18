//! What the integration tests have in common: run a job on an emulated node, and look at what the ranks said.
#![allow(dead_code)] // every test file uses a part of it

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use meshreduce::{Algorithm, Collective, DType, Op};
use meshreduce_checks::cluster::{Cluster, Exit, Placement};
use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_checks::job::{Case, Event, Fault, Job};
use meshreduce_checks::programs;
use tempfile::TempDir;

/// [`meshreduce_checks::in_process::BRIEF`] as jobs have it.
pub(crate) const BRIEF_MS: u64 = meshreduce_checks::in_process::BRIEF.as_millis() as u64;

/// A deadline that nothing but a defect lets pass, in a test that is to end long before.
pub(crate) const FAR_MS: u64 = 240_000;

/// When such a test ends at the latest.
pub(crate) const LONG_BEFORE: Duration = Duration::from_secs(120);

/// The rank program.
pub(crate) fn program() -> PathBuf {
    programs::program("multigpu")
}

/// A job on an emulated node, to be changed before it runs.
pub(crate) struct Scene {
    pub(crate) job: Job,
    pub(crate) placement: Placement,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    pub(crate) directory: TempDir,
}

/// What came of it.
pub(crate) struct Played {
    pub(crate) events: Vec<Event>,
    pub(crate) exits: Vec<Exit>,
    /// What is left in the store's directory.
    pub(crate) left_in_store: Vec<PathBuf>,
}

/// A case of one-shot bf16 sum, in place and aligned.
pub(crate) fn case(bytes: usize) -> Case {
    Case {
        collective: Collective::AllReduce,
        algorithm: Algorithm::OneShot,
        dtype: DType::Bf16,
        op: Op::Sum,
        bytes,
        offset: 0,
        in_place: true,
    }
}

impl Scene {
    /// `world_size` ranks as threads of one process on an emulated HGX H100, one launch of every case.
    pub(crate) fn new(world_size: usize, cases: Vec<Case>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let job = Job {
            ranks: (0..world_size).collect(),
            world_size,
            devices: (0..world_size as u32).collect(),
            store: directory.path().to_owned(),
            cases,
            launches: 1,
            seed: 1,
            ptx: None,
            isa: meshreduce::Isa::V84,
            deadline_ms: 60_000,
            rendezvous_ms: 60_000,
            lanes: 1,
            first_call_number: 0,
            shared_devices: false,
            force_topology: None,
            faults: Vec::new(),
        };
        Self { job, placement: Placement::Threads, environment: node("hgx-h100").environment(), directory }
    }

    pub(crate) fn in_processes(mut self) -> Self {
        self.placement = Placement::Processes;
        self
    }

    pub(crate) fn with(mut self, fault: Fault) -> Self {
        self.job.faults.push(fault);
        self
    }

    /// Starts the ranks without waiting for them.
    pub(crate) fn start(&self) -> Cluster {
        Cluster::start(&program(), &self.job, self.placement, &self.environment).expect("workers start")
    }

    /// Runs to the end.
    pub(crate) fn play(self) -> Played {
        let cluster = self.start();
        let events = cluster.events().collect();
        let exits = cluster.wait().expect("workers can be waited for");
        let left_in_store = files_below(self.directory.path());
        Played { events, exits, left_in_store }
    }
}

impl Played {
    /// Every rank ran every case, got the reference's bits and closed its communicator.
    pub(crate) fn assert_all_ok(&self, job_ranks: usize, cases: usize) {
        let story = || self.story();
        for event in &self.events {
            match event {
                Event::Case { mismatch, .. } => assert_eq!(*mismatch, None, "{}", story()),
                Event::Ready { .. } | Event::Closed { .. } => {}
                other => panic!("{other:?}\n{}", story()),
            }
        }
        let done = self.events.iter().filter(|event| matches!(event, Event::Case { .. })).count();
        assert_eq!(done, job_ranks * cases, "{}", story());
        for case in 0..cases {
            let mut digests: Vec<_> = self.events.iter().filter_map(|event| digest_of(event, case)).collect();
            digests.dedup();
            assert_eq!(digests.len(), 1, "ranks differ in case {case}\n{}", story());
        }
        let closed = self.events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
        assert_eq!(closed, job_ranks, "{}", story());
        assert!(self.exits.iter().all(|exit| exit.status.success()), "{}", story());
        assert!(self.left_in_store.is_empty(), "left in the store: {:?}", self.left_in_store);
    }

    /// Kind and message of the failure that `rank` reported.
    pub(crate) fn failure(&self, rank: usize) -> (&str, &str) {
        let found = self.events.iter().find_map(|event| match event {
            Event::Failed { rank: failed, kind, message, .. } if *failed == rank => {
                Some((&**kind, &**message))
            }
            _ => None,
        });
        found.unwrap_or_else(|| panic!("rank {rank} reported no failure\n{}", self.story()))
    }

    /// The reason for which `rank` found the communicator not applicable.
    pub(crate) fn not_applicable(&self, rank: usize) -> &str {
        let found = self.events.iter().find_map(|event| match event {
            Event::NotApplicable { rank: said, reason } if *said == rank => Some(&**reason),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("rank {rank} did not say 'not applicable'\n{}", self.story()))
    }

    /// Whether any rank's result was wrong, or any rank failed.
    pub(crate) fn went_wrong(&self) -> bool {
        self.events.iter().any(|event| match event {
            Event::Case { mismatch, .. } => mismatch.is_some(),
            Event::Failed { .. } | Event::Unsupported { .. } | Event::NotApplicable { .. } => true,
            Event::Ready { .. } | Event::Closed { .. } => false,
        })
    }

    /// All that was said, for a failing assertion.
    pub(crate) fn story(&self) -> String {
        let events: String = self.events.iter().map(|event| format!("{event:?}\n")).collect();
        let exits: String = self
            .exits
            .iter()
            .map(|exit| format!("ranks {:?}: {}\n{}", exit.ranks, exit.status, exit.stderr))
            .collect();
        format!("{events}{exits}")
    }
}

/// A fresh instance of an emulated node.
pub(crate) fn node(name: &str) -> EmulatedNode {
    EmulatedNode::new(name).unwrap_or_else(|error| panic!("{error}"))
}

fn digest_of(event: &Event, wanted: usize) -> Option<&str> {
    match event {
        Event::Case { case, digest, .. } if *case == wanted => Some(digest),
        _ => None,
    }
}

pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => open.push(path),
                // The file store's lock stays; it is empty.
                false if path.ends_with(".lock") => {}
                false => files.push(path),
            }
        }
    }
    files
}
