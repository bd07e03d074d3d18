//! What a backend makes when a call first needs it: what is behind the mesh, what goes on between nodes, channels.

use std::sync::Arc;
use std::time::Duration;

use meshreduce_device as device;

use super::backend::MeshBackend;
use super::nodes::Nodes;
use super::place::Placement;
use super::transfers::Transfers;
use crate::backend::{Backend, BackendContext, Request};
use crate::error::Error;
use crate::turn::{Taken, Turn};

impl MeshBackend {
    /// This thread's turn to make something, for which it waits no longer than a call may take.
    pub(super) fn turn<'a>(
        &self,
        making: &'a Turn,
        what: &str,
        request: Option<&Request>,
    ) -> Result<Taken<'a>, Error> {
        let turn = making.take(request.and_then(Request::end), || self.alive())?;
        turn.ok_or_else(|| {
            self.context.not_made(&what.into(), "the call's time is up, and another thread is still at it")
        })
    }

    /// For what is made later than this: for a call, if there is one, and no longer than that may take.
    pub(super) fn context_for(&self, request: Option<&Request>) -> BackendContext {
        let group_timeout = self.context.group_timeout;
        let deadline = request.and_then(|request| request.deadline).unwrap_or(Duration::MAX);
        BackendContext { timeout: group_timeout.min(deadline), ..self.context.clone() }
    }

    /// The backend for what the mesh does not take, made if need be; not within a capture.
    pub(super) fn behind(&self, request: Option<&Request>) -> Result<&Arc<dyn Backend>, Error> {
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
    pub(super) fn nodes(&self, placement: &Placement, request: Option<&Request>) -> Result<&Nodes, Error> {
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
    pub(super) fn transfers(&self, request: &Request) -> Result<&Transfers, Error> {
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

    /// Whether a call's stream is being captured.
    pub(super) fn is_captured(&self, request: &Request) -> bool {
        // SAFETY: whoever makes a call vouches for the request's stream.
        match unsafe { device::is_capturing(&self.primary, request.stream) } {
            Ok(is) => is,
            Err(error) => error.is_about_capture(),
        }
    }

    fn outside_of_captures(&self, request: Option<&Request>) -> Result<(), Error> {
        match request.is_some_and(|request| self.is_captured(request)) {
            false => Ok(()),
            true => Err(Error::MadeInCapture {
                group: Arc::clone(&self.context.group.name),
                backend: super::BEHIND.into(),
            }),
        }
    }
}
