//! One communicator's order of calls, over all streams.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use meshreduce::RawStream;
use meshreduce_device::{self as device, DriverError, Event, LastCalls, Pool, PrimaryContext, Stream};

use super::communicator::{Communicator, CommunicatorError, GoesOn, lock};
use super::completion::{CallInfo, Last, Pending, settle};
use super::core::Core;
use super::failure::NcclFailure;
use super::issue::Issue;
use super::plan::Plan;
use crate::backend::Request;
use crate::call::Call;
use crate::error::Error;
use crate::work::{Outcome, Work};

/// How many sends and receives are kept before it is looked whether they have ended.
const KEPT: usize = 16;

/// How many calls are kept at once where each is waited for: the last one, what the group's watching thread looks at, and those
/// that change hands meanwhile. So many are made with the first one, so that later calls allocate nothing.
const AT_ONCE: usize = 8;

/// A communicator's calls.
#[derive(Debug, Default)]
pub(super) struct Lane {
    calls: Pool<Pending>,
    forks: Pool<Event>,
    order: Mutex<Order>,
}

#[derive(Debug, Default)]
struct Order {
    last: LastCalls<Last>,
    /// Sends and receives in flight, in their order.
    pairs: VecDeque<Arc<Pending>>,
    /// In place of the threads' own default streams, which NCCL's threads would take for theirs.
    own_stream: Option<Stream>,
    /// There has been a call.
    used: bool,
}

impl Order {
    /// Forgets sends and receives that have ended. What is on one communicator ends in its order.
    fn forget_ended(&mut self) {
        while self.pairs.front().is_some_and(|call| !call.goes_on()) {
            self.pairs.pop_front();
        }
    }
}

impl Lane {
    /// Makes a call on `communicator`.
    ///
    /// # Safety
    ///
    /// As [`crate::Backend::start`].
    pub(super) unsafe fn start(
        &self,
        core: &Arc<Core>,
        communicator: &Communicator,
        call: &Call<'_>,
        request: &Request,
    ) -> Result<Work, Error> {
        let what = CallInfo::of(call, request, false);
        let mut patience = core.patience(request.end(), || what.late(core));
        let mut order = lock(&self.order, &mut patience).map_err(|stop| core.stopped(stop))?;
        let context = &core.context;
        let refused = |error: DriverError| core.failure(error);
        // SAFETY: the caller vouches for the stream.
        let capture = unsafe { device::capture_id(context, request.stream) }.map_err(refused)?;
        if capture.is_some() && request.blocking {
            // Its memory is lent for as long as it is waited for, and a graph keeps it.
            return Err(core.failure(NcclFailure::Captured));
        }
        let what = CallInfo::of(call, request, capture.is_some());
        // SAFETY: as above.
        let fork = unsafe { self.fork(context, &mut order, request.stream) }.map_err(refused)?;
        let stream = fork.unwrap_or(request.stream);
        // SAFETY: as above.
        let identity = unsafe { stream.identity(context, capture) }.map_err(refused)?;
        if let Some(last) = order.last.last(capture)
            && last.stream != identity
        {
            // SAFETY: as above; the event is of the same capture, or both are of none.
            unsafe { last.call.event.wait_on(stream) }.map_err(refused)?;
        }
        let take = || self.calls.take(|| Pending::new(core, what), |pending| pending.renew(what));
        if !std::mem::replace(&mut order.used, true) {
            let at_once = (0..AT_ONCE).map(|_| take()).collect::<Result<Vec<_>, _>>();
            drop(at_once.map_err(refused)?);
        }
        let pending = take().map_err(refused)?;
        let using = communicator.use_it(&mut patience).map_err(|stop| core.stopped(stop))?;
        let plan = Plan {
            rank: core.group.rank,
            world_size: core.group.world_size,
            barrier: core.barrier.address(),
            call,
        };
        let (issued, asked) = {
            let mut issue = Issue::new(&using, context, &core.issuing, stream, &mut patience);
            // SAFETY: the caller vouches for tensors and stream.
            let issued = unsafe { issue.run(&plan) };
            (issued, issue.asked())
        };
        drop(using);
        if issued.is_ok() && !asked {
            // It is about nothing.
            return Ok(Work::done(&core.name, Outcome::default()));
        }
        let enqueued = issued.and_then(|()| {
            // SAFETY: the stream is the caller's, who vouches for it, or this lane's.
            unsafe { pending.event.record(stream) }?;
            if fork.is_some() {
                // SAFETY: as above.
                unsafe { pending.event.wait_on(request.stream) }?;
            }
            Ok(())
        });
        if let Err(stop) = enqueued {
            let error = core.stopped(stop);
            if asked {
                core.fail(&error);
            }
            if asked && capture.is_none() {
                // SAFETY: as above.
                unsafe { self.settle(core, stream) };
            }
            return Err(error);
        }
        order.last.note(Last { stream: identity, call: Arc::clone(&pending) }, capture);
        if what.is_pair && capture.is_none() {
            if order.pairs.len() >= KEPT {
                order.forget_ended();
            }
            order.pairs.push_back(Arc::clone(&pending));
        }
        Ok(Work::pending(&core.name, pending))
    }

