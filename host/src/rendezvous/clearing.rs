//! Clearing an attempt away, so that no key of it stays.
//!
//! Every rank that knows the verdict says so. Whoever sees that all have said it closes the roster, deletes all keys and
//! then the roster; if that rank ends in the middle of it, another one that sees the closed roster goes on. Keys of a
//! generation are of no use to anybody who has closed it, so everybody may delete them; the roster is deleted by who has
//! closed it alone, because the next attempt has one under the same key.
#![forbid(unsafe_code)]

use std::time::Duration;

use meshreduce_store::Store;
use meshreduce_store::clock::{Deadline, Pause};
use meshreduce_store::identity::Member;

use super::keys::{exchange, look, look_for};
use super::roster::{ROSTER, Roster};
use super::session::Session;
use super::verdict::{Step, Verdict};
use crate::error::Error;

/// How long a rank that clears up may take before another one does it: of a rank elsewhere it cannot be told whether it
/// still lives.
pub(super) const TAKE_OVER: Duration = Duration::from_secs(2);

/// Deletes what ranks that met over this store, by [`super::rendezvous()`] or [`super::meet()`], have left in it.
///
/// Ranks that meet leave nothing behind but for one that did not come, so that it still hears why. This is for whoever knows that
/// none takes part any more, and none will.
///
/// # Errors
///
/// [`Error::Store`]; [`Error::NoHostId`] and [`Error::System`] if this process cannot tell who it is.
pub fn clear_away(store: &dyn Store) -> Result<(), Error> {
    let Some(roster) = look_for::<Roster>(store, ROSTER)? else { return Ok(()) };
    let session = Session::new(store, Member::current()?, roster, 0, Duration::ZERO);
    // Whoever has changed it meanwhile sees to it.
    session.close(&session.roster).map(|_| ())
}

impl Session<'_> {
    fn known_key(&self, rank: usize) -> String {
        self.key(&format!("known/{rank}"))
    }

    /// Says that this rank knows the verdict and has nothing of its peers' mapped, unless they are ready. Whoever sees that
    /// all have said so clears up.
    pub(crate) fn acknowledge(&self, verdict: &Verdict) -> Result<(), Error> {
        self.store.set(&self.known_key(self.rank), b"known")?;
        self.clear_up_if_all_know(verdict).map(|_| ())
    }

    /// Whether a rank has acknowledged a verdict.
    pub(super) fn knows(&self, rank: usize) -> Result<bool, Error> {
        Ok(look(self.store, &self.known_key(rank))?.is_some())
    }

    /// Deletes all keys if every rank that can has acknowledged the verdict, or another has begun to; says whether so.
    fn clear_up_if_all_know(&self, verdict: &Verdict) -> Result<bool, Error> {
        match look_for::<Roster>(self.store, ROSTER)? {
            Some(roster) if roster.generation == self.roster.generation => {
                if let Some(closed_by) = &roster.closed_by {
                    // Whoever has closed it knows that all have acknowledged. It may have ended since.
                    return match self.has_ended(closed_by) {
                        true => self.close(&roster),
                        false => self.delete_keys().map(|()| true),
                    };
                }
                for (rank, member) in roster.members.iter().enumerate() {
                    // Who has died does not acknowledge any more, whatever the verdict says.
                    let has_died = || member.as_ref().is_some_and(|member| self.has_ended(member));
                    if verdict.awaits(rank) && !self.knows(rank)? && !has_died() {
                        return Ok(false);
                    }
                }
                self.close(&roster)
            }
            // What this rank has set since the attempt was cleared away goes too.
            _ => self.delete_keys().map(|()| true),
        }
    }

    /// Closes the roster, as it was read, and deletes everything; `false` if somebody else has changed it meanwhile.
    ///
    /// Whoever sets a key and still finds the roster open then has set it before the keys go.
    pub(super) fn close(&self, roster: &Roster) -> Result<bool, Error> {
        let closed = roster.closed_by(&self.me);
        if roster.closed_by.as_ref() != Some(&self.me) && !exchange(self.store, ROSTER, roster, &closed)? {
            return Ok(false);
        }
        self.delete_keys()?;
        // Another one may have taken over, if this took long, and be done with it.
        if look_for(self.store, ROSTER)?.as_ref() == Some(&closed) {
            self.store.delete(ROSTER)?;
        }
        Ok(true)
    }

    /// Waits at most `limit` until all have acknowledged `verdict` and no key is left; says whether they have acknowledged.
    pub(crate) fn all_acknowledged(&self, verdict: &Verdict, limit: Duration) -> Result<bool, Error> {
        let mut pause = Pause::new(limit);
        let mut all_know = false;
        let mut take_over: Option<Deadline> = None;
        loop {
            all_know |= self.clear_up_if_all_know(verdict)?;
            if all_know {
                // Somebody else may have begun to clear up, and end in the middle of it.
                match look_for::<Roster>(self.store, ROSTER)? {
                    Some(roster) if roster.generation == self.roster.generation => {
                        let take_over = take_over.get_or_insert_with(|| Deadline::after(TAKE_OVER));
                        if take_over.has_passed() {
                            self.close(&roster)?;
                        }
                    }
                    _ => return Ok(true),
                }
            }
            if !pause.again() {
                return Ok(all_know);
            }
        }
    }

    /// Waits at most `limit` until all ranks that have joined and still live have acknowledged `verdict`; says whether they have.
    pub(crate) fn members_acknowledged(&self, verdict: &Verdict, limit: Duration) -> Result<bool, Error> {
        let mut pause = Pause::new(limit);
        loop {
            if self.clear_up_if_all_know(verdict)? || self.members_know()? {
                return Ok(true);
            }
            if !pause.again() {
                return Ok(false);
            }
        }
    }

    fn members_know(&self) -> Result<bool, Error> {
        let Some(roster) = look_for::<Roster>(self.store, ROSTER)? else { return Ok(true) };
        if roster.generation != self.roster.generation {
            return Ok(true);
        }
        for (rank, member) in roster.members.iter().enumerate() {
            let Some(member) = member else { continue };
            if !self.knows(rank)? && !self.has_ended(member) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes back everything of an attempt that the others have cleared away.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        self.delete_keys()
    }

    /// Takes back what this rank has set in an attempt that was superseded.
    pub(crate) fn withdraw(&self) -> Result<(), Error> {
        self.store.delete(&self.rank_key(Step::First, self.rank))?;
        self.store.delete(&self.waiting_key(self.rank))?;
        Ok(())
    }

    /// Deletes all keys of the attempt but the roster.
    pub(super) fn delete_keys(&self) -> Result<(), Error> {
        for rank in 0..self.world_size() {
            for step in [Step::First, Step::Second, Step::Acknowledgement] {
                self.store.delete(&self.rank_key(step, rank))?;
            }
            self.store.delete(&self.waiting_key(rank))?;
            self.store.delete(&self.known_key(rank))?;
        }
        self.store.delete(&self.key("verdict"))?;
        Ok(())
    }
}
