//! A parsed litmus test.

use super::comparison::Compare;
use super::condition::Condition;
pub use super::location::{Home, Location, Width};
use super::outcome::Outcome;

/// A litmus test.
#[derive(Clone, Debug)]
pub struct Litmus {
    /// Its name, unique in its file.
    pub name: String,
    /// Line of the file at which it begins.
    pub line: u32,
    /// The named locations, in the order of the text.
    pub locations: Vec<Location>,
    /// The threads, in the order of the text.
    pub threads: Vec<Thread>,
    /// The final states that the verdict is about.
    pub condition: Condition,
    /// Who takes part in a barrier that names no count.
    pub participants: Participants,
    /// What the test claims.
    pub verdict: Expectation,
    /// Why that is so, in one line.
    pub reason: String,
    /// Whether some execution has a data race, if the test claims one or the other.
    pub racy: Option<bool>,
    /// Whether every execution ends, if the test claims one or the other.
    pub terminates: Option<bool>,
}

impl Outcome {
    /// The outcome in words of its test: `0:%r0=1 x=0`.
    pub fn describe(&self, litmus: &Litmus) -> String {
        let mut words = Vec::new();
        for (number, (thread, values)) in litmus.threads.iter().zip(&self.registers).enumerate() {
            let registers = thread.registers.iter().zip(values);
            words.extend(registers.map(|(register, value)| format!("{number}:{}={value}", register.name)));
        }
        let locations = litmus.locations.iter().zip(&self.memory);
        words.extend(locations.map(|(location, value)| format!("{}={value}", location.name)));
        words.join(" ")
    }
}

/// Who takes part in a barrier that names no count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Participants {
    /// All threads of the block (PTX ISA, `bar`).
    Block,
    /// The threads of the block that execute a barrier of that number: what Dat3M's tests mean.
    Named,
}

/// What a test claims about its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Some execution that the model allows ends in such a state.
    Allowed,
    /// None does.
    Forbidden,
    /// It claims nothing, but asks: whether some execution ends so (`exists`), or else whether none does (`~exists`;
    /// `forall`, of what must not be).
    Asked(bool),
}

impl Litmus {
    /// The location that an address is of: itself, unless it is a second one.
    pub(super) fn memory_of(&self, address: usize) -> usize {
        match self.locations[address].home {
            Home::Alias { of } => of,
            _ => address,
        }
    }

    /// The location in whose memory a location lies.
    pub(super) fn first_of(&self, location: usize) -> usize {
        match self.locations[location].home {
            Home::Behind { first, .. } => first,
            _ => location,
        }
    }

    /// Whether a location is in shared memory, so that nobody sees its last value.
    pub(super) fn is_shared(&self, location: usize) -> bool {
        matches!(self.locations[self.first_of(location)].home, Home::Shared { .. })
    }

    /// The place of a thread among those of its block.
    pub(super) fn lane(&self, thread: usize) -> usize {
        lane(&self.threads, thread)
    }
}

/// The place of a thread among those of its block.
pub(super) fn lane(threads: &[Thread], thread: usize) -> usize {
    threads[..thread].iter().filter(|other| other.shares_a_block_with(&threads[thread])).count()
}

/// How a memory operation reaches memory (PTX ISA, "Proxies").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// As loads, stores and atomics do.
    Generic,
    /// By surface instructions.
    Surface,
    /// By texture instructions.
    Texture,
    /// As constants are loaded.
    Constant,
}

/// A thread and where it runs.
#[derive(Clone, Debug)]
pub struct Thread {
    /// The device.
    pub device: u32,
    /// The block, within the device.
    pub block: u32,
    /// The general registers, in the order of first use.
    pub registers: Vec<Register>,
    /// The predicate registers, in the order of first use.
    pub predicates: Vec<String>,
    /// The instructions, loops unrolled: branches go forward only.
    pub code: Vec<Instruction>,
    /// The instructions as they are written.
    pub source: Vec<Instruction>,
    /// Labels and the index of the instruction of `source` that each stands before.
    pub labels: Vec<(String, usize)>,
}

