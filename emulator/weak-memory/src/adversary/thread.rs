//! A thread: registers, open loads, and what it knows; and the interpreter's loop.

use std::sync::Arc;

use super::history::{Access, Release, Who};
use super::late::Late;
use super::load::{LoadOf, Registers};
use super::memory::{Location, Place, WordId};
use super::model::{Model, StoreOf};
use super::pending::Pending;
use super::report::Finding;
use super::uses::Uses;
use super::view::{Event, Knowledge, View};
use meshreduce_emulator_ptx::semantics::convert::extend;
use meshreduce_emulator_ptx::types::{Clock, Order, Scope, Space};
use meshreduce_emulator_ptx::{Address, FaultKind, Launch, Load, Op, Slot, Store, compute, window};

#[derive(Debug, Default)]
pub(super) struct Thread {
    /// Its number in clocks.
    pub(super) number: u32,
    pub(super) events: u32,
    pub(super) device: u16,
    /// Index in its block.
    pub(super) index: u16,
    /// The block among all of the session, and among those that exist now.
    pub(super) block: u32,
    pub(super) launch: u32,
    pub(super) shared: u32,
    pub(super) pc: u32,
    pub(super) state: State,
    pub(super) slots: Vec<u64>,
    local: Vec<u8>,
    /// Loads whose value has not been chosen.
    pub(super) open: Vec<Pending>,
    /// Atomics that have not taken effect.
    pub(super) late: Vec<Late>,
    /// By slot: whether it waits for one of these.
    pub(super) waits: Vec<bool>,
    pub(super) knowledge: Knowledge,
    /// The last release fence of each scope.
    pub(super) fences: [Option<(Who, View)>; 4],
    /// Release operations by location.
    pub(super) released: Vec<(Location, Release)>,
    /// Release patterns that a strong read observed without acquiring them.
    pub(super) seen: Vec<(Location, Release)>,
    /// Reads that saw another thread's write but did not synchronize, for the report.
    pub(super) glimpses: Vec<Glimpse>,
    /// Strong reads in a row that brought nothing new.
    pub(super) idle: u32,
    /// The last strong reads, for the report of a wait that never ends: where, what, value.
    pub(super) polls: Vec<Poll>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Poll {
    pub(super) who: Who,
    pub(super) word: WordId,
    pub(super) mask: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    Runnable,
    AtBarrier(u8),
    AtWarpBarrier(u32),
    #[default]
    Exited,
}

/// A read that saw a write of another thread without an edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glimpse {
    pub(super) at: Who,
    pub(super) of: Access,
    pub(super) word: WordId,
    pub(super) strong: bool,
    pub(super) scope: Scope,
    pub(super) acquire: bool,
    pub(super) released: bool,
}

/// Why a thread stopped running.
#[derive(Debug)]
pub(super) enum Stop {
    /// Its share is used up.
    Budget,
    /// It reads again what it has read.
    Spinning,
    Exited,
    /// It has come to a barrier, which `pc` still points to.
    Barrier,
    WarpBarrier,
    Fault(FaultKind),
    Found(Box<Finding>),
}

/// Instructions a thread may execute between two accesses before others get a turn.
const STRAIGHT: u32 = 10_000;

impl Thread {
    pub(super) fn new(number: u32, device: u16) -> Self {
        Self { number, device, ..Self::default() }
    }

    /// Prepares the thread to run a kernel.
    pub(super) fn begin(&mut self, slots: Vec<u64>, local_bytes: usize, knowledge: Knowledge) {
        *self = Self {
            number: self.number,
            events: self.events,
            device: self.device,
            waits: vec![false; slots.len()],
            slots,
            local: vec![0; local_bytes],
            knowledge,
            state: State::Runnable,
            ..Self::default()
        };
    }

    /// The next event of this thread.
    #[inline]
    pub(super) fn event(&mut self, pc: u32) -> Who {
        self.events += 1;
        self.who(pc)
    }

    /// The last event of this thread, at `pc`.
    pub(super) fn who(&self, pc: u32) -> Who {
        Who {
            event: (self.number, self.events),
            block: self.block,
            launch: self.launch,
            pc,
            thread: self.index,
            device: self.device,
        }
    }

