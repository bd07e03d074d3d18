//! What memory operations do to a thread and to memory, as the PTX memory model allows.
//!
//! | operation | effect |
//! |---|---|
//! | load | may be left open and bound later; then any write that the axioms allow |
//! | `ld.acquire` | joins the release patterns that it observes, as scopes allow; if bound later, it observes none that is new |
//! | store | a new write in the word's history; a release ends a release pattern, as does a strong store behind a fence |
//! | atomic | may take effect later, and then acquires nothing that is new; reads the last morally strong write, writes behind it; observers of it observe what it read |
//! | `ld.global.nc` | any write since the launch began, whatever is known |

use std::rc::Rc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::book::Book;
use super::chain::Chain;
use super::history::{Access, Candidates, Closing, Conflict, Reader, Release, Who, Write, includes};
use super::memory::{Location, Memory, Place, WordId, bits_of};
use super::pending::Late;
use super::report::Finding;
use super::thread::Thread;
use super::trace::{AccessKind, Trace};
use super::view::{Knowledge, View};
use meshreduce_emulator_ptx::types::{Order, Scope};

/// How far the model strays from sequential consistency, in 256ths. Drawn once from the seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relaxation {
    /// A load is left open.
    pub(super) defer: u32,
    /// A read looks beyond the latest write.
    pub(super) stale: u32,
    /// A write goes before others in coherence order.
    pub(super) early: u32,
}

pub(super) struct Model {
    pub(super) memory: Memory,
    pub(super) random: ChaCha8Rng,
    pub(super) relaxation: Relaxation,
    pub(super) detect_races: bool,
    pub(super) book: Book,
    pub(super) trace: Trace,
    /// PTX instructions so far: the clock.
    pub(super) now: u64,
    /// When something last happened that can end a wait.
    pub(super) progress: u64,
    /// Every read returns the latest write, so that waits end if they can.
    pub(super) calm: bool,
    /// What `fence.sc` of each scope and place has seen.
    fences: Vec<(Scope, Who, Knowledge)>,
    /// Atomics that acquire and have not taken effect, over all words.
    pub(super) acquirers: usize,
    pub(super) candidates: Candidates,
}

/// What a read means for acquire patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Nothing: the read of a `red` (PTX ISA, "Release and Acquire Patterns").
    None,
    /// A fence behind it, or an acquire on the same location, makes a pattern of both.
    Opens,
    /// It is a pattern of its own.
    Closes,
}

/// Ordering and scope of a store or atomic, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreOf {
    pub(super) place: Place,
    pub(super) order: Order,
    pub(super) scope: Scope,
    pub(super) pc: u32,
}

/// An atomic as its thread issued it, maybe some time ago.
#[derive(Clone, Copy, Debug)]
pub(super) struct Issued<'a> {
    pub(super) who: Who,
    /// What the thread knew then.
    pub(super) knowledge: &'a Knowledge,
    /// The chain that it had observed last.
    pub(super) chain: &'a Chain,
    /// It does not return the old value.
    pub(super) reduction: bool,
    /// It takes effect late: what followed it in its thread has gone on without anything that it acquires.
    pub(super) waited: bool,
}

/// Writes of a word beyond which the history is looked through for what can be forgotten.
const LONG: usize = 48;

