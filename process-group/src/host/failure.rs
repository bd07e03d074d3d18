//! How a rank's end is told to the others.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshreduce_store::codec::{Malformed, Reader, Writer};

use super::fingerprint::Fingerprint;
use super::segment::Ended;
use crate::error::{Error, GROUP_DROPPED, Ranks, Rounded};
use crate::types::UnknownName;

/// It goes on.
pub(super) const LIVING: u32 = 0;
/// It was shut down: it makes no calls any more.
pub(super) const SHUT_DOWN: u32 = 1;
/// It was dropped.
pub(super) const DROPPED: u32 = 2;
/// It has failed, as its record says.
pub(super) const FAILED: u32 = 3;

/// Most ranks of those that have not come to a call, or are stopped, that are told on.
const MOST_MISSING: usize = 64;

/// Ranks that did not come to the end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} did not shut down within {}", Ranks(.ranks), Rounded(*.waited))]
pub struct NotShutDown {
    /// All of them.
    pub ranks: Vec<usize>,
    /// How long was waited.
    pub waited: Duration,
}

/// A failure in bytes, at most [`Ended::MOST`].
pub(super) fn encode(error: &Error) -> Vec<u8> {
    let shorten = |text: &str| text.chars().take(180).collect::<String>();
    let mut out = Writer::new();
    match error {
        Error::Mismatch { sequence, ranks, calls, .. } => {
            out.u8(1);
            out.u64(*sequence);
            out.rank(ranks.0);
            out.rank(ranks.1);
            out.text(&shorten(&calls.0));
            out.text(&shorten(&calls.1));
        }
        Error::RankDied { rank, how, .. } => {
            out.u8(2);
            out.rank(*rank);
            out.text(&shorten(how));
        }
        Error::Aborted { cause, .. } => {
            out.u8(3);
            out.text(&shorten(cause));
        }
        // A send or receive is two ranks' own business, by numbers of their own.
        Error::Timeout { operation, sequence, missing, stopped, .. } if !operation.is_point_to_point() => {
            out.u8(5);
            out.text(operation.name());
            out.u64(*sequence);
            for ranks in [missing, stopped] {
                out.list(&ranks[..ranks.len().min(MOST_MISSING)], |out, rank| out.rank(*rank));
            }
        }
        Error::PeerShutDown { rank, .. } => {
            out.u8(6);
            out.rank(*rank);
        }
        other => {
            out.u8(4);
            out.text(&shorten(&other.to_string()));
        }
    }
    out.into_bytes()
}

/// What `encode` has written, as the failure of a rank that hears it from rank `from`.
pub(super) fn decode(bytes: &[u8], from: usize, group: &Arc<str>) -> Error {
    let group = Arc::clone(group);
    let read = |from_bytes: &mut Reader<'_>| -> Result<Error, Malformed> {
        let group = Arc::clone(&group);
        Ok(match from_bytes.u8()? {
            1 => {
                let sequence = from_bytes.u64()?;
                let ranks = (from_bytes.rank()?, from_bytes.rank()?);
                Error::Mismatch { sequence, group, ranks, calls: (from_bytes.text()?, from_bytes.text()?) }
            }
            2 => {
                let (rank, how) = (from_bytes.rank()?, from_bytes.text()?);
                let how = if how.contains(", as rank ") { how } else { format!("{how}, as rank {from} saw") };
                Error::RankDied { rank, group, how }
            }
            3 => {
                let cause = from_bytes.text()?;
                let cause = if cause.starts_with("rank ") { cause } else { format!("rank {from}: {cause}") };
                Error::Aborted { group, cause }
            }
            5 => {
                let operation = from_bytes.text()?.parse();
                let operation =
                    operation.map_err(|error: UnknownName| Malformed::wrong(error.to_string()))?;
                let (sequence, missing) = (from_bytes.u64()?, from_bytes.list(Reader::rank)?);
                let stopped = from_bytes.list(Reader::rank)?;
                // How long the other one waited does not matter here.
                Error::Timeout {
                    operation,
                    sequence,
                    group,
                    waited: Duration::ZERO,
                    missing,
                    stopped,
                    elsewhere: Vec::new(),
                    tag: None,
                }
            }
            // Who hears it has not called once more, as far as can be told here, and may be the one that was shut down.
            6 => {
                let rank = from_bytes.rank()?;
                let cause = format!(
                    "rank {from} has called it once more, after rank {rank} had shut it down in order"
                );
                Error::Aborted { group, cause }
            }
            _ => Error::Aborted { group, cause: format!("rank {from}: {}", from_bytes.text()?) },
        })
    };
    read(&mut Reader::new(bytes)).unwrap_or_else(|_| Error::Aborted {
        group: Arc::clone(&group),
        cause: format!("rank {from} failed and did not say how"),
    })
}

