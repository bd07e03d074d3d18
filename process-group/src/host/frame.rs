//! Frames: what goes over a connection between two ranks, a ring or TCP alike.
//!
//! A header of 64 bytes, little-endian, then as many bytes of data as it says, at most [`MOST_DATA`].
#![forbid(unsafe_code)]

use super::stamp::Stamp;

/// Bytes of a header.
pub(super) const HEADER: usize = 64;
/// Most bytes of data in a frame.
pub(super) const MOST_DATA: usize = 64 << 10;
/// Longest message that is sent without being asked for.
pub(super) const EAGER: usize = 16 << 10;

const MAGIC: u16 = 0x6d72;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A message, all of it.
    Eager = 1,
    /// A message of so many bytes is there, to be asked for by its id.
    Offer = 2,
    /// The message of that id is wanted; the asker's id comes with it.
    Want = 3,
    /// A piece of the message that was wanted under that id.
    Data = 4,
    /// So many bytes of messages that were sent unasked have been taken.
    Taken = 5,
    /// The sender waits in the call of the stamp.
    Waiting = 6,
    /// The sequence number (plus 1) that the sender has come to.
    Position = 7,
    /// The sender has failed, as the data say.
    Failed = 8,
    /// The sender has left: it was shut down, or dropped.
    Left = 9,
}

/// Whose message it is: user's sends, or a collective's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Channel {
    /// Sends and receives.
    Peer = 0,
    /// Collectives: tags are steps.
    Group = 1,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) channel: Channel,
    pub(super) tag: u32,
    pub(super) stamp: Stamp,
    /// Of the message, of the data, or of what was taken; the position; how somebody has left.
    pub(super) bytes: u64,
    /// Whose it is here.
    pub(super) id: u64,
    /// Whose it is there.
    pub(super) to: u64,
}

/// It is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it sent makes no sense")]
pub(super) struct Malformed;

impl Header {
    /// One that says nothing but `kind` and a number.
    pub(super) fn short(kind: Kind, bytes: u64) -> Self {
        Self { kind, channel: Channel::Peer, tag: 0, stamp: Stamp::default(), bytes, id: 0, to: 0 }
    }

    /// Bytes that follow it.
    pub(super) fn data(&self) -> usize {
        match self.kind {
            Kind::Eager | Kind::Data | Kind::Failed => self.bytes as usize,
            _ => 0,
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        out[2] = self.kind as u8;
        out[3] = self.channel as u8;
        out[4..8].copy_from_slice(&self.tag.to_le_bytes());
        let words = [self.stamp.sequence, self.stamp.what, self.stamp.count, self.bytes, self.id, self.to];
        for (place, word) in out[8..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8; HEADER]) -> Result<Self, Malformed> {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 + index * 8..16 + index * 8]);
            u64::from_le_bytes(word)
        };
        if bytes[0..2] != MAGIC.to_le_bytes() {
            return Err(Malformed);
        }
        let kind = match bytes[2] {
            1 => Kind::Eager,
            2 => Kind::Offer,
            3 => Kind::Want,
            4 => Kind::Data,
            5 => Kind::Taken,
            6 => Kind::Waiting,
            7 => Kind::Position,
            8 => Kind::Failed,
            9 => Kind::Left,
            _ => return Err(Malformed),
        };
        let channel = match bytes[3] {
            0 => Channel::Peer,
            1 => Channel::Group,
            _ => return Err(Malformed),
        };
        let tag = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let stamp = Stamp { sequence: word(0), what: word(1), count: word(2) };
        let header = Self { kind, channel, tag, stamp, bytes: word(3), id: word(4), to: word(5) };
        let most = match kind {
            Kind::Eager => EAGER as u64,
            Kind::Data | Kind::Failed => MOST_DATA as u64,
            Kind::Offer => isize::MAX as u64,
            _ => u64::MAX,
        };
        if header.bytes > most { Err(Malformed) } else { Ok(header) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_nonsense_does_not() {
        let stamp = Stamp { sequence: 1, what: 2, count: 3 };
        let header =
            Header { kind: Kind::Offer, channel: Channel::Group, tag: 4, stamp, bytes: 5, id: 6, to: 7 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for (at, value) in [(0, 0), (2, 0), (2, 10), (3, 2)] {
            let mut wrong = bytes;
            wrong[at] = value;
            assert_eq!(Header::decode(&wrong), Err(Malformed), "byte {at}");
        }
        let long = Header { kind: Kind::Eager, bytes: EAGER as u64 + 1, ..header };
        assert_eq!(Header::decode(&long.encode()), Err(Malformed));
    }
}
