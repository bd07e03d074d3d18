//! Steps: how the ranks of an island pass data through shared memory.
//!
//! Every collective of an island is a number of steps that is equal on all its ranks. In a step a rank puts its data into the
//! slot of its own segment, says that it has come to the step (a release), waits for those whose data it needs (an acquire),
//! and reads their slots. There are two slots, for even and odd steps: whoever comes to step `s` has finished reading those of
//! `s - 1`, so the slot of `s` may be written once all others have come to `s - 1`; of a short input's place, which follows the
//! flags of its step, the same is true. With each step goes the fingerprint of the call;
//! nothing of a slot is used whose fingerprint is another one, and whatever it says, reads stay within slots.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::fingerprint::Fingerprint;
use super::mailbox::differ;
use super::segment::Segment;
use super::stream::{Copies, copy_behind_flags};
use super::ticket;
use super::wait::{For, Wait};
use super::wire::Neighbour;
use crate::error::Error;

/// The own side of an island's steps.
#[derive(Debug)]
pub(super) struct Island {
    /// By place.
    members: Vec<Neighbour>,
    place: usize,
    step: u64,
    /// Of the last steps, even and odd.
    fingerprints: [Fingerprint; 2],
    /// By place: the last step to which it is known to have come.
    seen: Vec<u64>,
    /// Whether those who may sleep for the last step have not been looked for.
    owes_wake: bool,
    /// Into the own slots.
    pub(super) copies: Copies,
}

/// Looks for a rank before those are looked for who may sleep for this one. Whoever sleeps for it has come itself, so that looking
/// ends at once, or there are others, which wait so much longer.
const FIRST_LOOKS: u32 = 200;

/// The call in which a rank has come to a step.
fn fingerprint_of(member: &Neighbour, step: u64) -> Fingerprint {
    let line = member.segment.step(step);
    let word = |at: usize| line.fingerprint[at].load(Ordering::Relaxed);
    Fingerprint { sequence: word(0), what: word(1), count: word(2) }
}

impl Island {
    pub(super) fn new(members: Vec<Neighbour>, place: usize) -> Self {
        let seen = vec![0; members.len()];
        Self {
            members,
            place,
            step: 0,
            fingerprints: [Fingerprint::default(); 2],
            seen,
            owes_wake: false,
            copies: Copies::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Bytes of the part of a slot that is for inputs.
    pub(super) fn room(&self) -> usize {
        self.members[self.place].segment.layout().input
    }

    /// Begins the next step: its own slot may be written after this.
    pub(super) fn begin(&mut self, wait: &Wait<'_>) -> Result<u64, Error> {
        self.settle();
        for place in 0..self.members.len() {
            if self.seen[place] < self.step {
                self.come(place, self.step, wait)?;
            }
        }
        self.step += 1;
        self.fingerprints[(self.step % 2) as usize] = wait.fingerprint;
        Ok(self.step)
    }

    /// Says that this rank has come to the step that it has begun. [`Self::settle`] or
    /// [`Self::all_come`] follows.
    pub(super) fn publish(&mut self, wait: &Wait<'_>) {
        let line = self.members[self.place].segment.step(self.step);
        let Fingerprint { sequence, what, count } = self.fingerprints[(self.step % 2) as usize];
        for (place, word) in line.fingerprint.iter().zip([sequence, what, count]) {
            place.store(word, Ordering::Relaxed);
        }
        line.number.store(self.step, Ordering::Release);
        self.seen[self.place] = self.step;
        self.owes_wake = true;
        if !wait.net.fits {
            // Some may well sleep.
            self.settle();
        }
    }

    /// Wakes those who sleep for the last step.
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.owes_wake) {
            return;
        }
        // Whoever sleeps has said so before it looked at the step, or sees it.
        fence(Ordering::SeqCst);
        for (place, member) in self.members.iter().enumerate() {
            if place == self.place {
                continue;
            }
            let waits = &member.segment.control().waits.0;
            if waits.for_place.load(Ordering::Relaxed) == self.place as u32 + 1 {
                waits.bell.fetch_add(1, Ordering::Relaxed);
                ticket::wake(&waits.bell, true);
            }
            member.ring_for_step();
        }
    }

