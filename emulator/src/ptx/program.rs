//! The decoded program: what executors run.

use std::sync::Arc;

use super::semantics::atomic::AtomicOp;
use super::semantics::{Binary, Pair, Quaternary, Ternary, Unary};
use super::types::{Clock, Order, Scope, Space, Special, Type};

/// Index into a thread's slots: registers first, then constants, then special registers.
pub type Slot = u16;

/// A kernel entry, decoded and ready to run.
#[derive(Debug)]
pub struct Kernel {
    /// The entry's name.
    pub name: String,
    /// The parameters in order.
    pub params: Vec<Param>,
    /// Bytes of all parameters, padding included.
    pub param_bytes: u32,
    /// `.maxntid`.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    /// The attribute NUM_REGS: the most 32-bit registers that are live at once, by a flow analysis of the text as it stands;
    /// parameters lie in constant memory and take none. A real assembler orders instructions anew and may need a few more or
    /// many fewer.
    pub registers: u32,
    pub(crate) code: Box<[Step]>,
    /// Offset at which dynamic shared memory begins.
    pub(crate) dynamic_shared_offset: u32,
    /// Slots that hold registers.
    pub(crate) register_slots: u16,
    /// Slots behind the registers: values that never change.
    pub(crate) constants: Box<[u64]>,
    /// Slots behind the constants: special registers that are constant for a thread.
    pub(crate) specials: Box<[Special]>,
    /// Memory instructions, which are numbered by `site`.
    pub(crate) sites: u16,
    /// Whether some of them access sixteen bytes at once.
    pub(crate) accesses_b128: bool,
    /// The module's initialised constant memory.
    pub(crate) constant_memory: Arc<[u8]>,
    /// The module's text, for reports.
    pub(crate) source: Arc<str>,
}

impl Kernel {
    /// Slots of a thread.
    pub fn slots(&self) -> usize {
        self.register_slots as usize + self.constants.len() + self.specials.len()
    }

    /// Instructions of the kernel.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }

    /// The text of a line of the module, trimmed.
    pub fn line_text(&self, line: u32) -> &str {
        self.source.lines().nth((line as usize).saturating_sub(1)).unwrap_or("").trim()
    }
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Bytes from the beginning of the parameter buffer.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// One instruction with its guard and its place in the text.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) guard: Guard,
    pub(crate) line: u32,
}

/// Whether an instruction is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    Always,
    If(Slot),
    Unless(Slot),
}

/// A decoded instruction.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Move {
        d: Slot,
        a: Slot,
    },
    Unary {
        f: Unary,
        d: Slot,
        a: Slot,
    },
    Binary {
        f: Binary,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Ternary {
        f: Ternary,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Quaternary {
        f: Quaternary,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        e: Slot,
    },
    /// `a` where `c` holds, else `b`: `selp`.
    Select {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// Two results.
    Pair {
        f: Pair,
        d: Slot,
        e: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// A comparison combined with a predicate; `q` gets the combination with the comparison's negation.
    SetPredicate {
        compare: Binary,
        combine: Binary,
        p: Slot,
        q: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        negate: bool,
    },
    /// Joins `lanes` values of `bits` bits.
    Pack {
        d: Slot,
        a: [Slot; 4],
        lanes: u8,
        bits: u8,
    },
    Unpack {
        d: [Slot; 4],
        a: Slot,
        lanes: u8,
        bits: u8,
    },
    Load(Load),
    Store(Store),
    Atomic(Box<Atomic>),
    Fence {
        order: Order,
        scope: Scope,
    },
    Branch {
        target: u32,
    },
    BranchTable {
        index: Slot,
        targets: Box<[u32]>,
    },
    Barrier(Box<Barrier>),
    /// `bar.warp.sync`: waits for the warp's threads in the mask `a`.
    WarpBarrier {
        a: Slot,
    },
    Clock {
        d: Slot,
        clock: Clock,
    },
    Sleep,
    Exit,
    Trap,
    /// A hint that does nothing here, such as a prefetch.
    Nothing,
}

/// Where a memory instruction goes: `[base + offset]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) space: Space,
    pub(crate) base: Slot,
    /// Number of the memory instruction in the kernel.
    pub(crate) site: u16,
    pub(crate) offset: i32,
}

#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) order: Order,
    pub(crate) scope: Scope,
    /// `.nc`: outside the memory model.
    pub(crate) noncoherent: bool,
    pub(crate) ty: Type,
    pub(crate) lanes: u8,
    /// Two lanes of 64 bits are one scalar access: `.b128`.
    pub(crate) whole: bool,
    pub(crate) d: [Slot; 4],
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) target: Target,
    pub(crate) order: Order,
    pub(crate) scope: Scope,
    pub(crate) ty: Type,
    pub(crate) lanes: u8,
    /// Two lanes of 64 bits are one scalar access: `.b128`.
    pub(crate) whole: bool,
    pub(crate) a: [Slot; 4],
}

