//! When what a thread has issued happens: atomics take effect then or later, open loads are bound.
//!
//! Atomics are issued in program order. One may wait, as what follows it in its thread goes on: until its register is used, the
//! thread comes to the same word again, or hands on what precedes (a release, fence, barrier, or its end). So whoever
//! follows it in base causality order finds it in memory. It looks at memory with what its thread knew when it was
//! issued.
//!
//! One that acquires must not synchronize with anything any more by then, for what followed it has gone on without. So it waits only
//! where it could read now without, and its cell knows of it: whoever is about to write there what might release something has it
//! take effect before ([`StopReason::Held`]).

use super::history::Cell;
use super::memory::{Location, Place};
use super::model::{Issued, Model, StoreOf};
use super::pending::{Late, Pending};
use super::thread::{Poll, StopReason, Thread};
use meshreduce_emulator_ptx::semantics::atomic::AtomicOp;
use meshreduce_emulator_ptx::semantics::convert::extend;
use meshreduce_emulator_ptx::types::{Order, Scope};
use meshreduce_emulator_ptx::{Atomic, Slot};

impl Thread {
    pub(super) fn atomic(&mut self, model: &mut Model, atomic: &Atomic, pc: u32) -> Result<(), StopReason> {
        let Atomic { target, order, scope, op, ty, d, a, b } = atomic;
        let (space, address) = self.resolve(target, ty.bytes(), "atomic")?;
        let place = self.place(&model.memory, space, address, ty.bytes(), "atomic")?;
        self.come_to(model, place.location())?;
        let releases = matches!(order, Order::Release | Order::AcqRel);
        if releases {
            self.hand_on(model, None)?;
        }
        self.let_acquirers_go(model, &place, *order, true)?;
        self.poll(Poll { who: self.who(pc), word: place.word, mask: place.mask });
        let who = self.event(pc);
        let acquires = matches!(order, Order::Acquire | Order::AcqRel);
        if acquires && !self.seen.is_empty() {
            // A strong read followed by an acquire on the same location is an acquire pattern too.
            self.acquire_seen(|at, release| at.meets(place.location()) && release.reaches(*scope, &who));
        }
        let late = Late {
            place,
            order: *order,
            scope: *scope,
            op: *op,
            ty: *ty,
            d: *d,
            operands: (self.slots[usize::from(*a)], self.slots[usize::from(*b)]),
            who,
            knowledge: self.knowledge.clone(),
            chain: self.chain.clone(),
        };
        let defer = model.relaxation.defer;
        // What releases something, too, acts at once, for others that wait to acquire here.
        if !model.calm
            && model.chance(defer)
            && (!acquires || !self.may_release(model, &place, *order, true) && model.can_wait(&late))
        {
            late.d.iter().for_each(|&d| self.waits[usize::from(d)] = true);
            if acquires {
                model.memory.cell(place.word).acquirers.push(self.number);
                model.acquirers += 1;
            }
            self.late.push(late);
            return Ok(());
        }
        self.take_effect(model, &late, false)
    }

    /// Before the thread writes what may release something: those who wait to acquire there read what was there before.
    pub(super) fn let_acquirers_go(
        &self,
        model: &mut Model,
        place: &Place,
        order: Order,
        chained: bool,
    ) -> Result<(), StopReason> {
        if model.acquirers == 0 {
            return Ok(());
        }
        let others = |cell: &Cell| cell.acquirers.iter().any(|&thread| thread != self.number);
        match others(model.memory.cell(place.word)) && self.may_release(model, place, order, chained) {
            true => Err(StopReason::Held(place.word)),
            false => Ok(()),
        }
    }

    /// Whether a write may end a release pattern, or where it is `chained` to what it reads, go on with one.
    fn may_release(&self, model: &mut Model, place: &Place, order: Order, chained: bool) -> bool {
        let goes_on = |cell: &Cell| cell.writes.iter().any(|write| write.releases.is_some());
        matches!(order, Order::Release | Order::AcqRel)
            || self.fences.iter().any(Option::is_some)
            || self.released.iter().any(|(at, _)| at.meets(place.location()))
            || chained && goes_on(model.memory.cell(place.word))
    }

