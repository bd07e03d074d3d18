//! The interpreter: values as in the other executors, and beside each the moment from which it is there.
use std::ops::Range;
use std::sync::Arc;

use super::graph::{ENTRY, Graph, Moment, Who};
use super::length::StepKind;
use super::memory::{Memory, Owner, Place, Words, scalar};
use meshreduce_emulator_ptx::semantics::convert::extend;
use meshreduce_emulator_ptx::types::{Order, Scope, Space};
use meshreduce_emulator_ptx::{
    Access, Address, Atomic, Guard, Launch, Load, Op, Slot, Store, compute, window,
};

/// Instructions in a row after which a thread does not end.
const STRAIGHT: u64 = 10_000_000;
/// Addresses that a wait may look at in one turn.
const LOOKS: usize = 256;

/// A launch, and by instruction the slots that it reads and writes.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) launch: Arc<Launch>,
    uses: Vec<(Vec<Slot>, Vec<Slot>)>,
}

impl Code {
    pub(super) fn new(launch: Arc<Launch>) -> Self {
        let uses = launch.kernel.code.iter().map(|step| {
            let (mut reads, mut writes) = (Vec::new(), Vec::new());
            step.clone().visit(&mut |slot, access| match access {
                Access::Read => reads.push(*slot),
                Access::Write => writes.push(*slot),
            });
            (reads, writes)
        });
        Self { uses: uses.collect(), launch }
    }
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) memory: Memory,
    pub(super) graph: Graph,
    /// Addresses whose stores are results.
    pub(super) results: Vec<Range<u64>>,
    /// The last store of a result so far.
    pub(super) result: Option<Moment>,
    pub(super) instructions: u64,
}

/// Why a thread stopped running.
pub(super) enum StopReason {
    /// It is about to look at what others may store.
    Look,
    Barrier,
    WarpBarrier(u32),
    Exited,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Runnable,
    Looking,
    AtBarrier,
    AtWarpBarrier(u32),
    Exited,
}

#[derive(Debug)]
pub(super) struct Thread {
    pub(super) who: Who,
    pub(super) pc: usize,
    pub(super) state: State,
    pub(super) slots: Vec<u64>,
    pub(super) moments: Vec<Moment>,
    local: Words,
    /// When the thread is where it is: its branches.
    pub(super) control: Moment,
    /// When all stores are done that a fence would wait for.
    pub(super) stored: Moment,
    loaded: Moment,
    /// Addresses that the thread has looked at, in order, with the control before the first look.
    looks: Vec<(u64, Moment)>,
    /// It may look once.
    may_look: bool,
}

impl Thread {
    pub(super) fn new(who: Who, slots: Vec<u64>, local_bytes: usize) -> Self {
        Self {
            who,
            pc: 0,
            state: State::Runnable,
            moments: vec![ENTRY; slots.len()],
            slots,
            local: Words::new(vec![0; local_bytes]),
            control: ENTRY,
            stored: ENTRY,
            loaded: ENTRY,
            looks: Vec::new(),
            may_look: false,
        }
    }

    /// Lets a thread go that was about to look.
    pub(super) fn look(&mut self) {
        self.state = State::Runnable;
        self.may_look = true;
    }

    /// Lets a thread go that was at a barrier, which it left at `moment`.
    pub(super) fn pass(&mut self, moment: Moment, stored: Moment, graph: &Graph) {
        self.state = State::Runnable;
        self.control = graph.later(self.control, moment);
        self.stored = graph.later(self.stored, stored);
        self.looks.clear();
    }

    pub(super) fn set(&mut self, slot: Slot, value: u64, moment: Moment) {
        self.slots[usize::from(slot)] = value;
        self.moments[usize::from(slot)] = moment;
    }

    fn get(&self, slot: Slot) -> u64 {
        self.slots[usize::from(slot)]
    }

    fn moment(&self, slots: &[Slot], graph: &Graph) -> Moment {
        slots.iter().fold(ENTRY, |latest, &slot| graph.later(latest, self.moments[usize::from(slot)]))
    }

