//! What is run, and what comes of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use meshreduce_emulator_ptx::Launch;

use crate::cache::{Cache, LINE};
use crate::device::{Device, Queued};
use crate::error::TimedError;
use crate::machine::Machine;
use crate::memory::{Memory, Owner};
use crate::parameters::Parameters;
use crate::path::{Node, StepKind};
use crate::program::Code;

/// Addresses of a device that share what is known of its last atomic.
const ATOMICS: usize = 4096;

/// Devices with memory and launches.
#[derive(Debug)]
pub struct Session {
    parameters: Parameters,
    memory: Memory,
    queues: Vec<VecDeque<Queued>>,
    codes: Vec<Arc<Code>>,
}

/// A kernel that has run. Times are picoseconds from the beginning of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// When it began.
    pub begin: u64,
    /// When its last thread ended.
    pub end: u64,
    /// When all its stores were acknowledged: the next kernel of the device may begin.
    pub acknowledged: u64,
}

/// A step: an access, a fence or a barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is.
    pub kind: StepKind,
    /// The device that did it.
    pub device: usize,
    /// The number of the block in the grid.
    pub block: u64,
    /// The number of the warp in the block.
    pub warp: u32,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The text of that line.
    pub text: String,
    /// The address, of one of the warp's threads; 0 where there is none.
    pub address: u64,
    /// When it was issued, in picoseconds.
    pub begin: u64,
    /// When its value, or its store, was there, or it let go.
    pub end: u64,
}

/// What a run took.
#[derive(Debug)]
pub struct Timed {
    /// By device: its kernels, in order.
    pub kernels: Vec<Vec<Kernel>>,
    /// When the last store of a result was there, in picoseconds, if there was one.
    pub result: Option<u64>,
    /// What led there, in order, if steps were followed.
    pub path: Vec<Step>,
    /// All steps, if they were followed.
    pub steps: Vec<Step>,
    /// Instructions, counted by thread.
    pub instructions: u64,
    /// Instructions, counted by warp.
    pub warp_instructions: u64,
    machine: Machine,
}

impl Session {
    /// A session without memory or launches, with so many devices of a machine.
    ///
    /// # Panics
    /// If the machine has fewer.
    pub fn new(parameters: &Parameters, devices: usize) -> Self {
        assert!(devices <= parameters.gpus, "{devices} devices of a machine with {}", parameters.gpus);
        let queues = (0..devices).map(|_| VecDeque::new()).collect();
        Self { parameters: parameters.clone(), memory: Memory::default(), queues, codes: Vec::new() }
    }

    /// Adds memory of a device, or of the host, at an address.
    ///
    /// # Panics
    /// If some of its addresses are taken.
    pub fn add_memory(&mut self, device: Option<usize>, address: u64, bytes: Vec<u8>) {
        let owner = device.map_or(Owner::Host, |device| Owner::Device(device as u16));
        assert!(self.memory.add(owner, address, bytes), "memory at {address:#x} is there already");
    }

    /// Queues a launch on a device.
    pub fn launch(&mut self, device: usize, launch: Arc<Launch>) {
        let known = self.codes.iter().find(|code| Arc::ptr_eq(&code.kernel, &launch.kernel));
        let code = known.cloned().unwrap_or_else(|| {
            let code = Arc::new(Code::new(&launch.kernel));
            self.codes.push(code.clone());
            code
        });
        self.queues[device].push_back(Queued { launch, code });
    }

    /// Runs all, of which the first kernels of all devices begin together. Stores into `results` are looked for; what led
    /// to the last of them is kept if steps are to be followed, which takes memory for every access.
    ///
    /// # Errors
    /// If a kernel goes wrong or does not end.
    pub fn run(self, results: &[Range<u64>], follow: bool) -> Result<Timed, TimedError> {
        let l2_bytes = u64::from(self.parameters.memory.l2_mib) << 20;
        let device = |(number, queue)| {
            let mut l2 = Cache::new(l2_bytes);
            // What fits is there from the calls before.
            for (base, bytes) in self.memory.of(number as u16) {
                (base / LINE..(base + bytes).div_ceil(LINE)).for_each(|line| {
                    l2.touch(line);
                });
            }
            Device {
                queue,
                running: None,
                l2,
                l2_free: 0,
                dram_free: 0,
                atomics: vec![0; ATOMICS],
                acknowledged: 0,
                ended: Vec::new(),
            }
        };
        let devices = self.queues.into_iter().enumerate().map(device).collect();
        let mut machine = Machine::new(&self.parameters, devices, self.memory);
        machine.results = results.to_vec();
        machine.graph.on = follow;
        if follow {
            machine.memory.follow();
        }
        machine.run()?;
        let kernel = |&[begin, end, acknowledged]: &[u64; 3]| Kernel { begin, end, acknowledged };
        let kernels = machine.devices.iter().map(|device| device.ended.iter().map(kernel).collect());
        let path = machine.result.map(|(_, by)| machine.graph.to(by)).unwrap_or_default();
        Ok(Timed {
            kernels: kernels.collect(),
            result: machine.result.map(|(time, _)| time),
            path: path.into_iter().map(|node| step(&machine, node)).collect(),
            steps: machine.graph.all().iter().map(|node| step(&machine, node)).collect(),
            instructions: machine.instructions,
            warp_instructions: machine.warp_instructions,
            machine,
        })
    }
}

impl Timed {
    /// Bytes of memory as the kernels left it.
    ///
    /// # Panics
    /// If the range is not within one allocation.
    pub fn read(&self, address: u64, bytes: usize) -> &[u8] {
        let found = self.machine.memory.read(address, bytes);
        found.unwrap_or_else(|| panic!("{bytes} bytes at {address:#x} are not in one allocation"))
    }

    /// When the last kernel's stores were acknowledged, in picoseconds.
    pub fn end(&self) -> u64 {
        self.kernels.iter().flatten().map(|kernel| kernel.acknowledged).max().unwrap_or(0)
    }
}

fn step(machine: &Machine, node: &Node) -> Step {
    let Node { kind, warp, line, address, begin, end, .. } = *node;
    let found = machine.launch_of(warp);
    let text = found.map_or("", |(block, _)| block.launch.kernel.line_text(line)).to_owned();
    Step {
        kind,
        device: found.map_or(0, |(block, _)| usize::from(block.device)),
        block: found.map_or(0, |(block, _)| block.number),
        warp: found.map_or(0, |(_, warp)| warp.number),
        line,
        text,
        address,
        begin,
        end,
    }
}
