//! Joining the current attempt, or opening one.
#![forbid(unsafe_code)]

use std::time::Duration;

use meshreduce_store::clock::{Deadline, Pause};
use meshreduce_store::identity::{Life, Member};
use meshreduce_store::{Store, StoreError};

use super::TAKE_DOWN_LIMIT;
use super::clearing::TAKE_OVER;
use super::keys::{create, exchange, look_for};
use super::roster::{ROSTER, Roster};
use super::session::Session;
use super::verdict::{RendezvousFailure, Step, Verdict};
use crate::error::Error;

/// How long a process that dies may take to have ended, from when another one has come in its place.
pub(super) const DYING: Duration = Duration::from_secs(1);

/// What joining comes to.
pub(crate) enum Joined<'a> {
    /// The rank takes part.
    Member(Session<'a>),
    /// The attempt was over before this rank came; it was this rank's attempt too.
    Late(Session<'a>, Verdict),
}

/// What a rank makes of the roster that it finds.
enum Next {
    /// Become a member of it.
    Join,
    /// It is over, or nobody is left in it: clear it away, and open a new one.
    Replace,
    /// It is another's turn.
    Wait,
}

/// For how long this rank has seen one and the same attempt, by its own clock: those of other hosts may be wrong.
struct Watch {
    generation: u64,
    is_closed: bool,
    second_look: Deadline,
    /// From when on it is known to be over.
    end: Option<Deadline>,
    take_over: Deadline,
    timeout: Deadline,
}

impl Watch {
    fn new(roster: &Roster, timeout: Duration) -> Self {
        Self {
            generation: roster.generation,
            is_closed: roster.closed_by.is_some(),
            second_look: Deadline::after(DYING),
            end: None,
            take_over: Deadline::after(TAKE_OVER),
            timeout: Deadline::after(timeout),
        }
    }

    fn is_of(&self, roster: &Roster) -> bool {
        self.generation == roster.generation && self.is_closed == roster.closed_by.is_some()
    }
}

impl<'a> Session<'a> {
    /// Joins the current attempt, or opens one.
    ///
    /// # Errors
    ///
    /// [`Error::RankTaken`] if another process is in it as this rank, [`Error::RankDied`] if one was and has ended; what is
    /// wrong with the store.
    pub(crate) fn join(
        store: &'a dyn Store,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Joined<'a>, Error> {
        let me = Member::current()?;
        let session = |roster: Roster| Session::new(store, me.clone(), roster, rank, timeout);
        // Waiting for another one's turn comes on top of the timeout for the attempt itself.
        let mut pause = Pause::new(timeout.saturating_mul(2).saturating_add(TAKE_DOWN_LIMIT + TAKE_OVER));
        let mut watch: Option<Watch> = None;
        loop {
            match look_for::<Roster>(store, ROSTER)? {
                None => {
                    let own = Roster::new(world_size).with(rank, &me);
                    if create(store, ROSTER, &own)? == own {
                        return Ok(Joined::Member(session(own).taking_part()));
                    }
                }
                Some(roster) => {
                    if !watch.as_ref().is_some_and(|watch| watch.is_of(&roster)) {
                        watch = None;
                    }
                    let watch = watch.get_or_insert_with(|| Watch::new(&roster, timeout));
                    let found = session(roster.clone());
                    let verdict = found.verdict()?;
                    if let Some(verdict) =
                        verdict.as_ref().filter(|verdict| found.is_mine(verdict, world_size))
                    {
                        return Ok(Joined::Late(found, verdict.clone()));
                    }
                    match found.next(verdict.as_ref(), world_size, watch)? {
                        Next::Join => {
                            let joined = roster.with(rank, &me);
                            if exchange(store, ROSTER, &roster, &joined)? {
                                return Ok(Joined::Member(session(joined).taking_part()));
                            }
                            continue;
                        }
                        Next::Replace => {
                            // Nobody is left who would do it; who is left all the same finds that it was given up.
                            found.close(&roster)?;
                            continue;
                        }
                        Next::Wait => {}
                    }
                }
            }
            if !pause.again() {
                let roster = look_for::<Roster>(store, ROSTER)?;
                let holder = roster.and_then(|roster| roster.members.into_iter().nth(rank).flatten());
                return Err(match holder.filter(|holder| *holder != me) {
                    Some(holder) => {
                        RendezvousFailure::Taken { rank, holder: holder.into(), newcomer: me.clone().into() }
                            .into()
                    }
                    None => StoreError::Timeout { keys: vec![ROSTER.into()], waited: timeout }.into(),
                });
            }
        }
    }

    /// What to do about the attempt that was found, of which this rank's own is not a part.
    fn next(&self, verdict: Option<&Verdict>, world_size: usize, watch: &mut Watch) -> Result<Next, Error> {
        let host = &self.me.host;
        if let Some(closed_by) = &self.roster.closed_by {
            if closed_by.life(host) == Life::Ended || watch.take_over.has_passed() {
                self.close(&self.roster)?;
            }
            return Ok(Next::Wait);
        }
        if self.is_dead() {
            return Ok(Next::Replace);
        }
        if let Some(verdict) = verdict {
            // Its members clear it away, if they live: until then some may not have read how it ended.
            let limit = match verdict {
                Verdict::Ready => TAKE_DOWN_LIMIT,
                _ => TAKE_DOWN_LIMIT.min(self.timeout),
            };
            let end = watch.end.get_or_insert_with(|| Deadline::after(limit));
            return Ok(if end.has_passed() { Next::Replace } else { Next::Wait });
        }
        let members = &self.roster.members;
        if members.len() != world_size {
            let other = members.iter().position(Option::is_some).unwrap_or(0);
            let different = RendezvousFailure::Different {
                field: "world size".into(),
                ranks: (other, self.rank),
                values: (members.len().to_string(), world_size.to_string()),
            };
            let verdict = self.propose(&Verdict::Failed(different.clone()))?;
            if self.rank < members.len() {
                self.acknowledge(&verdict)?;
            }
            return match self.is_open()? || verdict == Verdict::Failed(different.clone()) {
                true => Err(different.into()),
                // It was over meanwhile, and not because of this rank.
                false => self.delete_keys().map(|()| Next::Wait),
            };
        }
        // If another member is dead, the exchange finds out.
        let Some(holder) = &members[self.rank] else { return Ok(Next::Join) };
        let taken = RendezvousFailure::Taken {
            rank: self.rank,
            holder: holder.clone().into(),
            newcomer: self.me.clone().into(),
        };
        match self.life_of_holder(holder) {
            // This process lost the store, and comes again.
            Life::Ended if *holder == self.me => {
                let message = "it left an attempt without a word, because it lost the store".to_owned();
                self.end_with(RendezvousFailure::Rank { rank: self.rank, message })
            }
            // This rank was started anew while the others still wait for its predecessor.
            Life::Ended => self.end_with(RendezvousFailure::Died {
                rank: self.rank,
                pid: holder.process.pid,
                step: Step::First,
            }),
            Life::Running if *holder == self.me || watch.second_look.has_passed() => Err(taken.into()),
            Life::Running => Ok(Next::Wait),
            // An attempt of living processes is over by then.
            Life::Unknown if !watch.timeout.has_passed() => Ok(Next::Wait),
            Life::Unknown => match self.propose(&Verdict::Failed(taken.clone()))? {
                Verdict::Failed(standing) if standing == taken => match self.somebody_hears()? {
                    true => self.end_with(taken),
                    false => Ok(Next::Replace),
                },
                // It has come to an end by itself.
                _ => Ok(Next::Wait),
            },
        }
    }

    /// Ends the attempt of which this rank's predecessor is a member, unless it has ended meanwhile, and this rank's part in it.
    fn end_with(&self, failure: RendezvousFailure) -> Result<Next, Error> {
        let verdict = self.propose(&Verdict::Failed(failure))?;
        if let Verdict::Failed(failure) = &verdict {
            // If it was cleared away before, this takes back what was just proposed.
            self.acknowledge(&verdict)?;
            return Err(failure.clone().into());
        }
        Ok(Next::Wait)
    }

    /// Waits a moment; says whether any other member takes notice of the verdict.
    fn somebody_hears(&self) -> Result<bool, Error> {
        // Members do not look while they load kernels.
        let mut pause = Pause::new(TAKE_OVER.max(self.timeout));
        loop {
            for rank in (0..self.world_size()).filter(|rank| *rank != self.rank) {
                if self.knows(rank)? {
                    return Ok(true);
                }
            }
            match look_for::<Roster>(self.store, ROSTER)? {
                Some(roster) if roster.generation != self.roster.generation => return Ok(false),
                Some(roster) if roster.closed_by.is_none() => {}
                // Its members have cleared it away, or do so.
                _ => return Ok(true),
            }
            if !pause.again() {
                return Ok(false);
            }
        }
    }

    /// Whether an attempt that ended without this rank, or with a predecessor of it, was this rank's attempt. (What ended for
    /// processes that are all gone is history, but that some rank is disabled: who said it may have ended since.)
    fn is_mine(&self, verdict: &Verdict, world_size: usize) -> bool {
        let Some(entry) = self.roster.members.get(self.rank) else { return false };
        let has_predecessor =
            entry.as_ref().is_some_and(|member| self.life_of_holder(member) != Life::Running);
        let is_alive = !self.is_dead();
        self.roster.closed_by.is_none()
            && self.world_size() == world_size
            && self.roster.is_younger_than(self.timeout)
            && match verdict {
                Verdict::Ready => false,
                Verdict::NotApplicable(_) => entry.is_none() || (has_predecessor && is_alive),
                Verdict::Failed(_) => (entry.is_none() || has_predecessor) && is_alive,
            }
    }
}
