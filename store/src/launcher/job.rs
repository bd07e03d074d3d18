//! The store of a job, in which no other job's ranks are.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Launcher;
use crate::clock::{Deadline, Pause};
use crate::codec::{Malformed, Payload, Reader, Writer};
use crate::forward::forward_store;
use crate::identity::{Life, Member, NoIdentity};
use crate::{PrefixStore, Store, StoreError, TcpStore};

/// All keys are below this one, beside those of the launcher's agent.
const PREFIX: &str = "meshreduce";

/// Which job, as the store says: under the key `host` where rank 0 hosts the store, else under `job/<id>/<restart>/<world size>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The launcher's id of it, if it gave one.
    pub run_id: Option<String>,
    /// How often it has been started anew.
    pub restart_count: u64,
    /// Its ranks.
    pub world_size: usize,
    /// A random number of whoever came first: what tells jobs apart that have no id.
    pub nonce: u64,
    /// Who came first; rank 0 where that hosts the store.
    pub opened_by: Member,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.run_id {
            Some(id) => write!(f, "job {id}")?,
            None => write!(f, "a job without an id")?,
        }
        write!(
            f,
            ", restart {}, of {} ranks, opened by {}",
            self.restart_count, self.world_size, self.opened_by
        )
    }
}

impl Payload for Job {
    const KIND: u8 = 32;

    fn write(&self, out: &mut Writer) {
        out.flag(self.run_id.is_some());
        out.text(self.run_id.as_deref().unwrap_or_default());
        out.u64(self.restart_count);
        out.rank(self.world_size);
        out.u64(self.nonce);
        self.opened_by.write(out);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (has_id, id) = (from.flag()?, from.text()?);
        Ok(Self {
            run_id: has_id.then_some(id),
            restart_count: from.u64()?,
            world_size: from.rank()?,
            nonce: from.u64()?,
            opened_by: Member::read(from)?,
        })
    }
}

/// What stands under a rank's key: who has it, and a random number, because a process may come for one rank twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) member: Member,
    pub(super) nonce: u64,
}

impl Payload for Holder {
    const KIND: u8 = 33;

    fn write(&self, out: &mut Writer) {
        self.member.write(out);
        out.u64(self.nonce);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { member: Member::read(from)?, nonce: from.u64()? })
    }
}

/// Every RandomState has keys of its own, from the system's randomness.
fn nonce() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Job {
    fn of(launcher: &Launcher, me: &Member) -> Self {
        Self {
            run_id: launcher.run_id.clone(),
            restart_count: launcher.restart_count,
            world_size: launcher.world_size,
            nonce: nonce(),
            opened_by: me.clone(),
        }
    }

    fn is_that_of(&self, other: &Job) -> bool {
        self.run_id == other.run_id
            && self.restart_count == other.restart_count
            && self.world_size == other.world_size
    }

    /// What the keys of the job begin with, below [`PREFIX`].
    fn prefix(&self) -> String {
        let id = match &self.run_id {
            Some(id) => escaped(id),
            None => format!("{:016x}", self.nonce),
        };
        format!("{PREFIX}/{id}/{}/{}", self.restart_count, self.world_size)
    }
}

/// Why a process has no store of its job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The store failed, could not be hosted or was not there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system does not tell who this process is.
    #[error(transparent)]
    Identity(#[from] NoIdentity),
    /// The store at that address is another job's.
    #[error(
        "the store at {place} is that of {theirs}, and this process belongs to {ours}: give every job a port of its own \
         (MASTER_PORT)"
    )]
    AnotherJob {
        /// The address.
        place: String,
        /// This process's job, as it would have opened it.
        ours: Box<Job>,
        /// The job whose store it is.
        theirs: Box<Job>,
    },
    /// The store that was found there is about to end, and no other came in its place.
    #[error(
        "the store at {place} is about to end: rank 0 of its job has closed it, and no other one came in its place"
    )]
    Ends {
        /// The address.
        place: String,
    },
    /// Another process has this rank.
    #[error(
        "rank {rank} of {job} is {holder}, and {newcomer} came for it: if they are of two jobs, give each a port of its own \
         (MASTER_PORT) or an id (torchrun --rdzv_id)"
    )]
    RankTaken {
        /// The rank.
        rank: usize,
        /// The job whose store it is.
        job: Box<Job>,
        /// The process that has it.
        holder: Box<Member>,
        /// This process.
        newcomer: Box<Member>,
    },
}

