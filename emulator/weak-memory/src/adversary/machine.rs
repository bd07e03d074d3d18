//! Devices, blocks and barriers: from queued launches to runnable threads.

use std::collections::VecDeque;
use std::sync::Arc;

use super::model::Model;
use super::pending::Late;
use super::report::{Finding, ReportKind, no_edge};
use super::schedule::Schedule;
use super::thread::{State, StopReason, Thread};
use super::uses::Uses;
use super::view::{Knowledge, View};
use meshreduce_emulator_ptx::{BARRIERS, BarrierKind, FaultKind, Launch, Op, Slot, Votes, WARP};

pub(super) struct Machine {
    pub(super) model: Model,
    pub(super) schedule: Schedule,
    pub(super) threads: Vec<Thread>,
    pub(super) devices: Vec<Device>,
    /// By number in the book.
    pub(super) blocks: Vec<Block>,
    runnable: Vec<u32>,
    /// By thread: its place in `runnable`.
    places: Vec<u32>,
    pub(super) resident: Option<u32>,
    pub(super) longest: u64,
    /// What [`super::Options::patience`] says.
    patience: u64,
    pub(super) steps: u64,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) queue: VecDeque<Arc<Launch>>,
    pub(super) running: Option<Running>,
    /// Clock number of the device's stream, and its events, one a launch that ended.
    stream: u32,
    pub(super) ended: u32,
    started: u32,
    knowledge: Knowledge,
    /// Threads, by their index in a grid.
    threads: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) launch: Arc<Launch>,
    uses: Arc<Uses>,
    number: u32,
    next_block: u32,
    pub(super) blocks: u32,
    live: u32,
}

pub(super) struct Block {
    pub(super) launch: Arc<Launch>,
    uses: Arc<Uses>,
    pub(super) device: u16,
    pub(super) index: [u32; 3],
    pub(super) members: Vec<u32>,
    live: u32,
    barriers: [Barrier; BARRIERS],
    /// Barriers that have been passed.
    pub(super) passed: u32,
}

#[derive(Debug, Default)]
struct Barrier {
    arrived: u32,
    expected: u32,
    everyone: bool,
    votes: Votes,
    waiting: Vec<(u32, Slot, BarrierKind)>,
    views: Vec<View>,
}

impl Barrier {
    /// Whether threads that all are to come to it have exited: those that live cannot complete it. Who has only arrived
    /// may have.
    fn is_deserted(&self, live: u32) -> bool {
        let still = live.saturating_sub(self.waiting.len() as u32);
        self.everyone && self.arrived > 0 && self.expected - self.arrived > still
    }
}

impl Machine {
    pub(super) fn new(
        model: Model,
        schedule: Schedule,
        resident: Option<u32>,
        longest: u64,
        patience: u64,
    ) -> Self {
        Self {
            model,
            schedule,
            threads: Vec::new(),
            devices: Vec::new(),
            blocks: Vec::new(),
            runnable: Vec::new(),
            places: Vec::new(),
            resident,
            longest,
            patience,
            steps: 0,
        }
    }

    pub(super) fn device(&mut self) -> u16 {
        let device = self.devices.len() as u16;
        let stream = self.thread(device);
        self.devices.push(Device {
            queue: VecDeque::new(),
            running: None,
            stream,
            ended: 0,
            started: 0,
            knowledge: Knowledge::default(),
            threads: Vec::new(),
        });
        device
    }

    fn thread(&mut self, device: u16) -> u32 {
        let number = self.threads.len() as u32;
        self.threads.push(Thread::new(number, device));
        self.places.push(u32::MAX);
        number
    }

    fn wake(&mut self, thread: u32) {
        self.places[thread as usize] = self.runnable.len() as u32;
        self.runnable.push(thread);
    }

    fn suspend(&mut self, thread: u32) {
        let place = std::mem::replace(&mut self.places[thread as usize], u32::MAX) as usize;
        self.runnable.swap_remove(place);
        if let Some(&moved) = self.runnable.get(place) {
            self.places[moved as usize] = place as u32;
        }
    }

