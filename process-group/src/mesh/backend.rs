//! The backend itself: the mesh where it takes a call, else what is behind it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use meshreduce::Config;
use meshreduce_channels::Registry;
use meshreduce_device::{self as device, PrimaryContext};

use super::call::MeshCall;
use super::choice::{Refusal, Rule, Wishes};
use super::coverage::{Coverage, Mesh, find_coverage};
use super::failure::convert;
use super::nodes::Nodes;
use super::transfers::Transfers;
use crate::backend::{Backend, BackendContext, Request, Usage};
use crate::call::Call;
use crate::error::{Cause, Error};
use crate::turn::Turn;
use crate::types::{Device, Operation};
use crate::work::Work;

/// Below which ranks meet at the end.
pub(super) const END: &str = "end";

#[derive(Debug)]
pub(super) struct MeshBackend {
    pub(super) name: Arc<str>,
    pub(super) context: BackendContext,
    pub(super) primary: Arc<PrimaryContext>,
    pub(super) rule: Rule,
    pub(super) coverage: Coverage,
    pub(super) behind: OnceLock<Arc<dyn Backend>>,
    pub(super) nodes: OnceLock<Nodes>,
    pub(super) channels: Registry,
    pub(super) transfers: OnceLock<Transfers>,
    /// What those ranks agreed on when this was made, and no others ever have.
    pub(super) generation: String,
    /// What all ranks make together, and so in one order.
    pub(super) making: Turn,
    /// Transfers, which two ranks make by themselves, while the others may still be on their way to what all make.
    pub(super) making_transfers: Turn,
    pub(super) end: OnceLock<Error>,
    /// Why whoever shuts it down waits no longer.
    aborted: Arc<OnceLock<Error>>,
    /// Calls that it has taken without its kernels.
    pub(super) otherwise: AtomicU64,
    pub(super) fallback: AtomicU64,
    /// Why calls were left to the one behind, each of which was logged.
    pub(super) told: Mutex<HashSet<Refusal>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What can be done, and go wrong, on this rank alone.
fn prepare(name: &Arc<str>, context: &BackendContext) -> Result<Arc<PrimaryContext>, Error> {
    let not_made = |error: device::Error| context.not_made(name, error);
    let Device::Cuda(ordinal) = context.device else {
        return Err(context.not_made(name, format!("{} is no CUDA device", context.device)));
    };
    device::initialise().map_err(not_made)?;
    PrimaryContext::retain(ordinal).map_err(not_made)
}

impl MeshBackend {
    pub(super) fn new(
        name: Arc<str>,
        context: BackendContext,
        config: Result<Config, Error>,
        wishes: Wishes,
        channels: Option<Registry>,
    ) -> Result<Self, Error> {
        let own = config.and_then(|config| Ok((prepare(&name, &context)?, config)));
        let (primary, coverage, generation) = find_coverage(&name, &context.until_end(), own, &wishes)?;
        match &coverage {
            Coverage::None(reason) => {
                tracing::info!(
                    group = &*context.group.name,
                    reason = &**reason,
                    "no mesh: all calls are {}'s",
                    super::BEHIND
                );
            }
            coverage => tracing::info!(group = &*context.group.name, mesh = coverage.name(), "a mesh"),
        }
        let rule = Rule::new(wishes, &coverage, context.group.world_size);
        Ok(Self {
            name,
            context,
            primary,
            rule,
            coverage,
            behind: OnceLock::new(),
            nodes: OnceLock::new(),
            channels: channels.unwrap_or_default(),
            transfers: OnceLock::new(),
            generation,
            making: Turn::default(),
            making_transfers: Turn::default(),
            end: OnceLock::new(),
            aborted: Arc::default(),
            otherwise: AtomicU64::new(0),
            fallback: AtomicU64::new(0),
            told: Mutex::default(),
        })
    }

    #[inline]
    pub(super) fn alive(&self) -> Result<(), Error> {
        match self.end.get() {
            None => Ok(()),
            Some(cause) => Err(cause.clone()),
        }
    }

    pub(super) fn of_driver(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Backend {
            backend: Arc::clone(&self.name),
            group: Arc::clone(&self.context.group.name),
            source: Cause::new(error),
        }
    }

    /// All backends that this one uses, as far as they have been made.
    fn others(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        let nodes = self.nodes.get().into_iter().flat_map(Nodes::both);
        self.behind.get().into_iter().chain(nodes)
    }

    pub(super) fn abort_others(&self, cause: &Error) {
        if let Some(transfers) = self.transfers.get() {
            transfers.abort(cause);
        }
        self.others().for_each(|backend| backend.abort(cause));
    }

    pub(super) fn of_mesh(&self, mesh: &Mesh, error: meshreduce::Error) -> Error {
        convert(error, &self.name, &self.context.group.name, &mesh.ranks, None)
    }

    fn context_of_the_end(&self) -> Result<BackendContext, Error> {
        let all: Vec<usize> = (0..self.context.group.world_size).collect();
        self.context.part(END, &all)
    }

