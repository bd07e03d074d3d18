//! What a recorder knows, in the structure of torch's flight recorder, version 2.10 of its format: field names, types and words are
//! those of `FlightRecorder.hpp` and `FlightRecorderDetail.hpp` of torch 2.15. Where torch's analyser (`torchfrtrace`) compares
//! ranks, this is what makes equal calls look equal to it:
//!
//! | of ours | in the dump | why |
//! |---|---|---|
//! | a backend for cpu, for cuda | `gloo:`, `nccl:` | the analyser warns of other names, and before 2.15 refuses them; the backend's own name is in the frame |
//! | all_reduce, reduce, broadcast, all_gather, gather, scatter, reduce_scatter, all_to_all, barrier | the same word | |
//! | all_gather, reduce_scatter with parts of different lengths | `all_gather_v`, `reduce_scatter_v`; the rank's own part has the size `[]` | it compares sizes of all ranks |
//! | send, recv | `send 1->2`, `recv 2<-1`, `recv 2<-?` | ranks of the group, by their order in the group of all ranks; the last is from any rank, as long as it is not known from which: so torch 2.15 writes it, and older analysers fail on it |
//! | batch of all_reduce, all_gather, reduce_scatter | `allreduce_coalesced`, `all_gather_into_tensor_coalesced`, `reduce_scatter_tensor_coalesced` | |
//! | the number n of a send or receive | `p2p_seq_id` 1,000,000,000 + n | next to a collective with the same number the analyser takes both for one batch, and fails |
//! | any other batch | `coalesced` | it compares only that |
//! | parts of an all_gather, a reduce_scatter | one tensor `[ranks, elements]`, whichever way the program has them | as torch, of a list of tensors |
//! | other lists of parts | one tensor with all elements | it looks at the first alone |
//! | a reduce where this rank is not the root | outputs as inputs | in torch a reduce is in place everywhere |
//! | a failed call | `started` or `scheduled`, as far as it came, and retired | torch has no word for it |
//! | a deadline of none | `timeout_ms` 0 | c10d's `kNoTimeout` |
//! | a tensor | one dimension | tensors have no shape here |
//!
//! In a group of more than two ranks the analyser takes those that have no part in a send or receive for missing, in dumps of
//! torch as in these, and then matches nothing more in that group.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{Entry, FlightRecorder, RecordedGroup, Snapshot, State};
use crate::types::{DeviceType, Operation};

/// The version of the format.
const VERSION: &str = "2.10";

/// What sends and receives are numbered from, so that their numbers are those of no collective.
const P2P_BASE: u64 = 1_000_000_000;

/// The dump of one rank. Its fields are those of torch, in Python's types: a map is a dict, a pair a tuple.
///
/// ```
/// use meshreduce_process_group::flight_recorder::FlightRecorder;
///
/// let recorder = FlightRecorder::new(1, 2000);
/// recorder.add_group(&"0".into(), "default_pg", &[0, 1].into());
/// let dump = recorder.dump();
/// assert_eq!((dump.rank(), &*dump.pg_config["0"].ranks), (1, "[0, 1]"));
/// let mut bytes = Vec::new();
/// dump.write_pickle(&mut bytes)?; // pickle.loads(bytes)["version"] is "2.10"
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Dump {
    /// Of the format.
    pub version: &'static str,
    /// This library and its version.
    pub comm_lib_version: &'static str,
    /// The groups, by name.
    pub pg_config: BTreeMap<String, DumpedGroup>,
    /// How far they have come, by [`DumpedEntry::pg_id`].
    pub pg_status: BTreeMap<String, DumpedStatus>,
    /// The last calls, oldest first.
    pub entries: Vec<DumpedEntry>,
    /// Not written: it is in the file's name.
    #[serde(skip)]
    rank: usize,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DumpedGroup {
    /// Its name.
    pub name: String,
    /// What its maker says of it.
    pub desc: String,
    /// By rank, the ranks in the group of all ranks: `[0, 1]`.
    pub ranks: String,
}

/// How far a group has come: sequence numbers of collectives, -1 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DumpedStatus {
    /// The last one that was called.
    pub last_enqueued_collective: i64,
    /// The last one that a backend has.
    pub last_started_collective: i64,
    /// The last one whose end was seen.
    pub last_completed_collective: i64,
}

