//! Mutants of the shipped kernels against the adversary: change the text in one place, and something must notice.
//!
//! The mutants are systematic ([`operators`]: every strong access weakened, every barrier dropped, every signal, wait,
//! slot, half and field misused) and by hand ([`by_hand`]: what was wrong in known kernels of this family). Each runs
//! seed after seed, whole calls and calls that cannot end well ([`stage`]), until it is killed. Those that survive are
//! listed by name with the reason ([`known`]); any other survivor fails the run, and so does a listed one that dies.
#![forbid(unsafe_code)]

mod by_hand;
pub mod given;
pub mod known;
mod lists;
pub mod maker;
pub mod operators;
pub mod packet_operators;
pub mod packet_roles;
pub mod report;
pub mod roles;
mod slices;
pub mod stage;
pub mod text;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use meshreduce_emulator_ptx::{Kernel, Module};
use meshreduce_emulator_weak_memory::adversary::{Options, Summary};
use meshreduce_wire::{Algorithm, DType, Isa, KernelName, Op, TextName};
use serde::Serialize;

use crate::adversary::{Kernels, Others, RunFailure, SliceKernels};
use known::{Known, SurvivalReason};
use maker::Maker;
use packet_roles::PacketRoles;
use roles::Roles;
use stage::{Stage, Trouble};
use text::{Edit, Entry, Mutant};

/// PTX instructions after which a run has no end.
const LONGEST: u64 = 20_000_000;

/// Seeds of calls in a row for one of calls that cannot end well.
const AHEAD: u64 = 8;

/// What became of a mutant.
#[derive(Clone, Debug, Serialize)]
pub struct MutantResult {
    /// `{algorithm}/{what}`, the algorithm with the suffix of its text's ISA.
    pub name: String,
    /// Ranks.
    pub ranks: usize,
    /// The line in the shipped file.
    pub line: usize,
    /// What stands there.
    pub before: String,
    /// What stood there in the mutant.
    pub after: String,
    /// By what it was killed, if it was.
    pub killed_by: Option<String>,
    /// What was launched when it was killed.
    pub while_: Option<&'static str>,
    /// Seeds that it ran.
    pub seeds: u64,
    /// Why it is expected to survive.
    pub reason: Option<&'static str>,
    /// It is as right as the original.
    pub equivalent: bool,
    /// The whole story of its death.
    #[serde(skip)]
    pub story: String,
}

impl MutantResult {
    /// Whether it ended as the list says.
    pub fn is_expected(&self) -> bool {
        self.killed_by.is_some() != self.reason.is_some()
    }
}

/// How a rank dies within a call.
#[derive(Clone, Debug, Default)]
pub struct Death {
    /// Where it ends: whichever it comes to first.
    pub ends: Vec<usize>,
    /// What the first thread of a block has not done.
    pub not_by_first: Vec<usize>,
    /// What no thread has done.
    pub dropped: Vec<usize>,
}

/// What calls of mutants are played among.
enum Between {
    /// All-reduces: such.
    AllReduces(Others),
    /// Collectives of slices: kernels of which a mutant replaces one.
    Slices(SliceKernels),
}

/// What plays calls in a row.
enum Player {
    AllReduces(Kernels),
    Slices(SliceKernels),
}

impl Player {
    fn play(&self, seed: u64, options: Options) -> Result<Result<Summary, RunFailure>> {
        match self {
            Player::AllReduces(kernels) => kernels.play(seed, options),
            Player::Slices(kernels) => kernels.play(seed, options),
        }
    }
}

/// The mutants of one algorithm and world size.
pub struct Set {
    entry: Entry,
    name: String,
    algorithm: Algorithm,
    isa: Isa,
    ranks: usize,
    /// How dead ranks may end.
    deaths: Vec<Death>,
    /// What stands between its calls.
    between: Between,
    /// Whether calls that cannot end well are played, too.
    troubled: bool,
    /// The mutants, the unchanged text first.
    pub mutants: Vec<Mutant>,
}

