//! What can go wrong with a group and its calls.
#![forbid(unsafe_code)]

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use meshreduce::Ranks;
use meshreduce_store::StoreError;
use meshreduce_store::identity::Member;

use crate::config::ConfigError;
use crate::flight_recorder::SettingsError;
use crate::types::{DType, Device, DeviceType, Operation, ReduceOp};

/// Why a group could not be made, or a call failed. Cheap to clone: everything pending on a group fails with the same cause.
///
/// Its text is whole: it has that of the cause within it, which is therefore no [`source`](std::error::Error::source) that a report would
/// print again. The cause itself is the variant's field, and another crate's error in it to be had by [`Cause::downcast_ref`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration of backends makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A variable or a setting of the flight recorder's makes no sense.
    #[error("the flight recorder: {0}")]
    Recording(SettingsError),
    /// The rank is not one of the world's.
    #[error("rank {rank} is not one of {world_size} ranks")]
    InvalidRank {
        /// The rank.
        rank: usize,
        /// The number of ranks.
        world_size: usize,
    },
    /// There are more ranks than a group can have.
    #[error("a group of {world_size} ranks: there can be {most} at most")]
    TooManyRanks {
        /// The number of ranks.
        world_size: usize,
        /// As many there can be.
        most: usize,
    },
    /// A group of ranks that are not all, each once, in the group that it was to be a part of.
    #[error("a group of ranks {ranks:?} cannot be part of group {group}: {problem}")]
    InvalidRanks {
        /// The ranks that were asked for.
        ranks: Vec<usize>,
        /// The group that it was to be a part of.
        group: Arc<str>,
        /// What is wrong with them.
        problem: String,
    },
    /// The process is not a member of the group.
    #[error("rank {rank} is not a member of group {group}")]
    NotAMember {
        /// The rank in the group that it was made from.
        rank: usize,
        /// The group.
        group: Arc<str>,
    },
    /// The group has no backend for the tensor's device.
    #[error("group {group} has no backend for {device}: its configuration is \"{config}\"")]
    NoBackend {
        /// The device type.
        device: DeviceType,
        /// The group.
        group: Arc<str>,
        /// Its configuration, in the canonical form.
        config: String,
    },
    /// The tensor is on another device than the group was made for.
    #[error("group {group} uses {}, but the call is on {device}: name the device when the group is made (Builder::cuda_device)", Named(*.expected))]
    WrongDevice {
        /// Where the tensor is.
        device: Device,
        /// The group's device of that kind, if it was given one.
        expected: Option<Device>,
        /// The group.
        group: Arc<str>,
    },
    /// The backend lacks it.
    #[error("backend {backend} does not support {} (group {group}, device {device}){}", What(*.operation, *.dtype, *.op), Because(.why))]
    Unsupported {
        /// The backend.
        backend: Arc<str>,
        /// The operation.
        operation: Operation,
        /// The element type, if the call has one.
        dtype: Option<DType>,
        /// The reduction, if the call has one.
        op: Option<ReduceOp>,
        /// The group.
        group: Arc<str>,
        /// Where the tensors are.
        device: Device,
        /// What is in the way, where there is more to say.
        why: String,
    },
    /// The call makes no sense, as can be told on this rank alone.
    #[error("{operation} on group {group}: {source}")]
    Call {
        /// The operation.
        operation: Operation,
        /// The group.
        group: Arc<str>,
        /// What is wrong.
        r#source: CallError,
    },
    /// A backend was to be made while the stream is being captured into a graph.
    #[error(
        "group {group} would make its backend {backend} within a capture: make it before (ProcessGroup::connect), or call once \
         outside of the capture"
    )]
    MadeInCapture {
        /// The group.
        group: Arc<str>,
        /// The backend.
        backend: Arc<str>,
    },
    /// A call that waits for its end was made on a stream that is being captured into a graph.
    #[error("{operation} on group {group} would wait within a capture: enqueue it with ProcessGroup::start")]
    WaitInCapture {
        /// The operation.
        operation: Operation,
        /// The group.
        group: Arc<str>,
    },
    /// A send or receive of `mesh`, or a batch of them, was made on a stream that is being captured into a graph.
    #[error(
        "{operation} on group {group}: sends and receives of mesh are the host's work, which a graph does not replay; make them outside of \
         the capture, or give the group nccl for its device"
    )]
    TransferInCapture {
        /// The operation.
        operation: Operation,
        /// The group.
        group: Arc<str>,
    },
    /// The backend could not be made.
    #[error("backend {backend} of group {group} cannot be made: {source}")]
    NotMade {
        /// The backend.
        backend: Arc<str>,
        /// The group.
        group: Arc<str>,
        /// Why.
        r#source: Cause,
    },
    /// A call did not end within its deadline. The group is over.
    #[error(
        "{operation} number {sequence}{} on group {group} did not end {}{}{}", Tagged(*.tag), InTime(*.waited),
        NotCome(.missing, .stopped), InAnotherOrder(.elsewhere)
    )]
    #[non_exhaustive]
    Timeout {
        /// The operation.
        operation: Operation,
        /// The call's sequence number on the group.
        sequence: u64,
        /// The group.
        group: Arc<str>,
        /// How long it had; zero: as long as another rank had, which told this one.
        waited: Duration,
        /// The ranks that have not come to the call, as far as that is known.
        missing: Vec<usize>,
        /// The ranks whose processes are stopped (SIGSTOP, a debugger), whether or not they have come to the call, as far as that can be
        /// told: of those on other hosts it cannot.
        stopped: Vec<usize>,
        /// Where missing ranks were last seen waiting instead: calls on other groups that were made from the same first one. There are
        /// such where ranks use groups in different orders.
        elsewhere: Vec<Elsewhere>,
        /// Of a send or a receive its tag, as far as that is known.
        tag: Option<Tag>,
    },
    /// A wait ended before the call did; the call goes on.
    #[error("{call} has not ended after {}; it goes on", Rounded(*.waited))]
    StillRunning {
        /// Which.
        call: String,
        /// How long was waited.
        waited: Duration,
    },
    /// A rank's process ended, its connection broke, or it dropped the group, while that was in use.
    #[error("rank {rank} of group {group} is gone: {how}")]
    RankDied {
        /// The rank in the group.
        rank: usize,
        /// The group.
        group: Arc<str>,
        /// How that was seen.
        how: String,
    },
    /// A rank has shut the group down in order, and makes no more calls, and this rank has made one more. Nobody has died: the ranks'
    /// programs differ.
    #[error("rank {rank} has shut group {group} down in order, and this rank has called it once more")]
    PeerShutDown {
        /// The rank in the group that was found to have shut it down; others may have too.
        rank: usize,
        /// The group.
        group: Arc<str>,
    },
    /// Ranks called different things.
    #[error("call number {sequence} on group {group}: rank {} calls {}, rank {} calls {}", .ranks.0, .calls.0, .ranks.1, .calls.1)]
    Mismatch {
        /// The call's sequence number on the group.
        sequence: u64,
        /// The group.
        group: Arc<str>,
        /// The two ranks.
        ranks: (usize, usize),
        /// What each of them calls.
        calls: (String, String),
    },
    /// Ranks did not come to a monitored barrier.
    #[error("{} did not come to the barrier of group {group} within {}", Ranks(.ranks), Rounded(*.waited))]
    NotAtBarrier {
        /// All of them.
        ranks: Vec<usize>,
        /// The group.
        group: Arc<str>,
        /// How long was waited.
        waited: Duration,
    },
    /// The group was aborted.
    #[error("group {group} was aborted: {cause}")]
    Aborted {
        /// The group.
        group: Arc<str>,
        /// Why.
        cause: String,
    },
    /// The group was shut down.
    #[error("group {group} was shut down")]
    ShutDown {
        /// The group.
        group: Arc<str>,
    },
    /// This process was forked from the one that the group belongs to, and has no part in it: nothing was touched. A child that is to
    /// have groups is started anew (`exec`).
    #[error("group {group} belongs to the process that this one was forked from")]
    Forked {
        /// The group.
        group: Arc<str>,
    },
    /// There is no default group, or there is one already.
    #[error("{0}")]
    Default(&'static str),
    /// The store failed.
    #[error("the store of group {group} failed: {source}")]
    Store {
        /// The group.
        group: Arc<str>,
        /// What it says.
        r#source: Arc<StoreError>,
    },
    /// A launcher's environment variables, or its store, will not do.
    #[error("{0}")]
    Launch(Cause),
    /// A backend failed in its own way.
    #[error("backend {backend} of group {group}: {source}")]
    Backend {
        /// The backend.
        backend: Arc<str>,
        /// The group.
        group: Arc<str>,
        /// What it says.
        r#source: Cause,
    },
}

