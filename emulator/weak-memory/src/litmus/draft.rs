//! A test in the making: its lines, one after the other, and what is too much to enumerate.

use super::condition::Condition;
use super::error::LitmusErrorKind as Kind;
use super::instruction::{Names, instruction};
use super::outcome::Observable;
use super::program::{Expectation, Home, Litmus, Location, Op, Participants, Thread, Width};
use super::scalars::scalars;
use super::text::{is_name, keyword, number};
use super::together;
use super::unroll::unroll;

/// Threads of a test, at most.
const THREADS: usize = 4;
/// Locations of a test, at most.
const LOCATIONS: usize = 8;
/// Instructions of a thread, at most.
const INSTRUCTIONS: usize = 32;
/// Loads, stores and atomics of a test, at most.
const ACCESSES: usize = 32;
/// Memory operations, fences and barriers of a test, at most: events of a candidate execution.
const EVENTS: usize = super::relation::MAX_EVENTS;
/// Stores and atomics to one location, at most: their orders are enumerated.
const WRITES: usize = 6;
/// `fence.sc` of a test, at most: their orders are enumerated.
const FENCES: usize = 6;
/// Ways to say which write each read reads from, times the orders of the writes to each location, at most: few of them
/// are looked at where threads compare and branch.
const EXECUTIONS: u64 = 1 << 25;

/// A test in the making.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) line: u32,
    pub(super) locations: Vec<Location>,
    pub(super) threads: Vec<Thread>,
    /// Branches of the thread in the making, whose labels may be still to come: instruction and label.
    pub(super) branches: Vec<(usize, String)>,
    pub(super) condition: Option<Condition>,
    pub(super) racy: Option<bool>,
    pub(super) terminates: Option<bool>,
    /// Barriers without a count are for whoever names them.
    pub(super) named_barriers: bool,
}

impl Draft {
    /// Takes a line of the test. The verdict, which is the last one, is returned.
    pub(super) fn line_of(
        &mut self,
        line: u32,
        content: &str,
    ) -> Result<Option<(Expectation, String)>, Kind> {
        let after = |word: &str| content.strip_prefix(word).and_then(|rest| rest.strip_prefix(':'));
        for (word, verdict) in [("allowed", Expectation::Allowed), ("forbidden", Expectation::Forbidden)] {
            if let Some(reason) = after(word) {
                return Ok(Some((verdict, reason.trim().to_owned())));
            }
        }
        let claims = [("racy", true), ("race-free", false), ("terminates", true), ("may-hang", false)];
        if self.condition.is_some() {
            let Some((word, claim)) = claims.into_iter().find(|(word, _)| after(word).is_some()) else {
                let expected = "`allowed: REASON` or `forbidden: REASON`";
                return Err(Kind::Expected { expected, found: content.to_owned() });
            };
            let (to, what) = match word.starts_with("rac") {
                true => (&mut self.racy, "verdict about data races"),
                false => (&mut self.terminates, "verdict about its end"),
            };
            return match to.replace(claim) {
                None => Ok(None),
                Some(_) => Err(Kind::Twice { what, name: word.to_owned() }),
            };
        }
        if let Some(rest) = keyword(content, "location") {
            self.location(rest)?;
        } else if let Some(rest) = keyword(content, "alias") {
            self.alias(rest)?;
        } else if let Some(rest) = keyword(content, "thread") {
            self.resolve_branches()?;
            self.thread(rest)?;
        } else if let Some(rest) = keyword(content, "exists") {
            self.resolve_branches()?;
            let resolve = |name: &str| self.observable(name);
            self.condition = Some(Condition::parse(rest, &resolve)?);
        } else {
            self.instruction(line, content)?;
        }
        Ok(None)
    }

