//! How messages lie in a stream of bytes.
//!
//! `length u32 | channel u32 | kind u8 | descriptors u8 | 0 u16 | body`, little-endian; the length is the body's. Descriptors go
//! with a message's first byte (`SCM_RIGHTS`, unix(7)).
#![forbid(unsafe_code)]

/// Bytes before a body.
pub(crate) const HEADER: usize = 12;
/// The longest body that is believed.
pub(crate) const LONGEST: usize = 64 << 20;
/// Descriptors of one message.
pub(crate) const MOST_FILES: usize = meshreduce_store::descriptors::MOST;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Who this is, and what it has.
    Hello,
    /// The listening side's choice of channels.
    Choices,
    /// What the connecting side makes of it.
    Verdict,
    /// A channel's own.
    Channel,
    /// That the process is alive.
    Heartbeat,
    /// That the endpoint was closed.
    Goodbye,
    /// That a channel has failed, and why.
    Failed,
    /// That batches for counters of the other side's, written over this channel, do not come, and why.
    Missed,
    /// That a channel, or with the number 0 everything, has ended, and uses nothing of the other side's any more.
    Quiet,
    /// The listening side's last word before channels: both agree, and are connected.
    Welcome,
}

impl Kind {
    const ALL: [Kind; 10] = [
        Kind::Hello,
        Kind::Choices,
        Kind::Verdict,
        Kind::Channel,
        Kind::Heartbeat,
        Kind::Goodbye,
        Kind::Failed,
        Kind::Missed,
        Kind::Quiet,
        Kind::Welcome,
    ];

    fn number(self) -> u8 {
        self as u8 + 1
    }
}

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) length: usize,
    pub(crate) channel: u32,
    pub(crate) kind: Kind,
    pub(crate) files: usize,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.channel.to_le_bytes());
        bytes[8] = self.kind.number();
        bytes[9] = self.files as u8;
        bytes
    }

    /// The header at the beginning of `bytes`; `None` if it is not there in whole.
    ///
    /// # Errors
    ///
    /// What cannot be.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, String> {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h, kind, files, rest @ ..] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let channel = u32::from_le_bytes([e, f, g, h]);
        if length > LONGEST {
            return Err(format!("a message of {length} bytes, {LONGEST} are the most"));
        }
        let Some(kind) = Kind::ALL.into_iter().find(|one| one.number() == kind) else {
            return Err(format!("a message of kind {kind}"));
        };
        let files = usize::from(files);
        if files > MOST_FILES || rest != [0; 2] {
            return Err(format!("a message with {files} descriptors and the marks {rest:?}"));
        }
        Ok(Some(Self { length, channel, kind, files }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_come_back() {
        for kind in Kind::ALL {
            let header = Header { length: 70_000, channel: 9, kind, files: 2 };
            assert_eq!(Header::decode(&header.encode()), Ok(Some(header)));
            assert_eq!(Header::decode(&header.encode()[..HEADER - 1]), Ok(None));
        }
    }

    proptest! {
        #[test]
        fn what_is_read_from_any_bytes_can_be_believed(bytes in any::<[u8; HEADER]>()) {
            if let Ok(Some(header)) = Header::decode(&bytes) {
                prop_assert!(header.length <= LONGEST && header.files <= MOST_FILES);
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
