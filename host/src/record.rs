//! What a kernel left behind, as an error.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use meshreduce_wire::launch::HostPage;
use meshreduce_wire::{AbortWord, ErrorRecord, RecordKind};

use meshreduce_device::MappedHost;

use crate::error::Error;
use crate::lane::decode;

/// The record in a lane's host page, if a kernel has left one.
pub(crate) fn read(page: &MappedHost<HostPage>) -> Option<ErrorRecord> {
    // SAFETY: after the acquire nobody writes the record any more; it is plain data.
    is_there(page).then(|| unsafe { record(page).read() })
}

/// Whether a kernel has left a record in a lane's host page. (Acquire.)
#[inline]
fn is_there(page: &MappedHost<HostPage>) -> bool {
    // SAFETY: the page is mapped for as long as `page`, the word is aligned, and while kernels run it is only
    // accessed as a word.
    let valid = unsafe { AtomicU32::from_ptr((&raw mut (*record(page).as_ptr()).valid).cast()) };
    // The kernel fills the record and then stores `valid` with st.release.sys; it never changes it again.
    valid.load(Ordering::Acquire) != 0
}

fn record(page: &MappedHost<HostPage>) -> NonNull<ErrorRecord> {
    // SAFETY: the field lies within the page, which is mapped.
    unsafe { NonNull::new_unchecked(&raw mut (*page.host().as_ptr()).record) }
}

/// The word by which the host asks a lane's kernels to end.
pub(crate) fn abort_flag(page: &MappedHost<HostPage>) -> &AtomicU32 {
    // SAFETY: the page is mapped for as long as `page`, the word is aligned, and it is only accessed as a word.
    unsafe { AtomicU32::from_ptr(&raw mut (*page.host().as_ptr()).abort) }
}

/// The record of `rank` in `lane` as an error.
pub(crate) fn translate(record: &ErrorRecord, rank: usize, lane: u32) -> Error {
    let Some(word) = AbortWord::decode(record.abort) else {
        // A kernel of another version, or memory that was overwritten.
        return Error::System {
            what: format!("the error record of rank {rank} cannot be read ({:#x})", record.abort),
            source: std::io::ErrorKind::InvalidData.into(),
        };
    };
    // What this rank's host wants, it wants of all lanes, whichever learned of it first.
    let own = word.lane == lane || word.kind == RecordKind::HostAbort;
    if word.origin as usize != rank || !own {
        return Error::PeerAborted {
            origin: word.origin as usize,
            culprit: word.culprit as usize,
            kind: word.kind,
        };
    }
    match word.kind {
        RecordKind::PeerTimeout => Error::PeerTimeout {
            rank,
            peer: record.peer as usize,
            block: record.block,
            phase: record.phase,
            epoch_wanted: record.epoch_wanted,
            epoch_seen: record.epoch_seen,
            waited: Duration::from_nanos(record.waited_ns),
        },
        RecordKind::LaunchMismatch => Error::LaunchMismatch {
            rank,
            peer: record.peer as usize,
            launched: decode(record.launched),
            peer_launched: decode(record.peer_launched),
        },
        RecordKind::TensorMismatch => Error::TensorMismatch {
            rank,
            peer: record.peer as usize,
            tensor: record.phase as usize,
            count: record.launched as usize,
            peer_count: record.peer_launched as usize,
        },
        _ => Error::Aborted,
    }
}

/// The failure of a communicator as its rank's lane `lane` tells it: this lane's record if there is one, else another's,
/// because a failure ends all lanes.
#[inline]
pub(crate) fn first_failure(pages: &[MappedHost<HostPage>], lane: u32, rank: usize) -> Option<Error> {
    if pages.iter().all(|page| !is_there(page)) {
        return None;
    }
    failure(pages, lane, rank)
}

#[cold]
fn failure(pages: &[MappedHost<HostPage>], lane: u32, rank: usize) -> Option<Error> {
    let lanes = pages.len() as u32;
    let mut all = [lane].into_iter().chain((0..lanes).filter(|other| *other != lane));
    let (found_in, found) = all.find_map(|lane| Some((lane, read(&pages[lane as usize])?)))?;
    // A failure that another lane of this rank has found is told best by that lane's record, once it is written.
    let word = AbortWord::decode(found.abort).filter(|word| word.origin as usize == rank);
    let finder = word.and_then(|word| Some((word.lane, read(pages.get(word.lane as usize)?)?)));
    let (lane, record) = finder.unwrap_or((found_in, found));
    Some(translate(&record, rank, lane))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_wire::{Algorithm, DType, LaunchDescriptor, Op};

    fn with(kind: RecordKind, culprit: u32, origin: u32) -> ErrorRecord {
        ErrorRecord {
            valid: 1,
            abort: AbortWord { kind, culprit, origin, lane: 2 }.encode(),
            peer: 3,
            ..Default::default()
        }
    }

    #[test]
    fn what_this_rank_found_is_told_in_full() {
        let timeout = ErrorRecord {
            block: 2,
            epoch_wanted: 9,
            epoch_seen: 8,
            waited_ns: 1_234_567,
            ..with(RecordKind::PeerTimeout, 3, 1)
        };
        match translate(&timeout, 1, 2) {
            Error::PeerTimeout {
                rank: 1,
                peer: 3,
                block: 2,
                phase: 0,
                epoch_wanted: 9,
                epoch_seen: 8,
                waited,
            } => {
                assert_eq!(waited, Duration::from_nanos(1_234_567));
            }
            other => panic!("{other:?}"),
        }
        let record =
            ErrorRecord { phase: 9, launched: 5, peer_launched: 7, ..with(RecordKind::TensorMismatch, 3, 1) };
        match translate(&record, 1, 2) {
            Error::TensorMismatch { rank: 1, peer: 3, tensor: 9, count: 5, peer_count: 7 } => {}
            other => panic!("{other:?}"),
        }
        let launch = LaunchDescriptor::all_reduce(Algorithm::OneShot, DType::Bf16, Op::Sum, 5);
        let record = ErrorRecord { launched: launch.encode(), ..with(RecordKind::LaunchMismatch, 3, 1) };
        match translate(&record, 1, 2) {
            Error::LaunchMismatch { rank: 1, peer: 3, launched, peer_launched: None } => {
                assert_eq!(launched, Some(launch));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_this_rank_found_in_another_lane_names_it_as_the_origin() {
        match translate(&with(RecordKind::PeerTimeout, 3, 1), 1, 0) {
            Error::PeerAborted { origin: 1, culprit: 3, kind: RecordKind::PeerTimeout } => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_abort_of_this_ranks_host_is_one_in_every_lane() {
        for lane in [0, 2] {
            assert!(matches!(translate(&with(RecordKind::HostAbort, 1, 1), 1, lane), Error::Aborted));
        }
    }

    #[test]
    fn what_a_peer_found_names_origin_and_culprit() {
        match translate(&with(RecordKind::PeerTimeout, 3, 2), 1, 2) {
            Error::PeerAborted { origin: 2, culprit: 3, kind: RecordKind::PeerTimeout } => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_that_makes_no_sense_is_an_error_not_a_panic() {
        let record = ErrorRecord { valid: 1, abort: 0xffff_ffff, ..Default::default() };
        assert!(translate(&record, 0, 0).to_string().contains("0xffffffff"));
    }
}