/// A place in a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Frame {
    /// What was called, and the backend that took it: `all_reduce on host`.
    pub name: String,
    /// The source file of the caller.
    pub filename: String,
    /// The line there.
    pub line: u32,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DumpedEntry {
    /// Where the program made it; one frame.
    pub frames: Vec<Frame>,
    /// [`Entry::record`].
    pub record_id: i64,
    /// [`Entry::group`].
    pub pg_id: i64,
    /// The group's name and what its maker says of it.
    pub process_group: (String, String),
    /// Of the thread that made it; empty if it has none.
    pub thread_name: String,
    /// Of the thread that made it, as the system counts them.
    pub thread_id: String,
    /// [`Entry::collective_sequence`].
    pub collective_seq_id: i64,
    /// [`Entry::p2p_sequence`]; of a send or a receive 1,000,000,000 more.
    pub p2p_seq_id: i64,
    /// All calls of the group up to and with this one.
    pub op_id: i64,
    /// `gloo:all_reduce`.
    pub profiling_name: String,
    /// Nanoseconds since 1970: when it was made.
    pub time_created_ns: i64,
    /// Sizes of what it reads, by tensor and dimension.
    pub input_sizes: Vec<Vec<u64>>,
    /// Their types, by torch's names.
    pub input_dtypes: Vec<&'static str>,
    /// Sizes of what it writes.
    pub output_sizes: Vec<Vec<u64>>,
    /// Their types.
    pub output_dtypes: Vec<&'static str>,
    /// `scheduled`, `started` or `completed`.
    pub state: &'static str,
    /// When the backend had it.
    pub time_discovered_started_ns: Option<i64>,
    /// When it was seen to have ended well.
    pub time_discovered_completed_ns: Option<i64>,
    /// Whether it has ended, well or not.
    pub retired: bool,
    /// Milliseconds that it may take, rounded up; 0: for ever.
    pub timeout_ms: i64,
    /// Whether it is a send or a receive, or a batch of such.
    pub is_p2p: bool,
}

impl FlightRecorder {
    /// Everything, now, for torch's tools.
    pub fn dump(&self) -> Dump {
        Dump::from(&self.snapshot())
    }
}

impl From<&Snapshot> for Dump {
    fn from(snapshot: &Snapshot) -> Self {
        let groups = &snapshot.groups;
        let config = |group: &RecordedGroup| DumpedGroup {
            name: group.name.to_string(),
            desc: group.description.to_string(),
            ranks: format!("{:?}", group.ranks),
        };
        let status = |group: &RecordedGroup| DumpedStatus {
            last_enqueued_collective: last(group.status.last_enqueued),
            last_started_collective: last(group.status.last_started),
            last_completed_collective: last(group.status.last_completed),
        };
        Self {
            version: VERSION,
            comm_lib_version: concat!("meshreduce ", env!("CARGO_PKG_VERSION")),
            pg_config: groups.iter().map(|group| (group.name.to_string(), config(group))).collect(),
            pg_status: (0..)
                .zip(groups)
                .map(|(id, group): (u32, _)| (id.to_string(), status(group)))
                .collect(),
            entries: snapshot.entries.iter().map(|entry| dumped(entry, snapshot)).collect(),
            rank: snapshot.rank,
        }
    }
}

impl Dump {
    /// Whose it is, in the group of all ranks.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Writes it as torch's tools read it: as a pickle of Python's built-in types.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn write_pickle(&self, to: impl io::Write) -> io::Result<()> {
        let mut to = io::BufWriter::new(to);
        serde_pickle::to_writer(&mut to, self, serde_pickle::SerOptions::new()).map_err(
            |error| match error {
                serde_pickle::Error::Io(error) => error,
                other => io::Error::other(other),
            },
        )?;
        io::Write::flush(&mut to)
    }

    /// Writes it as torch writes it as JSON: a tuple is a list, a time of none 0, a status a text. (Torch leaves frames out, and
    /// an empty list of entries.)
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn write_json(&self, to: impl io::Write) -> io::Result<()> {
        let mut json = serde_json::to_value(self)?;
        let entries = json["entries"].as_array_mut().into_iter().flatten();
        let times = entries.flat_map(|entry| entry.as_object_mut().into_iter().flatten());
        for (_, time) in times.filter(|(_, value)| value.is_null()) {
            *time = 0.into();
        }
        let statuses = json["pg_status"].as_object_mut().into_iter().flatten();
        for (_, number) in statuses.flat_map(|(_, status)| status.as_object_mut().into_iter().flatten()) {
            *number = number.to_string().into();
        }
        let mut to = io::BufWriter::new(to);
        serde_json::to_writer(&mut to, &json)?;
        io::Write::flush(&mut to)
    }
}

