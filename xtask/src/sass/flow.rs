//! Control flow of a kernel: basic blocks and loops.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::disassembly::{Instruction, Next};

/// A run of instructions that is entered at its first and left at its last.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Indices of its instructions.
    pub(super) range: Range<usize>,
    /// Blocks that follow it.
    pub(super) successors: Vec<usize>,
}

/// A natural loop: what reaches a jump back to a block that dominates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loop {
    /// The block that it is entered by.
    pub(super) header: usize,
    /// Its blocks.
    pub(super) blocks: BTreeSet<usize>,
}

/// The blocks, in the order of addresses. The first is the kernel's entry.
pub(super) fn blocks(code: &[Instruction]) -> Vec<Block> {
    let mut starts = BTreeSet::from([0]);
    for (index, instruction) in code.iter().enumerate() {
        match instruction.next {
            Next::Falls => continue,
            Next::Jumps(target) | Next::Branches(target) => starts.extend([target, index + 1]),
            Next::Ends | Next::MayEnd => starts.extend([index + 1]),
        }
    }
    let starts: Vec<usize> = starts.into_iter().filter(|&start| start < code.len()).collect();
    let block_at = |index: usize| starts.binary_search(&index).ok();
    let mut blocks = Vec::new();
    for (number, &start) in starts.iter().enumerate() {
        let end = starts.get(number + 1).copied().unwrap_or(code.len());
        let following = block_at(end);
        let (first, second) = match code[end - 1].next {
            Next::Falls | Next::MayEnd => (following, None),
            Next::Jumps(target) => (block_at(target), None),
            Next::Branches(target) => (block_at(target), following),
            Next::Ends => (None, None),
        };
        blocks.push(Block { range: start..end, successors: first.into_iter().chain(second).collect() });
    }
    blocks
}

/// The loops, in the order of their headers. Loops that share a header are one.
pub(super) fn loops(blocks: &[Block]) -> Vec<Loop> {
    let predecessors = predecessors(blocks);
    let dominators = dominators(blocks, &predecessors);
    let mut loops: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (tail, block) in blocks.iter().enumerate() {
        for &header in &block.successors {
            if dominators[tail].contains(&header) {
                let body = loops.entry(header).or_insert_with(|| BTreeSet::from([header]));
                let mut pending = vec![tail];
                while let Some(block) = pending.pop() {
                    if body.insert(block) {
                        pending.extend(&predecessors[block]);
                    }
                }
            }
        }
    }
    loops.into_iter().map(|(header, blocks)| Loop { header, blocks }).collect()
}

/// Blocks before each block.
pub(super) fn predecessors(blocks: &[Block]) -> Vec<Vec<usize>> {
    let mut predecessors = vec![Vec::new(); blocks.len()];
    for (number, block) in blocks.iter().enumerate() {
        for &successor in &block.successors {
            predecessors[successor].push(number);
        }
    }
    predecessors
}

/// For each block those that every path from the entry to it passes. Blocks that no path reaches have none.
fn dominators(blocks: &[Block], predecessors: &[Vec<usize>]) -> Vec<BTreeSet<usize>> {
    let mut reached = BTreeSet::new();
    let mut pending = vec![0];
    while let Some(block) = pending.pop() {
        if block < blocks.len() && reached.insert(block) {
            pending.extend(&blocks[block].successors);
        }
    }
    let mut dominators: Vec<BTreeSet<usize>> = (0..blocks.len())
        .map(|block| if reached.contains(&block) { reached.clone() } else { BTreeSet::new() })
        .collect();
    if let Some(entry) = dominators.first_mut() {
        *entry = BTreeSet::from([0]);
    }
    loop {
        let mut changed = false;
        for &block in reached.iter().filter(|&&block| block != 0) {
            let before = predecessors[block].iter().filter(|before| reached.contains(before));
            let common = before
                .map(|&before| dominators[before].clone())
                .reduce(|left, right| left.intersection(&right).copied().collect());
            let mut found = common.unwrap_or_default();
            found.insert(block);
            if found != dominators[block] {
                dominators[block] = found;
                changed = true;
            }
        }
        if !changed {
            return dominators;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[&[usize]]) -> Vec<Block> {
        edges
            .iter()
            .enumerate()
            .map(|(number, successors)| Block { range: number..number + 1, successors: successors.to_vec() })
            .collect()
    }

    #[test]
    fn a_loop_within_a_loop_is_found_with_its_branches() {
        // 0 -> 1 -> (2 | 3) -> 4 -> (4 | 5) -> (1 | 6)
        let found = loops(&graph(&[&[1], &[2, 3], &[4], &[4], &[4, 5], &[1, 6], &[]]));
        let outer = Loop { header: 1, blocks: BTreeSet::from([1, 2, 3, 4, 5]) };
        let inner = Loop { header: 4, blocks: BTreeSet::from([4]) };
        assert_eq!(found, [outer, inner]);
    }

    #[test]
    fn a_jump_back_to_a_block_that_can_be_passed_by_makes_no_natural_loop() {
        assert_eq!(loops(&graph(&[&[1, 2], &[2], &[1, 3], &[]])), []);
        // Nor does one that no path reaches, such as the jump to itself behind a kernel's end.
        assert_eq!(loops(&graph(&[&[], &[1]])), []);
    }
}
