//! Ranks that are threads of this process and go through one program in step.
#![forbid(unsafe_code)]

use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Result, bail};

/// A barrier that a rank which fails opens for good, so that nobody waits for it.
#[derive(Debug)]
pub struct Meeting {
    ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    here: usize,
    round: u64,
    failed: bool,
}

impl Meeting {
    /// For that many ranks.
    pub fn new(ranks: usize) -> Self {
        Self { ranks, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// If a rank has failed: that one has the reason.
    pub fn wait(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.here += 1;
        let round = state.round;
        if state.here == self.ranks {
            state.here = 0;
            state.round += 1;
            self.changed.notify_all();
        }
        while state.round == round && !state.failed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed { bail!(Abandoned) } else { Ok(()) }
    }

    /// Nobody is to wait for this rank any more.
    pub fn fail(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
        self.changed.notify_all();
    }
}

/// Another rank has failed.
#[derive(Clone, Copy, Debug)]
struct Abandoned;

impl std::fmt::Display for Abandoned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("another rank has failed")
    }
}

impl std::error::Error for Abandoned {}

/// Runs `program` on every rank, each a thread. Returns what the ranks return, by rank.
///
/// # Errors
/// The failure of the first rank that failed by itself, with its number.
pub fn run<T: Send>(ranks: usize, program: impl Fn(usize, &Meeting) -> Result<T> + Sync) -> Result<Vec<T>> {
    let meeting = Meeting::new(ranks);
    let (meeting, program) = (&meeting, &program);
    let ended: Vec<Result<T>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                scope.spawn(move || {
                    let guard = FailUnlessDone(meeting);
                    let done = program(rank, meeting);
                    if done.is_ok() {
                        std::mem::forget(guard);
                    }
                    done
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))))
            .collect()
    });
    let mut done = Vec::new();
    let mut failures = Vec::new();
    for (rank, ended) in ended.into_iter().enumerate() {
        match ended {
            Ok(value) => done.push(value),
            Err(error) => failures.push((rank, error)),
        }
    }
    // A rank that gave up because of another comes behind those that failed by themselves.
    failures.sort_by_key(|(_, error)| error.is::<Abandoned>());
    match failures.into_iter().next() {
        None => Ok(done),
        Some((rank, error)) => Err(error.context(format!("rank {rank}"))),
    }
}

/// Lets the others go when its rank fails or panics.
struct FailUnlessDone<'a>(&'a Meeting);

impl Drop for FailUnlessDone<'_> {
    fn drop(&mut self) {
        self.0.fail();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn ranks_go_in_step() {
        let arrived = AtomicUsize::new(0);
        let seen = run(4, |_, meeting| {
            let mut seen = Vec::new();
            for _ in 0..10 {
                arrived.fetch_add(1, Ordering::SeqCst);
                meeting.wait()?;
                seen.push(arrived.load(Ordering::SeqCst));
                meeting.wait()?;
            }
            Ok(seen)
        });
        let each: Vec<usize> = (1..=10).map(|round| round * 4).collect();
        assert_eq!(seen.unwrap(), vec![each; 4]);
    }

    #[test]
    fn a_rank_that_fails_or_panics_lets_the_others_go_and_is_named() {
        let failed = run(3, |rank, meeting| {
            if rank == 1 {
                bail!("no memory");
            }
            meeting.wait()
        });
        assert_eq!(format!("{:#}", failed.unwrap_err()), "rank 1: no memory");
        let panicked = run(2, |rank, meeting| {
            assert_ne!(rank, 0, "a panic on purpose");
            meeting.wait()
        });
        assert_eq!(format!("{:#}", panicked.unwrap_err()), "rank 0: it panicked");
    }
}
