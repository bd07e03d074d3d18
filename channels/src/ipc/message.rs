//! What the two halves of a channel say to each other.
#![forbid(unsafe_code)]

use meshreduce_store::codec::{Malformed, Reader, Writer};

/// A message.
///
/// A transfer of some bytes: the receiver says `Wanted` when its memory is there to be written to; the sender stages a chunk and
/// says `Staged`; the receiver, when it has copied the chunk away, `Taken`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The sender's staging ring, before the first chunk.
    Ring(RingOffer),
    /// The receiver is ready for transfer `number` of `bytes` bytes.
    Wanted { number: u64, bytes: u64 },
    /// The receiver has given up transfer `number`.
    Unwanted { number: u64 },
    /// A chunk of transfer `number` is being copied into `slot`: it is there when the slot's word has reached `filled`.
    Staged { number: u64, offset: u64, bytes: u64, slot: u16, filled: u32 },
    /// The chunk in the slot is there: for receivers that do not see the word.
    Filled { slot: u16, filled: u32 },
    /// Transfer `number` has no bytes on the sender's side either.
    Nothing { number: u64 },
    /// The receive of that has ended well.
    NothingCame { number: u64 },
    /// The slot is free again.
    Taken { slot: u16 },
    /// The receiver does not see the words: tell it.
    Blind,
    /// The sender's transfer `number` has `sent` bytes, and not as many as the receiver wanted.
    Differs { number: u64, sent: u64 },
    /// The sender has given up transfer `number`.
    GivenUp { number: u64 },
    /// Transfer `number` has failed on the sender's side.
    SendFailed { number: u64, what: String },
    /// Transfer `number` has failed on the receiver's side.
    ReceiveFailed { number: u64, what: String },
    /// The writer asks for a region.
    Open { region: u64 },
    /// It may write to it, until it lets go of it.
    Opened { region: u64, offer: RegionOffer },
    /// There is no such region.
    Gone { region: u64, why: String },
    /// The region is being given up: the writer is to finish and to let go.
    Withdraw { region: u64 },
    /// The writer has let go of the region.
    Released { region: u64 },
    /// A batch for `counter` is there.
    Landed { counter: u32, bytes: u64 },
    /// A batch for `counter` will not come.
    Missed { counter: u32, why: String },
}

/// What the other side needs to open a staging ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RingOffer {
    pub(super) memory: MemoryOffer,
    pub(super) slots: u16,
    /// Bytes from one slot to the next.
    pub(super) stride: u64,
    pub(super) words: WordsOffer,
}

/// What it needs to open an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryOffer {
    /// The driver's.
    pub(super) handle: [u8; 64],
    /// The number of the allocation in the process that made it: the driver gives none twice, whatever the address.
    pub(super) buffer: u64,
    /// Bytes of the allocation.
    pub(super) bytes: u64,
}

/// What it needs to see words in host memory: the file that holds them, as a descriptor of the offering process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WordsOffer {
    pub(super) file: i32,
    /// What must be found there.
    pub(super) inode: u64,
}

/// A region in an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RegionOffer {
    pub(super) memory: MemoryOffer,
    /// Where it begins in the allocation.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl MemoryOffer {
    fn write(&self, out: &mut Writer) {
        out.raw(&self.handle);
        out.u64(self.buffer);
        out.u64(self.bytes);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { handle: from.array()?, buffer: from.u64()?, bytes: from.u64()? })
    }
}

