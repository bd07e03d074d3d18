//! What the parser makes of a text: names still unresolved, modifiers still words.

use super::types::{Space, Type};

#[derive(Debug, Default)]
pub(crate) struct Ast<'a> {
    pub(crate) version: (u32, u32),
    pub(crate) target: &'a str,
    pub(crate) address_size: u32,
    pub(crate) variables: Vec<Variable<'a>>,
    pub(crate) entries: Vec<Entry<'a>>,
}

/// A variable in some state space.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub(crate) line: u32,
    pub(crate) space: Space,
    pub(crate) name: &'a str,
    pub(crate) align: u32,
    pub(crate) bytes: u64,
    /// `.extern`: dynamic shared memory when it is in `.shared`.
    pub(crate) external: bool,
    /// The initial bytes, if an initialiser is given.
    pub(crate) init: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: u32,
    pub(crate) params: Vec<Variable<'a>>,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) body: Vec<Statement<'a>>,
}

#[derive(Debug)]
pub(crate) enum Statement<'a> {
    /// `{`
    Open,
    /// `}`
    Close,
    Label {
        line: u32,
        name: &'a str,
    },
    /// `.reg .b32 %r<5>`: `count` names, or one if it is `None`.
    Registers {
        line: u32,
        ty: Type,
        name: &'a str,
        count: Option<u32>,
    },
    Variable(Variable<'a>),
    /// `name: .branchtargets a, b, c;`
    Targets {
        name: &'a str,
        labels: Vec<&'a str>,
    },
    Instruction(Instruction<'a>),
}

#[derive(Debug)]
pub(crate) struct Instruction<'a> {
    pub(crate) line: u32,
    /// The guard predicate and whether it is negated.
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) opcode: &'a str,
    pub(crate) modifiers: Vec<&'a str>,
    pub(crate) operands: Vec<Operand<'a>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'a> {
    /// A register, label or variable; `_` for the sink.
    Name(&'a str),
    /// `!%p`
    Not(&'a str),
    /// `%tid.x`
    Element(&'a str, &'a str),
    /// `%p|%q`
    Pair(&'a str, &'a str),
    /// `variable+4` outside brackets.
    Sum(&'a str, i64),
    Int(u64),
    Single(u32),
    Double(f64),
    /// `{a, b}`
    Vector(Vec<Operand<'a>>),
    /// `[base+offset]`; without a base the offset is the address.
    Address(Option<&'a str>, i64),
}
