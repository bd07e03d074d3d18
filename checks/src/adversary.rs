//! The shipped kernels against the adversary: all ranks in one [`Session`], launched without a driver, so that a seed
//! replays exactly.
//!
//! A seed stands for a [`Scenario`] (what is launched) and for everything that the session leaves to chance. Several
//! calls of different lengths and launch shapes follow one another on every rank with nothing in between, and every
//! result is compared bit by bit with the reference. In some scenarios a rank is told to give up at any moment
//! ([`Abort`]); then calls fail from some call on, and what did not fail must be right all the same. In every other
//! scenario, calls of other algorithms, by barriers and by packets, stand between.
#![forbid(unsafe_code)]

mod abort;
mod labels;
mod late;
mod odd;
mod ranks;
mod scenario;
mod slices;
mod stage;

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result};
use meshreduce::{ShippedKernels, shipped_kernels};
use meshreduce_emulator_ptx::{Kernel, Module};
use meshreduce_emulator_weak_memory::adversary::{Options, Report, Session, Summary};
use meshreduce_wire::{Algorithm, DType, Isa, KernelName, Op, TextName};

pub use abort::{Abort, AbortSource};
pub use late::Late;
pub use odd::Odd;
pub(crate) use ranks::Expected;
pub use scenario::{Call, Cuts, Numbers, Scenario};
pub use slices::{SliceCall, SliceKernels, SliceScenario};
use stage::Stage;

/// Lanes of the communicator: one is played, and the other hears of its failures.
const LANES: u32 = 2;

/// Nanoseconds, which the session counts by instructions: no wait of a run that ends takes as long.
const DEADLINE_NS: u64 = 1 << 60;

/// The kernels of one algorithm and world size.
pub struct Kernels {
    module: Arc<Module>,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Ranks.
    pub world_size: usize,
    /// The ISA that they are in.
    pub isa: Isa,
    /// What else is launched on the lane.
    others: Others,
}

/// Kernels of other algorithms, whose calls stand between those of one.
#[derive(Clone, Default)]
pub struct Others(Arc<[(Algorithm, Isa, Module)]>);

impl Others {
    /// All that are shipped and may be launched on one lane with those of `algorithm` in `isa`, but those of lists.
    ///
    /// # Errors
    /// If a text is not understood.
    pub fn shipped(algorithm: Algorithm, world_size: usize, isa: Isa) -> Result<Self> {
        Self::such(algorithm, world_size, isa, |other| !other.is_of_lists())
    }

    /// The same, and those of lists.
    ///
    /// # Errors
    /// If a text is not understood.
    pub fn with_lists(algorithm: Algorithm, world_size: usize, isa: Isa) -> Result<Self> {
        Self::such(algorithm, world_size, isa, |_| true)
    }

    fn such(
        algorithm: Algorithm,
        world_size: usize,
        isa: Isa,
        is_wanted: impl Fn(Algorithm) -> bool,
    ) -> Result<Self> {
        let goes_with = |text: &ShippedKernels| {
            text.world_size == world_size
                && text.algorithm != algorithm
                && is_wanted(text.algorithm)
                && !text.algorithm.is_of_slices()
                && text.algorithm.is_of_cube_mesh() == algorithm.is_of_cube_mesh()
                // Packets of one lane are all of one width.
                && (text.isa == isa || !text.algorithm.is_by_packets())
        };
        let modules = shipped_kernels()
            .filter(goes_with)
            .map(|text| Ok((text.algorithm, text.isa, Module::parse(text.ptx)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self(modules.into()))
    }

    /// Which.
    fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.0.iter().map(|(algorithm, ..)| *algorithm)
    }

    /// The kernels of one.
    fn of(&self, algorithm: Algorithm) -> Option<&Module> {
        self.0.iter().find(|(known, ..)| *known == algorithm).map(|(.., module)| module)
    }
}

/// What was wrong.
#[derive(Debug)]
pub enum RunFailure {
    /// The session found something.
    Found(Box<Report>),
    /// A result differs from the reference.
    Wrong {
        /// What, where.
        text: String,
        /// The last accesses, if they were traced.
        interleaving: Vec<String>,
    },
    /// A kernel gave up and said why.
    GaveUp {
        /// What, where.
        text: String,
        /// The last accesses, if they were traced.
        interleaving: Vec<String>,
    },
}

impl RunFailure {
    /// A short name, for tables.
    pub fn name(&self) -> &'static str {
        match self {
            RunFailure::Found(report) => report.kind.name(),
            RunFailure::Wrong { .. } => "wrong result",
            RunFailure::GaveUp { .. } => "kernel gave up",
        }
    }
}

impl fmt::Display for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunFailure::Found(report) => write!(f, "{report}"),
            RunFailure::Wrong { text, interleaving } | RunFailure::GaveUp { text, interleaving } => {
                write!(f, "{}: {text}", self.name())?;
                interleaving.iter().try_for_each(|line| write!(f, "\n{line}"))
            }
        }
    }
}

