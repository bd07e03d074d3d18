//! What the halves of a basic channel tell each other of batches of writes.
#![forbid(unsafe_code)]

use std::sync::Arc;

use meshreduce_store::codec::{Malformed, Reader, Writer};

use super::packing::{MOST_RUNS, Run};
use crate::error::Error;
use crate::matching::FIRST_OWN_TAG;

/// The first tag of these messages.
pub(super) const FIRST_TAG: u8 = FIRST_OWN_TAG + 32;

const SLOTS: u8 = FIRST_TAG;
const PAGES: u8 = FIRST_TAG + 1;
const FREED: u8 = FIRST_TAG + 2;
const PLACED: u8 = FIRST_TAG + 3;
const CUT: u8 = FIRST_TAG + 4;
const DECLINED: u8 = FIRST_TAG + 5;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PageMessage<'a> {
    /// The writer's slots for batches; a descriptor comes along.
    Slots,
    /// Rows of a batch, and where they go.
    Pages(Pages<'a>),
    /// How many chunks the owner has done with, of all that there were.
    Freed { chunks: u64 },
    /// A batch is there.
    Placed { batch: u64, chunks: u64 },
    /// Of a batch nothing more comes.
    Cut { batch: u64, counter: u32, why: String },
    /// The owner does not take a batch.
    Declined { batch: u64, chunks: u64, why: DeclineReason },
}

/// A chunk: one without bytes has no slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pages<'a> {
    /// The number of the batch on its channel, from 0.
    pub(super) batch: u64,
    pub(super) region: u64,
    pub(super) counter: u32,
    /// The batch has no more.
    pub(super) is_last: bool,
    /// As they lie in the slot, one behind the other. (`from` is nobody's business here, and is nought.)
    pub(super) runs: Vec<Run>,
    pub(super) payload: &'a [u8],
}

/// Why a batch is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeclineReason {
    /// There is no such region.
    Gone,
    /// It is shorter.
    OutOfRegion { offset: u64, length: u64, bytes: u64 },
    /// Copying has failed.
    Failed(String),
}

impl DeclineReason {
    /// As the writer is told it.
    pub(super) fn error(self, peer: &Arc<str>) -> Error {
        let peer = Arc::clone(peer);
        match self {
            DeclineReason::Gone => {
                let what = "its owner has given it up, or it is another process's".into();
                Error::RegionGone { peer, what }
            }
            DeclineReason::OutOfRegion { offset, length, bytes } => {
                Error::OutOfRegion { whose: peer, offset, length, bytes }
            }
            DeclineReason::Failed(what) => Error::Remote { peer, what: what.into() },
        }
    }
}

