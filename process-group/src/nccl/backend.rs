//! The backend: calls to one of the two communicators, and the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshreduce_store::{PrefixStore, Store};

use super::END;
use super::communicator::{Communicator, CommunicatorError, poll};
use super::completion::Pending;
use super::core::Core;
use super::failure::NcclFailure;
use super::lane::Lane;
use super::plan;
use crate::backend::{Backend, BackendContext, Request, UntilEnd};
use crate::call::Call;
use crate::error::{Cause, Error};
use crate::work::Work;

/// How often is looked for what is wrong with ranks that are waited for at the end.
const LOOK: Duration = Duration::from_millis(100);
/// How long a meeting may go on when ranks are gone.
const GOODBYE: Duration = Duration::from_secs(2);

/// A group's NCCL on one device: see the module.
#[derive(Debug)]
pub(super) struct NcclBackend {
    pub(super) core: Arc<Core>,
    pub(super) collectives: Lane,
    pub(super) pairs: Lane,
    /// It was shut down, and nothing was wrong.
    ended_well: AtomicBool,
    /// The thread of the meeting at the end, which others may still be told in when this rank waits no more.
    meeting: Mutex<Option<JoinHandle<()>>>,
}

impl NcclBackend {
    pub(super) fn of(core: Arc<Core>) -> Arc<Self> {
        Arc::new(Self {
            core,
            collectives: Lane::default(),
            pairs: Lane::default(),
            ended_well: AtomicBool::new(false),
            meeting: Mutex::default(),
        })
    }

    fn meeting(&self) -> Option<JoinHandle<()>> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where ranks meet at the end.
    fn store_of_the_end(&self) -> Result<PrefixStore<Arc<dyn Store>>, Error> {
        let core = &self.core;
        PrefixStore::new(END, Arc::clone(&core.store.0))
            .map_err(|error| Error::Store { group: Arc::clone(&core.group.name), source: Arc::new(error) })
    }

    /// Waits for what was called on a lane.
    fn drain(&self, lane: &Lane, end: Option<Instant>) -> Result<(), Error> {
        let core = &self.core;
        let busy = || core.failure(core.timed_out("a call of another thread", core.timeout));
        let last = lane.last(&mut core.patience(end, busy)).map_err(|stop| core.stopped(stop))?;
        last.map_or(Ok(()), |last: Arc<Pending>| last.drain(end))
    }

    /// Waits for the other ranks to come to the end too: not much longer than until something is found to be wrong with them.
    fn meet_at_the_end(&self, timeout: Duration) -> Result<(), Error> {
        let core = &self.core;
        let group = || Arc::clone(&core.group.name);
        // Set when this rank waits no more: its thread does not then either.
        let over = Arc::new(OnceLock::new());
        let store = UntilEnd::new(Arc::new(self.store_of_the_end()?), Arc::clone(&over));
        let (rank, world_size) = (core.group.rank, core.group.world_size);
        let (met, answer) = mpsc::channel();
        let meet = move || {
            // Nobody listens any more if something was wrong.
            let _ = met.send(meshreduce::rendezvous::meet(&store, rank, world_size, &[], timeout));
        };
        let thread = std::thread::Builder::new().name("meshreduce end".to_owned()).spawn(meet);
        let thread = thread.map_err(|error| core.failure(NcclFailure::NoThread(error)))?;
        *self.meeting.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        let mut next_look = Instant::now() + LOOK;
        let mut wrong = None;
        let mut goes_on = || {
            core.ended()?;
            let now = Instant::now();
            if wrong.is_none() && now >= next_look {
                next_look = now + LOOK;
                // A rank that has met all others may be gone before this one hears of it, and nothing is wrong then.
                wrong = core.wrong(true).map(|error| (error, now + GOODBYE));
            }
            match &wrong {
                Some((error, until)) if now >= *until => Err(error.clone()),
                _ => Ok(()),
            }
        };
        let met = poll(&mut goes_on, || match answer.try_recv() {
            Err(TryRecvError::Empty) => Ok(None),
            Ok(met) => Ok(Some(met)),
            Err(TryRecvError::Disconnected) => Err(NcclFailure::Ended.into()),
        });
        let met = met.map_err(|stop| core.stopped(stop)).inspect_err(|error| {
            let _ = over.set(error.clone());
        })?;
        met.map(|_| ()).map_err(|error| match error {
            meshreduce::Error::RankDied { rank, .. } => {
                Error::RankDied { rank, group: group(), how: format!("{} has ended", core.members[rank]) }
            }
            error => {
                Error::Backend { backend: Arc::clone(&core.name), group: group(), source: Cause::new(error) }
            }
        })
    }

    /// The steps of an orderly end.
    fn end_in_order(&self, timeout: Duration) -> Result<(), Error> {
        let core = &self.core;
        let start = Instant::now();
        let end = start.checked_add(timeout);
        self.drain(&self.collectives, end)?;
        self.drain(&self.pairs, end)?;
        self.meet_at_the_end(timeout.saturating_sub(start.elapsed()))?;
        // From here on others may be gone.
        let late = || core.failure(core.timed_out("the end of a communicator", start.elapsed()));
        let mut goes_on = || {
            core.ended()?;
            if end.is_some_and(|end| Instant::now() >= end) { Err(late()) } else { Ok(()) }
        };
        for communicator in [core.pairs.as_ref(), Some(&core.collectives)].into_iter().flatten() {
            let ended = communicator
                .use_it(&mut goes_on)
                .and_then(|using| using.destroy(&core.context, &mut goes_on));
            ended.map_err(|stop| core.stopped(stop))?;
        }
        Ok(())
    }