impl Error {
    /// The same, if it is a timeout, of a send or receive with this tag.
    pub(crate) fn with_tag(mut self, its: Option<u32>) -> Self {
        if let Self::Timeout { tag, .. } = &mut self {
            *tag = its.and_then(Tag::of).or(*tag);
        }
        self
    }
}

impl From<SettingsError> for Error {
    fn from(error: SettingsError) -> Self {
        Self::Recording(error)
    }
}

/// How a rank is gone whose process lives.
pub(crate) const GROUP_DROPPED: &str = "its group was dropped there before it was shut down";

/// Another crate's error, shared.
#[derive(Clone)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl Cause {
    /// Of any error.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// The error, to be looked at as its own type.
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Whom a rank that is none was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The root.
    Root,
    /// The peer of a send or receive.
    Peer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Root => "root",
            Role::Peer => "peer",
        })
    }
}

/// What is wrong with a call, as can be told on one rank.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Root or peer is no rank of the group.
    #[error("{role} {rank} is not one of {world_size} ranks")]
    NoSuchRank {
        /// Whom it was to be.
        role: Role,
        /// The rank.
        rank: usize,
        /// The number of ranks.
        world_size: usize,
    },
    /// A send to oneself, or a receive from oneself.
    #[error("rank {rank} cannot send to itself or receive from itself")]
    ToOneself {
        /// The rank.
        rank: usize,
    },
    /// A receive from any rank in a world of one.
    #[error("there is no other rank to receive from")]
    NobodyElse,
    /// Input and output, or this rank's part of them, differ in length.
    #[error("the input has {input} elements, the output {output}")]
    LengthsDiffer {
        /// Elements of the input.
        input: usize,
        /// Elements of the output.
        output: usize,
    },
    /// The root lacks what only it has, or another rank has it.
    #[error("{}", RootsOnlyText(*.root, *.is_there))]
    RootsOnly {
        /// The root.
        root: usize,
        /// Whether it was given.
        is_there: bool,
    },
    /// A tensor that is to be cut into equal parts is not so long.
    #[error("{count} elements cannot be cut into {world_size} equal parts")]
    NoEqualParts {
        /// Its elements.
        count: usize,
        /// The number of ranks.
        world_size: usize,
    },
    /// Not one part for each rank.
    #[error("{found} parts for {world_size} ranks")]
    PartsMissing {
        /// Parts there are.
        found: usize,
        /// The number of ranks.
        world_size: usize,
    },
    /// The counts of parts are not those of the tensor.
    #[error("the parts have {parts} elements in all, the tensor {count}")]
    PartsDoNotAddUp {
        /// Elements of all parts.
        parts: usize,
        /// Elements of the tensor.
        count: usize,
    },
    /// Tensors are on different devices.
    #[error("tensors on {} and {} in one call", .devices.0, .devices.1)]
    DevicesDiffer {
        /// Two of them.
        devices: (Device, Device),
    },
    /// Tensors are of different types.
    #[error("tensors of {} and {} in one call", .dtypes.0, .dtypes.1)]
    TypesDiffer {
        /// Two of them.
        dtypes: (DType, DType),
    },
    /// A tensor is not aligned to its elements.
    #[error("address {address:#x} is not a multiple of {alignment}")]
    Misaligned {
        /// The address.
        address: u64,
        /// What it must be a multiple of.
        alignment: usize,
    },
    /// Tensors overlap that must not.
    #[error("tensors at {input:#x} and {output:#x} overlap")]
    Overlap {
        /// Where the one begins.
        input: u64,
        /// Where the other begins.
        output: u64,
    },
    /// A batch of different kinds of calls, or of batches.
    #[error("{} and {} in one batch", .operations.0, .operations.1)]
    MixedBatch {
        /// Two of them.
        operations: (Operation, Operation),
    },
}

