//! Register allocation: virtual registers share slots where their lives do not overlap, so that the files of all
//! threads of a block stay small enough for the host's caches.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::names::Kind;
use crate::error::At;
use crate::program::{Access, Address, Guard, Load, Op, Slot, Step};
use crate::types::{Space, Special, Type};

pub(super) struct Allocation {
    /// Slots for registers.
    pub(super) slots: u16,
    pub(super) constants: Vec<u64>,
    pub(super) specials: Vec<Special>,
    /// The most 32-bit registers live at once, without those that hold a parameter.
    pub(super) pressure: u32,
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

/// Where the lives of registers begin and end, and the register pressure. One register after another is followed from
/// where it is read back to where it is written (Boissinot et al., "Computing Liveness Sets for SSA-Form Programs",
/// 2011): that takes as many steps as there are uses, and blocks through which registers live.
struct Flow<'c> {
    blocks: Vec<std::ops::Range<usize>>,
    /// By block: the blocks before it.
    before: Vec<Vec<u32>>,
    kinds: &'c [Kind],
}

/// What one block does with one register.
#[derive(Clone, Copy, Debug)]
struct Mention {
    register: u32,
    block: u32,
    /// It is read before it is certainly written.
    reads: bool,
    /// It is certainly written.
    writes: bool,
    /// It is live behind the block.
    live_out: bool,
}

/// First and last step at which each register holds something, by register, and the register pressure.
fn lives(code: &mut [Step], kinds: &[Kind]) -> (Vec<Option<(usize, usize)>>, u32) {
    let blocks = blocks(code);
    let mut block_at = vec![0; code.len() + 1];
    for (number, range) in blocks.iter().enumerate() {
        block_at[range.start] = number;
    }
    let mut before = vec![Vec::new(); blocks.len()];
    for (number, range) in blocks.iter().enumerate() {
        for successor in successors(&code[range.end - 1], range.end) {
            if successor < code.len() {
                before[block_at[successor]].push(number as u32);
            }
        }
    }
    let flow = Flow { blocks, before, kinds };
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; kinds.len()];
    let mut mentions = flow.mentions(code, &mut lives);
    let weights = weights(code, kinds);
    let mut behind = vec![0; flow.blocks.len()];
    flow.follow(&mut mentions, &mut lives, &weights, &mut behind);
    let pressure = flow.pressure(code, &mentions, &weights, &behind);
    (lives, pressure.max(1))
}

/// By register: how many 32-bit registers it takes.
fn weights(code: &mut [Step], kinds: &[Kind]) -> Vec<u32> {
    let parameters = parameters(code, kinds);
    let weight = |(register, kind): (usize, &Kind)| match kind {
        _ if parameters[register] => 0,
        Kind::Register(Type::Pred) => 0,
        Kind::Register(ty) if ty.bits() == 64 => 2,
        _ => 1,
    };
    kinds.iter().enumerate().map(weight).collect()
}

fn touch(life: &mut Option<(usize, usize)>, at: usize) {
    let (from, to) = life.unwrap_or((at, at));
    *life = Some((from.min(at), to.max(at)));
}

