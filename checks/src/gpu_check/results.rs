//! All algorithms, types, operations and world sizes, every result compared with the reference, bit by bit.

use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};
use meshreduce::{Algorithm, Collective, DType, Isa, Op, RawTensor};
use meshreduce_wire::{MAX_RANKS, MIN_RANKS};

use super::modules::best;
use super::part::Done;
use super::place::Place;
use super::team::{self, Rank};
use super::{Common, begin};
use crate::adversary::{Cuts, Kernels};
use crate::job::Case;
use crate::stream::RawStream as _;
use crate::{inputs, reference};

/// Bytes beside a message that nothing may touch.
const GUARD: usize = 256;
const PATTERN: u8 = 0xc3;
const SEED: u64 = 0x6d65_7368;

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let (mut recorder, place) = begin(common, "results", "Results, bit by bit")?;
    for algorithm in Algorithm::ALL.into_iter().chain([Algorithm::GroupLl]) {
        let least = if algorithm.is_of_cube_mesh() { MAX_RANKS } else { MIN_RANKS };
        for world_size in least..=MAX_RANKS {
            let name = format!("{algorithm}, {world_size} ranks");
            let cases = cases(algorithm, common.quick);
            recorder.check(&name, || compare(&place, algorithm, Isa::V84, world_size, &cases))?;
        }
    }
    // What newer machines take in a later ISA has the same results in the one for all.
    for algorithm in Kernels::shipped_in(Isa::V84).into_iter().chain([Algorithm::GroupLl]) {
        for world_size in if common.quick { MAX_RANKS } else { MIN_RANKS }..=MAX_RANKS {
            let name = format!("{algorithm} in PTX ISA {}, {world_size} ranks", Isa::V70);
            recorder.check(&name, || match best(place.devices(1)[0])? {
                Isa::V70 => Ok(Done::NotApplicable("it is what the ranks above have used".into())),
                _ => compare(&place, algorithm, Isa::V70, world_size, &cases(algorithm, common.quick)),
            })?;
        }
    }
    recorder.finish()
}

/// The cases of one algorithm: every type and operation with several lengths, in place and out of place, shifted from
/// alignment and not.
pub fn cases(algorithm: Algorithm, quick: bool) -> Vec<Case> {
    // One element; not a whole vector in the last block; many blocks; the longest of all but two-shot.
    let counts: &[usize] = if quick { &[1, 4099] } else { &[1, 1000, 4099, 40_003] };
    let mut cases = Vec::new();
    for dtype in DType::ALL {
        for op in Op::ALL {
            let longest = (256 << 10) / dtype.size();
            let more = if quick { None } else { Some(longest) };
            for count in counts.iter().copied().chain(more) {
                for in_place in [true, false] {
                    let offset = [0, 1, 3][cases.len() % 3];
                    let bytes = count * dtype.size();
                    cases.push(Case {
                        collective: Collective::AllReduce,
                        algorithm,
                        dtype,
                        op,
                        bytes,
                        offset,
                        in_place,
                    });
                }
            }
        }
    }
    if algorithm == Algorithm::TwoShot && !quick {
        for (dtype, in_place) in [(DType::Bf16, true), (DType::F32, false)] {
            cases.push(Case {
                collective: Collective::AllReduce,
                algorithm,
                dtype,
                op: Op::Sum,
                bytes: 10 << 20,
                offset: 0,
                in_place,
            });
        }
    }
    cases
}

/// Runs cases of one algorithm on so many ranks, in no later ISA than this.
///
/// # Errors
/// What goes wrong, or the first results that are wrong.
pub fn compare(
    place: &Place,
    algorithm: Algorithm,
    isa: Isa,
    world_size: usize,
    cases: &[Case],
) -> Result<Done> {
    let (devices, config) = place.for_algorithm(algorithm, world_size)?;
    let config = config.latest_isa(isa);
    let shares: Vec<OnceLock<Share>> = cases.iter().map(|_| OnceLock::new()).collect();
    let longest = cases.iter().map(|case| case.bytes).max().unwrap_or(0);
    let wrong = team::run(&devices, &config, 2 * region(longest), |rank| {
        let mut wrong = Vec::new();
        for (index, case) in cases.iter().enumerate() {
            let order = rank.communicator.mesh().positions();
            let share = shares[index].get_or_init(|| Share::new(index, case, &order));
            if let Err(problem) = one(rank, case, share)? {
                wrong.push(format!(
                    "rank {}, {} {} {} bytes{}: {problem}",
                    rank.number(),
                    case.dtype,
                    case.op,
                    case.bytes,
                    if case.in_place { "" } else { ", out of place" }
                ));
            }
        }
        Ok(wrong)
    })?;
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    if let [first, ..] = &wrong[..] {
        bail!("{} results are wrong; the first: {first}", wrong.len());
    }
    Ok(Done::Well(format!("{} cases", cases.len())))
}

/// What all ranks of a case need: made by the first that comes to it.
struct Share {
    messages: Vec<Vec<u8>>,
    result: Vec<u8>,
}

impl Share {
    fn new(index: usize, case: &Case, order: &[usize]) -> Self {
        let message = |rank| inputs::message(SEED, index, 0, rank, case.count(), case.dtype);
        let messages: Vec<Vec<u8>> = (0..order.len()).map(message).collect();
        let by_position: Vec<Vec<u8>> = order.iter().map(|&rank| messages[rank].clone()).collect();
        Self { result: reference::all_reduce(&by_position, case.dtype, case.op), messages }
    }
}

