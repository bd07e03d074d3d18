//! The rendezvous: how ranks that know nothing but a store, their number and how many they are become a communicator.
//!
//! Values go by "everyone sets its key, everyone reads all". All keys carry the attempt's random *generation*; the key
//! `roster` names the current one and the processes that have joined it.
//!
//! | step | keys | what for |
//! |---|---|---|
//! | join | `roster` | agree on a generation; know whose death to look for |
//! | first exchange | `<generation>/first/<rank>` | host, process, device, configuration |
//! | second exchange | `<generation>/second/<rank>` | mesh, topology, block cap, handle of the segment, where the rank listens |
//! | acknowledgement | `<generation>/acknowledgement/<rank>` | everything is open |
//! | verdict | `<generation>/verdict` | one `compare_set` for all ranks |
//! | clearing up | `<generation>/known/<rank>` | the rank knows the verdict; whoever sees them all deletes all keys |
//! | any | `<generation>/waiting/<rank>` | whom the rank waits for, so that an absent rank is named and not one that waits for it |
//!
//! Between the exchanges every rank queries the mesh, classifies it, loads the kernels and allocates its segment;
//! between the second exchange and the acknowledgement it maps its peers' segments and makes the control connections. Each step waits at most
//! [`Config::timeout`] for the others. A rank that fails, finds another dead, or runs out of time proposes that as
//! the verdict; the first proposal stands, and every rank that waits anywhere sees it at its next look. After any
//! verdict but *ready* each rank closes what it has open of its peers', says so, waits until the others have, and
//! frees its own.

mod build;
mod clearing;
mod exchange;
mod join;
mod keys;
mod meet;
mod roster;
mod session;
#[cfg(test)]
mod tests;
mod verdict;
mod waiting;

use std::time::Duration;

use meshreduce_device::loader::sys::CUresult;
use meshreduce_store::{Store, StoreError};

use crate::communicator::Communicator;
use crate::config::Config;
use crate::error::Error;
use crate::outcome::{NotApplicableReason, Outcome};
use build::{Assembly, Lingers};
pub use clearing::clear_away;
pub(crate) use exchange::{judge_devices, judge_view};
use join::Joined;
pub use meet::{decline, meet};
use session::{Session, StepError};
use verdict::Verdict;

