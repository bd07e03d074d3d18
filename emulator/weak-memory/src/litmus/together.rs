//! Barriers of which it must be known who comes: `bar.red`, whose result is of all that meet, and `bar.warp.sync`, of which PTX
//! leaves open what becomes of it where a lane does not come.

use super::error::LitmusErrorKind as Kind;
use super::program::{Instruction, Op, Operand, Reduce, Thread, lane};

/// Number of the barriers of warps, beside the mask: no barrier of a block has it.
pub(super) const OF_WARPS: u64 = 1 << 32;

/// Refuses tests in which it is not known who comes.
pub(super) fn check(threads: &[Thread]) -> Result<(), Kind> {
    for (number, thread) in threads.iter().enumerate() {
        let is_vote = |one: &&Instruction| matches!(one.op, Op::Barrier { vote: Some(_), .. });
        let others = || threads.iter().filter(|other| other.shares_a_block_with(thread));
        if let Some(vote) = thread.barriers().find(is_vote)
            && !others().all(|other| whole_block(other).is_some_and(|all| Some(all) == whole_block(thread)))
        {
            return Err(refused(vote, "the threads of its block come to different barriers, or not always"));
        }
        for barrier in thread.source.iter().filter(|one| matches!(one.op, Op::WarpBarrier { .. })) {
            let Op::WarpBarrier { mask } = barrier.op else { continue };
            let own = lane(threads, number);
            if mask >> own & 1 == 0 {
                return Err(refused(barrier, "the mask does not have the thread itself"));
            }
            for (other, partner) in threads.iter().enumerate() {
                let there = lane(threads, other);
                let meets = partner.shares_a_block_with(thread) && mask >> there & 1 == 1;
                if meets
                    && (of_warp(thread, there) != of_warp(partner, own) || of_warp(thread, there).is_none())
                {
                    return Err(refused(
                        barrier,
                        "the lanes of its mask come to different barriers, or not always",
                    ));
                }
            }
        }
    }
    Ok(())
}

fn refused(instruction: &Instruction, reason: &str) -> Kind {
    Kind::Instruction { instruction: instruction.text.clone(), reason: reason.to_owned() }
}

/// The barriers of a thread, if they are for its whole block and it always comes to them: numbers, and what is voted about.
pub(super) fn whole_block(thread: &Thread) -> Option<Vec<(u64, Option<Reduce>)>> {
    let barrier = |one: &Instruction| match one.op {
        Op::Barrier { id: Operand::Constant(id), count: None, arrive: false, vote } => {
            Some((id, vote.map(|vote| vote.of)))
        }
        _ => None,
    };
    let fixed = thread.barriers().next().is_none() || thread.barriers_are_fixed();
    thread.barriers().map(barrier).collect::<Option<Vec<_>>>().filter(|_| fixed)
}

/// The masks of a thread's barriers of warps that have `lane`, if it always comes to them.
fn of_warp(thread: &Thread, lane: usize) -> Option<Vec<u32>> {
    let all = || thread.source.iter().filter(|one| matches!(one.op, Op::WarpBarrier { .. }));
    let mask = |one: &Instruction| match one.op {
        Op::WarpBarrier { mask } if mask >> lane & 1 == 1 => Some(mask),
        _ => None,
    };
    (thread.is_straight() && all().all(|one| one.guard.is_none())).then(|| all().filter_map(mask).collect())
}