fn last(sequence: u64) -> i64 {
    if sequence == 0 { -1 } else { number(sequence) }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn dumped(entry: &Entry, snapshot: &Snapshot) -> DumpedEntry {
    let group = &snapshot.groups[entry.group as usize];
    let (input_sizes, output_sizes) = sizes(entry, group);
    let dtypes =
        |sizes: &Vec<Vec<u64>>| vec![entry.dtype.map_or("", |dtype| dtype.torch_name()); sizes.len()];
    let time = |at| wall_clock(snapshot.moment, at);
    let completed = entry.ended.filter(|_| entry.state == State::Completed);
    let state = match (completed, entry.started) {
        (Some(_), _) => "completed",
        (None, Some(_)) => "started",
        (None, None) => "scheduled",
    };
    DumpedEntry {
        frames: vec![Frame {
            name: format!("{} on {}", entry.operation, entry.backend),
            filename: entry.location.file().to_owned(),
            line: entry.location.line(),
        }],
        record_id: number(entry.record),
        pg_id: entry.group.into(),
        process_group: (group.name.to_string(), group.description.to_string()),
        thread_name: entry.caller.thread_name.as_deref().unwrap_or_default().to_owned(),
        thread_id: entry.caller.thread_id.to_string(),
        collective_seq_id: number(entry.collective_sequence),
        p2p_seq_id: number(entry.p2p_sequence.saturating_add(if entry.is_p2p { P2P_BASE } else { 0 })),
        op_id: number(entry.collective_sequence.saturating_add(entry.p2p_sequence)),
        profiling_name: profiling_name(entry, group, snapshot.rank),
        time_created_ns: time(entry.created),
        input_dtypes: dtypes(&input_sizes),
        input_sizes,
        output_dtypes: dtypes(&output_sizes),
        output_sizes,
        state,
        time_discovered_started_ns: entry.started.map(time),
        time_discovered_completed_ns: completed.map(time),
        retired: entry.ended.is_some(),
        timeout_ms: entry.deadline.map_or(0, milliseconds),
        is_p2p: entry.is_p2p,
    }
}

/// The table above: backend and operation.
fn profiling_name(entry: &Entry, group: &RecordedGroup, rank: usize) -> String {
    let backend = match entry.device.map(|device| device.kind()) {
        Some(DeviceType::Cuda) => "nccl",
        Some(DeviceType::Cpu) | None => "gloo",
    };
    let uneven = entry.has_uneven_parts;
    let operation = match (entry.operation, entry.batched) {
        (Operation::Batch, Some(Operation::AllReduce)) => "allreduce_coalesced",
        (Operation::Batch, Some(Operation::AllGather)) if !uneven => "all_gather_into_tensor_coalesced",
        (Operation::Batch, Some(Operation::ReduceScatter)) if !uneven => "reduce_scatter_tensor_coalesced",
        (Operation::Batch, _) => "coalesced",
        (Operation::AllGather, _) if uneven => "all_gather_v",
        (Operation::ReduceScatter, _) if uneven => "reduce_scatter_v",
        (operation, _) => operation.name(),
    };
    // The analyser takes these for places in the sorted list of the group's ranks.
    let place = |of: usize| group.ranks.iter().filter(|other| **other < of).count();
    let own = place(rank);
    let peer = entry.peer.and_then(|peer| group.ranks.get(peer)).map(|peer| place(*peer).to_string());
    // Nobody knows yet whom a receive is from.
    let peer = peer.unwrap_or_else(|| "?".to_owned());
    match entry.operation {
        Operation::Send => format!("{backend}:{operation} {own}->{peer}"),
        Operation::Recv => format!("{backend}:{operation} {own}<-{peer}"),
        _ => format!("{backend}:{operation}"),
    }
}

/// The table above: what is read and written.
fn sizes(entry: &Entry, group: &RecordedGroup) -> (Vec<Vec<u64>>, Vec<Vec<u64>>) {
    let Entry { inputs, outputs, .. } = entry;
    let ranks = group.ranks.len() as u64;
    let one = |sizes: &super::Sizes| match sizes.tensors() {
        0 => vec![],
        _ => vec![vec![sizes.total()]],
    };
    let by_rank = |sizes: &super::Sizes| match sizes.total().checked_div(ranks) {
        Some(each) if !entry.has_uneven_parts => vec![vec![ranks, each]],
        _ => one(sizes),
    };
    let own = |sizes: &super::Sizes| match entry.has_uneven_parts {
        true => vec![vec![]],
        false => one(sizes),
    };
    let by_call = |sizes: &super::Sizes| sizes.counts().iter().map(|count| vec![*count]).collect();
    match entry.operation {
        Operation::AllGather => (own(inputs), by_rank(outputs)),
        Operation::ReduceScatter => (by_rank(inputs), own(outputs)),
        Operation::Reduce => (one(inputs), one(inputs)),
        Operation::Batch => (by_call(inputs), by_call(outputs)),
        _ => (one(inputs), one(outputs)),
    }
}

/// Nanoseconds since 1970.
fn wall_clock((instant, wall): (Instant, SystemTime), at: Instant) -> i64 {
    let nanoseconds = |of: Duration| i64::try_from(of.as_nanos()).unwrap_or(i64::MAX);
    let now = wall.duration_since(UNIX_EPOCH).map_or(0, nanoseconds);
    match at.checked_duration_since(instant) {
        Some(after) => now.saturating_add(nanoseconds(after)),
        None => now.saturating_sub(nanoseconds(instant - at)),
    }
}

fn milliseconds(of: Duration) -> i64 {
    i64::try_from(of.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