/// A job's store: a part of a [`TcpStore`] with keys of the job alone. See [`Launcher::store`].
///
/// # What keeps two jobs apart
///
/// A job that has an id keeps to itself: its keys carry id, restart count and world size, and where rank 0 hosts the store,
/// ranks that differ in one of them are turned away with [`JobError::AnotherJob`]. Of jobs without an id the same is
/// true of restart count and world size; two of them that are alike in both and use one port are told apart only when two
/// processes come for one rank. The second one then gets [`JobError::RankTaken`], with both identities, also if it was the
/// first one's that strayed: give such jobs ports of their own.
#[derive(Debug)]
pub struct JobStore {
    // Dropped before the store is: it takes its key back.
    claim: Claim,
    store: PrefixStore<Arc<TcpStore>>,
    tcp: Arc<TcpStore>,
    job: Job,
    hosted_by: HostedBy,
}

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostedBy {
    /// The launcher's agent.
    Agent,
    /// Rank 0, which is another process than this.
    Rank0,
    /// This process, which is rank 0.
    Own,
}

/// How long a port may be taken by what is about to leave it.
const LEAVING: Duration = Duration::from_secs(3);

/// What stands in place of the job where rank 0 hosts the store and has begun to close it.
const ENDS: &[u8] = b"ends";

/// What nobody stores: to look at a key without changing it.
const NOTHING: &[u8] = b"?";

/// How long a process that dies may take to have ended, from when another one has come in its place.
const DYING: Duration = Duration::from_secs(1);

impl JobStore {
    pub(super) fn open(launcher: &Launcher, timeout: Duration) -> Result<Self, JobError> {
        let me = Member::current()?;
        let own = Job::of(launcher, &me);
        let deadline = Deadline::after(timeout);
        let hosted_by = match (launcher.agent_store, launcher.rank) {
            (true, _) => HostedBy::Agent,
            (false, 0) => HostedBy::Own,
            (false, _) => HostedBy::Rank0,
        };
        let (tcp, job) = match hosted_by {
            HostedBy::Own => Self::host(launcher, own, timeout)?,
            HostedBy::Rank0 => Self::reach(launcher, own, timeout)?,
            HostedBy::Agent => {
                let connect = || launcher.resolve();
                let tcp = TcpStore::connect_to(&launcher.place(), &connect, timeout)?;
                let name = own.run_id.as_deref().map_or_else(|| "none".to_owned(), escaped);
                // An agent may start ranks anew with another number of them, when others have come or gone.
                let key = format!("{PREFIX}/job/{name}/{}/{}", own.restart_count, own.world_size);
                let job = read(&key, &tcp.compare_set(&key, b"", &own.to_bytes())?)?;
                (tcp, check(launcher, own, job)?)
            }
        };
        let tcp = Arc::new(tcp);
        let store = PrefixStore::new(&job.prefix(), Arc::clone(&tcp))?;
        let claim = Claim::make(store.clone(), launcher.rank, &me, &job, deadline)?;
        Ok(Self { claim, store, tcp, job, hosted_by })
    }

