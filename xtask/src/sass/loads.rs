//! Which 128-bit loads are in flight when a loop first needs one of them.
//!
//! A warp issues in order and waits at the first instruction that reads what a load has not yet brought. So what counts
//! is not how many loads a loop has but how many it has issued by then.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    disassembly::{Instruction, Register},
    flow::{self, Block, Loop},
};

/// A loop that moves or reduces vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct VectorLoop {
    /// Address of its first instruction, in bytes.
    pub(super) address: u32,
    /// Its instructions, on all its paths.
    pub(super) instructions: u32,
    /// Its 128-bit loads from global memory.
    pub(super) loads: u32,
    /// Its 128-bit stores to global memory.
    pub(super) stores: u32,
    /// Those of its loads that some float operation needs: none in a loop that only moves.
    pub(super) reduced: u32,
    /// The fewest of `reduced` that are issued, on any path, when a float operation first needs one of them.
    pub(super) before_operation: u32,
    /// The fewest of the loads that are issued, on any path, when any instruction first needs one of them.
    pub(super) before_use: u32,
    /// The same, where a load that a predicate turns off counts as issued too.
    pub(super) passed_before_use: u32,
}

/// The loops of a kernel that have 128-bit loads of their own, not only in loops within, in the order of addresses.
pub(super) fn vector_loops(code: &[Instruction]) -> Vec<VectorLoop> {
    let blocks = flow::blocks(code);
    let loops = flow::loops(&blocks);
    let mut found = Vec::new();
    for outer in &loops {
        let inner: BTreeSet<usize> = loops
            .iter()
            .filter(|inner| inner.header != outer.header && outer.blocks.contains(&inner.header))
            .flat_map(|inner| inner.blocks.iter().copied())
            .collect();
        let own = outer.blocks.difference(&inner).flat_map(|&block| blocks[block].range.clone());
        if own.into_iter().any(|index| code[index].is_vector_load()) {
            found.push(examine(code, &blocks, outer));
        }
    }
    found
}

/// What is known where a path through a loop has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// Loads that were issued on every path to here.
    issued: BTreeSet<usize>,
    /// Those, and loads that a predicate may turn off which every path has passed.
    passed: BTreeSet<usize>,
    /// Loads that a register's value may come from.
    origins: BTreeMap<Register, BTreeSet<usize>>,
}

impl State {
    fn origins_of(&self, registers: &[Register]) -> BTreeSet<usize> {
        registers.iter().filter_map(|register| self.origins.get(register)).flatten().copied().collect()
    }

    fn step(&mut self, index: usize, instruction: &Instruction) {
        let origins = match instruction.operation.as_str() {
            _ if instruction.is_vector_load() => BTreeSet::from([index]),
            // What another load brings is of other memory, even if its address came from a load.
            "LDG" | "LD" | "LDS" | "LDC" | "LDCU" | "LDL" | "ATOMG" | "ATOM" | "ATOMS" => BTreeSet::new(),
            _ => self.origins_of(&instruction.reads),
        };
        for register in &instruction.writes {
            let known = self.origins.entry(*register).or_default();
            if !instruction.guarded {
                known.clear();
            }
            known.extend(&origins);
        }
        if instruction.is_vector_load() {
            self.passed.insert(index);
        }
        // One that a predicate may turn off is not counted on.
        if instruction.is_vector_load() && !instruction.guarded {
            self.issued.insert(index);
        }
    }

    fn join(self, other: &State) -> Self {
        let issued = self.issued.intersection(&other.issued).copied().collect();
        let passed = self.passed.intersection(&other.passed).copied().collect();
        let mut origins = self.origins;
        for (register, loads) in &other.origins {
            origins.entry(*register).or_default().extend(loads);
        }
        Self { issued, passed, origins }
    }
}

