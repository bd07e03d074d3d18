//! The progress thread: it connects the ranks, makes the calls that were not waited for, and sees to messages while nobody
//! else does. It sleeps on everything that can come: its bell, the sockets of the island's processes (whose end is a
//! process's end), connections.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};

use meshreduce_store::clock::Deadline;
use meshreduce_store::sockets::hex;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::collectives::Engine;
use super::connect::{Connecting, Listening};
use super::failure::{self, DROPPED, LIVING, SHUT_DOWN};
use super::island::Island;
use super::mailbox::{Mailbox, drain};
use super::place::{self, Islands, Place};
use super::ring::{Reader, Writer};
use super::segment::{ASLEEP, AWAKE};
use super::shared::{Net, Shared, lock};
use super::wire::{Tcp, Wire};
use super::{HostFactory, run};
use crate::backend::{BackendContext, UntilEnd};
use crate::error::Error;

/// Longest sleep in one piece.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long it leaves connections to a caller that sees to them, before it looks again.
const WITH_DRIVER: Duration = Duration::from_millis(1);
/// How long it looks for messages before it sleeps, while sends and receives go on.
const SPIN: Duration = Duration::from_micros(50);
/// How long the end waits for what is still to be said to be taken: what got lost on the way is sent again after 200 ms at the earliest
/// (Linux's TCP_RTO_MIN), and once more after 400 ms.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a rank that could not be connected waits for the others to tell them: who does not come by then has died, or has come too
/// late. So long at least is waited for connections, however late the last rank came.
const GIVEN_UP: Duration = Duration::from_secs(3);

/// How long is waited at least for connections, and for what is said of them, where ranks may take so long to meet.
fn least(timeout: Duration) -> Duration {
    GIVEN_UP.min(timeout / 2)
}

/// How long the progress thread may go on behind that time, if nothing but the other ranks keeps it: with connections, with what the others
/// say of theirs, and once more as long, since others may have come later.
pub(super) fn longest_after(timeout: Duration) -> Duration {
    4 * least(timeout)
}

/// All that the progress thread does.
pub(super) fn main(shared: &Shared, context: &BackendContext, factory: &HostFactory) {
    match connect(shared, context, factory) {
        Ok(net) => {
            let _ = shared.net.set(net);
            shared.connected.part_ended(None);
        }
        Err(error) => {
            shared.fail(error);
        }
    }
    let Some(net) = shared.net.get() else { return shared.abandon() };
    let mut has_ended = false;
    while !shared.stops.load(Ordering::Acquire) {
        if let Some(error) = shared.failure() {
            if !has_ended {
                end(shared, net, &error);
                has_ended = true;
            }
            shared.abandon();
            let _ = shared.pump(net);
            if !shared.has_failed() {
                shared.note_ends(net);
            }
            let _ = sleep(shared, net, ASLEEP, LONGEST, &mut || false);
            continue;
        }
        let worked = run::post_early(shared, net) | shared.pump(net).unwrap_or(true) | work(shared, net);
        if !worked && shared.failure().is_none() {
            rest(shared, net);
        }
    }
    leave(shared, net);
}

