//! Ranks that are processes: they share memory by cuIpc. On one shared GPU their contexts take turns, so that every wait
//! may last several time slices: few cases, for correctness only.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use cust::device::{Device, DeviceAttribute};
use meshreduce::{Algorithm, Collective, DType, Isa, Op, Topology};

use super::part::Done;
use super::place::Place;
use super::{Common, begin};
use crate::cluster::{Cluster, Placement, this_program};
use crate::job::{Action, Case, Event, Fault, ForcedTopology, Job};

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let (mut recorder, place) = begin(common, "processes", "Ranks that are processes, over cuIpc")?;
    let sizes: &[usize] = if common.quick { &[2, 4] } else { &[2, 4, 8] };
    for &world_size in sizes {
        recorder.check(&format!("results, {world_size} ranks"), || results(&place, world_size))?;
    }
    recorder.check("a rank that dies is named by the others", || death(&place))?;
    recorder.finish()
}

fn case(algorithm: Algorithm, dtype: DType, op: Op, bytes: usize) -> Case {
    Case { collective: Collective::AllReduce, algorithm, dtype, op, bytes, offset: 0, in_place: true }
}

fn job(place: &Place, world_size: usize, cases: Vec<Case>, store: &std::path::Path) -> Job {
    Job {
        ranks: (0..world_size).collect(),
        world_size,
        devices: place.devices(world_size),
        store: store.to_owned(),
        cases,
        launches: 3,
        seed: 3,
        ptx: None,
        isa: Isa::V84,
        deadline_ms: 60_000,
        rendezvous_ms: 180_000,
        lanes: 1,
        first_call_number: 0,
        shared_devices: place.shares(world_size),
        force_topology: place.forced().map(|topology| match topology {
            Topology::HybridCubeMesh => ForcedTopology::HybridCubeMesh,
            _ => ForcedTopology::FullyConnected,
        }),
        faults: Vec::new(),
    }
}

/// Why several processes cannot use the device, if they cannot.
fn refusal(place: &Place) -> Result<Option<String>> {
    /// CU_COMPUTEMODE_PROHIBITED and CU_COMPUTEMODE_EXCLUSIVE_PROCESS.
    const CLOSED: [i32; 2] = [2, 3];
    let mode = Device::get_device(place.devices(1)[0])?.get_attribute(DeviceAttribute::ComputeMode)?;
    Ok(CLOSED
        .contains(&mode)
        .then(|| format!("the GPU's compute mode ({mode}) lets one process in at a time")))
}

fn results(place: &Place, world_size: usize) -> Result<Done> {
    if let Some(reason) = refusal(place)? {
        return Ok(Done::NotApplicable(reason));
    }
    let directory = tempfile::tempdir().context("making a directory for the store")?;
    let cases = vec![
        case(Algorithm::OneShot, DType::Bf16, Op::Sum, 4096),
        case(Algorithm::OneShot, DType::F32, Op::Max, 60_004),
        case(Algorithm::TwoShot, DType::F16, Op::Avg, 4098),
        case(Algorithm::TwoShot, DType::Bf16, Op::Sum, 128 << 10),
    ];
    let job = job(place, world_size, cases, directory.path());
    let said = play(&job)?;
    let mut digests: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for event in &said {
        match event {
            Event::Case { rank, case, mismatch: Some(wrong), .. } => {
                bail!("rank {rank}, {:?}: {wrong:?}", job.cases[*case])
            }
            Event::Case { case, digest, .. } => digests.entry(*case).or_default().push(digest.clone()),
            Event::Failed { rank, message, .. } => bail!("rank {rank}: {message}"),
            Event::NotApplicable { rank, reason } | Event::Unsupported { rank, reason, .. } => {
                bail!("rank {rank}: not applicable: {reason}")
            }
            Event::Ready { .. } | Event::Closed { .. } => {}
        }
    }
    for case in 0..job.cases.len() {
        let of_case = digests.remove(&case).unwrap_or_default();
        ensure!(
            of_case.len() == world_size,
            "case {case}: {} of {world_size} ranks have a result",
            of_case.len()
        );
        ensure!(of_case.iter().all(|digest| *digest == of_case[0]), "case {case}: the ranks differ");
    }
    Ok(Done::Well(format!("{} cases of {} launches", job.cases.len(), job.launches)))
}

fn death(place: &Place) -> Result<Done> {
    if let Some(reason) = refusal(place)? {
        return Ok(Done::NotApplicable(reason));
    }
    let directory = tempfile::tempdir().context("making a directory for the store")?;
    let mut job = job(place, 3, vec![case(Algorithm::OneShot, DType::Bf16, Op::Sum, 4096)], directory.path());
    job.faults = vec![Fault { rank: 1, launch: Some(1), action: Action::Die }];
    job.deadline_ms = 10_000;
    let said = play(&job)?;
    for rank in [0, 2] {
        let failure = said.iter().find_map(|event| match event {
            Event::Failed { rank: other, kind, message, .. } if *other == rank => Some((kind, message)),
            _ => None,
        });
        let (kind, message) = failure.with_context(|| format!("rank {rank} noticed nothing"))?;
        ensure!(
            matches!(&**kind, "PeerTimeout" | "PeerAborted") && message.contains("rank 1"),
            "rank {rank}: {kind}: {message}"
        );
    }
    Ok(Done::Well("rank 1 of 3".to_owned()))
}

fn play(job: &Job) -> Result<Vec<Event>> {
    let cluster = Cluster::start(&this_program()?, job, Placement::Processes, &[])?;
    let said = cluster.events().collect();
    for exit in cluster.wait()? {
        if !exit.stderr.is_empty() {
            eprintln!("ranks {:?}: {}", exit.ranks, exit.stderr.trim());
        }
    }
    Ok(said)
}
