//! When what a thread has issued happens: atomics take effect then or later, open loads are bound.
//!
//! Atomics are issued in program order. One that acquires nothing may wait, as what follows it in its thread goes on: until its register is used, the
//! thread comes to the same word again, or hands on what precedes (a release, fence, barrier, or its end). So whoever
//! follows it in base causality order finds it in memory. It looks at memory with what its thread knew when it was
//! issued.

use super::memory::Location;
use super::model::{Issued, Model, StoreOf};
use super::pending::{Late, Pending};
use super::thread::{Poll, Stop, Thread};
use meshreduce_emulator_ptx::semantics::atomic::AtomicOp;
use meshreduce_emulator_ptx::semantics::convert::extend;
use meshreduce_emulator_ptx::types::{Order, Scope};
use meshreduce_emulator_ptx::{Atomic, Slot};

impl Thread {
    pub(super) fn atomic(&mut self, model: &mut Model, atomic: &Atomic, pc: u32) -> Result<(), Stop> {
        let Atomic { target, order, scope, op, ty, d, a, b } = atomic;
        let (space, address) = self.resolve(target, ty.bytes(), "atomic")?;
        let place = self.place(&model.memory, space, address, ty.bytes(), "atomic")?;
        self.come_to(model, place.location())?;
        if matches!(order, Order::Release | Order::AcqRel) {
            self.hand_on(model, None)?;
        }
        self.poll(Poll { who: self.who(pc), word: place.word, mask: place.mask });
        let late = Late {
            place,
            order: *order,
            scope: *scope,
            op: *op,
            ty: *ty,
            d: *d,
            operands: (self.slots[usize::from(*a)], self.slots[usize::from(*b)]),
            who: self.event(pc),
            knowledge: self.knowledge.clone(),
        };
        let defer = model.temper.defer;
        let acquires = matches!(order, Order::Acquire | Order::AcqRel);
        if !acquires && !model.calm && model.chance(defer) {
            late.d.iter().for_each(|&d| self.waits[usize::from(d)] = true);
            self.late.push(late);
            return Ok(());
        }
        self.take_effect(model, &late)
    }

    fn take_effect(&mut self, model: &mut Model, late: &Late) -> Result<(), Stop> {
        let &Late { place, order, scope, op, ty, d, operands: (x, y), who, .. } = late;
        let update = |old: u64| {
            let fails = op == AtomicOp::CompareSwap && extend(old, ty) != extend(x, ty);
            (!fails).then(|| op.apply(ty, old, x, y))
        };
        let issued = Issued { who, knowledge: &late.knowledge, reduction: d.is_none() };
        let store = StoreOf { place, order, scope, pc: who.pc };
        let old = model.atomic(self, store, issued, update).map_err(Stop::Found)?;
        if let Some(d) = d {
            self.set(d, extend(old, ty));
        }
        Ok(())
    }

    /// Has the waiting atomics that `which` names take effect.
    pub(super) fn perform(&mut self, model: &mut Model, which: impl Fn(&Late) -> bool) -> Result<(), Stop> {
        while let Some(at) = self.late.iter().position(&which) {
            let late = self.late.remove(at);
            self.take_effect(model, &late)?;
        }
        Ok(())
    }

    /// Before the thread comes to a place again: what is open there is decided.
    pub(super) fn come_to(&mut self, model: &mut Model, location: Location) -> Result<(), Stop> {
        if !self.open.is_empty() {
            self.bind(model, |open| open.place.location().meets(location));
        }
        self.perform(model, |late| late.location().meets(location))
    }

    /// Before an instruction that concerns `slots`: they have their values.
    pub(super) fn come_to_use(&mut self, model: &mut Model, slots: &[Slot]) -> Result<(), Stop> {
        self.bind(model, |open: &Pending| open.to.iter().any(|slot| slots.contains(&slot)));
        self.perform(model, |late| late.d.is_some_and(|d| slots.contains(&d)))
    }

    /// Something is handed on that others may synchronize with, or a fence ends acquire patterns at its scope.
    pub(super) fn hand_on(&mut self, model: &mut Model, fence: Option<Scope>) -> Result<(), Stop> {
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