    /// Splits one communicator.
    fn split_one(
        &self,
        (lane, communicator): (&Lane, &Communicator),
        (color, key): (Option<usize>, usize),
        end: Option<Instant>,
        late: &dyn Fn() -> Error,
    ) -> Result<Option<Communicator>, CommunicatorError> {
        let core = &self.core;
        let mut patience = core.patience(end, late);
        lane.alone(&mut patience, |goes_on| {
            let using = communicator.use_it(goes_on)?;
            let Some(child) = using.split(&core.context, color, key, goes_on)? else { return Ok(None) };
            drop(using);
            let finished = child.use_it(goes_on).and_then(|using| using.finish(goes_on));
            match finished {
                Ok(()) => Ok(Some(child)),
                Err(stop) => {
                    super::make::abandon(&core.context, child);
                    Err(stop)
                }
            }
        })
    }

    fn split_both(
        &self,
        color: Option<u32>,
        part: Option<&BackendContext>,
    ) -> Result<Option<Arc<NcclBackend>>, Error> {
        let core = &self.core;
        core.alive()?;
        // By rank of the part: the rank in this group.
        let of_part = |part: &BackendContext| -> Vec<usize> {
            let rank = |global: &usize| core.group.ranks.iter().position(|rank| rank == global);
            part.group.ranks.iter().filter_map(rank).collect()
        };
        let part = part.filter(|_| color.is_some()).map(|part| (part, of_part(part)));
        // A number for each part that fits NCCL's colors, which have 31 bits: its lowest rank.
        let color = part.as_ref().and_then(|(_, ranks)| ranks.iter().min().copied());
        let key = part.as_ref().map_or(0, |(part, _)| part.group.rank);
        let timeout = part.as_ref().map_or(core.timeout, |(part, _)| part.timeout);
        let not_made = |failure: NcclFailure| match &part {
            Some((part, _)) => part.not_made(&core.name, failure),
            None => core.failure(failure),
        };
        let barrier = part.as_ref().map(|_| Core::number(&core.context)).transpose().map_err(&not_made)?;
        let end = Instant::now().checked_add(timeout);
        let late = || not_made(core.timed_out("ncclCommSplit", timeout));
        let split = |lane, communicator| {
            self.split_one((lane, communicator), (color, key), end, &late).map_err(|stop| {
                let error = core.stopped(stop);
                // A communicator that is half split can do nothing any more.
                core.fail(&error);
                error
            })
        };
        let collectives = split(&self.collectives, &core.collectives)?;
        let pairs = core.pairs.as_ref().map(|pairs| split(&self.pairs, pairs)).transpose();
        let (Some((part, ranks)), Some(barrier), Some(collectives)) = (&part, barrier, collectives) else {
            return pairs.map(|_| None);
        };
        let pairs = match pairs {
            Ok(pairs) => pairs.flatten(),
            Err(error) => {
                super::make::abandon(&core.context, collectives);
                return Err(error);
            }
        };
        let members = ranks.iter().map(|rank| core.members[*rank].clone()).collect();
        let new = Core::new(part, &core.context, members, barrier, (collectives, pairs));
        Ok(Some(NcclBackend::of(new)))
    }
}

impl Backend for NcclBackend {
    fn name(&self) -> &Arc<str> {
        &self.core.name
    }

    fn supports(&self, call: &Call<'_>) -> Result<(), String> {
        plan::supports(call)
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        let core = &self.core;
        core.alive()?;
        let (lane, communicator) = match &core.pairs {
            Some(pairs) if call.is_point_to_point() => (&self.pairs, pairs),
            _ => (&self.collectives, &core.collectives),
        };
        // SAFETY: the caller vouches for tensors and stream.
        unsafe { lane.start(core, communicator, call, request) }
    }

    fn abort(&self, cause: &Error) {
        self.core.fail(cause);
    }

    fn error(&self) -> Option<Error> {
        if let Some(cause) = self.core.end.get() {
            return Some(cause.clone());
        }
        if self.core.down.load(Ordering::Acquire) {
            return None;
        }
        let (collectives, pairs) = (self.collectives.glance(), self.pairs.glance());
        if let Some(late) = collectives.1.or(pairs.1) {
            self.core.fail(&late);
            return Some(late);
        }
        self.core.look(collectives.0 || pairs.0).err()
    }

    fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        let core = &self.core;
        core.ended()?;
        if core.down.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let ended = self.end_in_order(timeout);
        match &ended {
            Ok(()) => self.ended_well.store(true, Ordering::Release),
            // The group asks who has not come, and ends this with that: so whoever waits for the call hears it too.
            Err(Error::Timeout { missing, .. }) if missing.is_empty() => {}
            Err(error) => core.fail(error),
        }
        ended
    }

    fn clear_away(&self) -> Result<(), Error> {
        if let Some(meeting) = self.meeting() {
            // What it panicked with it has said.
            let _ = meeting.join();
        }
        // What was left there the factory deletes.
        Ok(())
    }

    fn split(
        &self,
        color: Option<u32>,
        part: Option<&BackendContext>,
    ) -> Option<Result<Option<Arc<dyn Backend>>, Error>> {
        let split = self.split_both(color, part);
        Some(split.map(|backend| backend.map(|backend| backend as Arc<dyn Backend>)))
    }
}

impl Drop for NcclBackend {
    fn drop(&mut self) {
        let core = &self.core;
        core.down.store(true, Ordering::Release);
        if core.end.get().is_none() && !self.ended_well.load(Ordering::Acquire) {
            let cause = "its last owner dropped it before it was shut down".to_owned();
            core.fail(&Error::Aborted { group: Arc::clone(&core.group.name), cause });
        }
    }
}
