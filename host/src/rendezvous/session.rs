//! One rank's part in one attempt: exchanging, waiting for one another and agreeing on a verdict.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_store::clock::Pause;
use meshreduce_store::codec::Payload;
use meshreduce_store::identity::{Life, Member};
use meshreduce_store::{Store, StoreError};

use super::keys::{create, look, look_for};
use super::roster::{ROSTER, Roster};
use super::verdict::{RendezvousFailure, Step, Verdict};
use super::waiting::{Waiting, absent};
use crate::error::Error;

/// How often a waiting rank looks whether the others are still alive.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(50);

/// Why a step did not come to its end.
#[derive(Debug)]
pub(crate) enum StepError {
    /// All ranks have a verdict.
    Verdict(Verdict),
    /// Something is broken on this rank; the others do not know yet.
    Local(Error),
    /// A new attempt has begun; this rank must join it.
    Superseded,
    /// The others have ended the attempt and cleared it away: none of them has anything of this rank's.
    Abandoned(Step),
}

impl<E: Into<Error>> From<E> for StepError {
    fn from(error: E) -> Self {
        StepError::Local(error.into())
    }
}

/// A rank's membership in an attempt.
pub(crate) struct Session<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) me: Member,
    pub(super) roster: Roster,
    pub(super) rank: usize,
    pub(super) timeout: Duration,
    /// What this rank has last said of whom it waits for.
    noted: Option<Waiting>,
    /// Of a member: that it takes part.
    presence: Option<Presence>,
}

/// That a rank of this process takes part in an attempt. A process whose rank is in a roster and takes part no more has left
/// the attempt without a word, because it lost the store.
struct Presence(u64, usize);

static PRESENT: Mutex<BTreeSet<(u64, usize)>> = Mutex::new(BTreeSet::new());

