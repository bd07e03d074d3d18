//! One instruction of a warp.

use meshreduce_emulator_ptx::types::{Clock, Order, Scope};
use meshreduce_emulator_ptx::{BARRIERS, Barrier, BarrierKind, FaultKind, Op, WARP, compute};

use crate::device::Waiter;
use crate::error::TimedError;
use crate::machine::{Machine, Next};
use crate::path::{NOBODY, Node, StepKind};
use crate::program::{Code, Cost, Instruction};
use crate::time::UNKNOWN;
use crate::warp::{Wait, Warp, lanes};

/// The fence that an instruction is or begins with.
fn fence(op: &Op) -> Option<Scope> {
    let (order, scope) = match op {
        Op::Fence { order: _, scope } => return (*scope > Scope::Cta).then_some(*scope),
        Op::Store(store) => (store.order, store.scope),
        Op::Atomic(atomic) => (atomic.order, atomic.scope),
        _ => return None,
    };
    let releases = matches!(order, Order::Release | Order::AcqRel | Order::SeqCst);
    (releases && scope > Scope::Cta).then_some(scope)
}

impl Machine {
    /// The next instruction of a warp, if it may be issued now; else when.
    #[inline]
    pub(crate) fn step(&mut self, warp: &mut Warp, code: &Code) -> Result<Next, TimedError> {
        let Some(group) = warp.pick() else { return Ok(Next::Waits) };
        let standing = warp.groups[group];
        let instruction = &code.instructions[standing.at as usize];
        let is_free = instruction.cost == Cost::Free;
        let mut at = warp.issue.max(standing.ready);
        let mut cause = NOBODY;
        if warp.holds {
            if warp.loads > 0 {
                return Ok(Next::Waits);
            }
            warp.holds = false;
            (at, cause) = Self::later((at, cause), (warp.loaded, warp.loaded_by));
        }
        for &slot in &instruction.uses {
            let ready = warp.ready[usize::from(slot)];
            if ready > at {
                if ready == UNKNOWN {
                    return Ok(Next::Waits);
                }
                // What is issued from now on comes after what was waited for here.
                if !is_free {
                    (at, cause) = (ready, warp.causes[usize::from(slot)]);
                }
            }
        }
        if cause != NOBODY {
            warp.cause = cause;
        }
        if at > self.now {
            warp.issue = at;
            return Ok(Next::At(at));
        }
        if !is_free && !warp.reserved {
            let scheduler = &mut self.schedulers[warp.scheduler as usize];
            let turn = (*scheduler).max(self.now);
            *scheduler = turn + self.costs.cycle;
            if turn > self.now {
                // Whoever could issue first is served first.
                warp.reserved = true;
                warp.issue = turn;
                return Ok(Next::At(turn));
            }
        }
        warp.reserved = false;
        self.execute(warp, group, instruction)
    }