impl Kernels {
    /// The shipped kernels of `algorithm` for `world_size` ranks in `isa`, as the library has them.
    ///
    /// # Errors
    /// If there are none, or it is not understood.
    pub fn shipped(algorithm: Algorithm, world_size: usize, isa: Isa) -> Result<Self> {
        let kernels = Self::parse(&Self::shipped_text(algorithm, world_size, isa)?, algorithm, world_size)?;
        Ok(kernels.beside(Others::with_lists(algorithm, world_size, isa)?))
    }

    /// The algorithms of all-reduces that are shipped in `isa`.
    pub fn shipped_in(isa: Isa) -> Vec<Algorithm> {
        let has = |algorithm: &Algorithm| Self::are_shipped(*algorithm, isa);
        Algorithm::ALL.into_iter().filter(has).collect()
    }

    /// Whether kernels of `algorithm` are shipped in `isa`.
    pub fn are_shipped(algorithm: Algorithm, isa: Isa) -> bool {
        shipped_kernels().any(|text| (text.algorithm, text.isa) == (algorithm, isa))
    }

    /// The text of the shipped kernels.
    ///
    /// # Errors
    /// If there is none.
    pub fn shipped_text(algorithm: Algorithm, world_size: usize, isa: Isa) -> Result<String> {
        let wanted = |text: &ShippedKernels| {
            (text.algorithm, text.world_size, text.isa) == (algorithm, world_size, isa)
        };
        let missing = || format!("{algorithm} is not shipped for {world_size} ranks in PTX ISA {isa}");
        Ok(shipped_kernels().find(wanted).with_context(missing)?.ptx.to_owned())
    }

    /// The same kernels with others between.
    #[must_use]
    pub fn beside(self, others: Others) -> Self {
        Self { others, ..self }
    }

    /// The kernels of a text with the shipped names, such as a mutant, and no others.
    ///
    /// # Errors
    /// If the text is not understood.
    pub fn parse(text: &str, algorithm: Algorithm, world_size: usize) -> Result<Self> {
        let module = Arc::new(Module::parse(text)?);
        // Names say which.
        let isa = if text.contains(&format!("{}(", Isa::V84.suffix())) { Isa::V84 } else { Isa::V70 };
        Ok(Self::of(module, algorithm, world_size, isa))
    }

    /// The kernels of a text that is parsed, and no others.
    pub fn of(module: Arc<Module>, algorithm: Algorithm, world_size: usize, isa: Isa) -> Self {
        Self { module, algorithm, world_size, isa, others: Others::default() }
    }

    fn entry(&self, algorithm: Algorithm, dtype: DType, op: Op) -> Result<Arc<Kernel>> {
        let others = self.others.0.iter().map(|(algorithm, isa, module)| (*algorithm, *isa, module));
        let mut all = [(self.algorithm, self.isa, &*self.module)].into_iter().chain(others);
        let (_, isa, module) = all
            .find(|&(known, ..)| known == algorithm)
            .with_context(|| format!("there are no kernels of {algorithm}"))?;
        let text = TextName { algorithm, world_size: self.world_size, isa };
        let name = KernelName::new(text, dtype, op).to_string();
        let kernel = module.kernel(&name);
        kernel.with_context(|| format!("there is no kernel {name}"))
    }

    /// Whether the text has kernels for `dtype` and `op`.
    fn has(&self, dtype: DType, op: Op) -> bool {
        self.entry(self.algorithm, dtype, op).is_ok()
    }

    /// Runs what `seed` stands for.
    ///
    /// # Errors
    /// If anything is found, or a result is wrong.
    pub fn play(&self, seed: u64, options: Options) -> Result<Result<Summary, RunFailure>> {
        self.play_scenario(&self.scenario(seed), seed, options)
    }

    /// Runs a scenario.
    ///
    /// # Errors
    /// The outer one if there is no kernel for it; the inner one if anything is found, or a result is wrong.
    pub fn play_scenario(
        &self,
        scenario: &Scenario,
        seed: u64,
        options: Options,
    ) -> Result<Result<Summary, RunFailure>> {
        self.play_calls(scenario, false, seed, options)
    }

    /// Runs a scenario in which rank 0 does not make the last call: nothing that can end well.
    ///
    /// # Errors
    /// As [`Self::play_scenario`].
    pub fn play_uneven(
        &self,
        scenario: &Scenario,
        seed: u64,
        options: Options,
    ) -> Result<Result<Summary, RunFailure>> {
        self.play_calls(scenario, true, seed, options)
    }

    /// A session in which all calls of a scenario are queued and none has begun, and what must come of them.
    ///
    /// # Errors
    /// If there is no kernel for it.
    pub(crate) fn prepare(&self, scenario: &Scenario, seed: u64) -> Result<(Session, Vec<Expected>)> {
        let mut stage = Stage::new(self, scenario, Options { seed, ..Options::default() });
        let expected = stage.launch(seed, false)?;
        Ok((stage.ranks.session, expected))
    }

    fn play_calls(
        &self,
        scenario: &Scenario,
        uneven: bool,
        seed: u64,
        options: Options,
    ) -> Result<Result<Summary, RunFailure>> {
        let mut stage = Stage::new(self, scenario, Options { seed, ..options });
        let expected = stage.launch(seed, uneven)?;
        Ok(stage.finish(&expected))
    }
}
