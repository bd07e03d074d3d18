//! What goes from one queue pair to another.

use crate::address::PortAddress;

/// Most bytes of a message in one frame.
pub(crate) const CHUNK: usize = 64 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The beginning of a message, or a request to read.
    Request = 1,
    /// More of a message.
    Data = 2,
    /// The message has arrived.
    Acknowledge = 3,
    /// The message was refused: `code` is the status for the sender.
    Refuse = 4,
    /// No receive was posted: `code` is how long to wait.
    NotReady = 5,
    /// Nobody heard the message, as if it had been lost on the way. Hardware learns that by waiting; so does the sender.
    Lost = 6,
    /// Bytes that were to be read.
    Answer = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Data,
            3 => Self::Acknowledge,
            4 => Self::Refuse,
            5 => Self::NotReady,
            6 => Self::Lost,
            7 => Self::Answer,
            _ => return None,
        })
    }
}

/// The head of a frame; `bytes` bytes follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    /// Of a request: the operation, as work requests have it.
    pub(crate) opcode: u8,
    /// See [`Kind`].
    pub(crate) code: u8,
    /// Of a request: whether the receiver asked to be told of such.
    pub(crate) solicited: bool,
    /// The code of the sender's largest packet.
    pub(crate) mtu: u8,
    /// The queue pair that it is for.
    pub(crate) to: u32,
    /// The queue pair that it is from.
    pub(crate) from: u32,
    /// The message's number within its queue pair.
    pub(crate) message: u32,
    /// How often the sender has begun anew; what belongs to an earlier attempt is not heard any more.
    pub(crate) attempt: u64,
    /// The number of the sender's first packet.
    pub(crate) first_packet: u32,
    /// Bytes of the whole message.
    pub(crate) length: u32,
    /// Where in the message this frame's bytes are.
    pub(crate) offset: u32,
    /// Bytes that follow.
    pub(crate) bytes: u32,
    /// The immediate, in network order.
    pub(crate) imm: u32,
    /// Of an operation on memory: its key.
    pub(crate) rkey: u32,
    /// Of an operation on memory: its address.
    pub(crate) address: u64,
    /// The network of the sender's adapter.
    pub(crate) fabric: u64,
    /// The port that it is for.
    pub(crate) port: PortAddress,
    /// The port that it is from.
    pub(crate) source: PortAddress,
}

impl Frame {
    /// Bytes of a head.
    pub(crate) const SIZE: usize = 104;

    /// A frame that answers this one.
    pub(crate) fn answer(&self, kind: Kind, code: u8) -> Self {
        Self {
            kind,
            code,
            to: self.from,
            from: self.to,
            bytes: 0,
            port: self.source,
            source: self.port,
            ..*self
        }
    }

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&[
            self.kind as u8,
            self.opcode,
            self.code,
            self.solicited.into(),
            self.mtu,
            self.port.kind,
            self.source.kind,
            0,
        ]);
        let words = [
            self.to,
            self.from,
            self.message,
            self.first_packet,
            self.length,
            self.offset,
            self.bytes,
            self.imm,
            self.rkey,
            0,
        ];
        for (place, word) in bytes[8..48].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        for (place, long) in bytes[48..72].chunks_exact_mut(8).zip([self.attempt, self.address, self.fabric])
        {
            place.copy_from_slice(&long.to_le_bytes());
        }
        bytes[72..88].copy_from_slice(&self.port.gid);
        bytes[88..104].copy_from_slice(&self.source.gid);
        bytes
    }

    /// `None` if the bytes are no head of a frame: whoever sent them is no adapter.
    pub(crate) fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let word = |index: usize| {
            let at = 8 + 4 * index;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long =
            |at: usize| bytes[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        let gid = |at: usize, kind: u8| {
            let mut gid = [0; 16];
            gid.copy_from_slice(&bytes[at..at + 16]);
            PortAddress { gid, kind }
        };
        let frame = Self {
            kind: Kind::from_byte(bytes[0])?,
            opcode: bytes[1],
            code: bytes[2],
            solicited: bytes[3] != 0,
            mtu: bytes[4],
            to: word(0),
            from: word(1),
            message: word(2),
            first_packet: word(3),
            length: word(4),
            offset: word(5),
            bytes: word(6),
            imm: word(7),
            rkey: word(8),
            attempt: long(48),
            address: long(56),
            fabric: long(64),
            port: gid(72, bytes[5]),
            source: gid(88, bytes[6]),
        };
        (frame.bytes as usize <= CHUNK).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let frame = Frame {
            kind: Kind::Answer,
            opcode: 4,
            code: 9,
            solicited: true,
            mtu: 5,
            to: 1,
            from: 2,
            message: 3,
            attempt: 0x2122_2324_2526_2728,
            first_packet: 5,
            length: 6,
            offset: 7,
            bytes: 8,
            imm: 9,
            rkey: 10,
            address: 0x0102_0304_0506_0708,
            fabric: 0x1112_1314_1516_1718,
            port: PortAddress { gid: [1; 16], kind: 2 },
            source: PortAddress { gid: [3; 16], kind: 255 },
        };
        assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        let back = frame.answer(Kind::Lost, 0);
        assert_eq!((back.to, back.from, back.port, back.source), (2, 1, frame.source, frame.port));
    }

    #[test]
    fn bytes_that_are_no_head_are_refused() {
        assert_eq!(Frame::decode(&[0; Frame::SIZE]), None);
        let mut too_long = [0; Frame::SIZE];
        too_long[0] = 1;
        too_long[32..36].copy_from_slice(&(CHUNK as u32 + 1).to_le_bytes());
        assert_eq!(Frame::decode(&too_long), None);
    }
}
