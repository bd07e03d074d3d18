//! What a part of a group knows by the groups that it was made from: that one of its members has died.
#![forbid(unsafe_code)]

use std::sync::{Arc, Weak};

use super::shared::Shared;
use crate::backend::GroupInfo;
use crate::error::Error;

/// A member of `part` whose process has ended, as a backend of a group has seen that it was made from: nothing can come of a meeting
/// of all members any more. (A rank that has only left such a group may well come.)
pub(super) fn dead_member(part: &GroupInfo, parent: &Weak<Shared>) -> Option<Error> {
    seen_to_be_gone(part, parent).into_iter().find_map(|Gone { member, group, rank, how }| {
        // It may name ranks, as they are numbered there.
        let how = format!("{how} (as group {} says)", group.info.name);
        let died = || Error::RankDied { rank: member, group: Arc::clone(&part.name), how };
        group.has_died(rank).then(died)
    })
}

/// The members of `part` whose end, or whose leaving, a backend of a group has seen that it was made from.
pub(super) fn gone_members(part: &GroupInfo, parent: &Weak<Shared>) -> Vec<usize> {
    seen_to_be_gone(part, parent).into_iter().map(|gone| gone.member).collect()
}

/// A member of a part that is gone from a group that it was made from.
struct Gone {
    member: usize,
    group: Arc<Shared>,
    /// Its rank in that group.
    rank: usize,
    how: String,
}

fn seen_to_be_gone(part: &GroupInfo, parent: &Weak<Shared>) -> Vec<Gone> {
    let mut all = Vec::new();
    let mut parent = parent.upgrade();
    while let Some(group) = parent {
        let backends = group.slots().iter().filter_map(|slot| slot.made());
        for error in backends.filter_map(|backend| backend.error()) {
            let (rank, how) = match error {
                Error::RankDied { rank, how, .. } => (rank, how),
                Error::PeerShutDown { rank, .. } => (rank, "it has shut that group down".to_owned()),
                _ => continue,
            };
            let is_it = |one: &usize| group.info.ranks.get(rank) == Some(one);
            if let Some(member) = part.ranks.iter().position(is_it) {
                all.push(Gone { member, group: Arc::clone(&group), rank, how });
            }
        }
        parent = group.parent.upgrade();
    }
    all
}
