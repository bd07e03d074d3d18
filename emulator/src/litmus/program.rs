//! A parsed litmus test.

use super::condition::Condition;

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
    /// What the test claims.
    pub verdict: Verdict,
    /// Why that is so, in one line.
    pub reason: String,
}

/// What a test claims about its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some execution that the model allows ends in such a state.
    Allowed,
    /// None does.
    Forbidden,
}

/// A named memory location.
#[derive(Clone, Debug)]
pub struct Location {
    /// Its name.
    pub name: String,
    /// Its width, which is that of every access to it.
    pub width: Width,
    /// Its value before the test.
    pub initial: u64,
    /// The device whose memory holds it. The model does not care; an executor may.
    pub device: u32,
}

/// Width of a location, register or access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 32 bits.
    B32,
    /// 64 bits.
    B64,
}

impl Width {
    /// The width in bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::B32 => 32,
            Self::B64 => 64,
        }
    }

    /// `value` cut to this width.
    pub fn cut(self, value: u64) -> u64 {
        match self {
            Self::B32 => value & u64::from(u32::MAX),
            Self::B64 => value,
        }
    }
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
    /// The instructions.
    pub code: Vec<Instruction>,
    /// Labels and the index of the instruction that each stands before.
    pub labels: Vec<(String, usize)>,
}

impl Thread {
    /// How many barriers the thread executes.
    pub fn barriers(&self) -> usize {
        self.code.iter().filter(|instruction| instruction.op == Op::Barrier).count()
    }
}

/// A general register. Its final value is part of an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The name with its `%`: `%r..` has 32 bits, `%rd..` 64.
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
        /// What is read.
        location: usize,
        /// Where the value goes.
        d: usize,
    },
    /// `st`.
    Store {
        /// Ordering.
        order: Order,
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
    /// `fence`.
    Fence(Fence),
    /// `bar.sync 0`.
    Barrier,
    /// `mov`.
    Move {
        /// Destination.
        d: usize,
        /// Source.
        a: Operand,
    },
    /// `add`.
    Add {
        /// Destination.
        d: usize,
        /// First summand.
        a: Operand,
        /// Second summand.
        b: Operand,
    },
    /// `xor`.
    Xor {
        /// Destination.
        d: usize,
        /// First operand.
        a: Operand,
        /// Second operand.
        b: Operand,
    },
    /// `setp.eq` and `setp.ne`.
    SetPredicate {
        /// Destination predicate.
        p: usize,
        /// `eq`, else `ne`.
        equal: bool,
        /// First operand.
        a: Operand,
        /// Second operand.
        b: Operand,
    },
    /// `bra`, forward only.
    Branch {
        /// Index of the instruction to go on with.
        target: usize,
    },
}

impl Op {
    /// The location of a memory operation.
    pub fn location(&self) -> Option<usize> {
        match *self {
            Self::Load { location, .. } | Self::Store { location, .. } | Self::Atomic { location, .. } => {
                Some(location)
            }
            _ => None,
        }
    }

    /// Whether it reads memory.
    pub fn reads(&self) -> bool {
        matches!(self, Self::Load { .. } | Self::Atomic { .. })
    }

    /// Whether it may write memory.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Store { .. } | Self::Atomic { .. })
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
    /// Adds.
    Add(Operand),
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
