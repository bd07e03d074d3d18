//! The group: one object for all collectives of its ranks.

mod aborted;
mod builder;
mod calls;
mod check;
mod default;
mod dispatch;
mod end;
mod family;
mod future;
mod monitored;
mod owned;
mod parents;
mod part;
mod peers;
mod progress;
mod remains;
mod shared;
mod site;
mod slot;
mod splits;
#[cfg(test)]
mod tests;
mod waits;
mod watch;
mod watchdog;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use meshreduce::RawStream;

use crate::backend::{Backend, GroupInfo, Usage};
use crate::config::BackendConfig;
use crate::error::Error;
use crate::flight_recorder::{FlightRecorder, Status};
use crate::types::{Device, DeviceType};
use shared::Shared;
use slot::Slot;

pub use builder::Builder;
pub use default::{default_group, destroy_default_group, init, init_with, set_default_group};
pub use end::Completed;
pub use future::WorkFuture;
pub use owned::{Owned, StableBuffer};
pub use part::{GroupOptions, Membership};
pub(crate) use site::Site;
pub(crate) use watch::{Line, Noted};

/// Ranks that make collectives together, on host and device memory, each through the backend of its tensor's device.
///
/// It is a handle: clones are the same group, with settings of their own for the calls made through them
/// ([`ProcessGroup::with_deadline`], [`ProcessGroup::on_stream`]). There is no global state. A group ends with
/// [`ProcessGroup::shutdown`] on all ranks; dropping the last handle ends it on this rank at once, and the others see a rank
/// that is gone.
///
/// # Order
///
/// All ranks make the same collectives on a group in the same order. Sends and receives match by peer and tag, and are ordered
/// with each other only. Threads may share a group if they themselves keep that order; groups are independent of one another,
/// but two groups' collectives on one device must be enqueued in an order that is the same on all ranks, or on streams that
/// run side by side. Where ranks break the order they hear of it by the call's deadline at the latest, with the sequence
/// number of the call on each side ([`Error::Timeout`], [`Error::Mismatch`]).
///
/// # Streams
///
/// A call on device memory is enqueued on the handle's stream (the legacy default stream unless [`ProcessGroup::on_stream`]
/// says another) and ordered like anything else on it, whichever backend takes it. [`crate::Work::wait_on`] orders another stream
/// behind it.
///
/// # Deadlines
///
/// A call that does not end within its deadline fails, with the ranks that have not come to it, and the group is over: what a peer may
/// still write cannot be taken back. The first rank whose deadline passes ends the call on all others that have not ended it by then, as soon as
/// they hear of that: on one host, with the backend `host`, at once. No later call that needs that rank ends well on any. A wait that ends early ([`Error::StillRunning`]) changes nothing.
#[derive(Clone)]
pub struct ProcessGroup {
    shared: Arc<Shared>,
    /// Gone with the last clone.
    _handles: Arc<Handles>,
    stream: RawStream,
    /// In place of the group's.
    deadline: Option<Option<Duration>>,
}

impl fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessGroup")
            .field("name", &self.name())
            .field("rank", &self.rank())
            .field("world_size", &self.world_size())
            .field("backends", &self.backend_config().to_string())
            .finish_non_exhaustive()
    }
}

impl ProcessGroup {
    fn of(shared: Arc<Shared>) -> Self {
        let handles = Arc::new(Handles(Arc::clone(&shared)));
        Self { shared, _handles: handles, stream: std::ptr::null_mut::<u8>().into(), deadline: None }
    }

    /// The group's name: equal on all members.
    pub fn name(&self) -> &str {
        &self.shared.info.name
    }

    /// Name, rank, world size and ranks in one.
    pub fn info(&self) -> &Arc<GroupInfo> {
        &self.shared.info
    }

    /// This process's rank in the group.
    pub fn rank(&self) -> usize {
        self.shared.info.rank
    }

    /// The number of ranks.
    pub fn world_size(&self) -> usize {
        self.shared.info.world_size
    }

    /// By rank: the rank in the group of all ranks.
    pub fn ranks(&self) -> &[usize] {
        &self.shared.info.ranks
    }

