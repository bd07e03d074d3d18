//! How the backend is made: the ranks meet, NCCL's ranks meet, and the communicator for sends and receives is split off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_device::PrimaryContext;
use meshreduce_nccl_loader::sys::ncclUniqueId;
use meshreduce_nccl_loader::{self as loader, Version, result};
use meshreduce_store::codec::Payload;
use meshreduce_store::identity::Member;

use super::NAME;
use super::availability::{Availability, Ready, compare};
use super::backend::NcclBackend;
use super::communicator::{Communicator, CommunicatorError};
use super::core::{Core, dead_behind};
use super::failure::NcclFailure;
use crate::backend::BackendContext;
use crate::error::{Error, stopped};
use crate::types::Device;

/// The oldest NCCL that will do: the first that can split communicators; those that do not block came before.
const NEEDED: Version = Version::new(2, 18, 0);
/// How often ranks are looked at while they are waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Makes it.
pub(super) fn make(context: &BackendContext) -> Result<Arc<NcclBackend>, Error> {
    let name: Arc<str> = NAME.into();
    let not_made = |failure: NcclFailure| context.not_made(&name, failure);
    let own = prepare(context);
    let told = match &own {
        Ok((_, ready)) => Availability(Ok(ready.clone())),
        Err(error) => Availability(Err(error.to_string())),
    };
    // All ranks come here, also those that cannot take part: so the others need not wait for them.
    let told = context.until_end().meet(&name, &told.to_bytes());
    let (device, _) = own.map_err(not_made)?;
    let (id, members) = compare(&told?).map_err(not_made)?;
    let barrier = Core::number(&device).map_err(not_made)?;
    let connecting = Connecting { context, name: &name, members: &members, start: Instant::now() };
    let communicators = connecting.connect(&device, id).map_err(|stop| match stop {
        CommunicatorError::GivenUp(error) => error,
        CommunicatorError::Failed(failure) => {
            // A rank that has died says more than the connection that broke.
            let behind = match &failure {
                NcclFailure::Nccl(error) => dead_behind(error, &members, &context.group),
                _ => connecting.dead(),
            };
            behind.unwrap_or_else(|| not_made(failure))
        }
    })?;
    Ok(NcclBackend::of(Core::new(context, &device, members, barrier, communicators)))
}

/// What can be done, and go wrong, on this rank alone.
fn prepare(context: &BackendContext) -> Result<(Arc<PrimaryContext>, Ready), NcclFailure> {
    loader::check_version(NEEDED)?;
    meshreduce_device::initialise()?;
    let ordinal = match context.device {
        Device::Cuda(ordinal) => ordinal,
        // The factory serves no other kind.
        Device::Cpu => 0,
    };
    let device = PrimaryContext::retain(ordinal)?;
    let ready = Ready {
        version: loader::version()?,
        member: Member::current()?,
        device: device.identity()?,
        id: (context.group.rank == 0).then(result::unique_id).transpose()?,
    };
    Ok((device, ready))
}

/// Ends a communicator that came to nothing, by a thread that waits for it.
pub(super) fn abandon(device: &Arc<PrimaryContext>, communicator: Communicator) {
    let device = Arc::clone(device);
    let thread = std::thread::Builder::new().name("meshreduce abort".to_owned());
    if let Err(error) = thread.spawn(move || communicator.abort(&device)) {
        tracing::error!(%error, "no thread can be started to abort a communicator");
    }
}

/// Ranks that become a communicator.
struct Connecting<'a> {
    context: &'a BackendContext,
    name: &'a Arc<str>,
    members: &'a [Member],
    start: Instant,
}

impl Connecting<'_> {
    /// A rank that has died meanwhile.
    fn dead(&self) -> Option<Error> {
        super::core::dead(self.members, &self.context.group, "")
    }

    /// Whether `what` goes on being waited for.
    fn patience(&self, what: &'static str) -> impl FnMut() -> Result<(), Error> {
        let mut next_look = Instant::now() + LOOK;
        move || {
            if let Some(cause) = self.context.ended() {
                return Err(cause.clone());
            }
            let waited = self.start.elapsed();
            if waited >= self.context.timeout {
                return Err(self.context.not_made(
                    self.name,
                    NcclFailure::TimedOut {
                        what,
                        waited,
                        stopped: stopped(self.members, self.context.group.rank),
                    },
                ));
            }
            if Instant::now() >= next_look {
                next_look = Instant::now() + LOOK;
                return self.dead().map_or(Ok(()), Err);
            }
            Ok(())
        }
    }

    fn connect(
        &self,
        device: &Arc<PrimaryContext>,
        id: ncclUniqueId,
    ) -> Result<(Communicator, Option<Communicator>), CommunicatorError> {
        let (rank, ranks) = (self.context.group.rank, self.context.group.world_size);
        let collectives = Communicator::begin(device, id, ranks, rank)?;
        let finished = |communicator: &Communicator, what| {
            let mut goes_on = self.patience(what);
            communicator.use_it(&mut goes_on).and_then(|using| using.finish(&mut goes_on))
        };
        if let Err(stop) = finished(&collectives, "ncclCommInitRankConfig") {
            abandon(device, collectives);
            return Err(stop);
        }
        if ranks == 1 {
            return Ok((collectives, None));
        }
        let what = "ncclCommSplit";
        let split = || {
            let mut goes_on = self.patience(what);
            let using = collectives.use_it(&mut goes_on)?;
            using.split(device, Some(0), rank, &mut goes_on)
        };
        let pairs = match split() {
            Ok(pairs) => pairs,
            Err(stop) => {
                abandon(device, collectives);
                return Err(stop);
            }
        };
        match pairs.as_ref().map_or(Ok(()), |pairs| finished(pairs, what)) {
            Ok(()) => Ok((collectives, pairs)),
            Err(stop) => {
                pairs.into_iter().chain([collectives]).for_each(|one| abandon(device, one));
                Err(stop)
            }
        }
    }
}
