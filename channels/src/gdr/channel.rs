//! A channel over RDMA.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_verbs_loader::Completion;

use crate::channel::{
    Activity, Batch, Channel, Direction, Io, Message as Heard, Offer, Operation, OtherHalf, RegionPart, Rest,
};
use crate::error::Error;
use crate::gdr::arrivals::Arrivals;
use crate::gdr::batch::Batches;
use crate::gdr::connect::Connections;
use crate::gdr::descriptor::{Descriptor, Served};
use crate::gdr::hub::Hub;
use crate::gdr::message::Message;
use crate::gdr::queue_pair::{Completed, Owner};
use crate::gdr::receive::Incoming;
use crate::gdr::region::Lent;
use crate::gdr::send::Outgoing;
use crate::gdr::work::{Immediate, WorkId};
use crate::matching::Notice;

/// How long what is flushed may take to come back at the end, before the queue pairs are destroyed all the same.
const FLUSH: Duration = Duration::from_secs(5);

/// Half of a channel over RDMA.
#[derive(Debug)]
pub(crate) struct GdrChannel {
    hub: Arc<Hub>,
    number: u32,
    peer: Arc<str>,
    // Before all that holds registrations: nothing is under way any more when those go.
    connections: Connections,
    sends: Outgoing,
    receives: Incoming,
    batches: Batches,
    arrivals: Arrivals,
    lent: Lent,
    served: usize,
    inbox: Vec<Completion>,
    /// Since when a queue pair has failed, or a NIC, in a way that may be the other side's end.
    failing: Option<Instant>,
    /// Since when it has ended.
    ended: Option<Instant>,
}

impl GdrChannel {
    pub(crate) fn new(hub: &Arc<Hub>, offer: &Offer<'_>) -> Result<Self, Error> {
        let Offer { pair, side, local, remote, peer } = offer;
        let served = |bytes: &[u8], whose: &str| match Descriptor::from_bytes(bytes) {
            Ok(Descriptor::Served(served)) => Ok(served),
            Ok(Descriptor::Not(why)) => Err(protocol(peer, format!("{whose} device is not served: {why}"))),
            Err(error) => Err(protocol(peer, format!("{whose} device's descriptor makes no sense: {error}"))),
        };
        let ports: (Served, Served) = (served(local, "this side's")?, served(remote, "the other side's")?);
        let place = hub.place_of(pair.local);
        let place = place
            .filter(|place| hub.served[*place].descriptor == *local)
            .ok_or_else(|| protocol(peer, format!("{} here has another descriptor", pair.local)))?;
        let number = hub.state().enter();
        Ok(Self {
            hub: Arc::clone(hub),
            number,
            peer: Arc::clone(peer),
            connections: Connections::new(hub, (place, number), (*pair, *side, peer), ports),
            sends: Outgoing::new(hub, place, peer),
            receives: Incoming::new(hub, place, peer),
            batches: Batches::new(hub, place, peer),
            arrivals: Arrivals::new(hub, peer),
            lent: Lent::default(),
            served: place,
            inbox: Vec::new(),
            failing: None,
            ended: None,
        })
    }

    /// Takes what has completed. Whether there was anything.
    fn take_completions(&mut self, now: Instant) -> Result<bool, Error> {
        let moved = self.hub.poll(now);
        let mut inbox = std::mem::take(&mut self.inbox);
        self.hub.state().take(self.number, &mut inbox);
        let any = moved | !inbox.is_empty();
        let outcome = each(&inbox, |completion| self.complete(completion));
        inbox.clear();
        self.inbox = inbox;
        outcome.map(|()| any)
    }

    fn complete(&mut self, completion: &Completion) -> Result<(), Error> {
        let Some(id) = WorkId::from_u64(completion.wr_id) else { return Ok(()) };
        // Else its queue pair has been given up.
        let Some(pair) = self.connections.pair(id.pair) else { return Ok(()) };
        let completed = pair.complete(&mut self.hub.state(), id, completion);
        if self.ended.is_some() {
            return Ok(());
        }
        match completed {
            Completed::Nothing => {}
            Completed::Writes { owner: Owner::Hello, .. } => self.connections.greeted(id.pair),
            Completed::Writes { owner: Owner::Send(number), bytes } => self.sends.written(number, bytes)?,
            Completed::Writes { owner: Owner::Batch(number), bytes } => self.batches.written(number, bytes),
            Completed::Received(immediate) => match Immediate::from_u32(immediate) {
                Some(Immediate::Hello) => {}
                Some(Immediate::Transfer(lower)) => self.receives.arrived(id.pair, lower)?,
                Some(Immediate::Batch(lower)) => {
                    self.arrivals.arrived(id.pair, lower, &mut self.connections)?
                }
                None => return Err(protocol(&self.peer, format!("a write with the number {immediate:#x}"))),
            },
        }
        Ok(())
    }

