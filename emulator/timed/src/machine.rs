//! The run: events in the order of time, kernels and their blocks.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use meshreduce_emulator_ptx::{Fault, FaultKind, WARP};

use crate::device::{Block, Core, Costs, Device, Running};
use crate::error::TimedError;
use crate::links::Links;
use crate::memory::Memory;
use crate::parameters::Parameters;
use crate::path::{Graph, NOBODY, NodeId};
use crate::request::{Awaited, Request, Values};
use crate::time::Time;
use crate::warp::Warp;

/// Simulated time after which a run has no end.
const LONGEST: Time = 50_000_000_000;

/// Something that happens: when, its number, what.
type Event = (Time, u64, EventKind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EventKind {
    /// A kernel begins.
    Begin(u16),
    /// A warp may go on.
    Warp(u32),
    /// A request is where the memory is.
    Arrives(u32),
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) costs: Costs,
    pub(crate) parameters: Parameters,
    pub(crate) memory: Memory,
    pub(crate) links: Links,
    pub(crate) devices: Vec<Device>,
    /// Of all devices, one device after the other.
    pub(crate) cores: Vec<Core>,
    /// By scheduler: when it is free.
    pub(crate) schedulers: Vec<Time>,
    pub(crate) blocks: Vec<Block>,
    /// A warp is away while it has its turn.
    pub(crate) warps: Vec<Option<Box<Warp>>>,
    pub(crate) graph: Graph,
    pub(crate) now: Time,
    pub(crate) results: Vec<Range<u64>>,
    /// The last store of a result, and when it is there.
    pub(crate) result: Option<(Time, NodeId)>,
    pub(crate) requests: Vec<Request>,
    pub(crate) spare_requests: Vec<u32>,
    pub(crate) spare_values: Vec<Values>,
    pub(crate) awaited: Vec<Awaited>,
    pub(crate) spare_awaited: Vec<u32>,
    /// Instructions of warps, and of threads.
    pub(crate) warp_instructions: u64,
    pub(crate) instructions: u64,
    events: BinaryHeap<Reverse<Event>>,
    count: u64,
}

/// What a turn of a warp ended with.
pub(crate) enum Next {
    /// It may issue again then.
    At(Time),
    /// Something else lets it go on.
    Waits,
}

impl Machine {
    pub(crate) fn new(parameters: &Parameters, devices: Vec<Device>, memory: Memory) -> Self {
        let core = &parameters.multiprocessor;
        let cores = devices.len() * core.count as usize;
        Self {
            costs: Costs::new(parameters),
            links: Links::new(&parameters.nvlink, devices.len()),
            parameters: parameters.clone(),
            memory,
            cores: (0..cores).map(|_| Core::new(parameters)).collect(),
            schedulers: vec![0; cores * core.schedulers as usize],
            devices,
            blocks: Vec::new(),
            warps: Vec::new(),
            graph: Graph::default(),
            now: 0,
            results: Vec::new(),
            result: None,
            requests: Vec::new(),
            spare_requests: Vec::new(),
            spare_values: Vec::new(),
            awaited: Vec::new(),
            spare_awaited: Vec::new(),
            warp_instructions: 0,
            instructions: 0,
            events: BinaryHeap::new(),
            count: 0,
        }
    }

    pub(crate) fn run(&mut self) -> Result<(), TimedError> {
        for device in 0..self.devices.len() {
            self.push(0, EventKind::Begin(device as u16));
        }
        while let Some(Reverse((time, number, what))) = self.events.pop() {
            self.now = time;
            if time > LONGEST {
                return Err(TimedError::NoEnd { nanoseconds: LONGEST / 1000 });
            }
            match what {
                EventKind::Begin(device) => self.begin(device)?,
                EventKind::Arrives(request) => self.arrives(request)?,
                EventKind::Warp(warp) => {
                    if self.warps[warp as usize].as_ref().is_some_and(|known| known.event == number) {
                        self.turn(warp)?;
                    }
                }
            }
        }
        let waiting = self.warps.iter().flatten().filter(|warp| !warp.groups.is_empty()).count();
        if waiting > 0 {
            return Err(TimedError::Stuck { warps: waiting });
        }
        Ok(())
    }

    pub(crate) fn push(&mut self, time: Time, what: EventKind) -> u64 {
        self.count += 1;
        self.events.push(Reverse((time, self.count, what)));
        self.count
    }

    /// Gives a warp that waits an event.
    pub(crate) fn wake(&mut self, warp: &mut Warp, time: Time) {
        if warp.event == 0 {
            warp.event = self.push(time.max(self.now), EventKind::Warp(warp.id));
        }
    }

    /// The same of one that is not away.
    pub(crate) fn wake_other(&mut self, number: u32, time: Time) {
        if let Some(mut warp) = self.warps[number as usize].take() {
            self.wake(&mut warp, time);
            self.warps[number as usize] = Some(warp);
        }
    }

