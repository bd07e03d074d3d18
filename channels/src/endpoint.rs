//! The connection with one peer process.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use meshreduce_device::Device;
use meshreduce_store::identity::{Host, Life, Member};

use crate::channel::{Batch, Direction, Operation, Pair, Ready, Reason, Side};
use crate::choice::{Offers, reasons};
use crate::counter::Counters;
use crate::devices::not_served;
use crate::error::Error;
use crate::meet::Hello;
use crate::owned::{Held, Owned};
use crate::progress::{Command, Latch, Site};
use crate::region::CounterDescriptor;
use crate::registry::Kinds;
use crate::span::{Memory, Span};
use crate::stream::After;
use crate::transfer::{Facts, Home, Keep, Ticket, Transfer};

/// What an endpoint and the progress thread share.
pub(crate) struct Shared {
    pub(crate) facts: EndpointFacts,
    counters: Counters,
    cause: OnceLock<Error>,
    ended: Latch,
    /// Of each pair and direction, the number of the next transfer.
    numbers: Mutex<HashMap<(Pair, Direction), u64>>,
    /// Batches of writes that were begun.
    batches: AtomicU64,
}

/// What is settled when two sides have met.
#[derive(Debug)]
pub(crate) struct EndpointFacts {
    /// Unique in the context, not 0.
    pub(crate) id: u64,
    pub(crate) side: Side,
    pub(crate) peer: Arc<str>,
    /// What the other side has said.
    pub(crate) hello: Hello,
    pub(crate) choices: HashMap<Pair, String>,
    pub(crate) offers: Arc<Offers>,
    pub(crate) host: Host,
    /// What this side has said its own nonce is.
    pub(crate) nonce: u64,
    pub(crate) silence: Duration,
}

impl Shared {
    pub(crate) fn new(facts: EndpointFacts) -> Self {
        let (cause, ended) = (OnceLock::new(), Latch::default());
        let counters = Counters::new(Arc::clone(&facts.peer), facts.nonce);
        Self { facts, counters, cause, ended, numbers: Mutex::default(), batches: AtomicU64::new(0) }
    }

    pub(crate) fn id(&self) -> u64 {
        self.facts.id
    }

    pub(crate) fn side(&self) -> Side {
        self.facts.side
    }

    pub(crate) fn peer(&self) -> &Arc<str> {
        &self.facts.peer
    }

    pub(crate) fn silence(&self) -> Duration {
        self.facts.silence
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Why it is over.
    pub(crate) fn cause(&self) -> Option<&Error> {
        self.cause.get()
    }

    /// Why a transfer that comes too late fails.
    pub(crate) fn over(&self) -> Error {
        self.cause().cloned().unwrap_or(Error::ContextClosed)
    }

    /// Says why it is over; whether this is the first cause.
    pub(crate) fn set_cause(&self, cause: &Error) -> bool {
        self.cause.set(cause.clone()).is_ok()
    }

    pub(crate) fn ended(&self) -> &Latch {
        &self.ended
    }

    /// Whether the other side's process is known to have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.facts.hello.member.life(&self.facts.host) == Life::Ended
    }

    /// The number of a pair's channel, the same on both sides; 0 is none.
    pub(crate) fn channel_of(&self, pair: Pair) -> Option<u32> {
        let (ours, theirs) = (&self.facts.offers.devices, &self.facts.hello.offers.devices);
        let local = ours.iter().position(|device| *device == pair.local)?;
        let remote = theirs.iter().position(|device| *device == pair.remote)?;
        let at = match self.facts.side {
            Side::Listening => local * theirs.len() + remote,
            Side::Connecting => remote * ours.len() + local,
        };
        u32::try_from(at + 1).ok()
    }

    /// The pair of a channel's number.
    pub(crate) fn pair_of(&self, channel: u32) -> Option<Pair> {
        let (ours, theirs) = (&self.facts.offers.devices, &self.facts.hello.offers.devices);
        let at = (channel as usize).checked_sub(1)?;
        let (local, remote) = match self.facts.side {
            Side::Listening => (at.checked_div(theirs.len())?, at.checked_rem(theirs.len())?),
            Side::Connecting => (at.checked_rem(ours.len())?, at.checked_div(ours.len())?),
        };
        Some(Pair { local: *ours.get(local)?, remote: *theirs.get(remote)? })
    }

    /// The kind that serves a pair.
    pub(crate) fn kind_of(&self, pair: Pair) -> Option<&str> {
        self.facts.choices.get(&pair).map(String::as_str)
    }

    /// The kind of a channel, for people.
    pub(crate) fn name_of(&self, channel: u32) -> &str {
        self.pair_of(channel).and_then(|pair| self.kind_of(pair)).unwrap_or("none")
    }