impl Set {
    /// All mutants: of the bf16 sum, of the fp32 sum where rounding to 16 bits hides what is wrong, and of the greatest in fp32 for
    /// what zeros and NaN are.
    ///
    /// # Errors
    /// If there is no such kernel, or a mutation does not apply.
    pub fn all(algorithm: Algorithm, ranks: usize, isa: Isa) -> Result<Vec<Self>> {
        if algorithm.is_of_slices() {
            return Ok(vec![Self::of_slices(algorithm, ranks, isa)?]);
        }
        let others = Others::shipped(algorithm, ranks, isa)?;
        if algorithm.is_by_packets() {
            return Ok(vec![Self::of_packets(algorithm, ranks, isa, others)?]);
        }
        let bf16 = (DType::Bf16, Op::Sum);
        let mut sets = vec![Self::of(algorithm, ranks, bf16, others.clone(), |maker| {
            maker.add("unchanged", Vec::new());
            maker.systematic()?;
            maker.by_hand()
        })?];
        if algorithm != Algorithm::HybridCubeMesh && ranks > 2 {
            sets.push(Self::of(algorithm, ranks, (DType::F32, Op::Sum), others.clone(), |maker| {
                maker.add("unchanged-f32", Vec::new());
                maker.flushed()?;
                maker.rotated()
            })?);
            sets.push(Self::of(algorithm, ranks, (DType::F32, Op::Max), others, |maker| {
                maker.add("unchanged-f32-max", Vec::new());
                maker.compared()
            })?);
        }
        Ok(sets)
    }

    fn of(
        algorithm: Algorithm,
        ranks: usize,
        (dtype, op): (DType, Op),
        others: Others,
        make: impl FnOnce(&mut Maker<Roles>) -> Result<()>,
    ) -> Result<Self> {
        let (name, entry) = Self::entry(algorithm, ranks, (dtype, op), Isa::V70)?;
        let roles = Roles::of(&entry, algorithm).with_context(|| format!("the shape of {name}"))?;
        let mut maker =
            Maker { entry: &entry, roles: &roles, algorithm, ranks, isa: Isa::V70, made: Vec::new() };
        make(&mut maker).with_context(|| format!("mutants of {name}"))?;
        let mutants = maker.made;
        // Where the second phase begins.
        let second = roles.barriers.get(2).map(|&end| Death { ends: vec![end], ..Death::default() });
        let deaths = second.into_iter().collect();
        let between = Between::AllReduces(others);
        let troubled = dtype == DType::Bf16;
        Ok(Self { entry, name, algorithm, isa: Isa::V70, ranks, deaths, between, troubled, mutants })
    }

    /// Those of an algorithm by packets: of the bf16 sum.
    fn of_packets(algorithm: Algorithm, ranks: usize, isa: Isa, others: Others) -> Result<Self> {
        let (name, entry) = Self::entry(algorithm, ranks, (DType::Bf16, Op::Sum), isa)?;
        let roles =
            PacketRoles::of(&entry, algorithm, ranks, isa).with_context(|| format!("the shape of {name}"))?;
        let mut maker = Maker { entry: &entry, roles: &roles, algorithm, ranks, isa, made: Vec::new() };
        maker.add("unchanged", Vec::new());
        maker.packets().with_context(|| format!("mutants of {name}"))?;
        let mutants = maker.made;
        let deaths = roles.deaths(algorithm);
        let between = Between::AllReduces(others);
        Ok(Self { entry, name, algorithm, isa, ranks, deaths, between, troubled: true, mutants })
    }

    /// Those of an algorithm of slices: its one kernel, for all types and operations.
    fn of_slices(algorithm: Algorithm, ranks: usize, isa: Isa) -> Result<Self> {
        let (name, entry) = Self::entry(algorithm, ranks, (DType::Bf16, Op::Sum), isa)?;
        let (shape, mutants_of) = (|| format!("the shape of {name}"), || format!("mutants of {name}"));
        let (mutants, deaths) = if algorithm.is_by_packets() {
            let roles = PacketRoles::of(&entry, algorithm, ranks, isa).with_context(shape)?;
            let mut maker = Maker { entry: &entry, roles: &roles, algorithm, ranks, isa, made: Vec::new() };
            maker.add("unchanged", Vec::new());
            maker.packets().with_context(mutants_of)?;
            (maker.made, roles.deaths(algorithm))
        } else {
            let roles = Roles::of(&entry, algorithm).with_context(shape)?;
            let mut maker = Maker { entry: &entry, roles: &roles, algorithm, ranks, isa, made: Vec::new() };
            maker.add("unchanged", Vec::new());
            maker.systematic().and_then(|()| maker.by_hand()).with_context(mutants_of)?;
            if !algorithm.moves() && ranks > 2 {
                maker.rotated().with_context(mutants_of)?;
            }
            (maker.made, Vec::new())
        };
        let between =
            Between::Slices(SliceKernels::with_those_of(algorithm, ranks, isa)?.with_focus(algorithm));
        Ok(Self { entry, name, algorithm, isa, ranks, deaths, between, troubled: true, mutants })
    }