/// Follows the loads of one pass through a loop: what the pass before it left in registers is not looked at.
fn examine(code: &[Instruction], blocks: &[Block], body: &Loop) -> VectorLoop {
    let predecessors = flow::predecessors(blocks);
    let mut ends: BTreeMap<usize, State> = BTreeMap::new();
    let starts_of = |block: usize, ends: &BTreeMap<usize, State>| {
        if block == body.header {
            return Some(State::default());
        }
        let before = predecessors[block].iter().filter(|block| body.blocks.contains(block));
        before.filter_map(|block| ends.get(block)).cloned().reduce(|left, right| left.join(&right))
    };
    loop {
        let mut changed = false;
        for &block in &body.blocks {
            let Some(mut state) = starts_of(block, &ends) else { continue };
            for index in blocks[block].range.clone() {
                state.step(index, &code[index]);
            }
            if ends.get(&block) != Some(&state) {
                ends.insert(block, state);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }

    // (loads that are needed, loads that are issued, by a float operation?) of every instruction that needs one.
    let mut uses = Vec::new();
    let mut passed: Option<usize> = None;
    for &block in &body.blocks {
        let Some(mut state) = starts_of(block, &ends) else { continue };
        for index in blocks[block].range.clone() {
            let needed = state.origins_of(&code[index].reads);
            if !needed.is_empty() {
                passed = Some(passed.map_or(state.passed.len(), |least| least.min(state.passed.len())));
                uses.push((needed, state.issued.clone(), combines(&code[index])));
            }
            state.step(index, &code[index]);
        }
    }
    let reduced: BTreeSet<usize> =
        uses.iter().filter(|(.., combines)| *combines).flat_map(|(needed, ..)| needed).copied().collect();
    let operations = uses.iter().filter(|(.., combines)| *combines);
    let indices = || body.blocks.iter().flat_map(|&block| blocks[block].range.clone());
    let count = |counted: &dyn Fn(&Instruction) -> bool| {
        indices().filter(|&index| counted(&code[index])).count() as u32
    };
    VectorLoop {
        address: code[blocks[body.header].range.start].address,
        instructions: count(&|instruction| instruction.operation != "NOP"),
        loads: count(&Instruction::is_vector_load),
        stores: count(&Instruction::is_vector_store),
        reduced: reduced.len() as u32,
        before_operation: operations
            .map(|(_, issued, _)| issued.intersection(&reduced).count() as u32)
            .min()
            .unwrap_or(0),
        before_use: uses.iter().map(|(_, issued, _)| issued.len() as u32).min().unwrap_or(0),
        passed_before_use: passed.unwrap_or(0) as u32,
    }
}

/// Whether an instruction is float arithmetic or comparison. Widening f16 by an addition to zero is not counted.
fn combines(instruction: &Instruction) -> bool {
    let widens = instruction.operation == "HADD2"
        && instruction.has("F32")
        && instruction.operands.iter().any(|operand| operand.ends_with("RZ"));
    let operations = [
        "FADD", "FADD2", "FADD32I", "FMUL", "FMUL2", "FFMA", "FFMA2", "FMNMX", "FMNMX3", "FSETP", "FSEL",
        "FSET", "HADD2", "HMUL2", "HFMA2", "HMNMX2", "HSETP2", "DADD", "DMUL", "DFMA",
    ];
    operations.contains(&instruction.operation.as_str()) && !widens
}

#[cfg(test)]
mod tests {
    use super::{super::disassembly::parse, *};

    fn loops(body: &[&str]) -> Vec<VectorLoop> {
        let mut text = "\t.section\t.text.k,\"ax\",@progbits\n".to_owned();
        for (index, line) in body.iter().enumerate() {
            text += &match line.strip_suffix(':') {
                Some(_) => format!("{line}\n"),
                None => format!("        /*{:04x}*/  {line} ;\n", index * 16),
            };
        }
        vector_loops(&parse(&text).unwrap()["k"])
    }

    const FIRST: &str = "LDG.E.128 R4, desc[UR4][R20.64]";
    const SECOND: &str = "LDG.E.128 R8, desc[UR4][R22.64]";
    const END: [&str; 4] = [
        "STG.E.128 desc[UR4][R24.64], R4",
        "ISETP.GE.U32.AND P0, PT, R0, R1, PT",
        "@!P0 BRA `(.L_x_0)",
        "EXIT",
    ];

    fn around(body: &[&'static str]) -> Vec<VectorLoop> {
        loops(&[&["MOV R0, RZ", ".L_x_0:"], body, &END].concat())
    }

    #[test]
    fn loads_that_all_come_first_are_all_in_flight() {
        let found = around(&[FIRST, SECOND, "IMAD.U32 R12, R8, 0x10000, RZ", "FADD R4, R4, R12"]);
        assert_eq!(
            found,
            [VectorLoop {
                address: 16 * 2,
                instructions: 7,
                loads: 2,
                stores: 1,
                reduced: 2,
                before_operation: 2,
                before_use: 2,
                passed_before_use: 2
            }]
        );
    }

    #[test]
    fn an_addition_between_the_loads_is_found_through_widening() {
        let found = around(&[
            FIRST,
            "PRMT R12, RZ, 0x5410, R7",
            "LOP3.LUT R13, R12, 0xffff0000, RZ, 0xc0, !PT",
            "FADD R14, R13, R15",
            SECOND,
            "FADD R4, R14, R8",
        ]);
        assert_eq!((found[0].reduced, found[0].before_operation, found[0].before_use), (2, 1, 1));
    }

    #[test]
    fn widening_between_the_loads_waits_but_is_no_addition() {
        let found = around(&[FIRST, "HADD2.F32 R12, -RZ, R4.H0_H0", SECOND, "FADD R4, R12, R8"]);
        assert_eq!((found[0].reduced, found[0].before_operation, found[0].before_use), (2, 2, 1));
    }

    #[test]
    fn an_addition_of_what_no_load_brought_may_come_first() {
        let found = around(&[FIRST, "FADD R30, R31, R32", SECOND, "FMNMX R4, R4, R8, PT"]);
        assert_eq!((found[0].reduced, found[0].before_operation), (2, 2));
        // What a register held before it was written anew does not count.
        let found = around(&[FIRST, "MOV R4, RZ", "FADD R30, R4, R32", SECOND, "FADD R5, R5, R8"]);
        assert_eq!((found[0].reduced, found[0].before_operation), (2, 2));
    }

    #[test]
    fn a_load_that_one_path_leaves_out_is_not_counted_on() {
        let by_branch = around(&[FIRST, "@P1 BRA `(.L_x_1)", SECOND, ".L_x_1:", "FADD R4, R4, R8"]);
        assert_eq!((by_branch[0].reduced, by_branch[0].before_operation), (2, 1));
        let by_guard = around(&[FIRST, "@P1 LDG.E.128 R8, desc[UR4][R22.64]", "FADD R4, R4, R8"]);
        assert_eq!((by_guard[0].reduced, by_guard[0].before_operation), (2, 1));
        assert_eq!((by_branch[0].passed_before_use, by_guard[0].passed_before_use), (1, 2));
    }

    #[test]
    fn a_loop_that_moves_vectors_reduces_none_and_code_without_a_loop_is_none() {
        let found = around(&[FIRST, SECOND, "STG.E.128 desc[UR4][R26.64], R8"]);
        assert_eq!((found[0].reduced, found[0].before_operation, found[0].before_use), (0, 0, 2));
        assert_eq!(loops(&[FIRST, SECOND, "FADD R4, R4, R8", "EXIT"]), []);
    }
}
