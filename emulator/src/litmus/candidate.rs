//! Candidate executions: who reads from whom, and the values that follow.

use super::machine::{Machine, Stored};
use super::program::{Fence, Litmus, Op, Order, Scope};

/// A memory operation, fence or barrier in the text of a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a> {
    pub(super) thread: usize,
    /// Index of the instruction within the thread.
    pub(super) index: usize,
    pub(super) op: &'a Op,
}

/// The sites of a test, thread by thread, in program order.
pub(super) fn sites(litmus: &Litmus) -> Vec<Site<'_>> {
    let mut sites = Vec::new();
    for (thread, code) in litmus.threads.iter().map(|thread| &thread.code).enumerate() {
        for (index, instruction) in code.iter().enumerate() {
            let op = &instruction.op;
            if op.location().is_some() || matches!(op, Op::Fence(_) | Op::Barrier) {
                sites.push(Site { thread, index, op });
            }
        }
    }
    sites
}

/// An operation of a candidate execution.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) thread: usize,
    /// The location of a memory operation.
    pub(super) location: Option<usize>,
    pub(super) reads: bool,
    pub(super) writes: bool,
    /// `.nc`: outside the model.
    pub(super) outside: bool,
    /// The scope of a strong operation or fence.
    pub(super) strong: Option<Scope>,
    pub(super) acquire: bool,
    pub(super) release: bool,
    /// Fences, not memory operations.
    pub(super) fence: bool,
    /// `fence.sc`.
    pub(super) sequential: bool,
    /// An atomic operation; `red` among them.
    pub(super) atomic: bool,
    /// `red`, whose read makes no acquire pattern.
    pub(super) reduction: bool,
    /// A barrier: the how manieth of its thread.
    pub(super) barrier: Option<usize>,
    /// The write that a read reads from; `None` is the initial value.
    pub(super) source: Option<usize>,
    /// The value that a write leaves.
    pub(super) value: u64,
}

/// The executed operations of all threads with one choice of sources.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) events: Vec<Event>,
    /// Final registers, by thread.
    pub(super) registers: Vec<Vec<u64>>,
}

/// Calls `visit` with every candidate execution.
///
/// Values are computed from their sources on. A choice of sources that leaves a value without origin, because it is
/// needed for its own computation, is no candidate: axiom No-Thin-Air. Candidates in which a read takes its value
/// from a later write of its own thread are left out; axiom Causality excludes them.
pub(super) fn candidates(litmus: &Litmus, visit: &mut impl FnMut(Candidate)) {
    let sites = sites(litmus);
    let reads: Vec<usize> = (0..sites.len()).filter(|&site| sites[site].op.reads()).collect();
    let choices: Vec<Vec<Option<usize>>> = reads.iter().map(|&read| sources(&sites, read)).collect();
    let mut chosen = vec![0; reads.len()];
    loop {
        let mut source = vec![None; sites.len()];
        for ((&read, choices), &choice) in reads.iter().zip(&choices).zip(&chosen) {
            source[read] = choices[choice];
        }
        if let Some(candidate) = compute(litmus, &sites, &source) {
            visit(candidate);
        }
        let Some(next) = (0..reads.len()).find(|&read| chosen[read] + 1 < choices[read].len()) else {
            return;
        };
        chosen[..next].fill(0);
        chosen[next] += 1;
    }
}

