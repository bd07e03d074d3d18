//! The adversary: runs kernels of several devices under one scheduler and an operational model of PTX weak memory.
//!
//! A [`Session`] returns, for every load, any value that the PTX memory model allows, chooses interleavings that are
//! hard on protocols, and stops at what the model calls a data race. Everything is drawn from one seed, and a seed
//! replays exactly. `docs/adversary.md` says which model this is, with the sections of the PTX ISA, and what it does
//! not claim.
//!
//! ```
//! use std::sync::Arc;
//! use meshreduce_emulator_weak_memory::adversary::{Options, Session};
//! use meshreduce_emulator_ptx::{Launch, Module};
//!
//! let text = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(.param .u64 a) {
//!     .reg .b64 %rd<2>; .reg .b32 %r<2>;
//!     ld.param.u64 %rd1, [a]; mov.u32 %r1, 7; st.global.u32 [%rd1], %r1; ret; }";
//! let module = Module::parse(text)?;
//! let mut session = Session::new(Options { seed: 1, ..Options::default() });
//! let device = session.device();
//! let memory = session.allocate(device, 4);
//! let kernel = module.kernel("k").ok_or("no kernel")?;
//! let params = memory.to_le_bytes().into();
//! session.launch(device, Launch { kernel, grid: [1; 3], block: [1; 3], params, dynamic_shared: 0 });
//! session.run()?;
//! assert_eq!(session.read(memory, 4), 7u32.to_le_bytes());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
mod book;
mod chain;
mod history;
mod interpreter;
mod late;
mod load;
mod machine;
mod memory;
mod model;
mod pending;
mod report;
mod schedule;
mod starvation;
mod thread;
mod trace;
mod uses;
mod view;

use std::collections::VecDeque;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

pub use self::report::{Report, ReportKind};
pub use self::schedule::Strategy;

use self::machine::Machine;
use self::model::Model;
use self::report::Finding;
use self::schedule::Schedule;
use meshreduce_emulator_ptx::Launch;

/// How a session runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// Whose turn it is.
    pub strategy: Strategy,
    /// Whether to stop at data races. Without, races have the outcomes that the axioms leave to them.
    pub detect_races: bool,
    /// Blocks that a device holds at once; `None`: all.
    pub resident_blocks: Option<u32>,
    /// Keep the interleaving for [`Report::interleaving`] and [`Session::interleaving`].
    pub trace: bool,
    /// PTX instructions of one [`Session::run`] after which it is given up.
    pub max_instructions: u64,
    /// PTX instructions without any change after which reads return the latest write and nobody sleeps, and after as many
    /// again whoever still waits is starved; besides those that threads take from look to look at what ends a wait. At least
    /// as many as a wait takes that its own clock ends, or that is called starvation.
    pub patience: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            strategy: Strategy::Mixed,
            detect_races: true,
            resident_blocks: None,
            trace: false,
            max_instructions: 2_000_000_000,
            patience: 100_000,
        }
    }
}

/// A device of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(u16);

impl DeviceId {
    /// Its number, from 0, in the order of [`Session::device`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// PTX instructions executed, over all threads.
    pub instructions: u64,
    /// Turns that the scheduler gave.
    pub steps: u64,
}

/// Devices with their memory, and launches on them.
///
/// Memory of one device is visible to all, at one address. Launches of one device run in order, and what comes before
/// on a device happens before what comes behind.
pub struct Session {
    machine: Machine,
    seed: u64,
    /// By allocation: whose memory it is; `None`: the host's.
    owners: Vec<Option<DeviceId>>,
}

/// Lines of an interleaving that a report shows.
const SHOWN: usize = 60;

impl Session {
    /// A session without devices.
    pub fn new(options: Options) -> Self {
        let Options { seed, strategy, detect_races, resident_blocks, trace, max_instructions, patience } =
            options;
        let model = Model::new(seed, detect_races, trace);
        let mut random = ChaCha8Rng::seed_from_u64(!seed);
        let schedule = Schedule::new(strategy, &mut random);
        let machine = Machine::new(model, schedule, resident_blocks, max_instructions, patience);
        Self { machine, seed, owners: Vec::new() }
    }

    /// Adds a device.
    pub fn device(&mut self) -> DeviceId {
        DeviceId(self.machine.device())
    }

    /// Zeroed memory of a device: its address, a multiple of 2^32.
    ///
    /// # Panics
    /// If `bytes` is 2^32 or more.
    pub fn allocate(&mut self, device: DeviceId, bytes: u64) -> u64 {
        self.allocate_for(Some(device), bytes)
    }

    /// Zeroed memory of the host that all devices see: its address.
    ///
    /// # Panics
    /// If `bytes` is 2^32 or more.
    pub fn allocate_host(&mut self, bytes: u64) -> u64 {
        self.allocate_for(None, bytes)
    }