impl Thread {
    /// The barriers of its text.
    pub(super) fn barriers(&self) -> impl Iterator<Item = &Instruction> {
        self.source.iter().filter(|instruction| matches!(instruction.op, Op::Barrier { .. }))
    }

    /// Whether the thread has loops.
    pub fn loops(&self) -> bool {
        self.code.iter().any(|instruction| matches!(instruction.op, Op::Bound { .. }))
    }

    /// Whether both are threads of one block.
    pub(super) fn shares_a_block_with(&self, other: &Thread) -> bool {
        (self.device, self.block) == (other.device, other.block)
    }

    /// Whether it has no branches.
    pub(super) fn is_straight(&self) -> bool {
        !self.source.iter().any(|one| matches!(one.op, Op::Branch { .. }))
    }

    /// Whether its barriers are always executed, in the order of the text.
    pub(super) fn barriers_are_fixed(&self) -> bool {
        self.is_straight() && self.barriers().all(|one| one.guard.is_none())
    }
}

/// A general register. Its final value is part of an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The name with its `%`: `%rs..` has 16 bits, `%r..` 32, `%rd..` 64.
    pub name: String,
    /// The width.
    pub width: Width,
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Line of the file.
    pub line: u32,
    /// The text, without label, comment and semicolon.
    pub text: String,
    /// The guard: index of the predicate, and the value that it must have.
    pub guard: Option<(usize, bool)>,
    /// What it does.
    pub op: Op,
}

/// What an instruction does. Registers, predicates and locations are indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `ld`.
    Load {
        /// Ordering.
        order: Order,
        /// `.nc`: outside the model.
        noncoherent: bool,
        /// How it reaches memory.
        proxy: Proxy,
        /// What is read.
        location: usize,
        /// Where the value goes.
        d: usize,
    },
    /// `st`.
    Store {
        /// Ordering.
        order: Order,
        /// How it reaches memory.
        proxy: Proxy,
        /// What is written.
        location: usize,
        /// The value.
        a: Operand,
    },
    /// `atom` and `red`.
    Atomic {
        /// Ordering.
        order: Order,
        /// What is read and written.
        location: usize,
        /// What is done.
        rmw: Rmw,
        /// Where the old value goes; `None` for `red`.
        d: Option<usize>,
    },
    /// A load or store of several scalars, in any order: as it is written; unrolled there are the scalars.
    Vector(Vec<Op>),
    /// `fence`.
    Fence(Fence),
    /// `fence.proxy`: of a proxy, or where there is none, of second addresses.
    ProxyFence(Option<Proxy>),
    /// `bar.sync`, `bar.arrive` and `bar.red`.
    Barrier {
        /// Its number.
        id: Operand,
        /// How many threads of the test take part, if it says so.
        count: Option<u32>,
        /// `arrive`: does not wait.
        arrive: bool,
        /// `red`: what becomes of the predicates of all.
        vote: Option<Vote>,
    },
    /// `bar.warp.sync`.
    WarpBarrier {
        /// The threads that take part, by their places in the block.
        mask: u32,
    },
    /// `mov`.
    Move {
        /// Destination.
        d: usize,
        /// Source.
        a: Operand,
    },
    /// Arithmetic.
    Compute {
        /// What is computed.
        function: Function,
        /// Destination.
        d: usize,
        /// First operand.
        a: Operand,
        /// Second operand.
        b: Operand,
    },
    /// `setp`.
    SetPredicate {
        /// Destination predicate.
        p: usize,
        /// What is asked.
        compare: Compare,
        /// Width of both, where they count as signed.
        signed: Option<Width>,
        /// First operand.
        a: Operand,
        /// Second operand.
        b: Operand,
    },
    /// `bra`.
    Branch {
        /// Index of the instruction to go on with.
        target: usize,
    },
    /// A loop has gone round as often as is looked at. No instruction of the text.
    Bound {
        /// Index of the instruction at which its last round begins.
        from: usize,
    },
}

/// What `bar.red` makes of the predicates of all that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vote {
    /// The function.
    pub of: Reduce,
    /// Destination: of a count a register, else a predicate.
    pub d: usize,
    /// The own predicate.
    pub p: usize,
    /// It counts inverted.
    pub negated: bool,
}

