//! The history of a word: which writes a read may return, and which pairs of accesses race.
//!
//! The writes of a cell are in an order that extends *coherence order* (PTX ISA, "Coherence Order"), which relates two
//! overlapping writes if one precedes the other in causality order or if they are morally strong, and is transitive.
//! The axiom "Causality" then says which writes a read may return: not one that is coherence-before a write that
//! precedes the read in causality order, and not one that the read precedes.

use std::rc::Rc;

use super::chain::Chain;
use super::view::{Event, Knowledge, View};
use meshreduce_emulator_ptx::types::Scope;

/// Who did something, and where in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) event: Event,
    /// Number of the block among all blocks of the session.
    pub(super) block: u32,
    pub(super) launch: u32,
    pub(super) pc: u32,
    /// Index of the thread in its block.
    pub(super) thread: u16,
    pub(super) device: u16,
}

/// What decides whether two accesses are morally strong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) who: Who,
    /// Bytes of the word.
    pub(super) mask: u16,
    pub(super) strong: bool,
    pub(super) scope: Scope,
    pub(super) mapping: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) access: Access,
    /// The bytes, in their places in the word.
    pub(super) value: u128,
    /// By an `atom` or `red`.
    pub(super) atomic: bool,
    /// What preceded it in causality order, its own thread aside.
    knowledge: Knowledge,
    /// What an acquire that observes it learns.
    pub(super) releases: Option<Rc<Vec<Release>>>,
    /// Writes that are observed with it, through atomics.
    pub(super) chain: Chain,
    /// Reads that observed it after others could already follow them in causality order: what follows one of them
    /// has the write in its causality order too (observation order followed by base causality order).
    late: Vec<Event>,
    /// All overlapping writes before it in the list are coherence-before it.
    dominates: bool,
}

/// A release pattern that a write ends.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub(super) view: View,
    pub(super) scope: Scope,
    pub(super) who: Who,
}

#[derive(Clone, Debug)]
struct Read {
    access: Access,
    /// For `.nc`: the event at which the launch that read will have ended.
    until: Option<Event>,
}

/// The accesses to a word that still matter.
#[derive(Debug, Default)]
pub(super) struct Cell {
    pub(super) writes: Vec<Write>,
    reads: Vec<Read>,
    /// Open strong loads that others may follow in causality order already.
    pub(super) exposed: Vec<Exposed>,
    /// Threads that have issued an atomic here which acquires and has not taken effect.
    pub(super) acquirers: Vec<u32>,
}

/// A strong load that is left open although something behind it has been handed on.
#[derive(Clone, Debug)]
pub(super) struct Exposed {
    pub(super) access: Access,
    /// What preceded it in causality order.
    pub(super) knowledge: Knowledge,
    pub(super) closings: Vec<Closing>,
    /// The bytes and the write that it returns, once somebody who follows it has come to the word.
    pub(super) choice: Option<(u128, Option<Write>)>,
}

/// The end of an acquire pattern that began with a load which is still open: an acquire operation, or a fence.
#[derive(Clone, Debug)]
pub(super) struct Closing {
    pub(super) scope: Scope,
    /// What the thread knew then.
    pub(super) knowledge: Knowledge,
}

/// A read that looks for its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub(super) access: Access,
    pub(super) knowledge: &'a Knowledge,
    /// The read of an atomic: no morally strong write comes between it and the atomic's own (axiom "Atomicity").
    pub(super) atomic: bool,
    /// Outside the model: what its own thread did does not count either.
    pub(super) noncoherent: bool,
}

/// What a read may return, and room to find it, which is kept from read to read.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// By index the writes; `None` is what was there before the history.
    pub(super) all: Vec<Option<usize>>,
    hidden: Vec<(usize, bool)>,
}

/// Two accesses that conflict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conflict {
    pub(super) kind: ConflictKind,
    pub(super) first: Access,
    pub(super) second: Access,
    pub(super) first_writes: bool,
    pub(super) second_writes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConflictKind {
    /// Not ordered by causality, and not morally strong.
    Unordered,
    /// Both strong with scopes that include each other, but of different width.
    MixedSize,
    /// A read outside the memory model of what is written during its launch.
    Noncoherent,
    /// One device reaches the location by two addresses.
    Alias,
}

