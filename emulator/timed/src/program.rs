//! A kernel as warps run it: the same instructions in an order in which threads that part meet again.
//!
//! Of the threads of a warp that stand at different instructions those go on that are first in this order. So that others
//! do not run past the place where all come together, a block stands behind all from which it is reached, and the blocks
//! of a loop stand together, before what follows the loop.

use std::sync::Arc;

use meshreduce_emulator_ptx::types::Space;
use meshreduce_emulator_ptx::{Access, Guard, Kernel, Op, Slot, Step};

/// What an instruction takes of its multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// Nothing: an assembler gives the register another name, or reads a parameter as an operand.
    Free,
    /// One turn of the scheduler, and the latency of arithmetic.
    Arithmetic,
    /// The rest: what it takes is said where it is executed.
    Other,
}

/// An instruction in its place.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub(crate) op: Op,
    pub(crate) guard: Guard,
    pub(crate) line: u32,
    pub(crate) cost: Cost,
    /// The instruction behind it.
    pub(crate) next: u32,
    /// Of a branch.
    pub(crate) targets: Box<[u32]>,
    /// Registers that are read, or written, each once.
    pub(crate) uses: Box<[Slot]>,
    pub(crate) writes: Box<[Slot]>,
}

/// A kernel's instructions.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) instructions: Box<[Instruction]>,
}

impl Code {
    pub(crate) fn new(kernel: &Arc<Kernel>) -> Self {
        let blocks = Blocks::of(kernel);
        let order = blocks.order();
        let code = blocks.without_copies(kernel);
        let mut places = vec![0; kernel.code.len() + 1];
        let all: Vec<usize> = order.iter().flat_map(|&block| blocks.range(block)).collect();
        for (place, &at) in all.iter().enumerate() {
            places[at] = place as u32;
        }
        let instructions = all.iter().map(|&at| instruction(kernel, &code, at, &places)).collect();
        Self { kernel: kernel.clone(), instructions }
    }
}

fn instruction(kernel: &Kernel, code: &[Step], at: usize, places: &[u32]) -> Instruction {
    let Step { op, guard, line } = &code[at];
    let (mut uses, mut writes): (Vec<Slot>, Vec<Slot>) = Default::default();
    // Whatever is read has to be there, and so has what is written: nothing is renamed.
    code[at].clone().visit(&mut |&mut slot, access| {
        if slot < kernel.register_slots {
            uses.push(slot);
            if access == Access::Write {
                writes.push(slot);
            }
        }
    });
    for slots in [&mut uses, &mut writes] {
        slots.sort_unstable();
        slots.dedup();
    }
    let targets = targets(op).iter().map(|&target| places[target as usize]).collect();
    let next = places[at + 1];
    Instruction {
        op: op.clone(),
        guard: *guard,
        line: *line,
        cost: cost(op),
        next,
        targets,
        uses: uses.into(),
        writes: writes.into(),
    }
}

fn cost(op: &Op) -> Cost {
    match op {
        op if copies(op).is_some() => Cost::Free,
        Op::Pack { bits: 32, .. } | Op::Unpack { bits: 32, .. } | Op::Nothing => Cost::Free,
        Op::Load(load) if load.target.space == Space::Param => Cost::Free,
        Op::Unary { .. }
        | Op::Binary { .. }
        | Op::Ternary { .. }
        | Op::Quaternary { .. }
        | Op::Select { .. }
        | Op::Pair { .. }
        | Op::SetPredicate { .. }
        | Op::Pack { .. }
        | Op::Unpack { .. } => Cost::Arithmetic,
        _ => Cost::Other,
    }
}

/// The registers that an instruction copies, from and to, if it does nothing else.
fn copies(op: &Op) -> Option<Vec<(Slot, Slot)>> {
    match *op {
        Op::Move { d, a } => Some(vec![(a, d)]),
        // One that gives back what it is given, whatever that is, as a move of 128 bits is decoded.
        Op::Pair { f, d, e, a, b, .. }
            if [(1, 2, 3), (u64::MAX, 0, 7)].iter().all(|&(x, y, z)| f(x, y, z) == (x, y)) =>
        {
            Some(vec![(a, d), (b, e)])
        }
        _ => None,
    }
}