    pub(super) fn view(&self) -> View {
        View { at: (self.number, self.events), knowledge: self.knowledge.clone() }
    }

    /// A barrier is complete: the thread knows what all who came know.
    pub(super) fn pass(&mut self, knowledge: &Knowledge) {
        self.knowledge = knowledge.clone();
        self.state = State::Runnable;
        self.idle = 0;
        self.polls.clear();
    }

    /// Whether `event` precedes all that the thread can still read.
    pub(super) fn has_long_known(&self, event: Event) -> bool {
        let own = self.number == event.0;
        let has = |knowledge: &Knowledge, at: Event| knowledge.has_base(event) || own && at.1 > event.1;
        (own || self.knowledge.has_base(event))
            && self.open.iter().all(|open| has(&open.knowledge, open.access.who.event))
            && self.late.iter().all(|late| has(&late.knowledge, late.who.event))
    }

    #[inline]
    pub(super) fn set(&mut self, slot: Slot, value: u64) {
        self.slots[usize::from(slot)] = value;
        self.waits[usize::from(slot)] = false;
    }

    pub(super) fn glimpse(&mut self, glimpse: Glimpse) {
        let same = |known: &&mut Glimpse| known.at.pc == glimpse.at.pc && known.word == glimpse.word;
        match self.glimpses.iter_mut().find(same) {
            Some(known) => *known = glimpse,
            None => {
                if self.glimpses.len() == 16 {
                    self.glimpses.remove(0);
                }
                self.glimpses.push(glimpse);
            }
        }
    }

    /// Acquires the release patterns seen before that `which` names, and forgets those that are known.
    pub(super) fn acquire_seen(&mut self, which: impl Fn(Location, &Release) -> bool) {
        let Self { seen, knowledge, .. } = self;
        for (location, release) in seen.iter() {
            if which(*location, release) {
                knowledge.join(&release.view);
            }
        }
        seen.retain(|(_, release)| !knowledge.has_base(release.view.at));
    }

    pub(super) fn poll(&mut self, poll: Poll) {
        match self.polls.iter_mut().find(|known| known.who.pc == poll.who.pc) {
            Some(known) => *known = poll,
            None => {
                if self.polls.len() == 6 {
                    self.polls.remove(0);
                }
                self.polls.push(poll);
            }
        }
    }

    fn local_range(&self, address: u64, bytes: u32, access: &'static str) -> Result<usize, FaultKind> {
        let size = self.local.len() as u64;
        if address.checked_add(u64::from(bytes)).is_none_or(|end| end > size) {
            let nearest = format!("offset {address} of {size} bytes of local memory");
            return Err(FaultKind::OutOfBounds { access, address, bytes, nearest });
        }
        Ok(address as usize)
    }

