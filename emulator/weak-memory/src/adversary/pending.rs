//! What a thread has issued and what has not happened yet: loads whose value has not been chosen, atomics that have not
//! taken effect.

use super::chain::Chain;
use super::history::{Access, Closing, Reader, Who};
use super::memory::{Location, Place};
use super::view::Knowledge;
use meshreduce_emulator_ptx::Slot;
use meshreduce_emulator_ptx::semantics::atomic::AtomicOp;
use meshreduce_emulator_ptx::types::{Order, Scope, Type};

/// Where a scalar goes: one register, or of sixteen bytes two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) low: Slot,
    pub(super) high: Option<Slot>,
}

impl Registers {
    pub(super) fn iter(self) -> impl Iterator<Item = Slot> {
        std::iter::once(self.low).chain(self.high)
    }
}

/// A load whose value is still open.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) access: Access,
    pub(super) place: Place,
    pub(super) ty: Type,
    pub(super) to: Registers,
    /// What the thread knew when it issued the load.
    pub(super) knowledge: Knowledge,
    pub(super) noncoherent: bool,
    /// The ends of acquire patterns that it begins: itself, and fences behind it.
    pub(super) closings: Vec<Closing>,
    pub(super) acquire: bool,
    /// Others may follow it in causality order: its cell knows of it.
    pub(super) exposed: bool,
}

impl Pending {
    pub(super) fn reader(&self) -> Reader<'_> {
        let Self { access, ref knowledge, noncoherent, .. } = *self;
        Reader { access, knowledge, atomic: false, noncoherent }
    }
}

/// An atomic that has been issued, with the values of its operands.
#[derive(Clone, Debug)]
pub(super) struct Late {
    pub(super) place: Place,
    pub(super) order: Order,
    pub(super) scope: Scope,
    pub(super) op: AtomicOp,
    pub(super) ty: Type,
    pub(super) d: Option<Slot>,
    pub(super) operands: (u64, u64),
    pub(super) who: Who,
    /// What the thread knew when it issued it.
    pub(super) knowledge: Knowledge,
    /// The chain that the thread had observed last.
    pub(super) chain: Chain,
}

impl Late {
    pub(super) fn acquires(&self) -> bool {
        matches!(self.order, Order::Acquire | Order::AcqRel)
    }

    pub(super) fn access(&self) -> Access {
        let Self { place, scope, who, .. } = *self;
        Access { who, mask: place.mask, strong: true, scope, mapping: place.mapping }
    }

    pub(super) fn location(&self) -> Location {
        self.place.location()
    }
}