/// Whether `scope`, named by `one`, includes `other`.
#[inline]
pub(super) fn includes(scope: Scope, one: &Who, other: &Who) -> bool {
    match scope {
        Scope::Sys => true,
        Scope::Gpu => one.device == other.device,
        // Without clusters, a block is its own cluster.
        Scope::Cta | Scope::Cluster => one.block == other.block,
    }
}

impl Access {
    /// Whether both are strong, and their scopes include each other.
    #[inline]
    fn strong_with(&self, other: &Access) -> bool {
        self.strong
            && other.strong
            && includes(self.scope, &self.who, &other.who)
            && includes(other.scope, &other.who, &self.who)
    }

    /// "Morally strong" (PTX ISA): related in program order, or strong with scopes that include each other; and
    /// overlapping completely.
    #[inline]
    pub(super) fn morally_strong(&self, other: &Access) -> bool {
        self.mask == other.mask && (self.who.event.0 == other.who.event.0 || self.strong_with(other))
    }
}

impl Write {
    pub(super) fn new(access: Access, value: u128, knowledge: Knowledge) -> Self {
        Self {
            access,
            value,
            atomic: false,
            knowledge,
            releases: None,
            chain: Chain::default(),
            late: Vec::new(),
            dominates: false,
        }
    }

    /// Whether the other write precedes this one in causality order.
    #[inline]
    fn follows(&self, other: &Write) -> bool {
        let (own, event) = (self.access.who.event, other.access.who.event);
        own.0 == event.0 && own.1 >= event.1
            || self.knowledge.has(event)
            || other
                .late
                .iter()
                .any(|read| own.0 == read.0 && own.1 >= read.1 || self.knowledge.has_base(*read))
    }

    /// Whether `self` is directly coherence-before `later`, which stands behind it in the list.
    #[inline]
    fn before(&self, later: &Write) -> bool {
        later.follows(self) || self.access.morally_strong(&later.access)
    }

    /// Whether a read with these closings synchronizes with a release pattern in a way that was not known then.
    pub(super) fn synchronizes(&self, reader: &Access, closings: &[Closing]) -> bool {
        let all = self.releases.iter().flat_map(|releases| releases.iter());
        let me = &reader.who;
        reader.morally_strong(&self.access)
            && all.filter(|release| release.who.event.0 != me.event.0).any(|release| {
                let new = |closing: &Closing| {
                    release.reaches(closing.scope, me) && !closing.knowledge.has_base(release.view.at)
                };
                closings.iter().any(new)
            })
    }
}

impl Release {
    /// Whether the pattern and an acquire of `me` at `scope` are morally strong.
    pub(super) fn reaches(&self, scope: Scope, me: &Who) -> bool {
        includes(self.scope, &self.who, me) && includes(scope, me, &self.who)
    }
}

impl Reader<'_> {
    /// Whether the write precedes the read in causality order.
    #[inline]
    fn knows(&self, write: &Write) -> bool {
        let event = write.access.who.event;
        let own = |event: Event| event.0 == self.access.who.event.0 && event.1 <= self.access.who.event.1;
        !self.noncoherent && own(event)
            || self.knowledge.has(event)
            || write.late.iter().any(|&read| own(read) || self.knowledge.has_base(read))
    }
}

impl Cell {
    pub(super) fn clear(&mut self) {
        self.writes.clear();
        self.reads.clear();
        self.exposed.clear();
        self.acquirers.clear();
    }

    /// Finds the writes that `reader` may return for the bytes `mask`, the latest first; `None` is the value before
    /// the history.
    pub(super) fn candidates(&self, reader: &Reader<'_>, mask: u16, found: &mut Candidates) {
        // By index from the end: the write, or one that is coherence-behind it, precedes the read.
        let Candidates { all: out, hidden } = found;
        out.clear();
        hidden.clear();
        for (index, write) in self.writes.iter().enumerate().rev() {
            if write.access.mask & mask == 0 {
                continue;
            }
            let covers = write.access.mask & mask == mask;
            let known = reader.knows(write) || reader.atomic && write.access.morally_strong(&reader.access);
            let behind = |&(later, seen): &(usize, bool)| seen && write.before(&self.writes[later]);
            let superseded = hidden.iter().any(behind);
            // A read that is bound late precedes what came after it.
            let preceded = !reader.noncoherent && write.knowledge.has_base(reader.access.who.event);
            if !superseded && !preceded {
                out.push(Some(index));
            }
            if (known || superseded) && covers && write.dominates {
                return;
            }
            hidden.push((index, known || superseded));
        }
        // What was there before the history precedes every write of it.
        if hidden.iter().all(|(_, seen)| !seen) {
            out.push(None);
        }
    }