    /// Runs until `accesses` accesses to memory that is shared are done, or the thread must stop before.
    pub(super) fn run(
        &mut self,
        model: &mut Model,
        launch: &Arc<Launch>,
        uses: &Uses,
        mut accesses: u32,
    ) -> Stop {
        let code = &launch.kernel.code[..];
        // Nobody synchronizes with what reaches no further than such a block.
        let alone = launch.block == [1; 3];
        let mut pc = self.pc as usize;
        let mut straight = STRAIGHT;
        let begin = straight;
        let mut resumed = true;
        // Others may wait for it, and it takes effect some time.
        if !self.late.is_empty()
            && (model.calm || model.chance(48))
            && let Err(stop) = self.perform(model, |_| true)
        {
            return stop;
        }
        let stop = loop {
            straight -= 1;
            if straight == 0 {
                break Stop::Budget;
            }
            let step = &code[pc];
            if !(self.open.is_empty() && self.late.is_empty()) {
                let touched = uses.of(pc).iter().any(|&slot| self.waits[usize::from(slot)]);
                if touched {
                    // Whoever waits for a load may wait long.
                    if !resumed && !model.calm && model.chance(96) {
                        break Stop::Budget;
                    }
                    if let Err(stop) = self.come_to_use(model, uses.of(pc)) {
                        break stop;
                    }
                }
            }
            resumed = false;
            if !step.guard.holds(&self.slots) {
                pc += 1;
                continue;
            }
            match &step.op {
                Op::Load(load) => match self.load(model, launch, load, pc as u32) {
                    Ok(false) => {}
                    Ok(true) => {
                        accesses = accesses.saturating_sub(1);
                        if self.idle >= 3 {
                            pc += 1;
                            break Stop::Spinning;
                        }
                        if accesses == 0 {
                            pc += 1;
                            break Stop::Budget;
                        }
                    }
                    Err(stop) => break stop,
                },
                Op::Store(store) => match self.store(model, store, pc as u32) {
                    Ok(false) => {}
                    Ok(true) => {
                        accesses = accesses.saturating_sub(1);
                        if accesses == 0 {
                            pc += 1;
                            break Stop::Budget;
                        }
                    }
                    Err(stop) => break stop,
                },
                Op::Atomic(atomic) => match self.atomic(model, atomic, pc as u32) {
                    Ok(()) => {
                        accesses = accesses.saturating_sub(1);
                        if self.idle >= 3 || accesses == 0 {
                            pc += 1;
                            break if self.idle >= 3 { Stop::Spinning } else { Stop::Budget };
                        }
                    }
                    Err(stop) => break stop,
                },
                Op::Fence { order, scope } => {
                    let acquires = (*order != Order::Release).then_some(*scope);
                    if !(alone && matches!(scope, Scope::Cta | Scope::Cluster))
                        && let Err(stop) = self.hand_on(model, acquires)
                    {
                        break stop;
                    }
                    model.fence(self, *order, *scope, pc as u32);
                }
                Op::Branch { target } => {
                    pc = *target as usize;
                    continue;
                }
                Op::BranchTable { index, targets } => {
                    let index = self.slots[usize::from(*index)] as u32 as usize;
                    pc = targets[index.min(targets.len() - 1)] as usize;
                    continue;
                }
                Op::Clock { d, clock } => {
                    // One instruction takes one nanosecond and one cycle.
                    let (Clock::Cycles | Clock::Nanoseconds) = clock;
                    let now = model.now + u64::from(begin - straight);
                    self.slots[usize::from(*d)] = now;
                }
                Op::Sleep => {
                    pc += 1;
                    break Stop::Spinning;
                }
                Op::Nothing => {}
                Op::Trap => break Stop::Fault(FaultKind::Trap),
                Op::Exit => {
                    self.bind(model, |open| open.access.strong);
                    self.open.clear();
                    break self.perform(model, |_| true).err().unwrap_or(Stop::Exited);
                }
                Op::Barrier(_) => {
                    break self.hand_on(model, None).err().unwrap_or(Stop::Barrier);
                }
                Op::WarpBarrier { a } => {
                    if let Err(stop) = self.hand_on(model, None) {
                        break stop;
                    }
                    self.state = State::AtWarpBarrier(self.slots[usize::from(*a)] as u32);
                    pc += 1;
                    break Stop::WarpBarrier;
                }
                arithmetic => compute(arithmetic, &mut self.slots),
            }
            pc += 1;
        };
        self.pc = pc as u32;
        model.now += u64::from(begin - straight);
        stop
    }

    /// The space and the address in it, of an aligned access.
    pub(super) fn resolve(
        &self,
        target: &Address,
        bytes: u32,
        access: &'static str,
    ) -> Result<(Space, u64), Stop> {
        let address = target.of(&self.slots);
        if address & u64::from(bytes - 1) != 0 {
            return Err(Stop::Fault(FaultKind::Misaligned { access, address, bytes }));
        }
        Ok(window::resolve(target.space, address))
    }

    pub(super) fn place(
        &self,
        model: &Model,
        space: Space,
        address: u64,
        bytes: u32,
        access: &'static str,
    ) -> Result<Place, Stop> {
        let place = match space {
            Space::Shared => model.memory.hidden_place(self.shared, address, bytes),
            _ => model.memory.place(address, bytes),
        };
        place.map_err(|nearest| Stop::Fault(FaultKind::OutOfBounds { access, address, bytes, nearest }))
    }

