//! Who takes part in which attempt.
//!
//! The key `roster` names the current attempt by a random *generation*, so that what an earlier attempt left behind
//! can never be mistaken for the present one, and says which processes have joined it. A rank joins by replacing the
//! roster with one that has it in; it opens a new generation where the old one has ended or all its members are dead.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meshreduce_device::identity::{Host, Process};

use super::payload::{Malformed, Payload, Reader, Writer};

/// One rank's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) boot_id: String,
    pub(crate) process: Process,
}

impl Member {
    pub(crate) fn new(host: &Host, process: Process) -> Self {
        Self { boot_id: host.boot_id.clone(), process }
    }

    /// Whether the member has certainly ended, as far as a process on `host` can tell.
    pub(crate) fn has_ended(&self, host: &Host) -> bool {
        self.boot_id == host.boot_id && self.process.has_ended()
    }
}

/// An attempt and its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roster {
    pub(crate) generation: u64,
    /// Milliseconds since 1970.
    pub(crate) opened: u64,
    pub(crate) members: Vec<Option<Member>>,
}

impl Roster {
    pub(crate) fn new(world_size: usize) -> Self {
        // Every RandomState has keys of its own, from the system's randomness.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u64(now());
        Self { generation: hasher.finish(), opened: now(), members: vec![None; world_size] }
    }

    pub(crate) fn with(mut self, rank: usize, member: Member) -> Self {
        self.members[rank] = Some(member);
        self
    }

    /// Whether it was opened at most `span` ago.
    pub(crate) fn is_younger_than(&self, span: Duration) -> bool {
        u128::from(now().saturating_sub(self.opened)) <= span.as_millis()
    }

    /// Whether every member has certainly ended.
    pub(crate) fn is_dead(&self, host: &Host) -> bool {
        self.members.iter().flatten().all(|member| member.has_ended(host))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

pub(super) fn write_process(process: &Process, out: &mut Writer) {
    out.u32(process.pid);
    out.u64(process.namespace);
    out.u64(process.start_time);
    out.u64(process.clock);
}

pub(super) fn read_process(from: &mut Reader<'_>) -> Result<Process, Malformed> {
    Ok(Process { pid: from.u32()?, namespace: from.u64()?, start_time: from.u64()?, clock: from.u64()? })
}

impl Payload for Roster {
    const KIND: u8 = 1;

    fn write(&self, out: &mut Writer) {
        out.u64(self.generation);
        out.u64(self.opened);
        out.u32(self.members.len() as u32);
        for member in &self.members {
            out.u8(u8::from(member.is_some()));
            if let Some(member) = member {
                out.text(&member.boot_id);
                write_process(&member.process, out);
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (generation, opened) = (from.u64()?, from.u64()?);
        let members = from.list(|from| {
            Ok(match from.flag()? {
                true => Some(Member { boot_id: from.text()?, process: read_process(from)? }),
                false => None,
            })
        })?;
        Ok(Self { generation, opened, members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rosters_survive_the_round_trip_and_have_generations_of_their_own() {
        let host = Host { name: "host".into(), boot_id: "boot".into() };
        let member = Member::new(&host, Process { pid: 1, namespace: 2, start_time: 3, clock: 4 });
        let roster = Roster::new(4).with(2, member);
        assert_eq!(Roster::from_bytes(&roster.to_bytes()), Ok(roster.clone()));
        assert_ne!(Roster::new(4).generation, roster.generation);
        assert!(roster.is_younger_than(Duration::from_secs(60)));
        let old = Roster { opened: 0, ..roster };
        assert!(!old.is_younger_than(Duration::from_secs(60)));
    }

    #[test]
    fn members_elsewhere_are_never_taken_for_dead() {
        let here = Host::current().unwrap();
        let gone = Process { start_time: 0, ..Process::current().unwrap() };
        let roster = Roster::new(2).with(1, Member::new(&here, gone));
        assert!(roster.is_dead(&here));
        let elsewhere = Host { boot_id: "another".into(), ..here };
        assert!(!roster.is_dead(&elsewhere));
    }
}
