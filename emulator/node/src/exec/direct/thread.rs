//! The interpreter: one thread, until it must wait.

use std::sync::atomic::{Ordering, fence};

use super::barrier::Waiter;
use super::memory::Request;
use super::{DirectBlock, State, StopReason};
use crate::exec::interface::AddressSpace;
use meshreduce_emulator_ptx::semantics::convert::extend;
use meshreduce_emulator_ptx::types::{Clock, Space};
use meshreduce_emulator_ptx::{
    Atomic, Barrier, BarrierKind, FaultKind, Load, Op, Slot, Store, WARP, compute,
};

impl DirectBlock {
    /// Runs `thread` until it waits, spins or faults, or the block's clock reaches `end`.
    pub(super) fn run_thread(&mut self, thread: u32, device: &dyn AddressSpace, end: u64) -> StopReason {
        let launch = self.launch.clone();
        let code = &launch.kernel.code[..];
        let base = self.slots_per_thread * thread as usize;
        let mut pc = self.threads[thread as usize].pc as usize;
        self.spin.begin(self.threads[thread as usize].spun);
        let slots = &mut self.slots[base..base + self.slots_per_thread];
        let memory = &mut self.memory;
        let spin = &mut self.spin;
        let mut now = self.executed;
        let stop = loop {
            if now >= end {
                break StopReason::Budget;
            }
            let step = &code[pc];
            now += 1;
            if !step.guard.holds(slots) {
                pc += 1;
                continue;
            }
            macro_rules! get {
                ($slot:expr) => {
                    slots[usize::from($slot)]
                };
            }
            match &step.op {
                // One arm each, so that in each the compiler knows the instruction and both matches become one jump.
                op @ Op::Move { .. } => compute(op, slots),
                op @ Op::Unary { .. } => compute(op, slots),
                op @ Op::Binary { .. } => compute(op, slots),
                op @ Op::Ternary { .. } => compute(op, slots),
                op @ Op::Quaternary { .. } => compute(op, slots),
                op @ Op::Select { .. } => compute(op, slots),
                op @ Op::Pair { .. } => compute(op, slots),
                op @ Op::SetPredicate { .. } => compute(op, slots),
                op @ Op::Pack { .. } => compute(op, slots),
                op @ Op::Unpack { .. } => compute(op, slots),
                Op::Load(Load { target, order, ty, lanes, whole, d, .. }) => {
                    let address = target.of(slots);
                    let bytes = ty.bytes();
                    let request = Request {
                        space: target.space,
                        address,
                        bytes: bytes * u32::from(*lanes),
                        site: target.site,
                        thread,
                        access: "load",
                    };
                    let place = match memory.resolve(device, &launch, request) {
                        Ok(place) => place,
                        Err(kind) => break StopReason::Fault(kind),
                    };
                    let mut seen = 0u64;
                    if *whole {
                        let bits = memory.load_b128(&launch, place, *order);
                        (get!(d[0]), get!(d[1])) = (bits as u64, (bits >> 64) as u64);
                        seen = bits as u64 ^ (bits >> 64) as u64;
                    } else {
                        for (lane, slot) in d[..usize::from(*lanes)].iter().enumerate() {
                            let bits = memory.load(&launch, place, lane * bytes as usize, bytes, *order);
                            get!(*slot) = extend(bits, *ty);
                            seen = seen.rotate_left(7) ^ bits;
                        }
                    }
                    if (order.is_strong() || spin.polling)
                        && !matches!(target.space, Space::Param | Space::Local | Space::Const)
                        && spin.note(now, pc as u32, address, seen)
                    {
                        pc += 1;
                        break StopReason::Spinning;
                    }
                }
                Op::Store(Store { target, order, ty, lanes, whole, a, .. }) => {
                    let address = target.of(slots);
                    let bytes = ty.bytes();
                    let request = Request {
                        space: target.space,
                        address,
                        bytes: bytes * u32::from(*lanes),
                        site: target.site,
                        thread,
                        access: "store",
                    };
                    let place = match memory.resolve(device, &launch, request) {
                        Ok(place) => place,
                        Err(kind) => break StopReason::Fault(kind),
                    };
                    let mut written = 0u64;
                    if *whole {
                        let bits = u128::from(get!(a[0])) | u128::from(get!(a[1])) << 64;
                        memory.store_b128(place, bits, *order);
                        written = bits as u64 ^ (bits >> 64) as u64;
                    } else {
                        for (lane, slot) in a[..usize::from(*lanes)].iter().enumerate() {
                            let bits = get!(*slot);
                            memory.store(place, lane * bytes as usize, bytes, bits, *order);
                            written = written.rotate_left(7) ^ bits;
                        }
                    }
                    if spin.polling
                        && target.space != Space::Local
                        && spin.note(now, pc as u32, address, written)
                    {
                        pc += 1;
                        break StopReason::Spinning;
                    }
                }
                Op::Atomic(atomic) => {
                    let Atomic { target, order, op, ty, d, a, b, .. } = &**atomic;
                    let address = target.of(slots);
                    let request = Request {
                        space: target.space,
                        address,
                        bytes: ty.bytes(),
                        site: target.site,
                        thread,
                        access: "atomic",
                    };
                    let place = match memory.resolve(device, &launch, request) {
                        Ok(place) => place,
                        Err(kind) => break StopReason::Fault(kind),
                    };
                    let (x, y) = (get!(*a), get!(*b));
                    let old =
                        memory.update(place, ty.bytes(), *order, &launch, |old| op.apply(*ty, old, x, y));
                    if let Some(d) = d {
                        get!(*d) = extend(old, *ty);
                    }
                    if op.apply(*ty, old, x, y) != old {
                        // It changed memory.
                        spin.polling = false;
                    } else if spin.note(now, pc as u32, address, old) {
                        pc += 1;
                        break StopReason::Spinning;
                    }
                }
                // Whatever the scope: a fence of the host is one for all.
                Op::Fence { .. } => fence(Ordering::SeqCst),
                Op::Branch { target } => {
                    pc = *target as usize;
                    continue;
                }
                Op::BranchTable { index, targets } => {
                    let index = get!(*index) as u32 as usize;
                    // An index beyond the list is undefined in the ISA; here it takes the last label.
                    pc = targets[index.min(targets.len() - 1)] as usize;
                    continue;
                }
                Op::Clock { d, clock } => {
                    get!(*d) = match clock {
                        Clock::Cycles => now,
                        Clock::Nanoseconds => nanoseconds(),
                    };
                    if spin.note(now, pc as u32, 0, 0) {
                        pc += 1;
                        break StopReason::Spinning;
                    }
                }
                Op::Sleep => {
                    pc += 1;
                    break StopReason::Spinning;
                }
                Op::Nothing => {}
                Op::Trap => break StopReason::Fault(FaultKind::Trap),
                Op::Exit => {
                    self.executed = now;
                    self.threads[thread as usize].pc = pc as u32;
                    self.exit(thread);
                    return StopReason::Waiting;
                }
                Op::Barrier(barrier) => {
                    self.executed = now;
                    self.threads[thread as usize].pc = pc as u32;
                    let barrier = (**barrier).clone();
                    match self.arrive(thread, &barrier) {
                        Ok(true) => return StopReason::Waiting,
                        Ok(false) => {
                            // `bar.arrive` goes on at once; its turn ends all the same.
                            return StopReason::Budget;
                        }
                        Err(kind) => return StopReason::Fault(kind),
                    }
                }
                Op::WarpBarrier { a } => {
                    let mask = get!(*a) as u32;
                    self.executed = now;
                    let own = &mut self.threads[thread as usize];
                    own.pc = pc as u32 + 1;
                    own.state = State::AtWarpBarrier(mask);
                    self.release_warp(thread / WARP);
                    return StopReason::Waiting;
                }
            }
            pc += 1;
        };
        self.executed = now;
        self.threads[thread as usize].pc = pc as u32;
        stop
    }

