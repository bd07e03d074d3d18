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

/// How long a rank that has nothing to do any more in an attempt stays until the others have seen to the end of it: longer than one that
/// lives is ever late, and no longer than the timeout.
const SEEN_OFF: Duration = Duration::from_secs(10);

/// How far an attempt that is over has been cleared away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clearing {
    /// Some rank has not acknowledged the verdict.
    Awaits,
    /// All have, and another rank, which lives as far as can be told, clears up.
    Closed,
    /// There is nothing left of it.
    Gone,
}

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

    /// Deletes all keys if every rank that can has acknowledged the verdict, or another has begun to.
    fn clear_up_if_all_know(&self, verdict: &Verdict) -> Result<Clearing, Error> {
        let Some(roster) = self.present_roster()? else {
            // What this rank has set since the attempt was cleared away goes too.
            return self.delete_keys().map(|()| Clearing::Gone);
        };
        if roster.closed_by.is_some() {
            return self.follow_closer(&roster);
        }
        for (rank, member) in roster.members.iter().enumerate() {
            // Who has died does not acknowledge any more, whatever the verdict says.
            let has_died = || member.as_ref().is_some_and(|member| self.has_ended(member));
            if verdict.awaits(rank) && !self.knows(rank)? && !has_died() {
                return Ok(Clearing::Awaits);
            }
        }
        self.close_or_follow(&roster)
    }

    /// Acknowledges a verdict of which this rank has built nothing, and leaves when those that have joined need nobody who clears up
    /// behind them.
    pub(crate) fn leave(&self, verdict: &Verdict) -> Result<(), Error> {
        self.acknowledge(verdict)?;
        self.all_acknowledged(verdict, Duration::ZERO).map(|_| ())
    }

    /// The roster that is there, if it is this attempt's.
    fn present_roster(&self) -> Result<Option<Roster>, Error> {
        let found = look_for::<Roster>(self.store, ROSTER)?;
        Ok(found.filter(|roster| roster.generation == self.roster.generation))
    }

    /// Somebody has closed the roster, and knows that all have acknowledged. It may have ended since.
    fn follow_closer(&self, roster: &Roster) -> Result<Clearing, Error> {
        match &roster.closed_by {
            Some(closer) if self.has_ended(closer) => self.close_or_follow(roster),
            _ => self.delete_keys().map(|()| Clearing::Closed),
        }
    }

    fn close_or_follow(&self, roster: &Roster) -> Result<Clearing, Error> {
        Ok(if self.close(roster)? { Clearing::Gone } else { Clearing::Closed })
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

    /// Waits until all have acknowledged `verdict` and no key is left; says whether they have acknowledged. For a rank that has not come
    /// at most `absent`, for the others until they have ended too: whoever this rank leaves the rest to may be killed.
    pub(crate) fn all_acknowledged(&self, verdict: &Verdict, absent: Duration) -> Result<bool, Error> {
        self.see_off(verdict, absent, absent.max(SEEN_OFF.min(self.timeout)))
    }

    /// The same, but waits at most `limit`, and for ranks that have joined alone; says whether they have acknowledged or ended.
    pub(crate) fn members_acknowledged(&self, verdict: &Verdict, limit: Duration) -> Result<bool, Error> {
        Ok(self.see_off(verdict, Duration::ZERO, limit)? || self.members_know(verdict)?)
    }

    fn see_off(&self, verdict: &Verdict, absent: Duration, limit: Duration) -> Result<bool, Error> {
        let absent = Deadline::after(absent);
        let mut pause = Pause::new(limit);
        let mut take_over: Option<Deadline> = None;
        loop {
            match self.clear_up_if_all_know(verdict)? {
                Clearing::Gone => return Ok(true),
                Clearing::Awaits if absent.has_passed() && self.members_know(verdict)? => return Ok(false),
                Clearing::Awaits => {}
                // Whoever clears up may end in the middle of it.
                Clearing::Closed => {
                    let take_over = take_over.get_or_insert_with(|| Deadline::after(TAKE_OVER));
                    if take_over.has_passed()
                        && let Some(roster) =
                            self.present_roster()?.filter(|roster| roster.closed_by.is_some())
                    {
                        self.close(&roster)?;
                    }
                }
            }
            if !pause.again() {
                return Ok(take_over.is_some());
            }
        }
    }

    /// Whether nobody who has joined is still to acknowledge.
    fn members_know(&self, verdict: &Verdict) -> Result<bool, Error> {
        let Some(roster) = self.present_roster()? else { return Ok(true) };
        for (rank, member) in roster.members.iter().enumerate() {
            let Some(member) = member.as_ref().filter(|_| verdict.awaits(rank)) else { continue };
            if !self.knows(rank)? && !self.has_ended(member) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes back everything of an attempt that the others have cleared away, or do so now.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        let mut pause = Pause::new(TAKE_OVER);
        loop {
            self.delete_keys()?;
            // Whoever clears up may end in the middle of it, when all others have left.
            match self.present_roster()? {
                Some(roster) if roster.closed_by.is_some() => match self.follow_closer(&roster)? {
                    Clearing::Gone => return Ok(()),
                    _ if pause.again() => {}
                    _ => return self.close(&roster).map(|_| ()),
                },
                _ => return Ok(()),
            }
        }
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
