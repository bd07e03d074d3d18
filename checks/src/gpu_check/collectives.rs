//! The collectives other than all-reduce by each of their algorithms, every output compared with plain copies and the reference,
//! byte by byte.

use anyhow::{Result, bail};
use meshreduce::{Algorithm, Collective, Isa};
use meshreduce_wire::{MAX_RANKS, MIN_RANKS};

use super::modules::best;
use super::part::Done;
use super::place::Place;
use super::team::{self, Rank};
use super::{Common, begin};
use crate::adversary::Kernels;
use crate::collectives::{self, Case, Draw};
use crate::stream::RawStream as _;

/// Bytes beside a buffer that nothing may touch.
const GUARD: usize = 256;
const PATTERN: u8 = 0xc3;
const SEED: u64 = 0x736c_6963;

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let (mut recorder, place) = begin(common, "collectives", "Other collectives, byte by byte")?;
    for algorithm in Algorithm::OF_SLICES {
        let least = if algorithm.is_of_cube_mesh() { MAX_RANKS } else { MIN_RANKS };
        for world_size in least..=MAX_RANKS {
            let cases = cases(algorithm, world_size, common.quick);
            recorder.check(&format!("{algorithm}, {world_size} ranks"), || {
                compare(&place, algorithm, Isa::V84, world_size, &cases)
            })?;
        }
    }
    // What newer machines take in a later ISA moves the same bytes in the one for all.
    for algorithm in Algorithm::OF_SLICES {
        if !Kernels::are_shipped(algorithm, Isa::V84) {
            continue;
        }
        for world_size in if common.quick { MAX_RANKS } else { MIN_RANKS }..=MAX_RANKS {
            let name = format!("{algorithm} in PTX ISA {}, {world_size} ranks", Isa::V70);
            recorder.check(&name, || match best(place.devices(1)[0])? {
                Isa::V70 => Ok(Done::NotApplicable("it is what the ranks above have used".into())),
                _ => {
                    let cases = cases(algorithm, world_size, common.quick);
                    compare(&place, algorithm, Isa::V70, world_size, &cases)
                }
            })?;
        }
    }
    recorder.finish()
}

/// Cases of all collectives that are made of one algorithm: types, roots, lists and places are drawn.
pub fn cases(algorithm: Algorithm, world_size: usize, quick: bool) -> Vec<Case> {
    let served: Vec<Collective> =
        Collective::ALL.into_iter().filter(|collective| algorithm.serves(*collective)).collect();
    // Of a list that each rank alone knows, a slice of the largest elements still goes in one launch.
    let (each, most) = if quick { (6, 700) } else { (24, 16_000) };
    collectives::drawn(&served, world_size, each, most, SEED + world_size as u64)
}

/// Runs cases of one algorithm on so many ranks, in no later ISA than this.
fn compare(place: &Place, algorithm: Algorithm, isa: Isa, world_size: usize, cases: &[Case]) -> Result<Done> {
    let (devices, config) = place.for_algorithm(algorithm, world_size)?;
    let order: Vec<usize> = (0..world_size).collect();
    let bytes = |(index, case): (usize, &Case)| {
        let images = (0..world_size).map(|rank| case.images(draw(index, &order), rank));
        images.map(|images| images.memory.len().max(images.sent.map_or(0, |sent| sent.len()))).max()
    };
    let longest = cases.iter().enumerate().filter_map(bytes).max().unwrap_or(0);
    let wrong = team::run(&devices, &config.latest_isa(isa), 2 * region(longest), |rank| {
        let mut wrong = Vec::new();
        let order = rank.communicator.mesh().positions();
        for (index, case) in cases.iter().enumerate() {
            if let Err(problem) = one(rank, case, draw(index, &order))? {
                wrong.push(format!("rank {}, {case}: {problem}", rank.number()));
            }
        }
        Ok(wrong)
    })?;
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    if let [first, ..] = &wrong[..] {
        bail!("{} outputs are wrong; the first: {first}", wrong.len());
    }
    Ok(Done::Well(format!("{} cases", cases.len())))
}

fn draw(case: usize, order: &[usize]) -> Draw<'_> {
    Draw { seed: SEED, case, launch: 0, order }
}

/// Bytes of the arena for a buffer with its guards, shifted by a few elements.
fn region(bytes: usize) -> usize {
    (GUARD + 256 + bytes + GUARD).next_multiple_of(256)
}

/// Runs one case; the inner error is a wrong output.
fn one(rank: &mut Rank, case: &Case, draw: Draw<'_>) -> Result<Result<(), String>> {
    let images = case.images(draw, rank.number());
    let start = GUARD + case.offset * case.element();
    let half = rank.arena.len() / 2;
    let guarded = |buffer: &[u8]| {
        let mut image = vec![PATTERN; start + buffer.len() + GUARD];
        image[start..start + buffer.len()].copy_from_slice(buffer);
        image
    };
    let memory = guarded(&images.memory);
    rank.arena.write(0, &memory, &rank.stream)?;
    let sent = images.sent.as_deref().map(guarded);
    if let Some(sent) = &sent {
        rank.arena.write(half, sent, &rank.stream)?;
    }
    let input = rank.arena.address(sent.as_ref().map_or(0, |_| half) + start + images.input);
    let output = rank.arena.address(start + images.output.start);
    let (number, raw) = (rank.number(), rank.stream.raw());
    // SAFETY: the arena has what the case's images are, until the team has met again after this work was waited for.
    unsafe { case.call(&mut rank.lane, number, (input, output), raw) }?.synchronize()?;
    let got = rank.arena.read(0, memory.len(), &rank.stream)?;
    let buffer = start..start + images.memory.len();
    if let Some((element, got, want)) = case.difference(&got[buffer.clone()][images.output], draw, number) {
        return Ok(Err(format!("element {element} is 0x{got}, must be 0x{want}")));
    }
    if let Some(at) = (0..got.len()).find(|at| !buffer.contains(at) && got[*at] != PATTERN) {
        return Ok(Err(format!("byte {} beside the output was written", at as i64 - start as i64)));
    }
    if let Some(sent) = sent
        && rank.arena.read(half, sent.len(), &rank.stream)? != sent
    {
        return Ok(Err("the input, or what is beside it, was written".to_owned()));
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn quick_and_full_runs_have_every_collective_in_place_and_not() {
        for quick in [true, false] {
            let cases = Algorithm::OF_SLICES.map(|algorithm| cases(algorithm, 8, quick)).concat();
            let kinds: BTreeSet<_> =
                cases.iter().map(|case| (case.collective.name(), case.in_place)).collect();
            assert_eq!(kinds.len(), 2 * (Collective::ALL.len() - 1), "quick: {quick}");
            assert!(cases.iter().any(|case| case.lists));
        }
    }
}