/// Meets the others and connects with them.
fn connect(shared: &Shared, context: &BackendContext, factory: &HostFactory) -> Result<Net, Error> {
    let not_made = |error| context.not_made(&shared.backend, error);
    let (host_id, interface) = (factory.host_id.as_deref(), factory.interface.as_deref());
    // One for all that follows: whoever waits for the connections is told why there are none while he still waits.
    let (end, least) = (Deadline::after(context.timeout), least(context.timeout));
    let listening = Listening::open(Arc::clone(&shared.bell), host_id, interface).map_err(|error| {
        context.until_left(&shared.is_left).decline(&error.to_string());
        not_made(error)
    })?;
    let told = noting_who_comes(shared, &context.until_left(&shared.is_left).until_death());
    let told = told.meet(&shared.backend, &listening.place.encode());
    let told = told.map_err(|error| context.dead_member.look().unwrap_or(error))?;
    lock(&shared.awaited).clear();
    let places: Result<Vec<_>, _> = told.iter().map(|told| Place::decode(told)).collect();
    let places = places.map_err(|error| context.not_made(&shared.backend, error))?;
    let rank = shared.rank();
    let islands = Islands::of(&places);
    if islands.all.len() > 1 {
        let addresses = &listening.place.addresses;
        tracing::info!(group = %shared.name(), rank, ?addresses, "listens for the ranks of other hosts");
    }
    let connected = Connecting::new(rank, &listening, &places, &islands)
        .and_then(|connecting| Ok(connecting.finish(end.left().max(least), &shared.awaited)?));
    // One that was aborted meanwhile goes on to here, where it can say so. Nobody begins, or gives up what the others reach it by,
    // before all are connected or know why not. They meet where nobody but those who have met before knows to come: another group
    // may be made over the same keys at the same time.
    let said = connected.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let said = shared.failure().map_or(said, |error| error.to_string());
    let first = hex(&places[0].name);
    let below = context.below(&format!("connected/{first}"))?;
    let _ = shared.meeting.set(below.clone());
    // Others may wait for their connections to the end, and then say who is missing.
    let timeout = if connected.is_err() { least } else { end.left().max(least).saturating_add(least) };
    let context = &BackendContext { timeout, ..below.until_left(&shared.is_left) };
    let told = context.meet(&shared.backend, said.as_bytes());
    let connected = connected.map_err(not_made)?;
    if let Some((rank, why)) = told?.iter().enumerate().find(|(_, why)| !why.is_empty()) {
        let why = format!("rank {rank}: {}", String::from_utf8_lossy(why));
        return Err(context.not_made(&shared.backend, why));
    }
    let wire = |peer: usize| match &connected.sockets[peer] {
        _ if peer == rank => Wire::Nowhere,
        Some(socket) => Wire::Tcp(Tcp::new(Arc::clone(socket))),
        None => {
            let place = islands.of[peer].1;
            let neighbour = connected.island[place].clone();
            let out = Writer::new(Arc::clone(&neighbour.segment), islands.of[rank].1);
            Wire::Shared { out, inn: Reader::new(Arc::clone(&connected.own.segment), place), neighbour }
        }
    };
    let wires = (0..places.len()).map(wire).collect();
    let mailbox = Mailbox::new(rank, Arc::clone(shared.name()), wires);
    let island = Island::new(connected.island.clone(), islands.of[rank].1);
    let engine = Engine::new(island, rank, places.len(), islands.are_blocks(), factory.way);
    let fits = place::fits(&places, rank);
    let members = places.into_iter().map(|place| place.member).collect();
    Ok(Net::new(connected, members, (islands, fits), mailbox, engine))
}

/// `context` with a store in which whoever meets the others there looks who has not come, when somebody asks.
fn noting_who_comes(shared: &Shared, context: &BackendContext) -> BackendContext {
    let (asks, awaited) = (Arc::clone(&shared.asks_who_comes), Arc::clone(&shared.awaited));
    let absent = context.absent.clone();
    let look = move || {
        if asks.swap(false, Ordering::SeqCst) {
            let absent = absent.look();
            *lock(&awaited) = absent;
        }
        None
    };
    BackendContext { store: Arc::new(UntilEnd::when(Arc::clone(&context.store), look)), ..context.clone() }
}

/// Makes the call that has waited longest, if no caller makes one.
fn work(shared: &Shared, net: &Net) -> bool {
    let mut queue = lock(&shared.queue);
    if queue.jobs.is_empty() {
        return false;
    }
    let mut engine = match net.engine.try_lock() {
        Ok(engine) => engine,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // Whoever has it rings when it is done.
        Err(TryLockError::WouldBlock) => return false,
    };
    let Some(job) = queue.jobs.pop_front() else { return false };
    shared.queued.store(queue.jobs.len(), Ordering::SeqCst);
    drop(queue);
    match run::job(shared, net, &mut engine, &job) {
        Ok(()) => job.ticket.part_ended(None),
        Err(error) => job.ticket.fail(error),
    }
    true
}

/// Nothing is to be done now: looks for a moment, then sleeps until something comes or should have ended.
fn rest(shared: &Shared, net: &Net) {
    let now = Instant::now();
    if shared.look_for_late(net, now, None).is_err() || shared.look_around(net).is_err() {
        return;
    }
    if net.fits && net.mailbox().is_busy() && shared.drivers.load(Ordering::SeqCst) == 0 {
        while now.elapsed() < SPIN {
            if shared.pump(net).unwrap_or(true) {
                return;
            }
            std::hint::spin_loop();
        }
    }
    let left = shared.first_end(net).map_or(LONGEST, |end| end.saturating_duration_since(now));
    let has_work = || {
        let queue = lock(&shared.queue);
        !queue.posts.is_empty() || (!queue.jobs.is_empty() && net.engine.try_lock().is_ok())
    };
    let _ = sleep(shared, net, ASLEEP, left, &mut { has_work });
}

/// It is over: what goes on ends, and the others hear of it.
fn end(shared: &Shared, net: &Net, error: &Error) {
    if shared.has_failed() {
        // It may have failed while nobody could be told of it.
        shared.say_failure(net);
    }
    let mut mailbox = net.mailbox();
    match error {
        Error::ShutDown { .. } => {
            // What was begun at that very moment.
            mailbox.fail_all(error);
            mailbox.leave(SHUT_DOWN, shared.history.last());
        }
        _ => mailbox.end(error),
    }
    drop(mailbox);
    shared.abandon();
}