    fn take_effect(&mut self, model: &mut Model, late: &Late, waited: bool) -> Result<(), StopReason> {
        let &Late { place, order, scope, op, ty, d, operands: (x, y), who, .. } = late;
        let update = |old: u64| {
            let fails = op == AtomicOp::CompareSwap && extend(old, ty) != extend(x, ty);
            (!fails).then(|| op.apply(ty, old, x, y))
        };
        let Late { knowledge, chain, .. } = late;
        let issued = Issued { who, knowledge, chain, reduction: d.is_none(), waited };
        let store = StoreOf { place, order, scope, pc: who.pc };
        let old = model.atomic(self, store, issued, update).map_err(StopReason::Found)?;
        if let Some(d) = d {
            self.set(d, extend(old, ty));
        }
        Ok(())
    }

    /// Has the waiting atomics that `which` names take effect.
    pub(super) fn perform(
        &mut self,
        model: &mut Model,
        which: impl Fn(&Late) -> bool,
    ) -> Result<(), StopReason> {
        while let Some(at) = self.late.iter().position(&which) {
            let Late { place, order, .. } = self.late[at];
            if self.late[at].acquires() {
                // One of its own: another part of the word may have another.
                let acquirers = &mut model.memory.cell(place.word).acquirers;
                if let Some(own) = acquirers.iter().position(|&thread| thread == self.number) {
                    acquirers.swap_remove(own);
                    model.acquirers -= 1;
                }
            } else {
                self.let_acquirers_go(model, &place, order, true)?;
            }
            let late = self.late.remove(at);
            self.take_effect(model, &late, true)?;
        }
        Ok(())
    }

    /// Before the thread comes to a place again: what is open there is decided.
    #[inline]
    pub(super) fn come_to(&mut self, model: &mut Model, location: Location) -> Result<(), StopReason> {
        if !self.open.is_empty() {
            self.bind(model, |open| open.place.location().meets(location));
        }
        match self.late.is_empty() {
            true => Ok(()),
            false => self.perform(model, |late| late.location().meets(location)),
        }
    }

    /// Before an instruction that concerns `slots`: they have their values.
    pub(super) fn come_to_use(&mut self, model: &mut Model, slots: &[Slot]) -> Result<(), StopReason> {
        self.bind(model, |open: &Pending| open.to.iter().any(|slot| slots.contains(&slot)));
        self.perform(model, |late| late.d.is_some_and(|d| slots.contains(&d)))
    }

    /// Something is handed on that others may synchronize with, or a fence ends acquire patterns at its scope.
    pub(super) fn hand_on(&mut self, model: &mut Model, fence: Option<Scope>) -> Result<(), StopReason> {
        self.perform(model, |_| true)?;
        self.expose(model, fence);
        Ok(())
    }

    /// Binds the open loads that `which` names, in an order that is no promise.
    pub(super) fn bind(&mut self, model: &mut Model, which: impl Fn(&Pending) -> bool) {
        while let Some(at) = self.open.iter().position(&which) {
            let open = self.open.remove(at);
            model.bind(self, &open);
        }
    }

    /// Something is handed on that others may synchronize with, or a fence ends acquire patterns at its scope: strong
    /// loads are bound, or stay open in sight of those who follow.
    pub(super) fn expose(&mut self, model: &mut Model, fence: Option<Scope>) {
        let mut at = 0;
        while at < self.open.len() {
            let Self { open, knowledge, .. } = self;
            if !open[at].access.strong || model.stays_open(knowledge, &mut open[at], fence) {
                at += 1;
            } else {
                let open = self.open.remove(at);
                model.bind(self, &open);
            }
        }
    }
}
