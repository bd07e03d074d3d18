//! Random litmus programs, and the judges on them.
//!
//! A program is a text in the format of litmus tests, so that one which fails can be kept as a test. Its condition says
//! nothing: what is compared are all outcomes.

use std::fmt::Write as _;
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::enumerate::{Allowed, explore};
use super::execute::{Races, run};
use super::kernel::kernels;
use super::parse::parse;
use super::program::{Litmus, Op};
use crate::adversary::ReportKind;

/// Ways to say which write each read reads from, at most: what the enumerator goes through.
const SOURCES: u64 = 768;
/// Writes to a location, at most.
const WRITES: usize = 4;

/// The random program number `seed`, as a text.
pub fn random(seed: u64) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    loop {
        let text = Draft::new(&mut random, seed).text();
        // Too large for the enumerator, or for patience.
        if parse("random", &text).is_ok_and(|tests| tests.iter().all(is_small)) {
            return text;
        }
    }
}

fn is_small(test: &Litmus) -> bool {
    let ops = || test.threads.iter().flat_map(|thread| &thread.code).map(|instruction| &instruction.op);
    let writes = |at: usize| ops().filter(|op| op.writes() && op.location() == Some(at)).count();
    let sources = ops().filter(|op| op.reads()).filter_map(Op::location).map(|at| 1 + writes(at) as u64);
    let fences = ops().filter(|op| matches!(op, Op::Fence(fence) if fence.sequential)).count();
    sources.product::<u64>() <= SOURCES
        && (0..test.locations.len()).all(|at| writes(at) <= WRITES)
        && fences <= 3
}

/// A program that is being drawn.
struct Draft<'a> {
    random: &'a mut ChaCha8Rng,
    seed: u64,
    /// Width of each location in bits.
    widths: Vec<u32>,
    /// Whether each is two scalars, behind one another.
    vectors: Vec<bool>,
    /// Scopes to draw from.
    scopes: &'static [&'static str],
    /// How many of 16 accesses are weak.
    weak: u32,
    noncoherent: bool,
    registers: u32,
    predicates: u32,
    values: u32,
}