    /// The descriptors of a pair's devices, of the kind that serves it.
    pub(crate) fn descriptors(&self, pair: Pair) -> Option<(&[u8], &[u8])> {
        let name = self.kind_of(pair)?;
        let of = |offers: &'_ Offers, device| -> Option<usize> {
            let at = offers.kinds.iter().position(|kind| kind.name == name)?;
            offers.kinds[at].descriptors.contains_key(device).then_some(at)
        };
        let (ours, theirs) = (&self.facts.offers, &self.facts.hello.offers);
        let local = &ours.kinds[of(ours, &pair.local)?].descriptors[&pair.local];
        let remote = &theirs.kinds[of(theirs, &pair.remote)?].descriptors[&pair.remote];
        Some((local, remote))
    }

    /// That no kind serves a pair, and why.
    pub(crate) fn no_channel(&self, pair: Pair, kinds: &Kinds) -> Error {
        let Pair { local, remote } = pair;
        let judge = |name: &str, local: &[u8], remote: &[u8]| match kinds.by_name(name) {
            Some(context) => context.can_communicate(local, remote),
            None => Err(Reason::from("it is not known")),
        };
        let reasons = reasons(&self.facts.offers, &self.facts.hello.offers, pair, &judge).into();
        Error::NoChannel { local, remote, peer: Arc::clone(self.peer()), reasons }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, peer) = (self.id(), self.peer());
        f.debug_struct("Shared").field("id", &id).field("peer", peer).field("cause", &self.cause).finish()
    }
}

/// The connection with one peer process. Dropped, it is closed: what is under way fails on both sides, transfers and batches that were
/// detached too. So a side leaves when the other one has said that it has everything (a barrier in the store, or a last message).
///
/// Of each pair of devices, the k-th send on one side meets the k-th receive on the other. Transfers are started in the order of
/// the calls and end in any. One of whose stream the driver tells nothing is one of them, and fails on both sides. A call that cannot
/// start any ([`Error::NoChannel`], [`Error::NoDevice`] of a stream that is of none of the context's devices, the endpoint's end) counts
/// on neither.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    site: Arc<Site>,
}

impl Endpoint {
    pub(crate) fn new(shared: Arc<Shared>, site: Arc<Site>) -> Self {
        Self { shared, site }
    }