/// The backend is dropped.
fn leave(shared: &Shared, net: &Net) {
    if shared.failure().is_none() {
        let is_idle = lock(&shared.queue).jobs.is_empty() && !net.mailbox().is_busy();
        if is_idle {
            shared.close(Error::ShutDown { group: Arc::clone(shared.name()) });
            shared.announce(net, DROPPED, &[]);
            net.mailbox().leave(DROPPED, None);
        } else {
            let error = shared.fail(failure::dropped(shared.name()));
            end(shared, net, &error);
        }
    } else if let Some(error) = shared.failure() {
        // If it has not been said yet.
        end(shared, net, &error);
    }
    shared.abandon();
    drain(&net.mailbox, DRAIN_TIMEOUT);
}

/// Sleeps until something comes, or `ready`, at most `most`; may return earlier. `depth` says what wakes it.
///
/// # Errors
///
/// What ends everything.
pub(super) fn sleep(
    shared: &Shared,
    net: &Net,
    depth: u32,
    most: Duration,
    ready: &mut dyn FnMut() -> bool,
) -> Result<(), Error> {
    let state = &net.own.segment.control().mail.0.state;
    // While callers see to messages nobody need wake this thread for them; who only looks for one sees to no others.
    let sees_to_all = || shared.drivers.load(Ordering::SeqCst) > 0;
    let looks = || !net.mailbox().is_busy() && shared.was_attended();
    let is_attended = depth == ASLEEP && (sees_to_all() || looks());
    state.store(if is_attended { AWAKE } else { depth }, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let is_over = shared.has_failed();
    let stops = shared.stops.load(Ordering::SeqCst);
    let has_mail = || {
        let mailbox = net.mailbox();
        !mailbox.is_quiet() || (!is_over && shared.has_news(net, &mailbox))
    };
    if ready() || stops || (is_over && depth != ASLEEP) || has_mail() {
        state.store(AWAKE, Ordering::SeqCst);
        return Ok(());
    }
    let most = if is_attended { most.min(WITH_DRIVER) } else { most };
    let result = watch(shared, net, most, is_over);
    state.store(AWAKE, Ordering::SeqCst);
    result
}

fn watch(shared: &Shared, net: &Net, most: Duration, is_over: bool) -> Result<(), Error> {
    let has_driver = shared.drivers.load(Ordering::SeqCst) > 0;
    let most = if has_driver { most.min(WITH_DRIVER) } else { most };
    let mut watched = vec![PollFd::new(&shared.bell, PollFlags::IN)];
    let mut controls = Vec::new();
    if !is_over {
        for control in net.controls.iter().filter(|control| !control.is_gone.load(Ordering::Relaxed)) {
            controls.push(control);
            watched.push(PollFd::new(&control.socket, PollFlags::IN));
        }
    }
    if !has_driver {
        for (interest, socket) in net.mailbox().interests().zip(&net.sockets) {
            if let (Some(writes), Some(socket)) = (interest, socket) {
                let reads = if is_over { PollFlags::empty() } else { PollFlags::IN };
                let flags = if writes { reads | PollFlags::OUT } else { reads };
                if !flags.is_empty() {
                    watched.push(PollFd::new(socket, flags));
                }
            }
        }
    }
    let most = most.min(LONGEST);
    let time = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
    // Interrupted: looked at again.
    let _ = rustix::event::poll(&mut watched, Some(&time));
    let rang = !watched[0].revents().is_empty();
    let ended: Vec<_> = controls
        .into_iter()
        .zip(&watched[1..])
        .filter(|(_, watched)| !watched.revents().is_empty())
        .map(|(control, _)| control)
        .collect();
    drop(watched);
    if rang {
        quiet(&shared.bell);
    }
    for control in ended {
        // Nobody says anything there.
        let is_open = matches!((&control.socket).read(&mut [0; 16]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        if is_open {
            continue;
        }
        control.is_gone.store(true, Ordering::Relaxed);
        let neighbour = net.island.iter().find(|neighbour| neighbour.rank == control.rank);
        let ended =
            neighbour.map(|neighbour| neighbour.segment.control().ended.0.state.load(Ordering::Acquire));
        if ended == Some(LIVING) {
            return Err(shared.fail(failure::process_ended(control.rank, shared.name())));
        }
    }
    Ok(())
}

/// Takes the rings off a bell.
fn quiet(bell: &OwnedFd) {
    // Somebody else may have taken them.
    let _ = rustix::io::read(bell, &mut [0_u8; 8]);
}