    fn exit(&mut self, thread: u32) {
        self.threads[thread as usize].state = State::Exited;
        self.live -= 1;
        self.release_warp(thread / WARP);
    }

    /// A thread arrives at a barrier. Returns whether it waits there; if it completes the barrier, it and all others
    /// become runnable again.
    fn arrive(&mut self, thread: u32, barrier: &Barrier) -> Result<bool, FaultKind> {
        let own = self.slots_per_thread * thread as usize;
        let get = |slot: Slot| self.slots[own + usize::from(slot)];
        let diverged = |text: String| Err(FaultKind::BarrierDivergence(text));
        let id = get(barrier.id) as u32 as usize;
        let all = self.threads.len() as u32;
        let count = barrier.count.map(|count| get(count) as u32);
        let truth = (get(barrier.p) ^ u64::from(barrier.negate)) & 1 == 1;
        let Some(state) = self.barriers.get_mut(id) else {
            return diverged(format!("barrier {id} does not exist"));
        };
        if let Some(count) = count
            && (count == 0 || !count.is_multiple_of(WARP) || count > all.next_multiple_of(WARP))
        {
            return diverged(format!(
                "a barrier for {count} threads: not a multiple of the warp size, or too many"
            ));
        }
        // Hardware counts whole warps, so a count may exceed the block by the empty lanes of its last warp.
        let expected = count.unwrap_or(all).min(all);
        let waiter = Waiter { thread, d: barrier.d, kind: barrier.kind };
        let complete = match state.arrive(waiter, expected, expected == all, truth) {
            Ok(complete) => complete,
            Err(text) => return diverged(text),
        };
        let waits = barrier.kind != BarrierKind::Arrive;
        if waits {
            self.threads[thread as usize].state = State::AtBarrier;
        } else {
            self.threads[thread as usize].pc += 1;
        }
        if complete {
            for (waiter, result) in state.release() {
                let released = &mut self.threads[waiter.thread as usize];
                released.state = State::Runnable;
                released.pc += 1;
                if let Some(result) = result {
                    let slot = self.slots_per_thread * waiter.thread as usize + usize::from(waiter.d);
                    self.slots[slot] = result;
                }
                self.runnable.push(waiter.thread);
            }
        }
        Ok(waits)
    }

    /// Lets the lanes of a warp go whose partners have all come, or exited.
    fn release_warp(&mut self, warp: u32) {
        let first = warp * WARP;
        let last = (first + WARP).min(self.threads.len() as u32);
        let waits = |thread: &super::Thread| matches!(thread.state, State::AtWarpBarrier(_));
        for thread in first..last {
            let State::AtWarpBarrier(mask) = self.threads[thread as usize].state else { continue };
            let lanes: Vec<u32> = (first..last).filter(|lane| mask >> (lane - first) & 1 == 1).collect();
            let there = |lane: &u32| {
                let other = &self.threads[*lane as usize];
                waits(other) || other.state == State::Exited
            };
            if lanes.iter().all(there) {
                for lane in lanes.into_iter().chain([thread]) {
                    let other = &mut self.threads[lane as usize];
                    if matches!(other.state, State::AtWarpBarrier(_)) {
                        other.state = State::Runnable;
                        self.runnable.push(lane);
                    }
                }
            }
        }
    }
}

/// The machine's monotonic clock, which is the same in all processes.
fn nanoseconds() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
