//! What a worker process is told to do, and what it says while it does it: one JSON object a line.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

use meshreduce::{Algorithm, Collective, DType, Isa, Op, Topology};
pub use meshreduce_arguments::ForcedTopology;
use serde::{Deserialize, Serialize};

/// The work of one process: some ranks of one communicator, and the cases they run in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The ranks that this process runs, each on a thread of its own.
    pub ranks: Vec<usize>,
    /// Ranks of the communicator.
    pub world_size: usize,
    /// CUDA ordinal of each rank's device, by rank.
    pub devices: Vec<u32>,
    /// Directory of the file store.
    pub store: PathBuf,
    /// What to reduce.
    pub cases: Vec<Case>,
    /// Launches of each case.
    pub launches: usize,
    /// Where random inputs come from.
    pub seed: u64,
    /// PTX text to run in place of the shipped one.
    pub ptx: Option<PathBuf>,
    /// The latest PTX ISA whose texts may be used, by name.
    #[serde(with = "name")]
    pub isa: Isa,
    /// Deadline of a wait inside a kernel, in milliseconds.
    pub deadline_ms: u64,
    /// Deadline of the rendezvous, in milliseconds.
    pub rendezvous_ms: u64,
    /// Lanes of the communicator; the cases run on the first.
    pub lanes: u32,
    /// The number of the communicator's first call.
    pub first_call_number: u64,
    /// Ranks may share a device.
    pub shared_devices: bool,
    /// What the links are taken for, whatever they are.
    pub force_topology: Option<ForcedTopology>,
    /// What is made to go wrong.
    pub faults: Vec<Fault>,
}

/// The topology that is forced.
pub fn topology(forced: ForcedTopology) -> Topology {
    match forced {
        ForcedTopology::FullyConnected => Topology::FullyConnected,
        ForcedTopology::HybridCubeMesh => Topology::HybridCubeMesh,
    }
}

/// One shape of call, made `launches` times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The collective, by name.
    #[serde(with = "name")]
    pub collective: Collective,
    /// The algorithm, by name.
    #[serde(with = "name")]
    pub algorithm: Algorithm,
    /// The element type, by name.
    #[serde(with = "name")]
    pub dtype: DType,
    /// The operation, by name.
    #[serde(with = "name")]
    pub op: Op,
    /// Bytes of the message, or of each slice, whole elements.
    pub bytes: usize,
    /// Elements by which input and output are shifted from a 256-byte boundary.
    pub offset: usize,
    /// Input and output are the same memory.
    pub in_place: bool,
}

impl Case {
    /// Elements of the message, or of each slice.
    pub fn count(&self) -> usize {
        self.bytes / self.dtype.size()
    }
}

/// Something that one rank does wrong before a launch, for tests of failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The rank.
    pub rank: usize,
    /// When: before this launch, counted over all cases; `None`: before the rendezvous.
    pub launch: Option<usize>,
    /// What.
    pub action: Action,
}

/// What a rank does wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The process dies on the spot, as by SIGKILL.
    Die,
    /// The rank sleeps for so many milliseconds.
    Sleep(u64),
    /// The rank reduces so many elements fewer than the others.
    FewerElements(usize),
    /// The host of this rank aborts the communicator once the launch is enqueued.
    Abort,
    /// The rank leaves the launch out, and goes on when all ranks that do not have ended.
    Skip,
}

/// What a worker says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The rendezvous is over and the rank is ready.
    Ready {
        /// The rank.
        rank: usize,
    },
    /// This communicator is not for these ranks.
    NotApplicable {
        /// The rank.
        rank: usize,
        /// The library's reason.
        reason: String,
    },
    /// All launches of a case are done.
    Case {
        /// The rank.
        rank: usize,
        /// Index of the case.
        case: usize,
        /// SHA-256 over the outputs of all launches.
        digest: String,
        /// The first element that is not what the reference says.
        mismatch: Option<Mismatch>,
        /// Microseconds from the first enqueue to the last result, without copies and the reference.
        micros: u64,
        /// PTX instructions that this process has executed so far; `None` on real hardware.
        instructions: Option<u64>,
    },
    /// A case that this communicator does not do.
    Unsupported {
        /// The rank.
        rank: usize,
        /// Index of the case.
        case: usize,
        /// Why.
        reason: String,
    },
    /// The rank failed and does nothing more.
    Failed {
        /// The rank.
        rank: usize,
        /// Index of the case, if it was one.
        case: Option<usize>,
        /// Name of the error's variant, such as `PeerTimeout`.
        kind: String,
        /// The error and its causes.
        message: String,
    },
    /// The rank has closed its communicator.
    Closed {
        /// The rank.
        rank: usize,
    },
}

impl Event {
    /// The rank that says it.
    pub fn rank(&self) -> usize {
        match *self {
            Event::Ready { rank }
            | Event::NotApplicable { rank, .. }
            | Event::Case { rank, .. }
            | Event::Unsupported { rank, .. }
            | Event::Failed { rank, .. }
            | Event::Closed { rank } => rank,
        }
    }
}

/// A result that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mismatch {
    /// An element of the output.
    Element {
        /// Which launch of the case.
        launch: usize,
        /// Index of the element.
        element: usize,
        /// Its bytes, in hexadecimal, most significant first.
        got: String,
        /// The reference's.
        want: String,
    },
    /// A byte outside the output that the kernel wrote.
    Guard {
        /// Which launch of the case.
        launch: usize,
        /// Offset from the start of the output, in bytes.
        offset: i64,
    },
    /// A byte of the input that an out-of-place kernel wrote.
    Input {
        /// Which launch of the case.
        launch: usize,
        /// Offset from the start of the input, in bytes.
        offset: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Element { launch, element, got, want } => {
                write!(f, "launch {launch}, element {element} is 0x{got}, must be 0x{want}")
            }
            Mismatch::Guard { launch, offset } => {
                write!(f, "launch {launch} wrote outside its output, at byte {offset}")
            }
            Mismatch::Input { launch, offset } => {
                write!(f, "launch {launch} wrote its input, at byte {offset}")
            }
        }
    }
}

/// Serde by `Display` and `FromStr`, for the names of `wire`.
pub mod name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    /// As text.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// From text.
    ///
    /// # Errors
    /// The deserializer's, and what the type says of a text that is none of its names.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_written_with_the_names_people_use() {
        let case = Case {
            collective: Collective::AllReduce,
            algorithm: Algorithm::OneShot,
            dtype: DType::Bf16,
            op: Op::Sum,
            bytes: 4096,
            offset: 1,
            in_place: true,
        };
        let text = serde_json::to_string(&case).unwrap();
        assert!(
            text.contains(r#""collective":"all-reduce","algorithm":"one-shot","dtype":"bf16","op":"sum""#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Case>(&text).unwrap(), case);
    }
}
