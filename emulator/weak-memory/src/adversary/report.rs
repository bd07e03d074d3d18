//! What was found, told as a story: who did what, at which lines, and which edge is missing.

use std::fmt;

use super::book::Book;
use super::history::{Access, Conflict, ConflictKind, Who, includes};
use super::memory::{Memory, WordId};
use meshreduce_emulator_ptx::types::Scope;

/// Why a session stopped.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was found.
    pub kind: ReportKind,
    /// The story, in several lines.
    pub story: String,
    /// The seed that replays the run.
    pub seed: u64,
    /// The accesses that led to it, if they were traced.
    pub interleaving: Vec<String>,
}

/// What a session can find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ReportKind {
    /// Two conflicting accesses, at least one a write, that causality order does not relate and that are not morally
    /// strong.
    DataRace,
    /// A data race of a read with a write of a *later* launch: the buffer was given back before all had read it.
    HandedBackEarly,
    /// `ld.global.nc` of what is written while its kernel runs.
    NoncoherentRead,
    /// Strong accesses to one flag, of different widths.
    MixedSize,
    /// One launch reaches one location by two addresses.
    Alias,
    /// A waiting thread's flag was written twice and the wait did not end: the value that it waits for is gone.
    EpochOverwritten,
    /// Threads wait for devices that have ended all their launches.
    BarrierCount,
    /// Threads wait for blocks that cannot become resident before they end.
    ResidencyDeadlock,
    /// Threads wait for what does not happen.
    Starvation,
    /// Threads of a block wait at a barrier that others have left for good, or expect different counts.
    BarrierDivergence,
    /// An access outside all allocations, a misaligned one, or a trap.
    Fault,
    /// The run is longer than the session allows.
    TooLong,
}

impl ReportKind {
    /// A short name, for tables.
    pub const fn name(self) -> &'static str {
        match self {
            ReportKind::DataRace => "data race",
            ReportKind::HandedBackEarly => "buffer handed back too early",
            ReportKind::NoncoherentRead => "nc read of what is written",
            ReportKind::MixedSize => "mixed-size flag",
            ReportKind::Alias => "two addresses of one location",
            ReportKind::EpochOverwritten => "epoch overwritten before it was seen",
            ReportKind::BarrierCount => "different barrier counts",
            ReportKind::ResidencyDeadlock => "residency deadlock",
            ReportKind::Starvation => "starvation",
            ReportKind::BarrierDivergence => "barrier divergence",
            ReportKind::Fault => "fault",
            ReportKind::TooLong => "too long",
        }
    }
}

impl fmt::Display for ReportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.kind, self.story.trim_end())?;
        if !self.interleaving.is_empty() {
            writeln!(f, "\nwhat led to it (instruction count, who, what):")?;
            self.interleaving.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        }
        write!(f, "(seed {})", self.seed)
    }
}

impl std::error::Error for Report {}

/// A report in the making.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) kind: ReportKind,
    pub(super) story: String,
    /// What the interleaving is to show.
    pub(super) threads: Vec<u32>,
    pub(super) words: Vec<WordId>,
    /// The two that race.
    pub(super) pair: Option<(Who, Who)>,
}

/// A read that saw a write of another thread without an edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnsynchronizedRead {
    pub(super) at: Who,
    pub(super) of: Access,
    pub(super) word: WordId,
    pub(super) strong: bool,
    pub(super) scope: Scope,
    pub(super) acquire: bool,
    pub(super) released: bool,
}

/// The story of two conflicting accesses.
pub(super) fn conflict(book: &Book, memory: &Memory, word: WordId, conflict: &Conflict) -> Finding {
    let Conflict { first, second, first_writes, second_writes, .. } = conflict;
    let later = book.number_of(second.who.launch) > book.number_of(first.who.launch);
    let kind = match conflict.kind {
        ConflictKind::Unordered if !first_writes && later => ReportKind::HandedBackEarly,
        ConflictKind::Unordered => ReportKind::DataRace,
        ConflictKind::MixedSize => ReportKind::MixedSize,
        ConflictKind::Noncoherent => ReportKind::NoncoherentRead,
        ConflictKind::Alias => ReportKind::Alias,
    };
    let verb = |writes: bool| if writes { "writes" } else { "reads" };
    let mut story = format!("{}\n", memory.describe(word, first.mask & second.mask));
    for (access, writes) in [(first, *first_writes), (second, *second_writes)] {
        story +=
            &format!("  {} {} it\n    {}\n", book.name(&access.who), verb(writes), book.place(&access.who));
    }
    story += &format!("  {}\n", missing(kind, first, second, *first_writes));
    let threads = vec![first.who.event.0, second.who.event.0];
    Finding { kind, story, threads, words: vec![word], pair: Some((first.who, second.who)) }
}

/// Why a read that saw a write made no edge.
pub(super) fn no_edge(book: &Book, memory: &Memory, read: &UnsynchronizedRead) -> String {
    let (at, of) = (&read.at, &read.of.who);
    let why = if !read.of.strong {
        "the write is weak"
    } else if !includes(read.of.scope, of, at) {
        "the write's scope does not include the reader"
    } else if !read.strong {
        "the read is weak"
    } else if !includes(read.scope, at, of) {
        "the read's scope does not include the writer"
    } else if !read.released {
        "the write does not release"
    } else if !read.acquire {
        "the read does not acquire"
    } else {
        "release and acquire have scopes that do not include each other"
    };
    format!(
        "  no edge: {} has read {} at {}\n    from {}, {}\n    but {why}\n",
        book.name(at),
        memory.describe(read.word, read.of.mask),
        book.place(at),
        book.name(of),
        book.place(of),
    )
}

fn missing(kind: ReportKind, first: &Access, second: &Access, first_writes: bool) -> String {
    let pair = match (first.who.device == second.who.device, first.who.block == second.who.block) {
        (_, true) => "two threads of a block",
        (true, _) => "two blocks of a device",
        _ => "two devices",
    };
    match kind {
        ReportKind::MixedSize => {
            format!(
                "both are strong, but of different width ({} and {} bytes): they are not single accesses to each other",
                first.mask.count_ones(),
                second.mask.count_ones()
            )
        }
        ReportKind::NoncoherentRead => {
            "ld.global.nc is outside the memory model: the location may not be written while the kernel runs"
                .to_owned()
        }
        ReportKind::Alias => {
            "one device reaches it by two addresses, which nothing but the end of a kernel orders".to_owned()
        }
        _ if first.strong && second.strong => {
            format!("both are strong, but a scope does not include the other: these are {pair}")
        }
        ReportKind::HandedBackEarly => format!(
            "missing: an edge from that read to this write, of a later launch. No release after the read was acquired before the write ({pair})"
        ),
        _ => format!(
            "missing: a release after the first, acquired before the second ({pair}; {})",
            if first_writes {
                "the second may or may not see the first"
            } else {
                "the first may see the second"
            }
        ),
    }
}
