//! What can be broken, as types that carry what is needed to act.
#![forbid(unsafe_code)]

mod conversions;
mod kind;
mod namespaces;
mod texts;

use std::time::Duration;

use meshreduce_device::loader::LoadError;
use meshreduce_store::StoreError;
use meshreduce_store::identity::{Member, NoHostId};
use meshreduce_wire::{Algorithm, Collective, DType, LaunchDescriptor, Op, RecordKind};

pub use kind::ErrorKind;
pub use meshreduce_device::{CudaVersion, DriverError};
pub use namespaces::SharedNamespaces;
pub use texts::Ranks;
use texts::{Launch, kind_text};

use crate::config::ConfigError;

/// Something is broken, or a call asks for what cannot be done.
///
/// That the ranks should simply use something else is not an error but [`crate::Outcome::NotApplicable`]. [`Error::kind`] says what
/// there is to do.
///
/// What an error says has what the layers below have said, so these are not in its chain of sources once more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no CUDA driver.
    #[error("no CUDA driver: {0}")]
    NoDriver(LoadError),
    /// The driver lacks what this library needs.
    #[error("the CUDA driver is too old: it supports CUDA {found}, {needed} is needed")]
    DriverTooOld {
        /// The CUDA version that the driver supports.
        found: CudaVersion,
        /// The oldest that will do.
        needed: CudaVersion,
    },
    /// The process has no device of that ordinal.
    #[error("no CUDA device {ordinal}: this process sees {count}")]
    NoSuchDevice {
        /// The ordinal that was asked for.
        ordinal: u32,
        /// Devices that the process sees.
        count: u32,
    },
    /// A configuration that cannot be, or an environment variable that cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A rank that is not below the world size.
    #[error("rank {rank} is not one of {world_size} ranks")]
    InvalidRank {
        /// The rank.
        rank: usize,
        /// The world size.
        world_size: usize,
    },
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(StoreError),
    /// Ranks did not come to the rendezvous in time.
    #[error("{} did not come to the {step} within {waited:?}", Ranks(ranks))]
    RanksMissing {
        /// The ranks that are missing.
        ranks: Vec<usize>,
        /// The step they were waited for in.
        step: &'static str,
        /// How long they were waited for.
        waited: Duration,
    },
    /// A rank's process ended during the rendezvous.
    #[error("rank {rank} (process {pid}) died before the {step}")]
    RankDied {
        /// The rank.
        rank: usize,
        /// Its process.
        pid: u32,
        /// The step it was waited for in.
        step: &'static str,
    },
    /// A rank found something broken on its side; that rank's own error says more.
    #[error("rank {rank} failed: {message}")]
    RankFailed {
        /// The rank.
        rank: usize,
        /// Its error, as text.
        message: String,
    },
    /// Another process or thread takes part in the same rendezvous as this rank.
    #[error(
        "rank {rank} is taken by {holder}, and {newcomer} came for it: give every rank its own number, every job its own \
         store or folder, every communicator its own prefix; if the first one was replaced by the second, start the job \
         again"
    )]
    RankTaken {
        /// The rank.
        rank: usize,
        /// Who has it.
        holder: Box<Member>,
        /// Who came for it.
        newcomer: Box<Member>,
    },
    /// Nothing tells which host this is.
    #[error(transparent)]
    NoHostId(#[from] NoHostId),
    /// The other ranks gave this rendezvous up and cleared it away.
    #[error("the other ranks gave up this rendezvous before this rank came to the {step}")]
    Abandoned {
        /// The step this rank was in.
        step: &'static str,
    },
    /// What a rank left in the store cannot be read.
    #[error("the payload of rank {rank} under {key} is corrupt: {problem}")]
    CorruptPayload {
        /// The key in the store.
        key: String,
        /// The rank that wrote it.
        rank: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Two ranks were configured differently.
    #[error(
        "configured differently: {field} is {} on rank {} and {} on rank {}",
        values.0, ranks.0, values.1, ranks.1
    )]
    ConfiguredDifferently {
        /// The setting.
        field: String,
        /// Two ranks that differ in it.
        ranks: (usize, usize),
        /// What it is on them.
        values: (String, String),
    },
    /// Two ranks use one device.
    #[error(
        "ranks {} and {} both use device {device}: give every rank a device of its own (the `device` argument, \
         CUDA_VISIBLE_DEVICES), or allow it with Config::allow_shared_devices",
        ranks.0, ranks.1
    )]
    DeviceUsedTwice {
        /// The ranks.
        ranks: (usize, usize),
        /// The device's PCI address and UUID.
        device: String,
    },
    /// A peer's memory could not be opened.
    #[error(
        "rank {rank} may not open the memory of rank {peer}: {source}{}",
        namespaces.map_or_else(String::new, SharedNamespaces::told)
    )]
    IpcRefused {
        /// This rank.
        rank: usize,
        /// The peer.
        peer: usize,
        /// What their processes share of what it takes; `None` if they are threads of one process, where it takes nothing.
        namespaces: Option<SharedNamespaces>,
        /// The driver's answer.
        r#source: DriverError,
    },
    /// A peer's memory is smaller than the configuration that both agreed on says.
    #[error("rank {peer} offers {found} bytes of memory to rank {rank}, {needed} are needed")]
    SegmentTooSmall {
        /// This rank.
        rank: usize,
        /// The peer.
        peer: usize,
        /// Bytes that are there.
        found: u64,
        /// Bytes that there should be.
        needed: u64,
    },
    /// The NVLink topology could not be queried.
    #[error("NVML failed: {0}")]
    Nvml(String),
    /// A shipped kernel text is not what it was when it was built.
    #[error(
        "the shipped PTX {name} was edited by hand: its header records sha256 {recorded}, its text has {found}; \
         rebuild it with `cargo xtask build-ptx`"
    )]
    KernelsEdited {
        /// The file.
        name: String,
        /// The digest in the header.
        recorded: String,
        /// The digest of the text.
        found: String,
    },
    /// The driver does not take the kernels.
    #[error("the driver refuses the kernels {name}: {source}\n{log}")]
    KernelsRefused {
        /// The PTX text.
        name: String,
        /// The driver's answer.
        r#source: DriverError,
        /// The log of the driver's compiler.
        log: String,
    },
    /// The kernels contain no entry for a shipped algorithm.
    #[error("the kernels {name} have no entry {entry}")]
    KernelMissing {
        /// The PTX text.
        name: String,
        /// The entry.
        entry: String,
    },
    /// Not even one block of every rank and lane fits the device at once.
    #[error(
        "device {device} holds {resident} resident blocks, which are too few for {communicators} communicators of \
         {sharers} ranks of {lanes} lanes on it"
    )]
    DeviceTooSmall {
        /// The device's ordinal.
        device: u32,
        /// Blocks that are resident at once.
        resident: u32,
        /// Ranks on the device.
        sharers: u32,
        /// Lanes of each.
        lanes: u32,
        /// Communicators that the configuration gives the device to.
        communicators: u32,
    },
    /// The kernels of this communicator would not be resident beside those of the other communicators that this process
    /// has on the device: kernels that wait for one another could then wait for ever.
    #[error(
        "residency: of {resident} blocks that device {device} holds at once, other communicators of this process have \
         {taken}, and this one needs {needed}; tell all ranks how many there will be \
         (Config::communicators_per_device), or close one"
    )]
    NotResident {
        /// The device's ordinal.
        device: u32,
        /// Blocks that are resident at once.
        resident: u32,
        /// Blocks that other communicators of this process may fill.
        taken: u32,
        /// Blocks that this one may fill.
        needed: u32,
    },
    /// No algorithm takes this collective; [`crate::Communicator::select_for`] would have said so.
    #[error(
        "no intra-node algorithm takes a slice of {bytes} bytes of {collective} here: use something else for it"
    )]
    NoAlgorithmFor {
        /// The collective.
        collective: Collective,
        /// Bytes of the longest slice.
        bytes: u64,
    },
    /// A list has not one count for each rank.
    #[error("{found} counts were given for {world_size} ranks")]
    WrongCounts {
        /// Counts that there are.
        found: usize,
        /// Counts that there must be.
        world_size: usize,
    },
    /// A root is no rank of the communicator.
    #[error("root {root} is not one of {world_size} ranks")]
    NoSuchRoot {
        /// The root.
        root: usize,
        /// The number of ranks.
        world_size: usize,
    },
    /// What a rank sends itself in an all-to-all has not as many elements as what it receives of itself.
    #[error("this rank sends itself {sent} elements and receives {received}")]
    OwnSlicesDiffer {
        /// Elements sent.
        sent: usize,
        /// Elements received.
        received: usize,
    },
    /// No algorithm takes this message; [`crate::Communicator::select`] would have said so.
    #[error("no intra-node algorithm takes {bytes} bytes of {dtype}, {op}: use something else for it")]
    NoAlgorithm {
        /// The message's length.
        bytes: u64,
        /// The element type.
        dtype: DType,
        /// The operation.
        op: Op,
    },
    /// The algorithm that is forced cannot run on this topology, or is not in this version.
    #[error("{algorithm} is not possible here: {why}")]
    AlgorithmNotPossible {
        /// The algorithm.
        algorithm: Algorithm,
        /// The reason.
        why: String,
    },
    /// The kernels have no entry for this type and operation.
    #[error("{algorithm} does not support {op} of {dtype}")]
    Unsupported {
        /// The algorithm.
        algorithm: Algorithm,
        /// The element type.
        dtype: DType,
        /// The operation.
        op: Op,
    },
    /// A pointer does not lead to memory of the communicator's device.
    #[error("address {address:#x} is not on device {device}: {found}")]
    NotOnDevice {
        /// The address.
        address: u64,
        /// The ordinal of the communicator's device.
        device: u32,
        /// What the driver knows of the address.
        found: String,
    },
    /// A pointer is not aligned to its element type.
    #[error("address {address:#x} is not a multiple of {alignment}")]
    Misaligned {
        /// The address.
        address: u64,
        /// The alignment in bytes.
        alignment: usize,
    },
    /// Input and output overlap without being the same.
    #[error("{bytes} bytes of input at {input:#x} and output at {output:#x} overlap in part")]
    PartialOverlap {
        /// Address of the input.
        input: u64,
        /// Address of the output.
        output: u64,
        /// Bytes of each.
        bytes: u64,
    },
    /// The output of a tensor of a list overlaps what another one has.
    #[error(
        "the output of tensor {written} overlaps the input or the output of tensor {other} of the same list"
    )]
    TensorsOverlap {
        /// The place in the list of the tensor whose output it is.
        written: usize,
        /// The place of the other one.
        other: usize,
    },
    /// Input and output have different lengths.
    #[error("the input has {input} elements, the output {output}")]
    LengthsDiffer {
        /// Elements of the input.
        input: usize,
        /// Elements of the output.
        output: usize,
    },
    /// A peer's signal did not come within the deadline.
    #[error(
        "rank {rank} gave up waiting for rank {peer} after {waited:?}: block {block}, phase {phase}, epoch \
         {epoch_wanted} wanted, {epoch_seen} seen"
    )]
    PeerTimeout {
        /// This rank.
        rank: usize,
        /// The peer that did not signal.
        peer: usize,
        /// The block that gave up.
        block: u32,
        /// The phase in which it did.
        phase: u32,
        /// The epoch that was waited for.
        epoch_wanted: u64,
        /// The epoch that was there; of a wait for packets with data, of their sender's header. 0: none was there.
        epoch_seen: u64,
        /// How long the kernel waited: at least the deadline of that phase ([`crate::Config::deadline`]).
        waited: Duration,
    },
    /// Another rank ended the collective.
    #[error("rank {origin} ended the collective: {}, and blames rank {culprit}", kind_text(*kind))]
    PeerAborted {
        /// The rank that found the failure.
        origin: usize,
        /// The rank that it blames.
        culprit: usize,
        /// What it found.
        kind: RecordKind,
    },
    /// Two ranks launched different things.
    #[error(
        "launch mismatch: rank {rank} launched {}, rank {peer} launched {}",
        Launch(launched),
        Launch(peer_launched)
    )]
    LaunchMismatch {
        /// This rank.
        rank: usize,
        /// The peer that differs.
        peer: usize,
        /// What this rank launched; `None` if the word cannot be read.
        launched: Option<LaunchDescriptor>,
        /// What the peer launched; `None` if the word cannot be read.
        peer_launched: Option<LaunchDescriptor>,
    },
    /// Two ranks launched lists of which a tensor has different lengths.
    #[error(
        "tensors differ: tensor {tensor} of the list has {count} elements on rank {rank} and {peer_count} on rank {peer}"
    )]
    TensorMismatch {
        /// This rank.
        rank: usize,
        /// The peer that differs.
        peer: usize,
        /// The tensor's place in the list that was given, from 0.
        tensor: usize,
        /// Its elements on this rank.
        count: usize,
        /// Its elements on the peer.
        peer_count: usize,
    },
    /// [`crate::Communicator::abort`] was called on this rank.
    #[error("the communicator was aborted by its host")]
    Aborted,
    /// A kernel was stopped by the device; the context is lost.
    #[error("a kernel faulted: {0}")]
    KernelFault(DriverError),
    /// The device's primary context was reset: everything in it is gone.
    #[error("the primary context of device {device} was reset under the communicator")]
    ContextReset {
        /// The device's ordinal.
        device: u32,
    },
    /// This process was forked from the one that the communicator belongs to.
    #[error("a forked child cannot use its parent's communicator: only the parent's driver is initialised")]
    Forked,
    /// A stream is not one of the primary context of the communicator's device, or is none.
    #[error("the stream is not one of device {device}'s primary context: {source}")]
    StreamNotOnDevice {
        /// The device's ordinal.
        device: u32,
        /// What the driver says to a launch on it.
        r#source: DriverError,
    },
    /// A call came on another stream than the lane's last one, and nothing says in which order the two run.
    #[error(
        "a call of lane {lane} on another stream than the last one, and nothing orders the two: wait for the last call \
         (Work::synchronize), or make a raw call whose StreamOrder says what orders them; a call that was made without \
         an event leaves none to wait for"
    )]
    StreamsNotOrdered {
        /// The lane.
        lane: u32,
    },
    /// The host cannot wait for work that is being captured into a graph.
    #[error("a graph is being captured, or this work was: wait for the stream of a replay instead")]
    Capturing,
    /// A peer closed the communicator while this rank still used it.
    #[error("rank {peer} closed the communicator while rank {rank} still used it")]
    Closed {
        /// This rank.
        rank: usize,
        /// The peer that had closed it.
        peer: usize,
    },
    /// The lane is in use.
    #[error("lane {0} is in use: drop its `Lane` first")]
    LaneTaken(u32),
    /// There is no such lane.
    #[error("no lane {lane}: the communicator has {lanes}")]
    NoSuchLane {
        /// The lane that was asked for.
        lane: u32,
        /// The lanes there are, from 0.
        lanes: u32,
    },
    /// Kernels of this rank did not end, although they were told to, or replays of graphs could not be kept from the memory.
    #[error("kernels of rank {rank} did not end within {waited:?}: the communicator's memory is leaked")]
    KernelsRunning {
        /// This rank.
        rank: usize,
        /// How long they were waited for.
        waited: Duration,
    },
    /// Processes of ranks ended before they closed the communicator.
    #[error("{} died before closing the communicator", Ranks(ranks))]
    RanksDied {
        /// The ranks.
        ranks: Vec<usize>,
    },
    /// Ranks dropped the communicator in place of closing it.
    #[error("{} dropped the communicator without closing it", Ranks(ranks))]
    RanksDropped {
        /// The ranks.
        ranks: Vec<usize>,
    },
    /// Ranks did not close the communicator in time.
    #[error("{} did not close the communicator within {waited:?}", Ranks(ranks))]
    CloseTimeout {
        /// The ranks that are missing.
        ranks: Vec<usize>,
        /// How long they were waited for.
        waited: Duration,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's answer.
        r#source: std::io::Error,
    },
    /// The driver refused something else.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

#[cfg(test)]
mod tests;