/// Builds a communicator of `world_size` ranks over the device with the CUDA ordinal `device`.
///
/// Every rank, a process or a thread, calls this with a store that reaches the same keys. Communicators that exist at
/// the same time over one store need a [`crate::PrefixStore`] each. The device's primary context is used; what is
/// current on the calling thread stays so.
///
/// The outcome is the same on all ranks. It comes within a small multiple of the configured timeout, also when ranks
/// fail or die; after any outcome but *ready* nothing stays allocated, mapped or stored.
///
/// # Errors
///
/// What is broken: no driver, the same device twice, ranks that were configured differently, that never came or that
/// died, a corrupt payload, a lost store. See [`Error`].
pub fn rendezvous(
    store: &dyn Store,
    rank: usize,
    world_size: usize,
    device: u32,
    config: &Config,
) -> Result<Outcome, Error> {
    if rank >= world_size {
        return Err(Error::InvalidRank { rank, world_size });
    }
    config.check(world_size)?;
    if !(meshreduce_wire::MIN_RANKS..=meshreduce_wire::MAX_RANKS).contains(&world_size) {
        return Ok(Outcome::NotApplicable(NotApplicableReason::WorldSize(world_size)));
    }
    // Each turn is one attempt. A rank that finds itself in an attempt that others have left joins the new one; an
    // attempt that is over is never joined again, so this ends.
    loop {
        let mut session = match Session::join(store, rank, world_size, config.timeout)? {
            Joined::Member(session) => session,
            Joined::Late(session, verdict) => {
                session.leave(&verdict)?;
                let may_be_ours = matches!(
                    verdict,
                    Verdict::Failed(_) | Verdict::NotApplicable(NotApplicableReason::NoDriver { .. })
                );
                if config.disabled.is_none()
                    && may_be_ours
                    && let Err(error) = build::check_here(world_size, device, config)
                    && !(config.needs_no_driver && is_without_device(&error))
                {
                    // A rank that is broken itself says so in its own words, not in another rank's.
                    return Err(error);
                }
                return outcome(verdict);
            }
        };
        let mut assembly = Assembly::default();
        let built = match config.disabled.clone() {
            None => assembly.build(&mut session, rank, world_size, device, config),
            Some(by) => {
                Err(session.decide(Verdict::NotApplicable(NotApplicableReason::Disabled { rank, by })))
            }
        };
        let built = built.map_err(|stop| match stop {
            StepError::Local(error) if config.needs_no_driver && is_without_device(&error) => {
                let message = error.to_string();
                session.decide(Verdict::NotApplicable(NotApplicableReason::NoDriver { rank, message }))
            }
            StepError::Local(error @ Error::NotResident { .. }) if config.needs_no_room => {
                let message = error.to_string();
                session.decide(Verdict::NotApplicable(NotApplicableReason::DeviceFull { rank, message }))
            }
            stop => stop,
        });
        match built {
            Ok(shared) => {
                match session.propose(&Verdict::Ready).and_then(|verdict| still_stands(&session, verdict)) {
                    Ok(Verdict::Ready) => {
                        assembly.keep();
                        // The communicator is whole; if the store is lost now, only its keys stay behind. It is waited a moment
                        // for the others, so that nothing stays behind either if the last one ends while it clears up.
                        let cleared = session
                            .acknowledge(&Verdict::Ready)
                            .and_then(|()| session.all_acknowledged(&Verdict::Ready, LINGER_LIMIT));
                        if let Err(error) = cleared {
                            tracing::warn!(%error, "the rendezvous' keys could not be cleared up");
                        }
                        return Ok(Outcome::Ready(Communicator::new(shared)));
                    }
                    Ok(verdict) => {
                        shared.dismantle();
                        assembly.take_down(&session, &verdict, Lingers::No);
                        return outcome(verdict);
                    }
                    Err(error) => {
                        // The others may be ready, and use this rank's memory: this is an end like any other.
                        drop(shared);
                        return Err(give_up(&session, assembly, rank, error));
                    }
                }
            }
            Err(StepError::Superseded) => session.withdraw()?,
            Err(StepError::Abandoned(step)) => {
                session.forget()?;
                return Err(Error::Abandoned { step: step.name() });
            }
            Err(StepError::Verdict(verdict)) => {
                // It is this rank's doing, and its process may end now: the others should learn of it.
                let lingers = match &verdict {
                    Verdict::NotApplicable(
                        NotApplicableReason::Disabled { rank: cause, .. }
                        | NotApplicableReason::NoDriver { rank: cause, .. }
                        | NotApplicableReason::DeviceFull { rank: cause, .. },
                    ) if *cause == rank => Lingers::ForAll,
                    _ => Lingers::No,
                };
                assembly.take_down(&session, &verdict, lingers);
                return outcome(verdict);
            }
            Err(StepError::Local(error)) => return Err(give_up(&session, assembly, rank, error)),
        }
    }
}

/// The verdict that is there, unless this rank has put it into an attempt that the others had ended before.
fn still_stands(session: &Session<'_>, verdict: Verdict) -> Result<Verdict, Error> {
    match verdict {
        Verdict::Ready if !session.is_open()? => Err(Error::Abandoned { step: "verdict" }),
        verdict => Ok(verdict),
    }
}

/// Whether there is nothing here that could be used: no driver, or one that sees no device.
fn is_without_device(error: &Error) -> bool {
    match error {
        Error::NoDriver(_) => true,
        Error::Driver(error) => error.result() == CUresult::NO_DEVICE,
        _ => false,
    }
}

/// Tells the others of this rank's failure and takes down what it has built.
fn give_up(session: &Session<'_>, assembly: Assembly, rank: usize, error: Error) -> Error {
    let own = Verdict::Failed(verdict::RendezvousFailure::of(rank, &error));
    // If the store is lost the others find that out themselves.
    let verdict = session.propose(&own).unwrap_or(own);
    let lingers = match &error {
        // Whoever has given this rank its store wants it to end now. Ranks that come later find the verdict.
        Error::Store(StoreError::Refused { .. }) => Lingers::ForMembers,
        _ => Lingers::ForAll,
    };
    assembly.take_down(session, &verdict, lingers);
    error
}

fn outcome(verdict: Verdict) -> Result<Outcome, Error> {
    match verdict {
        Verdict::NotApplicable(reason) => Ok(Outcome::NotApplicable(reason)),
        Verdict::Failed(failure) => Err(failure.into()),
        // Ready is handled where there is a communicator. This rank came too late for it.
        Verdict::Ready => Err(Error::Abandoned { step: "verdict" }),
    }
}

/// How long a rank waits for the others to close its memory after a rendezvous that failed.
const TAKE_DOWN_LIMIT: Duration = Duration::from_secs(5);

/// How long a rank that failed waits for the others to learn of it.
const LINGER_LIMIT: Duration = Duration::from_secs(2);
