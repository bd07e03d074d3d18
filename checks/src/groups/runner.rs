//! All ranks make the same calls, as threads or as processes, and every rank compares all of its memory.

use std::sync::Arc;
use std::time::Duration;

use cust::context::Context;
use meshreduce_process_group::store::{FileStore, MemoryStore, Store, TcpStore};
use meshreduce_process_group::{Call, Device, DeviceType, Error, Outcome, ProcessGroup};

use super::arena::{Memory, Plan, inputs};
use super::case::{Case, CollectiveCall};
use super::profile::Profile;

/// What nothing but a defect lets pass.
pub const FAR: Duration = Duration::from_secs(60);

/// What came of a case on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It was made, and all memory is as it must be.
    Right,
    /// The backend does not take it, which it need not.
    Refused,
    /// The rank has no part in it.
    Idle,
}

/// The group of `rank` with the profile's backend alone. A rank's CUDA device has the rank's number.
///
/// # Errors
/// The library's.
pub fn group(
    profile: &Profile,
    store: Arc<dyn Store>,
    rank: usize,
    world_size: usize,
) -> Result<ProcessGroup, Error> {
    let config = profile.config().parse()?;
    let builder = ProcessGroup::builder(store, rank, world_size)
        .backend(config)
        .registry(profile.registry.clone())
        .timeout(FAR)
        .deadline(Some(FAR));
    match profile.device {
        DeviceType::Cpu => builder.build(),
        // What the backend itself does is looked at, not what one behind it does.
        DeviceType::Cuda => builder.cuda_device(rank as u32).forbid_fallback(true).build(),
    }
}

/// The device of this rank's tensors.
pub fn device(profile: &Profile, rank: usize) -> Device {
    match profile.device {
        DeviceType::Cpu => Device::Cpu,
        DeviceType::Cuda => Device::Cuda(rank as u32),
    }
}

/// Makes a case's call on this rank and compares all of its memory.
///
/// # Errors
/// What is wrong, in words.
pub fn judge(group: &ProcessGroup, profile: &Profile, case: &Case, seed: u64) -> Result<Judged, String> {
    let (rank, world_size, exactness) = (group.rank(), group.world_size(), profile.exactness);
    let device = device(profile, rank);
    let plan = Plan::new(case, seed, rank, exactness);
    if plan.is_idle(case) {
        return Ok(Judged::Idle);
    }
    let told = |error: &dyn std::fmt::Display| format!("{case}, rank {rank}: {error}");
    let mut memory = Memory::new(device, &plan.bytes).map_err(|error| told(&error))?;
    let base = memory.base();
    let made = plan.call(case, (rank, world_size), (base, device), |call| {
        // SAFETY: the tensors lie in `memory`, which is this function's own until the call has ended.
        unsafe { make(group, call) }
    });
    match made {
        Ok(outcome) => {
            if let CollectiveCall::Message { from, to, .. } = case.what
                && rank == to
                && outcome.source.is_some_and(|source| source != from)
            {
                return Err(told(&format!("received from {:?}", outcome.source)));
            }
        }
        Err(Error::Unsupported { backend, operation, dtype, op, group: name, device: on, .. }) => {
            if (profile.must)(operation, case.dtype, case.op()) {
                return Err(told(&format!("{backend} refuses {operation} of {dtype:?} {op:?}")));
            }
            let is_right = *backend == *profile.name
                && operation == case.operation(rank)
                && dtype.is_none_or(|dtype| dtype == case.dtype)
                && op == case.op()
                && *name == *group.name()
                && on == device;
            return match is_right && memory.read().map_err(|error| told(&error))?.starts_with(&plan.bytes) {
                true => Ok(Judged::Refused),
                false => Err(told(&"a refusal that says another thing, or has touched memory")),
            };
        }
        Err(error) => return Err(told(&error)),
    }
    if device != Device::Cpu {
        cust::context::CurrentContext::synchronize().map_err(|error| told(&error))?;
    }
    let after = memory.read().map_err(|error| told(&error))?;
    compare(case, seed, &plan, (rank, world_size), profile, &after).map_err(|error| told(&error))?;
    Ok(Judged::Right)
}

/// # Safety
///
/// As [`ProcessGroup::start`], until this returns.
unsafe fn make(group: &ProcessGroup, call: &Call<'_>) -> Result<Outcome, Error> {
    // SAFETY: the caller's promise.
    let work = unsafe { group.start(call) }?;
    let outcome = work.wait(None)?;
    match work.is_completed()? {
        true => Ok(outcome),
        false => unreachable!("what was waited for has ended"),
    }
}