impl Model {
    pub(super) fn new(seed: u64, detect_races: bool, trace: bool) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut pick = |of: &[u32]| of[random.next_u32() as usize % of.len()];
        let relaxation = Relaxation {
            defer: pick(&[0, 64, 160, 240]),
            stale: pick(&[16, 96, 160, 220]),
            early: pick(&[0, 32, 96]),
        };
        Self {
            memory: Memory::default(),
            random,
            relaxation,
            detect_races,
            book: Book::default(),
            trace: Trace::new(trace),
            now: 0,
            progress: 0,
            calm: false,
            fences: Vec::new(),
            acquirers: 0,
            candidates: Candidates::default(),
        }
    }

    #[inline]
    pub(super) fn chance(&mut self, of_256: u32) -> bool {
        of_256 > 0 && self.random.next_u32() & 0xff < of_256
    }

    /// A number below `end`.
    #[inline]
    pub(super) fn below(&mut self, end: usize) -> usize {
        ((u64::from(self.random.next_u32()) * end as u64) >> 32) as usize
    }

    /// A store of `bits`.
    pub(super) fn store(
        &mut self,
        thread: &mut Thread,
        store: StoreOf,
        bits: u128,
    ) -> Result<(), Box<Finding>> {
        let who = thread.event(store.pc);
        let word = store.place.word;
        let strong = store.order.is_strong();
        let access =
            Access { who, mask: store.place.mask, strong, scope: store.scope, mapping: store.place.mapping };
        self.admit(thread.number, &thread.knowledge, &store.place);
        self.check_write(word, &access, &thread.knowledge)?;
        let value = (bits << (8 * u32::from(store.place.shift))) & bits_of(access.mask);
        let mut write = Write::new(access, value, thread.knowledge.clone());
        if strong {
            let view = View { at: who.event, knowledge: thread.knowledge.clone() };
            write.releases = releases(thread, view, store.place.location(), &access, store.order, None);
        }
        self.trace.add(self.now, AccessKind::Store, &access, word, bits, || None);
        let settled = self.memory.settled(word);
        let cell = self.memory.cell(word);
        let location = store.place.location();
        let here = |write: &&Write| Location::new(word, write.access.mask).meets(location);
        let last = cell.writes.iter().rfind(here);
        let before = last.map_or(settled, |last| last.value);
        let racing = last.is_some_and(|last| {
            let event = last.access.who.event;
            event.0 != who.event.0 && !thread.knowledge.has(event)
        });
        if (before ^ value) & bits_of(access.mask) != 0 {
            self.progress = self.now;
        }
        let early = self.relaxation.early;
        let early = racing && !self.calm && self.chance(early);
        self.memory.cell(word).insert(write, early);
        thread.idle = 0;
        Ok(())
    }

    /// An atomic takes effect: replaces the value by `update` of it. The old value.
    pub(super) fn atomic(
        &mut self,
        thread: &mut Thread,
        store: StoreOf,
        issued: Issued<'_>,
        update: impl Fn(u64) -> Option<u64>,
    ) -> Result<u64, Box<Finding>> {
        let Issued { who, reduction, waited, .. } = issued;
        let word = store.place.word;
        let access = Access {
            who,
            mask: store.place.mask,
            strong: true,
            scope: store.scope,
            mapping: store.place.mapping,
        };
        let acquire = matches!(store.order, Order::Acquire | Order::AcqRel);
        let knowledge = issued.knowledge;
        self.admit(thread.number, knowledge, &store.place);
        let reader = Reader { access, knowledge, atomic: true, noncoherent: false };
        let closing = || Closing { scope: store.scope, knowledge: knowledge.clone() };
        let closings: Vec<Closing> = (acquire && waited).then(closing).into_iter().collect();
        let from = self.choose(word, &reader, access.mask, &closings);
        let source = from.map(|index| self.memory.cell(word).writes[index].clone());
        let shift = 8 * u32::from(store.place.shift);
        let whole = source.as_ref().map_or(self.memory.settled(word), |write| write.value);
        // Of at most eight bytes.
        let old = ((whole & bits_of(access.mask)) >> shift) as u64;
        self.trace.add(self.now, AccessKind::Atomic, &access, word, old.into(), || {
            source.as_ref().map(|write| write.access.who)
        });
        let pattern = match (acquire, reduction) {
            (true, _) => Pattern::Closes,
            (false, true) => Pattern::None,
            (false, false) => Pattern::Opens,
        };
        if let Some(source) = &source {
            self.observe(thread, &access, word, source, pattern);
        }
        let Some(new) = update(old) else {
            // It has only read.
            if self.detect_races
                && let Some(conflict) = self.memory.cell(word).read(&reader, None)
            {
                return Err(self.conflict(word, &conflict));
            }
            return Ok(old);
        };
        // What it has synchronized with precedes it; what it has only observed does not.
        let acquire = acquire && !waited;
        let before = if acquire { knowledge.with_base_of(&thread.knowledge) } else { knowledge.clone() };
        self.check_write(word, &access, &before)?;
        let source = source.filter(|source| source.access.morally_strong(&access));
        let of = |source: &Write| Chain::of(source.access.who.event, &source.chain);
        let chain = source.as_ref().map(of).unwrap_or_default();
        let (mut knowledge, known) =
            if acquire { (thread.knowledge.clone(), &thread.chain) } else { (before, issued.chain) };
        let others = chain.beyond(known).filter(|event| event.0 != who.event.0);
        others.for_each(|event| knowledge.observe(event));
        let mut write =
            Write::new(access, (u128::from(new) << shift) & bits_of(access.mask), knowledge.clone());
        write.atomic = true;
        let view = View { at: who.event, knowledge };
        write.releases =
            releases(thread, view, store.place.location(), &access, store.order, source.as_ref());
        write.chain = chain;
        if new != old {
            self.progress = self.now;
            thread.idle = 0;
        }
        self.memory.cell(word).insert(write, false);
        Ok(old)
    }

    /// Whether an atomic that acquires may take effect later: it could read now without synchronizing, and it always will, for
    /// whoever may release something waits for it.
    pub(super) fn can_wait(&mut self, late: &Late) -> bool {
        let access = late.access();
        let closings = [Closing { scope: late.scope, knowledge: late.knowledge.clone() }];
        let reader = Reader { access, knowledge: &late.knowledge, atomic: true, noncoherent: false };
        let Self { memory, candidates, .. } = self;
        let cell = memory.cell(late.place.word);
        cell.candidates(&reader, access.mask, candidates);
        let fits = |write: &Option<usize>| {
            write.is_none_or(|write| !cell.writes[write].synchronizes(&access, &closings))
        };
        candidates.all.iter().all(fits)
    }

    fn check_write(
        &mut self,
        word: WordId,
        access: &Access,
        knowledge: &Knowledge,
    ) -> Result<(), Box<Finding>> {
        if self.detect_races
            && let Some(conflict) = self.memory.cell(word).write(access, knowledge)
        {
            return Err(self.conflict(word, &conflict));
        }
        Ok(())
    }

    pub(super) fn conflict(&self, word: WordId, conflict: &Conflict) -> Box<Finding> {
        Box::new(super::report::conflict(&self.book, &self.memory, word, conflict))
    }

    /// A fence.
    pub(super) fn fence(&mut self, thread: &mut Thread, order: Order, scope: Scope, pc: u32) {
        let me = thread.event(pc);
        if order != Order::Release {
            thread.acquire_seen(|_, release| release.reaches(scope, &me));
        }
        if order == Order::SeqCst {
            // Morally strong `fence.sc` are in one order, and each synchronizes with those behind it
            // (PTX ISA, "Fence-SC Order").
            for (other, who, knowledge) in &self.fences {
                if includes(*other, who, &me) && includes(scope, &me, who) {
                    thread.knowledge.merge(knowledge);
                }
            }
            let same = |(other, who, _): &&mut (Scope, Who, Knowledge)| {
                *other == scope && who.device == me.device && who.block == me.block
            };
            match self.fences.iter_mut().find(same) {
                Some((_, _, knowledge)) => {
                    knowledge.merge(&thread.knowledge);
                    knowledge.raise(me.event);
                }
                None => {
                    let mut knowledge = thread.knowledge.clone();
                    knowledge.raise(me.event);
                    self.fences.push((scope, me, knowledge));
                }
            }
        }
        if order != Order::Acquire {
            thread.fences[scope as usize] =
                Some((me, View { at: me.event, knowledge: thread.knowledge.clone() }));
        }
    }

    /// Forgets what no thread can read any more, in words that have been written often.
    pub(super) fn prune(&mut self, word: WordId, everybody: impl Fn(&Access) -> bool) {
        self.memory.cell(word).prune(everybody);
    }

    pub(super) fn is_long(&mut self, word: WordId) -> bool {
        let length = self.memory.cell(word).writes.len();
        length >= LONG && length.is_multiple_of(LONG)
    }

    /// Everything is over: memory keeps one value of each word.
    pub(super) fn settle(&mut self) {
        let Self { memory, random, candidates, .. } = self;
        memory.settle(|cell, settled| {
            let mut value = settled;
            for region in cell.regions() {
                let masks = || cell.writes.iter().map(|write| write.access.mask & region);
                let written = masks().fold(0, |all, mask| all | mask);
                let one = masks().all(|mask| mask == written || mask == 0);
                let parts = (0..16).map(|bit| 1u16 << bit).filter(|bit| !one && bit & written != 0);
                // (Words that were only read take a draw too: what a seed plays does not depend on the words' size.)
                let whole = (one && (written != 0 || region & 1 != 0)).then_some(written);
                for mask in whole.into_iter().chain(parts) {
                    cell.last(mask, &mut candidates.all);
                    let last = &candidates.all;
                    let at = ((u64::from(random.next_u32()) * last.len() as u64) >> 32) as usize;
                    if let Some(Some(index)) = last.get(at) {
                        value = value & !bits_of(mask) | cell.writes[*index].value & bits_of(mask);
                    }
                }
            }
            value
        });
        self.fences.clear();
        self.acquirers = 0;
    }
}

