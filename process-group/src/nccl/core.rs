//! What a backend and its calls in flight share: the communicators, who the ranks are, and how it all ends.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_device::{DeviceMemory, PrimaryContext, Stream};
use meshreduce_nccl_loader::sys::ncclResult_t;
use meshreduce_nccl_loader::{self as loader};
use meshreduce_store::Store;
use meshreduce_store::identity::{Life, Member};

use super::NAME;
use super::communicator::{Communicator, CommunicatorError};
use super::failure::NcclFailure;
use crate::backend::{BackendContext, GroupInfo};
use crate::error::{Cause, Error, Ranks, Stopped, stopped};

/// How often whoever waits looks for what has gone wrong.
const LOOK: Duration = Duration::from_millis(100);
/// How long is looked for a dead rank, of which NCCL has seen the connections break. The process may be on its way out.
const DYING: Duration = Duration::from_millis(500);

/// Held while a thread issues calls on a device: NCCL does not support that from two threads at a time, not even on two
/// communicators (NCCL's documentation, "Thread Safety").
fn issuing(ordinal: u32) -> Arc<Mutex<()>> {
    static DEVICES: Mutex<BTreeMap<u32, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    Arc::clone(DEVICES.lock().unwrap_or_else(PoisonError::into_inner).entry(ordinal).or_default())
}

/// See the module.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) name: Arc<str>,
    pub(super) group: Arc<GroupInfo>,
    pub(super) context: Arc<PrimaryContext>,
    pub(super) store: StoreOf,
    pub(super) timeout: Duration,
    /// By rank.
    pub(super) members: Vec<Member>,
    /// For collectives.
    pub(super) collectives: Communicator,
    /// For sends and receives, where there is anybody to exchange them with.
    pub(super) pairs: Option<Communicator>,
    /// The number that barriers add up.
    pub(super) barrier: DeviceMemory,
    pub(super) issuing: Arc<Mutex<()>>,
    /// Why everything pending fails.
    pub(super) end: OnceLock<Error>,
    /// It takes no calls any more, and those that were made end as they do.
    pub(super) down: AtomicBool,
}

/// A store, which shows nothing of itself.
pub(super) struct StoreOf(pub(super) Arc<dyn Store>);

impl std::fmt::Debug for StoreOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Core {
    /// Of communicators that are there.
    pub(super) fn new(
        context: &BackendContext,
        device: &Arc<PrimaryContext>,
        members: Vec<Member>,
        barrier: DeviceMemory,
        (collectives, pairs): (Communicator, Option<Communicator>),
    ) -> Arc<Self> {
        Arc::new(Self {
            name: NAME.into(),
            group: Arc::clone(&context.group),
            context: Arc::clone(device),
            store: StoreOf(Arc::clone(&context.store)),
            timeout: context.group_timeout,
            members,
            collectives,
            pairs,
            barrier,
            issuing: issuing(device.ordinal()),
            end: OnceLock::new(),
            down: AtomicBool::new(false),
        })
    }

    /// The number for barriers.
    pub(super) fn number(device: &Arc<PrimaryContext>) -> Result<DeviceMemory, NcclFailure> {
        let (memory, stream) = (DeviceMemory::new(device, 8)?, Stream::new(device)?);
        memory.set(0, 0, &stream)?;
        stream.synchronize()?;
        Ok(memory)
    }

    /// That something did not end in time.
    pub(super) fn timed_out(&self, what: &'static str, waited: Duration) -> NcclFailure {
        NcclFailure::TimedOut { what, waited, stopped: stopped(&self.members, self.group.rank) }
    }

    /// An error of this backend.
    pub(super) fn failure(&self, failure: impl Into<NcclFailure>) -> Error {
        let source = Cause::new(failure.into());
        Error::Backend { backend: Arc::clone(&self.name), group: Arc::clone(&self.group.name), source }
    }

    /// Whether it takes calls.
    pub(super) fn alive(&self) -> Result<(), Error> {
        match self.end.get() {
            Some(cause) => Err(cause.clone()),
            None if self.down.load(Ordering::Acquire) => {
                Err(Error::ShutDown { group: Arc::clone(&self.group.name) })
            }
            None => Ok(()),
        }
    }

    /// Why everything pending fails, if it does.
    pub(super) fn ended(&self) -> Result<(), Error> {
        self.end.get().map_or(Ok(()), |cause| Err(cause.clone()))
    }