    fn entry(
        algorithm: Algorithm,
        ranks: usize,
        (dtype, op): (DType, Op),
        isa: Isa,
    ) -> Result<(String, Entry)> {
        let text = TextName { algorithm, world_size: ranks, isa };
        let name = KernelName::new(text, dtype, op).to_string();
        let entry = Entry::of(&Kernels::shipped_text(algorithm, ranks, isa)?, &name)?;
        Ok((name, entry))
    }

    /// The text of a mutant, this kernel alone.
    pub fn render(&self, mutant: &Mutant) -> String {
        self.entry.render(&mutant.edits)
    }

    /// The mutant as dead ranks run it, which end before they wait: by what they have done till then.
    fn halfway(&self, mutant: &Mutant) -> Result<Vec<Arc<Kernel>>> {
        let mut kernels = Vec::new();
        for Death { ends, not_by_first, dropped } in &self.deaths {
            let guarded = |&at: &usize| {
                let first = ["\tmov.u32 %mr0, %tid.x;", "\tsetp.ne.u32 %mp0, %mr0, 0;"].map(str::to_owned);
                let guarded = format!("\t@%mp0 {}", self.entry.lines[at].trim());
                Edit { at, with: [&first[..], &[guarded]].concat() }
            };
            let ended = ends.iter().map(|&at| Edit { at, with: vec!["\tret;".to_owned()] });
            let mut edits: Vec<Edit> = ended.collect();
            edits.extend(not_by_first.iter().map(guarded));
            edits.extend(dropped.iter().map(|&at| self.entry.dropped(at)));
            let places: Vec<usize> = edits.iter().map(|edit| edit.at).collect();
            edits.extend(mutant.edits.iter().filter(|edit| !places.contains(&edit.at)).cloned());
            kernels.extend(Module::parse(&self.entry.render(&edits))?.kernel(&self.name));
        }
        Ok(kernels)
    }

    /// Runs a mutant on the seeds from 1 on until it is killed.
    ///
    /// # Errors
    /// If it is no PTX.
    pub fn judge(&self, mutant: &Mutant, seeds: Seeds) -> Result<MutantResult> {
        let text = self.render(mutant);
        let understood = || format!("{} is not understood", mutant.name);
        let module = Arc::new(Module::parse(&text).with_context(understood)?);
        let kernel = module.kernel(&self.name).with_context(understood)?;
        let kernels = match &self.between {
            Between::AllReduces(others) => {
                let kernels = Kernels::of(module, self.algorithm, self.ranks, self.isa);
                Player::AllReduces(kernels.beside(others.clone()))
            }
            Between::Slices(kernels) => Player::Slices(kernels.clone().with_module(self.algorithm, module)?),
        };
        // Half of the mutants die before anybody dies within a call.
        let mut halfway: Option<Vec<Arc<Kernel>>> = None;
        let options = Options { max_instructions: LONGEST, ..Options::default() };
        let play = |halfway: Option<&Arc<Kernel>>, trouble: Trouble, seed: u64| {
            let (kernel, algorithm, ranks) = (&kernel, self.algorithm, self.ranks);
            let stage = Stage { kernel, algorithm, ranks, halfway, queued: seed / 2 % 2 == 1 };
            stage.play(trouble, seed, options)
        };
        let known = Known::of(&mutant.name, self.ranks);
        let seeds = if known.is_some() { seeds.of_survivors } else { seeds.of_others };
        let edit = mutant.edits.first();
        let mut verdict = MutantResult {
            name: mutant.name.clone(),
            ranks: self.ranks,
            line: edit.map_or(0, |edit| self.entry.number(edit.at)),
            before: edit.map_or(String::new(), |edit| tidy(&self.entry.lines[edit.at..=edit.at])),
            after: edit.map_or(String::new(), |edit| tidy(&edit.with)),
            killed_by: None,
            while_: None,
            seeds,
            reason: known.map(|known| known.reason),
            equivalent: known.is_some_and(|known| known.why == SurvivalReason::Equivalent),
            story: String::new(),
        };
        let mut dies = |failure: RunFailure, while_, seed| {
            verdict.killed_by = Some(failure.name().to_owned());
            verdict.while_ = Some(while_);
            verdict.seeds = seed;
            verdict.story = failure.to_string();
        };
        'played: for (played, seed) in order(seeds, self.troubled) {
            if played == Played::CallsInARow {
                if let Err(failure) = kernels.play(seed, options)? {
                    dies(failure, "calls in a row", seed);
                    break;
                }
                continue;
            }
            for trouble in Trouble::of(self.algorithm).filter(|trouble| trouble.is_played(seed)) {
                if let Err(failure) = play(None, trouble, seed) {
                    dies(failure, trouble.name(), seed);
                    break 'played;
                }
            }
            if halfway.is_none() {
                halfway = Some(self.halfway(mutant)?);
            }
            for halfway in halfway.iter().flatten() {
                for trouble in Trouble::of(self.algorithm).filter(|trouble| !trouble.is_by_launch()) {
                    if let Err(failure) = play(Some(halfway), trouble, seed) {
                        dies(failure, trouble.name(), seed);
                        break 'played;
                    }
                }
            }
        }
        Ok(verdict)
    }
}