    /// The moment at which the instruction at `pc` can begin that waits for control.
    pub(super) fn begin(&self, code: &Code, graph: &Graph) -> Moment {
        graph.later(self.control, self.moment(&code.uses[self.pc].0, graph))
    }

    fn who(&self) -> Who {
        Who { pc: self.pc as u32, ..self.who }
    }

    /// Runs until the thread must stop.
    ///
    /// # Errors
    /// What it must not do.
    pub(super) fn run(
        &mut self,
        world: &mut World,
        code: &Code,
        shared: &mut Words,
    ) -> Result<StopReason, String> {
        let launch = &code.launch;
        let mut left = STRAIGHT;
        loop {
            left = left.checked_sub(1).ok_or_else(|| format!("no end after {STRAIGHT} instructions"))?;
            world.instructions += 1;
            let step = &launch.kernel.code[self.pc];
            let (reads, writes) = &code.uses[self.pc];
            if let (Guard::If(p) | Guard::Unless(p), false) = (step.guard, step.guard.holds(&self.slots)) {
                let guard = self.moments[usize::from(p)];
                if matches!(
                    step.op,
                    Op::Branch { .. } | Op::BranchTable { .. } | Op::Barrier(_) | Op::Exit | Op::Trap
                ) {
                    self.control = world.graph.later(self.control, guard);
                }
                // What keeps its value does so because of the guard.
                for &slot in writes {
                    let moment = &mut self.moments[usize::from(slot)];
                    *moment = world.graph.later(*moment, guard);
                }
                self.pc += 1;
                continue;
            }
            match &step.op {
                Op::Load(load) => {
                    if self.must_wait(load.target.space, load.order, load.target.base) {
                        return Ok(StopReason::Look);
                    }
                    self.load(world, code, shared, load)?;
                }
                Op::Store(store) => self.store(world, code, shared, store)?,
                Op::Atomic(atomic) => {
                    // One without a result sees nothing.
                    let order = if atomic.d.is_some() { atomic.order } else { Order::Weak };
                    if self.must_wait(atomic.target.space, order, atomic.target.base) {
                        return Ok(StopReason::Look);
                    }
                    self.atomic(world, code, shared, atomic)?;
                }
                Op::Fence { scope, .. } => self.fence(world, *scope),
                Op::Branch { target } => {
                    self.control = self.begin(code, &world.graph);
                    self.pc = *target as usize;
                    continue;
                }
                Op::BranchTable { index, targets } => {
                    self.control = self.begin(code, &world.graph);
                    let index = self.get(*index) as u32 as usize;
                    self.pc = targets[index.min(targets.len() - 1)] as usize;
                    continue;
                }
                Op::Clock { d, .. } => self.set(*d, world.instructions, self.control),
                Op::Sleep | Op::Nothing => {}
                Op::Trap => return Err("trap".to_owned()),
                Op::Exit => return Ok(StopReason::Exited),
                Op::Barrier(_) => return Ok(StopReason::Barrier),
                Op::WarpBarrier { a } => {
                    let mask = self.get(*a) as u32;
                    self.control = self.begin(code, &world.graph);
                    self.pc += 1;
                    return Ok(StopReason::WarpBarrier(mask));
                }
                arithmetic => {
                    let moment = self.moment(reads, &world.graph);
                    compute(arithmetic, &mut self.slots);
                    writes.iter().for_each(|&slot| self.moments[usize::from(slot)] = moment);
                }
            }
            self.pc += 1;
        }
    }

    /// Whether a thread must stop before an access that may see what others store.
    fn must_wait(&mut self, space: Space, order: Order, base: Slot) -> bool {
        let global = match space {
            Space::Global => true,
            Space::Generic => window::of(self.get(base)) == Space::Global,
            _ => false,
        };
        global && order.is_strong() && !std::mem::take(&mut self.may_look)
    }

    /// The space and the aligned address in it.
    fn resolve(&self, target: &Address, bytes: usize) -> Result<(Space, u64), String> {
        let address = target.of(&self.slots);
        if !address.is_multiple_of(bytes as u64) {
            return Err(format!("{bytes} bytes at {address:#x}, which is not aligned to them"));
        }
        Ok(window::resolve(target.space, address))
    }

