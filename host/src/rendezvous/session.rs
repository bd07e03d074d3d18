//! One rank's part in one attempt: joining, exchanging, agreeing on a verdict and clearing up.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use meshreduce_device::identity::{Host, Process};

use super::payload::Payload;
use super::roster::{Member, Roster};
use super::verdict::{Failure, Step, Verdict};
use crate::error::Error;
use crate::store::{Pause, Store, StoreError};

const ROSTER: &str = "roster";

/// How often a waiting rank looks whether the others are still alive.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(50);

/// Why a step did not come to its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// All ranks have a verdict.
    Verdict(Verdict),
    /// Something is broken on this rank; the others do not know yet.
    Local(Error),
    /// A new attempt has begun; this rank must join it.
    Superseded,
    /// The others have ended the attempt and cleared it away: none of them has anything of this rank's.
    Abandoned(Step),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Local(error.into())
    }
}

/// What joining comes to.
pub(crate) enum Joined<'a> {
    /// The rank takes part.
    Member(Session<'a>),
    /// The attempt was over before this rank came; it was this rank's attempt too.
    Late(Session<'a>, Verdict),
}

/// A rank's membership in an attempt.
pub(crate) struct Session<'a> {
    store: &'a dyn Store,
    host: Host,
    roster: Roster,
    rank: usize,
    timeout: Duration,
}

