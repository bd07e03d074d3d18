//! Waiting: for a step of the island, or for messages.
//!
//! Who waits spins while all ranks of the machine can run at the same time, then yields, then sleeps: a caller on a futex
//! (of its own segment, where the rank that it waits for wakes it; or of its ticket), the progress thread on everything that
//! can come. Before it sleeps it says so and looks once more; who wakes it says what there is and then looks whether it
//! sleeps. Both with a sequentially consistent fence between, so one of them sees the other (Dekker's pattern).
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::failure::{self, LIVING};
use super::fingerprint::Fingerprint;
use super::job;
use super::progress;
use super::shared::{Net, Shared};
use super::ticket::{self, Ticket};
use crate::backend::Request;
use crate::clock;
use crate::error::Error;

/// Looks without a pause between them: one takes longer than what is waited for often does.
const EAGER: u32 = 200;
/// Looks with pauses before the clock is looked at.
const QUICK: u32 = 2000;
/// The same where ranks have to share cores.
const QUICK_CROWDED: u32 = 20;
/// How long is spun before anything else, where ranks need not share cores.
const SPIN: Duration = Duration::from_micros(150);
/// How long the thread then gives way again and again before it sleeps: others than the ranks may want the cores.
const GIVE_WAY: Duration = Duration::from_millis(2);
/// How often a thread gives way before it sleeps.
const YIELDS: u32 = 12;
/// After how long without an end the others are asked where they are, and how often.
const STALL: Duration = Duration::from_millis(20);
/// How long a sleep lasts at most before all is looked at again.
const SLICE: Duration = Duration::from_millis(20);

/// What a thread waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum For<'a> {
    /// A step of the rank at this place of the island.
    Step(usize),
    /// Messages.
    Mail(&'a Arc<Ticket>),
}

/// How a thread waits in a collective.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait<'a> {
    pub(super) shared: &'a Shared,
    pub(super) net: &'a Net,
    /// Whether it is the progress thread, which sees to messages meanwhile.
    pub(super) is_progress: bool,
    pub(super) fingerprint: Fingerprint,
    pub(super) request: &'a Request,
}

