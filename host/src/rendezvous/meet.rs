//! Ranks that meet to tell one another something and build nothing together: what process groups begin with.
#![forbid(unsafe_code)]

use std::time::Duration;

use meshreduce_store::Store;
use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};

use super::build::{Assembly, Lingers};
use super::join::Joined;
use super::session::{Session, StepError};
use super::verdict::{RendezvousFailure, Step, Verdict};
use super::{LINGER_LIMIT, give_up, outcome, still_stands};
use crate::error::Error;

/// What a rank tells the others.
struct Contribution(Vec<u8>);

impl Payload for Contribution {
    const KIND: u8 = 7;

    fn write(&self, out: &mut Writer) {
        out.bytes(&self.0);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self(from.bytes(usize::MAX)?.to_vec()))
    }
}

/// All of `world_size` ranks meet over the store, any number of them, and each learns every other's `payload`, by rank.
///
/// It goes by the rules of [`super::rendezvous()`], of which it is the first half: who dies, does not come within `timeout` or
/// comes twice is named on all ranks, what earlier attempts left in the store is never taken for the present one's, and no keys
/// stay behind. There is no device in it.
///
/// ```
/// use meshreduce::MemoryStore;
/// use meshreduce::rendezvous::meet;
/// use std::time::Duration;
///
/// let store = MemoryStore::new();
/// let told = std::thread::scope(|scope| {
///     let other = scope.spawn(|| meet(&store, 1, 2, b"there", Duration::from_secs(60)));
///     let told = meet(&store, 0, 2, b"here", Duration::from_secs(60))?;
///     assert_eq!(told, other.join().expect("the other rank")?);
///     Ok::<_, meshreduce::Error>(told)
/// })?;
/// assert_eq!(told, [&b"here"[..], b"there"]);
/// # Ok::<(), meshreduce::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::InvalidRank`]; [`Error::RanksMissing`], [`Error::RankDied`], [`Error::RankTaken`], [`Error::RankFailed`] on all
/// ranks; [`Error::Store`].
pub fn meet(
    store: &dyn Store,
    rank: usize,
    world_size: usize,
    payload: &[u8],
    timeout: Duration,
) -> Result<Vec<Vec<u8>>, Error> {
    if rank >= world_size {
        return Err(Error::InvalidRank { rank, world_size });
    }
    if world_size == 1 {
        return Ok(vec![payload.to_vec()]);
    }
    let refused = |verdict| match outcome(verdict) {
        Err(error) => error,
        Ok(_) => Error::Abandoned { step: Step::First.name() },
    };
    // As in a rendezvous: an attempt that is over is never joined again, so this ends.
    loop {
        let mut session = match Session::join(store, rank, world_size, timeout)? {
            Joined::Member(session) => session,
            Joined::Late(session, verdict) => {
                session.leave(&verdict)?;
                return Err(refused(verdict));
            }
        };
        match tell(&mut session, payload) {
            Ok(told) => {
                match session.propose(&Verdict::Ready).and_then(|verdict| still_stands(&session, verdict)) {
                    Ok(Verdict::Ready) => {
                        let cleared = session
                            .acknowledge(&Verdict::Ready)
                            .and_then(|()| session.all_acknowledged(&Verdict::Ready, LINGER_LIMIT));
                        if let Err(error) = cleared {
                            tracing::warn!(%error, "the keys of a meeting could not be cleared up");
                        }
                        return Ok(told);
                    }
                    Ok(verdict) => {
                        session.leave(&verdict)?;
                        return Err(refused(verdict));
                    }
                    Err(error) => return Err(give_up(&session, Assembly::default(), rank, error)),
                }
            }
            Err(StepError::Superseded) => session.withdraw()?,
            Err(StepError::Abandoned(step)) => {
                session.forget()?;
                return Err(Error::Abandoned { step: step.name() });
            }
            Err(StepError::Verdict(verdict)) => {
                Assembly::default().take_down(&session, &verdict, Lingers::No);
                return Err(refused(verdict));
            }
            Err(StepError::Local(error)) => return Err(give_up(&session, Assembly::default(), rank, error)),
        }
    }
}

/// Tells the ranks that [`meet`] that this one cannot, and why: all of them, also those that come later, get [`Error::RankFailed`] with
/// `why` at once, and do not wait for it. It stays for a moment, until those that have come know.
///
/// ```
/// use meshreduce::rendezvous::{decline, meet};
/// use meshreduce::{Error, MemoryStore};
/// use std::time::Duration;
///
/// let store = MemoryStore::new();
/// let told = std::thread::scope(|scope| {
///     let other = scope.spawn(|| meet(&store, 0, 2, b"here", Duration::from_secs(60)));
///     decline(&store, 1, 2, "there is no network", Duration::from_secs(60))?;
///     Ok::<_, Error>(other.join().expect("the other rank"))
/// })?;
/// assert_eq!(told.unwrap_err().to_string(), "rank 1 failed: there is no network");
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
///
/// [`Error::InvalidRank`]; [`Error::Store`]; this process's identity is not to be had. The others are told nothing then.
pub fn decline(
    store: &dyn Store,
    rank: usize,
    world_size: usize,
    why: &str,
    timeout: Duration,
) -> Result<(), Error> {
    if rank >= world_size {
        return Err(Error::InvalidRank { rank, world_size });
    }
    if world_size == 1 {
        return Ok(());
    }
    match Session::join(store, rank, world_size, timeout)? {
        Joined::Member(session) => {
            let failure = RendezvousFailure::Rank { rank, message: why.to_owned() };
            // Another rank may have failed before.
            let verdict = session.propose(&Verdict::Failed(failure))?;
            Assembly::default().take_down(&session, &verdict, Lingers::ForMembers);
            Ok(())
        }
        Joined::Late(session, verdict) => session.leave(&verdict),
    }
}

fn tell(session: &mut Session<'_>, payload: &[u8]) -> Result<Vec<Vec<u8>>, StepError> {
    let own = Contribution(payload.to_vec());
    // Where the others are ready a step ends at once, also in the middle of reading: what all are ready with is there, and stays
    // until this rank has acknowledged.
    for _ in 0..2 {
        let told: Vec<Contribution> = session.exchange(Step::First, &own)?;
        if told.len() == session.world_size() {
            return Ok(told.into_iter().map(|Contribution(payload)| payload).collect());
        }
    }
    Err(StepError::Abandoned(Step::First))
}