/// The sites that `read` may read from; the initial value first.
fn sources(sites: &[Site<'_>], read: usize) -> Vec<Option<usize>> {
    let reader = &sites[read];
    let may = |&write: &usize| {
        let writer = &sites[write];
        writer.op.writes()
            && writer.op.location() == reader.op.location()
            && (writer.thread != reader.thread || writer.index < reader.index)
    };
    std::iter::once(None).chain((0..sites.len()).filter(may).map(Some)).collect()
}

/// Runs the threads again and again, each time with what is known of memory by then, until nothing new comes.
fn compute(litmus: &Litmus, sites: &[Site<'_>], source: &[Option<usize>]) -> Option<Candidate> {
    let mut stored = vec![Stored::Unknown; sites.len()];
    loop {
        let round = run(litmus, sites, source, &stored);
        if round.stored == stored {
            return round.candidate(sites, source);
        }
        stored = round.stored;
    }
}

/// One run of all threads.
struct Round {
    stored: Vec<Stored>,
    executed: Vec<Option<bool>>,
    machines: Vec<Machine>,
}

fn run(litmus: &Litmus, sites: &[Site<'_>], source: &[Option<usize>], known: &[Stored]) -> Round {
    let mut round = Round {
        stored: vec![Stored::Nothing; sites.len()],
        executed: vec![None; sites.len()],
        machines: litmus.threads.iter().map(Machine::new).collect(),
    };
    let mut site = 0;
    for (thread, machine) in litmus.threads.iter().zip(&mut round.machines) {
        while let Some((index, active)) = machine.next(thread) {
            debug_assert_eq!(sites[site].index, index);
            let found = |location: usize| match source[site] {
                None => Some(litmus.locations[location].initial),
                Some(write) => match known[write] {
                    Stored::Value(value) => Some(value),
                    Stored::Unknown | Stored::Nothing => None,
                },
            };
            let stored = match thread.code[index].op {
                Op::Load { location, d, .. } => {
                    machine.set(d, active, found(location));
                    Stored::Nothing
                }
                Op::Store { a, .. } => machine.value(a).map_or(Stored::Unknown, Stored::Value),
                Op::Atomic { location, rmw, d, .. } => {
                    let old = found(location);
                    let stored = machine.modify(rmw, litmus.locations[location].width, old);
                    if let Some(d) = d {
                        machine.set(d, active, old);
                    }
                    stored
                }
                _ => Stored::Nothing,
            };
            round.stored[site] = match (active, stored) {
                (Some(false), _) | (_, Stored::Nothing) => Stored::Nothing,
                (Some(true), stored) => stored,
                (None, _) => Stored::Unknown,
            };
            round.executed[site] = active;
            site += 1;
        }
    }
    round
}

impl Round {
    /// The candidate execution, if everything is known and every read that is executed, and none else, has a source
    /// that writes.
    fn candidate(self, sites: &[Site<'_>], source: &[Option<usize>]) -> Option<Candidate> {
        let registers = self.machines.iter().map(|machine| machine.registers.iter().copied().collect());
        let registers: Vec<Vec<u64>> = registers.collect::<Option<_>>()?;
        let executed: Vec<bool> = self.executed.iter().copied().collect::<Option<_>>()?;
        let mut events = Vec::new();
        let mut event_of = vec![None; sites.len()];
        let mut barriers = vec![0; self.machines.len()];
        for (number, site) in sites.iter().enumerate() {
            if !executed[number] {
                // One source stands for all where it does not matter.
                if source[number].is_some() {
                    return None;
                }
                continue;
            }
            event_of[number] = Some(events.len());
            let mut event = event(site);
            match self.stored[number] {
                Stored::Unknown => return None,
                Stored::Nothing => event.writes = false,
                Stored::Value(value) => event.value = value,
            }
            if *site.op == Op::Barrier {
                event.barrier = Some(barriers[site.thread]);
                barriers[site.thread] += 1;
            }
            if let Some(write) = source[number] {
                if !matches!(self.stored[write], Stored::Value(_)) {
                    return None;
                }
                event.source = Some(write);
            }
            events.push(event);
        }
        for event in &mut events {
            event.source = event.source.and_then(|site| event_of[site]);
        }
        Some(Candidate { events, registers })
    }
}

/// The event of a site that is executed; without what is only known at run time.
fn event(site: &Site<'_>) -> Event {
    let mut event = Event {
        thread: site.thread,
        location: site.op.location(),
        reads: site.op.reads(),
        writes: site.op.writes(),
        outside: matches!(site.op, Op::Load { noncoherent: true, .. }),
        strong: None,
        acquire: false,
        release: false,
        fence: false,
        sequential: false,
        atomic: matches!(site.op, Op::Atomic { .. }),
        reduction: matches!(site.op, Op::Atomic { d: None, .. }),
        barrier: None,
        source: None,
        value: 0,
    };
    match *site.op {
        Op::Load { order, .. } | Op::Store { order, .. } | Op::Atomic { order, .. } => {
            if let Order::Strong { scope, acquire, release } = order {
                event.strong = Some(scope);
                (event.acquire, event.release) = (acquire, release);
            }
        }
        Op::Fence(Fence { scope, acquire, release, sequential }) => {
            event.strong = Some(scope);
            event.fence = true;
            (event.acquire, event.release, event.sequential) = (acquire, release, sequential);
        }
        _ => {}
    }
    event
}
