//! Devices, blocks and barriers, and whose turn it is.
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::error::PathError;
use super::graph::{ENTRY, Graph, Moment, Who};
use super::memory::{Memory, Owner, Words};
use super::thread::{Code, State, StopReason, Thread, World};
use crate::adversary::Session;
use meshreduce_emulator_ptx::{BARRIERS, Barrier, BarrierKind, Kernel, Launch, Op, Slot, Votes, WARP};

/// PTX instructions of all threads after which a run has no end.
const LONGEST: u64 = 2_000_000_000;

#[derive(Debug)]
pub(super) struct Machine {
    world: World,
    /// By device: its launch, if it has one.
    codes: Vec<Option<Arc<Code>>>,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    code: Arc<Code>,
    threads: Vec<Thread>,
    shared: Words,
    barriers: [Waiting; BARRIERS],
}

/// Who waits at a barrier, and since when.
#[derive(Debug)]
struct Waiting {
    arrived: u32,
    votes: Votes,
    threads: Vec<(usize, Slot, BarrierKind)>,
    /// The last arrival.
    moment: Moment,
    /// When the stores of all that have come are done.
    stored: Moment,
}

impl Default for Waiting {
    fn default() -> Self {
        let threads = Vec::new();
        Self { arrived: 0, votes: Votes::default(), threads, moment: ENTRY, stored: ENTRY }
    }
}

impl Machine {
    /// The memory and the launches of a session that has not run.
    pub(super) fn new(session: &Session, results: &[Range<u64>]) -> Result<Self, PathError> {
        let mut memory = Memory::default();
        let mut known = BTreeMap::new();
        for (base, bytes, allocation, offset) in session.mappings() {
            // The first mapping of an allocation is of all of it.
            let place = *known.entry(allocation).or_insert_with(|| {
                let owner =
                    session.owner(allocation).map_or(Owner::Host, |device| Owner::Device(device as u16));
                memory.add(owner, session.read(base, bytes as usize))
            });
            memory.map(base, bytes, place, offset);
        }
        let world =
            World { memory, graph: Graph::new(), results: results.to_vec(), result: None, instructions: 0 };
        let mut machine = Self { world, codes: Vec::new(), blocks: Vec::new() };
        for (device, queue) in session.queues().enumerate() {
            machine.launch(device, queue)?;
        }
        Ok(machine)
    }

    fn launch(&mut self, device: usize, queue: &VecDeque<Arc<Launch>>) -> Result<(), PathError> {
        if queue.len() > 1 {
            return Err(PathError::Launches { device, launches: queue.len() });
        }
        let code = queue.front().map(|launch| Arc::new(Code::new(launch.clone())));
        if let Some(code) = &code {
            for linear in 0..code.launch.grid.iter().product() {
                self.blocks.push(Block::new(code, device, linear));
            }
        }
        self.codes.push(code);
        Ok(())
    }

    /// Runs all to their end: all threads as far as they come without looking at what others may store, then all that
    /// want to look once, and so on.
    pub(super) fn run(&mut self) -> Result<(), PathError> {
        loop {
            for block in &mut self.blocks {
                block.run(&mut self.world)?;
            }
            let mut looking = false;
            for thread in self.blocks.iter_mut().flat_map(|block| &mut block.threads) {
                if thread.state == State::Looking {
                    thread.look();
                    looking = true;
                }
            }
            let threads = self.blocks.iter().flat_map(|block| &block.threads);
            let live = threads.filter(|thread| thread.state != State::Exited).count();
            if live == 0 {
                return Ok(());
            }
            if !looking {
                return Err(PathError::Stuck(live));
            }
            if self.world.instructions > LONGEST {
                return Err(PathError::NoEnd(LONGEST));
            }
        }
    }

    pub(super) fn graph(&self) -> &Graph {
        &self.world.graph
    }

    pub(super) fn result(&self) -> Option<Moment> {
        self.world.result
    }

    pub(super) fn instructions(&self) -> u64 {
        self.world.instructions
    }

    pub(super) fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, String> {
        let place = self.world.memory.find(address, bytes)?;
        Ok(self.world.memory.allocations[place.allocation].1.all()[place.at..place.at + bytes].to_vec())
    }

    /// The kernel of a step and its line.
    pub(super) fn line(&self, who: Who) -> (&Kernel, u32) {
        let code = self.codes[usize::from(who.device)].as_ref().expect("whoever did a step was launched");
        let kernel = &*code.launch.kernel;
        (kernel, kernel.code.get(who.pc as usize).map_or(0, |step| step.line))
    }
}

