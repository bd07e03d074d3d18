//! Groups of some of a group's ranks.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::ProcessGroup;
use super::shared::{Settings, Shared};
use crate::backend::{BackendContext, GroupInfo};
use crate::config::BackendConfig;
use crate::error::Error;
use crate::types::DeviceType;

/// What a new group has of its own; what is not said here it has from the group that it is made from.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct GroupOptions {
    name: Option<String>,
    config: Option<BackendConfig>,
    timeout: Option<Duration>,
    deadline: Option<Option<Duration>>,
    check_calls: Option<bool>,
    forbid_fallback: Option<bool>,
}

impl GroupOptions {
    /// A name of its own, for people and for the store's keys: equal on its members and another than those of other groups of the
    /// same ranks and parent that exist meanwhile; groups of other ranks, and the parts of a split, may have it too. Without one the name is made of the ranks, and of how many groups of just these ranks the
    /// process has made before: only members need to agree on it.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Which backend serves which kind of device.
    pub fn backend(mut self, config: BackendConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// As [`super::Builder::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// As [`super::Builder::deadline`].
    pub fn deadline(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// As [`super::Builder::check_calls`].
    pub fn check_calls(mut self, check: bool) -> Self {
        self.check_calls = Some(check);
        self
    }

    /// As [`super::Builder::forbid_fallback`].
    pub fn forbid_fallback(mut self, forbid: bool) -> Self {
        self.forbid_fallback = Some(forbid);
        self
    }
}

/// What a process is to a group that was made.
#[derive(Debug)]
pub enum Membership {
    /// One of its ranks.
    Member(ProcessGroup),
    /// None of them.
    NotAMember {
        /// The group's name.
        group: Arc<str>,
        /// This process's rank in the group that it was made from.
        rank: usize,
    },
}

impl Membership {
    /// The group.
    ///
    /// # Errors
    ///
    /// [`Error::NotAMember`].
    pub fn member(self) -> Result<ProcessGroup, Error> {
        match self {
            Membership::Member(group) => Ok(group),
            Membership::NotAMember { group, rank } => Err(Error::NotAMember { rank, group }),
        }
    }
}

/// Most characters of ranks in a name.
const MOST: usize = 48;

/// "0-3,6": ranks in ascending order, as people write them; of many only how many, the ends, and a number that tells sets apart.
fn label(ranks: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &rank in ranks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let text = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let all = runs.iter().map(text).collect::<Vec<_>>().join(",");
    if all.len() <= MOST {
        return all;
    }
    // FNV-1a (Fowler, Noll, Vo): equal on all machines and versions.
    let digest = all.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let (first, last) = (ranks.first().unwrap_or(&0), ranks.last().unwrap_or(&0));
    format!("{} of {first}-{last} {digest:016x}", ranks.len())
}

impl ProcessGroup {
    /// A group of some of this group's ranks, which are sorted: rank 0 of the new group is the lowest of them. Nobody is met yet,
    /// and only members need to call it (each in the same order for groups of the same ranks without a name); it may be called
    /// by others too.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRanks`] if there are none, one is there twice, or is no rank of this group; [`Error::Config`];
    /// [`Error::Store`] if names have become too long for the store; the cause if this group is over.
    pub fn new_group(&self, ranks: &[usize], options: &GroupOptions) -> Result<Membership, Error> {
        let shared = &self.shared;
        shared.alive()?;
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        let problem = |problem: String| Error::InvalidRanks {
            ranks: ranks.to_vec(),
            group: Arc::clone(&shared.info.name),
            problem,
        };
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(problem(format!("rank {} is there twice", twice[0])));
        }
        match sorted.last() {
            None => return Err(problem("there are none".to_owned())),
            Some(rank) if *rank >= self.world_size() => {
                return Err(problem(format!("rank {rank} is not one of {} ranks", self.world_size())));
            }
            Some(_) => {}
        }
        let label = label(&sorted);
        let (part, key) = match &options.name {
            // Groups of other ranks may have the same name, and a name may have anything in it.
            Some(name) => (name.clone(), format!("{label}:{}:{name}", name.len())),
            None => {
                let mut made = shared.parts.lock().unwrap_or_else(PoisonError::into_inner);
                let number = made.entry(label.clone()).or_default();
                *number += 1;
                let part = format!("{label}#{number}");
                (part.clone(), part)
            }
        };
        let Some(new) = self.part(&part, &key, &sorted, options)? else {
            return Ok(Membership::NotAMember { group: self.name_of_part(&part), rank: self.rank() });
        };
        Ok(Membership::Member(new))
    }

    /// Splits the group: ranks of one color become a group, in the order of their keys and, where these are equal, of their ranks.
    /// `None` as color: this rank becomes a member of none. All ranks must call it. Backends that have been made are split too, where
    /// that is cheaper than to make them anew.
    ///
    /// # Errors
    ///
    /// [`Error::NotMade`] if a rank does not come, or what a backend of this group has seen of it, such as [`Error::RankDied`]; as
    /// [`ProcessGroup::new_group`].
    pub fn split(&self, color: Option<u32>, key: i64, options: &GroupOptions) -> Result<Membership, Error> {
        self.shared.alive()?;
        self.split_with_all(color, key, options).map_err(|error| self.shared.failed(error))
    }

    fn split_with_all(
        &self,
        color: Option<u32>,
        key: i64,
        options: &GroupOptions,
    ) -> Result<Membership, Error> {
        let shared = &self.shared;
        let number = shared.splits.begin();
        let told = match color {
            Some(color) => format!("{color} {key}"),
            None => String::new(),
        };
        let rank = self.rank();
        let told = shared.meet_to_split(number, told.as_bytes())?;
        let mut members: Vec<(i64, usize)> = Vec::new();
        for (other, told) in told.iter().enumerate() {
            let text = String::from_utf8_lossy(told);
            let Some((its_color, its_key)) = text.split_once(' ') else { continue };
            let its_color: u32 = its_color
                .parse()
                .map_err(|_| shared.split_not_made(format!("rank {other} says {text:?}")))?;
            let its_key: i64 =
                its_key.parse().map_err(|_| shared.split_not_made(format!("rank {other} says {text:?}")))?;
            if Some(its_color) == color {
                members.push((its_key, other));
            }
        }
        members.sort_unstable();
        let ranks: Vec<usize> = members.into_iter().map(|(_, rank)| rank).collect();
        // Parts of all colors may have been given one name.
        let key = match color {
            Some(color) => format!("split {number}/{color}"),
            None => format!("split {number}"),
        };
        let part = options.name.clone().unwrap_or_else(|| key.clone());
        let new = match color {
            Some(_) => self.part(&part, &key, &ranks, options)?,
            None => None,
        };
        for device in DeviceType::ALL {
            self.split_backend(device, color, new.as_ref())?;
        }
        Ok(match new {
            Some(group) => Membership::Member(group),
            None => Membership::NotAMember { group: self.name_of_part(&part), rank },
        })
    }

    /// Makes a part's backend out of this group's, if that is how it is done.
    fn split_backend(&self, device: DeviceType, color: Option<u32>, new: Option<&Self>) -> Result<(), Error> {
        let Some(backend) = self.made(device) else { return Ok(()) };
        // A part with another backend takes no part in it, as a rank without a color does not.
        let new = new.filter(|new| new.backend(device) == self.backend(device));
        let context: Option<BackendContext> = new.map(|new| new.shared.context(device)).transpose()?;
        let color = color.filter(|_| context.is_some());
        let Some(split) = backend.split(color, context.as_ref()) else { return Ok(()) };
        if let (Some(made), Some(new)) = (split?, new) {
            let taken = || unreachable!("nobody else has the new group");
            new.shared.slot(device).get_or_make(None, || Ok(()), taken, || Ok(made))?;
            new.shared.family.watchdog.start();
        }
        Ok(())
    }

    fn name_of_part(&self, part: &str) -> Arc<str> {
        format!("{}/{part}", self.name()).into()
    }

    /// The group of `ranks`, in this order, with its keys below `key`; `None` if this one is not among them.
    fn part(
        &self,
        part: &str,
        key: &str,
        ranks: &[usize],
        options: &GroupOptions,
    ) -> Result<Option<Self>, Error> {
        let shared = &self.shared;
        debug_assert_eq!(ranks.iter().collect::<BTreeSet<_>>().len(), ranks.len());
        let Some(rank) = ranks.iter().position(|rank| *rank == self.rank()) else { return Ok(None) };
        let config = options.config.as_ref().unwrap_or(&shared.config);
        let backends = config.resolve(&shared.family.registry)?;
        let old = &shared.settings;
        let settings = Settings {
            cuda_device: old.cuda_device,
            timeout: options.timeout.unwrap_or(old.timeout),
            deadline: options.deadline.unwrap_or(old.deadline),
            check_calls: options.check_calls.unwrap_or(old.check_calls),
            forbid_fallback: options.forbid_fallback.unwrap_or(old.forbid_fallback),
        };
        let store = shared.store_below(&format!("group/{key}"))?;
        let info = Arc::new(GroupInfo {
            name: self.name_of_part(part),
            rank,
            world_size: ranks.len(),
            ranks: ranks.iter().map(|rank| self.ranks()[*rank]).collect(),
        });
        let description = options.name.as_deref().unwrap_or("undefined");
        let new = Shared::new(
            (&shared.family, Arc::downgrade(shared)),
            info,
            description,
            store,
            backends,
            settings,
        );
        Ok(Some(Self { stream: self.stream, ..Self::of(new) }))
    }
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn ranks_are_written_as_people_write_them() {
        assert_eq!(label(&[3]), "3");
        assert_eq!(label(&[0, 1, 2, 3, 6]), "0-3,6");
        assert_eq!(label(&[0, 2, 4]), "0,2,4");
        let (even, odd): (Vec<usize>, Vec<usize>) = (0..400).partition(|rank| rank % 2 == 0);
        assert!(label(&even).starts_with("200 of 0-398 ") && label(&even).len() < 64);
        assert_ne!(label(&even), label(&odd));
    }
}
