//! The numbers that work requests come back with.
//!
//! A failed completion says nothing reliable but its number (its opcode is garbage), so the number says it all: which channel,
//! which of its queue pairs, and whether it was a send or a receive.
#![forbid(unsafe_code)]

/// A work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkId {
    /// The channel, by its number in the process; of 24 bits.
    pub(crate) channel: u32,
    /// The queue pair, by its number in the channel.
    pub(crate) pair: u8,
    /// What it was.
    pub(crate) kind: Kind,
    /// Sends: the chain that it was posted with, of 30 bits.
    pub(crate) chain: u32,
}

/// What a work request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A write that is not the last of its chain: it completes only if it fails.
    Chained,
    /// The last write of a chain: when it completes, well or not, nothing of the chain is under way any more.
    Last,
    /// A receive.
    Receive,
}

/// Channels are numbered below this.
pub(crate) const CHANNELS: u32 = 1 << 24;
/// Chains are numbered below this.
pub(crate) const CHAINS: u32 = 1 << 30;

impl WorkId {
    /// As `wr_id` has it.
    pub(crate) fn to_u64(self) -> u64 {
        let kind = match self.kind {
            Kind::Chained => 0,
            Kind::Last => 1,
            Kind::Receive => 2,
        };
        (u64::from(self.channel % CHANNELS) << 40)
            | (u64::from(self.pair) << 32)
            | (kind << 30)
            | u64::from(self.chain % CHAINS)
    }

    /// From a completion; `None`: nothing here has posted it.
    pub(crate) fn from_u64(id: u64) -> Option<Self> {
        let kind = match id >> 30 & 3 {
            0 => Kind::Chained,
            1 => Kind::Last,
            2 => Kind::Receive,
            _ => return None,
        };
        let (channel, pair) = ((id >> 40) as u32, (id >> 32) as u8);
        Some(Self { channel, pair, kind, chain: id as u32 % CHAINS })
    }
}

/// What the number that comes with a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Immediate {
    /// The queue pair has come up.
    Hello,
    /// A piece of a transfer is there: the lower 30 bits of its number.
    Transfer(u32),
    /// A queue pair's part of a batch is there: the lower 30 bits of its number.
    Batch(u32),
}

/// Numbers in immediates are below this.
pub(crate) const IMMEDIATES: u32 = 1 << 30;

impl Immediate {
    /// As it travels.
    pub(crate) fn to_u32(self) -> u32 {
        match self {
            Self::Hello => 0,
            Self::Transfer(number) => (1 << 30) | (number % IMMEDIATES),
            Self::Batch(number) => (2 << 30) | (number % IMMEDIATES),
        }
    }

    /// From a completion; `None`: this library sends no such.
    pub(crate) fn from_u32(immediate: u32) -> Option<Self> {
        let number = immediate % IMMEDIATES;
        match immediate >> 30 {
            0 if number == 0 => Some(Self::Hello),
            1 => Some(Self::Transfer(number)),
            2 => Some(Self::Batch(number)),
            _ => None,
        }
    }
}

/// The number with these lower 30 bits that is nearest at or above `least`.
pub(crate) fn widen(lower: u32, least: u64) -> u64 {
    let ahead = lower.wrapping_sub(least as u32) % IMMEDIATES;
    least + u64::from(ahead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_work_request_is_known_by_its_number(channel in 0..CHANNELS, pair: u8, kind in 0..3_u8, chain in 0..CHAINS) {
            let kind = [Kind::Chained, Kind::Last, Kind::Receive][kind as usize];
            let id = WorkId { channel, pair, kind, chain };
            prop_assert_eq!(WorkId::from_u64(id.to_u64()), Some(id));
        }

        #[test]
        fn immediates_survive_the_round_trip(number in 0..IMMEDIATES) {
            for immediate in [Immediate::Hello, Immediate::Transfer(number), Immediate::Batch(number)] {
                prop_assert_eq!(Immediate::from_u32(immediate.to_u32()), Some(immediate));
            }
        }

        #[test]
        fn a_number_is_known_by_its_lower_bits(least in 0..1_u64 << 60, ahead in 0..IMMEDIATES) {
            let number = least + u64::from(ahead);
            prop_assert_eq!(widen(number as u32 % IMMEDIATES, least), number);
        }
    }

    #[test]
    fn what_nobody_posted_is_nobodys() {
        assert_eq!(WorkId::from_u64(3 << 30), None);
        assert_eq!((Immediate::from_u32(5), Immediate::from_u32(u32::MAX)), (None, None));
    }
}
