//! What a backend and its calls have in common.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use ::mpi::ffi;

use super::arithmetic::Reductions;
use super::communicator::{Communicator, int};
use super::error::{MpiError, check};
use super::job::{Job, On, count_of};
use super::runtime::enter;
use crate::backend::GroupInfo;
use crate::call::Call;
use crate::error::{Cause, Error};

/// Bytes of a cause that are told to other ranks: MPI keeps so short a message for a rank that does not ask for it.
const LONGEST_CAUSE: usize = 1024;

/// What a backend and its calls have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) group: Arc<GroupInfo>,
    world_size: NonZero<usize>,
    max_tag: u32,
    /// `None` once the group was closed.
    communicator: RwLock<Option<Communicator>>,
    reductions: Reductions,
    /// How many collectives were started. Held while a call is, so that MPI gets calls of several threads one after the other.
    order: Mutex<u64>,
    ends: Mutex<Ends>,
    failure: OnceLock<Error>,
    /// By rank, who closes the group. Held while messages of the backend's own are received.
    closing: Mutex<Vec<bool>>,
    /// Calls that nobody waits for any more, but MPI may still be busy with.
    left: Mutex<Vec<Job>>,
}

/// Which collectives MPI has ended.
#[derive(Debug, Default)]
struct Ends {
    /// All up to this one.
    through: u64,
    /// And these behind it.
    beyond: BTreeSet<u64>,
}

