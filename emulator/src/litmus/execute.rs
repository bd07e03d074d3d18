//! A litmus test on the adversary executor, and all judges side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::enumerate::{Outcome, enumerate};
use super::interleave::interleave;
use super::kernel::{DeviceKernel, kernels};
use super::program::{Litmus, Verdict, Width};
use crate::exec::Launch;
use crate::exec::adversary::{Options, Report, Session};
use crate::ptx::PtxError;

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
    let mut locations = Vec::new();
    for location in &litmus.locations {
        let address = session.allocate(devices[&location.device], 8);
        session.write(address, &location.initial.to_le_bytes()[..bytes(location.width)]);
        locations.push(address);
    }
    let mut results = Vec::new();
    for kernel in kernels {
        let device = devices[&kernel.device];
        let address = session.allocate(device, kernel.result_bytes.max(8) as u64);
        let addresses = locations.iter().chain([&address]);
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
    outcome.memory = memory.map(|(location, &address)| read(&session, address, location.width)).collect();
    Ok(outcome)
}

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
    /// The outcomes that the axioms allow.
    pub allowed: BTreeSet<Outcome>,
    /// Those of them that sequential consistency does not have.
    pub weak: BTreeSet<Outcome>,
    /// Whether the condition holds in an allowed outcome.
    pub possible: bool,
    /// The outcomes that the executor had, each with the first seed that gave it.
    pub seen: BTreeMap<Outcome, u64>,
    /// Runs that the executor did not finish: the seed and what it said.
    pub stopped: Vec<(u64, String)>,
}

impl Judgement {
    /// Whether the stated verdict is the enumerator's.
    pub fn verdict_holds(&self, litmus: &Litmus) -> bool {
        self.possible == (litmus.verdict == Verdict::Allowed)
    }

    /// The outcomes that the executor had and the axioms do not allow.
    pub fn excess(&self) -> impl Iterator<Item = (&Outcome, u64)> {
        let excess = self.seen.iter().filter(|(outcome, _)| !self.allowed.contains(outcome));
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
        self.verdict_holds(litmus) && self.stopped.is_empty() && self.excess().next().is_none()
    }
}

/// Has all judges look at a test; the executor with each of `seeds`.
///
/// # Errors
///
/// [`PtxError`] if the PTX front end refuses the test.
pub fn judge(litmus: &Litmus, seeds: Range<u64>) -> Result<Judgement, PtxError> {
    let kernels = kernels(litmus)?;
    let allowed = enumerate(litmus);
    let weak = allowed.difference(&interleave(litmus)).cloned().collect();
    let possible = allowed.iter().any(|outcome| litmus.condition.holds(outcome));
    let mut judgement = Judgement { allowed, weak, possible, seen: BTreeMap::new(), stopped: Vec::new() };
    for seed in seeds {
        match execute(litmus, &kernels, seed) {
            Ok(outcome) => {
                judgement.seen.entry(outcome).or_insert(seed);
            }
            Err(report) => {
                judgement.stopped.push((seed, format!("{}: {}", report.kind.name(), report.story)))
            }
        }
    }
    Ok(judgement)
}