    /// Whether something has failed. What may be the other side's end is an error only when the link has had the time to say so; and
    /// so has the cause of what was flushed.
    fn check(&mut self, now: Instant) -> Result<bool, Error> {
        let mut found: Option<(String, bool)> = None;
        {
            let state = self.hub.state();
            for pair in self.connections.settled() {
                let here = pair.failure().map(|failure| {
                    let wait = failure.may_be_the_peers_end();
                    (failure.what.clone(), wait, failure.is_flush())
                });
                let nic = self.hub.trouble(&state, pair.nic, now).map(|what| (what, false, false));
                if let Some((what, wait, flushed)) = nic.or(here) {
                    // A cause is better than what follows from it.
                    if found.is_none() || !flushed {
                        found = Some((what, wait));
                    }
                }
            }
        }
        let Some((what, wait)) = found else { return Ok(false) };
        let since = *self.failing.get_or_insert(now);
        if wait && now.saturating_duration_since(since) < self.hub.config.link_ends_within {
            return Ok(true);
        }
        Err(Error::Verbs { what: what.into() })
    }

    fn notice(&mut self, notice: Notice, io: &mut Io<'_>) -> Result<(), Error> {
        match notice {
            Notice::Announced { number, bytes, payload } => {
                // The side that makes the queue pairs begins when it hears that there is something to be sent.
                if bytes > 0 {
                    self.connections.need(bytes >= self.hub.config.stripe, io);
                }
                self.receives.announced(number, bytes, &payload, io)
            }
            Notice::Withdrawn { number } => self.receives.withdrawn(number, &mut self.connections, io),
            Notice::Refused { number, refusal } => self.sends.refused(number, refusal),
        }
    }

    fn message(&mut self, message: Message, io: &mut Io<'_>) -> Result<(), Error> {
        let connections = &mut self.connections;
        match message {
            Message::Need { all } => connections.heard_need(all, io.now()),
            Message::Open(open) => connections.heard_open(open, io.now()),
            Message::Opened { pair, queue_pair, sequence } => {
                connections.heard_opened(pair, queue_pair, sequence)
            }
            Message::Refused { pair, what } | Message::GivenUp { pair, what } => {
                connections.heard_over(pair, &what, io)
            }
            Message::Settled { all, pairs } => connections.heard_settled(all, pairs),
            Message::ReadyToSend { number } => self.receives.sender_ready(number),
            Message::ReadyToReceive { number, address, piece, lanes } => {
                self.sends.offered(number, address, piece, lanes, connections)
            }
            Message::Posted { number, lane, receives } => self.sends.posted(number, lane, receives),
            Message::Revoke { number } => self.sends.revoked(number, io),
            Message::Cancelled { number, send: true, what } => {
                self.receives.cancelled(number, what, connections)
            }
            Message::Cancelled { number, send: false, what } => self.sends.cancelled(number, what),
            Message::Spare { pair, receives } => connections.heard_spare(pair, receives),
            Message::Want { pair, receives } => self.arrivals.wanted(pair, receives, connections),
            Message::Granted { pair, receives } => {
                self.batches.granted(pair, receives);
                Ok(())
            }
            Message::Writing { batch, counter, bytes, parts } => {
                self.arrivals.announced(batch, counter, bytes, parts);
                Ok(())
            }
            Message::Missed { counter, what } => {
                io.missed(counter, &Error::Remote { peer: Arc::clone(&self.peer), what: what.into() });
                Ok(())
            }
            Message::Lend { region } => {
                self.lent.asked(region, &self.hub, self.served, io);
                Ok(())
            }
            Message::Released { region } => {
                self.lent.released(region);
                Ok(())
            }
            Message::Lent { region } => {
                self.batches.lent(region);
                Ok(())
            }
            Message::Gone { region } => self.batches.not_there(region, io),
            Message::Withdraw { region } => {
                self.batches.withdrawn(region, io);
                Ok(())
            }
        }
    }
}

impl Channel for GdrChannel {
    fn start(&mut self, operation: Operation, io: &mut Io<'_>) -> Result<(), Error> {
        let bytes = operation.span.bytes;
        match operation.direction {
            Direction::Send => {
                if bytes > 0 {
                    self.connections.need(bytes >= self.hub.config.stripe, io);
                }
                self.sends.start(operation, io);
            }
            Direction::Receive => self.receives.start(operation, io),
        }
        Ok(())
    }

