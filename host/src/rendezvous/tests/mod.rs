//! The agreement without a device: ranks as threads over a store in memory.

mod adverse;
mod agreement;
mod joining;
mod leaving;
mod meeting;

use std::process::{Child, Command};
use std::time::Duration;

use meshreduce_store::codec::{Malformed, Payload, Reader, Writer};
use meshreduce_store::identity::{Member, Process};
use meshreduce_store::{MemoryStore, Store};

use super::join::Joined;
use super::session::{Session, StepError};
use super::verdict::Verdict;
use crate::error::Error;

#[derive(Debug, PartialEq)]
pub(super) struct Number(pub(super) u64);

impl Payload for Number {
    const KIND: u8 = 99;

    fn write(&self, out: &mut Writer) {
        out.u64(self.0);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.u64().map(Number)
    }
}

pub(super) const LONG: Duration = Duration::from_secs(60);
pub(super) const SHORT: Duration = Duration::from_millis(200);

pub(super) struct Meeting {
    pub(super) store: MemoryStore,
}

impl Meeting {
    pub(super) fn new() -> Self {
        Self { store: MemoryStore::new() }
    }

    /// The keys in the store.
    pub(super) fn keys(&self) -> Vec<String> {
        self.store.list_keys().unwrap()
    }

    pub(super) fn join(
        &self,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Session<'_>, Error> {
        match Session::join(&self.store, rank, world_size, timeout)? {
            Joined::Member(session) => Ok(session),
            Joined::Late(_, verdict) => panic!("late: {verdict:?}"),
        }
    }

    /// Runs `rank` as each of `ranks` and returns what they return.
    pub(super) fn ranks<T: Send>(&self, ranks: &[usize], rank: impl Fn(usize) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let rank = &rank;
            let threads: Vec<_> = ranks.iter().map(|&index| scope.spawn(move || rank(index))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

pub(super) fn verdict(stop: StepError) -> Verdict {
    match stop {
        StepError::Verdict(verdict) => verdict,
        other => panic!("{other:?}"),
    }
}

/// A member whose process has ended.
pub(super) fn dead_member() -> Member {
    let own = live_member();
    Member { process: Process { start_time: own.process.start_time + 1, ..own.process }, ..own }
}

pub(super) fn live_member() -> Member {
    Member::current().unwrap()
}

/// A member of which it cannot be told from here whether it lives: it was in another pid namespace.
pub(super) fn member_elsewhere() -> Member {
    let own = live_member();
    Member { process: Process { namespace: own.process.namespace + 1, ..own.process }, ..own }
}

/// A process that lives until it is killed, as a member.
pub(super) struct Other(Child);

impl Other {
    pub(super) fn start() -> (Self, Member) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        (Self(child), Member { process, ..live_member() })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
