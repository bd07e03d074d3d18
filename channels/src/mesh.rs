//! All ranks of a group meet each other by one store.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use meshreduce_store::clock::Deadline;
use meshreduce_store::{Store, StoreError};

use crate::context::Context;
use crate::endpoint::Endpoint;
use crate::error::Error;

/// Endpoints of one rank to all others of its group: [`Context::connect_all`].
#[derive(Debug)]
pub struct Mesh {
    rank: usize,
    /// By rank; none to the own one.
    endpoints: Vec<Option<Endpoint>>,
}

/// Whom a rank meets in a round: each two ranks meet in exactly one round of as many as there are ranks, and in each round whoever
/// a rank is to meet is to meet that rank. (One that is its own partner has a rest.)
fn partner(rank: usize, round: usize, world_size: usize) -> usize {
    (world_size + round - rank) % world_size
}

/// Under a rank's key: it is meeting the others.
const HERE: &[u8] = b"here";
/// It was, and has given up.
const GIVEN_UP: &[u8] = b"given up";
/// What nobody stores.
const NOTHING: &[u8] = b"?";

/// The ranks of a group, as they say themselves in the store that they are there: otherwise each would blame whomever it was to
/// meet just then, who may be waiting for somebody else.
struct Ranks<'a> {
    store: &'a dyn Store,
    /// The group's.
    name: String,
    world_size: usize,
}

impl Ranks<'_> {
    fn key(&self, rank: usize) -> String {
        format!("channels/{}/rank {rank}", self.name)
    }

    fn come(&self, rank: usize) -> Result<(), Error> {
        let failed = |source| Error::Store { name: self.name.as_str().into(), source: Arc::new(source) };
        self.store.set(&self.key(rank), HERE).map_err(failed)
    }

    /// It has met all others: nobody whom it has not met looks for it any more. Where the store has gone with one of them by now,
    /// nothing is left behind.
    fn is_done(&self, rank: usize) {
        if let Err(error) = self.store.delete(&self.key(rank)) {
            tracing::debug!(name = self.name, %error, "the store keeps it that a rank has been there");
        }
    }

    /// What the end of a rank's attempts is to be blamed on, if it was the deadline: those of whom nothing was seen.
    fn blame(&self, rank: usize, endpoints: &[Option<Endpoint>], error: Error) -> Error {
        // It may be found under the same name by whoever tries again.
        let note = self.store.set(&self.key(rank), GIVEN_UP);
        let Error::NotConnected { with, waited, last } = error else { return error };
        let (mut absent, mut given_up) = (Vec::new(), Vec::new());
        let missed = endpoints.iter().enumerate().filter(|(at, met)| *at != rank && met.is_none());
        let looked: Result<(), StoreError> = note.and_then(|()| {
            for (at, _) in missed {
                match &*self.store.compare_set(&self.key(at), NOTHING, NOTHING)? {
                    HERE => {}
                    GIVEN_UP => given_up.push(at),
                    _ => absent.push(at),
                }
            }
            Ok(())
        });
        if let Err(error) = looked {
            tracing::debug!(name = self.name, %error, "the store does not say which ranks have come");
        }
        let Self { name, world_size, .. } = self;
        if !absent.is_empty() {
            let with = format!("{} of {world_size} in {name}", listed(&absent));
            return Error::NotConnected { with: with.into(), waited, last: "nothing was seen there".into() };
        }
        let last = match given_up.is_empty() {
            true => last,
            false => format!("{last}; given up before: {}", listed(&given_up)).into(),
        };
        Error::NotConnected { with, waited, last }
    }
}

/// `rank 3`, `ranks 3, 5`.
fn listed(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(usize::to_string).collect();
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, numbers.join(", "))
}

