//! The ring of the last calls. Recording one takes a lock that nobody holds for long, and allocates nothing.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use super::{Begun, Entry, RecordedGroup, Snapshot, State, Status, WaitingCall};
use crate::brief_lock::{Brief, BriefLock};
use crate::clock;
use crate::prefetch::prefetch;

/// The last calls of a group and of those that were made from it. Groups have one and record their calls in it; it can be used
/// without a group, too:
///
/// ```
/// use std::panic::Location;
/// use std::sync::Arc;
/// use std::time::Instant;
///
/// use meshreduce_process_group::flight_recorder::{Begun, FlightRecorder, State};
/// use meshreduce_process_group::{Buffer as _, Call, ReduceOp};
///
/// let recorder = FlightRecorder::new(0, 2000);
/// let group = recorder.add_group(&"0".into(), "default_pg", &Arc::from([0, 1]));
/// let tensor = [1.0_f32; 4].tensor();
/// let entry = recorder.begin(&Begun {
///     group,
///     backend: &"host".into(),
///     call: &Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum },
///     collective_sequence: 1,
///     p2p_sequence: 0,
///     created: Instant::now(),
///     deadline: None,
///     location: Location::caller(),
/// });
/// recorder.started(entry, Instant::now());
/// assert_eq!(recorder.snapshot().entries[0].state, State::Started);
/// assert_eq!(recorder.status(group).last_started, 1);
/// ```
#[derive(Debug)]
pub struct FlightRecorder {
    rank: usize,
    ring: BriefLock<Ring>,
    /// By place. Noted without a lock, which a call would take for this alone; whoever has the lock and looks at an entry takes it in
    /// first ([`Ring::take_in`]).
    marks: Box<[Mark]>,
    refresh: Refresh,
}

/// What is done before anybody reads what is recorded: its groups note which calls have ended.
#[derive(Default)]
struct Refresh(OnceLock<Box<dyn Fn() + Send + Sync>>);

impl fmt::Debug for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refresh").field(&self.0.get().is_some()).finish()
    }
}

/// What is noted of the call at a place without the lock: of which one by its record number and 1 more, so that a mark that comes late,
/// when the place is another call's, is seen to be none of its.
#[derive(Debug, Default)]
struct Mark {
    /// The call whose place it is.
    call: AtomicU64,
    /// It had started as soon as it was made.
    started: AtomicU64,
    /// It has ended well, then.
    ended: AtomicU64,
    /// As [`clock::nanos`] told it.
    ended_at: AtomicU64,
}

#[derive(Debug)]
struct Ring {
    capacity: usize,
    /// The entry with record number n is at n modulo capacity.
    entries: Vec<Entry>,
    next: u64,
    /// Where that one's entry goes.
    next_place: usize,
    groups: Vec<Place>,
    /// How many have been made.
    made: u64,
    /// Places of groups that are gone, as are their calls.
    free: Vec<u32>,
}

/// A group's place, which entries name.
#[derive(Debug)]
struct Place {
    group: RecordedGroup,
    /// Its number, in the order in which they were made.
    number: u64,
    state: Presence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    There,
    /// It makes no calls any more.
    Gone,
    /// Nor is any of its calls kept.
    Free,
}

/// As many groups that are gone are kept without a look at whether their calls still are.
const GONE: usize = 64;

/// A recorded call, by which its recorder finds it again, for as long as it is among the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId {
    record: u64,
    place: usize,
    group: u32,
    /// Its number among the group's collectives, 0 if it is none: how far a group has come is counted even when the entry is gone.
    collective: u64,
}

impl FlightRecorder {
    /// Of the process with this rank in the group of all ranks; keeps the last `capacity` calls. With 0 it is off: it knows how
    /// far groups have come, and no calls. All of its memory is allocated here, some 300 bytes a call.
    pub fn new(rank: usize, capacity: usize) -> Self {
        let entries = Vec::with_capacity(capacity);
        Self {
            rank,
            ring: BriefLock::new(Ring {
                capacity,
                entries,
                next: 0,
                next_place: 0,
                groups: Vec::new(),
                made: 0,
                free: Vec::new(),
            }),
            marks: (0..capacity).map(|_| Mark::default()).collect(),
            refresh: Refresh::default(),
        }
    }