    /// Leads a thread's own default stream to this lane's stream: NCCL may enqueue by a thread of its own, for which that name means
    /// another stream.
    ///
    /// # Safety
    ///
    /// `stream` is a stream of the context.
    unsafe fn fork(
        &self,
        context: &Arc<PrimaryContext>,
        order: &mut Order,
        stream: RawStream,
    ) -> Result<Option<RawStream>, DriverError> {
        if !stream.is_per_thread() {
            return Ok(None);
        }
        let own = match &mut order.own_stream {
            Some(own) => own,
            none => none.insert(Stream::new(context)?),
        };
        let event = self.forks.take(|| Event::new(context), |_| {})?;
        // SAFETY: the caller vouches for the stream.
        unsafe { event.record(stream) }?;
        // SAFETY: the stream is this lane's.
        unsafe { event.wait_on(own.raw()) }?;
        Ok(Some(own.raw()))
    }

    /// Waits until nothing runs on `stream` that was enqueued on it so far.
    ///
    /// # Safety
    ///
    /// It is a stream of the context.
    unsafe fn settle(&self, core: &Core, stream: RawStream) {
        let recorded = self.forks.take(|| Event::new(&core.context), |_| {}).and_then(|event| {
            // SAFETY: the caller vouches for the stream.
            unsafe { event.record(stream) }.map(|()| event)
        });
        match recorded {
            Ok(event) => settle(core, || event.has_passed()),
            // SAFETY: as above.
            Err(_) => settle(core, || unsafe { stream.synchronize(&core.context) }.map(|()| true)),
        }
    }

    /// Keeps other calls from the communicator while `body` has it, for as long as `goes_on` says.
    pub(super) fn alone<T>(
        &self,
        goes_on: GoesOn<'_>,
        body: impl FnOnce(GoesOn<'_>) -> Result<T, CommunicatorError>,
    ) -> Result<T, CommunicatorError> {
        let _order = lock(&self.order, goes_on)?;
        body(goes_on)
    }

    /// The last call outside of captures.
    pub(super) fn last(&self, goes_on: GoesOn<'_>) -> Result<Option<Arc<Pending>>, CommunicatorError> {
        Ok(lock(&self.order, goes_on)?.last.plain().map(|last| Arc::clone(&last.call)))
    }

    /// Whether a call goes on, and the error of a send or receive whose time is up, as far as that can be told without waiting for
    /// another thread.
    pub(super) fn glance(&self) -> (bool, Option<Error>) {
        let Ok(mut order) = self.order.try_lock() else { return (true, None) };
        order.forget_ended();
        let goes_on = order.last.plain().is_some_and(|last| last.call.goes_on());
        (goes_on, order.pairs.front().and_then(|call| call.expired()))
    }
}
