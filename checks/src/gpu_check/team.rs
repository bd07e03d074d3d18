//! Ranks as threads of this process, also on one shared device.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use cust::context::Context;
use cust::device::Device;
use meshreduce::{Communicator, Config, Lane, MemoryStore, Outcome, rendezvous};

use super::arena::Arena;
use crate::stream::NonBlocking;

/// A rank with all that it needs. When its program begins, every rank has loaded and allocated everything.
pub struct Rank<'a> {
    /// Its communicator.
    pub communicator: &'a Communicator,
    /// The communicator's first lane.
    pub lane: Lane,
    /// A stream that does not wait for the default stream.
    pub stream: NonBlocking,
    /// Its memory.
    pub arena: Arena,
    gate: &'a Gate,
}

impl Rank<'_> {
    /// This rank's number.
    pub fn number(&self) -> usize {
        self.communicator.rank()
    }

    /// Waits for the other ranks.
    ///
    /// # Errors
    /// If one of them has failed, or does not come.
    pub fn meet(&self) -> Result<()> {
        self.gate.meet()
    }
}

/// Meets as many ranks as there are devices, rank r on `devices[r]`, gives each `room` bytes, runs `program` on each and
/// closes the communicator. Returns what the programs return, by rank.
///
/// # Errors
/// What the ranks say that failed, with their numbers; a rank that only waited for them is not told of.
pub fn run<T: Send>(
    devices: &[u32],
    config: &Config,
    room: usize,
    program: impl Fn(&mut Rank) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (store, gate) = (MemoryStore::new(), Gate::new(devices.len()));
    let answers: Vec<Result<T>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..devices.len())
            .map(|rank| {
                let (store, gate, program) = (store.clone(), &gate, &program);
                scope.spawn(move || {
                    let open = Open(gate);
                    let answer = one(rank, devices, config, &store, room, gate, program);
                    if answer.is_ok() {
                        std::mem::forget(open);
                    }
                    answer
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| Err(said(&*panic)))).collect()
    });
    let mut done = Vec::with_capacity(answers.len());
    let mut failed = Vec::new();
    for (rank, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(value) => done.push(value),
            Err(error) => failed.push((rank, error)),
        }
    }
    if failed.is_empty() {
        return Ok(done);
    }
    let cause = |(_, error): &&(usize, anyhow::Error)| !error.is::<Given>();
    let told: Vec<String> =
        failed.iter().filter(cause).map(|(rank, error)| format!("rank {rank}: {error:#}")).collect();
    bail!(
        "{}",
        if told.is_empty() { "ranks did not come to their meeting".to_owned() } else { told.join("; ") }
    )
}

fn one<T>(
    rank: usize,
    devices: &[u32],
    config: &Config,
    store: &MemoryStore,
    room: usize,
    gate: &Gate,
    program: &(impl Fn(&mut Rank) -> Result<T> + Sync),
) -> Result<T> {
    let communicator = match rendezvous(store, rank, devices.len(), devices[rank], config)? {
        Outcome::Ready(communicator) => communicator,
        Outcome::NotApplicable(reason) => bail!("not applicable: {reason}"),
    };
    let _context = Context::new(Device::get_device(devices[rank])?)?;
    let mut member = Rank {
        communicator: &communicator,
        lane: communicator.lane(0)?,
        stream: NonBlocking::new()?,
        arena: Arena::new(room)?,
        gate,
    };
    gate.meet()?;
    let value = program(&mut member)?;
    member.stream.synchronize()?;
    // Freeing waits for the device, so no rank frees while another may still launch.
    gate.meet()?;
    drop(member);
    communicator.close().context("closing the communicator")?;
    Ok(value)
}

/// What a thread that panicked said.
fn said(panic: &(dyn std::any::Any + Send)) -> anyhow::Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    anyhow!("{}", text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic"))
}

/// Where ranks wait for each other; unlike a barrier it ends when a rank fails.
struct Gate {
    ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: usize,
    /// Meetings that have taken place.
    meetings: u64,
    /// A rank has failed: nobody comes any more.
    open: bool,
}

/// How long a rank waits for the others.
const PATIENCE: Duration = Duration::from_secs(300);

/// A rank found no one to meet.
#[derive(Debug, thiserror::Error)]
#[error("another rank failed")]
struct Given;

impl Gate {
    fn new(ranks: usize) -> Self {
        Self { ranks, state: Mutex::default(), changed: Condvar::new() }
    }

    fn meet(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.lock();
        let meeting = state.meetings;
        state.waiting += 1;
        if state.waiting == self.ranks {
            state.waiting = 0;
            state.meetings += 1;
            self.changed.notify_all();
        }
        while state.meetings == meeting {
            if state.open {
                return Err(Given.into());
            }
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the other ranks did not come within {PATIENCE:?}");
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the gate for good when dropped: by a rank that fails or panics.
struct Open<'a>(&'a Gate);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.lock().open = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_wait_for_one_that_failed_are_let_go() {
        let gate = Gate::new(3);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| gate.meet())).collect();
            drop(Open(&gate));
            for thread in waiting {
                assert!(thread.join().unwrap().unwrap_err().is::<Given>());
            }
        });
    }

    #[test]
    fn ranks_meet_any_number_of_times() {
        let gate = Gate::new(4);
        let passed = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..100 {
                        *passed.lock().unwrap() += 1;
                        gate.meet().unwrap();
                        assert_eq!(*passed.lock().unwrap(), 4 * (round + 1));
                        gate.meet().unwrap();
                    }
                });
            }
        });
    }
}
