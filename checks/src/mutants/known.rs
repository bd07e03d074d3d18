//! Mutants that cannot or do not die, by name, with the reason.

use meshreduce_wire::Isa;

/// Why a mutant survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SurvivalReason {
    /// It is as right as the original.
    Equivalent,
    /// It is wrong, and the executor cannot tell.
    Beyond,
}

/// A mutant that is expected to survive.
pub struct Known {
    /// The whole name, or what stands behind the algorithm, or behind the phase or the comparison of descriptors.
    pub name: &'static str,
    /// The only number of ranks for which it is meant, if there is one.
    pub ranks: Option<usize>,
    /// Why.
    pub why: SurvivalReason,
    /// The reason.
    pub reason: &'static str,
}

impl Known {
    /// The entry for a mutant, if it is listed.
    pub fn of(name: &str, ranks: usize) -> Option<&'static Self> {
        // What holds of packets holds of wide ones.
        let name = name.replace(&format!("{}/", Isa::V84.suffix()), "/");
        let name = name.as_str();
        let short = name.split_once('/').map_or(name, |(_, short)| short);
        let any_phase = [
            "gather-",
            "relay-",
            "differs-",
            "second-",
            "header-for-relay-",
            "header-",
            "relayed-header-",
            "alone-",
            "counts-",
        ]
        .iter()
        .find_map(|prefix| short.strip_prefix(prefix));
        KNOWN.iter().find(|known| {
            [name, short, any_phase.unwrap_or(short)].contains(&known.name)
                && known.ranks.is_none_or(|only| only == ranks)
        })
    }
}

const fn equivalent(name: &'static str, reason: &'static str) -> Known {
    Known { name, ranks: None, why: SurvivalReason::Equivalent, reason }
}

const FOUND_BEFORE: &str = "the same thread has compared the same peer's tag of this call in the first phase";
const ONE_DEVICE: &str = "a scope within one device: the owner's kernels alone touch it";
const ELECTS: &str = "the claim elects a block and hands nothing over; what follows is the winner's alone";
const NOT_AHEAD: &str =
    "a peer ends the call only when every block here has given its second signal, behind this wait";
const BEHIND_FIRST: &str = "a peer gives the next second signal only behind the next first one from here";
const PROVES_ITSELF: &str = "threads need not agree: who saw that the lane has failed pushes nothing and tells it, and a packet proves itself";
const SEEN_BY_ALL: &str = "all threads see what has failed in this lane; what has failed in another one may be seen by some, whose block may push: who waits is told in the pad";
const FOUND_BY_ALL: &str = "every rank compares all lengths, so every rank finds that they differ, and each tells all pads: one telling is left out, the others are there";
const PUSHES_NO_MORE: &str =
    "whoever has given up pushes nothing in the second phase, and who waits for that is told";
const TOLD_AGAIN: &str =
    "whoever has given up the call gives no second signal, and who waits for that is told";

/// All of them.
pub static KNOWN: &[Known] = &[
    equivalent("unchanged", "the shipped text"),
    equivalent("unchanged-f32", "the shipped text"),
    equivalent("unchanged-f32-max", "the shipped text"),
    equivalent("two_shot/gather-tag-not-compared", FOUND_BEFORE),
    equivalent("hybrid_cube_mesh/relay-tag-not-compared", FOUND_BEFORE),
    equivalent("one_shot_ll/agreement-dropped", PROVES_ITSELF),
    equivalent("two_shot_ll/agreement-dropped", PROVES_ITSELF),
    equivalent("hybrid_cube_mesh_ll/agreement-dropped", PROVES_ITSELF),
    equivalent("two_shot_ll/told-dropped", PUSHES_NO_MORE),
    equivalent("one_shot_ll/agreement-of-all", SEEN_BY_ALL),
    equivalent("two_shot_ll/agreement-of-all", SEEN_BY_ALL),
    equivalent("hybrid_cube_mesh_ll/agreement-of-all", SEEN_BY_ALL),
    equivalent("group_ll/agreement-dropped", PROVES_ITSELF),
    equivalent("group_ll/agreement-of-all", SEEN_BY_ALL),
    equivalent("group_ll/counts-spread-not-to-own-pad", FOUND_BY_ALL),
    equivalent("group_ll/counts-spread-not-to-peers", FOUND_BY_ALL),
    equivalent("group_ll/counts-spread-not-to-own-lanes", FOUND_BY_ALL),
    equivalent("group_ll/counts-spread-not-to-peers-lanes", FOUND_BY_ALL),
    equivalent("exchange_ll/agreement-dropped", PROVES_ITSELF),
    equivalent("reduce_scatter_ll/agreement-dropped", PROVES_ITSELF),
    equivalent("exchange_ll/agreement-of-all", SEEN_BY_ALL),
    equivalent("reduce_scatter_ll/agreement-of-all", SEEN_BY_ALL),
    equivalent("claim-relaxed", ELECTS),
    equivalent("claim-acquire", ELECTS),
    equivalent("claim-release", ELECTS),
    equivalent("claim-gpu", ONE_DEVICE),
    equivalent("two_shot/wait-for-equal-epoch", NOT_AHEAD),
    equivalent("two_shot/told-dropped", TOLD_AGAIN),
    equivalent("hybrid_cube_mesh/told-dropped", TOLD_AGAIN),
    equivalent("two_shot/gather-wait-for-equal-epoch", BEHIND_FIRST),
    equivalent("hybrid_cube_mesh/relay-wait-for-equal-epoch", BEHIND_FIRST),
    equivalent(
        "two_shot/agreement-0-dropped",
        "no peer ends the call without the second signal, which a block with a thread that gave up does not give",
    ),
];