#[derive(Clone, Debug)]
pub(crate) struct Atomic {
    pub(crate) target: Target,
    pub(crate) order: Order,
    pub(crate) scope: Scope,
    pub(crate) op: AtomicOp,
    pub(crate) ty: Type,
    /// Where the old value goes; `None` for `red`.
    pub(crate) d: Option<Slot>,
    pub(crate) a: Slot,
    pub(crate) b: Slot,
}

/// What a barrier does besides waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    /// Arrives without waiting.
    Arrive,
    Popc,
    And,
    Or,
}

#[derive(Clone, Debug)]
pub(crate) struct Barrier {
    pub(crate) kind: BarrierKind,
    /// The barrier's number, 0 to 15.
    pub(crate) id: Slot,
    /// Threads that take part; all if `None`.
    pub(crate) count: Option<Slot>,
    pub(crate) d: Slot,
    /// The predicate of a reduction.
    pub(crate) p: Slot,
    pub(crate) negate: bool,
}

/// How an instruction uses a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Step {
    /// Calls `f` for every slot, those read before those written.
    pub(crate) fn visit(&mut self, f: &mut impl FnMut(&mut Slot, Access)) {
        use Access::{Read, Write};
        match &mut self.guard {
            Guard::Always => {}
            Guard::If(p) | Guard::Unless(p) => f(p, Read),
        }
        let mut all = |read: &mut [&mut Slot], write: &mut [&mut Slot]| {
            read.iter_mut().for_each(|slot| f(slot, Read));
            write.iter_mut().for_each(|slot| f(slot, Write));
        };
        match &mut self.op {
            Op::Move { d, a } | Op::Unary { d, a, .. } => all(&mut [a], &mut [d]),
            Op::Binary { d, a, b, .. } => all(&mut [a, b], &mut [d]),
            Op::Ternary { d, a, b, c, .. } | Op::Select { d, a, b, c } => all(&mut [a, b, c], &mut [d]),
            Op::Quaternary { d, a, b, c, e, .. } => all(&mut [a, b, c, e], &mut [d]),
            Op::Pair { d, e, a, b, c, .. } => all(&mut [a, b, c], &mut [d, e]),
            Op::SetPredicate { p, q, a, b, c, .. } => all(&mut [a, b, c], &mut [p, q]),
            Op::Pack { d, a, lanes, .. } => {
                a[..*lanes as usize].iter_mut().for_each(|slot| f(slot, Read));
                f(d, Write);
            }
            Op::Unpack { d, a, lanes, .. } => {
                f(a, Read);
                d[..*lanes as usize].iter_mut().for_each(|slot| f(slot, Write));
            }
            Op::Load(load) => {
                f(&mut load.target.base, Read);
                load.d[..load.lanes as usize].iter_mut().for_each(|slot| f(slot, Write));
            }
            Op::Store(store) => {
                f(&mut store.target.base, Read);
                store.a[..store.lanes as usize].iter_mut().for_each(|slot| f(slot, Read));
            }
            Op::Atomic(atomic) => {
                all(&mut [&mut atomic.target.base, &mut atomic.a, &mut atomic.b], &mut []);
                if let Some(d) = &mut atomic.d {
                    f(d, Write);
                }
            }
            Op::Barrier(barrier) => {
                all(&mut [&mut barrier.id, &mut barrier.p], &mut []);
                if let Some(count) = &mut barrier.count {
                    f(count, Read);
                }
                f(&mut barrier.d, Write);
            }
            Op::BranchTable { index, .. } => f(index, Read),
            Op::WarpBarrier { a } => f(a, Read),
            Op::Clock { d, .. } => f(d, Write),
            Op::Fence { .. } | Op::Branch { .. } | Op::Sleep | Op::Exit | Op::Trap | Op::Nothing => {}
        }
    }
}