fn targets(op: &Op) -> &[u32] {
    match op {
        Op::Branch { target } => std::slice::from_ref(target),
        Op::BranchTable { targets, .. } => targets,
        _ => &[],
    }
}

/// Goes over instructions from the last to the first: which registers are needed before them.
fn needed_before(code: &[Step], needed: &mut [bool]) {
    for step in code.iter().rev() {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        step.clone().visit(&mut |&mut slot, access| match access {
            Access::Read => reads.push(usize::from(slot)),
            Access::Write => writes.push(usize::from(slot)),
        });
        if step.guard == Guard::Always {
            writes.into_iter().for_each(|slot| needed[slot] = false);
        }
        reads.into_iter().for_each(|slot| needed[slot] = true);
    }
}

/// Instructions that are executed one behind the other, and where they lead.
struct Blocks {
    /// Where blocks begin, and where the last ends.
    starts: Vec<usize>,
    next: Vec<Vec<usize>>,
}

impl Blocks {
    fn of(kernel: &Kernel) -> Self {
        let code = &kernel.code;
        let mut starts = vec![0, code.len()];
        for (at, step) in code.iter().enumerate() {
            let targets = targets(&step.op);
            starts.extend(targets.iter().map(|&target| target as usize));
            if !targets.is_empty() || matches!(step.op, Op::Exit | Op::Trap) {
                starts.push(at + 1);
            }
        }
        starts.sort_unstable();
        starts.dedup();
        let block = |at: usize| starts.partition_point(|&start| start <= at) - 1;
        let count = starts.len() - 1;
        let next = (0..count).map(|number| {
            let last = &code[starts[number + 1] - 1];
            let mut next: Vec<usize> =
                targets(&last.op).iter().map(|&target| block(target as usize)).collect();
            let ends = matches!(last.op, Op::Exit | Op::Trap | Op::Branch { .. } | Op::BranchTable { .. });
            if (!ends || last.guard != Guard::Always) && number + 1 < count {
                next.push(number + 1);
            }
            next
        });
        let next = next.collect();
        Self { starts, next }
    }

    /// The kernel's code, in which a load whose value is copied right behind it, and used nowhere else, goes where the copy
    /// goes: an assembler has one register for both, and so the copy does not wait for the load.
    fn without_copies(&self, kernel: &Kernel) -> Vec<Step> {
        let mut code = kernel.code.to_vec();
        let needed = self.needed(kernel);
        for block in 0..self.next.len() {
            let range = self.range(block);
            for at in range.start..range.end.saturating_sub(1) {
                let Some(copied) = copies(&code[at + 1].op) else { continue };
                let same_guard = code[at].guard == code[at + 1].guard;
                let Op::Load(load) = &code[at].op else { continue };
                let mut later = self.needed_behind(block, &needed);
                needed_before(&code[at + 2..range.end], &mut later);
                let mut to = load.d;
                let found = &mut to[..usize::from(load.lanes)];
                let all = copied.len() == found.len() && found.iter().all(|&slot| !later[usize::from(slot)]);
                if !same_guard || !all {
                    continue;
                }
                for slot in found {
                    if let Some((_, d)) = copied.iter().find(|(a, _)| a == slot) {
                        *slot = *d;
                    }
                }
                if let Op::Load(load) = &mut code[at].op {
                    load.d = to;
                }
                code[at + 1].op = Op::Nothing;
            }
        }
        code
    }

    /// By block: the registers that are needed when it begins.
    fn needed(&self, kernel: &Kernel) -> Vec<Vec<bool>> {
        let mut needed = vec![vec![false; kernel.slots()]; self.next.len()];
        loop {
            let mut changed = false;
            for block in (0..self.next.len()).rev() {
                let mut before = self.needed_behind(block, &needed);
                needed_before(&kernel.code[self.range(block)], &mut before);
                changed |= before != needed[block];
                needed[block] = before;
            }
            if !changed {
                return needed;
            }
        }
    }

