//! Register allocation: virtual registers share slots where their lives do not overlap, so that the files of all
//! threads of a block stay small enough for the host's caches.

use std::collections::BTreeMap;

use super::names::Kind;
use crate::ptx::error::At;
use crate::ptx::program::{Access, Guard, Load, Op, Slot, Step, Target};
use crate::ptx::types::{Space, Special, Type};

pub(super) struct Allocation {
    /// Slots for registers.
    pub(super) slots: u16,
    pub(super) constants: Vec<u64>,
    pub(super) specials: Vec<Special>,
    /// The most 32-bit registers live at once, without those that hold a parameter.
    pub(super) pressure: u32,
}

/// A set of registers.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn insert(&mut self, register: usize) {
        self.0[register / 64] |= 1 << (register % 64);
    }

    fn contains(&self, register: usize) -> bool {
        self.0[register / 64] >> (register % 64) & 1 == 1
    }

    fn remove(&mut self, register: usize) {
        self.0[register / 64] &= !(1 << (register % 64));
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, &bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit)
        })
    }
}

/// Rewrites the slots of `code` from indices into `kinds` to a thread's final slots.
pub(super) fn allocate(code: &mut [Step], kinds: &[Kind], line: u32) -> Result<Allocation, At> {
    let (lives, pressure) = lives(code, kinds);
    let mut slot_of: Vec<Option<Slot>> = vec![None; kinds.len()];
    let slots = assign(&lives, &mut slot_of);
    let mut next = usize::from(slots);
    let mut used = vec![false; kinds.len()];
    for step in code.iter_mut() {
        step.visit(&mut |slot, _| used[*slot as usize] = true);
    }
    let (mut constants, mut specials) = (Vec::new(), Vec::new());
    for (index, kind) in kinds.iter().enumerate() {
        if let (Kind::Constant(value), true) = (kind, used[index]) {
            slot_of[index] = Slot::try_from(next).ok();
            constants.push(*value);
            next += 1;
        }
    }
    for (index, kind) in kinds.iter().enumerate() {
        if let (Kind::Special(special, _), true) = (kind, used[index]) {
            slot_of[index] = Slot::try_from(next).ok();
            specials.push(*special);
            next += 1;
        }
    }
    if next > usize::from(Slot::MAX) {
        return Err(At::new(line, "too many registers are live at once"));
    }
    for step in code.iter_mut() {
        step.visit(&mut |slot, _| *slot = slot_of[*slot as usize].unwrap_or(0));
    }
    Ok(Allocation { slots, constants, specials, pressure })
}

/// First and last step at which each register holds something, and the register pressure.
fn lives(code: &mut [Step], kinds: &[Kind]) -> (BTreeMap<usize, (usize, usize)>, u32) {
    let words = kinds.len().div_ceil(64);
    let is_register = |slot: Slot| matches!(kinds[slot as usize], Kind::Register(_));
    let blocks = blocks(code);
    let mut block_at = vec![0; code.len() + 1];
    for (number, range) in blocks.iter().enumerate() {
        block_at[range.start] = number;
    }
    let mut live_in = vec![Set(vec![0; words]); blocks.len()];
    let mut live_out = live_in.clone();
    let mut lives: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    let mut changed = true;
    while changed {
        changed = false;
        for (number, range) in blocks.iter().enumerate().rev() {
            let mut live = Set(vec![0; words]);
            for successor in successors(&code[range.end - 1], range.end) {
                if successor < code.len() {
                    let from = &live_in[block_at[successor]].0;
                    live.0.iter_mut().zip(from).for_each(|(word, bits)| *word |= bits);
                }
            }
            live_out[number] = live.clone();
            for step in code[range.clone()].iter_mut().rev() {
                transfer(step, &mut live, &is_register);
            }
            if live != live_in[number] {
                live_in[number] = live;
                changed = true;
            }
        }
    }
    let parameters = parameters(code, kinds);
    let weight = |register: usize| match kinds[register] {
        _ if parameters.contains(register) => 0,
        Kind::Register(Type::Pred) => 0,
        Kind::Register(ty) if ty.bits() == 64 => 2,
        _ => 1,
    };
    let mut pressure = 0;
    let mut touch = |register: usize, at: usize| {
        let life = lives.entry(register).or_insert((at, at));
        *life = (life.0.min(at), life.1.max(at));
    };
    for (number, range) in blocks.iter().enumerate() {
        let mut live = live_out[number].clone();
        live.iter().for_each(|register| touch(register, range.end - 1));
        live_in[number].iter().for_each(|register| touch(register, range.start));
        for at in range.clone().rev() {
            code[at].visit(&mut |slot, _| {
                if is_register(*slot) {
                    touch(usize::from(*slot), at);
                }
            });
            transfer(&mut code[at], &mut live, &is_register);
            pressure = pressure.max(live.iter().map(weight).sum());
        }
    }
    (lives, pressure.max(1))
}

