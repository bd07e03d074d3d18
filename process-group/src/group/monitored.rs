//! The monitored barrier: which ranks did not come, all of them, and on all ranks that did.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use meshreduce_store::clock::Deadline;
use meshreduce_store::{Store, StoreError};

use super::progress::NOTHING;
use super::{ProcessGroup, Shared};
use crate::backend::UntilEnd;
use crate::error::Error;

/// How much longer the others wait for what rank 0 has found.
const GRACE: Duration = Duration::from_secs(5);
/// Where the first that gives up waiting for rank 0 says who did not come: a rank 0 that comes later says the same.
const GIVEN_UP: &str = "given_up";

/// What rank 0 tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    AllCame,
    /// These ranks did not come.
    Missing(Vec<usize>),
    /// The group, or one of its backends, is over.
    Over(String),
}

impl Found {
    const ALL_CAME: &str = "all came";
    const OVER: &str = "over: ";

    fn to_text(&self) -> String {
        match self {
            Self::AllCame => Self::ALL_CAME.to_owned(),
            Self::Missing(ranks) => ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Self::Over(cause) => format!("{}{cause}", Self::OVER),
        }
    }

    fn read(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        match (&*text, text.strip_prefix(Self::OVER)) {
            (Self::ALL_CAME, _) => Self::AllCame,
            (_, Some(cause)) => Self::Over(cause.to_owned()),
            (ranks, None) => Self::Missing(ranks.split(' ').filter_map(|rank| rank.parse().ok()).collect()),
        }
    }
}

fn came(rank: usize) -> String {
    format!("came/{rank}")
}

/// It came, and rank 0 did not.
fn gave_up(rank: usize) -> String {
    format!("gave_up/{rank}")
}

fn told(rank: usize) -> String {
    format!("told/{rank}")
}

impl Shared {
    /// Takes back what was told to ranks that never came, and to others of rank 0 that did not.
    pub(super) fn forget_the_unheard(&self) {
        let keys = std::mem::take(&mut *self.unheard.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = keys.iter().try_for_each(|key| self.store.delete(key).map(|_| ())) {
            tracing::debug!(%error, group = &*self.info.name, "keys stay in the store");
        }
    }
}

impl ProcessGroup {
    /// Waits at most `timeout` for all ranks to come, through the store and no backend; names every rank that did not. It ends
    /// nothing: the group goes on.
    ///
    /// Rank 0 looks for the others and tells them; if it is rank 0 that does not come, the others look for themselves, 5 s after
    /// `timeout`: so long they wait for what it would tell. Who comes later hears who was missing, itself among them.
    ///
    /// # Errors
    ///
    /// [`Error::NotAtBarrier`] on all ranks that came; the cause if this group ends meanwhile, or one of its backends sees a rank die or fail,
    /// and [`Error::Aborted`] with it where rank 0 alone knows; [`Error::Store`].
    pub fn monitored_barrier(&self, timeout: Duration) -> Result<(), Error> {
        let shared = &self.shared;
        shared.alive()?;
        let number = shared.monitored_barriers.fetch_add(1, Ordering::Relaxed);
        let found = MonitoredBarrier::new(shared, number, timeout).and_then(|barrier| match self.rank() {
            0 => barrier.look_for_the_others(),
            rank => barrier.come(rank),
        });
        let absent =
            |ranks| Error::NotAtBarrier { ranks, group: Arc::clone(&shared.info.name), waited: timeout };
        let ended = found.and_then(|found| match found {
            Found::AllCame => Ok(()),
            Found::Missing(ranks) => Err(absent(ranks)),
            Found::Over(cause) => Err(Error::Aborted {
                group: Arc::clone(&shared.info.name),
                cause: format!("rank 0: {cause}"),
            }),
        });
        ended.map_err(|error| shared.failed(error))
    }
}

/// One barrier on one rank.
struct MonitoredBarrier<'a> {
    shared: &'a Shared,
    number: u64,
    timeout: Duration,
    /// What is below its keys. Waits end when nothing can come of them any more.
    store: UntilEnd,
}

impl<'a> MonitoredBarrier<'a> {
    fn new(shared: &'a Arc<Shared>, number: u64, timeout: Duration) -> Result<Self, Error> {
        let of_all = Arc::clone(shared);
        let below = shared.store_below(&format!("barrier/{number}"))?;
        Ok(Self { shared, number, timeout, store: UntilEnd::when(below, move || of_all.is_hopeless()) })
    }

    fn of_store(&self, error: StoreError) -> Error {
        self.shared.of_store(error)
    }

    /// These keys go when this rank leaves the group.
    fn leaves_behind(&self, keys: impl IntoIterator<Item = String>) {
        let keys = keys.into_iter().map(|key| format!("barrier/{}/{key}", self.number));
        self.shared.unheard.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
    }

