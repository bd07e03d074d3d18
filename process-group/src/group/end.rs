//! The end of a group, and who is told of ends.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::ProcessGroup;
use super::shared::Shared;
use super::slot::Slot;
use super::watchdog::{look_for_ends, look_for_the_last_time};
use crate::backend::{Backend, GroupInfo};
use crate::error::Error;
use crate::types::Operation;

/// A call that has ended well, as a completion hook is told.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Completed<'a> {
    /// Its group.
    pub group: &'a GroupInfo,
    /// What it did.
    pub operation: Operation,
    /// Its sequence number.
    pub sequence: u64,
}

type CompletionHook = Arc<dyn Fn(Completed<'_>) + Send + Sync>;
type AbortHook = Arc<dyn Fn(&GroupInfo, &Error) + Send + Sync>;

/// Who is told.
#[derive(Default)]
pub(super) struct Hooks {
    /// Whether there are any of the first kind, so that calls without look at nothing else.
    completion: AtomicBool,
    lists: RwLock<(Vec<CompletionHook>, Vec<AbortHook>)>,
    /// Calls that have ended and of which the first kind has not heard yet.
    unheard: Mutex<VecDeque<(Operation, u64)>>,
    /// Held by the one that tells of them.
    telling: Mutex<()>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

impl Hooks {
    pub(super) fn want_completions(&self) -> bool {
        self.completion.load(Ordering::Acquire)
    }

    /// These have ended, in this order.
    pub(super) fn are_to_hear(&self, calls: impl IntoIterator<Item = (Operation, u64)>) {
        self.unheard().extend(calls);
    }

    fn unheard(&self) -> MutexGuard<'_, VecDeque<(Operation, u64)>> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells, by `tell`, of those that are to be heard of. Where another thread is at it, that one tells of these too.
    pub(super) fn tell(&self, tell: impl Fn(Operation, u64)) {
        while !self.unheard().is_empty() {
            let Ok(_one_at_a_time) = self.telling.try_lock() else { return };
            loop {
                let Some((operation, sequence)) = self.unheard().pop_front() else { break };
                tell(operation, sequence);
            }
        }
    }

    #[cold]
    fn completed(&self, call: Completed<'_>) {
        let hooks = self.lists.read().unwrap_or_else(PoisonError::into_inner).0.clone();
        hooks.iter().for_each(|hook| hook(call));
    }

    fn aborted(&self, group: &GroupInfo, cause: &Error) {
        let hooks = self.lists.read().unwrap_or_else(PoisonError::into_inner).1.clone();
        hooks.iter().for_each(|hook| hook(group, cause));
    }
}

impl ProcessGroup {
    /// Has `hook` called once for every call of this group that ends well, from now on, by a thread that sees the end: the one that waits
    /// for the call, or asks how far the group has come, or the group's own, some 10 ms after the end where calls go on one after the
    /// other. It should be quick, and make no calls on the group.
    pub fn on_completion(&self, hook: impl Fn(Completed<'_>) + Send + Sync + 'static) {
        let hooks = &self.shared.hooks;
        hooks.lists.write().unwrap_or_else(PoisonError::into_inner).0.push(Arc::new(hook));
        hooks.completion.store(true, Ordering::Release);
    }

    /// Has `hook` called once when this group is aborted on this rank, by whoever aborts it, after everything pending was told.
    pub fn on_abort(&self, hook: impl Fn(&GroupInfo, &Error) + Send + Sync + 'static) {
        let hooks = &self.shared.hooks;
        hooks.lists.write().unwrap_or_else(PoisonError::into_inner).1.push(Arc::new(hook));
    }

    /// Ends everything that goes on in the group, on this rank at once and on the others soon: all of it fails with
    /// [`Error::Aborted`] and this cause, as all further calls do. Any thread may abort, any number of groups in any order; it
    /// waits for nobody. Aborting what has ended does nothing.
    pub fn abort(&self, cause: &str) {
        self.shared
            .abort(&Error::Aborted { group: Arc::clone(&self.shared.info.name), cause: cause.to_owned() });
    }

    /// Ends the group in order: waits for what this rank has called, and for the other ranks to come here too. All ranks must call
    /// it. Parts of the group are groups of their own and end by themselves, in any order.
    ///
    /// # Errors
    ///
    /// What the group failed with before, if it did; which ranks did not come within the group's timeout. It is over in any
    /// case. A second call does nothing.
    pub fn shutdown(&self) -> Result<(), Error> {
        let shared = &self.shared;
        shared.own_process()?;
        let down = Error::ShutDown { group: Arc::clone(&shared.info.name) };
        if shared.end.set(down).is_err() {
            return match shared.end.get() {
                Some(Error::ShutDown { .. }) | None => Ok(()),
                Some(cause) => Err(cause.clone()),
            };
        }
        let mut result = Ok(());
        for slot in shared.slots() {
            if let Some(backend) = slot.made() {
                look_for_ends(shared, slot);
                let ended = backend.shutdown(shared.settings.timeout);
                let ended = ended.map_err(|error| shared.with_missing(slot, &**backend, error));
                let of_mesh = look_for_the_last_time(shared, slot, ended.is_ok());
                result = result.and(ended).and(of_mesh.map_or(Ok(()), Err));
            }
        }
        let result = result.map_err(|error| {
            // Also where others did not come to the end in time, which each backend says in its own way.
            shared.family.dump_once();
            shared.failed(error)
        });
        shared.take_back_progress(result.is_err());
        shared.forget_the_unheard();
        result
    }
}

impl ProcessGroup {
    /// Shuts these down together: this rank has come to the end of all of them before it waits for the others at any. So ranks may name them
    /// in whatever order, and what is waited for by [`ProcessGroup::shutdown`] of one group after the other, in another order on another
    /// rank, is waited for here by nobody.
    ///
    /// # Errors
    ///
    /// That of the first of these groups that has one; all are over in any case. (Where there can be no thread for a group, it ends behind
    /// those that have one.)
    pub fn shutdown_all(groups: &[&ProcessGroup]) -> Result<(), Error> {
        std::thread::scope(|scope| {
            let end = |group: &&ProcessGroup| {
                let group = (*group).clone();
                std::thread::Builder::new()
                    .name("shutdown".to_owned())
                    .spawn_scoped(scope, move || group.shutdown())
            };
            let ending: Vec<_> = groups.iter().map(end).collect();
            let ended = ending.into_iter().zip(groups).map(|(ending, group)| match ending.map(|one| one.join()) {
                Ok(Ok(ended)) => ended,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(error) => {
                    tracing::error!(%error, group = &*group.shared.info.name, "no thread can be started to end a group");
                    group.shutdown()
                }
            });
            // All of them, also behind one that has failed.
            ended.fold(Ok(()), Result::and)
        })
    }
}

impl Shared {
    /// What to say of a shutdown that has waited for a call in vain: who has not come to it.
    fn with_missing(&self, slot: &Slot, backend: &dyn Backend, mut error: Error) -> Error {
        if let Error::Timeout { sequence, missing, stopped, .. } = &mut error
            && missing.is_empty()
        {
            // A rank that is stopped within the call has come to it, and may not have told so.
            let known = std::mem::take(stopped);
            if known.is_empty() {
                *missing = self.missing(None, *sequence);
            }
            *stopped = self.stopped();
            stopped.extend(known);
            stopped.sort_unstable();
            stopped.dedup();
            // Whoever waits for the call hears the same.
            backend.abort(&error);
            return error;
        }
        // The mesh was told to end what did not end by itself.
        let is_late = crate::mesh::failure::was_ended_here(&error);
        let Some((first, last)) = slot.own_calls().filter(|_| is_late) else { return error };
        // The first that has not been seen to end, unless all have come to that.
        let named = [first.noted, last].into_iter().map(|call| (self.missing(None, call.sequence), call));
        let Some((missing, call)) = named.reduce(|first, last| if first.0.is_empty() { last } else { first })
        else {
            return error;
        };
        let error = Error::Timeout {
            operation: call.operation,
            sequence: call.sequence,
            group: Arc::clone(&self.info.name),
            waited: call.start.elapsed(),
            missing,
            stopped: self.stopped(),
            elsewhere: Vec::new(),
            tag: None,
        };
        // Whoever waits for a call hears the same.
        backend.abort(&error);
        error
    }

    /// Ends it with `cause`, unless it has ended.
    pub(super) fn abort(&self, cause: &Error) {
        if self.own_process().is_err() {
            return;
        }
        if self.end.set(cause.clone()).is_err() {
            // Who shuts it down waits for other ranks, and for what goes on, and is not to wait any more.
            if matches!(self.end.get(), Some(Error::ShutDown { .. })) {
                self.slots().iter().filter_map(|slot| slot.made()).for_each(|backend| backend.abort(cause));
            }
            return;
        }
        tracing::error!(group = &*self.info.name, rank = self.info.rank, %cause, "a process group ends");
        for slot in self.slots() {
            if let Some(backend) = slot.made() {
                backend.abort(cause);
            }
        }
        self.hooks.aborted(&self.info, cause);
        self.family.dump_once();
        if self.owes_end() {
            self.family.watchdog.start();
        }
    }

    /// A call has ended well.
    #[inline]
    pub(super) fn completed(&self, operation: Operation, sequence: u64) {
        if self.hooks.want_completions() {
            self.hooks.completed(Completed { group: &self.info, operation, sequence });
        }
    }

    /// What to say of a failure: the cause if the group has been ended, else the failure. The first that more than one rank has a
    /// part in makes the flight recorder write its dump, on each of them: it takes all dumps to see who is behind.
    pub(crate) fn failed(&self, mut error: Error) -> Error {
        self.note_elsewhere(&mut error);
        match self.end.get() {
            Some(cause @ Error::Aborted { .. }) => return cause.clone(),
            _ => match error {
                Error::Timeout { .. }
                | Error::RankDied { .. }
                | Error::PeerShutDown { .. }
                | Error::Mismatch { .. }
                | Error::Aborted { .. } => self.family.dump_once(),
                _ => {}
            },
        }
        error
    }
}

impl Shared {
    /// The program has no handle any more, and so makes no calls: what it has told the others is taken back as far as they need it
    /// no more. (What is pending goes on.)
    pub(super) fn left(&self) {
        if self.own_process().is_err() {
            return;
        }
        self.tell_end();
        self.take_back_progress(!matches!(self.end.get(), Some(Error::ShutDown { .. })));
        self.forget_the_unheard();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.own_process().is_err() {
            return self.leave_to_parent();
        }
        // Nobody has a handle or a work object any more, so nobody waits.
        let dropped = "all handles were dropped before it was shut down".to_owned();
        let cause = Error::Aborted { group: Arc::clone(&self.info.name), cause: dropped };
        if self.end.set(cause.clone()).is_ok() {
            let mut used = false;
            for slot in self.slots() {
                if let Some(backend) = slot.made() {
                    used = true;
                    backend.dropped(&cause);
                }
            }
            if used {
                tracing::debug!(
                    group = &*self.info.name,
                    rank = self.info.rank,
                    "a process group was dropped"
                );
            }
        }
        self.family.recorder.remove_group(self.record);
    }
}
