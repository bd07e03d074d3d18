//! What the threads of a rank share: its failure, its messages, its calls that wait for their turn.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_store::identity::Member;

use super::collectives::Engine;
use super::connect::{Connected, Own};
use super::failure::{self, FAILED, LIVING, SHUT_DOWN};
use super::fingerprint::{Fingerprint, History};
use super::job::Job;
use super::mailbox::{Mailbox, differ, differ_in_number};
use super::place::Islands;
use super::segment::{ASLEEP, IN_STEP};
use super::ticket::{self, Ticket};
use super::wire::{Neighbour, ring};
use crate::backend::{BackendContext, GroupInfo};
use crate::error::{Error, Tag, stopped};

/// A socket whose end is a process's end.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) rank: usize,
    pub(super) socket: UnixStream,
    pub(super) is_gone: AtomicBool,
}

/// What there is once the ranks are connected.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) own: Arc<Own>,
    /// By place in the island, the own one too.
    pub(super) island: Vec<Neighbour>,
    pub(super) islands: Islands,
    pub(super) controls: Vec<Watched>,
    /// Who they are, by rank.
    pub(super) members: Vec<Member>,
    /// By rank.
    pub(super) sockets: Vec<Option<Arc<std::net::TcpStream>>>,
    /// Whether all ranks of this machine can run at the same time.
    pub(super) fits: bool,
    pub(super) mailbox: Mutex<Mailbox>,
    pub(super) engine: Mutex<Engine>,
}

impl Net {
    pub(super) fn new(
        connected: Connected,
        members: Vec<Member>,
        (islands, fits): (Islands, bool),
        mailbox: Mailbox,
        engine: Engine,
    ) -> Self {
        let Connected { own, island, controls, sockets } = connected;
        let watched = |(rank, socket)| Watched { rank, socket, is_gone: AtomicBool::new(false) };
        let controls = controls.into_iter().map(watched).collect();
        let (mailbox, engine) = (Mutex::new(mailbox), Mutex::new(engine));
        Self { own, island, islands, controls, members, sockets, fits, mailbox, engine }
    }

    /// Whether a rank is of this one's island.
    pub(super) fn is_near(&self, rank: usize) -> bool {
        self.sockets[rank].is_none()
    }

    pub(super) fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls in order: the queue of those that wait, and the last that were begun.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) jobs: VecDeque<Job>,
    /// Sends and receives that were called before the ranks were connected.
    pub(super) posts: Vec<Job>,
}

/// What the threads of a rank share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) backend: Arc<str>,
    pub(super) group: Arc<GroupInfo>,
    failure: OnceLock<Error>,
    is_over: AtomicBool,
    /// Why the group has aborted it, also if that was while it was being shut down.
    pub(super) aborted: OnceLock<Error>,
    /// What another rank has failed with, or that it has died, since this one was shut down.
    heard_since: OnceLock<Error>,
    /// Whether all others have left a group that has failed: the progress thread need not tell them anything any more.
    pub(super) is_left: Arc<AtomicBool>,
    /// The ranks that are waited for to come, as far as somebody has asked, or to connect.
    pub(super) awaited: Arc<Mutex<Vec<usize>>>,
    /// Whether somebody asks who has not come yet: the progress thread looks while it meets the others, since a call that fails waits for
    /// no store.
    pub(super) asks_who_comes: Arc<AtomicBool>,
    /// Where the ranks say that they are connected, once this one has come to that.
    pub(super) meeting: OnceLock<BackendContext>,
    /// Whether the progress thread is to end.
    pub(super) stops: AtomicBool,
    pub(super) net: OnceLock<Net>,
    pub(super) queue: Mutex<Queue>,
    /// Jobs in the queue, and the one that the progress thread has taken out of it.
    pub(super) queued: AtomicUsize,
    pub(super) history: History,
    /// Whether there may be sends and receives that were called before the ranks were connected.
    pub(super) early: AtomicBool,
    /// Callers that pump by themselves.
    pub(super) drivers: AtomicU32,
    /// Whether a caller has looked for a message since the progress thread has last asked.
    attended: AtomicBool,
    /// What wakes the progress thread.
    pub(super) bell: Arc<OwnedFd>,
    /// Ends when the ranks are connected.
    pub(super) connected: Ticket,
}