impl<'a> Draft<'a> {
    fn new(random: &'a mut ChaCha8Rng, seed: u64) -> Self {
        let mut draft = Self {
            random,
            seed,
            widths: Vec::new(),
            vectors: Vec::new(),
            scopes: &[],
            weak: 0,
            noncoherent: false,
            registers: 0,
            predicates: 0,
            values: 0,
        };
        let locations = draft.pick(&[1, 2, 2, 2, 2, 3]);
        draft.widths = (0..locations).map(|_| draft.pick(&[32, 32, 32, 64])).collect();
        draft.vectors = (0..locations).map(|at| draft.widths[at] == 32 && draft.chance(3)).collect();
        let scopes: [&[&str]; 4] = [&["sys"], &["gpu", "sys"], &["cta", "gpu", "sys"], &["gpu"]];
        draft.scopes = draft.pick(&scopes);
        draft.weak = draft.pick(&[0, 2, 5, 9]);
        draft.noncoherent = draft.chance(1);
        draft
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.next_u32() as usize % of.len()]
    }

    fn chance(&mut self, of_16: u32) -> bool {
        self.random.next_u32() % 16 < of_16
    }

    fn text(mut self) -> String {
        let mut text = format!("test random-{}\n", self.seed);
        for at in 0..self.widths.len() {
            let (name, width, device) = (name(at), self.widths[at], self.pick(&[0, 0, 1]));
            let vector = if self.vectors[at] { "v2." } else { "" };
            let _ = writeln!(text, "location {name}: {vector}b{width} = 0, device {device}");
        }
        let threads = self.pick(&[2, 2, 2, 3, 3, 4]);
        let devices = self.pick(&[1, 2]);
        let places: Vec<(u32, u32)> =
            (0..threads).map(|_| (self.random.next_u32() % devices, self.pick(&[0, 0, 1, 2]))).collect();
        let barriers = self.pick(&[0, 0, 0, 1]);
        for (number, &(device, block)) in places.iter().enumerate() {
            let _ = writeln!(text, "thread {number}: device {device}, block {block}");
            (self.registers, self.predicates) = (0, 0);
            let most = [0, 0, 4, 3, 2][threads];
            let accesses = 1 + self.random.next_u32() % most;
            let shared = places.iter().filter(|place| **place == (device, block)).count() > 1;
            let barrier = (shared && barriers > 0).then(|| self.random.next_u32() % (accesses + 1));
            for at in 0..=accesses {
                if barrier == Some(at) {
                    text += "    bar.sync 0;\n";
                }
                if self.chance(2) {
                    let _ = writeln!(text, "    {};", self.fence());
                }
                if at < accesses {
                    self.access(&mut text);
                }
            }
        }
        text + "exists x == 0 || x != 0\nallowed: it is asked, not stated\n"
    }

    fn fence(&mut self) -> String {
        format!("fence.{}.{}", self.pick(&["sc", "acq_rel", "acq_rel", "acquire", "release"]), self.scope())
    }

    fn scope(&mut self) -> &'static str {
        self.pick(self.scopes)
    }

    /// Ordering and scope with their dots.
    fn order(&mut self, orders: &[&str]) -> String {
        format!(".{}.{}", self.pick(orders), self.scope())
    }

    fn access(&mut self, text: &mut String) {
        let at = self.random.next_u32() as usize % self.widths.len();
        let (mut x, bits) = (name(at).to_owned(), self.widths[at]);
        let whole = self.vectors[at] && self.chance(8);
        if self.vectors[at] && !whole && self.chance(8) {
            x += "+4";
        }
        let guard = self.guard(text);
        let line = match self.random.next_u32() % 16 {
            0..6 => {
                let order = match self.random.next_u32() % 16 {
                    n if n < self.weak => String::new(),
                    15 => ".volatile".to_owned(),
                    _ => self.order(&["relaxed", "acquire"]),
                };
                let nc = if self.noncoherent && order.is_empty() { ".nc" } else { "" };
                match whole {
                    true => {
                        let (first, second) = (self.register(bits), self.register(bits));
                        format!("ld{order}.global{nc}.v2.u{bits} {{{first}, {second}}}, [{x}]")
                    }
                    false => format!("ld{order}.global{nc}.u{bits} {}, [{x}]", self.register(bits)),
                }
            }
            6..12 => {
                let order = match self.random.next_u32() % 16 {
                    n if n < self.weak => String::new(),
                    15 => ".volatile".to_owned(),
                    _ => self.order(&["relaxed", "release"]),
                };
                let value = self.value(text, bits);
                match whole {
                    true => {
                        format!("st{order}.global.v2.u{bits} [{x}], {{{value}, {}}}", self.value(text, bits))
                    }
                    false => format!("st{order}.global.u{bits} [{x}], {value}"),
                }
            }
            12 => {
                let order = self.order(&["relaxed", "relaxed", "release"]);
                format!("red{order}.global.add.u{bits} [{x}], {}", self.value(text, bits))
            }
            _ => {
                let order = self.order(&["relaxed", "relaxed", "acquire", "release", "acq_rel"]);
                let value = self.value(text, bits);
                let (operation, ty, expected) = match self.random.next_u32() % 8 {
                    0 if bits == 32 => ("inc", 'u', String::new()),
                    1 if bits == 32 => ("dec", 'u', String::new()),
                    2 => ("max", 's', String::new()),
                    0..4 => ("add", 'u', String::new()),
                    4 | 5 => ("exch", 'b', String::new()),
                    _ => ("cas", 'b', format!(" {},", self.random.next_u32() % 3)),
                };
                let d = self.register(bits);
                format!("atom{order}.global.{operation}.{ty}{bits} {d}, [{x}],{expected} {value}")
            }
        };
        let _ = writeln!(text, "    {guard}{line};");
    }

    /// A new register.
    fn register(&mut self, bits: u32) -> String {
        self.registers += 1;
        format!("{}{}", if bits == 64 { "%rd" } else { "%r" }, self.registers - 1)
    }

    /// A register that has been loaded before, if there is one of this width in `text`, which ends with the thread.
    fn loaded(&mut self, text: &str, bits: u32) -> Option<String> {
        let thread = text.rfind("thread").map_or("", |at| &text[at..]);
        let prefix = if bits == 64 { "%rd" } else { "%r" };
        let registers: Vec<String> = (0..self.registers)
            .map(|number| format!("{prefix}{number}"))
            .filter(|r| thread.contains(r))
            .collect();
        (!registers.is_empty()).then(|| registers[self.random.next_u32() as usize % registers.len()].clone())
    }

    /// A constant, or what depends on a load.
    fn value(&mut self, text: &mut String, bits: u32) -> String {
        self.values += 1;
        let constant = self.values;
        match self.loaded(text, bits).filter(|_| self.chance(4)) {
            None => constant.to_string(),
            Some(register) if self.chance(6) => register,
            Some(register) => {
                let d = self.register(bits);
                match self.chance(8) {
                    true => {
                        let _ = writeln!(text, "    add.u{bits} {d}, {register}, {constant};");
                    }
                    false => {
                        let _ = writeln!(text, "    xor.b{bits} {d}, {register}, {register};");
                        let _ = writeln!(text, "    add.u{bits} {d}, {d}, {constant};");
                    }
                }
                d
            }
        }
    }

    /// Mostly nothing; else the guard of an instruction, which depends on a load.
    fn guard(&mut self, text: &mut String) -> String {
        let Some(register) = self.loaded(text, 32).filter(|_| self.chance(2)) else { return String::new() };
        let p = self.predicates;
        self.predicates += 1;
        let (compare, with) = (self.pick(&["eq", "ne"]), self.random.next_u32() % 3);
        let _ = writeln!(text, "    setp.{compare}.u32 %p{p}, {register}, {with};");
        format!("@{}%p{p} ", self.pick(&["", "!"]))
    }
}