/// The release patterns that a strong write, at `view`, ends (PTX ISA, "Release and Acquire Patterns").
fn releases(
    thread: &mut Thread,
    view: View,
    location: Location,
    access: &Access,
    order: Order,
    source: Option<&Write>,
) -> Option<Rc<Vec<Release>>> {
    let who = access.who;
    let mut all = Vec::new();
    let mut widest = None;
    if matches!(order, Order::Release | Order::AcqRel) {
        let release = Release { view: view.clone(), scope: access.scope, who };
        thread.released.retain(|(at, known)| !location.covers(*at) || known.scope > access.scope);
        thread.released.push((location, release.clone()));
        widest = Some(access.scope);
        all.push(release);
    }
    // A pattern that begins earlier says less than one of the same scope that begins here.
    let says_more = |scope: Scope| widest.is_none_or(|widest| scope > widest);
    let here = |(at, known): &&(Location, Release)| at.meets(location) && known.who.event != who.event;
    let earlier = thread.released.iter().filter(here);
    all.extend(earlier.filter(|(_, known)| says_more(known.scope)).map(|(_, known)| known.clone()));
    for (scope, fence) in [Scope::Cta, Scope::Cluster, Scope::Gpu, Scope::Sys].into_iter().zip(&thread.fences)
    {
        if let Some((who, view)) = fence
            && says_more(scope)
        {
            all.push(Release { view: view.clone(), scope, who: *who });
        }
    }
    if let Some(releases) = source.and_then(|source| source.releases.as_ref()) {
        let covered =
            |release: &Release| !says_more(release.scope) && view.knowledge.has_base(release.view.at);
        all.extend(releases.iter().filter(|release| !covered(release)).cloned());
    }
    (!all.is_empty()).then(|| Rc::new(all))
}
