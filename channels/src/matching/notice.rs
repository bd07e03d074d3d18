//! What the halves of a channel say of a transfer, whatever their kind.

use meshreduce_store::codec::{Malformed, Reader, Writer};

/// The first byte of messages of a kind's own is this or more.
pub const FIRST_OWN_TAG: u8 = 16;

/// What is said of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A send was started.
    Announced {
        /// Which one of its channel, from 0.
        number: u64,
        /// Its bytes.
        bytes: u64,
        /// What the kind adds.
        payload: Vec<u8>,
    },
    /// A send that was announced is not wanted any more.
    Withdrawn {
        /// Which one.
        number: u64,
    },
    /// The receive does not take what was announced.
    Refused {
        /// Which one.
        number: u64,
        /// Why.
        refusal: Refusal,
    },
}

/// Why a receive does not take what was announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has another length.
    Lengths {
        /// Bytes of the receive.
        expected: u64,
    },
    /// It was dropped, or the send was withdrawn.
    Dropped,
    /// It has failed.
    Failed {
        /// How, for people.
        what: String,
    },
}

const ANNOUNCED: u8 = 0;
const WITHDRAWN: u8 = 1;
const REFUSED_FOR_LENGTH: u8 = 2;
const REFUSED_AS_DROPPED: u8 = 3;
const REFUSED_AS_FAILED: u8 = 4;

impl Notice {
    /// What [`Notice::decode`] reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Notice::Announced { number, bytes, payload } => {
                out.u8(ANNOUNCED);
                out.u64(*number);
                out.u64(*bytes);
                out.raw(payload);
            }
            Notice::Withdrawn { number } => {
                out.u8(WITHDRAWN);
                out.u64(*number);
            }
            Notice::Refused { number, refusal: Refusal::Lengths { expected } } => {
                out.u8(REFUSED_FOR_LENGTH);
                out.u64(*number);
                out.u64(*expected);
            }
            Notice::Refused { number, refusal: Refusal::Dropped } => {
                out.u8(REFUSED_AS_DROPPED);
                out.u64(*number);
            }
            Notice::Refused { number, refusal: Refusal::Failed { what } } => {
                out.u8(REFUSED_AS_FAILED);
                out.u64(*number);
                out.text(what);
            }
        }
        out.into_bytes()
    }

    /// Reads what [`Notice::encode`] wrote; `None`: it is a message of the kind's own.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is neither.
    pub fn decode(message: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut from = Reader::new(message);
        let notice = match from.u8()? {
            ANNOUNCED => {
                Notice::Announced { number: from.u64()?, bytes: from.u64()?, payload: from.rest().to_vec() }
            }
            WITHDRAWN => Notice::Withdrawn { number: from.u64()? },
            REFUSED_FOR_LENGTH => {
                Notice::Refused { number: from.u64()?, refusal: Refusal::Lengths { expected: from.u64()? } }
            }
            REFUSED_AS_DROPPED => Notice::Refused { number: from.u64()?, refusal: Refusal::Dropped },
            REFUSED_AS_FAILED => {
                let (number, what) = (from.u64()?, from.text()?);
                Notice::Refused { number, refusal: Refusal::Failed { what } }
            }
            FIRST_OWN_TAG.. => return Ok(None),
            other => return Err(Malformed::wrong(format!("a notice with the tag {other}"))),
        };
        from.end()?;
        Ok(Some(notice))
    }
}