struct RootsOnlyText(usize, bool);

impl fmt::Display for RootsOnlyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            true => write!(f, "only root {} has parts or an output for it, this rank has not", self.0),
            false => write!(
                f,
                "this rank is root {} and lacks the parts, or the output, that the root has",
                self.0
            ),
        }
    }
}

struct What(Operation, Option<DType>, Option<ReduceOp>);

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        if let Some(op) = self.2 {
            write!(f, " ({op})")?;
        }
        self.1.map_or(Ok(()), |dtype| write!(f, " of {dtype}"))
    }
}

struct Because<'a>(&'a str);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            why => write!(f, ": {why}"),
        }
    }
}

struct Named(Option<Device>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(device) => write!(f, "{device}"),
            None => f.write_str("no CUDA device"),
        }
    }
}

/// A call on another group, in which a rank waits that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Elsewhere {
    /// The rank, in the group whose call is late.
    pub rank: usize,
    /// The other group.
    pub group: Arc<str>,
    /// What it calls there.
    pub operation: Operation,
    /// The call's number among the collectives of that group, or among its sends and receives.
    pub sequence: u64,
}

/// The tag of a send or receive, as [`Error::Timeout`] has it: of any number but the greatest, so that it takes no more room than that, and
/// every result of a call no more than before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag(NonZeroU32);

