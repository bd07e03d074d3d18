//! Loads of a thread whose value has not been chosen.

use super::history::{Access, Closing, Reader};
use super::load::Registers;
use super::memory::Place;
use super::model::Model;
use super::thread::Thread;
use super::view::Knowledge;
use meshreduce_emulator_ptx::types::{Scope, Type};

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

impl Thread {
    pub(super) fn leave_open(&mut self, open: Pending) {
        open.to.iter().for_each(|slot| self.waits[usize::from(slot)] = true);
        self.open.push(open);
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
