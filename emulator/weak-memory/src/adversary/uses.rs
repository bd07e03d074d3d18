//! Which registers an instruction concerns.

use meshreduce_emulator_ptx::{Launch, Slot};

/// By instruction: the slots that it reads or writes.
#[derive(Debug)]
pub(super) struct Uses {
    slots: Vec<Slot>,
    ends: Vec<u32>,
}

impl Uses {
    pub(super) fn new(launch: &Launch) -> Self {
        let mut uses = Self { slots: Vec::new(), ends: Vec::new() };
        for step in &launch.kernel.code {
            step.clone().visit(&mut |slot, _| uses.slots.push(*slot));
            uses.ends.push(uses.slots.len() as u32);
        }
        uses
    }

    #[inline]
    pub(super) fn of(&self, pc: usize) -> &[Slot] {
        let begin = if pc == 0 { 0 } else { self.ends[pc - 1] };
        &self.slots[begin as usize..self.ends[pc] as usize]
    }
}
