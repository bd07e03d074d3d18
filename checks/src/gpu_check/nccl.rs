//! NCCL behind process groups: every operation with the real library, where there is one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use meshreduce_process_group::store::MemoryStore;
use meshreduce_process_group::{DType, Device, DeviceType, Error, ProcessGroup, nccl_loader};

use super::part::{Done, Recorder};
use super::place::Place;
use super::{Common, begin};
use crate::groups::case::{Case, CollectiveCall, cases};
use crate::groups::profile::Profile;
use crate::groups::runner::{Meeting, group, rank, refused, threads};
use crate::latch::Latch;

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let (mut recorder, place) = begin(common, "nccl", "NCCL behind process groups")?;
    let missing = nccl_loader::check_version(nccl_loader::Version::new(2, 18, 0)).err();
    if let Some(reason) = missing {
        recorder.check("a library", || Ok(Done::NotApplicable(reason.to_string())))?;
        return recorder.finish();
    }
    recorder.check("a library", || {
        let path = nccl_loader::library_path()?.display().to_string();
        Ok(Done::Well(format!("NCCL {} from {path}", nccl_loader::version()?)))
    })?;
    // NCCL wants a device for each rank.
    let most = place.count();
    for world_size in if common.quick { vec![most] } else { (1..=most).collect() } {
        operations(&mut recorder, world_size, if common.quick { 5 } else { 1 })?;
    }
    recorder.check("an abort ends what is pending", || abort(&place))?;
    recorder.finish()
}

/// All cases of each operation.
fn operations(recorder: &mut Recorder, world_size: usize, step: usize) -> Result<()> {
    let mut by_operation = BTreeMap::<_, Vec<Case>>::new();
    for case in cases(world_size).into_iter().step_by(step) {
        by_operation.entry(case.operation(0)).or_default().push(case);
    }
    for (operation, mut cases) in by_operation {
        // All ranks make their communicators with the first call, so all make that.
        cases.insert(0, Case::new(CollectiveCall::Barrier, DType::U8));
        recorder.check(&format!("{operation}, {world_size} ranks"), || {
            let profile = Profile::nccl();
            let judged = threads(Meeting::Memory, world_size, |store, number| {
                rank(&profile, store, (number, world_size), &cases, 1)
            });
            let judged: Vec<_> =
                judged.into_iter().collect::<Result<_, String>>().map_err(|error| anyhow!(error))?;
            let refused = refused(&cases, &judged).map_err(|error| anyhow!(error))?;
            Ok(Done::Well(format!("{} calls, {refused} refused as they must be", cases.len() - refused)))
        })?;
    }
    Ok(())
}

/// Rank 0 waits in a barrier to which rank 1 does not come, until another thread aborts its group.
fn abort(place: &Place) -> Result<Done> {
    /// So long it waits before, so that NCCL's kernel runs.
    const BEFORE: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(30);
    if place.count() < 2 {
        return Ok(Done::NotApplicable("it needs two devices".to_owned()));
    }
    let (profile, store, over) = (Profile::nccl(), MemoryStore::new(), Latch::new(1));
    let make = |number| -> Result<ProcessGroup> {
        let group = group(&profile, Arc::new(store.clone()), number, 2)?;
        group.connect(DeviceType::Cuda)?;
        Ok(group)
    };
    let panicked = || anyhow!("a rank panicked");
    let (present, absent) = std::thread::scope(|scope| {
        let absent = scope.spawn(|| make(1));
        (make(0), absent.join())
    });
    let (present, _absent) = (present?, absent.map_err(|_| panicked())??);
    let (ended, took) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let ended = present.barrier(Device::Cuda(0));
            over.come();
            ended
        });
        std::thread::sleep(BEFORE);
        let begun = Instant::now();
        present.abort("the check wants it");
        over.wait();
        (waiting.join(), begun.elapsed())
    });
    let ended = ended.map_err(|_| panicked())?;
    ensure!(matches!(ended, Err(Error::Aborted { .. })), "the barrier ended with {ended:?}");
    ensure!(took < LONG, "it took {took:?}");
    Ok(Done::Well(format!("within {took:.1?}")))
}