    /// Ends everything that goes on, with `cause`, unless that has happened. Returns at once.
    ///
    /// Each communicator is aborted by a thread of its own: an abort waits for its communicator's kernels, which may wait for another's
    /// that is to be aborted too, of this group or of any other (pytorch #119797). So they must all begin at once, in whatever order
    /// groups are aborted. (One group of NCCL's would do that too, for the communicators of one thread, in recent versions.)
    pub(super) fn fail(self: &Arc<Self>, cause: &Error) {
        if self.end.set(cause.clone()).is_err() {
            return;
        }
        let abort = |which: fn(&Core) -> Option<&Communicator>| {
            let core = Arc::clone(self);
            let abort = move || {
                if let Some(communicator) = which(&core) {
                    communicator.abort(&core.context);
                }
            };
            let thread = std::thread::Builder::new().name("meshreduce abort".to_owned());
            if let Err(error) = thread.spawn(abort) {
                tracing::error!(%error, group = &*self.group.name, "no thread can be started to abort a communicator");
            }
        };
        abort(|core| Some(&core.collectives));
        if self.pairs.is_some() {
            abort(|core| core.pairs.as_ref());
        }
    }

    /// What a stop means for calls: NCCL's errors end everything.
    pub(super) fn stopped(self: &Arc<Self>, stop: CommunicatorError) -> Error {
        let error = match stop {
            CommunicatorError::GivenUp(error) => return error,
            CommunicatorError::Failed(NcclFailure::Nccl(error)) => self.of_nccl(error),
            // The cause of the end says more.
            CommunicatorError::Failed(NcclFailure::Ended) => {
                return self.alive().err().unwrap_or_else(|| self.failure(NcclFailure::Ended));
            }
            CommunicatorError::Failed(failure) => return self.failure(failure),
        };
        self.fail(&error);
        self.ended().err().unwrap_or(error)
    }

    /// An error of NCCL's; where a rank's process has ended, that.
    fn of_nccl(&self, error: loader::Error) -> Error {
        dead_behind(&error, &self.members, &self.group).unwrap_or_else(|| self.failure(error))
    }

    /// A rank whose process has certainly ended, as far as that can be seen from this host. Of several it is not to be seen which
    /// went first.
    fn dead(&self, and: &str) -> Option<Error> {
        dead(&self.members, &self.group, and)
    }

    /// What has gone wrong behind the scenes; where calls are `pending`, also that a rank they need is gone, which NCCL does not see
    /// within a host.
    pub(super) fn wrong(&self, pending: bool) -> Option<Error> {
        let communicators = [Some(&self.collectives), self.pairs.as_ref()];
        match communicators.into_iter().flatten().find_map(Communicator::async_error) {
            Some(error) => Some(self.of_nccl(error)),
            None if pending => self.dead(""),
            None => None,
        }
    }

    /// Fails with what has gone wrong behind the scenes, if anything.
    pub(super) fn look(self: &Arc<Self>, pending: bool) -> Result<(), Error> {
        self.ended()?;
        let Some(error) = self.wrong(pending) else { return Ok(()) };
        // An abort of another thread may be what has made NCCL say so, since it was asked for above: the first cause counts.
        self.fail(&error);
        self.ended()
    }

    /// Whether something that was begun goes on being waited for: not beyond `end`, which has the error `late`, and not after the
    /// end of it all.
    pub(super) fn patience<'a>(
        self: &'a Arc<Self>,
        end: Option<Instant>,
        late: impl Fn() -> Error + 'a,
    ) -> impl FnMut() -> Result<(), Error> + 'a {
        let mut next_look = Instant::now() + LOOK;
        move || {
            self.ended()?;
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                return Err(late());
            }
            if now >= next_look {
                next_look = now + LOOK;
                self.look(true)?;
            }
            Ok(())
        }
    }
}

/// The rank whose end `error` comes from, if it is one that such an end makes: the connection breaks a moment before the process
/// has ended.
pub(super) fn dead_behind(error: &loader::Error, members: &[Member], group: &GroupInfo) -> Option<Error> {
    let is_remote = match error {
        loader::Error::Nccl(error) => {
            matches!(error.code, ncclResult_t::REMOTE_ERROR | ncclResult_t::SYSTEM_ERROR)
        }
        _ => false,
    };
    let until = Instant::now() + DYING;
    let mut looks = is_remote;
    while looks {
        if let Some(died) = dead(members, group, &format!("; {error}")) {
            return Some(died);
        }
        std::thread::sleep(Duration::from_millis(10));
        looks = Instant::now() < until;
    }
    None
}

/// A rank of `group` whose process has certainly ended, with all others of which that is so.
pub(super) fn dead(members: &[Member], group: &GroupInfo, and: &str) -> Option<Error> {
    let here = &members[group.rank].host;
    let mut dead = (0..members.len()).filter(|rank| members[*rank].life(here) == Life::Ended);
    let rank = dead.next()?;
    let others: Vec<usize> = dead.collect();
    let others = match others.is_empty() {
        true => String::new(),
        false => format!(", and so have those of {}", Ranks(&others)),
    };
    // Who was waited for, and not only who gave up first.
    let stopped = stopped(members, group.rank);
    let how = format!("{} has ended{others}{and}{}", members[rank], Stopped(&stopped));
    Some(Error::RankDied { rank, group: Arc::clone(&group.name), how })
}