    #[inline]
    fn execute(
        &mut self,
        warp: &mut Warp,
        group: usize,
        instruction: &Instruction,
    ) -> Result<Next, TimedError> {
        let standing = warp.groups[group];
        let mask = warp.guarded(standing.mask, instruction.guard);
        self.warp_instructions += 1;
        self.instructions += u64::from(standing.mask.count_ones());
        let next_turn = match instruction.cost {
            Cost::Free => self.now,
            _ => self.now + self.costs.cycle,
        };
        warp.issue = warp.issue.max(next_turn);
        macro_rules! each {
            ($op:expr) => {{
                for lane in lanes(mask) {
                    compute($op, warp.slots_mut(lane));
                }
                self.computed(warp, instruction);
            }};
        }
        match &instruction.op {
            // One arm each, so that in each the compiler knows the instruction.
            op @ Op::Move { .. } => each!(op),
            op @ Op::Unary { .. } => each!(op),
            op @ Op::Binary { .. } => each!(op),
            op @ Op::Ternary { .. } => each!(op),
            op @ Op::Quaternary { .. } => each!(op),
            op @ Op::Select { .. } => each!(op),
            op @ Op::Pair { .. } => each!(op),
            op @ Op::SetPredicate { .. } => each!(op),
            op @ Op::Pack { .. } => each!(op),
            op @ Op::Unpack { .. } => each!(op),
            Op::Load(_) | Op::Store(_) | Op::Atomic(_) => {
                if mask != 0 {
                    if !warp.fenced
                        && let Some(scope) = fence(&instruction.op)
                    {
                        return Ok(self.fence(warp, scope, instruction.line));
                    }
                    warp.fenced = false;
                    self.access(warp, instruction, standing.at, mask)?;
                }
            }
            op @ Op::Fence { .. } => {
                if mask != 0
                    && !warp.fenced
                    && let Some(scope) = fence(op)
                {
                    return Ok(self.fence(warp, scope, instruction.line));
                }
                warp.fenced = false;
            }
            Op::Branch { .. } => {
                self.branch(warp, group, mask, instruction);
                return Ok(Next::At(warp.issue));
            }
            Op::BranchTable { index, .. } => {
                let mut left = mask;
                while left != 0 {
                    let place = |lane| {
                        let index = warp.get(lane, *index) as u32 as usize;
                        // An index beyond the list is undefined in the ISA; here it takes the last label.
                        instruction.targets[index.min(instruction.targets.len() - 1)]
                    };
                    let to = place(left.trailing_zeros());
                    let same =
                        lanes(left).filter(|&lane| place(lane) == to).fold(0, |all, lane| all | 1 << lane);
                    left &= !same;
                    if same == warp.groups[group].mask {
                        warp.go(group, to);
                        return Ok(Next::At(warp.issue));
                    }
                    warp.part(group, same, to);
                }
            }
            Op::Barrier(barrier) => {
                if mask == 0 {
                    warp.go(group, instruction.next);
                    return Ok(Next::At(warp.issue));
                }
                return self.barrier(warp, group, mask, barrier, instruction);
            }
            Op::WarpBarrier { a } => {
                let wanted = warp.get(mask.trailing_zeros(), *a) as u32;
                self.warp_barrier(warp, group, wanted, instruction.next);
                return Ok(Next::At(warp.issue));
            }
            Op::Clock { d, clock } => {
                let value = match clock {
                    Clock::Cycles => self.now / self.costs.cycle,
                    Clock::Nanoseconds => self.now / 1000,
                };
                lanes(mask).for_each(|lane| warp.set(lane, *d, value));
                self.computed(warp, instruction);
            }
            Op::Sleep => warp.issue = self.now + self.costs.sleep,
            Op::Trap if mask != 0 => {
                return Err(self.fault(warp, mask.trailing_zeros(), instruction.line, FaultKind::Trap));
            }
            Op::Exit if mask != 0 => {
                if mask == warp.groups[group].mask {
                    warp.groups.swap_remove(group);
                } else {
                    warp.groups[group].mask &= !mask;
                    warp.go(group, instruction.next);
                }
                self.exit(warp, mask.count_ones());
                self.warp_release(warp);
                return Ok(if warp.groups.is_empty() { Next::Waits } else { Next::At(warp.issue) });
            }
            Op::Nothing | Op::Trap | Op::Exit => {}
        }
        warp.go(group, instruction.next);
        Ok(Next::At(warp.issue))
    }

    /// The registers that an instruction of arithmetic writes.
    #[inline]
    fn computed(&self, warp: &mut Warp, instruction: &Instruction) {
        let (time, cause) = match instruction.cost {
            Cost::Free => {
                // What has another name is there when it was.
                let uses = instruction.uses.iter().filter(|slot| !instruction.writes.contains(slot));
                let moments =
                    uses.map(|&slot| (warp.ready[usize::from(slot)], warp.causes[usize::from(slot)]));
                moments.fold((0, NOBODY), Self::later)
            }
            _ => (self.now + self.costs.arithmetic, warp.cause),
        };
        warp.bring(&instruction.writes, time, cause);
    }

    fn branch(&self, warp: &mut Warp, group: usize, mask: u32, instruction: &Instruction) {
        let standing = warp.groups[group].mask;
        if mask == standing {
            // A jump that an assembler lays out as falling through costs nothing.
            warp.go(group, instruction.targets[0]);
        } else if mask == 0 {
            warp.go(group, instruction.next);
        } else {
            warp.part(group, mask, instruction.targets[0]);
            warp.go(group, instruction.next);
        }
    }

    /// Waits for all that a fence waits for.
    fn fence(&mut self, warp: &mut Warp, scope: Scope, line: u32) -> Next {
        if warp.loads > 0 {
            // What it has not waited for it may wait for with its turn reserved.
            warp.reserved = true;
            return Next::Waits;
        }
        let before = Self::later((self.now, warp.cause), (warp.loaded, warp.loaded_by));
        let takes = if scope == Scope::Sys { self.costs.system_fence } else { self.costs.gpu_fence };
        // Stores are acknowledged meanwhile (measured: docs/measured.md).
        let (end, cause) = Self::later((before.0 + takes, before.1), (warp.stored, warp.stored_by));
        let (begin, address) = (self.now, 0);
        warp.cause =
            self.graph.add(Node { kind: StepKind::Fence, warp: warp.id, line, address, begin, end, cause });
        warp.issue = end;
        warp.fenced = true;
        Next::At(end)
    }

