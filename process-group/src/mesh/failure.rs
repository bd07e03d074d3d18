//! What the mesh's failures are called in a group.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use meshreduce::{Collective, Error as MeshError, ExchangeKind, LaunchDescriptor, RecordKind};

use super::choice::BARRIER;
use crate::error::{Cause, Error, GROUP_DROPPED};
use crate::types::Operation;

/// A failure of the mesh as one of the group: who did not come, who died, who called something else; else what the mesh says.
///
/// `ranks` are the group's, by the mesh's; empty: they are the same. `call` is the call that failed, if one did.
pub(crate) fn convert(
    error: MeshError,
    backend: &Arc<str>,
    group: &Arc<str>,
    ranks: &[usize],
    call: Option<(Operation, u64)>,
) -> Error {
    known(&error, group, ranks, call).unwrap_or_else(|| Error::Backend {
        backend: Arc::clone(backend),
        group: Arc::clone(group),
        source: Cause::new(error),
    })
}

/// What was said of the mesh without knowing of which call, once that is known.
pub(crate) fn of_call(error: Error, call: (Operation, u64)) -> Error {
    let named = match &error {
        Error::Backend { group, source, .. } => {
            source.downcast_ref().and_then(|error| known(error, group, &[], Some(call)))
        }
        _ => None,
    };
    named.unwrap_or(error)
}

/// A failure of the mesh, if the group has a name for it.
fn known(
    error: &MeshError,
    group: &Arc<str>,
    ranks: &[usize],
    call: Option<(Operation, u64)>,
) -> Option<Error> {
    let of = |rank: usize| ranks.get(rank).copied().unwrap_or(rank);
    let died = |rank: usize, how: String| Error::RankDied { rank: of(rank), group: Arc::clone(group), how };
    let late = |peer: usize, waited: Duration| {
        call.map(|(operation, sequence)| Error::Timeout {
            operation,
            sequence,
            group: Arc::clone(group),
            waited,
            missing: vec![of(peer)],
            stopped: Vec::new(),
            elsewhere: Vec::new(),
            tag: None,
        })
    };
    match error {
        MeshError::PeerTimeout { peer, waited, .. } => late(*peer, *waited),
        MeshError::RankDied { rank, .. } => Some(died(*rank, error.to_string())),
        MeshError::RanksDropped { ranks } => ranks.first().map(|rank| died(*rank, GROUP_DROPPED.to_owned())),
        MeshError::RanksDied { ranks } => ranks.first().map(|rank| died(*rank, error.to_string())),
        MeshError::Closed { peer, .. } => {
            Some(Error::PeerShutDown { rank: of(*peer), group: Arc::clone(group) })
        }
        MeshError::LaunchMismatch { rank, peer, launched, peer_launched } => {
            call.map(|(operation, sequence)| Error::Mismatch {
                sequence,
                group: Arc::clone(group),
                ranks: (of(*rank), of(*peer)),
                calls: (text(*launched, Some(operation)), text(*peer_launched, None)),
            })
        }
        MeshError::TensorMismatch { rank, peer, tensor, count, peer_count } => {
            let said =
                |count: usize| format!("all_reduce_coalesced whose tensor {tensor} has {count} elements");
            call.map(|(_, sequence)| Error::Mismatch {
                sequence,
                group: Arc::clone(group),
                ranks: (of(*rank), of(*peer)),
                calls: (said(*count), said(*peer_count)),
            })
        }
        MeshError::PeerAborted {
            origin,
            culprit,
            kind: RecordKind::LaunchMismatch | RecordKind::TensorMismatch,
        } => {
            // What they were only that rank has read.
            let calls = ("one thing".to_owned(), format!("another: rank {} says which", of(*origin)));
            call.map(|(_, sequence)| Error::Mismatch {
                sequence,
                group: Arc::clone(group),
                ranks: (of(*origin), of(*culprit)),
                calls,
            })
        }
        MeshError::PeerAborted { origin, culprit, kind } if *kind == RecordKind::PeerTimeout => {
            // How long the other one waited it does not say.
            let _ = origin;
            late(*culprit, Duration::ZERO)
        }
        MeshError::PeerAborted { origin, kind, .. } if *kind == RecordKind::HostAbort => {
            Some(Error::Aborted {
                group: Arc::clone(group),
                cause: format!(
                    "by rank {}, which says why, or where the group was dropped before it was shut down",
                    of(*origin)
                ),
            })
        }
        _ => None,
    }
}