impl Ends {
    /// This one has ended; gives whether all before it have.
    fn note(&mut self, place: u64) -> bool {
        if place > self.through {
            self.beyond.insert(place);
            while self.beyond.remove(&(self.through + 1)) {
                self.through += 1;
            }
        }
        place <= self.through
    }
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        name: Arc<str>,
        group: Arc<GroupInfo>,
        world_size: NonZero<usize>,
        communicator: Communicator,
    ) -> Result<Self, MpiError> {
        let reductions = {
            let _entered = enter()?;
            Reductions::new()?
        };
        Ok(Self {
            name,
            world_size,
            max_tag: communicator.max_tag(),
            communicator: RwLock::new(Some(communicator)),
            reductions,
            order: Mutex::default(),
            ends: Mutex::default(),
            failure: OnceLock::new(),
            closing: Mutex::new((0..world_size.get()).map(|rank| rank == group.rank).collect()),
            left: Mutex::default(),
            group,
        })
    }

    pub(super) fn max_tag(&self) -> u32 {
        self.max_tag
    }

    fn communicator(&self) -> RwLockReadGuard<'_, Option<Communicator>> {
        self.communicator.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// MPI's error as the group's.
    pub(super) fn error(&self, error: MpiError) -> Error {
        Error::Backend {
            backend: Arc::clone(&self.name),
            group: Arc::clone(&self.group.name),
            source: Cause::new(error),
        }
    }

    /// What has gone wrong, if anything.
    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.get()
    }

    /// Starts calls that belong together, in order. Gives the place of collectives among all, from 1 on; `None`: they are sends and
    /// receives.
    ///
    /// # Safety
    ///
    /// As [`Job::start`].
    pub(super) unsafe fn start(&self, calls: &[Call<'_>]) -> Result<(Vec<Job>, Option<u64>), Error> {
        if let Some(failure) = self.failure() {
            return Err(failure.clone());
        }
        let mut order = lock(&self.order);
        let communicator = self.communicator();
        let Some(communicator) = &*communicator else {
            return Err(Error::ShutDown { group: Arc::clone(&self.group.name) });
        };
        let on = On {
            communicator,
            reductions: &self.reductions,
            rank: self.group.rank,
            world_size: self.world_size,
        };
        let mut jobs = Vec::with_capacity(calls.len());
        let started = enter().and_then(|_entered| {
            calls.iter().try_for_each(|call| {
                // SAFETY: the caller vouches for the calls.
                jobs.push(unsafe { Job::start(call, on) }?);
                Ok(())
            })
        });
        match started {
            Ok(()) => {
                let is_collective = !calls.iter().any(Call::is_point_to_point);
                *order += u64::from(is_collective);
                Ok((jobs, is_collective.then_some(*order)))
            }
            Err(error) => {
                self.leave(jobs);
                let error = self.error(error);
                self.fail_with(&error, Some(communicator));
                Err(error)
            }
        }
    }

    /// The group is over on this rank; the others are told. Only the first cause counts.
    pub(super) fn fail(&self, error: &Error) {
        // What was closed in order has ended.
        if let Some(communicator) = &*self.communicator() {
            self.fail_with(error, Some(communicator));
        }
    }

    /// Whether the group was closed in order.
    pub(super) fn is_closed(&self) -> bool {
        self.communicator().is_none()
    }

    /// The group is over on this rank alone.
    pub(super) fn fail_quietly(&self, error: &Error) {
        self.fail_with(error, None);
    }

    fn fail_with(&self, error: &Error, tell: Option<&Communicator>) {
        if self.failure.set(error.clone()).is_err() {
            return;
        }
        // MPI is entered already where nobody is to be told.
        let Some(communicator) = tell else { return };
        let Ok(_entered) = enter() else { return };
        let mut text = error.to_string();
        text.truncate(text.floor_char_boundary(LONGEST_CAUSE));
        let others = (0..self.group.world_size).filter(|rank| *rank != self.group.rank);
        for rank in others {
            match Job::message(communicator, rank, communicator.abort_tag(), text.as_bytes()) {
                Ok(job) => lock(&self.left).push(job),
                Err(error) => {
                    tracing::warn!(group = %self.group.name, rank, %error, "a rank was not told of the abort");
                }
            }
        }
    }

    /// MPI has ended the collective of this place; gives whether it has ended all before it too. A backend's collectives end in order,
    /// MPI's in any: a broadcast's root, for instance, waits for nobody.
    pub(super) fn all_through(&self, place: u64) -> bool {
        lock(&self.ends).note(place)
    }

    /// Keeps calls that MPI may still be busy with.
    pub(super) fn leave(&self, jobs: impl IntoIterator<Item = Job>) {
        lock(&self.left).extend(jobs);
    }

    /// Says to all others that this rank closes the group.
    pub(super) fn say_bye(&self) -> Result<(), MpiError> {
        let communicator = self.communicator();
        let Some(communicator) = &*communicator else { return Ok(()) };
        let _entered = enter()?;
        for rank in (0..self.group.world_size).filter(|rank| *rank != self.group.rank) {
            self.leave([Job::message(communicator, rank, communicator.bye_tag(), &[])?]);
        }
        Ok(())
    }

    /// Receives what other ranks have to say of the group's end.
    pub(super) fn look(&self) {
        // Who holds it looks already.
        let Ok(mut closing) = self.closing.try_lock() else { return };
        let communicator = self.communicator();
        let (Some(communicator), Ok(_entered)) = (&*communicator, enter()) else { return };
        while let Ok(Some((rank, _))) = receive(communicator, communicator.bye_tag()) {
            if let Some(is_closing) = closing.get_mut(rank) {
                *is_closing = true;
            }
        }
        if let Ok(Some((rank, text))) = receive(communicator, communicator.abort_tag()) {
            let cause = format!("rank {rank}: {}", String::from_utf8_lossy(&text));
            let group = Arc::clone(&self.group.name);
            self.fail_with(&Error::Aborted { group, cause }, None);
        }
    }

    /// Ranks that have not said that they close the group.
    pub(super) fn not_closing(&self) -> Vec<usize> {
        let closing = lock(&self.closing);
        (0..closing.len()).filter(|rank| !closing[*rank]).collect()
    }

    /// Gives the communicator back to MPI: all ranks have said that they close the group, and their calls have ended.
    pub(super) fn close(&self) {
        let communicator = self.communicator.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(communicator) = communicator {
            communicator.free();
            self.reductions.free();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let left = std::mem::take(self.left.get_mut().unwrap_or_else(PoisonError::into_inner));
        let entered = enter();
        for mut job in left {
            if entered.is_err() || !job.is_over() {
                tracing::warn!(group = %self.group.name, "MPI has not ended a call: its memory is leaked");
                std::mem::forget(job);
            }
        }
    }
}

/// A message of the backend's own that has come, if one has: from whom, and its bytes. One thread at a time calls this.
fn receive(communicator: &Communicator, tag: c_int) -> Result<Option<(usize, Vec<u8>)>, MpiError> {
    let comm = communicator.raw();
    let mut flag: c_int = 0;
    let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
    // SAFETY: the communicator is MPI's; MPI writes at most as many bytes as there are. The message is there, and nobody else
    // receives those of this tag, so MPI does not wait.
    unsafe {
        let probed = ffi::MPI_Iprobe(ffi::RSMPI_ANY_SOURCE, tag, comm, &mut flag, status.as_mut_ptr());
        check("MPI_Iprobe", probed)?;
        if flag == 0 {
            return Ok(None);
        }
        let status = status.assume_init();
        let mut bytes = vec![0_u8; count_of(&status)?];
        let (to, count) = (bytes.as_mut_ptr().cast(), int(bytes.len())?);
        let (kind, ignore) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_STATUS_IGNORE);
        let received = ffi::MPI_Recv(to, count, kind, status.MPI_SOURCE, tag, comm, ignore);
        check("MPI_Recv", received)?;
        Ok(Some((usize::try_from(status.MPI_SOURCE).unwrap_or(usize::MAX), bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::Ends;

    #[test]
    fn a_collective_has_ended_when_all_before_it_have() {
        let mut ends = Ends::default();
        assert!(!ends.note(2) && !ends.note(3) && !ends.note(5));
        assert!(ends.note(1) && ends.note(2) && ends.note(3) && !ends.note(5));
        assert!(ends.note(4) && ends.note(5) && ends.beyond.is_empty());
    }
}
