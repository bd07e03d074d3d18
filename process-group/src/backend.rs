//! Backends: what makes the calls of a group on one kind of device.

mod ending;

pub(crate) use ending::{AbsentRanks, DeadMember, UntilEnd};
mod registry;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use meshreduce::RawStream;
use meshreduce_store::{PrefixStore, Store};

use crate::call::Call;
use crate::error::{Cause, Error};
use crate::flight_recorder::EntryId;
use crate::mesh::MeshLane;
use crate::types::{Device, DeviceType, Operation};
use crate::work::{Outcome, Progress, Work};

pub use registry::Registry;

/// Which group a backend serves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// The group's name, equal on all members, unique among the groups of a store.
    pub name: Arc<str>,
    /// This process's rank in it.
    pub rank: usize,
    /// The number of ranks.
    pub world_size: usize,
    /// By rank: the rank in the group of all ranks.
    pub ranks: Arc<[usize]>,
}

/// What a backend is made of.
#[derive(Clone)]
#[non_exhaustive]
pub struct BackendContext {
    /// The group.
    pub group: Arc<GroupInfo>,
    /// The device: the kind that the configuration names for the backend, with the ordinal that the group was made for.
    pub device: Device,
    /// A store of the backend's own: no other backend or group uses its keys.
    pub store: Arc<dyn Store>,
    /// How long making it may take: the group's timeout, or what the call has that it is made for, if that is less.
    pub timeout: Duration,
    /// The group's timeout: for what is made later, and for each step of the end.
    pub group_timeout: Duration,
    /// How long a call may take that says nothing else; `None`: for ever.
    pub deadline: Option<Duration>,
    /// Whether calls that another backend must serve are refused instead.
    pub forbid_fallback: bool,
    /// All backends, for those that are made of others.
    pub registry: Registry,
    /// Why the group takes no calls any more.
    pub(crate) end: Arc<OnceLock<Error>>,
    /// Whether a member has died, of which other groups know.
    pub(crate) dead_member: DeadMember,
    /// Who has not begun to make a backend, as the ranks have told.
    pub(crate) absent: AbsentRanks,
    /// Where the group finds the lane of a mesh that follows its own calls. The first mesh that is made of this is that.
    pub(crate) lane: Arc<OnceLock<Weak<MeshLane>>>,
}

impl BackendContext {
    /// Of rank `rank` of `world_size` that use a backend without a group: they meet over `store`, of which no other backend uses these
    /// keys, for `device`. It is called `world`, waits 60 s for others, and has all backends of [`Registry::default`]; its fields can be
    /// changed. (What a group does besides is the caller's: to check calls and number them, to watch their deadlines where the backend
    /// itself does not, to record them.)
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use meshreduce_process_group::store::MemoryStore;
    /// use meshreduce_process_group::{BackendContext, BackendFactory, BufferMut, Call, Device, HostFactory, ReduceOp, Request};
    ///
    /// let context = BackendContext::new(Arc::new(MemoryStore::new()), 0, 1, Device::Cpu);
    /// let backend = HostFactory::new().create(context)?;
    /// let mut data = [1.0_f32, 2.0];
    /// let tensor = data.tensor_mut();
    /// // SAFETY: nobody else uses the data before the call has ended.
    /// let work = unsafe { backend.start(&Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }, &Request::new()) }?;
    /// work.wait(None)?;
    /// backend.shutdown(Duration::from_secs(60))?;
    /// # Ok::<(), meshreduce_process_group::Error>(())
    /// ```
    pub fn new(store: Arc<dyn Store>, rank: usize, world_size: usize, device: Device) -> Self {
        const TIMEOUT: Duration = Duration::from_secs(60);
        let ranks = (0..world_size).collect();
        Self {
            group: Arc::new(GroupInfo { name: "world".into(), rank, world_size, ranks }),
            device,
            store,
            timeout: TIMEOUT,
            group_timeout: TIMEOUT,
            deadline: Some(TIMEOUT),
            forbid_fallback: false,
            registry: Registry::default(),
            end: Arc::default(),
            dead_member: DeadMember::default(),
            absent: AbsentRanks::default(),
            lane: Arc::default(),
        }
    }