impl<'a> Session<'a> {
    /// Joins the current attempt, or opens one.
    pub(crate) fn join(
        store: &'a dyn Store,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Joined<'a>, Error> {
        let host = Host::current()?;
        let me = Member::new(&host, Process::current()?);
        let session = |roster: Roster| Session { store, host: host.clone(), roster, rank, timeout };
        let mut pause = Pause::new(timeout);
        loop {
            let found = store.try_get(ROSTER)?;
            let current = found.as_deref().map(read_roster).transpose()?;
            let next = match &current {
                None => Roster::new(world_size),
                Some(roster) => {
                    let session = session(roster.clone());
                    match session.verdict()? {
                        Some(verdict) if session.is_mine(&verdict, world_size) => {
                            return Ok(Joined::Late(session, verdict));
                        }
                        Some(_) => Roster::new(world_size),
                        None if roster.is_dead(&host) => Roster::new(world_size),
                        None => session.joinable(&me, world_size)?,
                    }
                }
            };
            let joined = next.with(rank, me.clone());
            if store.compare_set(ROSTER, found.as_deref(), Some(&joined.to_bytes()))? == found {
                if let Some(roster) =
                    current.filter(|old| old.generation != joined.generation && old.is_dead(&host))
                {
                    session(roster).delete_keys()?;
                }
                return Ok(Joined::Member(session(joined)));
            }
            if !pause.again() {
                return Err(StoreError::Timeout { keys: vec![ROSTER.into()], waited: timeout }.into());
            }
        }
    }

    /// The open attempt's roster, if this rank can join it; else what stands in the way, for the others too.
    fn joinable(&self, me: &Member, world_size: usize) -> Result<Roster, Error> {
        let members = &self.roster.members;
        if members.len() != world_size {
            let other = members.iter().position(Option::is_some).unwrap_or(0);
            let different = Failure::Different {
                field: "world size".into(),
                ranks: (other, self.rank),
                values: (members.len().to_string(), world_size.to_string()),
            };
            self.propose(&Verdict::Failed(different.clone()))?;
            return Err(different.into());
        }
        match &members[self.rank] {
            // If another member is dead, the exchange finds out.
            None => Ok(self.roster.clone()),
            // This rank was started anew while the others still wait for its predecessor.
            Some(member) if member.has_ended(&self.host) => {
                let died = Failure::Died { rank: self.rank, pid: member.process.pid, step: Step::First };
                self.propose(&Verdict::Failed(died.clone()))?;
                Err(died.into())
            }
            // Of a process on another host it cannot be told whether it is still there.
            Some(member) if member.boot_id != me.boot_id && !self.roster.is_younger_than(self.timeout) => {
                Ok(Roster::new(world_size))
            }
            Some(member) => Err(Error::RankTaken { rank: self.rank, pid: member.process.pid }),
        }
    }

    /// Whether an attempt that ended without this rank was this rank's attempt. (A failure of processes that are all
    /// gone is history; that some rank is disabled is said by ranks that may have gone on to other things, or have ended.)
    fn is_mine(&self, verdict: &Verdict, world_size: usize) -> bool {
        let without_me = self.roster.members.get(self.rank).is_some_and(Option::is_none);
        without_me
            && self.roster.members.len() == world_size
            && match verdict {
                Verdict::Ready => false,
                Verdict::NotApplicable(_) => self.roster.is_younger_than(self.timeout),
                Verdict::Failed(_) => {
                    self.roster.is_younger_than(self.timeout) && !self.roster.is_dead(&self.host)
                }
            }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.roster.generation
    }

    fn world_size(&self) -> usize {
        self.roster.members.len()
    }

    fn key(&self, name: &str) -> String {
        format!("{:016x}/{name}", self.roster.generation)
    }

    fn rank_key(&self, step: Step, rank: usize) -> String {
        let name = match step {
            Step::First => "first",
            Step::Second => "second",
            Step::Acknowledgement => "acknowledgement",
            Step::Connecting => "connecting",
        };
        self.key(&format!("{name}/{rank}"))
    }

    /// Sets this rank's payload, then reads everybody's; ends early as [`Session::until`] does, and when a payload is
    /// corrupt.
    pub(crate) fn exchange<T: Payload>(&mut self, step: Step, own: &T) -> Result<Vec<T>, Stop> {
        self.store.set(&self.rank_key(step, self.rank), &own.to_bytes())?;
        let mut all: Vec<Option<T>> = (0..self.world_size()).map(|_| None).collect();
        self.until(step, |session| {
            for (rank, payload) in all.iter_mut().enumerate().filter(|(_, payload)| payload.is_none()) {
                match session.read(step, rank) {
                    Ok(found) => *payload = found,
                    Err(Stop::Verdict(verdict)) => return Err(session.decide(verdict)),
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
        mut missing: impl FnMut(&Self) -> Result<Vec<usize>, Stop>,
    ) -> Result<(), Stop> {
        let start = Instant::now();
        let mut pause = Pause::new(self.timeout);
        let mut looked = start;
        loop {
            match self.verdict()? {
                // Another rank has read everything before this one; so all of it is there.
                None | Some(Verdict::Ready) => {}
                Some(verdict) => return Err(Stop::Verdict(verdict)),
            }
            let missing = missing(self)?;
            if missing.is_empty() {
                return Ok(());
            }
            if looked.elapsed() >= LIVENESS_INTERVAL {
                looked = Instant::now();
                self.look(step)?;
                let died = missing.iter().find_map(|rank| {
                    let member = self.roster.members[*rank].as_ref()?;
                    member.has_ended(&self.host).then_some(Failure::Died {
                        rank: *rank,
                        pid: member.process.pid,
                        step,
                    })
                });
                if let Some(died) = died {
                    return self.give_up_on(died);
                }
            }
            if !pause.again() {
                return self.give_up_on(Failure::Missing { ranks: missing, step, waited: start.elapsed() });
            }
        }
    }

    /// Ends a step in which somebody is missing, unless all are ready: then nobody is, whatever this rank saw.
    fn give_up_on(&self, failure: Failure) -> Result<(), Stop> {
        match self.propose(&Verdict::Failed(failure))? {
            Verdict::Ready => Ok(()),
            verdict => Err(Stop::Verdict(verdict)),
        }
    }

    /// One rank's payload, if it is there; a verdict if it cannot be read.
    fn read<T: Payload>(&self, step: Step, rank: usize) -> Result<Option<T>, Stop> {
        let key = self.rank_key(step, rank);
        let corrupt = |problem: String| {
            Stop::Verdict(Verdict::Failed(Failure::Corrupt { key: key.clone(), rank, problem }))
        };
        match self.store.try_get(&key) {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => {
                T::from_bytes(&bytes).map(Some).map_err(|problem| corrupt(problem.to_string()))
            }
            Err(StoreError::Corrupt { problem, .. }) => Err(corrupt(problem)),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the roster again: who has joined meanwhile, and is this still the current attempt?
    fn look(&mut self, step: Step) -> Result<(), Stop> {
        let current = self.store.try_get(ROSTER)?.as_deref().map(read_roster).transpose()?;
        match current {
            Some(roster) if roster.generation == self.roster.generation => {
                self.roster = roster;
                Ok(())
            }
            // The verdict may have come between this and the look at it.
            _ => match (self.verdict()?, step) {
                (Some(Verdict::Ready), _) => Ok(()),
                (Some(verdict), _) => Err(Stop::Verdict(verdict)),
                (None, Step::First) => Err(Stop::Superseded),
                (None, _) => Err(Stop::Abandoned(step)),
            },
        }
    }

    fn verdict(&self) -> Result<Option<Verdict>, Error> {
        let key = self.key("verdict");
        let Some(bytes) = self.store.try_get(&key)? else { return Ok(None) };
        read_verdict(key, &bytes).map(Some)
    }

    /// Makes `verdict` the attempt's, unless it has one; returns the one it has.
    pub(crate) fn propose(&self, verdict: &Verdict) -> Result<Verdict, Error> {
        let key = self.key("verdict");
        match self.store.compare_set(&key, None, Some(&verdict.to_bytes()))? {
            None => Ok(verdict.clone()),
            Some(bytes) => read_verdict(key, &bytes),
        }
    }

    /// [`Session::propose`] as the end of a step.
    pub(crate) fn decide(&self, verdict: Verdict) -> Stop {
        self.propose(&verdict).map_or_else(Stop::Local, Stop::Verdict)
    }

    fn known_key(&self, rank: usize) -> String {
        self.key(&format!("known/{rank}"))
    }

    /// Says that this rank knows the verdict and has nothing of its peers' mapped, unless they are ready. Whoever sees that
    /// all have said so clears up.
    pub(crate) fn acknowledge(&self, verdict: &Verdict) -> Result<(), Error> {
        self.store.set(&self.known_key(self.rank), b"known")?;
        self.clear_up_if_all_know(verdict).map(|_| ())
    }

    /// Deletes all keys if every rank that can has acknowledged the verdict, or another has begun to; says whether so.
    fn clear_up_if_all_know(&self, verdict: &Verdict) -> Result<bool, Error> {
        let found = self.store.try_get(ROSTER)?;
        let roster = found.as_deref().map(read_roster).transpose()?;
        if let Some(roster) = roster.filter(|roster| roster.generation == self.roster.generation) {
            for (rank, member) in roster.members.iter().enumerate() {
                // Who has died does not acknowledge any more, whatever the verdict says.
                let has_died = || member.as_ref().is_some_and(|member| member.has_ended(&self.host));
                let knows = !verdict.awaits(rank)
                    || self.store.try_get(&self.known_key(rank))?.is_some()
                    || has_died();
                if !knows {
                    return Ok(false);
                }
            }
            // The roster goes first, and only if no new attempt has replaced it: whoever sets a key and still finds the
            // roster then has set it before the keys go.
            self.store.compare_set(ROSTER, found.as_deref(), None)?;
        }
        // If the roster was gone, what this rank has set since then goes too.
        self.delete_keys()?;
        Ok(true)
    }

    /// Waits at most `limit` until all have acknowledged `verdict`; says whether they have.
    pub(crate) fn all_acknowledged(&self, verdict: &Verdict, limit: Duration) -> Result<bool, Error> {
        let mut pause = Pause::new(limit);
        loop {
            // Whoever sees it does it, because whoever saw it first may end in the middle of it.
            if self.clear_up_if_all_know(verdict)? {
                return Ok(true);
            }
            if !pause.again() {
                return Ok(false);
            }
        }
    }

    /// Takes back everything of an attempt that the others have cleared away.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        self.delete_keys()
    }

    /// Takes back what this rank has set in an attempt that was superseded.
    pub(crate) fn withdraw(&self) -> Result<(), Error> {
        self.store.delete(&self.rank_key(Step::First, self.rank))?;
        Ok(())
    }

    fn delete_keys(&self) -> Result<(), Error> {
        for step in [Step::First, Step::Second, Step::Acknowledgement] {
            for rank in 0..self.world_size() {
                self.store.delete(&self.rank_key(step, rank))?;
            }
        }
        for rank in 0..self.world_size() {
            self.store.delete(&self.known_key(rank))?;
        }
        self.store.delete(&self.key("verdict"))?;
        Ok(())
    }
}

fn read_roster(bytes: &[u8]) -> Result<Roster, Error> {
    Roster::from_bytes(bytes).map_err(|problem| corrupt(ROSTER.to_owned(), problem.to_string()))
}

fn read_verdict(key: String, bytes: &[u8]) -> Result<Verdict, Error> {
    Verdict::from_bytes(bytes).map_err(|problem| corrupt(key, problem.to_string()))
}

fn corrupt(key: String, problem: String) -> Error {
    Error::Store(StoreError::Corrupt { key, problem })
}