    /// `x = 0`, `x: b64 = 0`, `x: v2.b32 = 0`, `x = 0, device 1`, `x = 0, device 1, block 2`.
    fn location(&mut self, text: &str) -> Result<(), Kind> {
        let expected = || Kind::Expected {
            expected: "`location NAME[: [v2.|v4.]b8|b16|b32|b64] = VALUE[, device N[, block B]]`",
            found: format!("location {text}"),
        };
        self.is_early(text)?;
        let (name, value) = text.split_once('=').ok_or_else(expected)?;
        let (name, ty) = name.split_once(':').unwrap_or((name, "b32"));
        let (name, ty) = (name.trim(), ty.trim());
        let (scalars, ty) = match ty.split_once('.') {
            None => (1, ty),
            Some(("v2", ty)) => (2, ty),
            Some(("v4", ty)) => (4, ty),
            Some(_) => return Err(expected()),
        };
        let width = match ty {
            "b8" => Width::B8,
            "b16" => Width::B16,
            "b32" => Width::B32,
            "b64" => Width::B64,
            _ => return Err(expected()),
        };
        let mut place = value.split(',').map(str::trim);
        let initial = number(place.next().unwrap_or(""))?;
        let mut part = |word| match place.next() {
            None => Ok(None),
            Some(text) => {
                let digits = keyword(text, word).ok_or_else(expected)?;
                digits.parse().map(Some).map_err(|_| Kind::Number(digits.to_owned()))
            }
        };
        let (device, block) = (part("device")?.unwrap_or(0), part("block")?);
        if width.cut(initial) != initial {
            return Err(Kind::Number(initial.to_string()));
        }
        if !is_name(name) || place.next().is_some() || block.is_some() && initial != 0 {
            return Err(expected());
        }
        let first = self.locations.len();
        for scalar in 0..scalars {
            let offset = scalar * width.bits() / 8;
            let (name, home) = match (offset, block) {
                (0, None) => (name.to_owned(), Home::Global),
                (0, Some(block)) => (name.to_owned(), Home::Shared { block }),
                _ => (format!("{name}+{offset}"), Home::Behind { first, offset }),
            };
            self.add_location(Location { name, width, initial, device, home })?;
        }
        Ok(())
    }

    /// `y = x`: another address of x.
    fn alias(&mut self, text: &str) -> Result<(), Kind> {
        self.is_early(text)?;
        let names = text.split_once('=').map(|(name, of)| (name.trim(), of.trim()));
        let (name, of) = names.filter(|(name, _)| is_name(name)).ok_or_else(|| Kind::Expected {
            expected: "`alias NAME = LOCATION`",
            found: format!("alias {text}"),
        })?;
        self.add_alias(name, of)
    }

    /// Adds another address of a location.
    pub(super) fn add_alias(&mut self, name: &str, of: &str) -> Result<(), Kind> {
        let known = self.locations.iter().position(|known| known.name == of);
        let known = known.ok_or_else(|| Kind::Unknown { what: "location", name: of.to_owned() })?;
        let of = match self.locations[known].home {
            Home::Alias { of } => of,
            _ => known,
        };
        let home = Home::Alias { of };
        self.add_location(Location { name: name.to_owned(), home, ..self.locations[of].clone() })
    }

    pub(super) fn add_location(&mut self, location: Location) -> Result<(), Kind> {
        if self.locations.iter().any(|known| known.name == location.name) {
            return Err(Kind::Twice { what: "location", name: location.name });
        }
        self.locations.push(location);
        limit("locations", self.locations.len(), LOCATIONS)
    }

    fn is_early(&self, text: &str) -> Result<(), Kind> {
        match self.threads.is_empty() {
            true => Ok(()),
            false => Err(Kind::Expected { expected: "locations before threads", found: text.to_owned() }),
        }
    }

    /// `0: device 0, block 0`.
    pub(super) fn thread(&mut self, text: &str) -> Result<(), Kind> {
        let index = self.threads.len();
        let place = text.split_once(':').and_then(|(number, place)| {
            let (device, block) = place.split_once(',')?;
            let device = keyword(device.trim(), "device")?.parse().ok()?;
            let block = keyword(block.trim(), "block")?.parse().ok()?;
            (number.trim().parse() == Ok(index)).then_some((device, block))
        });
        let (device, block) = place.ok_or_else(|| Kind::Expected {
            expected: "`thread N: device D, block B`, N counting from 0",
            found: format!("thread {text}"),
        })?;
        self.threads.push(Thread {
            device,
            block,
            registers: Vec::new(),
            predicates: Vec::new(),
            code: Vec::new(),
            source: Vec::new(),
            labels: Vec::new(),
        });
        limit("threads", self.threads.len(), THREADS)
    }

    pub(super) fn instruction(&mut self, line: u32, content: &str) -> Result<(), Kind> {
        let Some(thread) = self.threads.last_mut() else {
            return Err(Kind::Expected {
                expected: "`location`, `alias`, `thread`, `exists`, `allowed:` or `forbidden:`",
                found: content.to_owned(),
            });
        };
        if let Some(label) = content.strip_suffix(':').map(str::trim_end).filter(|label| is_name(label)) {
            if thread.labels.iter().any(|(known, _)| known == label) {
                return Err(Kind::Twice { what: "label", name: label.to_owned() });
            }
            thread.labels.push((label.to_owned(), thread.source.len()));
            return Ok(());
        }
        let text = content.strip_suffix(';').map(str::trim_end).ok_or_else(|| Kind::Expected {
            expected: "an instruction that ends in `;`, or a label that ends in `:`",
            found: content.to_owned(),
        })?;
        let mut names = Names { locations: &self.locations, thread, named_barriers: self.named_barriers };
        let (instruction, label) = instruction(line, text, &mut names)?;
        if let Some(label) = label {
            self.branches.push((thread.source.len(), label));
        }
        thread.source.push(instruction);
        limit("instructions of a thread", thread.source.len(), INSTRUCTIONS)
    }