    /// Finds the writes of the bytes `mask` that no other is coherence-behind.
    pub(super) fn last(&self, mask: u16, out: &mut Vec<Option<usize>>) {
        out.clear();
        let concerned = |write: &&Write| write.access.mask & mask != 0;
        for (index, write) in self.writes.iter().enumerate().rev().filter(|(_, write)| concerned(write)) {
            if !self.writes[index + 1..].iter().filter(concerned).any(|later| write.before(later)) {
                out.push(Some(index));
            }
        }
    }

    /// Whether every write that concerns `mask` covers all of it, so that it has one value.
    pub(super) fn is_uniform(&self, mask: u16) -> bool {
        self.writes.iter().all(|write| {
            let common = write.access.mask & mask;
            common == 0 || common == mask
        })
    }

    /// Adds a write. `early` asks for a place before others that need not come first; it is ignored where there is
    /// none.
    pub(super) fn insert(&mut self, write: Write, early: bool) {
        let mut at = self.writes.len();
        if early && !write.atomic {
            while at > 0 {
                let before = &self.writes[at - 1];
                let overlap = before.access.mask & write.access.mask != 0;
                if overlap
                    && (before.atomic
                        || write.follows(before)
                        || !before.access.morally_strong(&write.access))
                {
                    break;
                }
                at -= 1;
            }
            if self.would_relate(at, &write) {
                at = self.writes.len();
            }
        }
        self.writes.insert(at, write);
        for index in at..self.writes.len() {
            let mask = self.writes[index].access.mask;
            let mut earlier = self.writes[..index].iter().filter(|earlier| earlier.access.mask & mask != 0);
            let last = &self.writes[index];
            self.writes[index].dominates =
                earlier.all(|earlier| earlier.access.mask & !mask == 0 && earlier.before(last));
        }
    }

    /// Whether a read can be left open behind these closings: it may always return the last write that precedes it, or
    /// what was there before, and that must bring nothing that the closings would have had to know.
    pub(super) fn can_close(&self, reader: &Reader<'_>, closings: &[Closing]) -> bool {
        let mask = reader.access.mask;
        let known = |write: &&Write| write.access.mask & mask != 0 && reader.knows(write);
        let last = self.writes.iter().rev().find(known);
        self.is_uniform(mask) && last.is_none_or(|last| !last.synchronizes(&reader.access, closings))
    }

    /// Takes an open load out of the sight of others; what it returns, if that has been decided.
    pub(super) fn conceal(&mut self, load: Event) -> Option<(u128, Option<Write>)> {
        let at = self.exposed.iter().position(|known| known.access.who.event == load)?;
        self.exposed.swap_remove(at).choice
    }

    /// The load at `read`, which others may follow already, has returned `write`: it precedes what they do here next, as
    /// do the writes that are observed with it.
    pub(super) fn observed_late(&mut self, read: Event, write: &Write) {
        let with = |event: &Event| *event == write.access.who.event || write.chain.contains(*event);
        let observed = self.writes.iter_mut().filter(|write| with(&write.access.who.event));
        observed.for_each(|write| write.late.push(read));
    }

    /// Whether `write` at place `at` would make one of the others coherence-before another that it is not before yet.
    /// Reads may have relied on that.
    fn would_relate(&self, at: usize, write: &Write) -> bool {
        let overlap = |one: &Write, other: &Write| one.access.mask & other.access.mask != 0;
        let directly = |one: &Write, other: &Write| overlap(one, other) && one.before(other);
        (0..at).filter(|&first| directly(&self.writes[first], write)).any(|first| {
            // All that is coherence-behind it.
            let mut behind = vec![first];
            for later in first + 1..self.writes.len() {
                if behind.iter().any(|&known| directly(&self.writes[known], &self.writes[later])) {
                    behind.push(later);
                } else if later >= at && directly(write, &self.writes[later]) {
                    return true;
                }
            }
            false
        })
    }