    /// Why the group takes no calls any more, once that is so: whoever makes a backend need not go on then.
    pub fn ended(&self) -> Option<&Error> {
        self.end.get()
    }

    /// This with a store in which waits end when the group does, or a member is known to have died, and [`BackendContext::meet`] too, so that the other ranks hear of it.
    /// For those who would make a backend that has nothing else to tell them by.
    #[must_use]
    pub fn until_end(&self) -> Self {
        let (end, dead) = (Arc::clone(&self.end), self.dead_member.clone());
        let store =
            UntilEnd::when(Arc::clone(&self.store), move || end.get().cloned().or_else(|| dead.look()));
        Self { store: Arc::new(store), ..self.clone() }
    }

    /// This with a store in which waits end when a member is known to have died.
    pub(crate) fn until_death(&self) -> Self {
        let dead = self.dead_member.clone();
        let store = UntilEnd::when(Arc::clone(&self.store), move || dead.look());
        Self { store: Arc::new(store), ..self.clone() }
    }

    /// This with a store in which waits end as soon as `left` is set: whoever meets the others there has left a group that is over.
    pub(crate) fn until_left(&self, left: &Arc<AtomicBool>) -> Self {
        let (left, group) = (Arc::clone(left), Arc::clone(&self.group.name));
        let look = move || left.load(Ordering::SeqCst).then(|| Error::ShutDown { group: Arc::clone(&group) });
        Self { store: Arc::new(UntilEnd::when(Arc::clone(&self.store), look)), ..self.clone() }
    }

    /// All ranks meet: gives all of them all `payload`s, by rank. Every rank's backend calls this equally often. It leaves no
    /// keys behind.
    ///
    /// # Errors
    ///
    /// Who did not come or died, as [`Error::NotMade`] with a [`meshreduce::Error`] in it.
    pub fn meet(&self, backend: &Arc<str>, payload: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let GroupInfo { rank, world_size, .. } = *self.group;
        meshreduce::rendezvous::meet(&*self.store, rank, world_size, payload, self.timeout)
            .map_err(|error| self.not_made(backend, error))
    }

    /// Tells the other ranks, which [`BackendContext::meet`] or are about to, that this one cannot make its backend, and why: they get
    /// [`Error::NotMade`] with its rank and `why` at once, in place of waiting for it. For what goes wrong before this rank meets them.
    /// (If they cannot be told either, which the log says, they wait as long as they may.)
    pub fn decline(&self, why: &str) {
        /// So long at most it waits for its turn, where another attempt is about to end.
        const MOST: Duration = Duration::from_secs(5);
        let GroupInfo { rank, world_size, .. } = *self.group;
        let timeout = self.timeout.min(MOST);
        if let Err(error) = meshreduce::rendezvous::decline(&*self.store, rank, world_size, why, timeout) {
            tracing::warn!(%error, group = &*self.group.name, rank, "the other ranks could not be told that this one makes no backend");
        }
    }

    /// This for a backend of some of the group's ranks, of which this is one: by the order of `ranks`, over the keys below
    /// `part`, which names it too.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] if names have become too long for the store.
    ///
    /// # Panics
    ///
    /// If this rank is not among them.
    pub fn part(&self, part: &str, ranks: &[usize]) -> Result<Self, Error> {
        let below = self.below(part)?;
        let rank = ranks.iter().position(|rank| *rank == self.group.rank);
        let group = Arc::new(GroupInfo {
            name: format!("{}/{part}", self.group.name).into(),
            rank: rank.expect("a part's backend is made by its ranks"),
            world_size: ranks.len(),
            ranks: ranks.iter().map(|rank| self.group.ranks[*rank]).collect(),
        });
        Ok(Self { group, absent: AbsentRanks::default(), lane: Arc::default(), ..below })
    }

    /// This with the part of its store below `prefix`.
    pub(crate) fn below(&self, prefix: &str) -> Result<Self, Error> {
        let store = PrefixStore::new(prefix, Arc::clone(&self.store))
            .map_err(|error| Error::Store { group: Arc::clone(&self.group.name), source: Arc::new(error) })?;
        Ok(Self { store: Arc::new(store), ..self.clone() })
    }

