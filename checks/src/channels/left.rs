//! What a process has left of its channels when they are over.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use meshreduce_channels::Device;

use crate::gdr::scenarios::verbs_count;

/// What the kernel calls descriptors that are counted, besides those of memory.
const DESCRIPTORS: [&str; 3] = ["socket:", "[eventpoll]", "[eventfd]"];

/// How long a thread that is about to end may take.
const SOON: Duration = Duration::from_secs(20);

/// What memory and events are called that channels share, and those of emulated devices: own allocations, and what was opened of
/// other processes'. Page-locked memory is among it: it is unmapped only when the driver has unlocked it.
const MEMORY: [&str; 5] = [
    "meshreduce-slots",
    "meshreduce-ipc-words",
    "meshreduce-device-memory",
    "meshreduce-event",
    "infiniband",
];

/// What a process has before it makes a channel. NVIDIA's driver keeps a socket and an event descriptor of its own once it is
/// initialised (and two more for each context, which go with it).
#[derive(Debug, Default)]
pub struct Before {
    /// As many as there are kinds of descriptors.
    descriptors: [usize; DESCRIPTORS.len()],
}

impl Before {
    /// Initialises the driver, if one of these devices is its own, and looks.
    ///
    /// # Errors
    ///
    /// If this process's descriptors cannot be read.
    pub fn look(devices: &[Device]) -> Result<Self> {
        if devices.iter().any(|device| matches!(device, Device::Cuda(_))) {
            // A driver that cannot be initialised keeps nothing, and the scenario says what it says of that.
            let _ = meshreduce_driver_loader::status().map(|()| cust::init(cust::CudaFlags::empty()));
        }
        let targets = targets()?;
        let count = |part: &str| targets.iter().filter(|target| target.contains(part)).count();
        Ok(Self { descriptors: DESCRIPTORS.map(count) })
    }

    /// Sees that nothing is left: no thread, no mapping, no descriptor, no memory of a device; and of emulated network adapters no
    /// registration, queue pair or queue.
    ///
    /// # Errors
    ///
    /// What is left.
    pub fn nothing_more(&self) -> Result<()> {
        none(self, &MEMORY)
    }

    /// The same but for memory.
    ///
    /// # Errors
    ///
    /// What is left.
    pub fn no_more_threads_and_links(&self) -> Result<()> {
        none(self, &[])
    }
}

fn none(before: &Before, memory: &[&str]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let left = left(before, memory)?;
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > SOON {
            bail!("left behind: {}", left.join(", "));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn left(before: &Before, memory: &[&str]) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")?.flatten() {
        // A thread that has ended meanwhile has no name.
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("meshreduce chan") || name.starts_with("meshreduce drop") {
            left.push(format!("the thread {:?}", name.trim()));
        }
    }
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        if memory.iter().any(|name| line.contains(name)) {
            left.push(format!("the mapping {line}"));
        }
    }
    let targets = targets()?;
    let verbs = Verbs::of_this_process()?;
    let others = before.descriptors.into_iter().chain(memory.iter().map(|_| 0));
    for (part, before) in DESCRIPTORS.iter().chain(memory).zip(others) {
        let found: Vec<&String> = targets.iter().filter(|target| target.contains(part)).collect();
        if found.len() as u64 > verbs.own(part) + before as u64 {
            left.push(format!(
                "descriptors {found:?}, of which {before} were there before, and {} are the emulated adapters'",
                verbs.own(part)
            ));
        }
    }
    left.extend(verbs.left);
    Ok(left)
}

/// What the descriptors of this process stand for.
fn targets() -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        targets.push(target.to_string_lossy().into_owned());
    }
    Ok(targets)
}

/// What the emulated network adapters of this process have, if it has any.
#[derive(Default)]
struct Verbs {
    /// Whether their thread runs. It does so to the end of the process, with what it has for itself.
    runs: bool,
    connections: u64,
    left: Vec<String>,
}

impl Verbs {
    fn of_this_process() -> Result<Self> {
        // Only where somebody has named a library: of the system's nothing is counted.
        if std::env::var_os("MESHREDUCE_VERBS").is_none() {
            return Ok(Self::default());
        }
        let Ok(connections) = verbs_count("connections") else { return Ok(Self::default()) };
        let mut verbs = Self { connections, ..Self::default() };
        for task in std::fs::read_dir("/proc/self/task")?.flatten() {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            verbs.runs |= name.trim() == "verbs";
        }
        for what in ["live_mr", "pinned_bytes", "live_qp", "live_cq"] {
            match verbs_count(what)? {
                0 => {}
                count => verbs.left.push(format!("{what}: {count}")),
            }
        }
        Ok(verbs)
    }

    /// How many descriptors of this kind are its thread's own.
    fn own(&self, part: &str) -> u64 {
        match (self.runs, part) {
            // What it listens with, and to every process that it has talked with.
            (true, "socket:") => 1 + self.connections,
            (true, "[eventpoll]") => 1,
            (true, "[eventfd]") => 2,
            _ => 0,
        }
    }
}
