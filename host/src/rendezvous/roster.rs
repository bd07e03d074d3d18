//! Who takes part in which attempt.
//!
//! The key `roster` names the current attempt by a random *generation*, so that what an earlier attempt left behind
//! can never be mistaken for the present one, and says which processes have joined it. A rank joins by replacing the
//! roster with one that has it in; it opens a new generation where the old one has ended or all its members are dead.
//!
//! An attempt that is over is closed in the same way, by a rank that from then on is the only one that may delete the key:
//! stores delete whatever is there, and nobody may replace a closed roster.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};
use meshreduce_store::identity::Member;

/// The key.
pub(super) const ROSTER: &str = "roster";

/// An attempt and its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roster {
    pub(crate) generation: u64,
    /// Milliseconds since 1970.
    pub(crate) opened: u64,
    pub(crate) members: Vec<Option<Member>>,
    /// Who clears the attempt away.
    pub(crate) closed_by: Option<Member>,
}

impl Roster {
    pub(crate) fn new(world_size: usize) -> Self {
        // Every RandomState has keys of its own, from the system's randomness.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u64(now());
        Self { generation: hasher.finish(), opened: now(), members: vec![None; world_size], closed_by: None }
    }

    pub(crate) fn with(&self, rank: usize, member: &Member) -> Self {
        let mut with = self.clone();
        with.members[rank] = Some(member.clone());
        with
    }

    pub(crate) fn closed_by(&self, member: &Member) -> Self {
        Self { closed_by: Some(member.clone()), ..self.clone() }
    }

    /// Whether it was opened at most `span` ago, by the clocks of the host where it was and of this one; one from the future
    /// was not.
    pub(crate) fn is_younger_than(&self, span: Duration) -> bool {
        /// As far as clocks that are kept in step are apart.
        const SLACK: u64 = 1000;
        let age = (now() + SLACK).checked_sub(self.opened);
        age.is_some_and(|age| u128::from(age) <= span.as_millis() + u128::from(SLACK))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

pub(super) fn write_optional<T>(out: &mut Writer, value: Option<&T>, write: impl FnOnce(&T, &mut Writer)) {
    out.flag(value.is_some());
    if let Some(value) = value {
        write(value, out);
    }
}

pub(super) fn read_optional<T>(
    from: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    from.flag()?.then(|| read(from)).transpose()
}

impl Payload for Roster {
    const KIND: u8 = 1;

    fn write(&self, out: &mut Writer) {
        out.u64(self.generation);
        out.u64(self.opened);
        out.list(&self.members, |out, member| write_optional(out, member.as_ref(), Member::write));
        write_optional(out, self.closed_by.as_ref(), Member::write);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (generation, opened) = (from.u64()?, from.u64()?);
        let members = from.list(|from| read_optional(from, Member::read))?;
        Ok(Self { generation, opened, members, closed_by: read_optional(from, Member::read)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_store::identity::{Host, Process};

    #[test]
    fn rosters_survive_the_round_trip_and_have_generations_of_their_own() {
        let host = Host { name: "host".into(), id: "boot".into() };
        let member = Member { host, process: Process { pid: 1, namespace: 2, start_time: 3, clock: 4 } };
        let roster = Roster::new(4).with(2, &member);
        for roster in [roster.clone(), roster.closed_by(&member)] {
            assert_eq!(Roster::from_bytes(&roster.to_bytes()), Ok(roster));
        }
        assert_ne!(Roster::new(4).generation, roster.generation);
        assert!(roster.is_younger_than(Duration::from_secs(60)));
        let old = Roster { opened: 0, ..roster };
        assert!(!old.is_younger_than(Duration::from_secs(60)));
    }
}