    /// Runs everything that is queued to its end.
    pub(super) fn run(&mut self) -> Result<(), Box<Finding>> {
        for device in 0..self.devices.len() {
            self.next_launch(device);
        }
        let begin = self.model.now;
        self.model.progress = begin;
        self.model.calm = false;
        while !self.runnable.is_empty() {
            self.turn()?;
            let idle = self.model.now - self.model.progress;
            // A wait may look at what ends it in every 64th of turns that have some 60 instructions each.
            let patience = self.patience + 6_000 * self.runnable.len() as u64;
            self.model.calm = idle > patience;
            if idle > 2 * patience {
                return Err(self.starved());
            }
            if self.model.now - begin > self.longest {
                let story = format!("no end after {} PTX instructions", self.longest);
                return Err(Box::new(Finding {
                    kind: ReportKind::TooLong,
                    story,
                    threads: Vec::new(),
                    words: Vec::new(),
                    pair: None,
                }));
            }
        }
        if let Some(block) = self.blocks.iter().position(|block| block.live > 0) {
            return Err(self.diverged(block, "no thread of the block can go on"));
        }
        self.model.settle();
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Box<Finding>> {
        self.steps += 1;
        let calm = self.model.calm;
        let (at, accesses) =
            self.schedule.pick(&self.runnable, &self.threads, self.model.now, calm, &mut self.model.random);
        let number = self.runnable[at];
        let thread = &mut self.threads[number as usize];
        let block = thread.block as usize;
        let Block { launch, uses, .. } = &self.blocks[block];
        let before = thread.events;
        match thread.run(&mut self.model, launch, uses, accesses) {
            StopReason::Budget => {}
            StopReason::Spinning => self.schedule.yielded(number),
            StopReason::Exited => self.exit(number)?,
            StopReason::Barrier => self.arrive(number)?,
            StopReason::WarpBarrier => {
                self.suspend(number);
                self.release_warp(block, self.threads[number as usize].index / WARP as u16);
            }
            StopReason::Held(word) => {
                for other in 0..self.threads.len() {
                    let here = |late: &Late| late.acquires() && late.place.word == word;
                    // Whoever waits to acquire releases nothing, and so waits for nobody.
                    if let Err(StopReason::Found(finding)) =
                        self.threads[other].perform(&mut self.model, here)
                    {
                        return Err(self.with_edges(finding));
                    }
                }
            }
            StopReason::Found(finding) => return Err(self.with_edges(finding)),
            StopReason::Fault(kind) => return Err(self.fault(number, &kind)),
        }
        if self.threads[number as usize].events != before {
            self.prune(number);
        }
        Ok(())
    }

    /// Forgets writes that nobody can read, where a thread has just polled.
    fn prune(&mut self, number: u32) {
        let Some(word) = self.threads[number as usize].polls.last().map(|poll| poll.word) else { return };
        if !self.model.is_long(word) {
            return;
        }
        let Self { model, threads, devices, .. } = self;
        let live = |thread: &&Thread| thread.state != State::Exited;
        let starts: Vec<Knowledge> = devices
            .iter()
            .map(|device| match &device.running {
                Some(running) => model.book.start_of(running.number).clone(),
                None => device.knowledge.clone(),
            })
            .collect();
        model.prune(word, |access| {
            let event = access.who.event;
            // Whatever happens in a launch is unknown where another began, so most looks end here.
            starts.iter().all(|start| start.has_base(event))
                && threads.iter().filter(live).all(|thread| thread.has_long_known(event))
        });
    }

    fn next_launch(&mut self, at: usize) {
        let device = &mut self.devices[at];
        if device.running.is_some() {
            return;
        }
        let Some(launch) = device.queue.pop_front() else { return };
        let end = (device.stream, device.started + 1);
        let start = device.knowledge.clone();
        let number = self.model.book.launch(launch.clone(), device.started, start, end);
        device.started += 1;
        let uses = Arc::new(Uses::new(&launch));
        let blocks = launch.grid.iter().product();
        device.running = Some(Running { launch, uses, number, next_block: 0, blocks, live: 0 });
        for _ in 0..self.resident.unwrap_or(u32::MAX).min(blocks) {
            self.next_block(at);
        }
    }

    fn next_block(&mut self, at: usize) {
        let Some(running) = &mut self.devices[at].running else { return };
        if running.next_block == running.blocks {
            return;
        }
        let linear = running.next_block;
        running.next_block += 1;
        running.live += 1;
        let (launch, uses, number) = (running.launch.clone(), running.uses.clone(), running.number);
        let index = launch.block_index(linear.into());
        let serial = self.model.book.block(index);
        let kernel = launch.kernel.clone();
        let shared = self.model.memory.shared(launch.shared_bytes());
        let count = launch.threads();
        let mut members = Vec::with_capacity(count as usize);
        for local in 0..count {
            let place = (linear * count + local) as usize;
            while self.devices[at].threads.len() <= place {
                let thread = self.thread(at as u16);
                self.devices[at].threads.push(thread);
            }
            let member = self.devices[at].threads[place];
            let knowledge = self.devices[at].knowledge.clone();
            let thread = &mut self.threads[member as usize];
            thread.begin(launch.slots(index, local), kernel.local_bytes as usize, knowledge);
            (thread.index, thread.block, thread.launch, thread.shared) =
                (local as u16, serial, number, shared);
            members.push(member);
            self.wake(member);
        }
        self.blocks.push(Block {
            launch,
            uses,
            device: at as u16,
            index,
            members,
            live: count,
            barriers: Default::default(),
            passed: 0,
        });
    }

    fn exit(&mut self, number: u32) -> Result<(), Box<Finding>> {
        self.suspend(number);
        self.model.progress = self.model.now;
        let thread = &mut self.threads[number as usize];
        thread.state = State::Exited;
        let serial = thread.block as usize;
        let warp = thread.index / WARP as u16;
        let at = usize::from(thread.device);
        let event = (thread.number, thread.events);
        // What comes next on the stream comes after all threads of this launch.
        self.devices[at].knowledge.merge(&thread.knowledge);
        self.devices[at].knowledge.raise(event);
        self.release_warp(serial, warp);
        let block = &mut self.blocks[serial];
        block.live -= 1;
        let live = block.live;
        if live > 0 {
            let deserted = block.barriers.iter().position(|barrier| barrier.is_deserted(live));
            if let Some(id) = deserted {
                let gone = block.members.len() as u32 - live;
                let text = format!("threads wait at barrier {id}, but {gone} have exited");
                return Err(self.diverged(serial, &text));
            }
            return Ok(());
        }
        let Some(running) = &mut self.devices[at].running else { return Ok(()) };
        running.live -= 1;
        let over = running.live == 0 && running.next_block == running.blocks;
        self.next_block(at);
        if over {
            let device = &mut self.devices[at];
            device.ended += 1;
            device.running = None;
            device.knowledge.raise((device.stream, device.ended));
            self.next_launch(at);
        }
        Ok(())
    }

    /// A thread has come to a barrier.
    fn arrive(&mut self, number: u32) -> Result<(), Box<Finding>> {
        let thread = &self.threads[number as usize];
        let serial = thread.block as usize;
        let launch = self.blocks[serial].launch.clone();
        let Op::Barrier(barrier) = &launch.kernel.code[thread.pc as usize].op else { return Ok(()) };
        let value = |slot: Slot| thread.slots[usize::from(slot)];
        let id = value(barrier.id) as u32 as usize;
        let truth = (value(barrier.p) ^ u64::from(barrier.negate)) & 1 == 1;
        let count = barrier.count.map(|count| value(count) as u32);
        let view = thread.view();
        let block = &mut self.blocks[serial];
        let all = block.members.len() as u32;
        let expected = count.unwrap_or(all).min(all);
        let Some(state) = block.barriers.get_mut(id) else {
            return Err(self.diverged(serial, &format!("barrier {id} does not exist")));
        };
        if count.is_some_and(|count| count == 0 || !count.is_multiple_of(WARP))
            || state.arrived > 0 && state.expected != expected
        {
            let text = format!("threads expect different counts at barrier {id}, or none");
            return Err(self.diverged(serial, &text));
        }
        state.expected = expected;
        state.everyone = expected == all;
        state.arrived += 1;
        state.views.push(view);
        if barrier.kind != BarrierKind::Arrive {
            state.waiting.push((number, barrier.d, barrier.kind));
        }
        state.votes.add(barrier.kind, truth);
        let complete = state.arrived >= expected;
        if !complete && state.is_deserted(block.live) {
            let gone = all - block.live;
            return Err(
                self.diverged(serial, &format!("a thread comes to barrier {id}, but {gone} have exited"))
            );
        }
        if barrier.kind == BarrierKind::Arrive {
            self.threads[number as usize].pc += 1;
        } else {
            self.threads[number as usize].state = State::AtBarrier(id as u8);
            self.suspend(number);
        }
        if complete {
            self.model.progress = self.model.now;
            let state = std::mem::take(&mut self.blocks[serial].barriers[id]);
            self.blocks[serial].passed += 1;
            let knowledge = joined(&state.views);
            for (waiter, d, kind) in state.waiting {
                let thread = &mut self.threads[waiter as usize];
                if let Some(result) = state.votes.result(kind) {
                    thread.set(d, result);
                }
                thread.pass(&knowledge);
                self.model.trace.pass(self.model.now, thread.who(thread.pc), id as u64);
                thread.pc += 1;
                self.wake(waiter);
            }
        }
        Ok(())
    }

    /// Lets the lanes of a warp go whose partners have all come, or exited.
    fn release_warp(&mut self, serial: usize, warp: u16) {
        let lanes: Vec<u32> =
            self.blocks[serial].members.chunks(WARP as usize).nth(usize::from(warp)).unwrap_or(&[]).into();
        for at in 0..lanes.len() {
            let State::AtWarpBarrier(mask) = self.threads[lanes[at] as usize].state else { continue };
            let group: Vec<u32> = (0..lanes.len())
                .filter(|lane| mask >> lane & 1 == 1 || *lane == at)
                .map(|lane| lanes[lane])
                .filter(|&lane| self.threads[lane as usize].state != State::Exited)
                .collect();
            let there = |&lane: &u32| matches!(self.threads[lane as usize].state, State::AtWarpBarrier(_));
            if group.iter().all(there) {
                // `bar.warp.sync` orders the memory accesses of those that take part.
                let views: Vec<View> = group.iter().map(|&lane| self.threads[lane as usize].view()).collect();
                let knowledge = joined(&views);
                for lane in group {
                    self.threads[lane as usize].pass(&knowledge);
                    self.wake(lane);
                }
            }
        }
    }

    /// Adds to a race how near the two came to an edge: what the second's block read of the first's device.
    fn with_edges(&self, mut finding: Box<Finding>) -> Box<Finding> {
        let Some((first, second)) = finding.pair else { return finding };
        let members = self.blocks[second.block as usize].members.iter();
        let all = members.flat_map(|&member| self.threads[member as usize].unsynchronized.iter());
        // The racing read itself explains nothing.
        let near: Vec<_> = all
            .filter(|read| read.of.who.device == first.device && !finding.words.contains(&read.word))
            .collect();
        for read in near.iter().take(3) {
            finding.story += &no_edge(&self.model.book, &self.model.memory, read);
            finding.threads.push(read.at.event.0);
            finding.words.push(read.word);
        }
        finding
    }

    fn fault(&self, number: u32, kind: &FaultKind) -> Box<Finding> {
        let thread = &self.threads[number as usize];
        let who = thread.who(thread.pc);
        let book = &self.model.book;
        let [x, y, z] = self.blocks[thread.block as usize].launch.thread_index(thread.index.into());
        let story = format!("{kind}\n  {} ({x}, {y}, {z})\n    {}", book.name(&who), book.place(&who));
        Box::new(Finding {
            kind: ReportKind::Fault,
            story,
            threads: vec![number],
            words: Vec::new(),
            pair: None,
        })
    }

    fn diverged(&self, serial: usize, text: &str) -> Box<Finding> {
        let block = &self.blocks[serial];
        let mut story = format!("{text}\n  block {:?} of device {}\n", block.index, block.device);
        let waiting = |&&member: &&u32| !matches!(self.threads[member as usize].state, State::Exited);
        for &member in block.members.iter().filter(waiting).take(4) {
            let thread = &self.threads[member as usize];
            let who = thread.who(thread.pc);
            let book = &self.model.book;
            story += &format!("  {}\n    {}\n", book.name(&who), book.place(&who));
        }
        let threads = block.members.iter().copied().filter(|member| waiting(&member)).take(4).collect();
        Box::new(Finding {
            kind: ReportKind::BarrierDivergence,
            story,
            threads,
            words: Vec::new(),
            pair: None,
        })
    }
}

/// What all know together.
fn joined(views: &[View]) -> Knowledge {
    let mut knowledge = Knowledge::default();
    let mut last: Option<&Knowledge> = None;
    for view in views {
        if last.is_none_or(|last| !last.is_same(&view.knowledge)) {
            knowledge.merge(&view.knowledge);
        }
        last = Some(&view.knowledge);
    }
    views.iter().for_each(|view| knowledge.raise(view.at));
    knowledge
}