/// A launch as the group's call that it makes: of this rank's own it is known which, of a peer's what the launch tells.
fn text(launch: Option<LaunchDescriptor>, operation: Option<Operation>) -> String {
    let Some(launch) = launch else { return "something unreadable".to_owned() };
    let LaunchDescriptor { collective, algorithm, element, op, root, count } = launch;
    let name = match (operation, collective) {
        (Some(Operation::Barrier), _) | (None, Collective::Barrier) => return Operation::Barrier.to_string(),
        (Some(operation), _) => operation.to_string(),
        (None, Collective::AllReduce) => Operation::AllReduce.to_string(),
        (None, Collective::AllGather) => Operation::AllGather.to_string(),
        (None, Collective::ReduceScatter) => Operation::ReduceScatter.to_string(),
        (None, Collective::Broadcast) => Operation::Broadcast.to_string(),
        (None, Collective::Reduce) => Operation::Reduce.to_string(),
        (None, Collective::AllToAll) => match ExchangeKind::of(&launch) {
            Some(ExchangeKind::AllToAll) => Operation::AllToAll.to_string(),
            Some(ExchangeKind::Gather) => Operation::Gather.to_string(),
            Some(ExchangeKind::Scatter) => Operation::Scatter.to_string(),
            _ => return launch.to_string(),
        },
        (None, _) => return launch.to_string(),
    };
    let op = op.map_or_else(String::new, |op| format!(" ({op})"));
    let elements = match element.dtype() {
        Some(dtype) => dtype.to_string(),
        None => element.to_string(),
    };
    // Of what is cut, a launch tells each peer of that one's slice.
    let whose = match collective {
        Collective::AllReduce => String::new(),
        _ if collective.has_root() => format!(" with root {root}"),
        _ => " between the two".to_owned(),
    };
    // What has no elements is no algorithm's.
    let how = if count == 0 { String::new() } else { format!(", {algorithm}") };
    let text = format!("{name}{op} of {count} {elements}{whose}{how}");
    let may_be_barrier = operation.is_none()
        && (collective, element.dtype(), launch.op)
            == (Collective::AllReduce, Some(BARRIER.0), Some(BARRIER.1))
        && count == 1;
    if may_be_barrier { format!("{}, or {text}", Operation::Barrier) } else { text }
}