    /// Forgets the writes that nobody can read any more: those before the last one that everybody knows.
    pub(super) fn prune(&mut self, everybody: impl Fn(&Access) -> bool) {
        for region in self.regions() {
            let writes = || self.writes.iter().filter(|write| write.access.mask & region != 0);
            let whole = writes().fold(0, |mask, write| mask | write.access.mask);
            let last = self
                .writes
                .iter()
                .rposition(|write| write.dominates && write.access.mask == whole && everybody(&write.access));
            if let Some(last) = last {
                let mut at = 0;
                self.writes.retain(|write| {
                    at += 1;
                    at > last || write.access.mask & region == 0
                });
            }
        }
    }

    /// The parts of the word that have histories of their own: its halves of eight bytes, unless a write spans them.
    pub(super) fn regions(&self) -> impl Iterator<Item = u16> + use<> {
        const HALVES: [u16; 2] = [0x00ff, 0xff00];
        let spans = |write: &Write| HALVES.iter().all(|half| write.access.mask & half != 0);
        let regions = if self.writes.iter().any(spans) { [0xffff, 0] } else { HALVES };
        regions.into_iter().filter(|region| *region != 0)
    }

    /// The earlier accesses with which a read conflicts; the read is remembered.
    pub(super) fn read(&mut self, reader: &Reader<'_>, until: Option<Event>) -> Option<Conflict> {
        let access = reader.access;
        let mut found = None;
        for write in &self.writes {
            if write.access.mask & access.mask == 0 {
                continue;
            }
            let kind = if reader.knows(write) {
                aliased(&write.access, &access).then_some(ConflictKind::Alias)
            } else if reader.noncoherent {
                Some(ConflictKind::Noncoherent)
            } else {
                disordered(&write.access, &access)
            };
            if let Some(kind) = kind {
                let (first, second) = (write.access, access);
                found = Some(Conflict { kind, first, second, first_writes: true, second_writes: false });
            }
        }
        let known = self.reads.iter_mut().find(|read| match until {
            Some(until) => read.until == Some(until) && read.access.mask == access.mask,
            None => {
                read.access.who.event.0 == access.who.event.0
                    && read.until.is_none()
                    && (read.access.strong, read.access.scope) == (access.strong, access.scope)
                    && read.access.mask == access.mask
            }
        });
        match known {
            Some(read) if until.is_none() => read.access = access,
            Some(_) => {}
            None => self.reads.push(Read { access, until }),
        }
        found
    }

    /// The earlier access with which a write conflicts.
    pub(super) fn write(&mut self, access: &Access, knowledge: &Knowledge) -> Option<Conflict> {
        let reader = Reader { access: *access, knowledge, atomic: false, noncoherent: false };
        let conflict = |kind, first: Access, first_writes| {
            Some(Conflict { kind, first, second: *access, first_writes, second_writes: true })
        };
        for write in self.writes.iter().rev() {
            if write.access.mask & access.mask == 0 {
                continue;
            }
            let kind = if reader.knows(write) {
                aliased(&write.access, access).then_some(ConflictKind::Alias)
            } else {
                disordered(&write.access, access)
            };
            if let Some(kind) = kind {
                return conflict(kind, write.access, true);
            }
        }
        for read in &self.reads {
            if read.access.mask & access.mask == 0 {
                continue;
            }
            let kind = match read.until {
                Some(end) => (!knowledge.has_base(end)).then_some(ConflictKind::Noncoherent),
                None if read.access.who.event.0 == access.who.event.0
                    || knowledge.has_base(read.access.who.event) =>
                {
                    aliased(&read.access, access).then_some(ConflictKind::Alias)
                }
                None => disordered(&read.access, access),
            };
            if let Some(kind) = kind {
                return conflict(kind, read.access, false);
            }
        }
        if !access.strong {
            // Whatever races with these reads races with this write too.
            self.reads.retain(|read| read.access.mask & !access.mask != 0);
        }
        None
    }
}

fn disordered(first: &Access, second: &Access) -> Option<ConflictKind> {
    match first.strong_with(second) {
        true if first.mask == second.mask => None,
        true => Some(ConflictKind::MixedSize),
        false => Some(ConflictKind::Unordered),
    }
}

/// Whether one launch reaches the location by two addresses. Those are different proxies (PTX ISA, "Proxies"), and
/// nothing but the end of a kernel orders them here.
fn aliased(first: &Access, second: &Access) -> bool {
    first.mapping != second.mapping && first.who.launch == second.who.launch
}