fn compare(
    case: &Case,
    seed: u64,
    plan: &Plan,
    (rank, world_size): (usize, usize),
    profile: &Profile,
    after: &[u8],
) -> Result<(), String> {
    let mut expected = plan.bytes.clone();
    for (copy, placed) in plan.placed.iter().enumerate() {
        let read: Vec<_> =
            (0..world_size).map(|rank| inputs(case, seed, rank, copy, profile.exactness)).collect();
        for (part, range) in placed.outputs().iter().enumerate() {
            let origin = case.origin(rank, part, world_size);
            let columns: Vec<&[u8]> = origin.inputs.iter().map(|(rank, part)| &*read[*rank][*part]).collect();
            let found = &after[range.clone()];
            profile
                .exactness
                .judge(&columns, case.dtype, origin.op, found)
                .map_err(|error| format!("part {part} of copy {copy}: {error}"))?;
            // It is right: what is compared below is all else.
            expected[range.clone()].copy_from_slice(found);
        }
    }
    match expected.iter().zip(after).position(|(expected, found)| expected != found) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} of the memory, which is no output, has changed")),
    }
}

/// Makes all cases on this rank. After the first thing that is wrong it aborts the group, so that the others end soon.
///
/// # Errors
/// What is wrong, in words.
pub fn rank(
    profile: &Profile,
    store: Arc<dyn Store>,
    (rank, world_size): (usize, usize),
    cases: &[Case],
    seed: u64,
) -> Result<Vec<Judged>, String> {
    let _context = match profile.device {
        DeviceType::Cpu => None,
        DeviceType::Cuda => {
            let device = cust::device::Device::get_device(rank as u32).map_err(|error| error.to_string())?;
            Some(Context::new(device).map_err(|error| error.to_string())?)
        }
    };
    let group = group(profile, store, rank, world_size).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        match judge(&group, profile, case, seed + number as u64) {
            Ok(judged) => all.push(judged),
            Err(error) => {
                group.abort(&error);
                return Err(error);
            }
        }
    }
    group.shutdown().map_err(|error| format!("rank {rank}, at the end: {error}"))?;
    Ok(all)
}

/// Whether ranks agree on what they refuse, and how many cases that is.
///
/// # Errors
/// The first case on which they do not agree.
pub fn refused(cases: &[Case], judged: &[Vec<Judged>]) -> Result<usize, String> {
    let mut refused = 0;
    for (number, case) in cases.iter().enumerate() {
        let by = |what: Judged| judged.iter().filter(|ranks| ranks[number] == what).count();
        match (by(Judged::Refused), by(Judged::Right)) {
            (0, _) => {}
            (_, 0) => refused += 1,
            _ => return Err(format!("{case}: some ranks refuse it, and some make it")),
        }
    }
    Ok(refused)
}

/// Where threads meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// In memory.
    Memory,
    /// In a folder.
    File,
    /// At a server.
    Tcp,
}

/// Runs `program` on ranks that are threads. Returns what it returns, by rank.
///
/// # Panics
/// If a rank does, or something stays in the store.
pub fn threads<T: Send>(
    meeting: Meeting,
    world_size: usize,
    program: impl Fn(Arc<dyn Store>, usize) -> T + Sync,
) -> Vec<T> {
    let (results, left) = threads_and_keys(meeting, world_size, program);
    assert!(left.is_empty(), "left in the store: {left:?}");
    results
}

/// The same for programs that may leave keys, which are returned too.
///
/// # Panics
/// If a rank does.
pub fn threads_and_keys<T: Send>(
    meeting: Meeting,
    world_size: usize,
    program: impl Fn(Arc<dyn Store>, usize) -> T + Sync,
) -> (Vec<T>, Vec<String>) {
    let memory = MemoryStore::new();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let host = (meeting == Meeting::Tcp).then(|| TcpStore::host("127.0.0.1:0").expect("a store"));
    let open = || -> Arc<dyn Store> {
        match &host {
            Some(host) => Arc::new(TcpStore::connect(host.local_addr(), FAR).expect("a store")),
            None if meeting == Meeting::File => Arc::new(FileStore::open(folder.path()).expect("a store")),
            None => Arc::new(memory.clone()),
        }
    };
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size)
            .map(|rank| {
                let (open, program) = (&open, &program);
                scope.spawn(move || program(open(), rank))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    });
    let left = match &host {
        Some(host) => host.list_keys(),
        None => open().list_keys(),
    };
    (results, left.expect("the store"))
}
