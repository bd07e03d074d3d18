//! Why a litmus text is refused.

/// A litmus text that is not understood or not legal, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {kind}")]
pub struct LitmusError {
    /// The file, as the caller named it.
    pub file: String,
    /// Line of the file, from 1.
    pub line: u32,
    /// What is wrong.
    pub kind: LitmusErrorKind,
}

/// What is wrong with a litmus text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LitmusErrorKind {
    /// A line that is none of those that may stand here.
    #[error("expected {expected}, found `{found}`")]
    Expected {
        /// What may stand here.
        expected: &'static str,
        /// What stands here.
        found: String,
    },
    /// A part of a test that is not there, found out at the line where the test ends.
    #[error("test {test} has no {part}")]
    Missing {
        /// Name of the test.
        test: String,
        /// The missing part.
        part: &'static str,
    },
    /// A name that is defined twice.
    #[error("{what} {name} is defined twice")]
    Twice {
        /// What the name is for.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name that is not defined.
    #[error("there is no {what} {name}")]
    Unknown {
        /// What the name should be for.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An instruction outside the subset, or a modifier that does not belong to it.
    #[error("{instruction}: {reason}")]
    Instruction {
        /// The instruction.
        instruction: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A number that is not one, or does not fit.
    #[error("`{0}` is not a number of at most 64 bits")]
    Number(String),
    /// A condition that does not parse.
    #[error("condition: {0}")]
    Condition(String),
    /// Accesses of two widths to one location, or of another width than its own. Mixed-size races are outside the
    /// model (PTX ISA, "Limitations on Mixed-size Data-races").
    #[error("{location} has {declared} bits and is accessed with {accessed}")]
    MixedSize {
        /// Name of the location.
        location: String,
        /// Bits of the location.
        declared: u32,
        /// Bits of the access.
        accessed: u32,
    },
    /// Something that a foreign format has and this crate does not.
    #[error("{what} of Dat3M's format are not read: `{found}`")]
    Foreign {
        /// What it is.
        what: &'static str,
        /// The text.
        found: String,
    },
    /// More than candidate executions can be enumerated for.
    #[error("{found} {what}, and at most {limit} are supported")]
    TooLarge {
        /// Of what there are too many.
        what: &'static str,
        /// How many there are.
        found: u64,
        /// How many are supported.
        limit: u64,
    },
}
