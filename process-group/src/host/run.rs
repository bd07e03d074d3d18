//! Calls as they are made: in the caller's thread where nothing is before them, or by the progress thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::collectives::Engine;
use super::fingerprint::Fingerprint;
use super::frame::{Channel, EAGER};
use super::job::{self, Job};
use super::mailbox::{Now, Post, Span};
use super::shared::{Net, Shared, lock};
use super::ticket::Ticket;
use super::wait::{Driving, Wait};
use super::wire;
use crate::backend::{Made, Request};
use crate::call::Call;
use crate::clock;
use crate::error::Error;
use crate::types::Operation;
use crate::work::{Completion, Outcome, Work};

/// How often a receive looks for a short message before it is begun as others are: without a pause, and with one.
const LOOKS: (u32, u32) = (200, 1000);
/// The same where ranks have to share cores.
const LOOKS_CROWDED: (u32, u32) = (0, 20);
/// How long a send or receive that is waited for spins, and how long it then gives way again and again before it sleeps.
const SPIN: Duration = Duration::from_micros(150);
const GIVE_WAY: Duration = Duration::from_millis(2);
/// How long one sleeps at most before it looks again.
const SLICE: Duration = Duration::from_millis(20);

/// How much longer than its deadline a call waits at most for connections that are still being made, and never more than as long
/// again: who is missing is known to them, and they give up at the same time where the group's timeout is as long as the call's
/// deadline.
const GRACE: Duration = Duration::from_secs(5);

/// The ranks' connections, waiting for them.
fn connected<'a>(shared: &'a Shared, call: &Call<'_>, request: &Request) -> Result<&'a Net, Error> {
    if let Some(net) = shared.net.get() {
        return Ok(net);
    }
    let end = job::end(request);
    let mut done = shared.connected.wait(end.map(|(end, _)| end))?;
    if let Some((end, waited)) = end.filter(|_| done.is_none()) {
        shared.asks_who_comes.store(true, Ordering::SeqCst);
        done = shared.connected.wait(Some(end.checked_add(GRACE.min(waited)).unwrap_or(end)))?;
    }
    match shared.net.get().filter(|_| done.is_some()) {
        Some(net) => Ok(net),
        None => {
            let missing = lock(&shared.awaited).clone();
            let late = request.timed_out(call.operation(), shared.name(), missing);
            Err(shared.fail(late.with_tag(call.tag())))
        }
    }
}

