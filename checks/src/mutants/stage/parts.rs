//! Who does what when something goes wrong: what follows from the seed.

use meshreduce_wire::{AbortWord, RecordKind};

use super::memory::LANES;
use super::{Stage, Trouble};

/// What follows from the seed.
pub(super) struct Parts {
    pub(super) seed: u64,
    pub(super) trouble: Trouble,
    /// The lane that fails.
    pub(super) failing: u32,
    /// The rank that is dead or launches something else.
    odd: usize,
    /// The rank whose host aborts.
    pub(super) aborting: usize,
    /// All ranks but `aborting` are dead.
    alone: bool,
    /// A whole quad launches something else: only relays can notice.
    quads: bool,
    /// The other quad does not come to the call in which a rank launches another kind: no relay can notice.
    parted: bool,
    /// In the other lane all ranks but this one wait, if any do.
    pub(super) absent: Option<usize>,
    /// Threads take turns, so that what is waited for comes within few turns of all.
    pub(super) prompt: bool,
    /// Who launches something else has a smaller grid, too.
    pub(super) smaller: bool,
}

impl Parts {
    /// What `seed` says.
    pub(super) fn of(stage: &Stage<'_>, trouble: Trouble, seed: u64) -> Self {
        let ranks = stage.ranks;
        let cube = stage.algorithm.is_of_cube_mesh();
        let odd = (seed / 3) as usize % ranks;
        Self {
            seed,
            trouble,
            failing: (seed / 5 % u64::from(LANES)) as u32,
            odd,
            aborting: (odd + 1) % ranks,
            // In every other run; and where only relays meet behind the first phase, in every run, for the others
            // would end well.
            alone: cube && stage.halfway.is_some() || seed.is_multiple_of(2),
            quads: cube && !seed.is_multiple_of(2),
            parted: cube && trouble == Trouble::OtherKind && seed % 4 == 2,
            absent: (!seed.is_multiple_of(3)).then_some((seed / 2) as usize % ranks),
            // Who waits for what was launched asks after a time, and again when the session would have lost patience.
            prompt: trouble == Trouble::DeadPeer && seed % 4 < 2 || trouble == Trouble::OtherKind,
            smaller: (seed / 2).is_multiple_of(2),
        }
    }

    /// Whether `rank` makes the call that fails, as it should.
    pub(super) fn live(&self, rank: usize) -> bool {
        match self.trouble {
            Trouble::Mismatch | Trouble::Collision | Trouble::Lengths => true,
            Trouble::OtherKind => !self.strange(rank) && (!self.parted || rank / 4 == self.odd / 4),
            _ if self.alone => rank == self.aborting,
            _ => rank != self.odd,
        }
    }

    /// Whether `rank` launches something else, where that is the trouble.
    pub(super) fn strange(&self, rank: usize) -> bool {
        if self.quads { rank / 4 == self.odd / 4 } else { rank == self.odd }
    }

    /// Whether `rank` waits in the lane that does not fail.
    pub(super) fn waits(&self, rank: usize) -> bool {
        self.absent.is_some_and(|absent| absent != rank)
    }

    /// Whether what differs of launches of one tag is their count.
    pub(super) fn has_another_count(&self) -> bool {
        (self.seed / 7).is_multiple_of(4)
    }

    /// The word with which a rank's pad is told to give up from outside.
    pub(super) fn relayed(&self) -> AbortWord {
        let rank = self.odd as u32;
        AbortWord { kind: RecordKind::HostAbort, culprit: rank, origin: rank, lane: self.failing }
    }

    /// Whether a rank that is blamed deserves it.
    pub(super) fn deserves(&self, word: AbortWord) -> bool {
        let (culprit, origin) = (word.culprit as usize, word.origin as usize);
        match self.trouble {
            _ if self.trouble.is_by_launch() => self.strange(culprit) != self.strange(origin),
            Trouble::HostAbort => (culprit, origin) == (self.aborting, self.aborting),
            Trouble::Relayed => word == self.relayed(),
            // A rank that does not get its turn for long is as good as dead.
            _ => !(self.prompt && self.live(culprit)),
        }
    }
}