impl Tag {
    /// `None`: it is the greatest number.
    pub(crate) fn of(tag: u32) -> Option<Self> {
        NonZeroU32::new(!tag).map(Self)
    }

    /// The number.
    pub fn number(self) -> u32 {
        !self.0.get()
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tag").field(&self.number()).finish()
    }
}

struct Tagged(Option<Tag>);

impl fmt::Display for Tagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |tag| write!(f, " with tag {}", tag.number()))
    }
}

struct InTime(Duration);

impl fmt::Display for InTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Duration::ZERO => f.write_str("in time, as another rank says"),
            waited => write!(f, "within {}", Rounded(waited)),
        }
    }
}

/// A time as `Debug` shows it, with three digits behind the point at most.
pub(crate) struct Rounded(pub(crate) Duration);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.0 {
            time if time >= Duration::from_secs(1) => 1_000_000,
            time if time >= Duration::from_millis(1) => 1_000,
            _ => 1,
        };
        let below_seconds = (self.0.subsec_nanos() + step / 2) / step * step;
        let seconds = Duration::from_secs(self.0.as_secs());
        write!(f, "{:?}", seconds.saturating_add(Duration::from_nanos(below_seconds.into())))
    }
}

/// The ranks whose processes are stopped, as far as rank `own` of them can tell: for [`Error::Timeout`].
pub(crate) fn stopped(members: &[Member], own: usize) -> Vec<usize> {
    let here = &members[own].host;
    (0..members.len()).filter(|rank| *rank != own && members[*rank].is_stopped(here)).collect()
}

/// What is said of ranks whose processes are stopped.
pub(crate) struct Stopped<'a>(pub(crate) &'a [usize]);

impl fmt::Display for Stopped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            [one] => write!(f, "; the process of rank {one} is stopped"),
            ranks => write!(f, "; the processes of {} are stopped", Ranks(ranks)),
        }
    }
}

struct NotCome<'a>(&'a [usize], &'a [usize]);

impl fmt::Display for NotCome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [_, ..] = self.0 {
            write!(f, ": {} did not come to it", Ranks(self.0))?;
        }
        Stopped(self.1).fmt(f)
    }
}

struct InAnotherOrder<'a>(&'a [Elsewhere]);

impl fmt::Display for InAnotherOrder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Elsewhere { rank, group, operation, sequence } in self.0 {
            write!(
                f,
                "; rank {rank} was last seen waiting in {operation} number {sequence} on group {group}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