    /// Gives the branches of the thread that ends here their targets.
    pub(super) fn resolve_branches(&mut self) -> Result<(), Kind> {
        let Some(thread) = self.threads.last_mut() else { return Ok(()) };
        for (from, label) in self.branches.drain(..) {
            let found = thread.labels.iter().find(|(name, _)| *name == label);
            let Some(&(_, target)) = found else {
                return Err(Kind::Unknown { what: "label", name: label });
            };
            thread.source[from].op = Op::Branch { target };
        }
        Ok(())
    }

    /// `1:%r0` or a location's name.
    pub(super) fn observable(&self, name: &str) -> Option<Observable> {
        match name.split_once(':') {
            None => self.locations.iter().position(|known| known.name == name).map(Observable::Location),
            Some((thread, register)) => {
                let thread: usize = thread.parse().ok()?;
                let registers = &self.threads.get(thread)?.registers;
                let register = registers.iter().position(|known| known.name == register)?;
                Some(Observable::Register { thread, register })
            }
        }
    }

    pub(super) fn finish(
        mut self,
        verdict: Expectation,
        reason: String,
        rounds: usize,
    ) -> Result<Litmus, Kind> {
        let missing = |part| Kind::Missing { test: self.name.clone(), part };
        if reason.is_empty() {
            return Err(missing("reason for its verdict"));
        }
        if self.threads.is_empty() {
            return Err(missing("thread"));
        }
        let condition = self.condition.take().ok_or_else(|| missing("`exists` line"))?;
        together::check(&self.threads)?;
        for thread in &mut self.threads {
            thread.code = scalars(unroll(&thread.source, rounds));
        }
        self.check_size()?;
        let participants = if self.named_barriers { Participants::Named } else { Participants::Block };
        let Self { name, line, locations, threads, racy, terminates, .. } = self;
        Ok(Litmus {
            name,
            line,
            locations,
            threads,
            condition,
            participants,
            verdict,
            reason,
            racy,
            terminates,
        })
    }

    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.threads.iter().flat_map(|thread| &thread.code).map(|instruction| &instruction.op)
    }

    fn check_size(&self) -> Result<(), Kind> {
        limit(
            "loads, stores and atomics",
            self.ops().filter(|op| op.location().is_some()).count(),
            ACCESSES,
        )?;
        // An atomic is two events.
        let events = |op: &Op| match op {
            Op::Fence(_) | Op::ProxyFence(_) | Op::Barrier { .. } | Op::WarpBarrier { .. } => 1,
            op => usize::from(op.reads()) + usize::from(op.writes()),
        };
        limit("events", self.ops().map(events).sum(), EVENTS)?;
        let sequential = |op: &&Op| matches!(op, Op::Fence(fence) if fence.sequential);
        limit("fence.sc", self.ops().filter(sequential).count(), FENCES)?;
        let memory = |op: &Op| {
            op.location().map(|address| match self.locations[address].home {
                Home::Alias { of } => of,
                _ => address,
            })
        };
        let writes = |location| self.ops().filter(|op| op.writes() && memory(op) == Some(location)).count();
        let mut executions = 1_u64;
        for location in 0..self.locations.len() {
            limit("writes to a location", writes(location), WRITES)?;
            let orders: u64 = (1..=writes(location) as u64).product();
            executions = executions.saturating_mul(orders);
        }
        for location in self.ops().filter(|op| op.reads()).filter_map(memory) {
            executions = executions.saturating_mul(1 + writes(location) as u64);
        }
        if executions > EXECUTIONS {
            let what = "ways to choose what reads read from and how writes are ordered";
            return Err(Kind::TooLarge { what, found: executions, limit: EXECUTIONS });
        }
        Ok(())
    }
}

fn limit(what: &'static str, found: usize, limit: usize) -> Result<(), Kind> {
    if found <= limit {
        return Ok(());
    }
    Err(Kind::TooLarge { what, found: found as u64, limit: limit as u64 })
}
