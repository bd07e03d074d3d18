//! A litmus test on the adversary executor, and all judges side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::enumerate::{Allowed, explore};
use super::interleave::interleave;
use super::kernel::{DeviceKernel, KernelError, addressed, kernels};
use super::outcome::Outcome;
use super::program::{Expectation, Home, Litmus, Location, Op, Width};
use crate::adversary::{Options, Report, ReportKind, Session};
use meshreduce_emulator_ptx::Launch;

/// Runs a test once on the adversary executor. Data races do not stop it: tests of races are what this is for.
///
/// `kernels` are those of [`kernels`](super::kernels) for this test.
///
/// # Errors
///
/// The executor's [`Report`] if it stopped all the same.
pub fn execute(litmus: &Litmus, kernels: &[DeviceKernel], seed: u64) -> Result<Outcome, Box<Report>> {
    run(litmus, kernels, seed, Races::Ignored)
}

/// What becomes of a run with a data race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Races {
    /// It goes on, with what the axioms leave to it.
    Ignored,
    /// It ends with a report.
    Reported,
}

/// Runs a test once on the adversary executor.
pub(super) fn run(
    litmus: &Litmus,
    kernels: &[DeviceKernel],
    seed: u64,
    races: Races,
) -> Result<Outcome, Box<Report>> {
    let detect_races = races == Races::Reported;
    let mut session = Session::new(Options { seed, detect_races, ..Options::default() });
    let named = litmus.threads.iter().map(|t| t.device).chain(litmus.locations.iter().map(|l| l.device));
    let devices: BTreeSet<u32> = named.collect();
    let devices: BTreeMap<u32, _> = devices.into_iter().map(|device| (device, session.device())).collect();
    // By location: its address, if it has one that the host knows.
    let mut locations: Vec<Option<u64>> = Vec::new();
    for location in &litmus.locations {
        let address = match location.home {
            Home::Global => Some(session.allocate(devices[&location.device], VECTOR)),
            Home::Shared { .. } => None,
            Home::Behind { first, offset } => locations[first].map(|address| address + u64::from(offset)),
            Home::Alias { of } => locations[of].map(|address| session.alias(address, 8)),
        };
        if let Some(address) = address {
            session.write(address, &location.initial.to_le_bytes()[..bytes(location.width)]);
        }
        locations.push(address);
    }
    let mut results = Vec::new();
    for kernel in kernels {
        let device = devices[&kernel.device];
        let address = session.allocate(device, kernel.result_bytes.max(8) as u64);
        let addresses = addressed(litmus).filter_map(|at| locations[at]).chain([address]);
        let params: Vec<u8> = addresses.flat_map(|address| address.to_le_bytes()).collect();
        let launch = Launch {
            kernel: kernel.kernel.clone(),
            grid: [kernel.blocks, 1, 1],
            block: [kernel.threads, 1, 1],
            params: params.into(),
            dynamic_shared: 0,
        };
        session.launch(device, launch);
        results.push(address);
    }
    session.run().map_err(Box::new)?;

    let mut outcome = Outcome { registers: vec![Vec::new(); litmus.threads.len()], memory: Vec::new() };
    for (kernel, mut address) in kernels.iter().zip(results) {
        for &member in &kernel.members {
            for register in &litmus.threads[member].registers {
                outcome.registers[member].push(read(&session, address, register.width));
                address += 8;
            }
        }
    }
    let memory = litmus.locations.iter().zip(&locations);
    let value = |(location, address): (&Location, &Option<u64>)| {
        address.map_or(0, |address| read(&session, address, location.width))
    };
    outcome.memory = memory.map(value).collect();
    Ok(outcome)
}

/// Bytes of the longest vector.
const VECTOR: u64 = 32;

fn bytes(width: Width) -> usize {
    width.bits() as usize / 8
}

fn read(session: &Session, address: u64, width: Width) -> u64 {
    let mut value = [0; 8];
    value[..bytes(width)].copy_from_slice(&session.read(address, bytes(width)));
    u64::from_le_bytes(value)
}

/// What all judges say of a test.
#[derive(Debug)]
pub struct Judgement {
    /// What the axioms allow.
    pub allowed: Allowed,
    /// Those of its outcomes that sequential consistency does not have.
    pub weak: BTreeSet<Outcome>,
    /// Whether the condition holds in an allowed outcome.
    pub possible: bool,
    /// Why the executor was not asked, if it was not.
    pub unfit: Option<KernelError>,
    /// The outcomes that the executor had, each with the first seed that gave it.
    pub seen: BTreeMap<Outcome, u64>,
    /// The first seed in which the executor reports a data race, where data races are reported.
    pub race: Option<u64>,
    /// Runs that the executor did not finish: the seed and what it said.
    pub stopped: Vec<(u64, String)>,
    /// Runs of them that would never have ended, where some execution does not.
    pub hung: Vec<u64>,
}

