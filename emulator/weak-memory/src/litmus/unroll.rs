//! Loops, unrolled: as many rounds as are looked at, one behind the other, with branches forward only.

use super::program::{Instruction, Op};

/// The instructions of a thread with every loop gone round at most `rounds` times.
///
/// A loop is what lies between a branch backwards and its target, with all that it overlaps. Whoever would begin one
/// round more comes to an [`Op::Bound`].
pub(super) fn unroll(source: &[Instruction], rounds: usize) -> Vec<Instruction> {
    let loops = loops(source);
    let inside = |at: usize| loops.iter().position(|&(first, last)| (first..=last).contains(&at));
    let rounds = rounds.max(1);
    // Where each instruction of each round will stand; the end of the text has a place too.
    let mut places = vec![Vec::new(); source.len() + 1];
    let mut bounds = Vec::new();
    let (mut at, mut place) = (0, 0);
    while at < source.len() {
        let Some(number) = inside(at) else {
            places[at].push(place);
            (at, place) = (at + 1, place + 1);
            continue;
        };
        let (first, last) = loops[number];
        let mut from = place;
        for _ in 0..rounds {
            from = place;
            (first..=last).for_each(|inner| places[inner].push(place + inner - first));
            // Behind a round, a branch out of the loop.
            place += last - first + 2;
        }
        bounds.push((place, from));
        (at, place) = (last + 1, place + 1);
    }
    places[source.len()].push(place);

    let mut code = Vec::new();
    let (mut at, mut number) = (0, 0);
    while at < source.len() {
        if inside(at).is_none() {
            code.push(moved(&source[at], |target| places[target][0]));
            at += 1;
            continue;
        }
        let (first, last) = loops[number];
        let (bound, from) = bounds[number];
        for round in 0..rounds {
            for (index, instruction) in source.iter().enumerate().take(last + 1).skip(first) {
                let target = |target: usize| match (first..=last).contains(&target) {
                    false => places[target][0],
                    true if target > index => places[target][round],
                    true => places[target].get(round + 1).copied().unwrap_or(bound),
                };
                code.push(moved(instruction, target));
            }
            code.push(added(source, last, Op::Branch { target: bound + 1 }));
        }
        code.push(added(source, last, Op::Bound { from }));
        (at, number) = (last + 1, number + 1);
    }
    code
}

/// First and last instruction of every loop, in order; loops that overlap are one.
fn loops(source: &[Instruction]) -> Vec<(usize, usize)> {
    let mut loops: Vec<(usize, usize)> = Vec::new();
    for (last, instruction) in source.iter().enumerate() {
        let Op::Branch { target } = instruction.op else { continue };
        if target > last {
            continue;
        }
        let mut whole = (target, last);
        loops.retain(|&(from, to)| {
            let apart = to < whole.0;
            if !apart {
                whole.0 = whole.0.min(from);
            }
            apart
        });
        loops.push(whole);
    }
    loops
}

fn moved(instruction: &Instruction, place: impl Fn(usize) -> usize) -> Instruction {
    let mut instruction = instruction.clone();
    if let Op::Branch { target } = &mut instruction.op {
        *target = place(*target);
    }
    instruction
}

fn added(source: &[Instruction], at: usize, op: Op) -> Instruction {
    Instruction { line: source[at].line, text: String::new(), guard: None, op }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(target: usize) -> Instruction {
        Instruction { line: 1, text: String::new(), guard: None, op: Op::Branch { target } }
    }

    fn targets(code: &[Instruction]) -> Vec<Option<usize>> {
        let target = |one: &Instruction| match one.op {
            Op::Branch { target } => Some(target),
            _ => None,
        };
        code.iter().map(target).collect()
    }

    #[test]
    fn rounds_follow_each_other_and_end_at_the_bound() {
        let other = Instruction {
            line: 1,
            text: String::new(),
            guard: None,
            op: Op::Move { d: 0, a: super::super::program::Operand::Constant(0) },
        };
        // 0: other, 1: other, 2: branch 4 (out), 3: branch 1 (again), 4: other.
        let code = unroll(&[other.clone(), other.clone(), branch(4), branch(1), other], 2);
        let n = None;
        assert_eq!(targets(&code), [n, n, Some(10), Some(5), Some(10), n, Some(10), Some(9), Some(10), n, n]);
        assert_eq!(code[9].op, Op::Bound { from: 5 });
    }

    #[test]
    fn text_without_loops_stays_as_it_is() {
        let code = unroll(&[branch(1), branch(2)], 3);
        assert_eq!(targets(&code), [Some(1), Some(2)]);
    }

    #[test]
    fn loops_that_overlap_are_one() {
        assert_eq!(loops(&[branch(2), branch(0), branch(1), branch(3)]), [(0, 2), (3, 3)]);
    }
}
