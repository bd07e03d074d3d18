//! A call of the group, from who is to make it to its start.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::alone;
use super::backend::{MeshBackend, lock};
use super::call::{MeshCall, Reduction};
use super::choice::Refusal;
use super::coverage::{Coverage, Mesh};
use super::failure::convert;
use super::nodes::Steps;
use super::place::Placement;
use super::transfers::{Transfers, Unsupported};
use crate::backend::Request;
use crate::call::Call;
use crate::error::Error;
use crate::types::{Operation, ReduceOp};
use crate::work::Work;

/// Who makes a call.
pub(super) enum Choice<'a> {
    /// Channels.
    Channels,
    /// The only rank.
    Alone,
    /// The mesh of all ranks.
    Mesh(&'a Mesh, MeshCall<'a>),
    /// This node's mesh, and then NCCL.
    Nodes(&'a Mesh, &'a Placement, Reduction),
}

impl MeshBackend {
    /// Who makes a call, or why it is left to the one behind.
    #[inline]
    pub(super) fn choose<'a>(&'a self, call: &'a Call<'_>) -> Result<Choice<'a>, Refusal> {
        match &self.coverage {
            Coverage::SingleRank => Ok(Choice::Alone),
            _ if call.is_point_to_point() => match Transfers::takes(call) {
                Ok(()) => Ok(Choice::Channels),
                Err(Unsupported::AnySource) => Err(Refusal::AnySource),
                Err(Unsupported::Tag) => Err(Refusal::Tag),
            },
            Coverage::None(reason) => Err(Refusal::NoMesh(Arc::clone(reason))),
            Coverage::AllRanks(mesh) => Ok(Choice::Mesh(mesh, self.rule.take(call, mesh.token.address())?)),
            Coverage::PerNode(mesh, placement) => {
                let reduction = self.rule.take_over_nodes(call, mesh.token.address())?;
                Ok(Choice::Nodes(mesh, placement, reduction))
            }
        }
    }

    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    #[inline]
    pub(super) unsafe fn on_mesh(
        &self,
        mesh: &Mesh,
        (call, operation): (&MeshCall<'_>, Operation),
        request: &Request,
    ) -> Result<Work, Error> {
        // SAFETY: the caller's promise.
        match unsafe { mesh.lane.make(call, operation, request, mesh.is_followed) } {
            Some(Ok(work)) => Ok(work),
            Some(Err(error)) => Err(self.of_mesh(mesh, error)),
            None => Err(self.is_shut_down()),
        }
    }

    fn is_shut_down(&self) -> Error {
        Error::ShutDown { group: Arc::clone(&self.context.group.name) }
    }

    /// [`crate::Backend::start`] of whatever call.
    ///
    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    pub(super) unsafe fn start_any(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        // SAFETY (of all calls here): the caller vouches for the tensors and the stream.
        match self.choose(call) {
            Ok(Choice::Mesh(mesh, chosen)) => {
                // SAFETY: as above.
                unsafe { self.on_mesh(mesh, (&chosen, call.operation()), request) }
            }
            // SAFETY: as above.
            Ok(Choice::Nodes(mesh, placement, first)) => unsafe {
                self.over_nodes((mesh, placement), first, call, request)
            },
            // SAFETY: as above.
            Ok(Choice::Channels) => unsafe { self.by_channels(call, request) },
            // SAFETY: as above.
            Ok(Choice::Alone) => unsafe { self.alone(call, request) },
            // SAFETY: as above.
            Err(why) => unsafe { self.by_the_one_behind(&why, call, request) },
        }
    }

    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    unsafe fn by_channels(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        // A transfer is made by the host, and would be made once, whatever is replayed.
        if self.is_captured(request) {
            let group = Arc::clone(&self.context.group.name);
            return Err(Error::TransferInCapture { operation: call.operation(), group });
        }
        // SAFETY: the caller vouches for the tensors and the stream, which is not captured.
        let work = unsafe { self.transfers(request)?.start(call, request) }.inspect_err(|error| {
            // As with any call that is late, the group's backend is over.
            if matches!(error, Error::Timeout { .. }) {
                crate::Backend::abort(self, error);
            }
        })?;
        self.otherwise.fetch_add(1, Ordering::Relaxed);
        Ok(work)
    }

    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    unsafe fn alone(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        if call.is_point_to_point() {
            return Err(self.unsupported(call, "a world of one".to_owned()));
        }
        // SAFETY: the caller vouches for the tensors and the stream.
        let made = unsafe { alone::make(&self.primary, call, request.stream) };
        made.map_err(|error| self.of_driver(error))?;
        self.otherwise.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        let work = unsafe { alone::work(&self.name, &self.context.group.name, &self.primary, request) };
        work.map_err(|error| self.of_driver(error))
    }

    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    unsafe fn over_nodes(
        &self,
        (mesh, placement): (&Mesh, &Placement),
        first: Reduction,
        call: &Call<'_>,
        request: &Request,
    ) -> Result<Work, Error> {
        let nodes = self.nodes(placement, Some(request))?;
        let output = first.output;
        // SAFETY: the caller vouches for the tensors and the stream.
        let first = unsafe { mesh.lane.step(&MeshCall::AllReduce(first), request) }
            .ok_or_else(|| self.is_shut_down())?
            .map_err(|error| self.of_mesh(mesh, error))?;
        let op = call.op().unwrap_or(ReduceOp::Sum);
        // SAFETY: as above; the steps are on one stream, one behind the other.
        let last = unsafe { nodes.finish(output, op, request) }?;
        let (name, group) = (Arc::clone(&self.name), Arc::clone(&self.context.group.name));
        let (ranks, call) = (mesh.ranks.clone(), (call.operation(), request.sequence));
        let convert = move |error| convert(error, &name, &group, &ranks, Some(call));
        Ok(Work::pending(&self.name, Arc::new(Steps::new(first, last, convert))))
    }

    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    unsafe fn by_the_one_behind(
        &self,
        why: &Refusal,
        call: &Call<'_>,
        request: &Request,
    ) -> Result<Work, Error> {
        if why.is_final() {
            return Err(self.unsupported(call, why.to_string()));
        }
        self.tell(why);
        let behind = self.behind(Some(request))?;
        behind.supports(call).map_err(|more| {
            let dash = if more.is_empty() { "" } else { ": " };
            let name = behind.name();
            self.unsupported(call, format!("{why}; {name} behind it does not take it either{dash}{more}"))
        })?;
        // SAFETY: the caller's promises are those that it needs.
        let work = unsafe { behind.start(call, request) }?;
        self.fallback.fetch_add(1, Ordering::Relaxed);
        Ok(work)
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
