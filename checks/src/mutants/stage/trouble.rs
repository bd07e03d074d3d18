//! What goes wrong.

use meshreduce_wire::{Algorithm, RecordKind};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A rank launches another count, in every other run on a smaller grid, and there is no deadline.
    Mismatch,
    /// A rank launches another count that has the same tag, and there is no deadline.
    Collision,
    /// Of lists: a rank's has as many tensors, of other lengths, and there is no deadline.
    Lengths,
    /// A rank says that it launches something else and gives no signal, as a call by packets would, and there is no
    /// deadline.
    OtherKind,
    /// Ranks do not make the call, there is no deadline, and one host gives up.
    HostAbort,
    /// Ranks do not make the call, there is no deadline, and one rank's abort word is written from outside.
    Relayed,
    /// Ranks do not make the call, and there is a deadline.
    DeadPeer,
}

impl Trouble {
    /// All of them.
    const ALL: [Self; 7] = [
        Trouble::Mismatch,
        Trouble::Collision,
        Trouble::Lengths,
        Trouble::OtherKind,
        Trouble::HostAbort,
        Trouble::Relayed,
        Trouble::DeadPeer,
    ];

    /// Those that calls of an algorithm may have.
    pub fn of(algorithm: Algorithm) -> impl Iterator<Item = Self> {
        let may_be = move |trouble: &Self| *trouble != Trouble::Lengths || algorithm.is_of_lists();
        Self::ALL.into_iter().filter(may_be)
    }

    /// Whether it is played with this seed: what is waited for long is played with every fifth only.
    pub const fn is_played(self, seed: u64) -> bool {
        !matches!(self, Trouble::OtherKind) || seed % 5 == 1
    }

    /// Whether ranks find it by what they have launched, when a call begins.
    pub const fn is_by_launch(self) -> bool {
        matches!(self, Trouble::Mismatch | Trouble::Collision | Trouble::Lengths | Trouble::OtherKind)
    }

    pub(super) const fn kind(self) -> RecordKind {
        match self {
            Trouble::Mismatch | Trouble::Collision | Trouble::OtherKind => RecordKind::LaunchMismatch,
            Trouble::Lengths => RecordKind::TensorMismatch,
            Trouble::HostAbort | Trouble::Relayed => RecordKind::HostAbort,
            Trouble::DeadPeer => RecordKind::PeerTimeout,
        }
    }

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Trouble::Mismatch => "ranks launch different things",
            Trouble::Collision => "ranks launch different things of one tag",
            Trouble::Lengths => "ranks launch lists of other lengths",
            Trouble::OtherKind => "a rank launches another kind of call",
            Trouble::HostAbort => "the host aborts",
            Trouble::Relayed => "an abort is forwarded",
            Trouble::DeadPeer => "a peer is dead",
        }
    }
}
