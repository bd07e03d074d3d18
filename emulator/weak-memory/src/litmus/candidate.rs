//! Candidate executions: who reads from whom, and the values that follow.

use super::machine::{Machine, Stored};
use super::program::{Fence, Litmus, Op, Operand, Order, Participants, Proxy, Scope};
use super::together::{OF_WARPS, whole_block};

/// A memory operation, fence, barrier or bound of a loop in the code of a test.
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
            let other = matches!(
                op,
                Op::Fence(_)
                    | Op::ProxyFence(_)
                    | Op::Barrier { .. }
                    | Op::WarpBarrier { .. }
                    | Op::Bound { .. }
            );
            if op.location().is_some() || other {
                sites.push(Site { thread, index, op });
            }
        }
    }
    sites
}

/// An operation of a candidate execution. An atomic is two: a read, and a write if it writes.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) thread: usize,
    /// Index of the instruction within the thread.
    pub(super) index: usize,
    /// The location of a memory operation.
    pub(super) location: Option<usize>,
    /// The address by which it names the location.
    pub(super) address: Option<usize>,
    /// How it reaches memory; the proxy of a proxy fence.
    pub(super) proxy: Proxy,
    /// Proxy fences.
    pub(super) proxy_fence: bool,
    /// `fence.proxy.alias`.
    pub(super) alias_fence: bool,
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
    /// The other half of an atomic that writes.
    pub(super) partner: Option<usize>,
    /// Of a `red`, whose read makes no acquire pattern.
    pub(super) reduction: bool,
    /// An arrival at a barrier.
    pub(super) barrier: Option<Barrier>,
    /// The write that a read reads from; `None` is the initial value.
    pub(super) source: Option<usize>,
    /// The value that a write leaves.
    pub(super) value: u64,
}

/// An arrival at a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Barrier {
    pub(super) id: u64,
    /// How many threads meet, if it says so.
    pub(super) count: Option<u32>,
    pub(super) arrive: bool,
    /// Nobody comes: the thread waits for ever.
    pub(super) forever: bool,
}

/// The executed operations of all threads with one choice of sources.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) events: Vec<Event>,
    /// Final registers, by thread.
    pub(super) registers: Vec<Vec<u64>>,
    /// By thread: where the last round begins of a loop that goes on beyond the bound.
    pub(super) bound: Vec<Option<usize>>,
}

/// What is decided of a site before it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Open,
    /// A read of the initial value; a barrier that is passed.
    Plain,
    /// A read from the write of a site.
    From(usize),
    /// A barrier at which the thread stays.
    Stay,
}

/// Calls `visit` with every candidate execution.
///
/// Values are computed from their sources on. A choice of sources that leaves a value without origin, because it is
/// needed for its own computation, is no candidate: axiom No-Thin-Air. Candidates in which a read takes its value
/// from a later write of its own thread are left out; axiom Causality excludes them.
pub(super) fn candidates(litmus: &Litmus, visit: &mut impl FnMut(Candidate)) {
    let sites = sites(litmus);
    let passed = all_meet(litmus);
    let choices = sites.iter().map(|site| match site.op {
        Op::Barrier { arrive, vote, .. } if passed || *arrive || vote.is_some() => Choice::Plain,
        _ => Choice::Open,
    });
    let meetings = meetings_of_votes(litmus, &sites);
    decide((litmus, &sites, &meetings), &mut choices.collect(), visit);
}

/// Whether nobody can be left at a barrier: the threads of a block have the same, and always come to them.
fn all_meet(litmus: &Litmus) -> bool {
    litmus.threads.iter().all(|thread| {
        let mine = whole_block(thread);
        let mut others = litmus.threads.iter().filter(|other| other.shares_a_block_with(thread));
        mine.is_some() && others.all(|other| whole_block(other) == mine)
    })
}

/// By site: the sites that meet at a `bar.red`, which all threads of a block come to, in the order of their barriers.
fn meetings_of_votes(litmus: &Litmus, sites: &[Site<'_>]) -> Vec<Vec<usize>> {
    let barriers = |thread: usize| -> Vec<usize> {
        let own =
            |&site: &usize| sites[site].thread == thread && matches!(sites[site].op, Op::Barrier { .. });
        (0..sites.len()).filter(own).collect()
    };
    let meeting = |(site, what): (usize, &Site<'_>)| {
        let place = barriers(what.thread).iter().position(|&own| own == site);
        let (Op::Barrier { vote: Some(_), .. }, Some(place)) = (what.op, place) else { return Vec::new() };
        let thread = &litmus.threads[what.thread];
        let members =
            (0..litmus.threads.len()).filter(|&one| litmus.threads[one].shares_a_block_with(thread));
        members.filter_map(|member| barriers(member).get(place).copied()).collect()
    };
    sites.iter().enumerate().map(meeting).collect()
}

/// A test, its sites, and by site who votes with it.
type Sites<'a> = (&'a Litmus, &'a [Site<'a>], &'a [Vec<usize>]);