    /// The CUDA device of the group's tensors, if it was given one.
    pub fn cuda_device(&self) -> Option<Device> {
        self.shared.settings.cuda_device.map(Device::Cuda)
    }

    /// Which backend serves which kind of device, all of them named.
    pub fn backend_config(&self) -> &BackendConfig {
        &self.shared.config
    }

    /// The name of the backend for a kind of device.
    pub fn backend(&self, device: DeviceType) -> Option<&Arc<str>> {
        self.shared.slot(device).name()
    }

    /// The names of all backends, by kind of device.
    pub fn backends(&self) -> impl Iterator<Item = (DeviceType, &Arc<str>)> {
        DeviceType::ALL.into_iter().filter_map(|device| Some((device, self.backend(device)?)))
    }

    /// The backend itself, if it has been made: it can be used without the group.
    pub fn made(&self, device: DeviceType) -> Option<&Arc<dyn Backend>> {
        self.shared.slot(device).made()
    }

    /// How often the backend of this kind of device has made calls itself, and left them to the one behind it. `None` if it is
    /// not made yet, or has none behind it.
    pub fn usage(&self, device: DeviceType) -> Option<Usage> {
        self.made(device).and_then(|backend| backend.usage())
    }

    /// Makes the backend for a kind of device now and not with its first call. All ranks must: it returns when they have come, or are known
    /// not to come within the group's timeout.
    ///
    /// # Errors
    ///
    /// [`Error::NoBackend`]; [`Error::NotMade`], with the ranks that did not come; [`Error::RankDied`] and [`Error::Aborted`] where that is
    /// known of a rank.
    pub fn connect(&self, device: DeviceType) -> Result<(), Error> {
        self.shared.alive()?;
        let made = self.shared.make(device, None).and_then(|backend| backend.prepare());
        made.map_err(|error| self.shared.failed(error))
    }

    /// This group with another deadline for the calls that are made through the handle; `None`: for ever. (The mesh's kernels wait so
    /// long for their peers from when they begin to run. A call that is late because of what is before it on its stream is ended by the
    /// watching thread, a second or two after its time is up.)
    #[must_use]
    pub fn with_deadline(&self, deadline: Option<Duration>) -> Self {
        Self { deadline: Some(deadline), ..self.clone() }
    }

    /// This group with another stream, on which calls on device memory that are made through the handle are enqueued. A stream is
    /// given as its handle, a pointer of any type; with the feature `cust` also as `&stream` of that crate.
    ///
    /// # Safety
    ///
    /// For as long as the handle or a clone of it is used, `stream` is a stream of the primary context of the group's CUDA
    /// device.
    #[must_use]
    pub unsafe fn on_stream(&self, stream: impl Into<RawStream>) -> Self {
        Self { stream: stream.into(), ..self.clone() }
    }

    /// The sequence number of the last collective, and of the last send or receive; 0: none yet. They count by themselves.
    pub fn sequence_numbers(&self) -> (u64, u64) {
        self.shared.sequence_numbers()
    }

    /// How far the group has come, as this rank has seen it.
    pub fn status(&self) -> Status {
        self.shared.family.recorder.status(self.shared.record)
    }

    /// The last calls of this group, of the one that it was made from and of all others that were made from that.
    pub fn flight_recorder(&self) -> &Arc<FlightRecorder> {
        &self.shared.family.recorder
    }

    /// Why the group takes no calls any more, if so: it has ended, or one of its backends has failed. (Calls of another kind of
    /// device may go on then.)
    pub fn error(&self) -> Option<Error> {
        let of_backend = |slot: &Slot| slot.made()?.error();
        self.shared.alive().err().or_else(|| self.shared.slots().iter().find_map(of_backend))
    }
}

/// All handles of a group.
struct Handles(Arc<Shared>);

impl Drop for Handles {
    fn drop(&mut self) {
        // The watching thread may still have the group for a moment, and the process may end before it lets go.
        self.0.left();
    }
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<ProcessGroup>();
    any_thread::<crate::Work>();
    any_thread::<Error>();
};
