//! Loads: left open and bound late, within the axioms, and what a thread learns from what it reads.

use super::history::{Access, Closing, Exposed, Reader, Write};
use super::memory::{Location, Place, WordId, bits_of};
use super::model::{Model, Pattern};
use super::pending::{Pending, Registers};
use super::report::{Finding, UnsynchronizedRead};
use super::thread::Thread;
use super::trace::AccessKind;
use super::view::Knowledge;
use meshreduce_emulator_ptx::semantics::convert::extend;
use meshreduce_emulator_ptx::types::{Order, Scope, Type};

/// A scalar load, as decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadOf {
    pub(super) place: Place,
    pub(super) order: Order,
    pub(super) scope: Scope,
    pub(super) noncoherent: bool,
    pub(super) ty: Type,
    pub(super) to: Registers,
    pub(super) pc: u32,
}

impl Model {
    /// A load. The value, unless the load is left open.
    pub(super) fn load(&mut self, thread: &mut Thread, load: LoadOf) -> Result<(), Box<Finding>> {
        let who = thread.event(load.pc);
        let strong = load.order.is_strong();
        let acquire = load.order == Order::Acquire;
        let access =
            Access { who, mask: load.place.mask, strong, scope: load.scope, mapping: load.place.mapping };
        let (word, location) = (load.place.word, load.place.location());
        if acquire && !thread.seen.is_empty() {
            // A strong read followed by an acquire on the same location is an acquire pattern too.
            thread.acquire_seen(|at, release| at.meets(location) && release.reaches(access.scope, &who));
        }
        let knowledge = match load.noncoherent {
            true => self.book.start_of(who.launch).clone(),
            false => thread.knowledge.clone(),
        };
        if !load.noncoherent {
            self.admit(thread.number, &thread.knowledge, &load.place);
        }
        if self.detect_races {
            let until = load.noncoherent.then(|| self.book.end_of(who.launch));
            let reader =
                Reader { access, knowledge: &knowledge, atomic: false, noncoherent: load.noncoherent };
            if let Some(conflict) = self.memory.cell(word).read(&reader, until) {
                return Err(self.conflict(word, &conflict));
            }
        }
        let closings = match acquire {
            true => vec![Closing { scope: load.scope, knowledge: knowledge.clone() }],
            false => Vec::new(),
        };
        let open = Pending {
            access,
            place: load.place,
            ty: load.ty,
            to: load.to,
            knowledge,
            noncoherent: load.noncoherent,
            closings,
            acquire,
            exposed: false,
        };
        let defer = self.relaxation.defer;
        if !load.noncoherent
            && self.chance(defer)
            && (!acquire || !self.calm && self.can_close(&open, &open.closings))
        {
            thread.leave_open(open);
        } else {
            self.bind(thread, &open);
        }
        Ok(())
    }

    /// Whether an open load may stay open behind these closings.
    fn can_close(&mut self, open: &Pending, closings: &[Closing]) -> bool {
        self.memory.cell(open.place.word).can_close(&open.reader(), closings)
    }

    /// Whether an open load stays open, in sight of others, when something behind it is handed on; at `fence`, which
    /// ends acquire patterns of that scope.
    pub(super) fn stays_open(
        &mut self,
        knowledge: &Knowledge,
        open: &mut Pending,
        fence: Option<Scope>,
    ) -> bool {
        if self.calm || !self.chance(128) {
            return false;
        }
        let mut closings = open.closings.clone();
        closings.extend(fence.map(|scope| Closing { scope, knowledge: knowledge.clone() }));
        if fence.is_some() && !self.can_close(open, &closings) {
            return false;
        }
        let Pending { access, knowledge, .. } = open;
        let cell = self.memory.cell(open.place.word);
        match cell.exposed.iter_mut().find(|known| known.access.who.event == access.who.event) {
            Some(known) if fence.is_some() && known.choice.is_some() => return false,
            Some(known) => known.closings.clone_from(&closings),
            None => {
                let (knowledge, closings) = (knowledge.clone(), closings.clone());
                cell.exposed.push(Exposed { access: *access, knowledge, closings, choice: None });
            }
        }
        (open.exposed, open.closings) = (true, closings);
        true
    }

    /// Before the thread comes to a place: open loads there that its access follows must have their values, for the
    /// access may not contradict them.
    pub(super) fn admit(&mut self, thread: u32, knowledge: &Knowledge, place: &Place) {
        let word = place.word;
        for at in 0..self.memory.cell(word).exposed.len() {
            let Exposed { access, knowledge: ref before, ref closings, ref choice } =
                self.memory.cell(word).exposed[at];
            let event = access.who.event;
            if choice.is_none()
                && Location::new(word, access.mask).meets(place.location())
                && event.0 != thread
                && knowledge.has_base(event)
            {
                let (before, closings) = (before.clone(), closings.clone());
                let reader = Reader { access, knowledge: &before, atomic: false, noncoherent: false };
                let (value, write) = self.value(word, &reader, &closings);
                let cell = self.memory.cell(word);
                if let Some(write) = write.as_ref().filter(|write| write.access.morally_strong(&access)) {
                    cell.observed_late(event, write);
                }
                cell.exposed[at].choice = Some((value, write));
            }
        }
    }

