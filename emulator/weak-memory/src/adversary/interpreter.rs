//! The interpreter's loop, and the accesses that it makes.

use std::sync::Arc;

use super::load::LoadOf;
use super::model::{Model, StoreOf};
use super::pending::Registers;
use super::thread::{Poll, State, StopReason, Thread};
use super::uses::Uses;
use meshreduce_emulator_ptx::semantics::convert::extend;
use meshreduce_emulator_ptx::types::{Clock, Order, Scope, Space};
use meshreduce_emulator_ptx::{FaultKind, Launch, Load, Op, Store, compute};

/// Instructions a thread may execute between two accesses before others get a turn.
const STRAIGHT: u32 = 10_000;

impl Thread {
    /// Runs until `accesses` accesses to memory that is shared are done, or the thread must stop before.
    pub(super) fn run(
        &mut self,
        model: &mut Model,
        launch: &Arc<Launch>,
        uses: &Uses,
        mut accesses: u32,
    ) -> StopReason {
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
                break StopReason::Budget;
            }
            let step = &code[pc];
            if !(self.open.is_empty() && self.late.is_empty()) {
                let touched = uses.of(pc).iter().any(|&slot| self.waits[usize::from(slot)]);
                if touched {
                    // Whoever waits for a load may wait long.
                    if !resumed && !model.calm && model.chance(96) {
                        break StopReason::Budget;
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
                            break StopReason::Spinning;
                        }
                        if accesses == 0 {
                            pc += 1;
                            break StopReason::Budget;
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
                            break StopReason::Budget;
                        }
                    }
                    Err(stop) => break stop,
                },
                Op::Atomic(atomic) => match self.atomic(model, atomic, pc as u32) {
                    Ok(()) => {
                        accesses = accesses.saturating_sub(1);
                        if self.idle >= 3 || accesses == 0 {
                            pc += 1;
                            break if self.idle >= 3 { StopReason::Spinning } else { StopReason::Budget };
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
                    break StopReason::Spinning;
                }
                Op::Nothing => {}
                Op::Trap => break StopReason::Fault(FaultKind::Trap),
                Op::Exit => {
                    self.bind(model, |open| open.access.strong);
                    self.open.clear();
                    break self.perform(model, |_| true).err().unwrap_or(StopReason::Exited);
                }
                Op::Barrier(_) => {
                    break self.hand_on(model, None).err().unwrap_or(StopReason::Barrier);
                }
                Op::WarpBarrier { a } => {
                    if let Err(stop) = self.hand_on(model, None) {
                        break stop;
                    }
                    self.state = State::AtWarpBarrier(self.slots[usize::from(*a)] as u32);
                    pc += 1;
                    break StopReason::WarpBarrier;
                }
                arithmetic => compute(arithmetic, &mut self.slots),
            }
            pc += 1;
        };
        self.pc = pc as u32;
        model.now += u64::from(begin - straight);
        stop
    }

    /// A load, lane by lane in any order. Returns whether others could notice it.
    fn load(&mut self, model: &mut Model, launch: &Launch, load: &Load, pc: u32) -> Result<bool, StopReason> {
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
                        return Err(StopReason::Fault(FaultKind::OutOfBounds {
                            access,
                            address,
                            bytes,
                            nearest,
                        }));
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
                    let place = self.place(&model.memory, space, at, bytes, "load")?;
                    self.come_to(model, place.location())?;
                    let (order, scope) = (*order, strong_scope(*order, *scope));
                    if order.is_strong() {
                        self.poll(Poll { who: self.who(pc), word: place.word, mask: place.mask });
                    }
                    let to = Registers { low: d[lane], high: whole.then_some(d[1]) };
                    let load = LoadOf { place, order, scope, noncoherent: *noncoherent, ty: *ty, to, pc };
                    model.load(self, load).map_err(StopReason::Found)?;
                }
                Ok(true)
            }
        }
    }

    fn store(&mut self, model: &mut Model, store: &Store, pc: u32) -> Result<bool, StopReason> {
        let Store { target, order, scope, ty, lanes, whole, a } = store;
        let bytes = ty.bytes();
        let lanes = usize::from(*lanes);
        let (space, address) = self.resolve(target, bytes * lanes as u32, "store")?;
        if space == Space::Local {
            for (lane, slot) in a[..lanes].iter().enumerate() {
                let at = address + (lane as u64 * u64::from(bytes));
                let at = self.local_range(at, bytes, "store").map_err(StopReason::Fault)?;
                let value = self.slots[usize::from(*slot)].to_le_bytes();
                self.local[at..][..bytes as usize].copy_from_slice(&value[..bytes as usize]);
            }
            return Ok(false);
        }
        if *order == Order::Release {
            self.hand_on(model, None)?;
        }
        let (scalars, bytes) = if *whole { (1, 2 * bytes) } else { (lanes, bytes) };
        if model.acquirers > 0 && order.is_strong() {
            for lane in 0..scalars {
                let at = address + (lane as u64 * u64::from(bytes));
                let place = self.place(&model.memory, space, at, bytes, "store")?;
                self.let_acquirers_go(model, &place, *order, false)?;
            }
        }
        let first = if scalars > 1 { model.below(scalars) } else { 0 };
        for lane in 0..scalars {
            let lane = (lane + first) % scalars;
            let at = address + (lane as u64 * u64::from(bytes));
            let place = self.place(&model.memory, space, at, bytes, "store")?;
            self.come_to(model, place.location())?;
            let high = if *whole { u128::from(self.slots[usize::from(a[1])]) << 64 } else { 0 };
            let bits = u128::from(self.slots[usize::from(a[lane])]) | high;
            let store = StoreOf { place, order: *order, scope: strong_scope(*order, *scope), pc };
            model.store(self, store, bits).map_err(StopReason::Found)?;
        }
        Ok(true)
    }
}

/// `.volatile` is relaxed at system scope (PTX ISA, "ld.volatile").
fn strong_scope(order: Order, scope: Scope) -> Scope {
    if order == Order::Volatile { Scope::Sys } else { scope }
}