    /// Whether it has: what it has put into its slot is there then.
    fn has_come(&self, place: usize, step: u64) -> bool {
        self.members[place].segment.step(step).number.load(Ordering::Acquire) >= step
    }

    /// Waits until the rank at `place` has come to `step`, one of the last two of this rank, in the same call.
    pub(super) fn come(&mut self, place: usize, step: u64, wait: &Wait<'_>) -> Result<(), Error> {
        if self.seen[place] >= step {
            return Ok(());
        }
        if !(wait.net.fits && (0..FIRST_LOOKS).any(|_| self.has_come(place, step))) {
            self.settle();
            wait.until(For::Step(place), || self.has_come(place, step))?;
        }
        let member = &self.members[place];
        let fingerprint = fingerprint_of(member, step);
        let own = self.fingerprints[(step % 2) as usize];
        if fingerprint != own {
            let ranks = (self.members[self.place].rank, member.rank);
            return Err(wait.shared.fail(differ(wait.shared.name(), ranks, &own, &fingerprint)));
        }
        self.seen[place] = step;
        Ok(())
    }

    /// At the end, to which all others have come too: that one of them has come to this rank's last step in another call. A rank that has
    /// only written in that step has not looked.
    pub(super) fn differs_at_the_end(&self, group: &Arc<str>) -> Option<Error> {
        let own = self.fingerprints[(self.step % 2) as usize];
        let others =
            self.members.iter().enumerate().filter(|(place, _)| *place != self.place && self.step > 0);
        let mut there = others.filter(|(place, _)| self.has_come(*place, self.step));
        there.find_map(|(_, member)| {
            let fingerprint = fingerprint_of(member, self.step);
            (fingerprint != own)
                .then(|| differ(group, (self.members[self.place].rank, member.rank), &own, &fingerprint))
        })
    }

    /// Waits for all others.
    pub(super) fn all_come(&mut self, step: u64, wait: &Wait<'_>) -> Result<(), Error> {
        (0..self.members.len()).try_for_each(|place| self.come(place, step, wait))?;
        self.settle();
        Ok(())
    }

    /// Where the inputs of the rank at `place` lie in the slot of `step`: [`Self::room`] bytes. To be written by itself between
    /// [`Self::begin`] and [`Self::publish`], to be read by others between [`Self::come`] and the next [`Self::publish`].
    pub(super) fn input(&self, place: usize, step: u64) -> *mut u8 {
        self.members[place].segment.input(step)
    }

    /// Puts this rank's input, of so many bytes, where the others look for it.
    ///
    /// # Safety
    ///
    /// It is valid for reads and no longer than [`Self::room`], and this is between [`Self::begin`] of `step` and [`Self::publish`].
    pub(super) unsafe fn put(&mut self, input: *const u8, bytes: usize, step: u64) {
        let to = self.input_of(bytes, self.place, step);
        // SAFETY: the caller's promise; nobody else uses the place now.
        unsafe {
            match bytes <= Segment::SHORT {
                true => copy_behind_flags(input, to, bytes, Segment::SHORT_IN_LINE),
                false => self.copies.copy(input, to, bytes),
            }
        }
    }

    /// Where an input of so many bytes lies, as all ranks know that it has: short ones follow the flags of the step, and come to
    /// the others with them.
    pub(super) fn input_of(&self, bytes: usize, place: usize, step: u64) -> *mut u8 {
        let segment = &self.members[place].segment;
        if bytes <= Segment::SHORT { segment.short(step) } else { segment.input(step) }
    }

    /// Where its results lie, half as many bytes and a page; likewise. The own ones of the step to come may be written from
    /// [`Self::all_come`] on.
    pub(super) fn result(&self, place: usize, step: u64) -> *mut u8 {
        self.members[place].segment.result(step)
    }
}
