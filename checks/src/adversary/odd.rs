//! A rank that does not make the call that the others make: sequences that cannot end well, and what must be told of it.

use std::mem::offset_of;

use meshreduce_wire::{AbortWord, ErrorRecord, RecordKind};

use super::ranks::Ranks;
use super::scenario::Draw;

/// Nanoseconds (instructions) of the deadline where a rank is absent.
pub(super) const DEADLINE_NS: u64 = 60_000;
/// Nanoseconds of waiting in which, where a rank is absent, all that wait have given up: the deadline and its margins.
pub(super) const PATIENCE_NS: u64 = 2 * DEADLINE_NS + 100_000;

/// Who does what else.
#[derive(Clone, Copy, Debug)]
pub struct Odd {
    /// The rank.
    pub rank: usize,
    /// The call's index.
    pub call: usize,
    /// The rank makes neither this call nor any behind it, and from this one on there is a deadline. Else it launches another
    /// count, and there is none.
    pub is_absent: bool,
}

impl Odd {
    pub(super) fn draw(draw: &mut Draw, ranks: usize, calls: usize) -> Self {
        Self { rank: draw.below(ranks), call: draw.below(calls), is_absent: draw.below(4) == 0 }
    }

    /// How many of `all` calls `rank` makes.
    pub(super) fn calls_of(self, rank: usize, all: usize) -> usize {
        if self.is_absent && rank == self.rank { self.call } else { all }
    }

    /// Whether `rank` says that it launches something else as `call`.
    pub(super) fn says_otherwise(self, rank: usize, call: usize) -> bool {
        !self.is_absent && (rank, call) == (self.rank, self.call)
    }

    /// The deadline of a call.
    pub(super) fn deadline(self, call: usize, usual: u64) -> u64 {
        if self.is_absent && call >= self.call { DEADLINE_NS } else { usual }
    }

    /// What is wrong with the records where the ranks have ended so many calls well, if anything is.
    pub(super) fn is_told_wrongly(self, ranks: &Ranks, ended: &[usize]) -> Option<String> {
        for (rank, &ended) in ended.iter().enumerate() {
            // Who has ended the call before may be told while others are still at it.
            if ended > self.call || ended + 1 < self.call {
                return Some(format!("rank {rank} ended {ended} calls well, where {self:?}"));
            }
            if self.is_absent && rank == self.rank {
                continue;
            }
            let valid = ranks.field(rank, offset_of!(ErrorRecord, valid)) as u32;
            let word = AbortWord::decode(ranks.field(rank, offset_of!(ErrorRecord, abort)) as u32);
            let Some(word) = word.filter(|_| valid == 1) else {
                return Some(format!("rank {rank} has no record, where {self:?}"));
            };
            let (culprit, origin) = (word.culprit as usize, word.origin as usize);
            let is_right = match self.is_absent {
                // A rank that does not get its turn for long is as good as dead.
                true => word.kind == RecordKind::PeerTimeout && culprit != origin,
                false => {
                    word.kind == RecordKind::LaunchMismatch && (culprit == self.rank) != (origin == self.rank)
                }
            };
            if !is_right {
                return Some(format!("rank {rank}'s record is {word:?}, where {self:?}"));
            }
            let launched = ranks.field(rank, offset_of!(ErrorRecord, peer_launched));
            if !self.is_absent && origin == rank && launched != ranks.said(culprit, rank) {
                return Some(format!("rank {rank} tells the peer's launch as {launched:#x}, where {self:?}"));
            }
        }
        None
    }
}