/// The last collective of a neighbour that was shut down, if it has made one.
fn last_call(neighbour: &Neighbour) -> Option<Option<Fingerprint>> {
    match neighbour.segment.control().ended.0.heard() {
        (SHUT_DOWN, record) => Some(failure::decode_last(&record)),
        _ => None,
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(backend: Arc<str>, group: Arc<GroupInfo>, bell: Arc<OwnedFd>) -> Self {
        Self {
            backend,
            group,
            failure: OnceLock::new(),
            is_over: AtomicBool::new(false),
            aborted: OnceLock::new(),
            heard_since: OnceLock::new(),
            is_left: Arc::default(),
            awaited: Arc::default(),
            asks_who_comes: Arc::default(),
            meeting: OnceLock::new(),
            stops: AtomicBool::new(false),
            net: OnceLock::new(),
            queue: Mutex::new(Queue { jobs: VecDeque::new(), posts: Vec::new() }),
            queued: AtomicUsize::new(0),
            history: History::new(),
            early: AtomicBool::new(false),
            drivers: AtomicU32::new(0),
            attended: AtomicBool::new(false),
            bell,
            connected: Ticket::new(1),
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.group.rank
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.group.name
    }

    /// Whether it has failed: one look at a flag.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Whether it has failed, and was not just shut down.
    pub(super) fn has_failed(&self) -> bool {
        self.is_over() && !matches!(self.failure.get(), Some(Error::ShutDown { .. }))
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.is_over().then(|| self.failure.get().cloned()).flatten()
    }

    /// It is over, on this rank and soon on the others; the first failure counts. Returns that.
    pub(super) fn fail(&self, error: Error) -> Error {
        if self.failure.set(error.clone()).is_ok() {
            self.is_over.store(true, Ordering::Release);
            tracing::debug!(group = %self.name(), rank = self.rank(), %error, "the host backend is over");
            if let Some(net) = self.net.get() {
                self.announce(net, FAILED, &failure::encode(&error));
            }
            self.connected.fail(error.clone());
            if self.net.get().is_none() {
                // The progress thread still meets the others, and may do so for long.
                self.abandon();
            }
            ring(&self.bell);
        } else if matches!(self.failure.get(), Some(Error::ShutDown { .. })) {
            let _ = self.heard_since.set(error.clone());
        }
        self.failure.get().cloned().unwrap_or(error)
    }

    /// The same, and nothing more comes of messages. But who was shut down still hears how the others leave, whatever becomes of one of
    /// them.
    pub(super) fn fail_with_mail(&self, mailbox: &mut Mailbox, error: Error) -> Error {
        let error = self.fail(error);
        match error {
            Error::ShutDown { .. } => mailbox.fail_all(&error),
            _ => mailbox.end(&error),
        }
        error
    }

    /// What a rank has failed with that this one, which has come to the end, needs nothing of any more.
    pub(super) fn heard_since(&self, net: &Net) -> Option<Error> {
        let failed = net.island.iter().find_map(|neighbour| {
            let (state, record) = neighbour.segment.control().ended.0.heard();
            let is_gone = || {
                net.controls
                    .iter()
                    .any(|one| one.rank == neighbour.rank && one.is_gone.load(Ordering::Relaxed))
            };
            match state {
                FAILED => Some(failure::decode(&record, neighbour.rank, self.name())),
                LIVING if is_gone() => Some(failure::process_ended(neighbour.rank, self.name())),
                _ => None,
            }
        });
        failed.or_else(|| self.heard_since.get().cloned())
    }

    /// What this rank, which has come to the end as all others have, hears there: a failure of another one, or that it has called
    /// something else, or more. Ranks do not wait for one another in all calls, and compare nothing in those.
    pub(super) fn heard_at_the_end(&self, net: &Net) -> Option<Error> {
        // Whoever looks for messages has noted what was wrong with one before another thread may look.
        let in_messages = net.mailbox().differs_at_the_end(&self.history);
        let in_steps = || net.engine.try_lock().ok()?.differs_at_the_end(self.name());
        let in_the_last = || {
            (0..self.group.world_size).filter(|rank| *rank != self.rank()).find_map(|rank| {
                let (own, other) = (self.history.last(), self.last_call(net, rank)?);
                let there = other.and_then(|other| Some((self.history.at(&other)?, other)));
                let ranks = (self.rank(), rank);
                match there.filter(|(own, other)| own != other) {
                    Some((own, other)) => Some(differ(self.name(), ranks, &own, &other)),
                    None => differ_in_number(self.name(), ranks, own, other),
                }
            })
        };
        self.heard_since(net).or(in_messages).or_else(in_steps).or_else(in_the_last)
    }

    /// The last collective of a rank that was shut down, if it has made one.
    fn last_call(&self, net: &Net, rank: usize) -> Option<Option<Fingerprint>> {
        match net.island.iter().find(|neighbour| neighbour.rank == rank) {
            Some(neighbour) => last_call(neighbour),
            None => net.mailbox().last_call(rank),
        }
    }

    /// That a rank, which is needed for the call `own`, has left: it may have called something else in its place.
    pub(super) fn has_left(&self, net: &Net, rank: usize, state: u32, own: &Fingerprint) -> Error {
        match self.last_call(net, rank).flatten().filter(|last| last.is_at(own) && last != own) {
            Some(other) => differ(self.name(), (self.rank(), rank), own, &other),
            None => failure::has_left(rank, self.name(), state),
        }
    }

    /// Why it takes no calls any more, if so: its own failure, or that of another rank of the island, though nobody here has heard of that
    /// yet.
    #[inline]
    pub(super) fn refusal(&self) -> Option<Error> {
        let is_told = |net: &Net| net.own.segment.control().is_told.0.load(Ordering::Acquire) != 0;
        match self.net.get().filter(|net| is_told(net)) {
            Some(net) if !self.is_over() => self.look_around(net).err(),
            _ => self.failure(),
        }
    }

    /// Whether a collective, of which this rank has all that it needs, has ended well: not if it, or one before it, has been ended by a
    /// deadline meanwhile, as this rank has heard or can see in its island, nor if a rank of the island had failed before it came to it.
    ///
    /// # Errors
    ///
    /// That failure.
    #[inline]
    pub(super) fn has_ended_well(&self, net: &Net, sequence: u64) -> Result<(), Error> {
        let is_told = || net.own.segment.control().is_told.0.load(Ordering::Acquire) != 0;
        if self.is_over() || is_told() { self.ended_before(net, sequence) } else { Ok(()) }
    }

    /// What a rank has come to counts, also if it has failed behind that.
    #[cold]
    fn ended_before(&self, net: &Net, sequence: u64) -> Result<(), Error> {
        let is_late = |error: &Error| match error {
            Error::Timeout { operation, sequence: its, .. } => {
                !operation.is_point_to_point() && *its <= sequence
            }
            _ => false,
        };
        if let Some(error) = self.failure().filter(is_late) {
            return Err(error);
        }
        for neighbour in net.island.iter().filter(|neighbour| neighbour.rank != self.rank()) {
            let control = neighbour.segment.control();
            let (state, record) = control.ended.0.heard();
            if state != FAILED {
                continue;
            }
            let error = failure::decode(&record, neighbour.rank, self.name());
            if is_late(&error) || control.position.0.load(Ordering::Acquire) <= sequence {
                return Err(self.fail(error));
            }
        }
        Ok(())
    }

    /// The calls that wait for their turn fail, if it is over. They have not been begun, so nobody uses their memory.
    pub(super) fn abandon(&self) {
        let Some(error) = self.failure() else { return };
        let (jobs, posts) = {
            let mut queue = lock(&self.queue);
            self.queued.store(0, Ordering::SeqCst);
            (std::mem::take(&mut queue.jobs), std::mem::take(&mut queue.posts))
        };
        jobs.into_iter().chain(posts).for_each(|job| job.ticket.fail(error.clone()));
    }

    /// Looks for sends and receives that should have ended before the ranks were connected. (The group sees to collectives.)
    pub(super) fn look_for_late_before_it_is_connected(&self, now: Instant) {
        if self.net.get().is_some() {
            return;
        }
        let late = lock(&self.queue).posts.iter().find_map(|job| Some((job.late(now)?, job.tag())));
        if let Some(((fingerprint, waited), tag)) = late {
            self.fail(Error::Timeout {
                operation: fingerprint.named(),
                sequence: fingerprint.sequence,
                group: Arc::clone(self.name()),
                waited,
                missing: lock(&self.awaited).clone(),
                stopped: Vec::new(),
                elsewhere: Vec::new(),
                tag: tag.and_then(Tag::of),
            });
        }
    }

    /// No calls are made any more; that is no failure.
    pub(super) fn close(&self, error: Error) {
        if self.failure.set(error).is_ok() {
            self.is_over.store(true, Ordering::Release);
            ring(&self.bell);
        }
    }

    /// Tells the island of a failure that came before it was there.
    pub(super) fn say_failure(&self, net: &Net) {
        if let Some(error) = self.failure() {
            self.announce(net, FAILED, &failure::encode(&error));
        }
    }

    /// Says in the own segment how this rank has ended, and wakes the island to look.
    pub(super) fn announce(&self, net: &Net, state: u32, record: &[u8]) {
        net.own.segment.control().ended.0.say(state, record);
        if state == FAILED {
            // Before this rank's caller hears of it: from then on no call ends well on another one.
            for neighbour in net.island.iter().filter(|neighbour| neighbour.rank != self.rank()) {
                neighbour.segment.control().is_told.0.store(1, Ordering::Release);
            }
            fence(Ordering::SeqCst);
        }
        for neighbour in &net.island {
            neighbour.ring_for_mail();
            let waits = &neighbour.segment.control().waits.0;
            fence(Ordering::SeqCst);
            if waits.for_place.load(Ordering::Relaxed) != 0 {
                waits.bell.fetch_add(1, Ordering::Relaxed);
                ticket::wake(&waits.bell, true);
            }
        }
    }

    /// Takes and sends messages, if no other thread is at it.
    ///
    /// # Errors
    ///
    /// A failure that ends everything; it is over then.
    pub(super) fn pump(&self, net: &Net) -> Result<bool, Error> {
        let mut mailbox = match net.mailbox.try_lock() {
            Ok(mailbox) => mailbox,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return Ok(false),
        };
        match mailbox.pump(&self.history) {
            Ok(moved) => Ok(moved),
            Err(error) => Err(self.fail_with_mail(&mut mailbox, error)),
        }
    }

    /// A caller looks for messages: others need not wake the progress thread for them. It is woken once, to hear that.
    pub(super) fn attend(&self, net: &Net) {
        if self.attended.load(Ordering::Relaxed) {
            return;
        }
        self.attended.store(true, Ordering::Relaxed);
        let state = &net.own.segment.control().mail.0.state;
        // Should it fall asleep just now, whoever sends the next message wakes it.
        if state.load(Ordering::Relaxed) == ASLEEP {
            ring(&self.bell);
        }
    }

    /// Whether a caller has looked for messages since this was asked last.
    pub(super) fn was_attended(&self) -> bool {
        self.attended.swap(false, Ordering::Relaxed)
    }

    /// Whether a rank of the island has ended and nobody here has seen it.
    pub(super) fn has_news(&self, net: &Net, mailbox: &Mailbox) -> bool {
        net.island.iter().any(|neighbour| {
            let ended = &neighbour.segment.control().ended.0;
            neighbour.rank != self.rank()
                && ended.state.load(Ordering::Acquire) != LIVING
                && !mailbox.is_gone(neighbour.rank)
        })
    }

    /// Notes which ranks of the island have ended, for one that was shut down: it needs nothing of them, and is not to look again.
    pub(super) fn note_ends(&self, net: &Net) {
        for neighbour in net.island.iter().filter(|neighbour| neighbour.rank != self.rank()) {
            let state = neighbour.segment.control().ended.0.state.load(Ordering::Acquire);
            let mut mailbox = net.mailbox();
            if state == LIVING || mailbox.is_gone(neighbour.rank) {
                continue;
            }
            let how = (state, last_call(neighbour).flatten());
            if let Err(error) = mailbox.neighbour_left(neighbour.rank, how, &self.history) {
                tracing::debug!(%error, rank = self.rank(), "what a rank sent before it ended was of no use");
                mailbox.note_left(neighbour.rank, state);
                if matches!(error, Error::Mismatch { .. }) {
                    self.fail(error);
                }
            }
        }
    }

    /// Looks how the ranks of the island are: one that has failed ends this one too, and one that has left ends what still
    /// needs a message of it.
    ///
    /// # Errors
    ///
    /// That.
    pub(super) fn look_around(&self, net: &Net) -> Result<(), Error> {
        for neighbour in &net.island {
            let ended = &neighbour.segment.control().ended.0;
            match ended.state.load(Ordering::Acquire) {
                _ if neighbour.rank == self.rank() => {}
                LIVING => {}
                FAILED => {
                    let (_, record) = ended.heard();
                    return Err(self.fail(failure::decode(&record, neighbour.rank, self.name())));
                }
                state => {
                    let mut mailbox = net.mailbox();
                    let how = (state, last_call(neighbour).flatten());
                    if let Err(error) = mailbox.neighbour_left(neighbour.rank, how, &self.history) {
                        return Err(self.fail_with_mail(&mut mailbox, error));
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks for calls that should have ended. Whoever waits elsewhere does so for all.
    ///
    /// # Errors
    ///
    /// The failure of one.
    pub(super) fn look_for_late(&self, net: &Net, now: Instant, in_hand: Option<u64>) -> Result<(), Error> {
        let late = lock(&self.queue).jobs.iter().find_map(|job| job.late(now));
        if let Some((fingerprint, waited)) = late {
            return Err(self.late(net, &fingerprint, waited, in_hand));
        }
        let mut mailbox = net.mailbox();
        match mailbox.late(now) {
            None => Ok(()),
            Some(error) => Err(self.fail_with_mail(&mut mailbox, error)),
        }
    }

    /// When the first of the calls that nobody waits in must have ended.
    pub(super) fn first_end(&self, net: &Net) -> Option<Instant> {
        let queued = lock(&self.queue).jobs.iter().filter_map(Job::end).min();
        queued.into_iter().chain(net.mailbox().first_end()).min()
    }

    /// A collective has not ended in time. Where another one is in hand, before which it does not begin, those are missing who have not
    /// come to that.
    pub(super) fn late(
        &self,
        net: &Net,
        fingerprint: &Fingerprint,
        waited: Duration,
        in_hand: Option<u64>,
    ) -> Error {
        let position = |rank: usize| {
            let neighbour = net.island.iter().find(|neighbour| neighbour.rank == rank);
            neighbour.map_or_else(
                || net.mailbox().position(rank),
                |neighbour| neighbour.segment.control().position.0.load(Ordering::Acquire),
            )
        };
        let not_at = |sequence: u64| -> Vec<usize> {
            let others = (0..self.group.world_size).filter(|rank| *rank != self.rank());
            others.filter(|rank| position(*rank) <= sequence).collect()
        };
        let missing = in_hand.map(not_at).filter(|missing| !missing.is_empty());
        let missing = missing.unwrap_or_else(|| not_at(fingerprint.sequence));
        self.fail(Error::Timeout {
            operation: fingerprint.named(),
            sequence: fingerprint.sequence,
            group: Arc::clone(self.name()),
            waited,
            missing,
            stopped: stopped(&net.members, self.rank()),
            elsewhere: Vec::new(),
            tag: None,
        })
    }

    /// A collective begins. The caller has the engine.
    pub(super) fn begin(&self, net: &Net, fingerprint: Fingerprint) {
        self.history.begin(fingerprint);
        net.own.segment.control().position.0.store(fingerprint.sequence + 1, Ordering::Release);
    }

    /// How deep the progress thread sleeps when it waits for a step.
    pub(super) const STEP: u32 = IN_STEP;
}