    /// Waits for the other ranks to come to the end too, where neither a mesh nor what is behind one does.
    fn meet_at_the_end(&self, timeout: Duration) -> Result<(), Error> {
        let group = &self.context.group;
        // The group has ended; what ends this is an abort.
        let context = BackendContext { end: Arc::clone(&self.aborted), ..self.context_of_the_end()? };
        let store = context.until_end().store;
        let met = meshreduce::rendezvous::meet(&*store, group.rank, group.world_size, &[], timeout);
        met.map(|_| ()).map_err(|error| convert(error, &self.name, &group.name, &[], None))
    }
}

impl Backend for MeshBackend {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn supports(&self, call: &Call<'_>) -> Result<(), String> {
        // What is behind it says itself what it does not take.
        let is_all = !self.context.forbid_fallback || matches!(self.coverage, Coverage::SingleRank);
        if is_all {
            return Ok(());
        }
        match self.choose(call) {
            Ok(_) => Ok(()),
            // Only this rank breaks a promise: it is told when the call has its number, which the others have given it too.
            Err(why) if why.is_final() => Ok(()),
            Err(why) => Err(format!("{why}, and the group forbids what is behind it")),
        }
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        self.alive()?;
        // What is called most, and by whom every step more is felt.
        if let (Coverage::AllRanks(mesh), Call::AllReduce { input, output, op }) = (&self.coverage, call)
            && let Ok(chosen) = self.rule.all_reduce(*input, *output, *op)
        {
            let chosen = (&MeshCall::AllReduce(chosen), Operation::AllReduce);
            // SAFETY: the caller vouches for the tensors and the stream.
            return unsafe { self.on_mesh(mesh, chosen, request) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.start_any(call, request) }
    }

    fn prepare(&self) -> Result<(), Error> {
        match &self.coverage {
            Coverage::SingleRank => return Ok(()),
            Coverage::PerNode(_, placement) => {
                self.nodes(placement, None)?;
            }
            Coverage::AllRanks(_) | Coverage::None(_) => {}
        }
        if self.context.forbid_fallback {
            return Ok(());
        }
        match (self.behind(None), &self.coverage) {
            // A program whose calls are all the mesh's needs nothing behind it.
            (Err(error), Coverage::AllRanks(_)) => {
                tracing::info!(group = &*self.context.group.name, %error, "nothing is behind the mesh");
                Ok(())
            }
            (made, _) => made.map(|_| ()),
        }
    }

    fn abort(&self, cause: &Error) {
        let is_first = self.end.set(cause.clone()).is_ok();
        // Whoever shuts it down waits for other ranks, and for what goes on, and is not to wait any more.
        let ends_shutdown = || {
            matches!(self.end.get(), Some(Error::ShutDown { .. })) && self.aborted.set(cause.clone()).is_ok()
        };
        if !is_first && !ends_shutdown() {
            return;
        }
        if let Some(mesh) = self.coverage.mesh() {
            match &*mesh.communicator.read().unwrap_or_else(PoisonError::into_inner) {
                Some(communicator) => communicator.abort(),
                None => mesh.closer.give_up(),
            }
        }
        self.abort_others(cause);
    }

    fn error(&self) -> Option<Error> {
        if let Some(cause) = self.aborted.get().or(self.end.get()) {
            return Some(cause.clone());
        }
        let own =
            self.coverage.mesh().and_then(|mesh| mesh.status().err().map(|error| self.of_mesh(mesh, error)));
        own.or_else(|| self.others().find_map(|backend| backend.error()))
    }

    fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        let left = || timeout.saturating_sub(begun.elapsed());
        let group = Arc::clone(&self.context.group.name);
        let was_over = self.end.set(Error::ShutDown { group }).is_err();
        let mut result = Ok(());
        if let Some(transfers) = self.transfers.get() {
            result = transfers.shutdown(left());
        }
        if let Some(mesh) = self.coverage.mesh() {
            mesh.lane.close();
            let communicator = mesh.communicator.write().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(communicator) = communicator {
                // It may have been aborted between the two.
                if self.aborted.get().is_some() {
                    mesh.closer.give_up();
                }
                result = result
                    .and(communicator.close_within(left()).map_err(|error| self.of_mesh(mesh, error.into())));
            }
        }
        if !was_over && matches!(self.coverage, Coverage::None(_)) && self.others().next().is_none() {
            result = result.and(self.meet_at_the_end(left()));
        }
        for other in self.others() {
            result = result.and(other.shutdown(left()));
        }
        if let Some(cause) = self.aborted.get() {
            return Err(cause.clone());
        }
        match was_over {
            true => self.end.get().map_or(result, |cause| Err(cause.clone())),
            false => result,
        }
    }

    fn clear_away(&self) -> Result<(), Error> {
        // What was left there the factory deletes.
        self.others().try_for_each(|backend| backend.clear_away())
    }

    fn usage(&self) -> Option<Usage> {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let on_mesh = self.coverage.mesh().map_or(0, |mesh| mesh.lane.made());
        Some(Usage { own: on_mesh + of(&self.otherwise), fallback: of(&self.fallback) })
    }
}
