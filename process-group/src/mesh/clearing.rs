//! What ranks leave in the store that end while they make a mesh, or what is behind one.
#![forbid(unsafe_code)]

use std::sync::Arc;

use meshreduce_wire::MAX_RANKS;

use super::backend::END;
use super::coverage::node_prefix;
use super::nodes::{across_prefix, within_prefix};
use crate::backend::BackendContext;
use crate::error::Error;

/// All ranks are gone: deletes it. Which of it there is, and on how many nodes, only those knew who were making it.
pub(super) fn clear_away(name: &Arc<str>, context: &BackendContext) -> Result<(), Error> {
    let nodes = 0..context.group.world_size;
    let behind = [super::BEHIND.to_owned()].into_iter().chain(nodes.clone().map(within_prefix));
    let factory = context.registry.factory(super::BEHIND);
    for part in behind.chain((0..MAX_RANKS).map(across_prefix)) {
        let part = context.below(&part)?;
        // Without it nothing was made there.
        if let Ok(factory) = &factory {
            factory.clear_away(&part)?;
            part.clear_away_meetings(&super::BEHIND.into())?;
        }
    }
    let mut own = nodes.map(node_prefix).chain([END.to_owned()]);
    own.try_for_each(|part| context.below(&part)?.clear_away_meetings(name))
}
