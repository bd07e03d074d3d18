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
    /// The instructions.
    pub code: Box<[Step]>,
    /// Offset at which dynamic shared memory begins.
    pub dynamic_shared_offset: u32,
    /// Slots that hold registers.
    pub register_slots: u16,
    /// Slots behind the registers: values that never change.
    pub constants: Box<[u64]>,
    /// Slots behind the constants: special registers that are constant for a thread.
    pub specials: Box<[Special]>,
    /// Memory instructions, which are numbered by `site`.
    pub sites: u16,
    /// Whether some of them access sixteen bytes at once.
    pub accesses_b128: bool,
    /// The module's initialised constant memory.
    pub constant_memory: Arc<[u8]>,
    /// The module's text, for reports.
    pub source: Arc<str>,
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
pub struct Step {
    /// What is done.
    pub op: Op,
    /// Whether it is.
    pub guard: Guard,
    /// Line of the text, from 1.
    pub line: u32,
}

/// Whether an instruction is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// It is.
    Always,
    /// It is where the predicate holds.
    If(Slot),
    /// It is where the predicate does not hold.
    Unless(Slot),
}

/// A decoded instruction. Operands have the letters that the ISA gives them.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are the operands of the ISA")]
pub enum Op {
    /// `mov`, and whatever keeps the bits.
    Move { d: Slot, a: Slot },
    /// A function of one operand.
    Unary { f: Unary, d: Slot, a: Slot },
    /// A function of two operands.
    Binary { f: Binary, d: Slot, a: Slot, b: Slot },
    /// A function of three operands.
    Ternary { f: Ternary, d: Slot, a: Slot, b: Slot, c: Slot },
    /// A function of four operands.
    Quaternary { f: Quaternary, d: Slot, a: Slot, b: Slot, c: Slot, e: Slot },
    /// `a` where `c` holds, else `b`: `selp`.
    Select { d: Slot, a: Slot, b: Slot, c: Slot },
    /// Two results.
    Pair { f: Pair, d: Slot, e: Slot, a: Slot, b: Slot, c: Slot },
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
    Pack { d: Slot, a: [Slot; 4], lanes: u8, bits: u8 },
    /// Splits a value into `lanes` values of `bits` bits.
    Unpack { d: [Slot; 4], a: Slot, lanes: u8, bits: u8 },
    /// `ld`.
    Load(Load),
    /// `st`.
    Store(Store),
    /// `atom` and `red`.
    Atomic(Box<Atomic>),
    /// `fence` and `membar`.
    Fence { order: Order, scope: Scope },
    /// Jumps to a step: `bra`.
    Branch { target: u32 },
    /// Jumps to one of several steps: `brx.idx`.
    BranchTable { index: Slot, targets: Box<[u32]> },
    /// `bar` and `barrier`.
    Barrier(Box<Barrier>),
    /// `bar.warp.sync`: waits for the warp's threads in the mask `a`.
    WarpBarrier { a: Slot },
    /// Reads a clock.
    Clock { d: Slot, clock: Clock },
    /// `nanosleep`.
    Sleep,
    /// `exit` and `ret`.
    Exit,
    /// `trap`.
    Trap,
    /// A hint that does nothing here, such as a prefetch.
    Nothing,
}

/// Where a memory instruction goes: `[base + offset]`.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The state space that the instruction names.
    pub space: Space,
    /// The register.
    pub base: Slot,
    /// Number of the memory instruction in the kernel.
    pub site: u16,
    /// The constant that is added to it.
    pub offset: i32,
}

/// `ld`.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where.
    pub target: Address,
    /// The ordering.
    pub order: Order,
    /// The scope of the ordering.
    pub scope: Scope,
    /// `.nc`: outside the memory model.
    pub noncoherent: bool,
    /// The type of a lane.
    pub ty: Type,
    /// Lanes of a vector; 1 for a scalar.
    pub lanes: u8,
    /// Two lanes of 64 bits are one scalar access: `.b128`.
    pub whole: bool,
    /// By lane: where the value goes.
    pub d: [Slot; 4],
}

/// `st`.
#[derive(Clone, Debug)]
pub struct Store {
    /// Where.
    pub target: Address,
    /// The ordering.
    pub order: Order,
    /// The scope of the ordering.
    pub scope: Scope,
    /// The type of a lane.
    pub ty: Type,
    /// Lanes of a vector; 1 for a scalar.
    pub lanes: u8,
    /// Two lanes of 64 bits are one scalar access: `.b128`.
    pub whole: bool,
    /// By lane: the value.
    pub a: [Slot; 4],
}

/// `atom` and `red`.
#[derive(Clone, Debug)]
pub struct Atomic {
    /// Where.
    pub target: Address,
    /// The ordering.
    pub order: Order,
    /// The scope of the ordering.
    pub scope: Scope,
    /// How the new value comes from the old one.
    pub op: AtomicOp,
    /// The type of a lane.
    pub ty: Type,
    /// Where the old value goes; `None` for `red`.
    pub d: Option<Slot>,
    /// The first operand.
    pub a: Slot,
    /// The second operand, if the operation has one.
    pub b: Slot,
}

/// What a barrier does besides waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierKind {
    /// Waits, and no more.
    Sync,
    /// Arrives without waiting.
    Arrive,
    /// Counts the threads whose predicate holds.
    Popc,
    /// Whether all predicates hold.
    And,
    /// Whether one holds.
    Or,
}

/// `bar` and `barrier`.
#[derive(Clone, Debug)]
pub struct Barrier {
    /// What it does besides waiting.
    pub kind: BarrierKind,
    /// The barrier's number, 0 to 15.
    pub id: Slot,
    /// Threads that take part; all if `None`.
    pub count: Option<Slot>,
    /// Where the result of a reduction goes.
    pub d: Slot,
    /// The predicate of a reduction.
    pub p: Slot,
    /// Whether that is negated.
    pub negate: bool,
}

/// How an instruction uses a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads it.
    Read,
    /// It writes it.
    Write,
}

impl Address {
    /// The address that a thread with these slots means.
    #[inline]
    pub fn of(&self, slots: &[u64]) -> u64 {
        slots[usize::from(self.base)].wrapping_add_signed(i64::from(self.offset))
    }
}

impl Step {
    /// Calls `f` for every slot, those read before those written.
    pub fn visit(&mut self, f: &mut impl FnMut(&mut Slot, Access)) {
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