impl Block {
    fn new(code: &Arc<Code>, device: usize, linear: u32) -> Self {
        let launch = &code.launch;
        let index = launch.block_index(linear.into());
        let threads = (0..launch.threads()).map(|local| {
            let who = Who { device: device as u16, thread: local as u16, block: linear, pc: 0 };
            Thread::new(who, launch.slots(index, local), launch.kernel.local_bytes as usize)
        });
        Self {
            threads: threads.collect(),
            shared: Words::new(vec![0; launch.shared_bytes() as usize]),
            barriers: Default::default(),
            code: code.clone(),
        }
    }

    /// Runs all threads of the block as far as they come.
    fn run(&mut self, world: &mut World) -> Result<(), PathError> {
        while let Some(next) = self.threads.iter().position(|thread| thread.state == State::Runnable) {
            for at in next..self.threads.len() {
                if self.threads[at].state == State::Runnable {
                    self.turn(at, world).map_err(|what| self.fault(at, what))?;
                }
            }
        }
        Ok(())
    }

    fn turn(&mut self, at: usize, world: &mut World) -> Result<(), String> {
        let thread = &mut self.threads[at];
        match thread.run(world, &self.code, &mut self.shared)? {
            StopReason::Look => thread.state = State::Looking,
            StopReason::Exited => {
                thread.state = State::Exited;
                self.release_warp(at, world);
            }
            StopReason::WarpBarrier(mask) => {
                thread.state = State::AtWarpBarrier(mask);
                self.release_warp(at, world);
            }
            StopReason::Barrier => self.arrive(at, world)?,
        }
        Ok(())
    }

    fn fault(&self, at: usize, what: String) -> PathError {
        let thread = &self.threads[at];
        let kernel = &self.code.launch.kernel;
        let line = kernel.code.get(thread.pc).map_or(0, |step| step.line);
        PathError::Fault {
            what,
            kernel: kernel.name.clone(),
            line,
            text: kernel.line_text(line).to_owned(),
            device: usize::from(thread.who.device),
            block: thread.who.block as usize,
            thread: at,
        }
    }

    /// A thread has come to a barrier.
    fn arrive(&mut self, at: usize, world: &World) -> Result<(), String> {
        let all = self.threads.len() as u32;
        let thread = &mut self.threads[at];
        let Op::Barrier(barrier) = &self.code.launch.kernel.code[thread.pc].op else { return Ok(()) };
        let Barrier { kind, id, count, d, p, negate } = **barrier;
        let value = |slot: Slot| thread.slots[usize::from(slot)];
        let id = value(id) as u32 as usize;
        let expected = count.map_or(all, |count| value(count) as u32).min(all);
        let truth = (value(p) ^ u64::from(negate)) & 1 == 1;
        let moment = thread.begin(&self.code, &world.graph);
        let waiting = self.barriers.get_mut(id).ok_or_else(|| format!("barrier {id} does not exist"))?;
        waiting.arrived += 1;
        waiting.moment = world.graph.later(waiting.moment, moment);
        waiting.stored = world.graph.later(waiting.stored, thread.stored);
        waiting.votes.add(kind, truth);
        thread.pc += 1;
        if kind != BarrierKind::Arrive {
            thread.state = State::AtBarrier;
            waiting.threads.push((at, d, kind));
        }
        if waiting.arrived >= expected {
            let Waiting { votes, threads, moment, stored, .. } = std::mem::take(waiting);
            for (waiter, d, kind) in threads {
                let thread = &mut self.threads[waiter];
                thread.pass(moment, stored, &world.graph);
                if let Some(result) = votes.result(kind) {
                    thread.set(d, result, moment);
                }
            }
        }
        Ok(())
    }

    /// Lets the lanes of `at`'s warp go whose partners have all come, or exited.
    fn release_warp(&mut self, at: usize, world: &World) {
        let first = at - at % WARP as usize;
        let last = (first + WARP as usize).min(self.threads.len());
        for lane in first..last {
            let State::AtWarpBarrier(mask) = self.threads[lane].state else { continue };
            let group: Vec<usize> = (first..last)
                .filter(|&other| mask >> (other - first) & 1 == 1 || other == lane)
                .filter(|&other| self.threads[other].state != State::Exited)
                .collect();
            if !group.iter().all(|&other| matches!(self.threads[other].state, State::AtWarpBarrier(_))) {
                continue;
            }
            let later = |of: fn(&Thread) -> Moment| {
                group.iter().fold(ENTRY, |latest, &other| world.graph.later(latest, of(&self.threads[other])))
            };
            let (moment, stored) = (later(|thread| thread.control), later(|thread| thread.stored));
            for other in group {
                self.threads[other].pass(moment, stored, &world.graph);
            }
        }
    }
}
