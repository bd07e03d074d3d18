//! Whether a thread that finds out that a peer launches something else tells it before it meets the other threads of its warp
//! again. (The other reasons to give up a wait hold for those too: so threads that wait for packets with data, and never ask,
//! may tell it behind.)
//!
//! From sm_70 on the threads of a warp part at branches, and `BSSY` and `BSYNC` say where they meet again (CUDA Binary
//! Utilities, "Instruction Set Reference"). Where a wait's loop is left for two reasons, those who give up must not stand at
//! such a place until those who still wait, perhaps without end, have come to it.

use std::collections::BTreeSet;

use super::{
    disassembly::Instruction,
    flow::{self, Block, Loop},
};

/// Addresses of the waits that read a peer's descriptor, by the loops' first instructions, whose threads meet on the way to
/// the claim of the record, or that do not come to a claim at all.
pub(super) fn late(code: &[Instruction]) -> Vec<u32> {
    let blocks = flow::blocks(code);
    let loops = flow::loops(&blocks);
    let of_inner = |outer: &Loop| {
        let inner =
            loops.iter().filter(|inner| inner.header != outer.header && outer.blocks.contains(&inner.header));
        inner.flat_map(|inner| inner.blocks.iter().copied()).collect::<BTreeSet<usize>>()
    };
    let has = |block: usize, is: fn(&Instruction) -> bool| code[blocks[block].range.clone()].iter().any(is);
    let own = |found: &Loop| found.blocks.difference(&of_inner(found)).copied().collect::<BTreeSet<usize>>();
    let waits: Vec<&Loop> =
        loops.iter().filter(|found| own(found).iter().any(|&block| has(block, reads_clock))).collect();
    let asks_in = |wait: &Loop| {
        own(wait).iter().any(|&block| has(block, asks) && !is_in_every_turn(&blocks, wait, block))
    };
    let in_a_wait: BTreeSet<usize> = waits.iter().flat_map(|wait| wait.blocks.iter().copied()).collect();
    let is_late = |wait: &&&Loop| {
        let mut claims = BTreeSet::new();
        // A block, the places of meeting that were set on the way to it, and whether the way led through another.
        let mut pending: Vec<(usize, BTreeSet<&str>, bool)> = Vec::new();
        for &block in &wait.blocks {
            let leaves = blocks[block].successors.iter().filter(|next| !wait.blocks.contains(next));
            pending.extend(leaves.map(|&next| (next, BTreeSet::new(), false)));
        }
        let mut seen = BTreeSet::new();
        'ways: while let Some((block, mut set, mut met)) = pending.pop() {
            if in_a_wait.contains(&block) || !seen.insert((block, set.clone(), met)) {
                continue;
            }
            for one in &code[blocks[block].range.clone()] {
                let place = one.operands.first().map_or("", String::as_str);
                match one.operation.as_str() {
                    "BAR" => continue 'ways,
                    "BSSY" => _ = set.insert(place),
                    "BSYNC" => met |= !set.remove(place),
                    "WARPSYNC" => met = true,
                    "ATOM" | "ATOMG" if one.has("CAS") => _ = claims.insert(met),
                    _ => {}
                }
            }
            let next = blocks[block].successors.iter();
            pending.extend(next.map(|&next| (next, set.clone(), met)));
        }
        claims != BTreeSet::from([false])
    };
    let late = waits.iter().filter(|wait| asks_in(wait)).filter(is_late);
    late.map(|wait| code[blocks[wait.header].range.start].address).collect()
}

/// Whether no turn of a loop leaves a block out.
fn is_in_every_turn(blocks: &[Block], of: &Loop, block: usize) -> bool {
    let mut seen = BTreeSet::new();
    let mut pending = vec![of.header];
    while let Some(at) = pending.pop() {
        if at == block {
            continue;
        }
        for &next in blocks[at].successors.iter().filter(|next| of.blocks.contains(next)) {
            if next == of.header {
                return false;
            }
            if seen.insert(next) {
                pending.push(next);
            }
        }
    }
    true
}

fn reads_clock(one: &Instruction) -> bool {
    one.operands.iter().any(|operand| operand == "SR_GLOBALTIMERLO")
}

fn asks(one: &Instruction) -> bool {
    one.is_vector_load() && one.has("STRONG") && one.has("SYS")
}

#[cfg(test)]
mod tests {
    use super::super::disassembly;
    use super::*;

    /// A wait that is left at two places: where the signal has come, to `.L_x_1`, and by the one who gives up, who falls
    /// through.
    fn kernel(gives_up: &str, claims: &str) -> Vec<Instruction> {
        let text = format!(
            "\
\t.section\t.text.k,\"ax\",@progbits
k:
        /*0000*/                   BSSY B0, `(.L_x_2) ;
.L_x_0:
        /*0010*/                   LDG.E.64.STRONG.SYS R8, [R4.64] ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
        /*0030*/                   CS2R R6, SR_GLOBALTIMERLO ;
        /*0038*/               @P2 BRA `(.L_x_4) ;
        /*003c*/                   LDG.E.128.STRONG.SYS R8, [R4.64] ;
.L_x_4:
        /*0040*/              @!P1 BRA `(.L_x_0) ;
{gives_up}
.L_x_1:
        /*0080*/                   BSYNC B0 ;
.L_x_2:
{claims}
        /*00c0*/                   BAR.RED.OR.DEFER_BLOCKING 0x0, P1 ;
        /*00d0*/                   ATOMG.E.CAS.STRONG.SYS PT, R0, [R2], R4, R5 ;
        /*00e0*/                   EXIT ;
"
        );
        disassembly::parse(&text).unwrap().remove("k").unwrap()
    }

    const CLAIM: &str = "        /*0060*/                   ATOMG.E.CAS.STRONG.SYS PT, R0, [R2], R4, R5 ;";

    #[test]
    fn a_claim_on_the_way_out_is_in_time() {
        assert_eq!(late(&kernel(CLAIM, "")), Vec::<u32>::new());
        let inner = format!(
            "        /*0050*/                   BSSY B1, `(.L_x_3) ;\n{CLAIM}\n.L_x_3:\n        /*0070*/                   BSYNC B1 ;"
        );
        assert_eq!(late(&kernel(&inner, "")), Vec::<u32>::new(), "a meeting of those who give up");
    }

    #[test]
    fn a_wait_that_does_not_ask_is_left_alone() {
        let mut data = kernel("", "");
        // What is read in every turn is what is waited for.
        data.retain(|one| one.address != 0x38);
        assert_eq!(late(&data), Vec::<u32>::new());
    }

    #[test]
    fn a_claim_behind_the_meeting_is_late() {
        let behind = CLAIM.replace("0060", "0090");
        assert_eq!(late(&kernel("", &behind)), vec![0x10]);
        assert_eq!(late(&kernel(CLAIM, &behind)), vec![0x10], "for some of those who come");
    }

    #[test]
    fn a_wait_without_a_claim_is_found() {
        assert_eq!(late(&kernel("", "")), vec![0x10], "a block barrier parts it from the claim");
    }
}