/// Bytes of the arena for a message with its guards, shifted by a few elements.
fn region(bytes: usize) -> usize {
    (GUARD + 64 + bytes + GUARD).next_multiple_of(256)
}

/// Runs one case; the inner error is a wrong result.
fn one(rank: &mut Rank, case: &Case, share: &Share) -> Result<Result<(), String>> {
    let start = GUARD + case.offset * case.dtype.size();
    let half = rank.arena.len() / 2;
    let mine = &share.messages[rank.number()];
    let mut image = vec![PATTERN; start + case.bytes + GUARD];
    image[start..start + case.bytes].copy_from_slice(mine);
    rank.arena.write(0, &image, &rank.stream)?;
    let target = match case.in_place {
        true => 0,
        false => {
            rank.arena.write(half, &vec![PATTERN; image.len()], &rank.stream)?;
            half
        }
    };
    let (input, output) = (rank.arena.address(start), rank.arena.address(target + start));
    let raw = rank.stream.raw();
    let Case { dtype, op, .. } = *case;
    // SAFETY: both regions have room for the message, are the same or apart, and live until the team has met again
    // after this work was waited for. The tensors of a list lie one behind the other in them.
    let work = unsafe {
        match case.algorithm.is_of_lists() {
            true => rank.lane.all_reduce_group_raw(&list(case, input, output), raw),
            false => rank.lane.all_reduce_raw(input, output, case.count(), dtype, op, raw),
        }
    };
    work?.synchronize()?;
    let got = rank.arena.read(target, image.len(), &rank.stream)?;
    if let Err(problem) = matches(got, start, &share.result, case.dtype) {
        return Ok(Err(problem));
    }
    if !case.in_place && rank.arena.read(0, image.len(), &rank.stream)? != image {
        return Ok(Err("the input, or what is beside it, was written".to_owned()));
    }
    Ok(Ok(()))
}

/// A message cut into tensors, some of them perhaps of no elements.
fn list(case: &Case, input: u64, output: u64) -> Vec<RawTensor> {
    let Case { dtype, op, bytes, .. } = *case;
    let cuts = Cuts { tensors: 1 + bytes % 70, seed: bytes as u32 };
    let mut before = 0;
    let tensor = |count: u32| {
        let count = count as usize;
        let place = before;
        before += (count * dtype.size()) as u64;
        RawTensor { input: input + place, output: output + place, count, dtype, op }
    };
    cuts.counts(case.count()).into_iter().map(tensor).collect()
}

/// Compares what is in a region with the result that must be at `start` and the pattern around it.
///
/// # Errors
/// The first difference.
fn matches(region: &[u8], start: usize, want: &[u8], dtype: DType) -> Result<(), String> {
    let message = start..start + want.len();
    if let Some(element) = first_difference(&region[message.clone()], want, dtype) {
        return Err(element);
    }
    match (0..region.len()).find(|at| !message.contains(at) && region[*at] != PATTERN) {
        Some(at) => Err(format!("byte {} beside the output was written", at as i64 - start as i64)),
        None => Ok(()),
    }
}

/// The first element that differs, in words.
pub fn first_difference(got: &[u8], want: &[u8], dtype: DType) -> Option<String> {
    let size = dtype.size();
    let element = got.chunks(size).zip(want.chunks(size)).position(|(got, want)| got != want)?;
    let show = |bytes: &[u8]| -> String {
        bytes[element * size..][..size].iter().rev().map(|byte| format!("{byte:02x}")).collect()
    };
    Some(format!("element {element} is 0x{}, must be 0x{}", show(got), show(want)))
}

/// Fails if a result is not what it must be.
pub(super) fn ensure_equal(got: &[u8], want: &[u8], dtype: DType) -> Result<()> {
    let difference = first_difference(got, want, dtype);
    ensure!(difference.is_none(), "{}", difference.unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn quick_and_full_runs_have_every_type_and_operation_in_place_and_not() {
        for (quick, algorithm) in
            [(true, Algorithm::OneShot), (false, Algorithm::TwoShot), (false, Algorithm::HybridCubeMesh)]
        {
            let cases = cases(algorithm, quick);
            let kinds: BTreeSet<_> = cases.iter().map(|case| (case.dtype.name(), case.op.name())).collect();
            assert_eq!(kinds.len(), 12);
            let shapes: BTreeSet<_> = cases.iter().map(|case| (case.in_place, case.offset)).collect();
            assert_eq!(shapes.len(), 6, "{algorithm}, quick: {quick}");
        }
    }

    #[test]
    fn a_wrong_bit_and_a_written_guard_are_told_with_their_place() {
        let want = [1, 2, 3, 4];
        let mut region = vec![PATTERN; 12];
        region[4..8].copy_from_slice(&want);
        assert_eq!(matches(&region, 4, &want, DType::Bf16), Ok(()));
        region[8] = 0;
        let beside = matches(&region, 4, &want, DType::Bf16).unwrap_err();
        assert!(beside.contains("byte 4 beside"), "{beside}");
        region[6] = 9;
        let wrong = matches(&region, 4, &want, DType::Bf16).unwrap_err();
        assert_eq!(wrong, "element 1 is 0x0409, must be 0x0403");
    }
}
