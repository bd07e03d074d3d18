//! Frames: what goes over a connection between two ranks, a ring or TCP alike.
//!
//! A header, then as many bytes of data as it says, at most [`MOST_DATA`]. Over TCP a header is eight words, little-endian.
#![forbid(unsafe_code)]

use super::fingerprint::Fingerprint;

/// Bytes of a header over TCP, and what a message is counted with in a window.
pub(super) const HEADER: usize = 64;
/// Most bytes of data in a frame: of a connection, where each costs a call of the system at both ends. (A ring takes fewer.)
pub(super) const MOST_DATA: usize = 1 << 20;
/// Longest message that is sent without being asked for.
pub(super) const EAGER: usize = 16 << 10;

/// What every header of a connection begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"mesh red");

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
    /// The sender waits in the call of the fingerprint.
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
    pub(super) fingerprint: Fingerprint,
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
        Self {
            kind,
            channel: Channel::Peer,
            tag: 0,
            fingerprint: Fingerprint::default(),
            bytes,
            id: 0,
            to: 0,
        }
    }

    /// Bytes that follow it.
    pub(super) fn data(&self) -> usize {
        match self.kind {
            Kind::Eager | Kind::Data | Kind::Failed => self.bytes as usize,
            _ => 0,
        }
    }

    /// Words of a header.
    pub(super) const WORDS: usize = 7;

    fn first_word(kind: Kind, channel: Channel, tag: u32) -> u64 {
        kind as u64 | (channel as u64) << 8 | u64::from(tag) << 32
    }

    /// Whether these words are those of a message that a receive of the call `own`, of so many bytes, with that tag expects, and which is
    /// all there: on the way of every short message, in place of all that [`Header::of_words`] looks at.
    #[inline]
    pub(super) fn is_expected(words: &[u64; Self::WORDS], tag: u32, own: &Fingerprint, bytes: usize) -> bool {
        let [first, sequence, what, count, length, ..] = *words;
        first == Self::first_word(Kind::Eager, Channel::Peer, tag)
            && length == bytes as u64
            && own.is_typed_as(&Fingerprint { sequence, what, count })
    }

    #[inline]
    pub(super) fn words(&self) -> [u64; Self::WORDS] {
        let first = Self::first_word(self.kind, self.channel, self.tag);
        let Fingerprint { sequence, what, count } = self.fingerprint;
        [first, sequence, what, count, self.bytes, self.id, self.to]
    }

    pub(super) fn of_words(words: [u64; Self::WORDS]) -> Result<Self, Malformed> {
        let [first, sequence, what, count, bytes, id, to] = words;
        let kind = match first as u8 {
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
        let channel = match first >> 8 & 0xff_ffff {
            0 => Channel::Peer,
            1 => Channel::Group,
            _ => return Err(Malformed),
        };
        let fingerprint = Fingerprint { sequence, what, count };
        let most = match kind {
            Kind::Eager => EAGER as u64,
            Kind::Data | Kind::Failed => MOST_DATA as u64,
            Kind::Offer => isize::MAX as u64,
            _ => u64::MAX,
        };
        if bytes > most {
            return Err(Malformed);
        }
        Ok(Self { kind, channel, tag: (first >> 32) as u32, fingerprint, bytes, id, to })
    }

    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        for (place, word) in out.chunks_exact_mut(8).zip([MAGIC].into_iter().chain(self.words())) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8; HEADER]) -> Result<Self, Malformed> {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
            u64::from_le_bytes(word)
        };
        if word(0) != MAGIC {
            return Err(Malformed);
        }
        Self::of_words(std::array::from_fn(|at| word(at + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receive_expects_one_message() {
        let own = Fingerprint { sequence: 9, what: 3 | 5 << 8, count: 4 };
        let fingerprint = Fingerprint { sequence: 1, what: 2 | 5 << 8, count: 4 };
        let channel = Channel::Peer;
        let header = Header { channel, tag: 7, fingerprint, ..Header::short(Kind::Eager, 16) };
        let is_expected = |header: Header| Header::is_expected(&header.words(), 7, &own, 16);
        assert!(is_expected(header));
        let other_type = Fingerprint { what: 2 | 6 << 8, ..fingerprint };
        let others = [
            Header { kind: Kind::Offer, ..header },
            Header { channel: Channel::Group, ..header },
            Header { tag: 8, ..header },
            Header { bytes: 12, ..header },
            Header { fingerprint: other_type, ..header },
        ];
        for other in others {
            assert!(!is_expected(other), "{other:?}");
        }
    }

    #[test]
    fn headers_come_back_and_nonsense_does_not() {
        let fingerprint = Fingerprint { sequence: 1, what: 2, count: 3 };
        let header = Header {
            kind: Kind::Offer,
            channel: Channel::Group,
            tag: 4,
            fingerprint,
            bytes: 5,
            id: 6,
            to: 7,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for (at, value) in [(0, 0), (8, 0), (8, 10), (9, 2), (11, 1)] {
            let mut wrong = bytes;
            wrong[at] = value;
            assert_eq!(Header::decode(&wrong), Err(Malformed), "byte {at}");
        }
        let long = Header { kind: Kind::Eager, bytes: EAGER as u64 + 1, ..header };
        assert_eq!(Header::decode(&long.encode()), Err(Malformed));
    }
}
