//! Vectors as the scalars that they are.
//!
//! "A vector access is modelled as a set of equivalent memory operations with a scalar data-type, executed in an unspecified
//! order" (PTX ISA, "Vector Data-types"). The scalars have different locations, so that their order tells only where one of
//! them acquires or releases: there every order is one of the test's [`orders`].

use std::ops::Range;

use super::program::{Instruction, Litmus, Op, Order, Thread};
use super::relation::permutations;

/// The instructions with the scalars of every vector one behind the other.
pub(super) fn scalars(code: Vec<Instruction>) -> Vec<Instruction> {
    // Where each instruction will stand, and the end.
    let mut places = vec![0];
    for instruction in &code {
        places.push(places[places.len() - 1] + instruction.op.scalars().len());
    }
    let single = |instruction: Instruction| {
        let scalars = instruction.op.scalars().to_vec();
        scalars.into_iter().map(move |op| Instruction { op, ..instruction.clone() })
    };
    let mut scalars: Vec<Instruction> = code.into_iter().flat_map(single).collect();
    for instruction in &mut scalars {
        match &mut instruction.op {
            Op::Branch { target } => *target = places[*target],
            Op::Bound { from } => *from = places[*from],
            _ => {}
        }
    }
    scalars
}

/// The test with the scalars of vectors in every order that makes a difference to the axioms.
pub(super) fn orders(litmus: &Litmus) -> Vec<Litmus> {
    all(litmus, |op| {
        let order = match op {
            Op::Load { order, .. } | Op::Store { order, .. } => *order,
            _ => Order::Weak,
        };
        matches!(order, Order::Strong { acquire, release, .. } if acquire || release)
    })
}

/// The test with the scalars of vectors in every order.
pub(super) fn all_orders(litmus: &Litmus) -> Vec<Litmus> {
    all(litmus, |_| true)
}

/// The test with the scalars of vectors that `which` names in every order.
fn all(litmus: &Litmus, which: impl Fn(&Op) -> bool) -> Vec<Litmus> {
    let mut tests = vec![litmus.clone()];
    for (number, thread) in litmus.threads.iter().enumerate() {
        for scalars in vectors(thread, &which) {
            let mut more = Vec::new();
            for test in &tests {
                let places: Vec<usize> = scalars.clone().collect();
                permutations(&places, &mut |order| {
                    let mut other = test.clone();
                    for (&to, &from) in places.iter().zip(order) {
                        other.threads[number].code[to].op = test.threads[number].code[from].op.clone();
                    }
                    more.push(other);
                });
            }
            tests = more;
        }
    }
    tests
}

/// Where the scalars of each vector that `which` names are in the code of a thread. An instruction has a line of its own.
fn vectors(thread: &Thread, which: impl Fn(&Op) -> bool) -> Vec<Range<usize>> {
    let mut vectors = Vec::new();
    let mut at = 0;
    while let Some(first) = thread.code.get(at) {
        let is_it = |one: &&Instruction| one.line == first.line && first.op.location().is_some();
        let whole = thread.source.iter().find(is_it).map_or(1, |one| one.op.scalars().len());
        if whole > 1 && which(&first.op) {
            vectors.push(at..at + whole);
        }
        at += whole;
    }
    vectors
}