    fn host(launcher: &Launcher, own: Job, timeout: Duration) -> Result<(TcpStore, Job), JobError> {
        // An earlier start of the job may be about to leave the port.
        let mut pause = Pause::new(timeout.min(LEAVING));
        let mut until_it_is_found = Pause::new(timeout);
        loop {
            let addresses = launcher.resolve();
            if addresses.is_err() && until_it_is_found.again() {
                continue;
            }
            match TcpStore::host_at(&launcher.place(), addresses) {
                Ok(tcp) => {
                    tcp.set(&host_key(), &own.to_bytes())?;
                    return Ok((tcp, own));
                }
                Err(StoreError::NotHosted { source, .. })
                    if source.kind() == ErrorKind::AddrInUse && pause.again() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Connects to the store that rank 0 hosts. While another job's is there, that may be one that ends: an earlier start of
    /// this job, for instance.
    fn reach(launcher: &Launcher, own: Job, timeout: Duration) -> Result<(TcpStore, Job), JobError> {
        let deadline = Deadline::after(timeout);
        let mut pause = Pause::new(timeout);
        let mut earlier = None;
        loop {
            let resolve = || launcher.resolve();
            let tcp = match TcpStore::connect_to(&launcher.place(), &resolve, deadline.left()) {
                Ok(tcp) => tcp,
                // What was found there before says more than that nothing is there now.
                Err(error) => return Err(earlier.unwrap_or(error.into())),
            };
            let result =
                tcp.get(&host_key(), deadline.left()).map_err(JobError::from).and_then(
                    |bytes| match &*bytes {
                        ENDS => Err(JobError::Ends { place: launcher.place() }),
                        job => check(launcher, own.clone(), read(&host_key(), job)?),
                    },
                );
            match result {
                Ok(job) => return Ok((tcp, job)),
                // Lost: its host has ended meanwhile. In no case it is kept waiting by a client that is no use to it.
                Err(
                    error @ (JobError::AnotherJob { .. }
                    | JobError::Ends { .. }
                    | JobError::Store(StoreError::Lost { .. })),
                ) => {
                    drop(tcp);
                    if !pause.again() {
                        return Err(error);
                    }
                    earlier = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The job, as the store says.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The address at which the store is hosted.
    pub fn local_addr(&self) -> SocketAddr {
        self.tcp.local_addr()
    }

    /// Waits at most `timeout` until rank 0, if that is another process and hosts the store, has begun to close it, or has ended. A rank
    /// that leaves after that, and opens the store of its job again, does not meet the one that ends.
    pub fn wait_for_the_host_to_close(&self, timeout: Duration) {
        let mut pause = Pause::new(timeout);
        let goes_on = || self.tcp.compare_set(&host_key(), NOTHING, NOTHING).is_ok_and(|said| said != ENDS);
        while self.hosted_by == HostedBy::Rank0 && goes_on() && pause.again() {}
    }

    /// Gives the rank back and leaves the store, as [`TcpStore::close`]: a rank that hosts it waits at most `timeout` for the
    /// others to leave. Returns how many connections had to be cut off.
    ///
    /// Who opens the job's store from then on does not take it for the one that ends, which may last for as long as others use it, and
    /// waits for the next one.
    pub fn close(self, timeout: Duration) -> usize {
        let Self { claim, store, tcp, hosted_by, .. } = self;
        drop(claim);
        if hosted_by == HostedBy::Own
            && let Err(error) = tcp.set(&host_key(), ENDS)
        {
            tracing::debug!(%error, "that the job's store ends could not be told");
        }
        drop(store);
        Arc::into_inner(tcp).map_or(0, |tcp| tcp.close(timeout))
    }
}

/// A part of a key that ends where the id does.
fn escaped(id: &str) -> String {
    id.replace('%', "%25").replace('/', "%2f")
}

fn host_key() -> String {
    format!("{PREFIX}/host")
}

fn read<T: Payload>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    T::from_bytes(bytes)
        .map_err(|problem| StoreError::Corrupt { key: key.to_owned(), problem: problem.to_string() })
}

fn check(launcher: &Launcher, ours: Job, theirs: Job) -> Result<Job, JobError> {
    match ours.is_that_of(&theirs) {
        true => Ok(theirs),
        false => Err(JobError::AnotherJob {
            place: launcher.place(),
            ours: Box::new(ours),
            theirs: Box::new(theirs),
        }),
    }
}

/// A process's mark on its rank. It is taken back when this is dropped.
#[derive(Debug)]
struct Claim {
    store: PrefixStore<Arc<TcpStore>>,
    key: String,
}

impl Claim {
    /// Claims a rank. One whose process has ended is free; of one elsewhere that cannot be told, and it is waited for.
    fn make(
        store: PrefixStore<Arc<TcpStore>>,
        rank: usize,
        me: &Member,
        job: &Job,
        deadline: Deadline,
    ) -> Result<Self, JobError> {
        let key = format!("rank/{rank}");
        let mine = Holder { member: me.clone(), nonce: nonce() }.to_bytes();
        let mut expected = Vec::new();
        let mut pause = Pause::new(deadline.left());
        let second_look = Deadline::after(DYING);
        loop {
            let found = store.compare_set(&key, &expected, &mine)?;
            // (Where the key has gone, what was expected comes back.)
            if found == mine {
                return Ok(Self { store, key });
            }
            let Holder { member: holder, .. } = read(&key, &found)?;
            let taken = || {
                let (job, holder, newcomer) =
                    (Box::new(job.clone()), Box::new(holder.clone()), Box::new(me.clone()));
                Err(JobError::RankTaken { rank, job, holder, newcomer })
            };
            expected = match holder.life(&me.host) {
                Life::Ended if expected != found => found,
                Life::Running if holder == *me || second_look.has_passed() => return taken(),
                _ => Vec::new(),
            };
            if expected.is_empty() && !pause.again() {
                return taken();
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A store that is lost keeps nothing.
        if let Err(error) = self.store.delete(&self.key) {
            tracing::debug!(%error, "a rank could not be given back to the launcher's store");
        }
    }
}

forward_store!(JobStore, |this| this.store);