impl Wait<'_> {
    /// Waits until `ready`.
    ///
    /// # Errors
    ///
    /// What ends everything instead. It is over then.
    pub(super) fn until(&self, what: For<'_>, mut ready: impl FnMut() -> bool) -> Result<(), Error> {
        if let For::Step(_) = what {
            let (eager, looks) = if self.net.fits { (EAGER, QUICK) } else { (0, QUICK_CROWDED) };
            for look in 0..eager + looks {
                if ready() {
                    return Ok(());
                }
                if look >= eager {
                    std::hint::spin_loop();
                }
            }
        }
        self.slowly(what, &mut ready)
    }

    #[cold]
    fn slowly(&self, what: For<'_>, ready: &mut dyn FnMut() -> bool) -> Result<(), Error> {
        let drives = matches!(what, For::Mail(_)) && !self.is_progress;
        let mut driving = drives.then(|| Driving::begin(self.shared, self.net));
        let begun = clock::now();
        let mut asked = begun;
        let mut pauses = 0;
        loop {
            if ready() {
                return Ok(());
            }
            if self.is_progress || driving.is_some() {
                let moved = self.shared.pump(self.net);
                // What has come counts, also if the word of an end has come behind it.
                if ready() {
                    return Ok(());
                }
                if moved? {
                    pauses = 0;
                    continue;
                }
            }
            let now = clock::now();
            let looked = self.look(what, now, begun, &mut asked, ready);
            // What has come counts, also from a rank that has failed since.
            if ready() {
                return Ok(());
            }
            looked?;
            if self.net.fits && now - begun < SPIN {
                for _ in 0..32 {
                    if ready() {
                        return Ok(());
                    }
                    std::hint::spin_loop();
                }
                continue;
            }
            pauses += 1;
            if pauses <= YIELDS || (self.net.fits && now - begun < GIVE_WAY) {
                std::thread::yield_now();
                continue;
            }
            if let Some(driving) = driving.take() {
                driving.hand_over();
            }
            self.sleep(what, now, ready)?;
            driving = drives.then(|| Driving::begin(self.shared, self.net));
            pauses = YIELDS / 2;
        }
    }

    /// Looks for everything that may end the wait otherwise.
    fn look(
        &self,
        what: For<'_>,
        now: Instant,
        begun: Instant,
        asked: &mut Instant,
        ready: &mut dyn FnMut() -> bool,
    ) -> Result<(), Error> {
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        if self.is_progress && self.shared.stops.load(Ordering::Relaxed) {
            return Err(self.shared.fail(failure::dropped(self.shared.name())));
        }
        self.shared.look_around(self.net)?;
        // What the rank has done before it left counts.
        if let For::Step(place) = what {
            let neighbour = &self.net.island[place];
            let state = neighbour.segment.control().ended.0.state.load(Ordering::Acquire);
            if state != LIVING && !ready() {
                let error = self.shared.has_left(self.net, neighbour.rank, state, &self.fingerprint);
                return Err(self.shared.fail(error));
            }
        }
        let is_late = job::end(self.request).filter(|(end, _)| *end <= now);
        // Of a call whose time is up it is told, and not of those behind it, which are late because it is.
        if self.is_progress && is_late.is_none() {
            self.shared.look_for_late(self.net, now, Some(self.fingerprint.sequence))?;
        }
        if now - *asked >= STALL || is_late.is_some() {
            *asked = now;
            {
                let mut mailbox = self.net.mailbox();
                mailbox.ask_around(&self.fingerprint);
                if let Err(error) = mailbox.check_arrivals(&self.fingerprint) {
                    drop(mailbox);
                    return Err(self.shared.fail(error));
                }
            }
            self.shared.pump(self.net)?;
        }
        let Some((end, waited)) = is_late else { return Ok(()) };
        // Those who call something else, or are just now coming, have a moment to say so.
        let moment = waited.min(STALL);
        if now < end + moment && now - begun < waited + 2 * moment {
            return Ok(());
        }
        Err(self.shared.late(self.net, &self.fingerprint, waited, None))
    }

    fn sleep(&self, what: For<'_>, now: Instant, ready: &mut dyn FnMut() -> bool) -> Result<(), Error> {
        let left = job::end(self.request).map_or(SLICE, |(end, _)| end.saturating_duration_since(now));
        let most = left.clamp(Duration::from_millis(1), SLICE);
        if self.is_progress {
            return progress::sleep(self.shared, self.net, Shared::STEP, most, ready);
        }
        match what {
            For::Mail(ticket) => ticket.sleep(most),
            For::Step(place) => {
                let waits = &self.net.own.segment.control().waits.0;
                let seen = waits.bell.load(Ordering::Relaxed);
                waits.for_place.store(place as u32 + 1, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                if !ready() && !self.shared.is_over() {
                    ticket::sleep_on(&waits.bell, seen, most, true);
                }
                waits.for_place.store(0, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// A caller sees to messages itself; the progress thread leaves them to it.
pub(super) struct Driving<'a> {
    shared: &'a Shared,
    net: &'a Net,
    hands_over: bool,
}

impl<'a> Driving<'a> {
    pub(super) fn begin(shared: &'a Shared, net: &'a Net) -> Self {
        shared.drivers.fetch_add(1, Ordering::SeqCst);
        Self { shared, net, hands_over: false }
    }
}

impl Driving<'_> {
    /// The progress thread is to see to them again, whatever they are.
    pub(super) fn hand_over(mut self) {
        self.hands_over = true;
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.shared.drivers.fetch_sub(1, Ordering::SeqCst);
        // Those of others still go on. (Without any it looks again soon.)
        if self.hands_over || self.net.mailbox().is_busy() {
            super::wire::ring(&self.shared.bell);
        }
    }
}