/// What is played of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Played {
    CallsInARow,
    Troubles,
}

/// The seeds in the order in which they are played. Calls that cannot end well take some [`AHEAD`] times as long as calls in a
/// row, so as many seeds of these go first: whoever dies late of the ones does not wait for the others.
fn order(seeds: u64, troubled: bool) -> impl Iterator<Item = (Played, u64)> {
    let last = move |round: u64| (1 + round * AHEAD).min(seeds);
    (0..seeds).flat_map(move |round| {
        let first = if round == 0 { 1 } else { last(round - 1) + 1 };
        let calls = (first..=last(round)).map(|seed| (Played::CallsInARow, seed));
        calls.chain(troubled.then_some((Played::Troubles, round + 1)))
    })
}

fn tidy(lines: &[String]) -> String {
    let lines: Vec<String> =
        lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.join(" ")
}

/// On how many seeds mutants are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    /// Those of which it is known that they do not die, which none of these ends.
    pub of_survivors: u64,
    /// The others, which must die within these.
    pub of_others: u64,
}

impl From<u64> for Seeds {
    fn from(seeds: u64) -> Self {
        Self { of_survivors: seeds, of_others: seeds }
    }
}

/// Judges all mutants of all sets whose names contain `filter`, on all cores; in order.
///
/// # Errors
/// If one is no PTX.
pub fn judge_all(
    sets: &[Set],
    filter: &str,
    seeds: Seeds,
    done: impl Fn(&MutantResult) + Sync,
) -> Result<Vec<MutantResult>> {
    let work: Vec<(&Set, &Mutant)> = sets
        .iter()
        .flat_map(|set| set.mutants.iter().map(move |mutant| (set, mutant)))
        .filter(|(_, mutant)| mutant.name.contains(filter))
        .collect();
    let next = AtomicUsize::new(0);
    let verdicts: Mutex<Vec<(usize, Result<MutantResult>)>> = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((set, mutant)) = work.get(next.load(Ordering::Relaxed)).and_then(|_| {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    work.get(at).map(|&(set, mutant)| ((set, at), mutant))
                }) {
                    let (set, at) = set;
                    let verdict = set.judge(mutant, seeds);
                    if let Ok(verdict) = &verdict {
                        done(verdict);
                    }
                    verdicts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((at, verdict));
                }
            });
        }
    });
    let mut verdicts = verdicts.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    verdicts.sort_by_key(|(at, _)| *at);
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

/// How many mutants there were.
pub fn count(sets: &[Set], filter: &str) -> usize {
    sets.iter().flat_map(|set| &set.mutants).filter(|mutant| mutant.name.contains(filter)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(seeds: u64, troubled: bool) -> Vec<(Played, u64)> {
        order(seeds, troubled).collect()
    }

    #[test]
    fn every_seed_of_either_kind_is_played_once_and_in_order() {
        for seeds in [1, 2, AHEAD, AHEAD + 1, AHEAD + 2, 400] {
            let all = played(seeds, true);
            for kind in [Played::CallsInARow, Played::Troubles] {
                let of_kind: Vec<u64> =
                    all.iter().filter(|(played, _)| *played == kind).map(|(_, seed)| *seed).collect();
                assert_eq!(of_kind, (1..=seeds).collect::<Vec<_>>(), "{kind:?} of {seeds}");
            }
            assert_eq!(all[0], (Played::CallsInARow, 1));
            assert_eq!(all[1], (Played::Troubles, 1));
            assert!(played(seeds, false).iter().all(|(played, _)| *played == Played::CallsInARow));
        }
    }

    #[test]
    fn calls_in_a_row_are_ahead_of_calls_that_cannot_end_well() {
        let all = played(400, true);
        let place = |wanted| all.iter().position(|played| *played == wanted).unwrap();
        let before = all[..place((Played::CallsInARow, 375))].iter();
        let troubles = before.filter(|(played, _)| *played == Played::Troubles).count() as u64;
        assert!(troubles <= 375 / AHEAD + 1, "{troubles}");
    }
}