/// The registers that only ever hold a parameter. The machine has parameters in constant memory, which its instructions take
/// as operands: such a register is a name in the text, and an assembler needs none for it.
fn parameters(code: &mut [Step], kinds: &[Kind]) -> Set {
    let mut loaded = Set(vec![0; kinds.len().div_ceil(64)]);
    let mut computed = loaded.clone();
    for step in code {
        let is_parameter = matches!(
            &step.op,
            Op::Load(Load { target: Target { space: Space::Param, base, .. }, .. })
                if matches!(kinds[usize::from(*base)], Kind::Constant(_))
        );
        let written = if is_parameter { &mut loaded } else { &mut computed };
        step.visit(&mut |slot, access| {
            if access == Access::Write {
                written.insert(usize::from(*slot));
            }
        });
    }
    computed.iter().for_each(|register| loaded.remove(register));
    loaded
}

fn transfer(step: &mut Step, live: &mut Set, is_register: &impl Fn(Slot) -> bool) {
    let certain = step.guard == Guard::Always;
    step.visit(&mut |slot, access| {
        if access == Access::Write && certain && is_register(*slot) {
            live.remove(usize::from(*slot));
        }
    });
    step.visit(&mut |slot, access| {
        if access == Access::Read && is_register(*slot) {
            live.insert(usize::from(*slot));
        }
    });
}

fn successors(step: &Step, next: usize) -> Vec<usize> {
    let mut all = match &step.op {
        Op::Branch { target } => vec![*target as usize],
        Op::BranchTable { targets, .. } => targets.iter().map(|target| *target as usize).collect(),
        Op::Exit | Op::Trap => Vec::new(),
        _ => vec![next],
    };
    if step.guard != Guard::Always {
        all.push(next);
    }
    all
}

/// Ranges of steps that are entered at the beginning and left at the end only.
fn blocks(code: &[Step]) -> Vec<std::ops::Range<usize>> {
    let mut starts = vec![false; code.len() + 1];
    starts[0] = true;
    for (at, step) in code.iter().enumerate() {
        let branches = match &step.op {
            Op::Branch { .. } | Op::BranchTable { .. } | Op::Exit | Op::Trap => successors(step, at + 1),
            _ => continue,
        };
        starts[at + 1] = true;
        branches.into_iter().for_each(|target| starts[target] = true);
    }
    let firsts: Vec<usize> = (0..code.len()).filter(|&at| starts[at]).collect();
    firsts.iter().zip(firsts.iter().skip(1).chain([&code.len()])).map(|(&from, &to)| from..to).collect()
}

/// Linear scan (Poletto and Sarkar, 1999): every register gets the first slot that is free for its whole life.
fn assign(lives: &BTreeMap<usize, (usize, usize)>, slot_of: &mut [Option<Slot>]) -> u16 {
    let mut order: Vec<_> = lives.iter().map(|(&register, &(from, to))| (from, to, register)).collect();
    order.sort_unstable();
    let mut free: Vec<Slot> = Vec::new();
    let mut active: Vec<(usize, Slot)> = Vec::new();
    let mut slots: u16 = 0;
    for (from, to, register) in order {
        // A register that dies where another is born may share its slot only if the birth is later: an instruction
        // with two results could otherwise overwrite an operand.
        active.retain(|&(end, slot)| {
            if end < from {
                free.push(slot);
            }
            end >= from
        });
        let slot = free.pop().unwrap_or_else(|| {
            slots = slots.saturating_add(1);
            slots - 1
        });
        active.push((to, slot));
        slot_of[register] = Some(slot);
    }
    slots
}

#[cfg(test)]
mod tests {
    use crate::ptx::Module;

    #[test]
    fn registers_that_live_one_after_another_share_a_slot() {
        let mut body = String::from("mov.u32 %r0, 1;\n");
        for index in 1..100 {
            body += &format!("add.u32 %r{index}, %r{}, 1;\n", index - 1);
        }
        let text = format!(
            ".version 7.0\n.target sm_70\n.address_size 64\n.entry k() {{ .reg .b32 %r<100>;\n{body} st.global.u32 [16], %r99; }}"
        );
        let module = Module::parse(&text).unwrap();
        let kernel = module.kernel("k").unwrap();
        assert!(kernel.register_slots <= 3, "{}", kernel.register_slots);
        assert_eq!(kernel.registers, 1);
    }

    #[test]
    fn a_parameter_takes_no_register_until_something_is_computed_with_it() {
        let registers = |body: &str| {
            let text = format!(
                ".version 7.0\n.target sm_70\n.address_size 64\n.entry k(.param .u64 a, .param .u64 b) {{\n\
                 .reg .b64 %d<4>; ld.param.u64 %d0, [a]; ld.param.u64 %d1, [b];\n\
                 {body} st.global.u64 [%d0], %d1; st.global.u64 [%d0+8], %d1; }}"
            );
            Module::parse(&text).unwrap().kernel("k").unwrap().registers
        };
        assert_eq!(registers(""), 1, "none, but a kernel has one at least");
        assert_eq!(registers("add.u64 %d1, %d1, 8;"), 2, "written twice: a register of its own");
        assert_eq!(registers("add.u64 %d0, %d0, 8; add.u64 %d1, %d1, 8;"), 4);
        assert_eq!(registers("ld.param.u64 %d2, [a]; add.u64 %d1, %d2, 8;"), 2);
    }
}