    fn write(&mut self, batch: Batch, io: &mut Io<'_>) -> Result<(), Error> {
        if !batch.pages.is_empty() {
            self.connections.need(batch.bytes >= self.hub.config.stripe, io);
        }
        self.batches.start(batch, io);
        Ok(())
    }

    fn withdraw(&mut self, part: &Arc<dyn RegionPart>, io: &mut Io<'_>) -> Result<(), Error> {
        self.lent.withdraw(&**part, io);
        Ok(())
    }

    fn heard(&mut self, message: Heard<'_>, io: &mut Io<'_>) -> Result<(), Error> {
        let malformed =
            |peer: &Arc<str>, error| protocol(peer, format!("a message that makes no sense: {error}"));
        if let Some(notice) = Notice::decode(message.bytes).map_err(|error| malformed(&self.peer, error))? {
            return self.notice(notice, io);
        }
        let message = Message::from_bytes(message.bytes).map_err(|error| malformed(&self.peer, error))?;
        self.message(message, io)
    }

    fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut moved = self.take_completions(io.now())?;
        if self.check(io.now())? {
            // Nothing goes on until it is known what has happened.
            return Ok(Activity::Waiting);
        }
        moved |= self.connections.poll(io)?;
        let mut looking = self.connections.is_busy();
        for (some, more) in [
            self.receives.poll(&mut self.connections, io)?,
            self.sends.poll(&mut self.connections, io)?,
            self.batches.poll(&mut self.connections, io)?,
            self.connections.use_up(io),
        ] {
            moved |= some;
            looking |= more;
        }
        moved |= self.arrivals.grant(&mut self.connections, io);
        let complete: Vec<(u32, u64)> = std::iter::from_fn(|| self.arrivals.take_complete()).collect();
        if !complete.is_empty() {
            self.receives.make_visible()?;
            complete.into_iter().for_each(|(counter, bytes)| io.arrived(counter, bytes));
            moved = true;
        }
        looking |= self.arrivals.is_looking();
        Ok(match (moved, looking) {
            (true, _) => Activity::Moved,
            (false, true) => Activity::Waiting,
            (false, false) => Activity::Idle,
        })
    }

    fn end(&mut self, cause: &Error) {
        self.ended = Some(Instant::now());
        self.connections.pairs().for_each(|pair| pair.flush());
        self.sends.end(cause);
        self.receives.end(cause, &mut self.connections);
        self.batches.end(cause);
    }

    fn linger(&mut self, _: OtherHalf) -> Rest {
        let now = Instant::now();
        // What has completed concerns nobody but the credits now.
        if let Err(error) = self.take_completions(now) {
            tracing::debug!(%error, "behind the end of a channel");
        }
        let ended = *self.ended.get_or_insert(now);
        let flushed = self.connections.pairs().all(|pair| pair.is_idle());
        let late = now.saturating_duration_since(ended) >= FLUSH;
        let quiet = self.connections.is_quiet() && self.sends.is_quiet() && self.receives.is_quiet();
        if !(quiet && (flushed || late)) {
            return Rest::Busy;
        }
        if !flushed {
            tracing::warn!(peer = %self.peer, "work requests that were flushed have not come back; the queue pairs are destroyed");
        }
        // A NIC has done with the memory when everything that reads it has come back, and, of what others write, when the queue
        // pair is gone.
        self.connections.clear();
        self.sends.settle();
        self.receives.settle();
        self.batches.settle();
        self.lent.clear();
        // Nor can the other side reach anything here any more.
        Rest::Over
    }
}

impl Drop for GdrChannel {
    fn drop(&mut self) {
        self.hub.state().leave(self.number);
    }
}

/// Does it with each, also behind an error, of which the first is told: what has completed gives its credits back whatever becomes of
/// the channel.
fn each<T>(all: &[T], with: impl FnMut(&T) -> Result<(), Error>) -> Result<(), Error> {
    all.iter().map(with).fold(Ok(()), Result::and)
}

fn protocol(peer: &Arc<str>, what: String) -> Error {
    Error::Protocol { peer: Arc::clone(peer), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_behind_an_error_is_done_too_and_the_first_error_is_told() {
        let mut done = Vec::new();
        let outcome = each(&[1, 2, 3, 4], |number| {
            done.push(*number);
            if number % 2 == 0 { Err(protocol(&"p".into(), format!("{number}"))) } else { Ok(()) }
        });
        assert_eq!(done, [1, 2, 3, 4]);
        assert!(outcome.unwrap_err().to_string().contains('2'));
    }
}
