//! What the halves of a basic channel tell each other.
#![forbid(unsafe_code)]

use meshreduce_store::codec::{Malformed, Reader, Writer};

use crate::matching::FIRST_OWN_TAG;

/// The layout of descriptors and messages.
const VERSION: u8 = 1;

const SLOTS: u8 = FIRST_OWN_TAG;
const CHUNK: u8 = FIRST_OWN_TAG + 1;
const FREED: u8 = FIRST_OWN_TAG + 2;
const TAKEN: u8 = FIRST_OWN_TAG + 3;
const FAILED: u8 = FIRST_OWN_TAG + 4;

/// How many slots there are for one direction of a channel, and how long each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) slots: u32,
    pub(super) bytes: usize,
}

impl Shape {
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn check(self) -> Result<Self, String> {
        let Self { slots, bytes } = self;
        let is_good = (1..=4096).contains(&slots)
            && bytes.is_multiple_of(4096)
            && (4096..=32 << 20).contains(&bytes)
            && self.total() <= 1 << 30;
        if is_good { Ok(self) } else { Err(format!("{slots} slots of {bytes} bytes")) }
    }

    /// Bytes of all slots.
    pub(super) fn total(self) -> usize {
        self.slots as usize * self.bytes
    }

    /// What the other side is told of a device.
    pub(super) fn descriptor(self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION);
        out.u32(self.slots);
        out.u64(self.bytes as u64);
        out.into_bytes()
    }

    pub(super) fn of_descriptor(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let version = from.u8()?;
        if version != VERSION {
            return Err(Malformed::wrong(format!("version {version}, and {VERSION} here")));
        }
        let slots = from.u32()?;
        let bytes = usize::try_from(from.u64()?).map_err(|_| Malformed::wrong("slots of too many bytes"))?;
        from.end()?;
        Self { slots, bytes }.check().map_err(Malformed::Wrong)
    }
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ControlMessage<'a> {
    /// The sender's slots; a descriptor comes along.
    Slots,
    /// A piece of a send. The first one announces it; one without bytes has no slot.
    Chunk { piece: Piece, payload: &'a [u8] },
    /// How many chunks the receiver has done with, of all that there were.
    Freed { chunks: u64 },
    /// A receive is done.
    Taken { number: u64, chunks: u64 },
    /// A send that was announced has failed.
    Failed { number: u64, what: &'a str },
}

/// A piece of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which send.
    pub(super) number: u64,
    /// Bytes of the send.
    pub(super) total: u64,
    /// Where in the send the piece begins.
    pub(super) offset: u64,
    /// Bytes of the piece.
    pub(super) bytes: u64,
}

impl<'a> ControlMessage<'a> {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            ControlMessage::Slots => out.u8(SLOTS),
            ControlMessage::Chunk { piece: Piece { number, total, offset, bytes }, payload } => {
                out.u8(CHUNK);
                [number, total, offset, bytes].into_iter().for_each(|value| out.u64(value));
                out.raw(payload);
            }
            ControlMessage::Freed { chunks } => {
                out.u8(FREED);
                out.u64(chunks);
            }
            ControlMessage::Taken { number, chunks } => {
                out.u8(TAKEN);
                out.u64(number);
                out.u64(chunks);
            }
            ControlMessage::Failed { number, what } => {
                out.u8(FAILED);
                out.u64(number);
                out.raw(what.as_bytes());
            }
        }
        out.into_bytes()
    }

    pub(super) fn decode(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(message);
        let said = match from.u8()? {
            SLOTS => ControlMessage::Slots,
            CHUNK => {
                let piece = Piece {
                    number: from.u64()?,
                    total: from.u64()?,
                    offset: from.u64()?,
                    bytes: from.u64()?,
                };
                ControlMessage::Chunk { piece, payload: from.rest() }
            }
            FREED => ControlMessage::Freed { chunks: from.u64()? },
            TAKEN => ControlMessage::Taken { number: from.u64()?, chunks: from.u64()? },
            FAILED => ControlMessage::Failed { number: from.u64()?, what: text(from.rest())? },
            other => return Err(Malformed::wrong(format!("a message with the tag {other}"))),
        };
        from.end()?;
        Ok(said)
    }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::wrong("a text in it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let piece = Piece { number: 1, total: 2, offset: 3, bytes: 4 };
        for said in [
            ControlMessage::Slots,
            ControlMessage::Chunk { piece, payload: &[1, 2] },
            ControlMessage::Freed { chunks: 7 },
            ControlMessage::Taken { number: 1, chunks: 7 },
            ControlMessage::Failed { number: 1, what: "no" },
        ] {
            assert_eq!(ControlMessage::decode(&said.encode()), Ok(said));
        }
        assert!(ControlMessage::decode(&[]).is_err() && ControlMessage::decode(&[99]).is_err());
    }

    #[test]
    fn descriptors_are_believed_only_within_bounds() {
        let shape = Shape { slots: 16, bytes: 1 << 20 };
        assert_eq!(Shape::of_descriptor(&shape.descriptor()), Ok(shape));
        for (slots, bytes) in [(0, 4096), (1, 0), (1, 4097), (4097, 4096), (1, 64 << 20), (4096, 1 << 20)] {
            assert!(Shape::of_descriptor(&Shape { slots, bytes }.descriptor()).is_err(), "{slots} {bytes}");
        }
    }
}
