//! What a kernel leaves behind when it gives up, and what it tells its peers.

/// Why a kernel gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum RecordKind {
    /// A peer's signal did not come within the deadline.
    PeerTimeout = 1,
    /// A peer launched something else.
    LaunchMismatch = 2,
    /// The host of the rank that is named asked for the end.
    HostAbort = 3,
    /// A peer launched a list of which a tensor has another number of elements.
    TensorMismatch = 4,
}

impl RecordKind {
    /// The kind whose discriminant is `code`, if there is one.
    pub const fn from_repr(code: u8) -> Option<Self> {
        match code {
            1 => Some(RecordKind::PeerTimeout),
            2 => Some(RecordKind::LaunchMismatch),
            3 => Some(RecordKind::HostAbort),
            4 => Some(RecordKind::TensorMismatch),
            _ => None,
        }
    }
}

/// The word in a signal pad that ends every wait of its owner. 0: go on.
///
/// From the lowest bit: kind, culprit, origin, lane (8 bits each). It goes to the pads of all lanes: a communicator
/// fails as a whole. Whoever writes it last wins; every writer names a culprit of the same failure or of one that
/// happened at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortWord {
    /// What the origin found.
    pub kind: RecordKind,
    /// The rank that the origin blames.
    pub culprit: u32,
    /// The rank that found it first.
    pub origin: u32,
    /// The lane in which it did: there the origin has the record that tells more.
    pub lane: u32,
}

impl AbortWord {
    /// The word; never 0.
    #[inline(always)]
    pub const fn encode(self) -> u32 {
        self.kind as u32 | self.culprit << 8 | self.origin << 16 | self.lane << 24
    }

    /// Reads a word back; `None` if nobody aborted (0) or no abort encodes to it.
    pub const fn decode(word: u32) -> Option<Self> {
        match RecordKind::from_repr(word as u8) {
            Some(kind) => {
                Some(Self { kind, culprit: word >> 8 & 0xff, origin: word >> 16 & 0xff, lane: word >> 24 })
            }
            None => None,
        }
    }
}

/// The error record of a lane, in the [`crate::launch::HostPage`].
///
/// Claimed once by an atomic in device memory, filled, then marked valid with `st.release.sys`; never changed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ErrorRecord {
    /// 0: nothing went wrong, or the rest is not written yet.
    pub valid: u32,
    /// [`AbortWord::encode`]: what went wrong, who is blamed, who found it. Its origin and lane are this rank and this
    /// lane where the record tells of their own finding, others where the abort came from there.
    pub abort: u32,
    /// The peer that this kernel was waiting for or compared itself with; this rank when it did neither.
    pub peer: u32,
    /// The block that gave up.
    pub block: u32,
    /// The phase in which it did. Of a [`RecordKind::TensorMismatch`], the tensor's place in the caller's list.
    pub phase: u32,
    /// Zero.
    pub reserved: u32,
    /// The epoch that was waited for: one more than b, or than p in a call by packets.
    pub epoch_wanted: u64,
    /// The epoch that was last seen in the slot, or of a wait for packets with data in the header of the rank that sends them;
    /// 0: none of it was there.
    pub epoch_seen: u64,
    /// The descriptor of this rank's launch. Of a [`RecordKind::TensorMismatch`], the elements of this rank's tensor.
    pub launched: u64,
    /// The descriptor of the peer's launch, for a mismatch; else 0. Of a [`RecordKind::TensorMismatch`], the elements of the
    /// peer's tensor.
    pub peer_launched: u64,
    /// Nanoseconds from the begin of the wait until it was given up, by `%globaltimer`; 0: the kernel did not wait.
    pub waited_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn abort_words_survive_the_round_trip() {
        for kind in [
            RecordKind::PeerTimeout,
            RecordKind::LaunchMismatch,
            RecordKind::HostAbort,
            RecordKind::TensorMismatch,
        ] {
            for (culprit, origin, lane) in [(0, 0, 0), (7, 0, 0), (0, 7, 0), (0, 0, 63), (3, 5, 1)] {
                let word = AbortWord { kind, culprit, origin, lane };
                assert_ne!(word.encode(), 0);
                assert_eq!(AbortWord::decode(word.encode()), Some(word));
            }
        }
        assert_eq!(AbortWord::decode(0), None);
    }

    #[test]
    fn the_record_has_no_hidden_padding() {
        assert_eq!(size_of::<ErrorRecord>(), 6 * 4 + 5 * 8);
    }
}