impl Context {
    /// Meets all other ranks of a group of `world_size`, each of which calls this with its own rank and the same `name`; in at most
    /// `timeout`. Of two ranks the lower one listens. The same name is good for another group when all have met.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use meshreduce_channels::{Context, Device, Error, Registry};
    /// use meshreduce_store::MemoryStore;
    ///
    /// let (store, soon) = (MemoryStore::new(), Duration::from_secs(60));
    /// // Ranks are processes, as a rule; here they are threads.
    /// let rank = |rank: usize| -> Result<u8, Error> {
    ///     let context = Context::new(&Registry::default(), &[])?;
    ///     let mesh = context.connect_all(&store, "all", rank, 3, soon)?;
    ///     let sent: Vec<_> =
    ///         mesh.iter().map(|(_, peer)| peer.send(vec![rank as u8; 4], Device::Cpu, None)).collect();
    ///     let mut sum = rank as u8;
    ///     for (_, peer) in mesh.iter() {
    ///         sum += peer.recv(vec![0; 4], Device::Cpu, None).wait(soon)?.0[0];
    ///     }
    ///     for transfer in sent {
    ///         transfer.wait(soon)?;
    ///     }
    ///     Ok(sum)
    /// };
    /// std::thread::scope(|scope| {
    ///     let ranks: Vec<_> = (0..3).map(|at| scope.spawn(move || rank(at))).collect();
    ///     for rank in ranks {
    ///         assert_eq!(rank.join().expect("it does not panic")?, 3);
    ///     }
    ///     Ok::<(), Error>(())
    /// })?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Context::listen`]. [`Error::NotConnected`] names the ranks that never came; a rank that says another world size is none of
    /// the group. If all have come, it names the two that did not meet (`all/8/0-2`), and who has given up before. Endpoints to
    /// those that were met are dropped.
    ///
    /// # Panics
    ///
    /// If `rank` is not below `world_size`.
    pub fn connect_all(
        &self,
        store: &dyn Store,
        name: &str,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Mesh, Error> {
        assert!(rank < world_size, "rank {rank} of {world_size}");
        let deadline = Deadline::after(timeout);
        let ranks = Ranks { store, name: format!("{name}/{world_size}"), world_size };
        let mut endpoints: Vec<Option<Endpoint>> = (0..world_size).map(|_| None).collect();
        ranks.come(rank)?;
        for round in 0..world_size {
            let other = partner(rank, round, world_size);
            if other == rank {
                continue;
            }
            let name = format!("{}/{}-{}", ranks.name, rank.min(other), rank.max(other));
            let met = match rank < other {
                true => self.listen(store, &name, deadline.left()),
                false => self.connect(store, &name, deadline.left()),
            };
            endpoints[other] = Some(met.map_err(|error| ranks.blame(rank, &endpoints, error))?);
        }
        ranks.is_done(rank);
        Ok(Mesh { rank, endpoints })
    }
}

impl Mesh {
    /// The own rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are, the own one among them.
    pub fn world_size(&self) -> usize {
        self.endpoints.len()
    }

    /// The endpoint to a rank; `None` for the own one, and for one that there is not.
    pub fn endpoint(&self, rank: usize) -> Option<&Endpoint> {
        self.endpoints.get(rank)?.as_ref()
    }

    /// All others and the endpoints to them, by rank.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        self.endpoints.iter().enumerate().filter_map(|(rank, endpoint)| Some((rank, endpoint.as_ref()?)))
    }

    /// The endpoints, by rank.
    pub fn into_endpoints(self) -> Vec<Option<Endpoint>> {
        self.endpoints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_two_ranks_meet_once_and_whom_one_meets_meets_that_one() {
        for world_size in 1..20 {
            for rank in 0..world_size {
                let mut met: Vec<usize> =
                    (0..world_size).map(|round| partner(rank, round, world_size)).collect();
                for (round, other) in met.iter().enumerate() {
                    assert_eq!(partner(*other, round, world_size), rank);
                }
                met.sort_unstable();
                assert!(met.into_iter().eq(0..world_size));
            }
        }
    }
}
