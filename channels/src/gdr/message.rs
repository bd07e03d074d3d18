//! What the two halves of a channel say to one another over the link.
#![forbid(unsafe_code)]

use meshreduce_store::codec::{Malformed, Reader, Writer};

use crate::matching::FIRST_OWN_TAG;

/// The longest text that one side explains something with.
const MOST_TEXT: usize = 4096;
/// The most lanes of a transfer; nobody has as many NICs.
const MOST_LANES: usize = 64;

/// A message. `pair` numbers the queue pairs of a channel, in the order in which they were begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// To the connecting side: there are writes to be made, open what they need.
    Need {
        /// All rails; else one will do.
        all: bool,
    },
    /// From the connecting side: a queue pair is to be made.
    Open(Open),
    /// The answer: the other queue pair is there, and ready.
    Opened {
        /// Which.
        pair: u8,
        /// Its number.
        queue_pair: u32,
        /// Its first packet's number.
        sequence: u32,
    },
    /// The answer: it cannot be made.
    Refused {
        /// Which.
        pair: u8,
        /// Why.
        what: String,
    },
    /// From the connecting side: the pair did not come up in time, or at all.
    GivenUp {
        /// Which.
        pair: u8,
        /// Why.
        what: String,
    },
    /// From the connecting side: these queue pairs are up and carry transfers, in this order.
    Settled {
        /// All rails that there are to be are among them; else it is the first alone.
        all: bool,
        /// Which.
        pairs: Vec<u8>,
    },
    /// A send's memory may be read. Not said of one whose announcement says so.
    ReadyToSend {
        /// The number of the transfer.
        number: u64,
    },
    /// A receive's memory may be written, and receives are posted.
    ReadyToReceive {
        /// The number of the transfer.
        number: u64,
        /// Where it begins.
        address: u64,
        /// Bytes of a piece.
        piece: u64,
        /// What it goes over; piece `i` over lane `i % lanes`.
        lanes: Vec<Lane>,
    },
    /// Further receives are posted for a transfer.
    Posted {
        /// The number of the transfer.
        number: u64,
        /// The place in the list of lanes.
        lane: u8,
        /// How many more.
        receives: u32,
    },
    /// A receive that is ready is not wanted any more: the send is to be cancelled unless it has begun.
    Revoke {
        /// The number of the transfer.
        number: u64,
    },
    /// A transfer comes to nothing on this side; nothing of it is written, or will be.
    Cancelled {
        /// The number of the transfer.
        number: u64,
        /// Whether it is this side's send, or its receive.
        send: bool,
        /// Why.
        what: String,
    },
    /// Receives are posted that what they were posted for does not need: they are to be used up by writes of nothing.
    Spare {
        /// At which queue pair.
        pair: u8,
        /// How many.
        receives: u32,
    },
    /// Receives are wanted for batches.
    Want {
        /// Of which queue pair.
        pair: u8,
        /// How many.
        receives: u32,
    },
    /// Receives are posted for batches.
    Granted {
        /// At which queue pair.
        pair: u8,
        /// How many.
        receives: u32,
    },
    /// Batches are to be written to a region of the other side's.
    Lend {
        /// Its number.
        region: u64,
    },
    /// They may be.
    Lent {
        /// Its number.
        region: u64,
    },
    /// They may not: there is no such region.
    Gone {
        /// Its number.
        region: u64,
    },
    /// The owner wants a region back.
    Withdraw {
        /// Its number.
        region: u64,
    },
    /// Nothing is written to a region any more, nor will be.
    Released {
        /// Its number.
        region: u64,
    },
    /// A batch for a counter will not come.
    Missed {
        /// The counter.
        counter: u32,
        /// Why.
        what: String,
    },
    /// A batch is being written: the counter goes up when each of so many queue pairs has delivered its last write.
    Writing {
        /// The number of the batch.
        batch: u32,
        /// The counter.
        counter: u32,
        /// Bytes in all.
        bytes: u64,
        /// How many queue pairs.
        parts: u8,
    },
}

/// A queue pair that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    /// Which.
    pub(crate) pair: u8,
    /// The port of the side that says so, by its place in that side's descriptor.
    pub(crate) here: u8,
    /// The port of the other.
    pub(crate) there: u8,
    /// The queue pair's number.
    pub(crate) queue_pair: u32,
    /// Its first packet's number.
    pub(crate) sequence: u32,
}

/// A queue pair that carries pieces of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lane {
    /// Which.
    pub(crate) pair: u8,
    /// The key of the target there.
    pub(crate) rkey: u32,
    /// Receives that are posted for the transfer.
    pub(crate) receives: u32,
}