    fn load(
        &mut self,
        world: &mut World,
        code: &Code,
        shared: &mut Words,
        load: &Load,
    ) -> Result<(), String> {
        let Load { target, order, ty, lanes, d, .. } = load;
        let each = ty.bytes() as usize;
        let bytes = each * usize::from(*lanes);
        let (space, address) = self.resolve(target, bytes)?;
        let read = |memory: &[u8], at: usize| -> Vec<u64> {
            (0..usize::from(*lanes)).map(|lane| scalar(memory, at + lane * each, each)).collect()
        };
        let (values, moment) = match space {
            Space::Param | Space::Const => {
                let memory: &[u8] = match space {
                    Space::Param => &code.launch.params,
                    _ => &code.launch.kernel.constant_memory,
                };
                let values = read(memory, range(address, bytes, memory)?);
                (values, self.moment(&code.uses[self.pc].0, &world.graph))
            }
            Space::Shared | Space::Local => {
                let memory = if space == Space::Shared { &*shared } else { &self.local };
                let at = range(address, bytes, memory.all())?;
                let there = memory.moment(at, bytes, &world.graph);
                (read(memory.all(), at), world.graph.later(self.begin(code, &world.graph), there))
            }
            Space::Global | Space::Generic => {
                if order.is_strong() {
                    self.looked(address);
                }
                let place = world.memory.find(address, bytes)?;
                let words = world.memory.words(place);
                let there = words.moment(place.at, bytes, &world.graph);
                let values = read(words.all(), place.at);
                let from = world.graph.later(self.begin(code, &world.graph), there);
                let kind = self.kind(place, StepKind::Load, StepKind::RemoteLoad);
                let moment = world.graph.step(from, kind, self.who(), address);
                self.loaded = world.graph.later(self.loaded, moment);
                if matches!(order, Order::Acquire | Order::AcqRel | Order::SeqCst) {
                    self.control = world.graph.later(self.control, moment);
                }
                (values, moment)
            }
        };
        for (slot, value) in d.iter().zip(values) {
            self.set(*slot, extend(value, *ty), moment);
        }
        Ok(())
    }

    /// Takes note of a look at `address`: what was done since an earlier look at it was the same wait.
    fn looked(&mut self, address: u64) {
        match self.looks.iter().position(|(known, _)| *known == address) {
            Some(at) => {
                self.control = self.looks[at].1;
                self.looks.truncate(at + 1);
            }
            None if self.looks.len() < LOOKS => self.looks.push((address, self.control)),
            None => {}
        }
    }

    fn store(
        &mut self,
        world: &mut World,
        code: &Code,
        shared: &mut Words,
        store: &Store,
    ) -> Result<(), String> {
        let Store { target, order, scope, ty, lanes, a, .. } = store;
        let each = ty.bytes() as usize;
        let bytes = each * usize::from(*lanes);
        let (space, address) = self.resolve(target, bytes)?;
        let values: Vec<u64> = a[..usize::from(*lanes)].iter().map(|&slot| self.get(slot)).collect();
        let write = |words: &mut Words, at: usize| {
            values.iter().enumerate().for_each(|(lane, &value)| words.store(at + lane * each, each, value));
        };
        match space {
            Space::Param | Space::Const => return Err(format!("a store to {space:?} memory")),
            Space::Shared | Space::Local => {
                let begin = self.begin(code, &world.graph);
                let memory = if space == Space::Shared { shared } else { &mut self.local };
                let at = range(address, bytes, memory.all())?;
                write(memory, at);
                memory.set_moment(at, bytes, begin, &world.graph);
            }
            Space::Global | Space::Generic => {
                let place = world.memory.find(address, bytes)?;
                if matches!(order, Order::Release | Order::SeqCst) {
                    self.fence(world, *scope);
                }
                let begin = self.begin(code, &world.graph);
                write(world.memory.words(place), place.at);
                self.posted(world, place, begin, address, bytes);
            }
        }
        Ok(())
    }

