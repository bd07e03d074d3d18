//! What NCCL says, and what this backend has to say about it.
#![forbid(unsafe_code)]

use std::time::Duration;

use meshreduce_device::DriverError;
use meshreduce_nccl_loader as loader;
use meshreduce_store::codec::Malformed;
use meshreduce_store::identity::NoIdentity;

use crate::error::{Rounded, Stopped};

/// Why NCCL cannot serve a group, or has failed. It is the source of [`crate::Error::NotMade`] and [`crate::Error::Backend`], to
/// be had by [`crate::Cause::downcast_ref`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NcclFailure {
    /// NCCL is not there, is too old, or has answered an error.
    #[error(transparent)]
    Nccl(#[from] loader::Error),
    /// There is no driver or no such device.
    #[error(transparent)]
    Device(#[from] meshreduce_device::Error),
    /// The driver refuses.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The system does not tell who this process is.
    #[error(transparent)]
    Identity(#[from] NoIdentity),
    /// Another rank cannot use NCCL; its own error says more.
    #[error("rank {rank} cannot use NCCL: {problem}")]
    OnRank {
        /// The rank.
        rank: usize,
        /// Its error, as text.
        problem: String,
    },
    /// A rank has told something else than what this backend's ranks tell one another.
    #[error("what rank {rank} tells is not understood: {source}")]
    BadMessage {
        /// The rank.
        rank: usize,
        /// What is wrong with it.
        r#source: Malformed,
    },
    /// Ranks have opened different versions of NCCL, which do not work together.
    #[error("rank {} has NCCL {}, rank {} has {}", .ranks.0, .versions.0, .ranks.1, .versions.1)]
    VersionsDiffer {
        /// Two ranks.
        ranks: (usize, usize),
        /// Their versions.
        versions: (loader::Version, loader::Version),
    },
    /// Two ranks use one device, which NCCL does not support.
    #[error("ranks {} and {} both use device {device} of host {host}", .ranks.0, .ranks.1)]
    SameDevice {
        /// The ranks.
        ranks: (usize, usize),
        /// The device.
        device: meshreduce_device::identity::Device,
        /// The host.
        host: String,
    },
    /// NCCL did not come to an end with something.
    #[error("{what} did not end within {}{}", Rounded(*.waited), Stopped(.stopped))]
    TimedOut {
        /// What was to end.
        what: &'static str,
        /// How long was waited.
        waited: Duration,
        /// The ranks whose processes are stopped, as in [`crate::Error::Timeout`].
        stopped: Vec<usize>,
    },
    /// The call is in a graph that is being captured: there is nothing that the host could wait for.
    #[error("the call is captured into a graph, where the host cannot wait for it or ask about it")]
    Captured,
    /// The system starts no thread.
    #[error("no thread can be started: {0}")]
    NoThread(std::io::Error),
    /// The communicator was ended by another thread.
    #[error("the communicator has ended")]
    Ended,
}