    /// All ranks of the backend are gone: deletes what those have left in its store that met by [`BackendContext::meet`], or by
    /// [`meshreduce::rendezvous()`].
    pub(crate) fn clear_away_meetings(&self, backend: &Arc<str>) -> Result<(), Error> {
        let cleared = meshreduce::rendezvous::clear_away(&*self.store);
        cleared.map_err(|error| self.not_made(backend, error))
    }

    /// That the backend cannot be made.
    pub fn not_made(
        &self,
        backend: &Arc<str>,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        let (backend, group) = (Arc::clone(backend), Arc::clone(&self.group.name));
        Error::NotMade { backend, group, source: Cause::new(error) }
    }
}

impl fmt::Debug for BackendContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendContext")
            .field("group", &self.group)
            .field("device", &self.device)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What comes with a call.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Request {
    /// The call's sequence number: of the group's collectives, or of its sends and receives, which count by themselves.
    pub sequence: u64,
    /// When the call was made.
    pub start: Instant,
    /// How long it may take; `None`: for ever.
    pub deadline: Option<Duration>,
    /// Where a call on device memory is enqueued.
    pub stream: RawStream,
    /// The caller waits for the end at once: the backend may do all of it before it returns.
    pub blocking: bool,
    /// Its place in the group's flight recorder; `None`: no group's.
    pub(crate) entry: Option<EntryId>,
    /// Somebody wants to hear of each of the group's calls what it was.
    pub(crate) names: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self::new()
    }
}

impl Request {
    /// What comes with a call that is made now on a backend without a group: number 1, without a deadline, on the default stream,
    /// not waited for. Its fields can be changed.
    pub fn new() -> Self {
        Self {
            sequence: 1,
            start: Instant::now(),
            deadline: None,
            stream: std::ptr::null_mut::<std::ffi::c_void>().into(),
            blocking: false,
            entry: None,
            names: false,
        }
    }

    /// When the call must have ended; `None`: never.
    pub fn end(&self) -> Option<Instant> {
        self.deadline.and_then(|deadline| self.start.checked_add(deadline))
    }

    /// That the call did not end in time: [`Error::Timeout`] for a backend to return. `missing` are the ranks in `group` that have not
    /// come to it, as far as the backend knows. The group adds where those wait instead, as far as that is known.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use meshreduce_process_group::{Error, Operation, Request};
    ///
    /// let late = Request::new().timed_out(Operation::AllReduce, &Arc::from("world"), vec![1]);
    /// assert!(matches!(&late, Error::Timeout { missing, .. } if *missing == [1]));
    /// ```
    pub fn timed_out(&self, operation: Operation, group: &Arc<str>, missing: Vec<usize>) -> Error {
        Error::Timeout {
            operation,
            sequence: self.sequence,
            group: Arc::clone(group),
            waited: self.start.elapsed(),
            missing,
            stopped: Vec::new(),
            elsewhere: Vec::new(),
            tag: None,
        }
    }
}

/// What makes a group's calls on one kind of device. Object safe: a crate outside may write one and register its
/// [`BackendFactory`].
///
/// Calls of a group come in the same order on all ranks, but for sends and receives, which match by peer and tag. They may come
/// from several threads. Collectives that end well end in the order in which they were made, as far as their works tell: the group
/// takes one that has ended for the end of all before it. (Those that a backend leaves to another one have an order of their own.)
pub trait Backend: Send + Sync + fmt::Debug {
    /// Its name, as in a configuration.
    fn name(&self) -> &Arc<str>;

