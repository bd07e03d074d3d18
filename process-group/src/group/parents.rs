//! What a part of a group knows by the groups that it was made from: that one of its members has died.
#![forbid(unsafe_code)]

use std::sync::{Arc, Weak};

use super::shared::Shared;
use crate::backend::GroupInfo;
use crate::error::Error;

/// A member of `part` whose process has ended, as a backend of a group has seen that it was made from: nothing can come of a meeting
/// of all members any more. (A rank that has only left such a group may well come.)
pub(super) fn dead_member(part: &GroupInfo, parent: &Weak<Shared>) -> Option<Error> {
    let mut parent = parent.upgrade();
    while let Some(group) = parent {
        let backends = group.slots().iter().filter_map(|slot| slot.made());
        let mut seen = backends.filter_map(|backend| backend.error());
        if let Some(died) = seen.find_map(|error| member_of(part, &group, error)) {
            return Some(died);
        }
        parent = group.parent.upgrade();
    }
    None
}

/// An error of a group as one of its part, if it says that a member of that has died.
fn member_of(part: &GroupInfo, group: &Shared, error: Error) -> Option<Error> {
    let Error::RankDied { rank, how, .. } = error else { return None };
    let of_all = group.info.ranks.get(rank)?;
    let member = part.ranks.iter().position(|one| one == of_all)?;
    // It may name ranks, as they are numbered there.
    let how = format!("{how} (as group {} says)", group.info.name);
    let died = || Error::RankDied { rank: member, group: Arc::clone(&part.name), how };
    group.has_died(rank).then(died)
}
