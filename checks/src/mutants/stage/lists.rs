//! Lists: a call's message, cut into tensors, and how those of one rank differ.

use meshreduce_wire::launch::MAX_TENSORS;
use meshreduce_wire::{DType, GroupParams, Isa, LaunchParams, Op, packets};

use super::Trouble;
use super::parts::Parts;
use crate::adversary::Cuts;
use crate::params;

/// Bytes of a phase that has room for the list of any message of at most so many elements.
pub(super) fn phase_bytes(longest: u64, isa: Isa) -> u64 {
    let units = packets::units(longest, DType::Bf16, isa) + MAX_TENSORS as u64;
    (u64::from(GroupParams::units_of_counts(MAX_TENSORS)) + units) * packets::SLOT_BYTES
}

/// How many tensors the lists of a seed have: their lengths are in one tile of units or in two.
pub(super) fn tensors(seed: u64) -> usize {
    [2, 5, 5, 40][(seed / 11 % 4) as usize]
}

/// The elements of each tensor of a message of so many.
pub(super) fn usual(seed: u64, elements: u64) -> Vec<u32> {
    Cuts { tensors: tensors(seed), seed: 0 }.counts(elements as usize)
}

/// The list with which a rank makes the call that fails.
pub(super) fn declared(parts: &Parts, rank: usize, elements: u64) -> Vec<u32> {
    let mut list = usual(parts.seed, elements);
    if !parts.strange(rank) {
        return list;
    }
    match parts.trouble {
        Trouble::Mismatch => drop(list.pop()),
        Trouble::Collision if parts.has_another_count() => drop(list.pop()),
        // One tensor is longer, by an element of the next one or by one more.
        Trouble::Lengths => {
            let at = parts.seed as usize / 13 % (list.len() - 1);
            list[at] += 1;
            if parts.seed.is_multiple_of(2) {
                list[at + 1] = list[at + 1].saturating_sub(1);
            }
        }
        _ => {}
    }
    list
}

/// The place of a launch's first tensor in the list of its call.
pub(super) fn place(seed: u64) -> u32 {
    MAX_TENSORS as u32 * (seed / 17 % 3) as u32
}

/// The launch parameter of a list.
pub(super) fn params(launch: LaunchParams, list: &[u32], ranks: usize, seed: u64, isa: Isa) -> Box<[u8]> {
    let kind = (DType::Bf16, Op::Sum);
    params::list_bytes(&params::list(launch, place(seed), list, kind, (ranks, isa)))
}
