//! The flight recorder: the last calls of a group and of all groups that were made from it, for after the fact.
#![forbid(unsafe_code)]

mod dump;
mod entry;
mod file;
mod ring;

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::types::{DType, Device, Operation};

pub use dump::{Dump, DumpedEntry, DumpedGroup, DumpedStatus, Frame};
pub use entry::Begun;
pub use file::{DumpError, MOST_ENTRIES, Settings, SettingsError};
pub use ring::{EntryId, FlightRecorder};

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The group was called.
    Scheduled,
    /// The backend has it.
    Started,
    /// It has ended well.
    Completed,
    /// It has failed.
    Failed,
}

/// How many elements each of a call's tensors has, or each call of a batch. More than [`Sizes::MOST`] are only counted: a recorder allocates nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    counts: [u64; Sizes::MOST],
    tensors: u32,
    total: u64,
}

impl Sizes {
    /// As many are kept.
    pub const MOST: usize = 8;

    #[cfg(test)]
    pub(crate) fn new(counts: impl IntoIterator<Item = usize>) -> Self {
        let mut sizes = Self::default();
        sizes.set(counts);
        sizes
    }

    /// Makes them these.
    pub(crate) fn set(&mut self, counts: impl IntoIterator<Item = usize>) {
        (self.tensors, self.total) = (0, 0);
        for count in counts {
            if let Some(place) = self.counts.get_mut(self.tensors as usize) {
                *place = count as u64;
            }
            self.tensors = self.tensors.saturating_add(1);
            self.total = self.total.saturating_add(count as u64);
        }
    }

    /// Makes them this one.
    pub(crate) fn set_one(&mut self, count: usize) {
        (self.counts[0], self.tensors, self.total) = (count as u64, 1, count as u64);
    }

    /// Those that are kept, in the call's order.
    pub fn counts(&self) -> &[u64] {
        &self.counts[..(self.tensors as usize).min(Self::MOST)]
    }

    /// How many there were.
    pub fn tensors(&self) -> usize {
        self.tensors as usize
    }

    /// Elements of all of them.
    pub fn total(&self) -> u64 {
        self.total
    }
}

impl PartialEq for Sizes {
    fn eq(&self, other: &Self) -> bool {
        // Behind those that are kept stands what was there before.
        (self.tensors, self.total, self.counts()) == (other.tensors, other.total, other.counts())
    }
}

impl Eq for Sizes {}

/// A thread that made a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its number, as the system counts them.
    pub thread_id: u32,
    /// Its name, if it has one.
    pub thread_name: Option<Arc<str>>,
}

/// One recorded call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// Number of the record, over all groups, from 0.
    pub record: u64,
    /// Index into [`Snapshot::groups`].
    pub group: u32,
    /// The backend that took it.
    pub backend: Arc<str>,
    /// What it does.
    pub operation: Operation,
    /// Of a batch: what its calls do. (Of sends and receives: what the first does.)
    pub batched: Option<Operation>,
    /// Where its tensors are; `None` of an empty batch.
    pub device: Option<Device>,
    /// Its element type.
    pub dtype: Option<DType>,
    /// What it reads.
    pub inputs: Sizes,
    /// What it writes.
    pub outputs: Sizes,
    /// Of an all-gather and a reduce-scatter: the ranks' own parts differ in length.
    pub has_uneven_parts: bool,
    /// Of a send and a receive: the other rank, in the group. `None` of a receive: any.
    pub peer: Option<usize>,
    /// Collectives of the group up to and with this one.
    pub collective_sequence: u64,
    /// Sends and receives of the group up to and with this one.
    pub p2p_sequence: u64,
    /// Whether it is a send or a receive.
    pub is_p2p: bool,
    /// Whether it was captured into a graph: it stays [`State::Scheduled`], since nobody sees its replays.
    pub is_captured: bool,
    /// How far it has come.
    pub state: State,
    /// When it was made.
    pub created: Instant,
    /// When the backend had it.
    pub started: Option<Instant>,
    /// When its end was seen.
    pub ended: Option<Instant>,
    /// How long it may take.
    pub deadline: Option<Duration>,
    /// Where the program made it.
    pub location: &'static Location<'static>,
    /// Who made it.
    pub caller: Caller,
}

/// A call that goes on, as [`FlightRecorder::waiting`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitingCall {
    /// The group's name.
    pub group: Arc<str>,
    /// What it does.
    pub operation: Operation,
    /// Its number among the group's collectives, or among its sends and receives.
    pub sequence: u64,
}

/// How far a group has come: sequence numbers of collectives, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The last one that was called.
    pub last_enqueued: u64,
    /// The last one that a backend has.
    pub last_started: u64,
    /// The last one whose end was seen.
    pub last_completed: u64,
}

/// One recorded group.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordedGroup {
    /// Its name.
    pub name: Arc<str>,
    /// What its maker says of it.
    pub description: Arc<str>,
    /// By rank: the rank in the group of all ranks.
    pub ranks: Arc<[usize]>,
    /// How far it has come.
    pub status: Status,
}

/// What a recorder knows at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// This process's rank in the group of all ranks.
    pub rank: usize,
    /// The groups, in the order in which they were made.
    pub groups: Vec<RecordedGroup>,
    /// The last calls, oldest first.
    pub entries: Vec<Entry>,
    /// The same moment by both clocks, to tell what [`Instant`]s of entries are in wall time.
    pub moment: (Instant, SystemTime),
}

#[cfg(test)]
mod tests;
