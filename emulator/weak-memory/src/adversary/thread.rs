//! A thread: registers, open loads, and what it knows.

use super::chain::Chain;
use super::history::{Release, Who};
use super::memory::{Location, Memory, Place, WordId};
use super::pending::{Late, Pending};
use super::report::{Finding, UnsynchronizedRead};
use super::view::{Event, Knowledge, View};
use meshreduce_emulator_ptx::types::Space;
use meshreduce_emulator_ptx::{Address, FaultKind, Slot, window};

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
    pub(super) local: Vec<u8>,
    /// Loads whose value has not been chosen.
    pub(super) open: Vec<Pending>,
    /// Atomics that have not taken effect.
    pub(super) late: Vec<Late>,
    /// By slot: whether it waits for one of these.
    pub(super) waits: Vec<bool>,
    pub(super) knowledge: Knowledge,
    /// The chain of writes that it observed last.
    pub(super) chain: Chain,
    /// The last release fence of each scope.
    pub(super) fences: [Option<(Who, View)>; 4],
    /// Release operations by location.
    pub(super) released: Vec<(Location, Release)>,
    /// Release patterns that a strong read observed without acquiring them.
    pub(super) seen: Vec<(Location, Release)>,
    /// Reads that saw another thread's write but did not synchronize, for the report.
    pub(super) unsynchronized: Vec<UnsynchronizedRead>,
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

/// Why a thread stopped running.
#[derive(Debug)]
pub(super) enum StopReason {
    /// Its share is used up.
    Budget,
    /// It reads again what it has read.
    Spinning,
    Exited,
    /// It has come to a barrier, which `pc` still points to.
    Barrier,
    WarpBarrier,
    /// Before it writes this word, others that wait to acquire there must have read.
    Held(WordId),
    Fault(FaultKind),
    Found(Box<Finding>),
}

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

    pub(super) fn leave_open(&mut self, open: Pending) {
        open.to.iter().for_each(|slot| self.waits[usize::from(slot)] = true);
        self.open.push(open);
    }

    #[inline]
    pub(super) fn set(&mut self, slot: Slot, value: u64) {
        self.slots[usize::from(slot)] = value;
        self.waits[usize::from(slot)] = false;
    }

    pub(super) fn note_unsynchronized(&mut self, read: UnsynchronizedRead) {
        let same = |known: &&mut UnsynchronizedRead| known.at.pc == read.at.pc && known.word == read.word;
        match self.unsynchronized.iter_mut().find(same) {
            Some(known) => *known = read,
            None => {
                if self.unsynchronized.len() == 16 {
                    self.unsynchronized.remove(0);
                }
                self.unsynchronized.push(read);
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

    pub(super) fn local_range(
        &self,
        address: u64,
        bytes: u32,
        access: &'static str,
    ) -> Result<usize, FaultKind> {
        let size = self.local.len() as u64;
        if address.checked_add(u64::from(bytes)).is_none_or(|end| end > size) {
            let nearest = format!("offset {address} of {size} bytes of local memory");
            return Err(FaultKind::OutOfBounds { access, address, bytes, nearest });
        }
        Ok(address as usize)
    }

    /// The space and the address in it, of an aligned access.
    pub(super) fn resolve(
        &self,
        target: &Address,
        bytes: u32,
        access: &'static str,
    ) -> Result<(Space, u64), StopReason> {
        let address = target.of(&self.slots);
        if address & u64::from(bytes - 1) != 0 {
            return Err(StopReason::Fault(FaultKind::Misaligned { access, address, bytes }));
        }
        Ok(window::resolve(target.space, address))
    }

    pub(super) fn place(
        &self,
        memory: &Memory,
        space: Space,
        address: u64,
        bytes: u32,
        access: &'static str,
    ) -> Result<Place, StopReason> {
        let place = match space {
            Space::Shared => memory.hidden_place(self.shared, address, bytes),
            _ => memory.place(address, bytes),
        };
        place.map_err(|nearest| StopReason::Fault(FaultKind::OutOfBounds { access, address, bytes, nearest }))
    }
}