    /// A load, lane by lane in any order. Returns whether others could notice it.
    fn load(&mut self, model: &mut Model, launch: &Launch, load: &Load, pc: u32) -> Result<bool, Stop> {
        let Load { target, order, scope, noncoherent, ty, lanes, whole, d } = load;
        let bytes = ty.bytes();
        let lanes = usize::from(*lanes);
        let (space, address) = self.resolve(target, bytes * lanes as u32, "load")?;
        match space {
            Space::Local | Space::Const | Space::Param => {
                for (lane, slot) in d[..lanes].iter().enumerate() {
                    let at = address + (lane as u64 * u64::from(bytes));
                    let memory: &[u8] = match space {
                        Space::Local => &self.local,
                        Space::Const => &launch.kernel.constant_memory,
                        _ => &launch.params,
                    };
                    let Some(from) = memory.get(at as usize..).and_then(|from| from.get(..bytes as usize))
                    else {
                        let nearest = format!("offset {at} of {} bytes", memory.len());
                        let access = "load";
                        return Err(Stop::Fault(FaultKind::OutOfBounds { access, address, bytes, nearest }));
                    };
                    let mut word = [0; 8];
                    word[..bytes as usize].copy_from_slice(from);
                    self.slots[usize::from(*slot)] = extend(u64::from_le_bytes(word), *ty);
                }
                Ok(false)
            }
            _ => {
                // The lanes of a vector are scalars of their own; two registers may also hold one.
                let (scalars, bytes) = if *whole { (1, 2 * bytes) } else { (lanes, bytes) };
                let first = if scalars > 1 { model.below(scalars) } else { 0 };
                for lane in 0..scalars {
                    let lane = (lane + first) % scalars;
                    let at = address + (lane as u64 * u64::from(bytes));
                    let place = self.place(model, space, at, bytes, "load")?;
                    self.come_to(model, place.location())?;
                    let (order, scope) = (*order, strong_scope(*order, *scope));
                    if order.is_strong() {
                        self.poll(Poll { who: self.who(pc), word: place.word, mask: place.mask });
                    }
                    let to = Registers { low: d[lane], high: whole.then_some(d[1]) };
                    let load = LoadOf { place, order, scope, noncoherent: *noncoherent, ty: *ty, to, pc };
                    model.load(self, load).map_err(Stop::Found)?;
                }
                Ok(true)
            }
        }
    }

    fn store(&mut self, model: &mut Model, store: &Store, pc: u32) -> Result<bool, Stop> {
        let Store { target, order, scope, ty, lanes, whole, a } = store;
        let bytes = ty.bytes();
        let lanes = usize::from(*lanes);
        let (space, address) = self.resolve(target, bytes * lanes as u32, "store")?;
        if space == Space::Local {
            for (lane, slot) in a[..lanes].iter().enumerate() {
                let at = address + (lane as u64 * u64::from(bytes));
                let at = self.local_range(at, bytes, "store").map_err(Stop::Fault)?;
                let value = self.slots[usize::from(*slot)].to_le_bytes();
                self.local[at..][..bytes as usize].copy_from_slice(&value[..bytes as usize]);
            }
            return Ok(false);
        }
        if *order == Order::Release {
            self.hand_on(model, None)?;
        }
        let (scalars, bytes) = if *whole { (1, 2 * bytes) } else { (lanes, bytes) };
        let first = if scalars > 1 { model.below(scalars) } else { 0 };
        for lane in 0..scalars {
            let lane = (lane + first) % scalars;
            let at = address + (lane as u64 * u64::from(bytes));
            let place = self.place(model, space, at, bytes, "store")?;
            self.come_to(model, place.location())?;
            let high = if *whole { u128::from(self.slots[usize::from(a[1])]) << 64 } else { 0 };
            let bits = u128::from(self.slots[usize::from(a[lane])]) | high;
            let store = StoreOf { place, order: *order, scope: strong_scope(*order, *scope), pc };
            model.store(self, store, bits).map_err(Stop::Found)?;
        }
        Ok(true)
    }
}

/// `.volatile` is relaxed at system scope (PTX ISA, "ld.volatile").
fn strong_scope(order: Order, scope: Scope) -> Scope {
    if order == Order::Volatile { Scope::Sys } else { scope }
}
