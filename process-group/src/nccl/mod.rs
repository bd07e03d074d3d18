//! The backend `nccl`: NVIDIA's library, opened when it is first needed ([`meshreduce_nccl_loader`]).
//!
//! # Order
//!
//! A group has two communicators of NCCL: one for its collectives, and one for its sends and receives, so that neither kind waits for
//! the other. On each of them this rank's calls run one behind the other, in the order in which they were made, on whatever streams:
//! a call on another stream than the last one waits for that one. So
//!
//! - all ranks make the same collectives in the same order, and describe parts in the same way (one tensor in equal parts, or
//!   otherwise): what they are made of depends on it ([`plan`]);
//! - a send that is not received holds up this rank's later sends and receives, to whomever. Two ranks that send to each other
//!   before they receive may wait for each other: a batch does not;
//! - a replay of a graph is a call of whoever replays it, who orders it behind the others and before them. No graph is replayed
//!   after the end of the group: NCCL's communicator is gone then.
//!
//! # What is NCCL's
//!
//! Results of reductions are those of NCCL's order of adding, which depends on sizes and topology; NaN may get lost in min and max.
//! Only tag 0 exists, and nobody receives from whoever sends first. Of 16-bit integers NCCL knows nothing: they can be moved, not
//! reduced.
//!
//! # Ends
//!
//! NCCL waits for ever. Here everything that may wait is begun without blocking and looked at again and again, until a deadline, an
//! abort, or the end of a rank's process on this host.

mod availability;
mod backend;
mod communicator;
mod completion;
mod core;
mod failure;
mod issue;
mod lane;
mod make;
mod plan;

use std::sync::Arc;

pub use failure::NcclFailure;

use crate::backend::{Backend, BackendContext, BackendFactory};
use crate::error::Error;
use crate::types::DeviceType;

/// The backend's name.
const NAME: &str = "nccl";

/// Below which ranks meet at the end.
const END: &str = "end";

/// Makes backends of NCCL. A configuration names it `nccl`; [`crate::Registry::default`] has it.
///
/// NCCL 2.18 or later is opened when the first backend is made: see [`crate::nccl_loader`] for where it is looked for. Every rank
/// has a device of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct NcclFactory;

impl BackendFactory for NcclFactory {
    fn name(&self) -> &str {
        NAME
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cuda]
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        Ok(make::make(&context)?)
    }

    fn clear_away(&self, context: &BackendContext) -> Result<(), Error> {
        context.below(END)?.clear_away_meetings(&NAME.into())
    }
}