    /// Chooses the value of a load and puts it into its register.
    pub(super) fn bind(&mut self, thread: &mut Thread, open: &Pending) {
        let word = open.place.word;
        let access = open.access;
        let event = access.who.event;
        let choice = match open.exposed {
            true => self.memory.cell(word).conceal(event),
            false => None,
        };
        let (value, write) = choice.unwrap_or_else(|| {
            // What nothing has followed yet may still synchronize.
            let fresh = !open.exposed && thread.events == event.1;
            let chosen = self.value(word, &open.reader(), if fresh { &[] } else { &open.closings });
            if let (true, Some(write)) = (open.exposed, &chosen.1)
                && write.access.morally_strong(&access)
            {
                self.memory.cell(word).observed_late(event, write);
            }
            chosen
        });
        let bits = value >> (8 * u32::from(open.place.shift));
        thread.set(open.to.low, extend(bits as u64, open.ty));
        if let Some(high) = open.to.high {
            thread.set(high, (bits >> 64) as u64);
        }
        self.trace.add(self.now, AccessKind::Load, &access, word, bits, || {
            write.as_ref().map(|write| write.access.who)
        });
        match write {
            Some(write) if !open.noncoherent => {
                let pattern = if open.acquire { Pattern::Closes } else { Pattern::Opens };
                self.observe(thread, &access, word, &write, pattern);
            }
            _ if access.strong => thread.idle += 1,
            _ => {}
        }
    }

    /// Chooses what a read returns: the bytes, in their places in the word, and the write, if it is not older than the
    /// history.
    fn value(&mut self, word: WordId, reader: &Reader<'_>, closings: &[Closing]) -> (u128, Option<Write>) {
        let mask = reader.access.mask;
        let mut value = self.memory.settled(word);
        let mut from = None;
        if self.memory.cell(word).is_uniform(mask) {
            from = self.choose(word, reader, mask, closings);
            if let Some(index) = from {
                value = self.memory.cell(word).writes[index].value;
            }
        } else {
            for bit in (0..16).map(|bit| 1u16 << bit).filter(|bit| bit & mask != 0) {
                if let Some(index) = self.choose(word, reader, bit, closings) {
                    let byte = self.memory.cell(word).writes[index].value;
                    value = value & !bits_of(bit) | byte & bits_of(bit);
                    from = Some(index);
                }
            }
        }
        (value & bits_of(mask), from.map(|index| self.memory.cell(word).writes[index].clone()))
    }

    pub(super) fn choose(
        &mut self,
        word: WordId,
        reader: &Reader<'_>,
        mask: u16,
        closings: &[Closing],
    ) -> Option<usize> {
        let Self { memory, candidates, .. } = self;
        let cell = memory.cell(word);
        cell.candidates(reader, mask, candidates);
        if !closings.is_empty() {
            let late = |write: &usize| cell.writes[*write].synchronizes(&reader.access, closings);
            candidates.all.retain(|write| !write.as_ref().is_some_and(late));
        }
        let count = candidates.all.len();
        debug_assert!(count > 0, "what waits can always read without synchronizing");
        let stale = self.relaxation.stale;
        let at = match count {
            0 | 1 => 0,
            _ if self.calm || !self.chance(stale) => 0,
            count => self.below(count),
        };
        self.candidates.all.get(at).copied().flatten()
    }

    /// A read has returned `write`: what the thread learns from that.
    pub(super) fn observe(
        &mut self,
        thread: &mut Thread,
        access: &Access,
        word: WordId,
        write: &Write,
        pattern: Pattern,
    ) {
        let acquire = pattern == Pattern::Closes;
        let me = access.who;
        let writer = write.access.who;
        let own = writer.event.0 == me.event.0;
        if own && (write.releases.is_none() || !access.strong) {
            thread.idle += u32::from(access.strong);
            return;
        }
        let new = !own && !thread.knowledge.has(writer.event);
        if !access.morally_strong(&write.access) {
            if new {
                let Access { strong, scope, .. } = *access;
                thread.note_unsynchronized(UnsynchronizedRead {
                    at: me,
                    of: write.access,
                    word,
                    strong,
                    scope,
                    acquire,
                    released: false,
                });
            }
            return;
        }
        thread.idle = if new { 0 } else { thread.idle + 1 };
        if new {
            self.progress = self.now;
        }
        if !own {
            thread.knowledge.observe(writer.event);
        }
        if !write.chain.is_empty() {
            let new = write.chain.beyond(&thread.chain);
            new.filter(|event| event.0 != me.event.0).for_each(|event| thread.knowledge.observe(event));
            thread.chain = write.chain.clone();
        }
        let mut synchronized = false;
        for release in write.releases.iter().flat_map(|releases| releases.iter()) {
            if release.who.event.0 == me.event.0 || thread.knowledge.has_base(release.view.at) {
                synchronized |= release.who.event.0 != me.event.0;
            } else if acquire && release.reaches(access.scope, &me) {
                thread.knowledge.join(&release.view);
                synchronized = true;
            } else if pattern != Pattern::None
                && !thread.seen.iter().any(|(_, known)| known.view.at == release.view.at)
            {
                thread.seen.push((Location::new(word, access.mask), release.clone()));
            }
        }
        if new && !synchronized {
            let released = write.releases.is_some();
            let Access { strong, scope, .. } = *access;
            thread.note_unsynchronized(UnsynchronizedRead {
                at: me,
                of: write.access,
                word,
                strong,
                scope,
                acquire,
                released,
            });
        }
    }
}