/// Decides the first site that is known to be executed and still open, in every way.
fn decide(all: Sites<'_>, choices: &mut Vec<Choice>, visit: &mut impl FnMut(Candidate)) {
    let (litmus, sites, _) = all;
    let round = compute(all, choices);
    let from_nothing =
        |choice: &Choice| matches!(choice, Choice::From(write) if round.stored[*write] == Stored::Nothing);
    if choices.iter().any(from_nothing) {
        return;
    }
    let open = |&site: &usize| {
        let asks = sites[site].op.reads() || matches!(sites[site].op, Op::Barrier { .. });
        choices[site] == Choice::Open && asks && round.executed[site] == Some(true)
    };
    let Some(site) = (0..sites.len()).find(open) else {
        if let Some(candidate) = round.candidate(litmus, sites, choices) {
            visit(candidate);
        }
        return;
    };
    let ways = match sites[site].op.reads() {
        true => sources(litmus, sites, site),
        false => vec![Choice::Plain, Choice::Stay],
    };
    for way in ways {
        choices[site] = way;
        decide(all, choices, visit);
    }
    choices[site] = Choice::Open;
}

/// The sites that `read` may read from; the initial value first.
fn sources(litmus: &Litmus, sites: &[Site<'_>], read: usize) -> Vec<Choice> {
    let reader = &sites[read];
    let memory = |site: &Site<'_>| site.op.location().map(|address| litmus.memory_of(address));
    let may = |&write: &usize| {
        let writer = &sites[write];
        writer.op.writes()
            && memory(writer) == memory(reader)
            && (writer.thread != reader.thread || writer.index < reader.index)
    };
    std::iter::once(Choice::Plain).chain((0..sites.len()).filter(may).map(Choice::From)).collect()
}

/// Runs the threads again and again, each time with what is known of memory by then, until nothing new comes.
fn compute(all: Sites<'_>, choices: &[Choice]) -> Round {
    let sites = all.1.len();
    let (mut stored, mut votes) = (vec![Stored::Unknown; sites], vec![None; sites]);
    loop {
        let round = run(all, choices, &stored, &votes);
        if round.stored == stored && round.votes == votes {
            return round;
        }
        (stored, votes) = (round.stored, round.votes);
    }
}

/// One run of all threads.
struct Round {
    stored: Vec<Stored>,
    executed: Vec<Option<bool>>,
    machines: Vec<Machine>,
    /// By site: the number of a barrier.
    ids: Vec<Option<u64>>,
    /// By site: what the thread says at a `bar.red`.
    votes: Vec<Option<bool>>,
}

/// Runs the threads with what was stored and voted in the run before.
fn run(
    (litmus, sites, meetings): Sites<'_>,
    choices: &[Choice],
    known: &[Stored],
    votes: &[Option<bool>],
) -> Round {
    let mut round = Round {
        stored: vec![Stored::Unknown; sites.len()],
        executed: vec![None; sites.len()],
        machines: litmus.threads.iter().map(Machine::new).collect(),
        ids: vec![None; sites.len()],
        votes: vec![None; sites.len()],
    };
    let mut site = 0;
    for (number, (thread, machine)) in litmus.threads.iter().zip(&mut round.machines).enumerate() {
        let mut ended = Some(true);
        while let Some((index, active)) = machine.next(thread) {
            debug_assert_eq!((sites[site].thread, sites[site].index), (number, index));
            let found = |location: usize| match choices[site] {
                Choice::Plain => Some(litmus.locations[location].initial),
                Choice::From(write) => match known[write] {
                    Stored::Value(value) => Some(value),
                    Stored::Unknown | Stored::Nothing => None,
                },
                Choice::Open | Choice::Stay => None,
            };
            let stored = match thread.code[index].op {
                Op::Load { location, d, .. } => {
                    machine.set(d, active, found(location));
                    Stored::Nothing
                }
                Op::Store { location, a, .. } => {
                    let width = litmus.locations[location].width;
                    machine.value(a).map_or(Stored::Unknown, |value| Stored::Value(width.cut(value)))
                }
                Op::Atomic { location, rmw, d, .. } => {
                    let old = found(location);
                    let stored = machine.modify(rmw, litmus.locations[location].width, old);
                    if let Some(d) = d {
                        machine.set(d, active, old);
                    }
                    stored
                }
                Op::Barrier { id, vote, .. } => {
                    round.ids[site] = machine.value(id);
                    if let Some(vote) = vote {
                        round.votes[site] = machine.vote(vote);
                        let all: Option<Vec<bool>> =
                            meetings[site].iter().map(|&other| votes[other]).collect();
                        machine.take_result(vote, active, all.map(|all| vote.of.of(all)));
                    }
                    if active != Some(false) && choices[site] != Choice::Plain {
                        ended = (active == Some(true) && choices[site] == Choice::Stay).then_some(true);
                        machine.halt(thread);
                    }
                    Stored::Nothing
                }
                Op::Bound { .. } if active != Some(false) => {
                    ended = active;
                    machine.halt(thread);
                    Stored::Nothing
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
        // Behind where it has ended, nothing is executed.
        while sites.get(site).is_some_and(|site| site.thread == number) {
            if ended == Some(true) {
                (round.stored[site], round.executed[site]) = (Stored::Nothing, Some(false));
            }
            site += 1;
        }
    }
    round
}

impl Round {
    /// The candidate execution, if everything is known and every read that is executed, and none else, has a source
    /// that writes.
    fn candidate(self, litmus: &Litmus, sites: &[Site<'_>], choices: &[Choice]) -> Option<Candidate> {
        let registers = self.machines.iter().map(|machine| machine.registers.iter().copied().collect());
        let registers: Vec<Vec<u64>> = registers.collect::<Option<_>>()?;
        let executed: Vec<bool> = self.executed.iter().copied().collect::<Option<_>>()?;
        let mut events: Vec<Event> = Vec::new();
        // The write of each site.
        let mut written = vec![None; sites.len()];
        let mut bound = vec![None; litmus.threads.len()];
        for (number, site) in sites.iter().enumerate().filter(|(number, _)| executed[*number]) {
            let value = match self.stored[number] {
                Stored::Unknown => return None,
                Stored::Nothing => None,
                Stored::Value(value) => Some(value),
            };
            let mut event = event(litmus, site);
            match *site.op {
                Op::Bound { from } => {
                    bound[site.thread] = Some(from);
                    continue;
                }
                Op::WarpBarrier { mask } => {
                    let lanes = litmus.threads.iter().enumerate().filter(|&(number, thread)| {
                        thread.shares_a_block_with(&litmus.threads[site.thread])
                            && mask >> litmus.lane(number) & 1 == 1
                    });
                    let (id, count) = (OF_WARPS | u64::from(mask), Some(lanes.count() as u32));
                    event.barrier = Some(Barrier { id, count, arrive: false, forever: false });
                }
                Op::Barrier { count, arrive, .. } => {
                    let (id, forever) = (self.ids[number]?, choices[number] == Choice::Stay);
                    event.barrier = Some(Barrier { id, count, arrive, forever });
                }
                _ => {}
            }
            if let Choice::From(write) = choices[number] {
                if !matches!(self.stored[write], Stored::Value(_)) {
                    return None;
                }
                // By site, until all events are there.
                event.source = Some(write);
            }
            let at = events.len();
            let write = Event { reads: false, acquire: false, source: None, ..event.clone() };
            if event.reads {
                events.push(Event { writes: false, release: false, ..event.clone() });
            }
            match value {
                Some(value) => {
                    let partner = event.reads.then_some(at);
                    if event.reads {
                        events[at].partner = Some(at + 1);
                    }
                    written[number] = Some(events.len());
                    events.push(Event { value, partner, ..write });
                }
                None if !event.reads => events.push(event),
                None => {}
            }
        }
        for event in &mut events {
            event.source = event.source.and_then(|site| written[site]);
        }
        Some(Candidate { events, registers, bound })
    }
}

/// How many threads an arrival needs, among the arrivals of its block.
pub(super) fn expected(litmus: &Litmus, candidate: &Candidate, thread: usize, barrier: Barrier) -> usize {
    let arrivals = |of: usize| {
        let own = candidate.events.iter().filter(move |event| event.thread == of);
        own.filter_map(|event| event.barrier)
    };
    let names = |thread: &usize| {
        let is_stuck = candidate.bound[*thread].is_some() || arrivals(*thread).any(|one| one.forever);
        let may = |op: &Op| match op {
            Op::Barrier { id: Operand::Constant(id), .. } => *id == barrier.id,
            Op::Barrier { .. } => true,
            _ => false,
        };
        // Who is stuck might have come.
        arrivals(*thread).any(|one| one.id == barrier.id)
            || is_stuck && litmus.threads[*thread].barriers().any(|one| may(&one.op))
    };
    let here = |&other: &usize| litmus.threads[other].shares_a_block_with(&litmus.threads[thread]);
    let threads = (0..litmus.threads.len()).filter(here);
    match (barrier.count, litmus.participants) {
        (Some(count), _) => count as usize,
        (None, Participants::Block) => threads.count(),
        (None, Participants::Named) => threads.filter(names).count(),
    }
}

/// The event of a site that is executed; without what is only known at run time.
fn event(litmus: &Litmus, site: &Site<'_>) -> Event {
    let proxy = match *site.op {
        Op::Load { proxy, .. } | Op::Store { proxy, .. } | Op::ProxyFence(Some(proxy)) => proxy,
        _ => Proxy::Generic,
    };
    let mut event = Event {
        thread: site.thread,
        index: site.index,
        location: site.op.location().map(|address| litmus.memory_of(address)),
        address: site.op.location(),
        proxy,
        proxy_fence: matches!(site.op, Op::ProxyFence(_)),
        alias_fence: matches!(site.op, Op::ProxyFence(None)),
        reads: site.op.reads(),
        writes: site.op.writes(),
        outside: matches!(site.op, Op::Load { noncoherent: true, .. }),
        strong: None,
        acquire: false,
        release: false,
        fence: false,
        sequential: false,
        partner: None,
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