/// Makes a call.
///
/// # Safety
///
/// As [`crate::Backend::start`].
pub(super) unsafe fn make(shared: &Arc<Shared>, call: &Call<'_>, request: &Request) -> Result<Made, Error> {
    if let Some(error) = shared.refusal() {
        return Err(error);
    }
    if matches!(call, Call::Batch([])) {
        return Ok(Made::Ended(Outcome::default()));
    }
    // SAFETY: the caller's promise.
    unsafe {
        if call.is_point_to_point() {
            return messages(shared, call, request);
        }
        if request.blocking {
            let net = match shared.net.get() {
                Some(net) => net,
                None => connected(shared, call, request)?,
            };
            match at_once(shared, net, call, request) {
                Some(Ok(())) => return Ok(Made::Ended(Outcome::default())),
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
    }
    let ticket = Arc::new(Ticket::new(1));
    let job = Job::new(call, request, Arc::clone(&ticket), shared.group.world_size);
    enqueue(shared, job, false)?;
    finish(shared, ticket, request.blocking)
}

/// Waits, or not.
fn finish(shared: &Arc<Shared>, ticket: Arc<Ticket>, blocking: bool) -> Result<Made, Error> {
    if !blocking {
        return Ok(Made::GoesOn(Work::pending(&shared.backend, ticket)));
    }
    // Its deadline is the progress thread's business.
    let outcome = ticket.wait(None)?.unwrap_or_default();
    Ok(Made::Ended(outcome))
}

fn enqueue(shared: &Shared, job: Job, is_message: bool) -> Result<(), Error> {
    let mut queue = lock(&shared.queue);
    if let Some(error) = shared.failure() {
        return Err(error);
    }
    if is_message {
        queue.posts.push(job);
        shared.early.store(true, Ordering::SeqCst);
    } else {
        queue.jobs.push_back(job);
        shared.queued.store(queue.jobs.len(), Ordering::SeqCst);
    }
    drop(queue);
    wire::ring(&shared.bell);
    Ok(())
}

/// Makes a collective in this thread; `None`: others are before it.
///
/// # Safety
///
/// As [`make`].
unsafe fn at_once(
    shared: &Shared,
    net: &Net,
    call: &Call<'_>,
    request: &Request,
) -> Option<Result<(), Error>> {
    // What this thread has called before is among them, or is over: the progress thread has the engine when it takes one out.
    if shared.queued.load(Ordering::SeqCst) > 0 {
        return None;
    }
    let mut engine = net.engine.try_lock().ok()?;
    let mut make = |call: &Call<'_>, index| {
        // SAFETY: the caller's promise.
        unsafe { one(shared, net, &mut engine, call, index, request, false) }
    };
    let result = match call {
        Call::Batch(calls) => calls.iter().enumerate().try_for_each(|(index, call)| make(call, index)),
        call => make(call, 0),
    };
    drop(engine);
    if shared.queued.load(Ordering::SeqCst) > 0 {
        wire::ring(&shared.bell);
    }
    Some(result)
}

/// # Safety
///
/// As [`make`].
unsafe fn one(
    shared: &Shared,
    net: &Net,
    engine: &mut Engine,
    call: &Call<'_>,
    index: usize,
    request: &Request,
    is_progress: bool,
) -> Result<(), Error> {
    let fingerprint = Fingerprint::of(call, request.sequence, index, shared.group.world_size);
    shared.begin(net, fingerprint);
    let wait = Wait { shared, net, is_progress, fingerprint, request };
    // SAFETY: the caller's promise.
    unsafe { engine.run(call, &wait) }?;
    shared.has_ended_well(net, request.sequence)
}

/// Makes a call that has waited, in the progress thread.
pub(super) fn job(shared: &Shared, net: &Net, engine: &mut Engine, job: &Job) -> Result<(), Error> {
    if let Some(error) = shared.refusal() {
        return Err(error);
    }
    job.calls().enumerate().try_for_each(|(index, call)| {
        // SAFETY: the promise of `make`, which holds until the job's ticket has ended.
        unsafe { one(shared, net, engine, &call, index, &job.request, true) }
    })
}

/// Begins the sends and receives that were called before the ranks were connected; whether there were any.
pub(super) fn post_early(shared: &Shared, net: &Net) -> bool {
    if !shared.early.load(Ordering::SeqCst) {
        return false;
    }
    // No others are begun, by whatever thread, before these are.
    let mut queue = lock(&shared.queue);
    let any = !queue.posts.is_empty();
    queue.posts.drain(..).for_each(|job| begin_early(shared, net, &job));
    shared.early.store(false, Ordering::SeqCst);
    any
}

/// Begins the sends and receives of a job.
fn begin_early(shared: &Shared, net: &Net, job: &Job) {
    let begun = job.calls().try_for_each(|call| {
        // SAFETY: the promise of `make`, which holds until the job's ticket has ended.
        unsafe { post(shared, net, &call, &job.request, &job.ticket) }
    });
    if let Err(error) = begun {
        // Those of a batch that have been begun use memory which is the caller's again once the ticket has ended.
        net.mailbox().cancel(&job.ticket);
        job.ticket.fail(error);
    }
}

/// # Safety
///
/// As [`make`], until the ticket has ended or its messages are cancelled.
unsafe fn post(
    shared: &Shared,
    net: &Net,
    call: &Call<'_>,
    request: &Request,
    ticket: &Arc<Ticket>,
) -> Result<(), Error> {
    let (sends, tensor, peer, tag) = match *call {
        Call::Send { input, peer, tag } => (true, input, Some(peer), tag),
        Call::Recv { output, peer, tag } => (false, output, peer, tag),
        _ => unreachable!("only sends and receives are messages"),
    };
    let fingerprint = Fingerprint::of(call, request.sequence, 0, shared.group.world_size);
    let (channel, span, ticket) = (Channel::Peer, Span::of(&tensor), Arc::clone(ticket));
    let post = Post { sends, peer, channel, tag, fingerprint, span, ticket, end: job::end(request) };
    let mut mailbox = net.mailbox();
    if let Some(error) = shared.failure() {
        return Err(error);
    }
    // SAFETY: the caller's promise.
    unsafe { mailbox.post(post) }.map_err(|error| shared.fail_with_mail(&mut mailbox, error))
}

/// # Safety
///
/// As [`make`].
unsafe fn messages(shared: &Arc<Shared>, call: &Call<'_>, request: &Request) -> Result<Made, Error> {
    let blocking = request.blocking;
    if blocking && let Some(net) = shared.net.get() {
        post_early(shared, net);
        // SAFETY: the caller's promise.
        match unsafe { short(shared, net, call, request.sequence) } {
            Ok(None) => {}
            Ok(Some(outcome)) => return Ok(Made::Ended(outcome)),
            Err(error) => return Err(error),
        }
    }
    let calls = if let Call::Batch(calls) = call { calls } else { std::slice::from_ref(call) };
    let ticket = Arc::new(Ticket::new(calls.len()));
    let net = match shared.net.get() {
        Some(net) => net,
        None if blocking => connected(shared, call, request)?,
        None => {
            let job = Job::new(call, request, Arc::clone(&ticket), shared.group.world_size);
            enqueue(shared, job, true)?;
            return finish(shared, ticket, false);
        }
    };
    // What was called before comes first.
    post_early(shared, net);
    for call in calls {
        // SAFETY: the caller's promise; on failure nothing goes on.
        if let Err(error) = unsafe { post(shared, net, call, request, &ticket) } {
            net.mailbox().cancel(&ticket);
            return Err(error);
        }
    }
    let pumped = shared.pump(net);
    if !blocking {
        let ended = pumped.is_ok() && ticket.is_complete();
        if ended {
            return Ok(Made::Ended(ticket.result()?.unwrap_or_default()));
        }
        // What is not done is the progress thread's business now.
        wire::ring(&shared.bell);
        return Ok(Made::GoesOn(Work::pending(&shared.backend, ticket)));
    }
    let result = wait(shared, net, &ticket);
    if result.is_err() {
        net.mailbox().cancel(&ticket);
    }
    result.map(Made::Ended)
}

/// Makes a send or a receive of a short message between neighbours, if nothing is in its way; `None`: nothing was begun.
///
/// # Safety
///
/// As [`make`].
unsafe fn short(
    shared: &Shared,
    net: &Net,
    call: &Call<'_>,
    sequence: u64,
) -> Result<Option<Outcome>, Error> {
    let (operation, tensor, peer, tag) = match call {
        Call::Send { input, peer, tag } => (Operation::Send, input, *peer, *tag),
        Call::Recv { output, peer: Some(peer), tag } => (Operation::Recv, output, *peer, *tag),
        _ => return Ok(None),
    };
    let span = Span::of(tensor);
    if span.bytes > EAGER || !net.is_near(peer) {
        return Ok(None);
    }
    let fingerprint = Fingerprint::of_message(operation, tensor, sequence);
    if operation == Operation::Send {
        // SAFETY: the caller's promise.
        let sent = unsafe { net.mailbox().send_now(peer, tag, fingerprint, span) };
        return ended(shared, net, sent).map(|sent| sent.then(Outcome::default));
    }
    shared.attend(net);
    let (eager, looks) = if net.fits { LOOKS } else { LOOKS_CROWDED };
    let mut look = 0;
    while look < eager + looks {
        // SAFETY: the caller's promise.
        let received = unsafe { net.mailbox().receive_now(peer, tag, &fingerprint, span) };
        let turn = match ended(shared, net, received)? {
            Now::Received => return Ok(Some(Outcome::from_rank(peer))),
            Now::Otherwise => break,
            Now::NothingCame(turn) => turn,
        };
        // Without the mailbox, which others may want.
        while look < eager + looks && !turn.has_come_with(&net.own.segment, span.bytes) {
            look += 1;
            if look > eager {
                std::hint::spin_loop();
            }
        }
    }
    Ok(None)
}

/// An error of the mailbox's ends everything.
fn ended<T>(shared: &Shared, net: &Net, result: Result<T, Error>) -> Result<T, Error> {
    result.map_err(|error| shared.fail_with_mail(&mut net.mailbox(), error))
}

/// Waits for messages, seeing to them.
fn wait(shared: &Shared, net: &Net, ticket: &Arc<Ticket>) -> Result<Outcome, Error> {
    let begun = clock::now();
    let mut driving = Some(Driving::begin(shared, net));
    let mut yields = 0;
    loop {
        if let Some(outcome) = ticket.result()? {
            return Ok(outcome);
        }
        if let Some(error) = shared.failure() {
            return Err(error);
        }
        if driving.is_some() && shared.pump(net)? {
            continue;
        }
        let waited = clock::now().saturating_duration_since(begun);
        if net.fits && waited < SPIN {
            std::hint::spin_loop();
            continue;
        }
        yields += 1;
        if driving.is_some() && (yields < 10 || (net.fits && waited < GIVE_WAY)) {
            std::thread::yield_now();
            continue;
        }
        if let Some(driving) = driving.take() {
            driving.hand_over();
        }
        // The progress thread sees to messages, to deadlines and to those who end.
        ticket.sleep(SLICE);
    }
}
