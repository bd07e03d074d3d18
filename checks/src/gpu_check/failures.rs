//! Deadline, abort and mismatch end a call on every rank, with the rank to blame; afterwards the device works as before.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use meshreduce::{Algorithm, DType, Error, Isa, Op};
use meshreduce_wire::MAX_RANKS;

use super::part::Done;
use super::place::Place;
use super::team::{self, Rank};
use super::{Common, begin, results};
use crate::in_process;
use crate::stream::RawStream as _;

/// Elements of every call, and bytes of the ranks' memory.
const COUNT: usize = 10_000;
const ROOM: usize = 64 << 10;
const DEADLINE: Duration = in_process::BRIEF;
/// So long that a call that ends has not ended by it.
const NEVER: Duration = Duration::from_secs(240);

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let (mut recorder, place) = begin(common, "failures", "Deadline, abort and mismatch")?;
    for algorithm in Algorithm::ALL {
        let world_size = if algorithm.is_of_cube_mesh() { MAX_RANKS } else { 4 };
        let name = |what: &str| format!("{algorithm}, {world_size} ranks: {what}");
        recorder.check(&name("a rank that does not come"), || deadline(&place, algorithm, world_size))?;
        recorder.check(&name("an abort from one host"), || abort(&place, algorithm, world_size))?;
        recorder.check(&name("a rank that launches something else"), || {
            mismatch(&place, algorithm, world_size)
        })?;
        recorder.check(&name("a new communicator afterwards"), || {
            let cases = results::cases(algorithm, true);
            results::compare(&place, algorithm, Isa::V84, world_size, &cases[..6])
        })?;
    }
    recorder.finish()
}

/// Calls and waits, and says how it ended.
fn call(rank: &mut Rank, count: usize) -> Result<(), Error> {
    enqueue(rank, count)?.synchronize()
}

fn enqueue(rank: &mut Rank, count: usize) -> Result<meshreduce::Work, Error> {
    let (address, stream) = (rank.arena.address(0), rank.stream.raw());
    // SAFETY: the arena has room for the elements, nothing else uses it, and it lives until the team has met again,
    // behind the wait for the stream.
    unsafe { rank.lane.all_reduce_raw(address, address, count, DType::Bf16, Op::Sum, stream) }
}

/// Every rank makes one good call, so that what fails is not the first.
fn good_call(rank: &mut Rank) -> Result<()> {
    call(rank, COUNT)?;
    rank.meet()
}

fn deadline(place: &Place, algorithm: Algorithm, world_size: usize) -> Result<Done> {
    let (devices, config) = place.for_algorithm(algorithm, world_size)?;
    let absent = world_size - 1;
    let found = team::run(&devices, &config.deadline(Some(DEADLINE)), ROOM, |rank| {
        good_call(rank)?;
        let own = rank.number();
        let answer = if own == absent { Ok(()) } else { call(rank, COUNT) };
        rank.meet()?;
        // The one that comes too late learns it too, and nobody waits again.
        let late = if own == absent { call(rank, COUNT) } else { answer };
        let timeout = match late {
            Err(Error::PeerTimeout { peer, waited, .. }) if peer == absent && waited >= DEADLINE => true,
            Err(Error::PeerAborted { culprit, .. }) if culprit == absent => false,
            other => bail!("the call ended with {other:?}"),
        };
        for again in [call(rank, COUNT), rank.communicator.status()] {
            ensure!(again.is_err(), "after the failure a call ended with {again:?}");
        }
        Ok(timeout)
    })?;
    let timeouts = found.iter().filter(|timeout| **timeout).count();
    ensure!(timeouts > 0, "no rank says itself that it waited in vain");
    Ok(Done::Well(format!("rank {absent} named by all, {timeouts} of them waited the deadline out")))
}

fn abort(place: &Place, algorithm: Algorithm, world_size: usize) -> Result<Done> {
    let (devices, config) = place.for_algorithm(algorithm, world_size)?;
    let (absent, culprit) = (0, 1);
    team::run(&devices, &config.deadline(Some(NEVER)), ROOM, |rank| {
        good_call(rank)?;
        let answer = match rank.number() {
            number if number == absent => None,
            number => {
                let work = enqueue(rank, COUNT)?;
                if number == culprit {
                    rank.communicator.abort();
                }
                Some(work.synchronize())
            }
        };
        rank.meet()?;
        let own = rank.number();
        match answer.unwrap_or_else(|| call(rank, COUNT)) {
            Err(Error::Aborted) if own == culprit => Ok(()),
            Err(Error::PeerAborted { culprit: blamed, .. }) if own != culprit && blamed == culprit => Ok(()),
            other => bail!("the call ended with {other:?}"),
        }
    })?;
    Ok(Done::Well(format!("rank {culprit} named by all")))
}

fn mismatch(place: &Place, algorithm: Algorithm, world_size: usize) -> Result<Done> {
    let (devices, config) = place.for_algorithm(algorithm, world_size)?;
    let other = world_size - 2;
    let found = team::run(&devices, &config.deadline(Some(NEVER)), ROOM, |rank| {
        good_call(rank)?;
        let own = rank.number();
        match call(rank, if own == other { COUNT - 2 } else { COUNT }) {
            Err(Error::LaunchMismatch {
                launched: Some(launched), peer_launched: Some(peers), peer, ..
            }) => {
                ensure!(own == other || peer == other, "it is put on rank {peer}");
                let mut counts = [launched.count, peers.count];
                counts.sort();
                ensure!(counts == [COUNT as u64 - 2, COUNT as u64], "the counts are said to be {counts:?}");
                Ok(true)
            }
            Err(Error::PeerAborted { .. }) => Ok(false),
            answer => bail!("the call ended with {answer:?}"),
        }
    })?;
    let found = found.iter().filter(|mismatch| **mismatch).count();
    ensure!(found > 0, "no rank found the mismatch itself");
    Ok(Done::Well(format!("found by {found} ranks, told to the others")))
}