    /// A store or an atomic without a result that begins at `begin`.
    fn posted(&mut self, world: &mut World, place: Place, begin: Moment, address: u64, bytes: usize) {
        let own = place.owner == Owner::Device(self.who.device);
        let done = self.kind(place, StepKind::Store, StepKind::Acknowledged);
        let done = world.graph.step(begin, done, self.who(), address);
        let there = match place.owner {
            _ if own => begin,
            Owner::Host => done,
            Owner::Device(_) => world.graph.step(begin, StepKind::Way, self.who(), address),
        };
        world.memory.allocations[place.allocation].1.set_moment(place.at, bytes, there, &world.graph);
        self.stored = world.graph.later(self.stored, done);
        self.looks.clear();
        if world.results.iter().any(|range| range.contains(&address)) {
            let end = if own { done } else { there };
            world.result = Some(world.result.map_or(end, |known| world.graph.later(known, end)));
        }
    }

    fn atomic(
        &mut self,
        world: &mut World,
        code: &Code,
        shared: &mut Words,
        atomic: &Atomic,
    ) -> Result<(), String> {
        let Atomic { target, order, scope, op, ty, d, a, b } = atomic;
        let bytes = ty.bytes() as usize;
        let (space, address) = self.resolve(target, bytes)?;
        let (x, y) = (self.get(*a), self.get(*b));
        let update = |words: &mut Words, at: usize| {
            let old = scalar(words.all(), at, bytes);
            words.store(at, bytes, op.apply(*ty, old, x, y));
            old
        };
        match space {
            Space::Param | Space::Const | Space::Local => {
                return Err(format!("an atomic on {space:?} memory"));
            }
            Space::Shared => {
                let at = range(address, bytes, shared.all())?;
                let there = shared.moment(at, bytes, &world.graph);
                let moment = world.graph.later(self.begin(code, &world.graph), there);
                let old = update(shared, at);
                shared.set_moment(at, bytes, moment, &world.graph);
                if let Some(d) = d {
                    self.set(*d, extend(old, *ty), moment);
                }
            }
            Space::Global | Space::Generic => {
                let place = world.memory.find(address, bytes)?;
                if matches!(order, Order::Release | Order::AcqRel | Order::SeqCst) {
                    self.fence(world, *scope);
                }
                let words = world.memory.words(place);
                let there = words.moment(place.at, bytes, &world.graph);
                let old = update(words, place.at);
                let begin = world.graph.later(self.begin(code, &world.graph), there);
                self.posted(world, place, begin, address, bytes);
                if let Some(d) = d {
                    let kind = self.kind(place, StepKind::Atomic, StepKind::RemoteAtomic);
                    let moment = world.graph.step(begin, kind, self.who(), address);
                    self.set(*d, extend(old, *ty), moment);
                    self.loaded = world.graph.later(self.loaded, moment);
                    if matches!(order, Order::Acquire | Order::AcqRel | Order::SeqCst) {
                        self.control = world.graph.later(self.control, moment);
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for everything before, if the scope is wider than a block.
    fn fence(&mut self, world: &mut World, scope: Scope) {
        let kind = match scope {
            Scope::Cta => return,
            Scope::Cluster | Scope::Gpu => StepKind::GpuFence,
            Scope::Sys => StepKind::SystemFence,
        };
        let before = world.graph.later(self.control, world.graph.later(self.stored, self.loaded));
        self.control = world.graph.step(before, kind, self.who(), 0);
    }

    /// The kind of an access by whose memory it is.
    fn kind(&self, place: Place, own: StepKind, remote: StepKind) -> StepKind {
        match place.owner {
            Owner::Device(device) if device == self.who.device => own,
            Owner::Device(_) => remote,
            Owner::Host => StepKind::Host,
        }
    }
}

/// The offset of a range in memory that has no other addresses.
fn range(address: u64, bytes: usize, memory: &[u8]) -> Result<usize, String> {
    let size = memory.len();
    match address.checked_add(bytes as u64) {
        Some(end) if end <= size as u64 => Ok(address as usize),
        _ => Err(format!("offset {address} of {size} bytes")),
    }
}