    /// Whether it takes the call, as far as that does not depend on what is enqueued: equal on all ranks. The group refuses
    /// what it does not take.
    ///
    /// # Errors
    ///
    /// What is in the way, or an empty text if there is nothing to say but that it does not.
    fn supports(&self, call: &Call<'_>) -> Result<(), String>;

    /// Makes the call. It was checked as [`Call`] says, and [`Backend::supports`] it.
    ///
    /// Safe code relies on the backend here: once the call has ended, which is when this returns an error, when it returns
    /// [`Work::done`], or when the work's [`crate::Completion`] says so for the first time, well or not, nothing touches the
    /// tensors' memory any more. (On a CUDA device: once the device has done what was enqueued before that.) An abort, a deadline
    /// and a dead peer are no exceptions.
    ///
    /// # Safety
    ///
    /// The tensors are valid for what the call does with them, and used otherwise by nobody, until the call has ended; the
    /// request's stream is a stream of the device's primary context.
    ///
    /// # Errors
    ///
    /// Nothing goes on in that case.
    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error>;

    /// Makes a call whose caller waits for its end at once: of one that ends before this returns nobody needs a work object.
    ///
    /// # Safety
    ///
    /// As [`Backend::start`], which it is unless the backend says otherwise.
    ///
    /// # Errors
    ///
    /// As [`Backend::start`].
    unsafe fn make(&self, call: &Call<'_>, request: &Request) -> Result<Made, Error> {
        // SAFETY: the caller's promise.
        let started = unsafe { self.start(call, request) };
        started.map(|work| match work.progress {
            Progress::Done(outcome, _) => Made::Ended(outcome),
            _ => Made::GoesOn(work),
        })
    }

    /// Makes now what would otherwise be made with some later call, in which the group's ranks come together too. All ranks of the
    /// group call it.
    ///
    /// # Errors
    ///
    /// As [`BackendFactory::create`].
    fn prepare(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Ends everything that goes on, on this rank, and soon on the others; from now on all calls fail with `cause`. Returns at
    /// once. Aborting what has ended does nothing.
    fn abort(&self, cause: &Error);

    /// The group's last handle is gone, and with it everybody who could wait for a call. Unless it says otherwise that is an
    /// abort; a backend on which nothing goes on may leave in peace, so that what other ranks are just ending still ends.
    fn dropped(&self, cause: &Error) {
        self.abort(cause);
    }

    /// What has gone wrong since, if anything: all further calls fail so.
    fn error(&self) -> Option<Error>;

    /// Ends it in order, within `timeout`: waits for what this rank has called, and for the other ranks to come here too.
    ///
    /// # Errors
    ///
    /// Who did not come. It is over all the same.
    fn shutdown(&self, timeout: Duration) -> Result<(), Error>;

    /// All other ranks have left the group, which has failed, or are dead: returns when nothing of this rank's stores anything for them any
    /// more. What is there then [`BackendFactory::clear_away`] deletes.
    ///
    /// # Errors
    ///
    /// [`Error::Store`], or what else is in the way.
    fn clear_away(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Makes the backend of a part of this group out of this one, where that is cheaper than from nothing: all ranks of this
    /// group call it in the same order, those that are in no part without a color and a context. Rank numbers of the part are in
    /// the context. `None`: it cannot, and [`BackendFactory::create`] is used.
    fn split(
        &self,
        color: Option<u32>,
        part: Option<&BackendContext>,
    ) -> Option<Result<Option<Arc<dyn Backend>>, Error>> {
        let _ = (color, part);
        None
    }

    /// Calls that it made itself and those that it left to another backend; `None` if it has none behind it.
    fn usage(&self) -> Option<Usage> {
        None
    }
}

/// What has become of a call when [`Backend::make`] returns.
#[derive(Debug)]
pub enum Made {
    /// It has ended well.
    Ended(Outcome),
    /// It goes on.
    GoesOn(Work),
}

/// How often a backend with another one behind it has used which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Calls that it made itself.
    pub own: u64,
    /// Calls that the one behind it made.
    pub fallback: u64,
}

/// Makes a backend for a group.
pub trait BackendFactory: Send + Sync {
    /// Its name in configurations: small letters, digits, `_` and `-`.
    fn name(&self) -> &str;

    /// The kinds of devices that it can serve.
    fn devices(&self) -> &[DeviceType];

    /// Makes it; every rank of the group does. It may return before the others have come, and fail later.
    ///
    /// # Errors
    ///
    /// [`Error::NotMade`], see [`BackendContext::not_made`].
    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error>;

    /// All ranks have left a group that has failed, or are dead, some of them perhaps while they made the backend: deletes what has stayed in
    /// the context's store. The last of them calls it, which may never have made the backend. What ranks that met by
    /// [`BackendContext::meet`] over that store itself have left there is deleted without it.
    ///
    /// # Errors
    ///
    /// [`Error::Store`], or what else is in the way.
    fn clear_away(&self, context: &BackendContext) -> Result<(), Error> {
        let _ = context;
        Ok(())
    }
}