    /// A warp issues until it has to wait, or something else is earlier.
    fn turn(&mut self, number: u32) -> Result<(), TimedError> {
        let Some(mut warp) = self.warps[number as usize].take() else { return Ok(()) };
        let code = self.blocks[warp.block as usize].code.clone();
        warp.event = 0;
        let done = loop {
            match self.step(&mut warp, &code) {
                Ok(Next::At(time)) => {
                    let is_first = time == self.now
                        || self.events.peek().is_none_or(|Reverse((other, ..))| time < *other);
                    if !is_first || time > LONGEST {
                        warp.event = self.push(time, EventKind::Warp(number));
                        break Ok(());
                    }
                    self.now = time;
                }
                Ok(Next::Waits) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.warps[number as usize] = Some(warp);
        done
    }

    fn begin(&mut self, number: u16) -> Result<(), TimedError> {
        let device = &mut self.devices[usize::from(number)];
        let Some(queued) = device.queue.pop_front() else { return Ok(()) };
        let threads = queued.launch.threads();
        let most = self.parameters.multiprocessor.threads;
        if threads > most {
            return Err(TimedError::Block { threads, most });
        }
        let blocks = queued.launch.grid.iter().map(|&axis| u64::from(axis)).product();
        let begin = self.now;
        let (launch, code) = (queued.launch, queued.code);
        device.running =
            Some(Running { launch, code, begin, next: 0, blocks, ended: 0, free: begin, core: 0 });
        let count = self.parameters.multiprocessor.count as usize;
        // A kernel finds nothing of the one before in the caches that are not kept coherent.
        for core in &mut self.cores[usize::from(number) * count..][..count] {
            core.l1.clear();
            core.constants.clear();
        }
        self.fill(number);
        Ok(())
    }

    /// Begins blocks where there is room.
    fn fill(&mut self, number: u16) {
        while let Some(running) = self.devices[usize::from(number)].running.as_mut() {
            if running.next == running.blocks {
                return;
            }
            let core = &self.parameters.multiprocessor;
            let threads = running.launch.threads();
            let first = u32::from(number) * core.count;
            let fits = |at: &u32| {
                let place = &self.cores[(first + at) as usize];
                place.threads + threads <= core.threads && place.blocks < core.blocks
            };
            let place = (0..core.count).map(|at| (running.core + at) % core.count).find(fits);
            let Some(place) = place else { return };
            running.core = place + 1;
            running.free = running.free.max(self.now) + self.costs.block;
            let (begin, block) = (running.free, running.next);
            running.next += 1;
            let (launch, code) = (running.launch.clone(), running.code.clone());
            let device = number;
            let core = first + place;
            let place = &mut self.cores[core as usize];
            place.threads += threads;
            place.blocks += 1;
            let shared = vec![0; launch.shared_bytes() as usize];
            let block = Block {
                code,
                launch,
                device,
                core,
                number: block,
                shared,
                threads,
                live: threads,
                barriers: Default::default(),
            };
            self.add(block, begin);
        }
    }

    fn add(&mut self, block: Block, begin: Time) {
        let (launch, kernel) = (block.launch.clone(), block.launch.kernel.clone());
        let index = launch.block_index(block.number);
        let schedulers = self.parameters.multiprocessor.schedulers;
        let number = self.blocks.len() as u32;
        for warp in 0..block.threads.div_ceil(WARP) {
            let threads = (block.threads - warp * WARP).min(WARP);
            let slots = (0..threads).flat_map(|lane| launch.slots(index, warp * WARP + lane)).collect();
            let id = self.warps.len() as u32;
            let scheduler = block.core * schedulers + warp % schedulers;
            let mut added = Warp::new(
                id,
                block.device,
                (block.core, scheduler),
                (number, warp),
                threads,
                (slots, kernel.slots()),
                usize::from(kernel.register_slots),
                kernel.local_bytes as usize * threads as usize,
            );
            added.issue = begin;
            self.wake(&mut added, begin);
            self.warps.push(Some(Box::new(added)));
        }
        self.blocks.push(block);
    }

    /// Threads of a block have ended.
    pub(crate) fn exit(&mut self, warp: &mut Warp, threads: u32) {
        let block = &mut self.blocks[warp.block as usize];
        block.live -= threads;
        let live = block.live;
        for id in 0..block.barriers.len() {
            let gathering = &self.blocks[warp.block as usize].barriers[id];
            if gathering.everyone && gathering.arrived > 0 && gathering.arrived >= live {
                self.release(warp, id);
            }
        }
        if live > 0 {
            return;
        }
        let block = &mut self.blocks[warp.block as usize];
        block.shared = Vec::new();
        let core = &mut self.cores[block.core as usize];
        core.threads -= block.threads;
        core.blocks -= 1;
        let number = block.device;
        let device = &mut self.devices[usize::from(number)];
        let Some(running) = device.running.as_mut() else { return };
        running.ended += 1;
        if running.ended < running.blocks {
            self.fill(number);
            return;
        }
        let acknowledged = device.acknowledged.max(self.now);
        device.ended.push([running.begin, self.now, acknowledged]);
        device.running = None;
        if !device.queue.is_empty() {
            self.push(acknowledged + self.costs.next_kernel, EventKind::Begin(number));
        }
    }

    /// The error of a thread that did what it must not do.
    pub(crate) fn fault(&self, warp: &Warp, lane: u32, line: u32, kind: FaultKind) -> TimedError {
        let block = &self.blocks[warp.block as usize];
        let kernel = &block.launch.kernel;
        let fault = Fault {
            kernel: kernel.name.clone(),
            line,
            text: kernel.line_text(line).to_owned(),
            block: block.launch.block_index(block.number),
            thread: block.launch.thread_index(warp.number * WARP + lane),
            kind,
        };
        TimedError::Fault { device: usize::from(warp.device), fault: Box::new(fault) }
    }

    /// A launch's kernel, of the warp with this number.
    pub(crate) fn launch_of(&self, warp: u32) -> Option<(&Block, &Warp)> {
        let warp = self.warps.get(warp as usize)?.as_deref()?;
        Some((&self.blocks[warp.block as usize], warp))
    }

    /// The later of two moments, with its cause.
    pub(crate) fn later(a: (Time, NodeId), b: (Time, NodeId)) -> (Time, NodeId) {
        if b.0 > a.0 || (b.0 == a.0 && a.1 == NOBODY) { b } else { a }
    }

    /// A kernel's code.
    pub(crate) fn line(code: &Arc<crate::program::Code>, at: u32) -> u32 {
        code.instructions.get(at as usize).map_or(0, |instruction| instruction.line)
    }
}