fn name(location: usize) -> &'static str {
    ["x", "y", "z"][location]
}

/// What comparing the executor with the axioms on one program gave.
#[derive(Debug)]
pub struct Comparison {
    /// What the axioms allow.
    pub allowed: Allowed,
    /// Different outcomes that the executor had.
    pub seen: usize,
    /// Runs that ended at a data race.
    pub races: u64,
    /// What contradicts: the first seed, and what it did.
    pub wrong: Option<(u64, String)>,
}

/// Runs `test` on the executor with each of `seeds`, once through races and once stopping at them:
///
/// - every outcome must be one that the axioms allow;
/// - a run that stops at a data race is an error if no execution has one;
/// - the outcome of a run that stopped at none must be that of an execution without races.
///
/// Programs with `ld.global.nc` are not asked about races: such loads are outside the model.
///
/// # Panics
///
/// If the PTX front end refuses the program.
pub fn compare(test: &Litmus, seeds: Range<u64>) -> Comparison {
    let kernels = kernels(test).unwrap_or_else(|error| panic!("{}: {error}", test.name));
    let allowed = explore(test);
    let ops = || test.threads.iter().flat_map(|thread| &thread.code).map(|instruction| &instruction.op);
    let outside = ops().any(|op| matches!(op, Op::Load { noncoherent: true, .. }));
    let mut seen = std::collections::BTreeSet::new();
    let (mut races, mut wrong) = (0, None);
    for seed in seeds {
        let mut complain = |what: String| _ = wrong.get_or_insert((seed, what));
        match run(test, &kernels, seed, Races::Ignored) {
            Ok(outcome) if !allowed.outcomes.contains(&outcome) => {
                complain(format!("{}, which no execution has", outcome.describe(test)));
            }
            Ok(outcome) => drop(seen.insert(outcome)),
            Err(report) => complain(format!("stopped: {}", report.story)),
        }
        if outside {
            continue;
        }
        match run(test, &kernels, seed, Races::Reported) {
            Ok(outcome) if !allowed.race_free.contains(&outcome) => {
                complain(format!(
                    "{} without a data race, which every such execution has",
                    outcome.describe(test)
                ));
            }
            Ok(_) => {}
            Err(report) if report.kind == ReportKind::DataRace && allowed.racy => races += 1,
            Err(report) if report.kind == ReportKind::DataRace => {
                complain(format!("a data race, which no execution has: {}", report.story));
            }
            Err(report) => complain(format!("stopped: {}", report.story)),
        }
    }
    Comparison { allowed, seen: seen.len(), races, wrong }
}

/// The program `text` without the lines that it does not need to be wrong over `seeds`.
pub fn shrink(text: &str, seeds: Range<u64>) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let mut at = lines.len();
    while at > 0 {
        at -= 1;
        let mut fewer = lines.clone();
        fewer.remove(at);
        let tests = parse("shrunk", &(fewer.join("\n") + "\n")).unwrap_or_default();
        let fine = |test: &Litmus| kernels(test).is_ok() && compare(test, seeds.clone()).wrong.is_some();
        if tests.first().is_some_and(fine) {
            lines = fewer;
        }
    }
    lines.join("\n") + "\n"
}