/// A function of predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// `popc`: how many are true.
    Count,
    /// Whether all are.
    And,
    /// Whether one is.
    Or,
}

impl Reduce {
    /// Its value.
    pub(super) fn of(self, votes: impl IntoIterator<Item = bool>) -> u64 {
        let mut votes = votes.into_iter();
        match self {
            Self::Count => votes.filter(|vote| *vote).count() as u64,
            Self::And => votes.all(|vote| vote).into(),
            Self::Or => votes.any(|vote| vote).into(),
        }
    }
}

/// Arithmetic of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product, its low half.
    Mul,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// The lesser, unsigned.
    Min,
    /// The greater, unsigned.
    Max,
    /// The lesser, signed.
    MinSigned,
    /// The greater, signed.
    MaxSigned,
    /// Of atomics: one more, and from the second on 0.
    Increment,
    /// Of atomics: one less; from 0, or beyond the second, the second.
    Decrement,
}

impl Function {
    /// Its value.
    pub(super) fn of(self, width: Width, a: u64, b: u64) -> u64 {
        width.cut(match self {
            Self::Add => a.wrapping_add(b),
            Self::Sub => a.wrapping_sub(b),
            Self::Mul => a.wrapping_mul(b),
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
            Self::Min => a.min(b),
            Self::Max => a.max(b),
            Self::MinSigned if width.signed(a) < width.signed(b) => a,
            Self::MaxSigned if width.signed(a) > width.signed(b) => a,
            Self::MinSigned | Self::MaxSigned => b,
            Self::Increment if a >= b => 0,
            Self::Increment => a + 1,
            Self::Decrement if a == 0 || a > b => b,
            Self::Decrement => a - 1,
        })
    }
}

impl Op {
    /// The location of a memory operation, by the address that it names; of a vector that of its first scalar.
    pub fn location(&self) -> Option<usize> {
        match *self {
            Self::Vector(ref scalars) => scalars.first().and_then(Self::location),
            Self::Load { location, .. } | Self::Store { location, .. } | Self::Atomic { location, .. } => {
                Some(location)
            }
            _ => None,
        }
    }

    /// Whether it reads memory.
    pub fn reads(&self) -> bool {
        match self {
            Self::Vector(scalars) => scalars.iter().any(Self::reads),
            _ => matches!(self, Self::Load { .. } | Self::Atomic { .. }),
        }
    }

    /// Whether it may write memory.
    pub fn writes(&self) -> bool {
        match self {
            Self::Vector(scalars) => scalars.iter().any(Self::writes),
            _ => matches!(self, Self::Store { .. } | Self::Atomic { .. }),
        }
    }

    /// Its memory operations.
    pub(super) fn scalars(&self) -> &[Op] {
        match self {
            Self::Vector(scalars) => scalars,
            _ => std::slice::from_ref(self),
        }
    }
}

/// A register or a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Index of a register.
    Register(usize),
    /// A constant.
    Constant(u64),
}

/// A read-modify-write operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rmw {
    /// Computes with what is there.
    Compute(Function, Operand),
    /// Replaces.
    Exchange(Operand),
    /// Replaces by the second if the old value is the first.
    CompareSwap(Operand, Operand),
}

/// How strong a memory operation is, and how far it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Weak: no scope.
    Weak,
    /// Strong at a scope. Relaxed if it neither acquires nor releases.
    Strong {
        /// The scope.
        scope: Scope,
        /// An acquire operation.
        acquire: bool,
        /// A release operation.
        release: bool,
    },
}

/// A fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The scope.
    pub scope: Scope,
    /// Makes acquire patterns.
    pub acquire: bool,
    /// Makes release patterns.
    pub release: bool,
    /// `fence.sc`: takes part in Fence-SC order.
    pub sequential: bool,
}

/// The threads that a strong operation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `.cta`: the threads of the block.
    Block,
    /// `.gpu`: the threads of the device.
    Device,
    /// `.sys`: all.
    System,
}