impl Judgement {
    /// Whether the stated verdicts are the enumerator's. Who only asks has stated none about the condition.
    pub fn verdict_holds(&self, litmus: &Litmus) -> bool {
        let condition = match litmus.verdict {
            Expectation::Allowed => self.possible,
            Expectation::Forbidden => !self.possible,
            Expectation::Asked(_) => true,
        };
        condition
            && litmus.racy.is_none_or(|racy| racy == self.allowed.racy)
            && (litmus.terminates.is_none() || litmus.terminates == self.allowed.terminates())
    }

    /// The outcomes that the executor had and the axioms do not allow. Where a loop that stores goes round more often
    /// than is looked at, nothing is known of those.
    pub fn excess(&self) -> impl Iterator<Item = (&Outcome, u64)> {
        let known = |outcome: &Outcome| self.allowed.unbounded || self.allowed.outcomes.contains(outcome);
        let excess = self.seen.iter().filter(move |(outcome, _)| !known(outcome));
        excess.map(|(outcome, &seed)| (outcome, seed))
    }

    /// The first seed that gave an outcome in which the condition of `litmus`, the test, holds.
    pub fn reached(&self, litmus: &Litmus) -> Option<u64> {
        let reached = self.seen.iter().filter(|(outcome, _)| litmus.condition.holds(outcome));
        reached.map(|(_, &seed)| seed).min()
    }

    /// How many of the weak outcomes the executor had.
    pub fn weak_seen(&self) -> usize {
        self.weak.iter().filter(|outcome| self.seen.contains_key(outcome)).count()
    }

    /// Whether all judges agree.
    pub fn holds(&self, litmus: &Litmus) -> bool {
        self.verdict_holds(litmus)
            && self.stopped.is_empty()
            && self.excess().next().is_none()
            && self.false_race().is_none()
    }

    /// The first seed of a data race that no execution has.
    pub fn false_race(&self) -> Option<u64> {
        self.race.filter(|_| !self.allowed.racy)
    }
}

/// Has all judges look at a test; the executor with each of `seeds`, through data races and once more stopping at them.
pub fn judge(litmus: &Litmus, seeds: Range<u64>) -> Judgement {
    let allowed = explore(litmus);
    let weak = allowed.outcomes.difference(&interleave(litmus)).cloned().collect();
    let possible = allowed.outcomes.iter().any(|outcome| litmus.condition.holds(outcome));
    let mut judgement = Judgement {
        allowed,
        weak,
        possible,
        unfit: None,
        seen: BTreeMap::new(),
        race: None,
        stopped: Vec::new(),
        hung: Vec::new(),
    };
    let kernels = match kernels(litmus) {
        Ok(kernels) => kernels,
        Err(error) => {
            judgement.unfit = Some(error);
            return judgement;
        }
    };
    // Loads of `ld.global.nc` are outside the model.
    let ops = litmus.threads.iter().flat_map(|thread| &thread.code).map(|instruction| &instruction.op);
    let outside = ops.clone().any(|op| matches!(op, Op::Load { noncoherent: true, .. }));
    for seed in seeds {
        match execute(litmus, &kernels, seed) {
            Ok(outcome) => {
                judgement.seen.entry(outcome).or_insert(seed);
            }
            Err(report) if endless(&report) && judgement.allowed.terminates() != Some(true) => {
                judgement.hung.push(seed);
                continue;
            }
            Err(report) => {
                judgement.stopped.push((seed, format!("{}: {}", report.kind.name(), report.story)))
            }
        }
        if judgement.race.is_none() && !outside {
            let stopped = run(litmus, &kernels, seed, Races::Reported).err();
            judgement.race = stopped.filter(|report| report.kind == ReportKind::DataRace).map(|_| seed);
        }
    }
    judgement
}

/// Whether a report is of a wait that does not end.
fn endless(report: &Report) -> bool {
    let kinds = [
        ReportKind::Starvation,
        ReportKind::BarrierDivergence,
        ReportKind::BarrierCount,
        ReportKind::EpochOverwritten,
        ReportKind::TooLong,
    ];
    kinds.contains(&report.kind)
}
