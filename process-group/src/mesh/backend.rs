//! The backend itself: the mesh where it takes a call, else what is behind it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use meshreduce::Config;
use meshreduce_channels::Registry;
use meshreduce_device::{self as device, PrimaryContext};

use super::alone;
use super::choice::{MeshCall, Refusal, Rule};
use super::failure::convert;
use super::ground::{Ground, Mesh, find_ground};
use super::nodes::{Nodes, Steps};
use super::place::Placement;
use super::transfers::{Transfers, Untaken};
use crate::backend::{Backend, BackendContext, Request, Usage};
use crate::call::Call;
use crate::error::{Cause, Error};
use crate::turn::{Taken, Turn};
use crate::types::{DType, Device, Operation, ReduceOp};
use crate::work::Work;

#[derive(Debug)]
pub(super) struct MeshBackend {
    name: Arc<str>,
    context: BackendContext,
    primary: Arc<PrimaryContext>,
    rule: Rule,
    ground: Ground,
    behind: OnceLock<Arc<dyn Backend>>,
    nodes: OnceLock<Nodes>,
    channels: Registry,
    transfers: OnceLock<Transfers>,
    /// What those ranks agreed on when this was made, and no others ever have.
    generation: String,
    /// What all ranks make together, and so in one order.
    making: Turn,
    /// Transfers, which two ranks make by themselves, while the others may still be on their way to what all make.
    making_transfers: Turn,
    end: OnceLock<Error>,
    /// Why whoever shuts it down waits no longer.
    aborted: Arc<OnceLock<Error>>,
    /// Calls that it has taken without its kernels.
    otherwise: AtomicU64,
    fallback: AtomicU64,
    /// Why calls were left to the one behind, each of which was logged.
    told: Mutex<HashSet<Refusal>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MeshBackend {
    pub(super) fn new(
        name: Arc<str>,
        context: BackendContext,
        config: &Config,
        only: Option<(Vec<DType>, Vec<ReduceOp>)>,
        channels: Option<Registry>,
    ) -> Result<Self, Error> {
        let not_made = |error: device::Error| context.not_made(&name, error);
        let Device::Cuda(ordinal) = context.device else {
            return Err(context.not_made(&name, format!("{} is no CUDA device", context.device)));
        };
        device::initialise().map_err(not_made)?;
        let primary = PrimaryContext::retain(ordinal).map_err(not_made)?;
        let (ground, generation) = find_ground(&name, &context.until_end(), &primary, config)?;
        match &ground {
            Ground::None(reason) => {
                tracing::info!(
                    group = &*context.group.name,
                    reason = &**reason,
                    "no mesh: all calls are {}'s",
                    super::BEHIND
                );
            }
            ground => tracing::info!(group = &*context.group.name, mesh = ground.name(), "a mesh"),
        }
        let rule = Rule::new(only, |dtype, op| ground.mesh()?.longest(dtype, op));
        Ok(Self {
            name,
            context,
            primary,
            rule,
            ground,
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
    fn alive(&self) -> Result<(), Error> {
        match self.end.get() {
            None => Ok(()),
            Some(cause) => Err(cause.clone()),
        }
    }

    fn of_driver(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Backend {
            backend: Arc::clone(&self.name),
            group: Arc::clone(&self.context.group.name),
            source: Cause::new(error),
        }
    }

    /// This thread's turn to make something, for which it waits no longer than a call may take.
    fn turn<'a>(&self, making: &'a Turn, what: &str, request: Option<&Request>) -> Result<Taken<'a>, Error> {
        let turn = making.take(request.and_then(Request::end), || self.alive())?;
        turn.ok_or_else(|| {
            self.context.not_made(&what.into(), "the call's time is up, and another thread is still at it")
        })
    }

    /// For what is made later than this: for a call, if there is one, and no longer than that may take.
    fn context_for(&self, request: Option<&Request>) -> BackendContext {
        let group_timeout = self.context.group_timeout;
        let deadline = request.and_then(|request| request.deadline).unwrap_or(Duration::MAX);
        BackendContext { timeout: group_timeout.min(deadline), ..self.context.clone() }
    }

    /// The backend for what the mesh does not take, made if need be; not within a capture.
    fn behind(&self, request: Option<&Request>) -> Result<&Arc<dyn Backend>, Error> {
        if let Some(behind) = self.behind.get() {
            return Ok(behind);
        }
        self.outside_of_captures(request)?;
        let _one_at_a_time = self.turn(&self.making, super::BEHIND, request)?;
        if self.behind.get().is_none() {
            let all: Vec<usize> = (0..self.context.group.world_size).collect();
            let context = self.context_for(request).part(super::BEHIND, &all)?;
            let context = BackendContext { group: Arc::clone(&self.context.group), ..context };
            let made = self.context.registry.factory(super::BEHIND)?.create(context)?;
            let _ = self.behind.set(made);
        }
        self.made_in_time()?;
        Ok(self.behind.get().expect("it was just made"))
    }

    /// What takes the steps behind the mesh's in a group of several nodes, likewise.
    fn nodes(&self, placement: &Placement, request: Option<&Request>) -> Result<&Nodes, Error> {
        if let Some(nodes) = self.nodes.get() {
            return Ok(nodes);
        }
        self.outside_of_captures(request)?;
        let _one_at_a_time = self.turn(&self.making, super::BEHIND, request)?;
        if self.nodes.get().is_none() {
            let _ = self.nodes.set(Nodes::new(&self.context_for(request), placement)?);
        }
        self.made_in_time()?;
        Ok(self.nodes.get().expect("they were just made"))
    }

    /// The channels to the other ranks, made if need be.
    fn transfers(&self, request: &Request) -> Result<&Transfers, Error> {
        // A transfer is made by the host, and would be made once, whatever is replayed.
        self.outside_of_captures(Some(request))?;
        if let Some(transfers) = self.transfers.get() {
            return Ok(transfers);
        }
        let _one_at_a_time = self.turn(&self.making_transfers, &self.name, Some(request))?;
        if self.transfers.get().is_none() {
            let (ordinal, generation) = (self.primary.ordinal(), &self.generation);
            let made =
                Transfers::new(&self.name, &self.context_for(None), ordinal, &self.channels, generation)?;
            let _ = self.transfers.set(made);
        }
        self.made_in_time()?;
        Ok(self.transfers.get().expect("they were just made"))
    }

    /// What was made while the backend came to its end must end too.
    fn made_in_time(&self) -> Result<(), Error> {
        if let Some(cause) = self.end.get() {
            self.abort_others(cause);
            return Err(cause.clone());
        }
        Ok(())
    }

    fn outside_of_captures(&self, request: Option<&Request>) -> Result<(), Error> {
        let Some(request) = request else { return Ok(()) };
        // SAFETY: whoever makes a call vouches for the request's stream.
        let captured = match unsafe { device::is_capturing(&self.primary, request.stream) } {
            Ok(is) => is,
            Err(error) => error.is_about_capture(),
        };
        match captured {
            false => Ok(()),
            true => Err(Error::MadeInCapture {
                group: Arc::clone(&self.context.group.name),
                backend: super::BEHIND.into(),
            }),
        }
    }

    /// All backends that this one uses, as far as they have been made.
    fn others(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        let nodes = self.nodes.get().into_iter().flat_map(Nodes::both);
        self.behind.get().into_iter().chain(nodes)
    }

    fn abort_others(&self, cause: &Error) {
        if let Some(transfers) = self.transfers.get() {
            transfers.abort(cause);
        }
        self.others().for_each(|backend| backend.abort(cause));
    }

    fn context_of_the_end(&self) -> Result<BackendContext, Error> {
        let all: Vec<usize> = (0..self.context.group.world_size).collect();
        self.context.part("end", &all)
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

    /// Whether channels take a call; `None`: it is no send and no receive.
    #[inline]
    fn by_channels(&self, call: &Call<'_>) -> Option<Result<(), Refusal>> {
        let is_theirs = call.is_point_to_point() && !matches!(self.ground, Ground::Alone);
        is_theirs.then(|| {
            Transfers::takes(call).map_err(|why| match why {
                Untaken::AnySource => Refusal::AnySource,
                Untaken::Tag => Refusal::Tag,
            })
        })
    }

    /// The mesh's call that this one is, or why it is none.
    #[inline]
    fn choose(&self, call: &Call<'_>) -> Result<MeshCall, Refusal> {
        match &self.ground {
            Ground::Alone => Err(Refusal::Operation(call.operation())),
            Ground::None(reason) => Err(Refusal::NoMesh(Arc::clone(reason))),
            Ground::One(mesh) | Ground::Several(mesh, _) => self.rule.take(call, mesh.token.address()),
        }
    }

    /// # Safety
    ///
    /// As for [`Backend::start`].
    #[inline]
    unsafe fn on_mesh(
        &self,
        mesh: &Mesh,
        (call, operation): (&MeshCall, Operation),
        request: &Request,
    ) -> Result<Work, Error> {
        // SAFETY: the caller's promise.
        match unsafe { mesh.lane.all_reduce(call, operation, request, mesh.is_followed) } {
            Some(Ok(work)) => Ok(work),
            Some(Err(error)) => Err(self.of_mesh(mesh, error)),
            None => Err(self.is_shut_down()),
        }
    }

    fn is_shut_down(&self) -> Error {
        Error::ShutDown { group: Arc::clone(&self.context.group.name) }
    }

    /// [`Backend::start`] of what is not an all-reduce on the one mesh.
    ///
    /// # Safety
    ///
    /// As for [`Backend::start`].
    unsafe fn start_otherwise(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        let group = &self.context.group.name;
        let by_channels = self.by_channels(call);
        if let Some(Ok(())) = by_channels {
            // SAFETY: the caller vouches for the tensors and the stream, which is not captured.
            let work = unsafe { self.transfers(request)?.start(call, request) }.inspect_err(|error| {
                // As with any call that is late, the group's backend is over.
                if matches!(error, Error::Timeout { .. }) {
                    self.abort(error);
                }
            })?;
            self.otherwise.fetch_add(1, Ordering::Relaxed);
            return Ok(work);
        }
        let choice =
            by_channels.map_or_else(|| self.choose(call), |why| Err(why.expect_err("it was not Ok")));
        let chosen = match (&self.ground, choice) {
            (Ground::Alone, _) => {
                if call.is_point_to_point() {
                    return Err(self.unsupported(call, "a world of one".to_owned()));
                }
                // SAFETY: the caller vouches for the tensors and the stream.
                let stream = unsafe { alone::make(&self.primary, call, request.stream) };
                stream.map_err(|error| self.of_driver(error))?;
                self.otherwise.fetch_add(1, Ordering::Relaxed);
                // SAFETY: as above.
                return unsafe { alone::work(&self.name, group, &self.primary, request) }
                    .map_err(|error| self.of_driver(error));
            }
            (Ground::One(mesh), Ok(chosen)) => Ok((mesh, None, chosen)),
            (Ground::Several(mesh, placement), Ok(chosen)) => Ok((mesh, Some(placement), chosen)),
            (_, Err(why)) => Err(why),
            (Ground::None(why), Ok(_)) => Err(Refusal::NoMesh(Arc::clone(why))),
        };
        match chosen {
            Ok((mesh, None, chosen)) => {
                // SAFETY: the caller vouches for the tensors and the stream.
                unsafe { self.on_mesh(mesh, (&chosen, call.operation()), request) }
            }
            Ok((mesh, Some(placement), chosen)) => {
                let nodes = self.nodes(placement, Some(request))?;
                // SAFETY: the caller vouches for the tensors and the stream.
                let first = unsafe { mesh.lane.step(&chosen, request) }
                    .ok_or_else(|| self.is_shut_down())?
                    .map_err(|error| self.of_mesh(mesh, error))?;
                let op = call.op().unwrap_or(ReduceOp::Sum);
                // SAFETY: as above; the steps are on one stream, one behind the other.
                let last = unsafe { nodes.finish(chosen.output, op, request) }?;
                let (name, group, ranks) = (Arc::clone(&self.name), Arc::clone(group), mesh.ranks.clone());
                let call = (call.operation(), request.sequence);
                let convert = move |error| convert(error, &name, &group, &ranks, Some(call));
                Ok(Work::pending(&self.name, Arc::new(Steps::new(first, last, convert))))
            }
            Err(why) => {
                self.tell(&why);
                let behind = self.behind(Some(request))?;
                behind.supports(call).map_err(|more| {
                    let name = behind.name();
                    self.unsupported(
                        call,
                        format!("{why}; {name} behind it does not take it either{}", dash(&more)),
                    )
                })?;
                // SAFETY: the caller's promises are those that it needs.
                let work = unsafe { behind.start(call, request) }?;
                self.fallback.fetch_add(1, Ordering::Relaxed);
                Ok(work)
            }
        }
    }

    fn of_mesh(&self, mesh: &Mesh, error: meshreduce::Error) -> Error {
        convert(error, &self.name, &self.context.group.name, &mesh.ranks, None)
    }

    /// Says once why calls are left to the one behind.
    fn tell(&self, reason: &Refusal) {
        let mut told = lock(&self.told);
        if !told.contains(reason) {
            tracing::info!(group = &*self.context.group.name, %reason, "a call goes to {}", super::BEHIND);
            told.insert(reason.clone());
        }
    }

    fn unsupported(&self, call: &Call<'_>, why: String) -> Error {
        Error::Unsupported {
            backend: Arc::clone(&self.name),
            operation: call.operation(),
            dtype: call.dtype(),
            op: call.op(),
            group: Arc::clone(&self.context.group.name),
            device: self.context.device,
            why,
        }
    }
}

impl Backend for MeshBackend {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn supports(&self, call: &Call<'_>) -> Result<(), String> {
        // What is behind it says itself what it does not take.
        let is_all = !self.context.forbid_fallback || matches!(self.ground, Ground::Alone);
        match is_all || (self.rule.takes(call) && self.ground.mesh().is_some()) {
            true => Ok(()),
            false => self
                .by_channels(call)
                .unwrap_or_else(|| self.choose(call).map(|_| ()))
                .map_err(|why| format!("{why}, and the group forbids what is behind it")),
        }
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        self.alive()?;
        // What is called most, and by whom every step more is felt.
        if let (Ground::One(mesh), Call::AllReduce { .. }) = (&self.ground, call)
            && let Ok(chosen) = self.rule.take(call, mesh.token.address())
        {
            // SAFETY: the caller vouches for the tensors and the stream.
            return unsafe { self.on_mesh(mesh, (&chosen, call.operation()), request) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.start_otherwise(call, request) }
    }

    fn prepare(&self) -> Result<(), Error> {
        match &self.ground {
            Ground::Alone => return Ok(()),
            Ground::Several(_, placement) => {
                self.nodes(placement, None)?;
            }
            Ground::One(_) | Ground::None(_) => {}
        }
        if self.context.forbid_fallback {
            return Ok(());
        }
        match (self.behind(None), &self.ground) {
            // A program whose calls are all the mesh's needs nothing behind it.
            (Err(error), Ground::One(_)) => {
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
        if let Some(mesh) = self.ground.mesh() {
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
            self.ground.mesh().and_then(|mesh| mesh.status().err().map(|error| self.of_mesh(mesh, error)));
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
        if let Some(mesh) = self.ground.mesh() {
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
        if !was_over && matches!(self.ground, Ground::None(_)) && self.others().next().is_none() {
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
        let cleared = meshreduce::rendezvous::clear_away(&*self.context_of_the_end()?.store);
        self.others().try_for_each(|backend| backend.clear_away())?;
        cleared.map_err(|error| self.of_driver(error))
    }

    fn usage(&self) -> Option<Usage> {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let on_mesh = self.ground.mesh().map_or(0, |mesh| mesh.lane.made());
        Some(Usage { own: on_mesh + of(&self.otherwise), fallback: of(&self.fallback) })
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