    fn needed_behind(&self, block: usize, needed: &[Vec<bool>]) -> Vec<bool> {
        let mut behind = vec![false; needed[block].len()];
        for &next in &self.next[block] {
            behind.iter_mut().zip(&needed[next]).for_each(|(behind, needed)| *behind |= needed);
        }
        behind
    }

    fn range(&self, block: usize) -> std::ops::Range<usize> {
        self.starts[block]..self.starts[block + 1]
    }

    fn order(&self) -> Vec<usize> {
        let all: Vec<usize> = (0..self.next.len()).collect();
        let mut order = Vec::with_capacity(all.len());
        self.order_of(&all, 0, &mut order);
        order
    }

    /// Appends `blocks` in order, without what leads back to `header` among them.
    fn order_of(&self, blocks: &[usize], header: usize, order: &mut Vec<usize>) {
        for part in self.parts(blocks, header).into_iter().rev() {
            let is_loop = part.len() > 1;
            if !is_loop {
                order.extend(part);
                continue;
            }
            // A loop is entered by one block; where by several, the first in the text is taken for it.
            let enters = |block: &&usize| {
                blocks.iter().any(|from| !part.contains(from) && self.next[*from].contains(block))
            };
            let entry = part.iter().filter(enters).min().or(part.iter().min());
            let entry = entry.copied().unwrap_or(header);
            // Where it is the header of all of them, what leads back to it is left out already.
            self.order_of(&part, entry, order);
        }
    }

    /// The strongly connected parts, last first (Tarjan's algorithm), without edges that lead to `header`.
    fn parts(&self, blocks: &[usize], header: usize) -> Vec<Vec<usize>> {
        let mut search = Search {
            blocks: self,
            header,
            within: vec![false; self.next.len()],
            numbers: vec![usize::MAX; self.next.len()],
            low: vec![0; self.next.len()],
            stack: Vec::new(),
            count: 0,
            parts: Vec::new(),
        };
        blocks.iter().for_each(|&block| search.within[block] = true);
        // The header last, so that it is the first: also of blocks that nothing leads to.
        let others = blocks.iter().rev().filter(|block| **block != header);
        for &block in others.chain(blocks.iter().filter(|block| **block == header)) {
            if search.numbers[block] == usize::MAX {
                search.visit(block);
            }
        }
        search.parts
    }
}

struct Search<'a> {
    blocks: &'a Blocks,
    header: usize,
    within: Vec<bool>,
    numbers: Vec<usize>,
    low: Vec<usize>,
    stack: Vec<usize>,
    count: usize,
    parts: Vec<Vec<usize>>,
}

impl Search<'_> {
    fn visit(&mut self, block: usize) {
        (self.numbers[block], self.low[block]) = (self.count, self.count);
        self.count += 1;
        self.stack.push(block);
        let blocks = self.blocks;
        for &next in &blocks.next[block] {
            if !self.within[next] || next == self.header {
                continue;
            }
            if self.numbers[next] == usize::MAX {
                self.visit(next);
                self.low[block] = self.low[block].min(self.low[next]);
            } else if self.stack.contains(&next) {
                self.low[block] = self.low[block].min(self.numbers[next]);
            }
        }
        if self.low[block] == self.numbers[block] {
            let from = self.stack.iter().position(|&known| known == block).unwrap_or(0);
            self.parts.push(self.stack.split_off(from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_emulator_ptx::Module;

    #[test]
    fn what_follows_a_loop_stands_behind_it_wherever_the_text_has_it() {
        let text = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k() {
            .reg .pred %p<2>; .reg .b32 %r<4>;
            bra $head;
            $behind: exit;
            $body: add.u32 %r1, %r1, 1; bra $head;
            $head: setp.gt.u32 %p1, %r1, 4; @%p1 bra $behind; bra $body; }";
        let code = Code::new(&Module::parse(text).unwrap().kernel("k").unwrap());
        let line =
            |text: &str| 1 + code.kernel.source.lines().position(|line| line.contains(text)).unwrap() as u32;
        let place = |text| code.instructions.iter().position(|it| it.line == line(text)).unwrap();
        assert_eq!(place("bra $head;"), 0);
        assert!(place("exit;") > place("$body:") && place("exit;") > place("$head:"));
    }
}