    fn barrier(
        &mut self,
        warp: &mut Warp,
        group: usize,
        mask: u32,
        barrier: &Barrier,
        instruction: &Instruction,
    ) -> Result<Next, TimedError> {
        if mask != warp.groups[group].mask {
            // Those that do not execute it go on.
            let rest = warp.groups[group].mask & !mask;
            warp.part(group, rest, instruction.next);
        }
        let first = mask.trailing_zeros();
        let diverged =
            |text: String| Err(self.fault(warp, first, instruction.line, FaultKind::BarrierDivergence(text)));
        let id = warp.get(first, barrier.id) as u32 as usize;
        if id >= BARRIERS {
            return diverged(format!("barrier {id} does not exist"));
        }
        let count = barrier.count.map(|count| warp.get(first, count) as u32);
        if count.is_some_and(|count| count == 0 || !count.is_multiple_of(WARP)) {
            return diverged(format!("a barrier for {} threads", count.unwrap_or(0)));
        }
        let block = &mut self.blocks[warp.block as usize];
        let gathering = &mut block.barriers[id];
        let expected = count.map_or(block.live, |count| count.min(block.threads));
        gathering.everyone = count.is_none();
        gathering.arrived += mask.count_ones();
        for lane in lanes(mask) {
            let truth = (warp.get(lane, barrier.p) ^ u64::from(barrier.negate)) & 1 == 1;
            gathering.votes.add(barrier.kind, truth);
        }
        let stored = Self::later((gathering.stored, gathering.stored_by), (warp.stored, warp.stored_by));
        (gathering.stored, gathering.stored_by) = stored;
        let arrived = gathering.arrived;
        if barrier.kind == BarrierKind::Arrive {
            warp.go(group, instruction.next);
        } else {
            gathering.waiting.push(Waiter { warp: warp.id, mask, kind: barrier.kind, d: barrier.d });
            warp.groups[group].wait = Wait::Barrier(id as u8);
        }
        if arrived >= expected {
            self.release(warp, id);
        }
        Ok(Next::At(warp.issue))
    }

    /// Lets all go that wait at a barrier; `warp` has its turn.
    pub(crate) fn release(&mut self, warp: &mut Warp, id: usize) {
        let number = warp.block;
        let block = &mut self.blocks[number as usize];
        let gathering = std::mem::take(&mut block.barriers[id]);
        let code = block.code.clone();
        let end = self.now + self.costs.barrier;
        let line = gathering.waiting.first().and_then(|waiter| {
            let group = |warp: &Warp| warp.groups.iter().find(|g| g.mask & waiter.mask != 0).map(|g| g.at);
            let at = if waiter.warp == warp.id {
                group(warp)
            } else {
                self.warps[waiter.warp as usize].as_deref().and_then(group)
            };
            at.map(|at| Self::line(&code, at))
        });
        let cause = self.graph.add(Node {
            kind: StepKind::Barrier,
            warp: warp.id,
            line: line.unwrap_or(0),
            address: 0,
            begin: self.now,
            end,
            cause: warp.cause,
        });
        let stored = (gathering.stored, gathering.stored_by);
        for waiter in gathering.waiting {
            let pass = |warp: &mut Warp| {
                let waits = |group: &crate::warp::Group| {
                    group.wait == Wait::Barrier(id as u8) && group.mask & waiter.mask != 0
                };
                let Some(group) = warp.groups.iter().position(waits) else { return };
                warp.groups[group].wait = Wait::No;
                warp.groups[group].ready = end;
                if let Some(value) = gathering.votes.result(waiter.kind) {
                    lanes(waiter.mask).for_each(|lane| warp.set(lane, waiter.d, value));
                }
                (warp.stored, warp.stored_by) = Self::later((warp.stored, warp.stored_by), stored);
                warp.cause = cause;
                let next = code.instructions[warp.groups[group].at as usize].next;
                warp.go(group, next);
            };
            if waiter.warp == warp.id {
                pass(warp);
            } else if let Some(other) = self.warps[waiter.warp as usize].as_deref_mut() {
                pass(other);
                self.wake_other(waiter.warp, end);
            }
        }
    }

    fn warp_barrier(&self, warp: &mut Warp, group: usize, wanted: u32, next: u32) {
        warp.groups[group].wait = Wait::Warp(wanted);
        warp.groups[group].at = next;
        self.warp_release(warp);
    }

    /// Lets the threads of a warp go whose partners have all come, or ended.
    fn warp_release(&self, warp: &mut Warp) {
        let live = warp.groups.iter().fold(0, |all, group| all | group.mask);
        let waits = |wait: &Wait| matches!(wait, Wait::Warp(_));
        let there =
            warp.groups.iter().filter(|group| waits(&group.wait)).fold(0, |all, group| all | group.mask);
        for at in 0..warp.groups.len() {
            if let Wait::Warp(wanted) = warp.groups[at].wait
                && wanted & live & !there == 0
            {
                warp.groups[at].wait = Wait::No;
                warp.groups[at].ready = self.now + self.costs.cycle;
            }
        }
        // Those that stand together go on together.
        let mut at = 0;
        while at < warp.groups.len() {
            let group = warp.groups[at];
            let same = (at + 1..warp.groups.len()).find(|&other| {
                let other = warp.groups[other];
                other.at == group.at && other.wait == Wait::No && group.wait == Wait::No
            });
            match same {
                Some(other) => {
                    let other = warp.groups.swap_remove(other);
                    warp.groups[at].mask |= other.mask;
                    warp.groups[at].ready = group.ready.max(other.ready);
                }
                None => at += 1,
            }
        }
    }
}