impl Message {
    /// As bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        self.write(&mut out);
        out.into_bytes()
    }

    fn write(&self, out: &mut Writer) {
        match self {
            Self::Need { all } => {
                out.u8(FIRST_OWN_TAG);
                out.flag(*all);
            }
            Self::Open(open) => {
                [FIRST_OWN_TAG + 1, open.pair, open.here, open.there]
                    .into_iter()
                    .for_each(|byte| out.u8(byte));
                [open.queue_pair, open.sequence].into_iter().for_each(|number| out.u32(number));
            }
            Self::Opened { pair, queue_pair, sequence } => {
                [FIRST_OWN_TAG + 2, *pair].into_iter().for_each(|byte| out.u8(byte));
                [*queue_pair, *sequence].into_iter().for_each(|number| out.u32(number));
            }
            Self::Refused { pair, what } | Self::GivenUp { pair, what } => {
                out.u8(FIRST_OWN_TAG + if matches!(self, Self::Refused { .. }) { 3 } else { 4 });
                out.u8(*pair);
                text(out, what);
            }
            Self::Settled { all, pairs } => {
                out.u8(FIRST_OWN_TAG + 5);
                out.flag(*all);
                out.bytes(pairs);
            }
            Self::ReadyToSend { number } | Self::Revoke { number } => {
                out.u8(FIRST_OWN_TAG + if matches!(self, Self::ReadyToSend { .. }) { 6 } else { 9 });
                out.u64(*number);
            }
            Self::ReadyToReceive { number, address, piece, lanes } => {
                out.u8(FIRST_OWN_TAG + 7);
                [*number, *address, *piece].into_iter().for_each(|number| out.u64(number));
                out.list(lanes, |out, lane| {
                    out.u8(lane.pair);
                    out.u32(lane.rkey);
                    out.u32(lane.receives);
                });
            }
            Self::Posted { number, lane, receives } => {
                out.u8(FIRST_OWN_TAG + 8);
                out.u64(*number);
                out.u8(*lane);
                out.u32(*receives);
            }
            Self::Cancelled { number, send, what } => {
                out.u8(FIRST_OWN_TAG + 10);
                out.u64(*number);
                out.flag(*send);
                text(out, what);
            }
            Self::Want { pair, receives }
            | Self::Granted { pair, receives }
            | Self::Spare { pair, receives } => {
                out.u8(FIRST_OWN_TAG
                    + match self {
                        Self::Want { .. } => 11,
                        Self::Granted { .. } => 12,
                        _ => 20,
                    });
                out.u8(*pair);
                out.u32(*receives);
            }
            Self::Lend { region }
            | Self::Lent { region }
            | Self::Gone { region }
            | Self::Withdraw { region }
            | Self::Released { region } => {
                out.u8(FIRST_OWN_TAG
                    + match self {
                        Self::Lend { .. } => 14,
                        Self::Lent { .. } => 15,
                        Self::Gone { .. } => 16,
                        Self::Withdraw { .. } => 17,
                        _ => 18,
                    });
                out.u64(*region);
            }
            Self::Missed { counter, what } => {
                out.u8(FIRST_OWN_TAG + 19);
                out.u32(*counter);
                text(out, what);
            }
            Self::Writing { batch, counter, bytes, parts } => {
                out.u8(FIRST_OWN_TAG + 13);
                [*batch, *counter].into_iter().for_each(|number| out.u32(number));
                out.u64(*bytes);
                out.u8(*parts);
            }
        }
    }

    /// Reads what [`Message::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let from = &mut Reader::new(bytes);
        let message = Self::read(from)?;
        from.end()?;
        Ok(message)
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let tag = from.u8()?;
        let own = tag.checked_sub(FIRST_OWN_TAG);
        Ok(match own.ok_or_else(|| Malformed::wrong(format!("{tag} is no kind of message")))? {
            0 => Self::Need { all: from.flag()? },
            1 => Self::Open(Open {
                pair: from.u8()?,
                here: from.u8()?,
                there: from.u8()?,
                queue_pair: from.u32()?,
                sequence: from.u32()?,
            }),
            2 => Self::Opened { pair: from.u8()?, queue_pair: from.u32()?, sequence: from.u32()? },
            3 => Self::Refused { pair: from.u8()?, what: read_text(from)? },
            4 => Self::GivenUp { pair: from.u8()?, what: read_text(from)? },
            5 => Self::Settled { all: from.flag()?, pairs: from.bytes(usize::from(u8::MAX))?.to_vec() },
            6 => Self::ReadyToSend { number: from.u64()? },
            7 => {
                let [number, address, piece] = [from.u64()?, from.u64()?, from.u64()?];
                let lanes = from
                    .list(|from| Ok(Lane { pair: from.u8()?, rkey: from.u32()?, receives: from.u32()? }))?;
                if lanes.len() > MOST_LANES {
                    return Err(Malformed::wrong(format!("a transfer over {} NICs", lanes.len())));
                }
                Self::ReadyToReceive { number, address, piece, lanes }
            }
            8 => Self::Posted { number: from.u64()?, lane: from.u8()?, receives: from.u32()? },
            9 => Self::Revoke { number: from.u64()? },
            10 => Self::Cancelled { number: from.u64()?, send: from.flag()?, what: read_text(from)? },
            11 => Self::Want { pair: from.u8()?, receives: from.u32()? },
            12 => Self::Granted { pair: from.u8()?, receives: from.u32()? },
            13 => Self::Writing {
                batch: from.u32()?,
                counter: from.u32()?,
                bytes: from.u64()?,
                parts: from.u8()?,
            },
            14 => Self::Lend { region: from.u64()? },
            15 => Self::Lent { region: from.u64()? },
            16 => Self::Gone { region: from.u64()? },
            17 => Self::Withdraw { region: from.u64()? },
            18 => Self::Released { region: from.u64()? },
            19 => Self::Missed { counter: from.u32()?, what: read_text(from)? },
            20 => Self::Spare { pair: from.u8()?, receives: from.u32()? },
            _ => return Err(Malformed::wrong(format!("{tag} is no kind of message"))),
        })
    }
}