    /// Sends `memory` to the other side's memory on `remote`, when what has been enqueued on the stream `after` so far is done.
    ///
    /// What is wrong (no channel serves the pair, for example) the transfer tells.
    pub fn send<'a, M: Memory>(&self, memory: M, remote: Device, after: impl Into<After<'a>>) -> Owned<M> {
        self.owned(Direction::Send, memory, remote, after.into())
    }

    /// Receives into `memory` what the other side sends from its memory on `remote`, when what has been enqueued on the stream
    /// `after` so far is done. Both have the same length.
    pub fn recv<'a, M: Memory>(&self, memory: M, remote: Device, after: impl Into<After<'a>>) -> Owned<M> {
        self.owned(Direction::Receive, memory, remote, after.into())
    }

    /// As [`Endpoint::send`], from memory that the caller keeps.
    ///
    /// # Safety
    ///
    /// The memory is valid for reads, on its device, and is not written until the transfer has ended; if the transfer is dropped,
    /// until [`Endpoint::join`] has said that the endpoint is over; if it ends with [`Error::Abandoned`], for ever.
    pub unsafe fn send_raw<'a>(&self, span: Span, remote: Device, after: impl Into<After<'a>>) -> Transfer {
        self.begin(Direction::Send, span, remote, after.into(), None)
    }

    /// As [`Endpoint::recv`], into memory that the caller keeps.
    ///
    /// # Safety
    ///
    /// As [`Endpoint::send_raw`], for writes, and nobody else accesses it.
    pub unsafe fn recv_raw<'a>(&self, span: Span, remote: Device, after: impl Into<After<'a>>) -> Transfer {
        self.begin(Direction::Receive, span, remote, after.into(), None)
    }

    fn owned<M: Memory>(
        &self,
        direction: Direction,
        memory: M,
        remote: Device,
        after: After<'_>,
    ) -> Owned<M> {
        // Where it stays, before anybody is told where that is.
        let held = Held::new(memory);
        let span = held.span();
        let keep = Arc::clone(&held);
        Owned::new(self.begin(direction, span, remote, after, Some(keep)), held)
    }

    fn begin(
        &self,
        direction: Direction,
        span: Span,
        remote: Device,
        after: After<'_>,
        keep: Option<Arc<dyn Keep>>,
    ) -> Transfer {
        let pair = Pair { local: span.device, remote };
        let ready = self.check(pair).and_then(|()| match direction {
            Direction::Send if !self.is_told(pair, &after) => self.ready(after),
            Direction::Send => after.tell(&self.site.devices),
            Direction::Receive => after.tell(&self.site.devices),
        });
        // The other side has a transfer that meets this one, and no other.
        let ready = match ready {
            Err(Error::Driver(error)) => Ok(Ready::Refused(error)),
            other => other,
        };
        let facts = |number| {
            let peer = Arc::clone(self.shared.peer());
            Facts { direction, bytes: span.bytes, number, peer }
        };
        if let Err(error @ Error::Forked) = ready {
            // Another thread of the parent may have had the lock, which nobody here gives back.
            let (ticket, transfer) = Ticket::new(facts(0), self.home(), keep);
            ticket.fail(error);
            return transfer;
        }
        // Held until the command is on its way, so that numbers and commands are in the same order.
        let mut numbers = self.shared.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let number = numbers.entry((pair, direction)).or_default();
        let (ticket, transfer) = Ticket::new(facts(*number), self.home(), keep);
        match ready {
            Ok(ready) => {
                *number += 1;
                let operation = Operation { direction, span, ready, ticket };
                let endpoint = Arc::clone(&self.shared);
                self.site.post.send(Command::Start { endpoint, pair, operation });
            }
            Err(error) => ticket.fail(error),
        }
        transfer
    }

    /// A transfer of `bytes` bytes that is no send and no receive: a batch of writes. The ticket is the batch's.
    pub(crate) fn ticket(&self, bytes: u64) -> (Ticket, Transfer) {
        let number = self.shared.batches.fetch_add(1, Ordering::Relaxed);
        let peer = Arc::clone(self.shared.peer());
        let facts = Facts { direction: Direction::Send, bytes, number, peer };
        Ticket::new(facts, self.home(), None)
    }

    /// Begins a batch of writes between registered regions.
    pub(crate) fn post_batch(&self, pair: Pair, batch: Batch) {
        let endpoint = Arc::clone(&self.shared);
        self.site.post.send(Command::Write { endpoint, pair, batch });
    }

    /// Tells the other side that a batch for one of its counters was refused before it had begun, so that nobody waits for it.
    pub(crate) fn post_refused(&self, pair: Pair, counter: &CounterDescriptor, why: &Error) {
        let is_told = self.site.check_process().is_ok() && self.check_counter(counter).is_ok();
        if is_told {
            let (endpoint, counter, why) = (Arc::clone(&self.shared), counter.number, why.clone());
            self.site.post.send(Command::Missed { endpoint, pair, counter, why });
        }
    }

    fn home(&self) -> Home {
        let (bell, process) = (self.site.post.waker().clone(), self.site.process);
        Home { bell, process, devices: Arc::clone(&self.site.devices) }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn site(&self) -> &Arc<Site> {
        &self.site
    }

    fn is_told(&self, pair: Pair, after: &After<'_>) -> bool {
        let kind = after.device().and_then(|of| Some((of, self.shared.kind_of(pair)?)));
        kind.is_some_and(|(of, kind)| {
            self.site.kinds.by_name(kind).is_some_and(|context| context.is_told(pair, of))
        })
    }

    /// When what has been enqueued on the stream so far is done.
    pub(crate) fn ready(&self, after: After<'_>) -> Result<Ready, Error> {
        after.record(&self.site.devices)
    }

    /// That transfers of the pair can be begun.
    pub(crate) fn check(&self, pair: Pair) -> Result<(), Error> {
        self.site.check_process()?;
        if let Some(cause) = self.shared.cause() {
            return Err(cause.clone());
        }
        if !self.shared.facts.offers.devices.contains(&pair.local) {
            return Err(not_served(pair.local));
        }
        self.channel(pair).map(|_| ())
    }

    /// The name of the kind of channel that serves a pair of devices.
    ///
    /// # Errors
    ///
    /// [`Error::NoChannel`], with every kind's reason.
    pub fn channel(&self, pair: Pair) -> Result<&str, Error> {
        self.shared.kind_of(pair).ok_or_else(|| self.shared.no_channel(pair, &self.site.kinds))
    }

    /// Who is on the other side.
    pub fn peer(&self) -> &Member {
        &self.shared.facts.hello.member
    }

    /// That a counter is one of the other side's for this endpoint.
    pub(crate) fn check_counter(&self, counter: &CounterDescriptor) -> Result<(), Error> {
        if counter.endpoint == self.shared.facts.hello.nonce {
            return Ok(());
        }
        Err(Error::OtherCounter { counter: counter.number, peer: Arc::clone(self.shared.peer()) })
    }

    /// Who is on the other side, as errors name it.
    pub fn peer_name(&self) -> &Arc<str> {
        self.shared.peer()
    }

    /// The devices that the other side serves.
    pub fn remote_devices(&self) -> &[Device] {
        &self.shared.facts.hello.offers.devices
    }

    /// Why it is over, if it is.
    pub fn cause(&self) -> Option<Error> {
        self.shared.cause().cloned()
    }

    /// Ends it: transfers that are under way fail with [`Error::Closed`], here soon and on the other side with
    /// [`Error::ClosedByPeer`].
    pub fn close(&self) {
        if self.site.check_process().is_ok() {
            self.site.post.send(Command::Close { endpoint: Arc::clone(&self.shared) });
        }
    }

    /// Waits, at most `timeout`, until the endpoint is over and nothing uses the memory of transfers any more.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`]; [`Error::Forked`].
    pub fn join(&self, timeout: Duration) -> Result<(), Error> {
        self.site.check_process()?;
        if self.shared.ended.wait(timeout) {
            return Ok(());
        }
        let what = format!("the end of the endpoint to {}", self.shared.peer()).into();
        Err(Error::TimedOut { what, waited: timeout })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close();
    }
}