impl Flow<'_> {
    fn is_register(&self, slot: Slot) -> bool {
        matches!(self.kinds[slot as usize], Kind::Register(_))
    }

    /// What blocks do with registers, by register; each step that names a register is part of its life.
    fn mentions(&self, code: &mut [Step], lives: &mut [Option<(usize, usize)>]) -> Vec<Mention> {
        let mut mentions: Vec<Mention> = Vec::new();
        // By register: its last mention.
        let mut last: Vec<Option<usize>> = vec![None; self.kinds.len()];
        for (block, range) in self.blocks.iter().enumerate() {
            let block = block as u32;
            for at in range.clone() {
                let certain = code[at].guard == Guard::Always;
                // A step reads before it writes.
                for wanted in [Access::Read, Access::Write] {
                    code[at].visit(&mut |slot, access| {
                        if access != wanted || !self.is_register(*slot) {
                            return;
                        }
                        let register = usize::from(*slot);
                        touch(&mut lives[register], at);
                        let known = last[register].filter(|&known| mentions[known].block == block);
                        let known = known.unwrap_or_else(|| {
                            let register = register as u32;
                            mentions.push(Mention {
                                register,
                                block,
                                reads: false,
                                writes: false,
                                live_out: false,
                            });
                            mentions.len() - 1
                        });
                        last[register] = Some(known);
                        let mention = &mut mentions[known];
                        match wanted {
                            Access::Read => mention.reads |= !mention.writes,
                            Access::Write => mention.writes |= certain,
                        }
                    });
                }
            }
        }
        mentions.sort_by_key(|mention| (mention.register, mention.block));
        mentions
    }

    /// Follows every register through the blocks. `behind` is the weight of what is live behind each block.
    fn follow(
        &self,
        mentions: &mut [Mention],
        lives: &mut [Option<(usize, usize)>],
        weights: &[u32],
        behind: &mut [u32],
    ) {
        // By block: the last register that was found to be live before or behind it, or mentioned in it, and where.
        let none = u32::MAX;
        let mut live_in = vec![none; self.blocks.len()];
        let mut live_out = live_in.clone();
        let mut mentioned = vec![(none, 0); self.blocks.len()];
        let mut open = Vec::new();
        for own in mentions.chunk_by_mut(|one, other| one.register == other.register) {
            let register = own[0].register;
            let life = &mut lives[register as usize];
            for (at, mention) in own.iter().enumerate() {
                mentioned[mention.block as usize] = (register, at);
                if mention.reads {
                    open.push(mention.block);
                }
            }
            while let Some(block) = open.pop() {
                let block = block as usize;
                if live_in[block] == register {
                    continue;
                }
                live_in[block] = register;
                touch(life, self.blocks[block].start);
                for &from in &self.before[block] {
                    let before = from as usize;
                    if live_out[before] == register {
                        continue;
                    }
                    live_out[before] = register;
                    touch(life, self.blocks[before].end - 1);
                    behind[before] += weights[register as usize];
                    let writes = match mentioned[before] {
                        (known, at) if known == register => {
                            own[at].live_out = true;
                            own[at].writes
                        }
                        _ => false,
                    };
                    if !writes {
                        open.push(from);
                    }
                }
            }
        }
    }

    /// The most weight that is live at once.
    fn pressure(&self, code: &mut [Step], mentions: &[Mention], weights: &[u32], behind: &[u32]) -> u32 {
        let mut by_block: Vec<&Mention> = mentions.iter().filter(|mention| mention.live_out).collect();
        by_block.sort_by_key(|mention| mention.block);
        let mut live = vec![false; self.kinds.len()];
        let (mut pressure, mut next) = (0, 0);
        for (block, range) in self.blocks.iter().enumerate() {
            while let Some(mention) = by_block.get(next).filter(|mention| mention.block as usize == block) {
                live[mention.register as usize] = true;
                next += 1;
            }
            let mut weight = behind[block];
            for at in range.clone().rev() {
                let certain = code[at].guard == Guard::Always;
                for wanted in [Access::Write, Access::Read] {
                    code[at].visit(&mut |slot, access| {
                        let register = usize::from(*slot);
                        let is = wanted == Access::Read;
                        let counts = access == wanted && (is || certain) && self.is_register(*slot);
                        if counts && live[register] != is {
                            live[register] = is;
                            weight = if is { weight + weights[register] } else { weight - weights[register] };
                        }
                    });
                }
                pressure = pressure.max(weight);
            }
            for at in range.clone() {
                code[at].visit(&mut |slot, _| live[usize::from(*slot)] = false);
            }
        }
        pressure
    }
}