fn text(out: &mut Writer, what: &str) {
    let end = (0..=what.len().min(MOST_TEXT)).rev().find(|end| what.is_char_boundary(*end));
    out.text(&what[..end.unwrap_or(0)]);
}

fn read_text(from: &mut Reader<'_>) -> Result<String, Malformed> {
    let bytes = from.bytes(MOST_TEXT)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::wrong("a text in it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let number = any::<u64>;
        let word = any::<u32>;
        let byte = any::<u8>;
        let lane = (byte(), word(), word()).prop_map(|(pair, rkey, receives)| Lane { pair, rkey, receives });
        prop_oneof![
            any::<bool>().prop_map(|all| Message::Need { all }),
            (byte(), byte(), byte(), word(), word()).prop_map(|(pair, here, there, queue_pair, sequence)| {
                Message::Open(Open { pair, here, there, queue_pair, sequence })
            }),
            (byte(), word(), word()).prop_map(|(pair, queue_pair, sequence)| Message::Opened {
                pair,
                queue_pair,
                sequence
            }),
            (byte(), ".{0,20}").prop_map(|(pair, what)| Message::Refused { pair, what }),
            (byte(), ".{0,20}").prop_map(|(pair, what)| Message::GivenUp { pair, what }),
            (any::<bool>(), prop::collection::vec(byte(), 0..9))
                .prop_map(|(all, pairs)| Message::Settled { all, pairs }),
            number().prop_map(|number| Message::ReadyToSend { number }),
            (number(), number(), number(), prop::collection::vec(lane, 0..9)).prop_map(
                |(number, address, piece, lanes)| Message::ReadyToReceive { number, address, piece, lanes }
            ),
            (number(), byte(), word()).prop_map(|(number, lane, receives)| Message::Posted {
                number,
                lane,
                receives
            }),
            number().prop_map(|number| Message::Revoke { number }),
            (number(), any::<bool>(), ".{0,20}").prop_map(|(number, send, what)| Message::Cancelled {
                number,
                send,
                what
            }),
            (byte(), word()).prop_map(|(pair, receives)| Message::Want { pair, receives }),
            (byte(), word()).prop_map(|(pair, receives)| Message::Granted { pair, receives }),
            (byte(), word()).prop_map(|(pair, receives)| Message::Spare { pair, receives }),
            number().prop_map(|region| Message::Lend { region }),
            number().prop_map(|region| Message::Lent { region }),
            number().prop_map(|region| Message::Gone { region }),
            number().prop_map(|region| Message::Withdraw { region }),
            number().prop_map(|region| Message::Released { region }),
            (word(), ".{0,20}").prop_map(|(counter, what)| Message::Missed { counter, what }),
            (word(), word(), number(), byte()).prop_map(|(batch, counter, bytes, parts)| Message::Writing {
                batch,
                counter,
                bytes,
                parts
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_the_round_trip(message in any_message()) {
            prop_assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message));
        }

        #[test]
        fn a_cut_message_is_no_message(message in any_message(), at: prop::sample::Index) {
            let bytes = message.to_bytes();
            prop_assert!(Message::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn noise_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Message::from_bytes(&bytes);
        }
    }

    #[test]
    fn a_long_explanation_is_cut_between_characters() {
        let what = "ä".repeat(3000);
        let bytes = Message::Refused { pair: 0, what }.to_bytes();
        let Ok(Message::Refused { what, .. }) = Message::from_bytes(&bytes) else { panic!("it is one") };
        assert_eq!(what, "ä".repeat(2048));
    }
}