/// Whether a call of the mesh was ended by this rank's own host.
pub(crate) fn was_ended_here(error: &Error) -> bool {
    match error {
        Error::Backend { source, .. } => matches!(source.downcast_ref(), Some(MeshError::Aborted)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: MeshError) -> Error {
        let call = Some((Operation::AllReduce, 7));
        convert(error, &"mesh".into(), &"world".into(), &[4, 5, 6, 7], call)
    }

    #[test]
    fn a_peer_that_did_not_come_is_missing_by_its_rank_in_the_group() {
        let late = MeshError::PeerTimeout {
            rank: 0,
            peer: 2,
            block: 0,
            phase: 0,
            epoch_wanted: 1,
            epoch_seen: 0,
            waited: Duration::from_secs(3),
        };
        match of(late) {
            Error::Timeout { operation: Operation::AllReduce, sequence: 7, waited, missing, .. } => {
                assert_eq!((waited, missing), (Duration::from_secs(3), vec![6]));
            }
            other => panic!("{other}"),
        }
        let told = MeshError::PeerAborted { origin: 1, culprit: 3, kind: RecordKind::PeerTimeout };
        let told = of(told);
        assert!(matches!(&told, Error::Timeout { missing, .. } if *missing == [7]));
        assert!(told.to_string().contains("did not end in time"), "{told}");
        // Also where it was first heard without the call.
        let told = MeshError::PeerAborted { origin: 1, culprit: 3, kind: RecordKind::PeerTimeout };
        let told =
            of_call(convert(told, &"mesh".into(), &"world".into(), &[], None), (Operation::AllReduce, 7));
        assert!(matches!(&told, Error::Timeout { sequence: 7, missing, .. } if *missing == [3]), "{told}");
    }

    #[test]
    fn who_died_or_called_something_else_is_named() {
        assert!(matches!(of(MeshError::RanksDied { ranks: vec![1] }), Error::RankDied { rank: 5, .. }));
        let dropped = of(MeshError::RanksDropped { ranks: vec![1] }).to_string();
        let expected = "rank 5 of group world is gone: its group was dropped there before it was shut down";
        assert_eq!(dropped, expected);
        let differ = MeshError::LaunchMismatch { rank: 0, peer: 1, launched: None, peer_launched: None };
        assert!(matches!(of(differ), Error::Mismatch { ranks: (4, 5), sequence: 7, .. }));
        let differ = of(MeshError::TensorMismatch { rank: 0, peer: 1, tensor: 2, count: 9, peer_count: 8 });
        let expected = "rank 4 calls all_reduce_coalesced whose tensor 2 has 9 elements, rank 5 calls \
                        all_reduce_coalesced whose tensor 2 has 8 elements";
        assert!(differ.to_string().contains(expected), "{differ}");
    }

    #[test]
    fn a_peer_that_has_shut_down_in_order_has_not_died() {
        let closed = of(MeshError::Closed { rank: 0, peer: 1 });
        assert!(matches!(closed, Error::PeerShutDown { rank: 5, .. }));
        let expected = "rank 5 has shut group world down in order, and this rank has called it once more";
        assert_eq!(closed.to_string(), expected);
    }

    #[test]
    fn calls_that_differ_are_named_as_the_groups() {
        let launch = |op, count| {
            let (algorithm, dtype) = (meshreduce::Algorithm::OneShot, meshreduce::DType::F32);
            Some(LaunchDescriptor::all_reduce(algorithm, dtype, op, count))
        };
        let (sum, barrier) = (launch(meshreduce::Op::Sum, 100), launch(meshreduce::Op::Max, 1));
        let calls = |launched, peer_launched, operation| {
            let differ = MeshError::LaunchMismatch { rank: 0, peer: 1, launched, peer_launched };
            match convert(differ, &"mesh".into(), &"world".into(), &[], Some((operation, 2))) {
                Error::Mismatch { calls, .. } => calls,
                other => panic!("{other}"),
            }
        };
        let (own, peers) = calls(sum, barrier, Operation::AllReduce);
        assert_eq!(own, "all_reduce (sum) of 100 f32, one-shot");
        assert_eq!(peers, "barrier, or all_reduce (max) of 1 f32, one-shot");
        let (own, peers) = calls(barrier, sum, Operation::Barrier);
        assert_eq!((&*own, &*peers), ("barrier", "all_reduce (sum) of 100 f32, one-shot"));
        let other = |collective, op, element, count| {
            let algorithm = meshreduce::Algorithm::Exchange;
            Some(LaunchDescriptor { collective, algorithm, element, op, root: 1, count })
        };
        let sized = meshreduce_wire::Element::Sized(meshreduce::ElementSize::ALL[2]);
        let half = meshreduce_wire::Element::Typed(meshreduce::DType::F16);
        for (collective, op, element, operation, own_text, peers_text) in [
            (
                Collective::AllGather,
                None,
                sized,
                Operation::AllGather,
                "all_gather of 8 elements of 4 bytes between the two, exchange",
                "all_gather of 9 elements of 4 bytes between the two, exchange",
            ),
            (
                Collective::Reduce,
                Some(meshreduce::Op::Avg),
                half,
                Operation::Reduce,
                "reduce (avg) of 8 f16 with root 1, exchange",
                "reduce (avg) of 9 f16 with root 1, exchange",
            ),
            (
                Collective::AllToAll,
                None,
                sized,
                Operation::Gather,
                "gather of 8 elements of 4 bytes between the two, exchange",
                "gather of 9 elements of 4 bytes between the two, exchange",
            ),
            (Collective::Barrier, None, sized, Operation::Barrier, "barrier", "barrier"),
        ] {
            let (own, peers) =
                calls(other(collective, op, element, 8), other(collective, op, element, 9), operation);
            assert_eq!((&*own, &*peers), (own_text, peers_text));
        }
        // A rank that is told by another one that calls differ.
        let told = MeshError::PeerAborted { origin: 1, culprit: 3, kind: RecordKind::LaunchMismatch };
        let told = of(told);
        assert!(matches!(&told, Error::Mismatch { ranks: (5, 7), sequence: 7, .. }), "{told}");
        assert!(
            told.to_string().ends_with("rank 5 calls one thing, rank 7 calls another: rank 5 says which")
        );
    }

    #[test]
    fn an_abort_by_another_ranks_host_names_that_rank_in_the_group() {
        let told = MeshError::PeerAborted { origin: 1, culprit: 1, kind: RecordKind::HostAbort };
        assert!(matches!(of(told), Error::Aborted { cause, .. } if cause.contains("rank 5")));
        assert!(was_ended_here(&of(MeshError::Aborted)));
        assert!(!was_ended_here(&of(MeshError::Capturing)));
    }

    #[test]
    fn anything_else_is_what_the_mesh_says() {
        match of(MeshError::Capturing) {
            Error::Backend { source, .. } => {
                assert!(matches!(source.downcast_ref(), Some(MeshError::Capturing)));
            }
            other => panic!("{other}"),
        }
    }
}