    /// Who did not come, as the first has said that gave up.
    fn given_up(&self) -> Result<Option<Found>, Error> {
        // (Not by `store`, which refuses one look once the group is over.)
        let key = format!("barrier/{}/{GIVEN_UP}", self.number);
        let said =
            self.shared.store.compare_set(&key, NOTHING, NOTHING).map_err(|error| self.of_store(error))?;
        Ok((said != NOTHING).then(|| Found::read(&said)))
    }

    /// Rank 0 looks for the others, and tells them.
    fn look_for_the_others(&self) -> Result<Found, Error> {
        let others = 1..self.shared.info.world_size;
        let keys: Vec<String> = others.clone().map(came).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        // Nobody waits for a rank 0 that the others have given up.
        let (given_up, timeout) = match self.given_up()? {
            Some(found) => (Some(found), Duration::ZERO),
            None => (None, self.timeout),
        };
        let mut missing = Vec::new();
        match if keys.is_empty() { Ok(()) } else { self.store.wait(&keys, timeout) } {
            Ok(()) => {}
            Err(StoreError::Timeout { keys, .. }) => {
                missing = others.clone().filter(|rank| keys.contains(&came(*rank))).collect();
            }
            Err(error) => return Err(self.of_store(error)),
        }
        let hopeless = self.shared.is_hopeless().filter(|_| !missing.is_empty());
        let found = match (&hopeless, given_up) {
            (Some(cause), _) => Found::Over(cause.to_string()),
            (None, Some(found)) => found,
            (None, None) if missing.is_empty() => Found::AllCame,
            // They may have given up while this rank waited for one more.
            (None, None) => self.given_up()?.unwrap_or_else(|| Found::Missing(missing.clone())),
        };
        // Those that come late are told too, as long as this rank has the group.
        let text = found.to_text();
        for other in others.clone() {
            self.store.set(&told(other), text.as_bytes()).map_err(|error| self.of_store(error))?;
        }
        self.leaves_behind(missing.into_iter().map(told));
        for other in others {
            self.store.delete(&came(other)).map_err(|error| self.of_store(error))?;
        }
        hopeless.map_or(Ok(found), Err)
    }

    /// Another rank comes, and waits for what rank 0 tells.
    fn come(&self, rank: usize) -> Result<Found, Error> {
        self.store.set(&came(rank), b"came").map_err(|error| self.of_store(error))?;
        let deadline = Deadline::after(self.timeout.saturating_add(GRACE));
        // Only this rank deletes the key, so it is still there once it has come.
        match self.store.get(&told(rank), deadline.left()) {
            Ok(text) => {
                // Of one that has come late rank 0 takes back nothing any more.
                for key in [told(rank), came(rank)] {
                    self.store.delete(&key).map_err(|error| self.of_store(error))?;
                }
                match (Found::read(&text), self.shared.is_hopeless()) {
                    (Found::Over(_), Some(cause)) => Err(cause),
                    (found, _) => Ok(found),
                }
            }
            Err(StoreError::Timeout { .. }) => self.give_up(rank),
            Err(error) => Err(self.of_store(error)),
        }
    }

    /// Rank 0 has told nothing: looks who has not come, unless nothing can come of it any more.
    fn give_up(&self, rank: usize) -> Result<Found, Error> {
        // A rank 0 that comes at this moment may tell this one yet.
        self.leaves_behind([told(rank)]);
        let hopeless = self.shared.is_hopeless();
        if hopeless.is_none() {
            // Whoever looks sees one of both, and a rank 0 that comes yet does not take this one for one that waits.
            self.store.set(&gave_up(rank), b"1").map_err(|error| self.of_store(error))?;
            self.leaves_behind([gave_up(rank)]);
        }
        self.store.delete(&came(rank)).map_err(|error| self.of_store(error))?;
        if let Some(cause) = hopeless {
            return Err(cause);
        }
        let mut missing = vec![0];
        for other in (1..self.shared.info.world_size).filter(|other| *other != rank) {
            let has_come =
                |key: String| self.store.check(&[key.as_str()]).map_err(|error| self.of_store(error));
            if !has_come(came(other))? && !has_come(gave_up(other))? {
                missing.push(other);
            }
        }
        let found = Found::Missing(missing);
        let text = found.to_text();
        // The first one counts.
        let said =
            self.store.compare_set(GIVEN_UP, b"", text.as_bytes()).map_err(|error| self.of_store(error))?;
        if said == text.as_bytes() {
            self.leaves_behind([GIVEN_UP.to_owned()]);
        }
        Ok(found)
    }
}
