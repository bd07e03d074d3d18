//! A warp: its threads' registers, when they are there, and where its threads stand.

use meshreduce_emulator_ptx::{Guard, Slot};

use crate::path::{NOBODY, NodeId};
use crate::time::Time;

/// Jumps back of one group after which another has a turn: it may be what the first waits for.
const PATIENCE: u32 = 16;
/// Instructions of such a turn.
const TURN: u32 = 256;

/// Threads of a warp that stand at one instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) at: u32,
    pub(crate) mask: u32,
    /// When it may go on.
    pub(crate) ready: Time,
    pub(crate) wait: Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    No,
    /// At the block's barrier of this number.
    Barrier(u8),
    /// For the warp's threads in the mask.
    Warp(u32),
}

#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) id: u32,
    pub(crate) device: u16,
    /// The number of its multiprocessor, and of its scheduler, among those of all devices.
    pub(crate) core: u32,
    pub(crate) scheduler: u32,
    /// The number of its block among all of the run.
    pub(crate) block: u32,
    /// Its number in its block.
    pub(crate) number: u32,
    pub(crate) groups: Vec<Group>,
    /// The slots of all threads, one thread after the other.
    slots: Vec<u64>,
    per_thread: usize,
    pub(crate) local: Vec<u8>,
    /// By register: when it is there; of all threads together.
    pub(crate) ready: Vec<Time>,
    /// By register: what brought it.
    pub(crate) causes: Vec<NodeId>,
    /// When it may issue, and what it waited for last.
    pub(crate) issue: Time,
    pub(crate) cause: NodeId,
    /// When all stores are acknowledged that a fence waits for, and the last of them.
    pub(crate) stored: Time,
    pub(crate) stored_by: NodeId,
    /// Loads that are under way, and when those that are over were there.
    pub(crate) loads: u32,
    pub(crate) loaded: Time,
    pub(crate) loaded_by: NodeId,
    /// Nothing is issued before all loads are there: behind an acquire.
    pub(crate) holds: bool,
    /// The fence that a release begins with is behind it.
    pub(crate) fenced: bool,
    /// Its turn at the scheduler is reserved.
    pub(crate) reserved: bool,
    /// Its only valid event; 0 if it has none.
    pub(crate) event: u64,
    /// By instruction: when it last looked at memory. Only where the path is followed.
    pub(crate) looks: Vec<(u32, Time)>,
    backward: u32,
    /// A thread whose group has a turn out of order, and how long.
    favoured: Option<(u32, u32)>,
}

impl Warp {
    #[allow(clippy::too_many_arguments, reason = "all that a warp is told of itself")]
    pub(crate) fn new(
        id: u32,
        device: u16,
        (core, scheduler): (u32, u32),
        (block, number): (u32, u32),
        threads: u32,
        (slots, per_thread): (Vec<u64>, usize),
        registers: usize,
        local_bytes: usize,
    ) -> Self {
        let mask = u32::MAX >> (32 - threads);
        Self {
            id,
            device,
            core,
            scheduler,
            block,
            number,
            groups: vec![Group { at: 0, mask, ready: 0, wait: Wait::No }],
            slots,
            per_thread,
            local: vec![0; local_bytes],
            ready: vec![0; registers],
            causes: vec![NOBODY; registers],
            issue: 0,
            cause: NOBODY,
            stored: 0,
            stored_by: NOBODY,
            loads: 0,
            loaded: 0,
            loaded_by: NOBODY,
            holds: false,
            fenced: false,
            reserved: false,
            event: 0,
            looks: Vec::new(),
            backward: 0,
            favoured: None,
        }
    }

    #[inline]
    pub(crate) fn slots(&self, lane: u32) -> &[u64] {
        &self.slots[self.per_thread * lane as usize..][..self.per_thread]
    }

    #[inline]
    pub(crate) fn slots_mut(&mut self, lane: u32) -> &mut [u64] {
        &mut self.slots[self.per_thread * lane as usize..][..self.per_thread]
    }

    #[inline]
    pub(crate) fn get(&self, lane: u32, slot: Slot) -> u64 {
        self.slots[self.per_thread * lane as usize + usize::from(slot)]
    }

    #[inline]
    pub(crate) fn set(&mut self, lane: u32, slot: Slot, value: u64) {
        self.slots[self.per_thread * lane as usize + usize::from(slot)] = value;
    }

    /// The threads among `mask` that execute an instruction with this guard.
    #[inline]
    pub(crate) fn guarded(&self, mask: u32, guard: Guard) -> u32 {
        if guard == Guard::Always {
            return mask;
        }
        lanes(mask).filter(|&lane| guard.holds(self.slots(lane))).fold(0, |all, lane| all | 1 << lane)
    }

    /// The group whose turn it is.
    #[inline]
    pub(crate) fn pick(&mut self) -> Option<usize> {
        if let [only] = &self.groups[..] {
            return (only.wait == Wait::No).then_some(0);
        }
        let ready = |group: &Group| group.wait == Wait::No;
        if let Some((lane, left)) = self.favoured {
            let favoured = self.groups.iter().position(|group| ready(group) && group.mask >> lane & 1 == 1);
            self.favoured = favoured.and((left > 0).then_some((lane, left.saturating_sub(1))));
            if self.favoured.is_some() {
                return favoured;
            }
        }
        let all = self.groups.iter().enumerate().filter(|(_, group)| ready(group));
        all.min_by_key(|(_, group)| group.at).map(|(number, _)| number)
    }

    /// A group goes on at an instruction, with those that stand there.
    #[inline]
    pub(crate) fn go(&mut self, group: usize, to: u32) {
        let from = std::mem::replace(&mut self.groups[group].at, to);
        if self.groups.len() == 1 {
            return;
        }
        if to <= from {
            self.back(group);
        }
        let Group { ready, mask, .. } = self.groups[group];
        let meets = |other: &Group| other.at == to && other.wait == Wait::No && other.mask != mask;
        if let Some(other) = self.groups.iter().position(meets) {
            let other = &mut self.groups[other];
            other.mask |= mask;
            other.ready = other.ready.max(ready);
            self.groups.swap_remove(group);
        }
    }

    fn back(&mut self, group: usize) {
        self.favoured = None;
        self.backward += 1;
        if self.backward.is_multiple_of(PATIENCE) {
            let others = self.groups.iter().enumerate();
            let other = others.filter(|(number, other)| *number != group && other.wait == Wait::No);
            self.favoured =
                other.min_by_key(|(_, other)| other.at).map(|(_, other)| (other.mask.trailing_zeros(), TURN));
        }
    }

    /// The threads in `mask`, which are a part of a group, stand at an instruction of their own from now on.
    pub(crate) fn part(&mut self, group: usize, mask: u32, at: u32) {
        let from = &mut self.groups[group];
        from.mask &= !mask;
        let parted = Group { at, mask, ..*from };
        let meets = |other: &&mut Group| other.at == at && other.wait == Wait::No;
        match self.groups.iter_mut().find(meets) {
            Some(other) => other.mask |= mask,
            None => self.groups.push(parted),
        }
    }

    /// Registers are there at `time`, by `cause`.
    #[inline]
    pub(crate) fn bring(&mut self, registers: &[Slot], time: Time, cause: NodeId) {
        for &register in registers {
            self.ready[usize::from(register)] = time;
            self.causes[usize::from(register)] = cause;
        }
    }
}

/// The threads in a mask.
#[inline]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = u32> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let lane = left.trailing_zeros();
            left &= left - 1;
            lane
        })
    })
}