impl Message {
    /// The number of the transfer that it speaks of.
    pub(super) fn transfer(&self) -> Option<u64> {
        match self {
            Message::Wanted { number, .. }
            | Message::Unwanted { number }
            | Message::Staged { number, .. }
            | Message::Nothing { number }
            | Message::NothingCame { number }
            | Message::Differs { number, .. }
            | Message::GivenUp { number }
            | Message::SendFailed { number, .. }
            | Message::ReceiveFailed { number, .. } => Some(*number),
            _ => None,
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        let kind = |out: &mut Writer, kind, numbers: &[u64]| {
            out.u8(kind);
            numbers.iter().for_each(|number| out.u64(*number));
        };
        match self {
            Message::Ring(RingOffer { memory, slots, stride, words }) => {
                kind(&mut out, 1, &[]);
                memory.write(&mut out);
                out.u16(*slots);
                out.u64(*stride);
                out.u32(words.file as u32);
                out.u64(words.inode);
            }
            Message::Wanted { number, bytes } => kind(&mut out, 2, &[*number, *bytes]),
            Message::Unwanted { number } => kind(&mut out, 3, &[*number]),
            Message::Staged { number, offset, bytes, slot, filled } => {
                kind(&mut out, 4, &[*number, *offset, *bytes]);
                out.u16(*slot);
                out.u32(*filled);
            }
            Message::Filled { slot, filled } => {
                out.u8(5);
                out.u16(*slot);
                out.u32(*filled);
            }
            Message::Nothing { number } => kind(&mut out, 6, &[*number]),
            Message::NothingCame { number } => kind(&mut out, 20, &[*number]),
            Message::Taken { slot } => {
                out.u8(7);
                out.u16(*slot);
            }
            Message::Blind => out.u8(8),
            Message::Differs { number, sent } => kind(&mut out, 9, &[*number, *sent]),
            Message::GivenUp { number } => kind(&mut out, 10, &[*number]),
            Message::Open { region } => kind(&mut out, 11, &[*region]),
            Message::Opened { region, offer: RegionOffer { memory, offset, bytes } } => {
                kind(&mut out, 12, &[*region]);
                memory.write(&mut out);
                out.u64(*offset);
                out.u64(*bytes);
            }
            Message::Gone { region, why } => {
                kind(&mut out, 13, &[*region]);
                out.text(why);
            }
            Message::Withdraw { region } => kind(&mut out, 14, &[*region]),
            Message::Released { region } => kind(&mut out, 15, &[*region]),
            Message::Landed { counter, bytes } => {
                kind(&mut out, 16, &[*bytes]);
                out.u32(*counter);
            }
            Message::Missed { counter, why } => {
                out.u8(17);
                out.u32(*counter);
                out.text(why);
            }
            Message::SendFailed { number, what } => {
                kind(&mut out, 18, &[*number]);
                out.text(what);
            }
            Message::ReceiveFailed { number, what } => {
                kind(&mut out, 19, &[*number]);
                out.text(what);
            }
        }
        out.into_bytes()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let from = &mut Reader::new(bytes);
        let message = match from.u8()? {
            1 => Message::Ring(RingOffer {
                memory: MemoryOffer::read(from)?,
                slots: from.u16()?,
                stride: from.u64()?,
                words: WordsOffer { file: from.u32()? as i32, inode: from.u64()? },
            }),
            2 => Message::Wanted { number: from.u64()?, bytes: from.u64()? },
            3 => Message::Unwanted { number: from.u64()? },
            4 => Message::Staged {
                number: from.u64()?,
                offset: from.u64()?,
                bytes: from.u64()?,
                slot: from.u16()?,
                filled: from.u32()?,
            },
            5 => Message::Filled { slot: from.u16()?, filled: from.u32()? },
            6 => Message::Nothing { number: from.u64()? },
            7 => Message::Taken { slot: from.u16()? },
            8 => Message::Blind,
            9 => Message::Differs { number: from.u64()?, sent: from.u64()? },
            10 => Message::GivenUp { number: from.u64()? },
            11 => Message::Open { region: from.u64()? },
            12 => Message::Opened {
                region: from.u64()?,
                offer: RegionOffer {
                    memory: MemoryOffer::read(from)?,
                    offset: from.u64()?,
                    bytes: from.u64()?,
                },
            },
            13 => Message::Gone { region: from.u64()?, why: from.text()? },
            14 => Message::Withdraw { region: from.u64()? },
            15 => Message::Released { region: from.u64()? },
            16 => {
                let bytes = from.u64()?;
                Message::Landed { counter: from.u32()?, bytes }
            }
            17 => Message::Missed { counter: from.u32()?, why: from.text()? },
            18 => Message::SendFailed { number: from.u64()?, what: from.text()? },
            19 => Message::ReceiveFailed { number: from.u64()?, what: from.text()? },
            20 => Message::NothingCame { number: from.u64()? },
            other => return Err(Malformed::wrong(format!("message of kind {other}"))),
        };
        from.end()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let memory = MemoryOffer { handle: [7; 64], buffer: 9, bytes: 1 << 25 };
        let words = WordsOffer { file: 12, inode: 13 };
        for message in [
            Message::Ring(RingOffer { memory: memory.clone(), slots: 4, stride: 8 << 20, words }),
            Message::Wanted { number: 1, bytes: 2 },
            Message::Unwanted { number: 3 },
            Message::Staged { number: 1, offset: 2, bytes: 3, slot: 4, filled: 5 },
            Message::Filled { slot: 1, filled: 2 },
            Message::Nothing { number: 1 },
            Message::NothingCame { number: 1 },
            Message::Taken { slot: 2 },
            Message::Blind,
            Message::Differs { number: 1, sent: 2 },
            Message::GivenUp { number: 1 },
            Message::SendFailed { number: 1, what: "no".into() },
            Message::ReceiveFailed { number: 1, what: "no".into() },
            Message::Open { region: 1 },
            Message::Opened { region: 1, offer: RegionOffer { memory, offset: 512, bytes: 7 } },
            Message::Gone { region: 1, why: "gone".into() },
            Message::Withdraw { region: 1 },
            Message::Released { region: 1 },
            Message::Landed { counter: 1, bytes: 2 },
            Message::Missed { counter: 1, why: "lost".into() },
        ] {
            let bytes = message.to_bytes();
            assert_eq!(Message::from_bytes(&bytes), Ok(message));
            assert!(Message::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        }
        assert!(Message::from_bytes(&[99]).is_err() && Message::from_bytes(&[]).is_err());
    }
}
