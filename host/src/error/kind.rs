//! Errors by what there is to do.
#![forbid(unsafe_code)]

use super::Error;

/// What an error means for what comes next.
///
/// ```
/// # fn rejoin() {} fn use_nccl() {}
/// use meshreduce::{Error, ErrorKind};
///
/// fn act_on(error: &Error) {
///     match error.kind() {
///         ErrorKind::Communicator => rejoin(),
///         ErrorKind::Rendezvous => rejoin(),
///         _ => use_nccl(),
///     }
/// }
/// # act_on(&Error::Aborted);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's mistake: a call or a configuration that cannot be. Nothing was launched, and an existing communicator is as it was.
    Usage,
    /// The ranks did not come together: there is no communicator. A new rendezvous may go better, over a prefix or a folder of its
    /// own.
    Rendezvous,
    /// The communicator has failed, on all ranks or soon so: every later call on it fails. Make a new one with the ranks that are
    /// left. Buffers of the calls that failed have undefined contents.
    Communicator,
    /// The machine, or what is installed on it, lacks something or refused it: the same would fail again.
    Machine,
}

impl Error {
    /// What there is to do.
    ///
    /// ```
    /// use meshreduce::{Error, ErrorKind};
    /// assert_eq!(Error::Misaligned { address: 0x101, alignment: 2 }.kind(), ErrorKind::Usage);
    /// assert_eq!(Error::RanksDied { ranks: vec![3] }.kind(), ErrorKind::Communicator);
    /// ```
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Error::Config(_)
            | Error::InvalidRank { .. }
            | Error::NoSuchDevice { .. }
            | Error::RankTaken { .. }
            | Error::ConfiguredDifferently { .. }
            | Error::DeviceUsedTwice { .. }
            | Error::DeviceTooSmall { .. }
            | Error::NotResident { .. }
            | Error::NoAlgorithmFor { .. }
            | Error::WrongCounts { .. }
            | Error::NoSuchRoot { .. }
            | Error::OwnSlicesDiffer { .. }
            | Error::NoAlgorithm { .. }
            | Error::AlgorithmNotPossible { .. }
            | Error::Unsupported { .. }
            | Error::NotOnDevice { .. }
            | Error::Misaligned { .. }
            | Error::PartialOverlap { .. }
            | Error::TensorsOverlap { .. }
            | Error::LengthsDiffer { .. }
            | Error::Forked
            | Error::StreamNotOnDevice { .. }
            | Error::StreamsNotOrdered { .. }
            | Error::Capturing
            | Error::LaneTaken(_)
            | Error::NoSuchLane { .. } => ErrorKind::Usage,
            Error::Store(_)
            | Error::RanksMissing { .. }
            | Error::RankDied { .. }
            | Error::RankFailed { .. }
            | Error::Abandoned { .. }
            | Error::CorruptPayload { .. }
            | Error::SegmentTooSmall { .. } => ErrorKind::Rendezvous,
            Error::PeerTimeout { .. }
            | Error::PeerAborted { .. }
            | Error::LaunchMismatch { .. }
            | Error::TensorMismatch { .. }
            | Error::Aborted
            | Error::KernelFault(_)
            | Error::ContextReset { .. }
            | Error::Closed { .. }
            | Error::KernelsRunning { .. }
            | Error::RanksDied { .. }
            | Error::RanksDropped { .. }
            | Error::CloseTimeout { .. } => ErrorKind::Communicator,
            Error::NoDriver(_)
            | Error::DriverTooOld { .. }
            | Error::NoHostId(_)
            | Error::IpcRefused { .. }
            | Error::Nvml(_)
            | Error::KernelsEdited { .. }
            | Error::KernelsRefused { .. }
            | Error::KernelMissing { .. }
            | Error::System { .. }
            | Error::Driver(_) => ErrorKind::Machine,
        }
    }
}