    /// Has this done before anybody reads what is recorded. Only the first counts.
    pub(crate) fn refresh_by(&self, refresh: impl Fn() + Send + Sync + 'static) {
        let _ = self.refresh.0.set(Box::new(refresh));
    }

    fn refresh(&self) {
        if let Some(refresh) = self.refresh.0.get() {
            refresh();
        }
    }

    fn ring(&self) -> Brief<'_, Ring> {
        self.ring.lock()
    }

    /// Adds a group whose members are, by rank, these ranks of the group of all ranks; returns its index.
    pub fn add_group(&self, name: &Arc<str>, description: &str, ranks: &Arc<[usize]>) -> u32 {
        let group = RecordedGroup {
            name: Arc::clone(name),
            description: description.into(),
            ranks: Arc::clone(ranks),
            status: Status::default(),
        };
        let mut ring = self.ring();
        ring.sweep();
        let (number, state) = (ring.made, Presence::There);
        ring.made += 1;
        let place = Place { group, number, state };
        match ring.free.pop() {
            Some(at) => {
                ring.groups[at as usize] = place;
                at
            }
            None => {
                ring.groups.push(place);
                (ring.groups.len() - 1) as u32
            }
        }
    }

    /// A group makes no calls any more: it is kept as long as one of its calls is.
    pub fn remove_group(&self, group: u32) {
        if let Some(place) = self.ring().groups.get_mut(group as usize)
            && place.state == Presence::There
        {
            place.state = Presence::Gone;
        }
    }

    /// Records a call that a backend is about to get. Allocates nothing but, once a thread, what its name takes.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn begin(&self, begun: &Begun<'_>) -> EntryId {
        let numbers = (begun.collective_sequence, begun.p2p_sequence);
        self.begin_in_turn(&mut begun.clone(), || numbers).0
    }

    /// One at a time.
    pub(crate) fn in_turn<T>(&self, act: impl FnOnce() -> T) -> T {
        let _turn = self.ring();
        act()
    }

    /// [`FlightRecorder::begin`] of a call that is given its numbers in its turn, those of collectives and of sends and receives.
    #[inline(always)]
    pub(crate) fn begin_in_turn(
        &self,
        begun: &mut Begun<'_>,
        numbers: impl FnOnce() -> (u64, u64),
    ) -> (EntryId, (u64, u64)) {
        let is_p2p = begun.call.is_point_to_point();
        let mut ring = self.ring();
        let numbers = numbers();
        (begun.collective_sequence, begun.p2p_sequence) = numbers;
        let collective = if is_p2p { 0 } else { numbers.0 };
        let (record, place) = (ring.next, ring.next_place);
        self.count_in(&mut ring, place);
        let status = &mut ring.groups[begun.group as usize].group.status;
        status.last_enqueued = status.last_enqueued.max(collective);
        ring.next += 1;
        // No division: this is on the way of every call.
        ring.next_place = if place + 1 < ring.capacity { place + 1 } else { 0 };
        if let Some(mark) = self.marks.get(place) {
            mark.call.store(record + 1, Ordering::Relaxed);
        }
        if let Some(entry) = ring.entries.get_mut(place) {
            entry.overwrite(record, is_p2p, begun);
        } else if ring.capacity > 0 {
            ring.entries.push(Entry::new(record, is_p2p, begun));
        }
        // Of thousands of entries the next one is far away, and whoever takes a lock waits for what it has written.
        if let Some(next) = ring.entries.get(ring.next_place) {
            prefetch(next);
        }
        (EntryId { record, place, group: begun.group, collective }, numbers)
    }

    /// The backend has it.
    pub fn started(&self, id: EntryId, at: Instant) {
        let mut ring = self.ring();
        if let Some(entry) = ring.entry(id) {
            entry.state = entry.state.max(State::Started);
            entry.started.get_or_insert(at);
        }
        ring.groups[id.group as usize].group.status.has_started(id.collective);
    }

    /// The backend has it, since the moment when it was made or so.
    #[inline]
    pub(crate) fn started_at_once(&self, id: EntryId, at: Instant) {
        match self.marks.get(id.place) {
            // Another call may have this place by now, and between the two another one's mark be put there: after as many calls as
            // are kept, of which one is then said to be scheduled until it ends.
            Some(mark) if mark.call.load(Ordering::Relaxed) == id.record + 1 => {
                mark.started.store(id.record + 1, Ordering::Relaxed);
            }
            Some(_) => {}
            None => self.started(id, at),
        }
    }

    /// It has ended well, before anybody else could see it go on: now.
    #[inline]
    pub(crate) fn ended_at_once(&self, id: EntryId) {
        match self.marks.get(id.place) {
            // (As above, the group is then said to have come as far as the next call that ends.)
            Some(mark) if mark.call.load(Ordering::Relaxed) == id.record + 1 => {
                mark.ended_at.store(clock::nanos(), Ordering::Relaxed);
                mark.ended.store(id.record + 1, Ordering::Release);
            }
            _ => self.ended(id, true, clock::now()),
        }
    }

    /// Before the place of a call is another one's: its group has come as far as its mark says. What else the mark says is of no
    /// interest any more.
    #[inline]
    fn count_in(&self, ring: &mut Ring, place: usize) {
        let (Some(entry), Some(mark)) = (ring.entries.get(place), self.marks.get(place)) else { return };
        let (number, sequence) = (entry.record + 1, entry.collective_sequence);
        if entry.is_p2p || entry.ended.is_some() {
            return;
        }
        let status = &mut ring.groups[entry.group as usize].group.status;
        if mark.ended.load(Ordering::Relaxed) == number {
            status.has_completed(sequence);
        } else if mark.started.load(Ordering::Relaxed) == number {
            status.has_started(sequence);
        }
    }

    /// Notes of the call at a place what its mark says.
    #[inline]
    fn take_in(&self, ring: &mut Ring, place: usize) {
        let (Some(entry), Some(mark)) = (ring.entries.get_mut(place), self.marks.get(place)) else { return };
        let number = entry.record + 1;
        let status = &mut ring.groups[entry.group as usize].group.status;
        if mark.started.load(Ordering::Relaxed) == number && entry.started.is_none() {
            entry.state = entry.state.max(State::Started);
            entry.started = Some(entry.created);
            if !entry.is_p2p {
                status.has_started(entry.collective_sequence);
            }
        }
        if mark.ended.load(Ordering::Acquire) == number {
            let at = clock::at(mark.ended_at.load(Ordering::Relaxed));
            if entry.end(true, at) && !entry.is_p2p {
                status.has_completed(entry.collective_sequence);
            }
        }
    }

    fn take_in_all(&self, ring: &mut Ring) {
        (0..ring.entries.len()).for_each(|place| self.take_in(ring, place));
    }

    /// It has gone into a graph: it stays as it is.
    pub(crate) fn captured(&self, id: EntryId) {
        if let Some(entry) = self.ring().entry(id) {
            entry.is_captured = true;
        }
    }

    /// Another backend has taken it than the one that was to get it.
    pub(crate) fn taken_by(&self, id: EntryId, backend: &Arc<str>) {
        if let Some(entry) = self.ring().entry(id) {
            entry.backend = Arc::clone(backend);
        }
    }

    /// A receive from any rank was from this one.
    pub(crate) fn received_from(&self, id: EntryId, rank: usize) {
        if let Some(entry) = self.ring().entry(id) {
            entry.peer = Some(rank);
        }
    }

    /// It has ended. If it has ended well, it was started, whether anybody said so or not. Only its first end counts.
    pub fn ended(&self, id: EntryId, well: bool, at: Instant) {
        let mut ring = self.ring();
        self.take_in(&mut ring, id.place);
        let is_first = ring.entry(id).is_none_or(|entry| entry.end(well, at));
        if well && is_first {
            ring.groups[id.group as usize].group.status.has_completed(id.collective);
        }
    }

    /// All collectives of a group that `backend` has made, up to and with that number, have ended well.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn ended_through(&self, group: u32, backend: &Arc<str>, sequence: u64, at: Instant) {
        self.end_through(group, backend, sequence, at, |_| {});
    }

    /// [`FlightRecorder::ended_through`] that tells `note`, under the recorder's lock, of each call that was not known to have ended.
    pub(crate) fn end_through(
        &self,
        group: u32,
        backend: &Arc<str>,
        sequence: u64,
        at: Instant,
        mut note: impl FnMut(&Entry),
    ) {
        let mut ring = self.ring();
        self.take_in_all(&mut ring);
        let Ring { entries, groups, .. } = &mut *ring;
        let status = &mut groups[group as usize].group.status;
        for entry in entries.iter_mut() {
            let is_meant = entry.group == group
                && !entry.is_p2p
                && !entry.is_captured
                && entry.collective_sequence <= sequence
                && entry.backend == *backend;
            if is_meant && entry.end(true, at) {
                status.has_completed(entry.collective_sequence);
                note(entry);
            }
        }
    }

    /// How far a group has come.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn status(&self, group: u32) -> Status {
        self.refresh();
        let mut ring = self.ring();
        self.take_in_all(&mut ring);
        ring.groups[group as usize].group.status
    }

    /// Of each group the first call that has gone on for so long, as far as calls are kept; those made first come first. (Captured calls go
    /// on for ever, and are none of these.)
    pub fn waiting(&self, since: Duration) -> Vec<WaitingCall> {
        let mut ring = self.ring();
        self.take_in_all(&mut ring);
        let goes_on =
            |entry: &&Entry| entry.ended.is_none() && !entry.is_captured && entry.created.elapsed() >= since;
        let mut first: Vec<&Entry> = Vec::new();
        for entry in ring.entries.iter().filter(goes_on) {
            match first.iter_mut().find(|known| known.group == entry.group) {
                Some(known) if entry.record < known.record => *known = entry,
                Some(_) => {}
                None => first.push(entry),
            }
        }
        first.sort_by_key(|entry| entry.record);
        let call = |entry: &Entry| WaitingCall {
            group: Arc::clone(&ring.groups[entry.group as usize].group.name),
            operation: entry.operation,
            sequence: if entry.is_p2p { entry.p2p_sequence } else { entry.collective_sequence },
        };
        first.into_iter().map(call).collect()
    }

    /// Everything, now. A group's recorder first notes which of its calls have ended.
    pub fn snapshot(&self) -> Snapshot {
        self.refresh();
        let mut ring = self.ring();
        self.take_in_all(&mut ring);
        let mut entries = ring.entries.clone();
        let moment = (Instant::now(), SystemTime::now());
        let mut order: Vec<usize> =
            (0..ring.groups.len()).filter(|at| ring.groups[*at].state != Presence::Free).collect();
        order.sort_by_key(|at| ring.groups[*at].number);
        let groups: Vec<_> = order.iter().map(|at| ring.groups[*at].group.clone()).collect();
        drop(ring);
        for entry in &mut entries {
            let index = order.iter().position(|at| *at == entry.group as usize);
            entry.group = index.expect("a group is kept as long as its calls are") as u32;
        }
        entries.sort_by_key(|entry| entry.record);
        Snapshot { rank: self.rank, groups, entries, moment }
    }
}

impl Status {
    fn has_started(&mut self, sequence: u64) {
        self.last_started = self.last_started.max(sequence);
    }

    fn has_completed(&mut self, sequence: u64) {
        self.has_started(sequence);
        self.last_completed = self.last_completed.max(sequence);
    }
}

impl Ring {
    /// Frees the places of groups that are gone with all their calls.
    fn sweep(&mut self) {
        let is_gone = |place: &Place| place.state == Presence::Gone;
        if self.groups.iter().filter(|place| is_gone(place)).count() <= GONE {
            return;
        }
        let mut is_used = vec![false; self.groups.len()];
        self.entries.iter().for_each(|entry| is_used[entry.group as usize] = true);
        for (at, place) in self.groups.iter_mut().enumerate() {
            if place.state == Presence::Gone && !is_used[at] {
                place.state = Presence::Free;
                self.free.push(at as u32);
            }
        }
    }

    /// An entry that is still there.
    fn entry(&mut self, id: EntryId) -> Option<&mut Entry> {
        self.entries.get_mut(id.place).filter(|entry| entry.record == id.record)
    }
}

#[cfg(test)]
mod tests;