impl<'a> PageMessage<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            PageMessage::Slots => out.u8(SLOTS),
            PageMessage::Pages(Pages { batch, region, counter, is_last, runs, payload }) => {
                out.u8(PAGES);
                out.u64(*batch);
                out.u64(*region);
                out.u32(*counter);
                out.u8((*is_last).into());
                out.list(runs, |out, run| {
                    [run.to, run.to_stride, run.bytes, run.count]
                        .into_iter()
                        .for_each(|number| out.u64(number));
                });
                out.raw(payload);
            }
            PageMessage::Freed { chunks } => {
                out.u8(FREED);
                out.u64(*chunks);
            }
            PageMessage::Placed { batch, chunks } => {
                out.u8(PLACED);
                out.u64(*batch);
                out.u64(*chunks);
            }
            PageMessage::Cut { batch, counter, why } => {
                out.u8(CUT);
                out.u64(*batch);
                out.u32(*counter);
                out.text(why);
            }
            PageMessage::Declined { batch, chunks, why } => {
                out.u8(DECLINED);
                out.u64(*batch);
                out.u64(*chunks);
                match why {
                    DeclineReason::Gone => out.u8(0),
                    DeclineReason::OutOfRegion { offset, length, bytes } => {
                        out.u8(1);
                        out.u64(*offset);
                        out.u64(*length);
                        out.u64(*bytes);
                    }
                    DeclineReason::Failed(what) => {
                        out.u8(2);
                        out.text(what);
                    }
                }
            }
        }
        out.into_bytes()
    }

    pub(super) fn decode(message: &'a [u8]) -> Result<Self, Malformed> {
        let from = &mut Reader::new(message);
        let said = match from.u8()? {
            SLOTS => PageMessage::Slots,
            PAGES => PageMessage::Pages(Pages {
                batch: from.u64()?,
                region: from.u64()?,
                counter: from.u32()?,
                is_last: from.u8()? != 0,
                runs: runs(from)?,
                payload: from.rest(),
            }),
            FREED => PageMessage::Freed { chunks: from.u64()? },
            PLACED => PageMessage::Placed { batch: from.u64()?, chunks: from.u64()? },
            CUT => PageMessage::Cut { batch: from.u64()?, counter: from.u32()?, why: from.text()? },
            DECLINED => PageMessage::Declined {
                batch: from.u64()?,
                chunks: from.u64()?,
                why: match from.u8()? {
                    0 => DeclineReason::Gone,
                    1 => DeclineReason::OutOfRegion {
                        offset: from.u64()?,
                        length: from.u64()?,
                        bytes: from.u64()?,
                    },
                    2 => DeclineReason::Failed(from.text()?),
                    other => return Err(Malformed::wrong(format!("a batch is declined for reason {other}"))),
                },
            },
            other => return Err(Malformed::wrong(format!("a message with the tag {other}"))),
        };
        from.end()?;
        Ok(said)
    }
}

fn runs(from: &mut Reader<'_>) -> Result<Vec<Run>, Malformed> {
    let runs = from.list(|from| {
        let [to, to_stride, bytes, count] = [from.u64()?, from.u64()?, from.u64()?, from.u64()?];
        if bytes == 0 || count == 0 || bytes.checked_mul(count).is_none() {
            return Err(Malformed::wrong(format!("{count} rows of {bytes} bytes")));
        }
        Ok(Run { from: 0, from_stride: 0, to, to_stride, bytes, count })
    })?;
    if runs.len() > MOST_RUNS {
        return Err(Malformed::wrong(format!("{} runs in a chunk, {MOST_RUNS} are the most", runs.len())));
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let run = Run { from: 0, from_stride: 0, to: 3, to_stride: 4, bytes: 2, count: 9 };
        let pages = |runs, payload| Pages { batch: 1, region: 2, counter: 3, is_last: true, runs, payload };
        for said in [
            PageMessage::Slots,
            PageMessage::Pages(pages(vec![run, run], &[1, 2])),
            PageMessage::Pages(pages(vec![], &[])),
            PageMessage::Freed { chunks: 7 },
            PageMessage::Placed { batch: 1, chunks: 7 },
            PageMessage::Cut { batch: 1, counter: 2, why: "dropped".into() },
            PageMessage::Declined { batch: 1, chunks: 2, why: DeclineReason::Gone },
            PageMessage::Declined {
                batch: 1,
                chunks: 2,
                why: DeclineReason::OutOfRegion { offset: 2, length: 3, bytes: 4 },
            },
            PageMessage::Declined { batch: 1, chunks: 2, why: DeclineReason::Failed("no".into()) },
        ] {
            let bytes = said.encode();
            assert_eq!(PageMessage::decode(&bytes), Ok(said));
        }
        let empty = Run { count: 0, ..run };
        assert!(PageMessage::decode(&PageMessage::Pages(pages(vec![empty], &[])).encode()).is_err());
        assert!(
            PageMessage::decode(&PageMessage::Pages(pages(vec![run; MOST_RUNS + 1], &[])).encode()).is_err()
        );
        assert!(PageMessage::decode(&[]).is_err() && PageMessage::decode(&[99]).is_err());
    }
}