    fn allocate_for(&mut self, owner: Option<DeviceId>, bytes: u64) -> u64 {
        assert!(bytes < 1 << 32, "an allocation of {bytes} bytes");
        let address = self.machine.model.memory.allocate(bytes);
        // Blocks that have run had allocations of their own, for shared memory, which stay behind empty.
        let number = self.mappings().last().map_or(0, |(_, _, allocation, _)| allocation);
        self.owners.resize(number, None);
        self.owners.push(owner);
        address
    }

    /// All memory with an address: first address, bytes, allocation and offset in it. Allocations come in order.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (u64, u64, usize, u64)> + '_ {
        self.machine.model.memory.mappings()
    }

    /// The number of the device whose memory an allocation is; `None`: the host's.
    pub(crate) fn owner(&self, allocation: usize) -> Option<usize> {
        self.owners.get(allocation).copied().flatten().map(DeviceId::index)
    }

    /// By device: the launches that are queued.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &VecDeque<Arc<Launch>>> {
        self.machine.devices.iter().map(|device| &device.queue)
    }

    /// All memory with an address: whose it is (`None`: the host's), its first address, and what is in it.
    pub fn contents(&self) -> impl Iterator<Item = (Option<DeviceId>, u64, Vec<u8>)> + '_ {
        self.mappings().map(|(base, bytes, allocation, _)| {
            let owner = self.owners.get(allocation).copied().flatten();
            (owner, base, self.read(base, bytes as usize))
        })
    }

    /// The launches that are queued, by device and in their order.
    pub fn launches(&self) -> impl Iterator<Item = (DeviceId, &Arc<Launch>)> {
        let queues = self.queues().enumerate();
        queues.flat_map(|(device, queue)| queue.iter().map(move |launch| (DeviceId(device as u16), launch)))
    }

    /// What a place is called: its label, or else its address.
    pub fn name_of(&self, address: u64) -> String {
        match self.machine.model.memory.place(address, 1) {
            Ok(place) => self.machine.model.memory.describe(place.word, place.mask),
            Err(_) => format!("{address:#x}"),
        }
    }

    /// A second address of memory that has one: another mapping of the same location.
    ///
    /// # Panics
    /// If the range is not within one allocation.
    pub fn alias(&mut self, address: u64, bytes: u64) -> u64 {
        let alias = self.machine.model.memory.alias(address, bytes);
        alias.unwrap_or_else(|error| panic!("alias of {address:#x}: {error}"))
    }

    /// Gives a range a name, for reports.
    ///
    /// # Panics
    /// If the range is not within one allocation.
    pub fn label(&mut self, address: u64, bytes: u64, name: &str) {
        let label = self.machine.model.memory.label(address, bytes, name);
        label.unwrap_or_else(|error| panic!("label of {address:#x}: {error}"));
    }

    /// Writes memory from the host, after all launches that are over and before all that are not begun.
    ///
    /// # Panics
    /// If the range is not within one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) {
        let done = self.machine.model.memory.write(address, data);
        done.unwrap_or_else(|error| panic!("write to {address:#x}: {error}"));
    }

    /// Reads memory from the host, after all launches that are over.
    ///
    /// # Panics
    /// If the range is not within one allocation.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let data = self.machine.model.memory.read(address, bytes);
        data.unwrap_or_else(|error| panic!("read of {address:#x}: {error}"))
    }

    /// Enqueues a launch.
    ///
    /// # Panics
    /// If the parameters are not as long as the kernel declares, or the grid or block is empty or beyond 2^16 threads a
    /// block.
    pub fn launch(&mut self, device: DeviceId, launch: Launch) {
        assert_eq!(launch.params.len(), launch.kernel.param_bytes as usize, "bytes of parameters");
        let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
        let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
        assert!(
            (1..=1 << 16).contains(&threads) && (1..=1 << 31).contains(&blocks),
            "an empty or huge launch"
        );
        if launch.kernel.accesses_b128 {
            self.machine.model.memory.widen();
        }
        self.machine.devices[device.index()].queue.push_back(Arc::new(launch));
    }

    /// Runs all launches to their end.
    ///
    /// # Errors
    /// The report of what was found. The session cannot be used for anything but reading afterwards.
    pub fn run(&mut self) -> Result<Summary, Report> {
        let (now, steps) = (self.machine.model.now, self.machine.steps);
        match self.machine.run() {
            Ok(()) => {
                Ok(Summary { instructions: self.machine.model.now - now, steps: self.machine.steps - steps })
            }
            Err(finding) => Err(self.report(*finding)),
        }
    }

    /// PTX instructions so far.
    pub fn instructions(&self) -> u64 {
        self.machine.model.now
    }

    /// All accesses so far, one after the other, if they are traced; the last `most`.
    pub fn interleaving(&self, most: usize) -> Vec<String> {
        let model = &self.machine.model;
        model.trace.tell(&model.book, &model.memory, &[], &[], most)
    }

    fn report(&mut self, finding: Finding) -> Report {
        let Finding { kind, story, threads, words, .. } = finding;
        let model = &self.machine.model;
        let interleaving = model.trace.tell(&model.book, &model.memory, &threads, &words, SHOWN);
        Report { kind, story, seed: self.seed, interleaving }
    }
}