fn present() -> MutexGuard<'static, BTreeSet<(u64, usize)>> {
    PRESENT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Presence {
    fn drop(&mut self) {
        present().remove(&(self.0, self.1));
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(
        store: &'a dyn Store,
        me: Member,
        roster: Roster,
        rank: usize,
        timeout: Duration,
    ) -> Self {
        Self { store, me, roster, rank, timeout, noted: None, presence: None }
    }

    /// As a member of the attempt.
    pub(super) fn taking_part(mut self) -> Self {
        present().insert((self.roster.generation, self.rank));
        self.presence = Some(Presence(self.roster.generation, self.rank));
        self
    }

    pub(crate) fn generation(&self) -> u64 {
        self.roster.generation
    }

    pub(super) fn world_size(&self) -> usize {
        self.roster.members.len()
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{:016x}/{name}", self.roster.generation)
    }

    pub(super) fn rank_key(&self, step: Step, rank: usize) -> String {
        let name = match step {
            Step::First => "first",
            Step::Second => "second",
            Step::Acknowledgement => "acknowledgement",
            Step::Connecting => "connecting",
        };
        self.key(&format!("{name}/{rank}"))
    }

    pub(super) fn waiting_key(&self, rank: usize) -> String {
        self.key(&format!("waiting/{rank}"))
    }

    /// Sets this rank's payload, then reads everybody's; ends early as [`Session::until`] does, and when a payload is
    /// corrupt.
    pub(crate) fn exchange<T: Payload>(&mut self, step: Step, own: &T) -> Result<Vec<T>, StepError> {
        self.store.set(&self.rank_key(step, self.rank), &own.to_bytes())?;
        let mut all: Vec<Option<T>> = (0..self.world_size()).map(|_| None).collect();
        self.until(step, |session| {
            for (rank, payload) in all.iter_mut().enumerate().filter(|(_, payload)| payload.is_none()) {
                match session.read(step, rank) {
                    Ok(found) => *payload = found,
                    Err(StepError::Verdict(verdict)) => return Err(session.decide(verdict)),
                    Err(stop) => return Err(stop),
                }
            }
            Ok((0..all.len()).filter(|rank| all[*rank].is_none()).collect())
        })?;
        Ok(all.into_iter().flatten().collect())
    }

    /// Waits until `missing`, asked again and again, names no rank.
    ///
    /// Ends early, with a verdict, when some rank has one, when a rank that is missing has died, and when the time is up.
    pub(crate) fn until(
        &mut self,
        step: Step,
        mut missing: impl FnMut(&Self) -> Result<Vec<usize>, StepError>,
    ) -> Result<(), StepError> {
        let start = Instant::now();
        let mut pause = Pause::new(self.timeout);
        let mut looked = start;
        loop {
            match self.verdict()? {
                // Another rank has read everything before this one; so all of it is there.
                None | Some(Verdict::Ready) => {}
                Some(verdict) => return Err(StepError::Verdict(verdict)),
            }
            let missing = missing(self)?;
            if missing.is_empty() {
                return self.take_note_back();
            }
            let waiting = Waiting { step, ranks: missing };
            if looked.elapsed() >= LIVENESS_INTERVAL {
                looked = Instant::now();
                self.look(step)?;
                let died = self.roster.members.iter().enumerate().find_map(|(rank, member)| {
                    // Who has acknowledged may have come to an end since.
                    let counts = step < Step::Acknowledgement || waiting.ranks.contains(&rank);
                    let member = member.as_ref().filter(|_| counts && rank != self.rank)?;
                    let pid = member.process.pid;
                    self.has_ended(member).then_some(RendezvousFailure::Died { rank, pid, step })
                });
                if let Some(died) = died {
                    return self.give_up_on(died);
                }
                if self.noted.as_ref() != Some(&waiting) {
                    self.store.set(&self.waiting_key(self.rank), &waiting.to_bytes())?;
                    self.noted = Some(waiting.clone());
                }
            }
            if !pause.again() {
                let waited = start.elapsed();
                let Waiting { step, ranks } = absent(&waiting, |rank| self.note_of(rank))?;
                return self.give_up_on(RendezvousFailure::Missing { ranks, step, waited });
            }
        }
    }

    /// Whom a rank still waits for, as far as it says so: not for those that have come since.
    fn note_of(&self, rank: usize) -> Result<Option<Waiting>, Error> {
        let Some(mut note) = look_for::<Waiting>(self.store, &self.waiting_key(rank))? else {
            return Ok(None);
        };
        let mut missing = Vec::new();
        for rank in note.ranks {
            let has_come =
                note.step != Step::Connecting && look(self.store, &self.rank_key(note.step, rank))?.is_some();
            if !has_come {
                missing.push(rank);
            }
        }
        note.ranks = missing;
        Ok(Some(note))
    }

    /// This rank waits no longer: if it does not come on, it is to blame itself.
    fn take_note_back(&mut self) -> Result<(), StepError> {
        if self.noted.take().is_some() {
            self.store.delete(&self.waiting_key(self.rank))?;
        }
        Ok(())
    }

    pub(super) fn has_ended(&self, member: &Member) -> bool {
        member.life(&self.me.host) == Life::Ended
    }

    /// What can be told of the process that stands in the roster as this rank: this one, if it has left the attempt, has ended
    /// for it.
    pub(super) fn life_of_holder(&self, holder: &Member) -> Life {
        match *holder == self.me && !present().contains(&(self.roster.generation, self.rank)) {
            true => Life::Ended,
            false => holder.life(&self.me.host),
        }
    }

    /// Whether every member has certainly ended.
    pub(super) fn is_dead(&self) -> bool {
        self.roster.members.iter().flatten().all(|member| self.has_ended(member))
    }

    /// Ends a step in which somebody is missing, unless all are ready: then nobody is, whatever this rank saw.
    fn give_up_on(&self, failure: RendezvousFailure) -> Result<(), StepError> {
        match self.propose(&Verdict::Failed(failure))? {
            Verdict::Ready => Ok(()),
            verdict => Err(StepError::Verdict(verdict)),
        }
    }

    /// One rank's payload, if it is there; a verdict if it cannot be read.
    fn read<T: Payload>(&self, step: Step, rank: usize) -> Result<Option<T>, StepError> {
        let key = self.rank_key(step, rank);
        let corrupt = |problem: String| {
            StepError::Verdict(Verdict::Failed(RendezvousFailure::Corrupt {
                key: key.clone(),
                rank,
                problem,
            }))
        };
        match look(self.store, &key) {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => {
                T::from_bytes(&bytes).map(Some).map_err(|problem| corrupt(problem.to_string()))
            }
            Err(StoreError::Corrupt { problem, .. }) => Err(corrupt(problem)),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the roster again: who has joined meanwhile, and is this still the current attempt?
    fn look(&mut self, step: Step) -> Result<(), StepError> {
        let is_another = match self.roster_or_own()? {
            Some(roster) if roster.generation == self.roster.generation && roster.closed_by.is_none() => {
                self.roster = roster;
                return Ok(());
            }
            Some(roster) => roster.generation != self.roster.generation && roster.closed_by.is_none(),
            None => false,
        };
        // The verdict may have come between this and the look at it.
        match self.verdict()? {
            Some(Verdict::Ready) => Ok(()),
            Some(verdict) => Err(StepError::Verdict(verdict)),
            None if is_another && step == Step::First => Err(StepError::Superseded),
            None => Err(StepError::Abandoned(step)),
        }
    }

    /// The roster that is there. Where there is none, though payloads of this attempt are, a rank that was slow to clear away an
    /// earlier attempt has deleted this one's (when an attempt is cleared away its payloads go first): it is put back.
    fn roster_or_own(&self) -> Result<Option<Roster>, Error> {
        let found = look_for::<Roster>(self.store, ROSTER)?;
        if found.is_some() {
            return Ok(found);
        }
        for rank in (0..self.world_size()).filter(|rank| *rank != self.rank) {
            if look(self.store, &self.rank_key(Step::First, rank))?.is_some() {
                return create(self.store, ROSTER, &self.roster).map(Some);
            }
        }
        Ok(None)
    }

    pub(super) fn verdict(&self) -> Result<Option<Verdict>, Error> {
        look_for(self.store, &self.key("verdict"))
    }

    /// Makes `verdict` the attempt's, unless it has one; returns the one it has.
    pub(crate) fn propose(&self, verdict: &Verdict) -> Result<Verdict, Error> {
        create(self.store, &self.key("verdict"), verdict)
    }

    /// Whether the attempt has not been closed or replaced.
    ///
    /// A verdict that was proposed before this holds: keys are deleted after the roster was closed.
    pub(crate) fn is_open(&self) -> Result<bool, Error> {
        let roster = self.roster_or_own()?;
        Ok(roster
            .is_some_and(|roster| roster.generation == self.roster.generation && roster.closed_by.is_none()))
    }

    /// [`Session::propose`] as the end of a step.
    pub(crate) fn decide(&self, verdict: Verdict) -> StepError {
        self.propose(&verdict).map_or_else(StepError::Local, StepError::Verdict)
    }
}