/// The last collective of a rank that was shut down.
pub(super) fn encode_last(last: Option<Fingerprint>) -> Vec<u8> {
    let mut out = Writer::new();
    if let Some(Fingerprint { sequence, what, count }) = last {
        [sequence, what, count].into_iter().for_each(|word| out.u64(word));
    }
    out.into_bytes()
}

/// What [`encode_last`] has written.
pub(super) fn decode_last(bytes: &[u8]) -> Option<Fingerprint> {
    let mut from = Reader::new(bytes);
    let mut word = || from.u64().ok();
    Some(Fingerprint { sequence: word()?, what: word()?, count: word()? })
}

impl Ended {
    /// Says how this rank has ended. A failure stays.
    pub(super) fn say(&self, state: u32, record: &[u8]) {
        if self.state.load(Ordering::Relaxed) == FAILED {
            return;
        }
        let record = &record[..record.len().min(Self::MOST)];
        for (place, byte) in self.record.iter().zip(record) {
            place.store(*byte, Ordering::Relaxed);
        }
        self.length.store(record.len() as u32, Ordering::Relaxed);
        self.state.store(state, Ordering::Release);
    }

    /// What a rank says of its end.
    pub(super) fn heard(&self) -> (u32, Vec<u8>) {
        let state = self.state.load(Ordering::Acquire);
        let length = (self.length.load(Ordering::Relaxed) as usize).min(Self::MOST);
        (state, self.record[..length].iter().map(|byte| byte.load(Ordering::Relaxed)).collect())
    }
}

/// That a rank has left without a failure and is needed.
pub(super) fn has_left(rank: usize, group: &Arc<str>, state: u32) -> Error {
    let group = Arc::clone(group);
    match state {
        SHUT_DOWN => Error::PeerShutDown { rank, group },
        _ => Error::RankDied { rank, group, how: GROUP_DROPPED.to_owned() },
    }
}

/// That this rank's backend was dropped while calls were going on.
pub(super) fn dropped(group: &Arc<str>) -> Error {
    Error::Aborted { group: Arc::clone(group), cause: "it was dropped while calls were going on".to_owned() }
}

/// That a rank's process has ended.
pub(super) fn died(rank: usize, group: &Arc<str>, how: &str) -> Error {
    Error::RankDied { rank, group: Arc::clone(group), how: how.to_owned() }
}

/// The same, as the rank's processes on this host see it.
pub(super) fn process_ended(rank: usize, group: &Arc<str>) -> Error {
    died(rank, group, "its process has ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Operation;

    #[test]
    fn failures_are_told_as_they_are() {
        let group: Arc<str> = "g".into();
        let calls = ("all_reduce (sum) of 4 f32".to_owned(), "barrier".to_owned());
        let mismatch = Error::Mismatch { sequence: 4, group: Arc::clone(&group), ranks: (1, 3), calls };
        assert_eq!(decode(&encode(&mismatch), 1, &group).to_string(), mismatch.to_string());
        let death = died(2, &group, "its process ended");
        let told = decode(&encode(&death), 0, &group);
        assert!(matches!(&told, Error::RankDied { rank: 2, .. }), "{told}");
        assert_eq!(decode(&encode(&told), 3, &group).to_string(), told.to_string(), "the first says it");
        // Also to the rank that it names.
        let told = decode(&encode(&has_left(2, &group, SHUT_DOWN)), 0, &group);
        let text =
            "group g was aborted: rank 0 has called it once more, after rank 2 had shut it down in order";
        assert_eq!(told.to_string(), text);
        assert_eq!(decode(&encode(&told), 3, &group).to_string(), text, "the first says it");
        let aborted = Error::Aborted { group: Arc::clone(&group), cause: "x".repeat(5000) };
        assert!(encode(&aborted).len() <= Ended::MOST);
        assert!(
            matches!(decode(&encode(&aborted), 5, &group), Error::Aborted { cause, .. } if cause.starts_with("rank 5: x"))
        );
        assert!(matches!(decode(&[9, 9], 5, &group), Error::Aborted { .. }));
        let late = |missing: Vec<usize>, operation| Error::Timeout {
            operation,
            sequence: 7,
            group: Arc::clone(&group),
            waited: Duration::from_secs(3),
            stopped: missing.clone(),
            missing,
            elsewhere: Vec::new(),
            tag: None,
        };
        let told = encode(&late((0..5000).collect(), Operation::ReduceScatter));
        assert!(told.len() <= Ended::MOST);
        let told = decode(&told, 2, &group);
        let Error::Timeout { operation, sequence: 7, missing, stopped, .. } = &told else { panic!("{told}") };
        let most: Vec<usize> = (0..MOST_MISSING).collect();
        assert_eq!((*operation, missing, stopped), (Operation::ReduceScatter, &most, &most));
        assert_eq!(decode(&encode(&told), 3, &group).to_string(), told.to_string(), "the first says it");
        let told = decode(&encode(&late(vec![1], Operation::Recv)), 2, &group);
        assert!(matches!(&told, Error::Aborted { cause, .. } if cause.starts_with("rank 2: recv number 7")));
    }
}