/// The registers that only ever hold a parameter. The machine has parameters in constant memory, which its instructions take
/// as operands: such a register is a name in the text, and an assembler needs none for it.
fn parameters(code: &mut [Step], kinds: &[Kind]) -> Vec<bool> {
    let mut loaded = vec![false; kinds.len()];
    let mut computed = loaded.clone();
    for step in code {
        let is_parameter = matches!(
            &step.op,
            Op::Load(Load { target: Address { space: Space::Param, base, .. }, .. })
                if matches!(kinds[usize::from(*base)], Kind::Constant(_))
        );
        let written = if is_parameter { &mut loaded } else { &mut computed };
        step.visit(&mut |slot, access| {
            if access == Access::Write {
                written[usize::from(*slot)] = true;
            }
        });
    }
    loaded.iter().zip(computed).map(|(&loaded, computed)| loaded && !computed).collect()
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

/// Linear scan (Poletto and Sarkar, 1999): every register gets a slot that is free for its whole life.
fn assign(lives: &[Option<(usize, usize)>], slot_of: &mut [Option<Slot>]) -> u16 {
    let life =
        |(register, life): (usize, &Option<(usize, usize)>)| life.map(|(from, to)| (from, to, register));
    let mut order: Vec<_> = lives.iter().enumerate().filter_map(life).collect();
    order.sort_unstable();
    let mut free: Vec<Slot> = Vec::new();
    // The first to end is on top.
    let mut active: BinaryHeap<Reverse<(usize, Slot)>> = BinaryHeap::new();
    let mut slots: u16 = 0;
    for (from, to, register) in order {
        // A register that dies where another is born may share its slot only if the birth is later: an instruction
        // with two results could otherwise overwrite an operand.
        while let Some(&Reverse((end, slot))) = active.peek()
            && end < from
        {
            active.pop();
            free.push(slot);
        }
        let slot = free.pop().unwrap_or_else(|| {
            slots = slots.saturating_add(1);
            slots - 1
        });
        active.push(Reverse((to, slot)));
        slot_of[register] = Some(slot);
    }
    slots
}

#[cfg(test)]
mod tests {
    use crate::Module;

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

    #[test]
    fn a_register_lives_round_the_loops_that_it_is_read_in() {
        let registers = |body: &str| {
            let text = format!(
                ".version 7.0\n.target sm_70\n.address_size 64\n.entry k() {{ .reg .b32 %r<9>; .reg .pred %p;\n{body} }}"
            );
            let kernel = Module::parse(&text).unwrap().kernel("k").unwrap();
            (kernel.registers, kernel.register_slots)
        };
        let one =
            "mov.u32 %r0, 1; mov.u32 %r1, 2; A: add.u32 %r2, %r1, 1; setp.eq.u32 %p, %r2, 5; @%p bra A;";
        assert_eq!(registers(&format!("{one} st.global.u32 [16], %r0;")), (3, 4), "and the predicate");
        assert_eq!(registers(&one.replace("mov.u32 %r0, 1;", "")), (2, 3), "read in the next round only");
        let guarded = "mov.u32 %r1, 2; setp.eq.u32 %p, 1, 2; mov.u32 %r0, %r1; @%p mov.u32 %r0, 1; st.global.u32 [16], %r0;";
        assert_eq!(registers(guarded), (1, 3), "a guarded write ends nothing");
    }

    #[test]
    fn texts_with_many_labels_and_registers_are_loaded_at_once() {
        // Minutes, where every block has a set of all registers.
        let mut body = String::new();
        for at in 0..20_000 {
            body += &format!(".reg .b32 %x{at}; mov.u32 %x{at}, %tid.x;\n");
            body +=
                &format!("L{at}: add.u32 %x{at}, %x{at}, {at}; setp.ne.u32 %p, %x{at}, 7; @%p bra L{at};\n");
        }
        let text =
            format!(".version 7.0\n.target sm_70\n.address_size 64\n.entry k() {{ .reg .pred %p;\n{body} }}");
        let kernel = Module::parse(&text).unwrap().kernel("k").unwrap();
        assert_eq!((kernel.registers, kernel.register_slots), (1, 2));
    }
}
