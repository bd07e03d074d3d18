//! The receives of a channel.
//!
//! A receive that has been paired with its announcement, and whose caller's event has passed, is registered with the NICs that it
//! is to come over, and a receive is posted for each of its pieces, as far as there are credits. Then the sender is told.
//!
//! That is done as soon as the sender is ready; and before, so that the data can follow the sender's event at once, while there are
//! credits enough: those of a receive whose sender is not ready may be held for long, and the sender may be waiting for
//! another one.

mod one;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::channel::{Io, Operation};
use crate::error::Error;
use crate::gdr::connect::Connections;
use crate::gdr::failed_transfer::FailedTransfer;
use crate::gdr::hub::Hub;
use crate::gdr::memory::Registering;
use crate::gdr::message::Message;
use crate::gdr::mutant::Mutant;
use crate::gdr::starved::Starved;
use crate::gdr::target::Target;
use crate::gdr::work::widen;
use crate::matching::{Met, Notice, Paired, Receives, Refusal};
use crate::transfer::Aborts;
use one::{Receive, Stage, Step};

/// The receives of a channel.
#[derive(Debug)]
pub(crate) struct Incoming {
    hub: Arc<Hub>,
    served: usize,
    peer: Arc<str>,
    matching: Receives<Announced>,
    /// How many sends were announced, and how many of them have met their receives.
    announced: u64,
    met: u64,
    /// Of those that have not, the senders' events that have passed since.
    ready: BTreeSet<u64>,
    paired: BTreeMap<u64, Receive>,
    aborts: Aborts,
    /// Those of `paired` that go on by looking: what they wait for is not told. All others are left alone until something happens to
    /// them.
    due: BTreeSet<u64>,
    starved: Starved,
    /// Those whose senders write, or are to answer: their completions are looked for.
    awaited: BTreeSet<u64>,
    /// Those that were not offered early, because credits were few.
    held_back: BTreeSet<u64>,
    failed: Vec<FailedTransfer>,
}

/// What is kept of an announcement.
#[derive(Debug)]
struct Announced {
    number: u64,
    /// The sender's event has passed.
    ready: bool,
}

impl Incoming {
    pub(crate) fn new(hub: &Arc<Hub>, served: usize, peer: &Arc<str>) -> Self {
        Self {
            hub: Arc::clone(hub),
            served,
            peer: Arc::clone(peer),
            matching: Receives::new(Arc::clone(peer)),
            announced: 0,
            met: 0,
            ready: BTreeSet::new(),
            paired: BTreeMap::new(),
            aborts: Aborts::default(),
            due: BTreeSet::new(),
            starved: Starved::default(),
            awaited: BTreeSet::new(),
            held_back: BTreeSet::new(),
            failed: Vec::new(),
        }
    }

    pub(crate) fn start(&mut self, operation: Operation, io: &mut Io<'_>) {
        if let Some(met) = self.matching.start(operation) {
            self.meet(met, io);
        }
    }

    /// A send was announced.
    pub(crate) fn announced(
        &mut self,
        number: u64,
        bytes: u64,
        payload: &[u8],
        io: &mut Io<'_>,
    ) -> Result<(), Error> {
        let ready = match payload {
            [0] => false,
            [1] => true,
            _ => {
                return Err(self.nonsense(format!("send {number} is announced in a way that makes no sense")));
            }
        };
        let met = self.matching.announced(number, bytes, Announced { number, ready })?;
        self.announced += 1;
        if let Some(met) = met {
            self.meet(met, io);
        }
        Ok(())
    }

    fn meet(&mut self, met: Met<Announced>, io: &mut Io<'_>) {
        // They meet in order.
        let has_passed = self.ready.remove(&self.met);
        self.met += 1;
        match met {
            Met::Pair(Paired { operation, announcement: Announced { number, ready } }) => {
                let wait = self.hub.watch.begin(&operation.ready);
                self.aborts.watch(&operation.ticket);
                self.due.insert(number);
                self.paired.insert(
                    number,
                    Receive { operation, wait, sender_ready: ready || has_passed, stage: Stage::Waiting },
                );
            }
            Met::Refused { notice, .. } => io.send(notice.encode()),
            Met::Nothing => {}
        }
    }

    /// The sender's event has passed.
    pub(crate) fn sender_ready(&mut self, number: u64) -> Result<(), Error> {
        if number >= self.announced {
            return Err(self.nonsense(format!("send {number} is ready, which was not announced")));
        }
        if let Some(receive) = self.paired.get_mut(&number) {
            receive.sender_ready = true;
            self.due.insert(number);
        } else if number >= self.met {
            self.ready.insert(number);
        }
        // Else the receive was refused, and the sender does not know yet.
        Ok(())
    }

    /// The sender does not want a send any more; nothing of it was written, or will be.
    pub(crate) fn withdrawn(
        &mut self,
        number: u64,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<(), Error> {
        let answer = Notice::Refused { number, refusal: Refusal::Dropped }.encode();
        if self.matching.withdrawn(number)?.is_some() {
            io.send(answer);
            return Ok(());
        }
        // Else it was refused already.
        if let Some(receive) = self.take(number) {
            io.send(answer);
            let error = self.matching.withdrawn_by_peer(number);
            self.part(receive, error, connections);
        }
        Ok(())
    }

    /// A send has come to nothing after the receive was ready.
    pub(crate) fn cancelled(
        &mut self,
        number: u64,
        what: String,
        connections: &mut Connections,
    ) -> Result<(), Error> {
        let Some(receive) = self.take(number) else {
            return Err(
                self.nonsense(format!("send {number} is cancelled, which no receive is under way for"))
            );
        };
        let error = match receive.operation.ticket.is_aborted() {
            true => Error::Dropped,
            false => Error::Remote { peer: Arc::clone(&self.peer), what: what.into() },
        };
        self.part(receive, error, connections);
        Ok(())
    }

    /// A piece has come over a queue pair, for the transfer with these lower bits of its number.
    pub(crate) fn arrived(&mut self, pair: u8, lower: u32) -> Result<(), Error> {
        let number = self.paired.first_key_value().map(|(first, _)| widen(lower, *first));
        let receive = number.and_then(|number| self.paired.get_mut(&number));
        let target = receive.and_then(|receive| match &mut receive.stage {
            Stage::Open(target) => Some((target, &receive.operation.ticket)),
            _ => None,
        });
        let found = target.and_then(|(target, ticket)| {
            let index = target.lanes.iter().position(|lane| lane.pair == pair)?;
            let lane = &mut target.lanes[index];
            // A queue pair delivers in order.
            let piece = target.plan.nth_over(index, lane.arrived).filter(|_| lane.arrived < lane.posted)?;
            lane.arrived += 1;
            ticket.progress(piece.end - piece.start);
            Some(())
        });
        self.due.extend(number.filter(|_| found.is_some()));
        found.ok_or_else(|| {
            self.nonsense(format!("a piece of a transfer ({lower} in 30 bits) that no receive is open for"))
        })
    }

    /// Takes a receive out.
    fn take(&mut self, number: u64) -> Option<Receive> {
        for set in [&mut self.due, &mut self.awaited, &mut self.held_back] {
            set.remove(&number);
        }
        self.paired.remove(&number)
    }

    /// Goes on with those for which something may be to be done. Whether anything has moved, and whether something is to be looked for.
    pub(crate) fn poll(
        &mut self,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<(bool, bool), Error> {
        self.matching.drop_aborted();
        if self.aborts.any() {
            let aborted = self.paired.iter().filter(|(_, receive)| receive.operation.ticket.is_aborted());
            self.due.extend(aborted.map(|(number, _)| *number));
        }
        if !self.starved.is_empty() {
            let (state, paired, due) = (self.hub.state(), &self.paired, &mut self.due);
            let room = |pair| connections.pair(pair).map_or(0, |pair| pair.room_for_receives(&state));
            let is_over = |number| !paired.contains_key(&number);
            self.starved.take(room, is_over, |number| due.extend([number]));
        }
        let mut moved = false;
        let mut over = Vec::new();
        for number in std::mem::take(&mut self.due) {
            let Some(receive) = self.paired.get_mut(&number) else { continue };
            let ready = match receive.wait.as_mut().map(|wait| wait.is_over(io.now())) {
                Ok(Ok(ready)) => ready,
                Ok(Err(error)) => {
                    receive.wait = Err(error);
                    true
                }
                Err(_) => true,
            };
            let step = match (&receive.wait, receive.operation.ticket.is_aborted()) {
                (_, true) => receive.abort(number, io),
                (Err(error), _) if matches!(receive.stage, Stage::Waiting) => Step::Failed(error.clone()),
                _ if ready => receive.advance(&self.hub, self.served, number, connections, io)?,
                _ => Step::Looking,
            };
            match step {
                Step::Idle => {}
                Step::HeldBack => self.held_back.extend([number]),
                Step::Awaiting => self.awaited.extend([number]),
                Step::Looking => self.due.extend([number]),
                Step::Starved => {
                    let target = receive.stage.target();
                    let lanes = target.into_iter().flat_map(Target::unposted);
                    lanes.for_each(|pair| self.starved.wait(pair, number));
                }
                Step::Moved => {
                    moved = true;
                    self.due.insert(number);
                }
                Step::Done | Step::Failed(_) | Step::Dropped => over.push((number, step)),
            }
        }
        moved |= !over.is_empty();
        self.finish(over, connections, io)?;
        self.failed.retain_mut(|failed| !failed.is_over());
        let waits = [&self.due, &self.awaited].iter().any(|numbers| !numbers.is_empty());
        let looking = waits || !self.starved.is_empty() || !self.failed.is_empty();
        Ok((moved, looking))
    }

    fn finish(
        &mut self,
        over: Vec<(u64, Step)>,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<(), Error> {
        // One flush for all: it concerns whatever has completed before it.
        let any_data = over.iter().any(|(number, step)| {
            matches!(step, Step::Done)
                && self.paired.get(number).is_some_and(|receive| receive.operation.span.bytes > 0)
        });
        if any_data {
            self.make_visible()?;
        }
        for (number, step) in over {
            let Some(receive) = self.take(number) else { continue };
            // There may be credits enough for one more now.
            self.due.extend(self.held_back.pop_first());
            match step {
                Step::Failed(error) => {
                    let what = error.to_string();
                    io.send(Message::Cancelled { number, send: false, what }.to_bytes());
                    self.part(receive, error, connections);
                }
                Step::Dropped => {
                    io.send(Notice::Refused { number, refusal: Refusal::Dropped }.encode());
                    self.part(receive, Error::Dropped, connections);
                }
                _ => {
                    // Everything has arrived. The registration goes before the memory is given back.
                    drop(receive.stage);
                    receive.operation.ticket.done();
                }
            }
        }
        Ok(())
    }

    /// How many are looked at when it is looked next.
    #[cfg(test)]
    pub(crate) fn looked_at(&self) -> usize {
        self.due.len()
    }

    /// Makes what has completed visible to the device.
    pub(crate) fn make_visible(&self) -> Result<(), Error> {
        match &self.hub.served[self.served].gpu {
            Some(gpu) if !self.hub.config.makes(Mutant::NoFlush) => gpu.make_visible(),
            _ => Ok(()),
        }
    }

    /// Ends all that is under way, once nothing writes to their memory any more.
    pub(crate) fn end(&mut self, cause: &Error, connections: &mut Connections) {
        self.matching.end(cause);
        (self.due, self.awaited, self.held_back) = Default::default();
        for (_, receive) in std::mem::take(&mut self.paired) {
            self.part(receive, cause.clone(), connections);
        }
    }

    /// Whether all registrations are done, after the end.
    pub(crate) fn is_quiet(&self) -> bool {
        self.failed.iter().all(FailedTransfer::is_quiet)
    }

    /// Ends the tickets: nothing writes to their memory any more.
    pub(crate) fn settle(&mut self) {
        self.failed.drain(..).for_each(FailedTransfer::settle);
    }

    /// Fails a receive that nothing is written to any more, or, at the end, will be when the queue pairs are gone.
    fn part(&mut self, receive: Receive, error: Error, connections: &mut Connections) {
        let memory = match receive.stage {
            Stage::Waiting => Vec::new(),
            Stage::Registering(lanes) => lanes.into_iter().map(|(_, registering)| registering).collect(),
            Stage::Registered(target) | Stage::Open(target) => {
                let lanes = target.lanes.into_iter().map(|lane| {
                    if let Some(pair) = connections.pair(lane.pair) {
                        // They are still there, for whatever comes next (`Connections::use_up`).
                        pair.spare += u32::try_from(lane.posted - lane.arrived).unwrap_or(0);
                    }
                    Registering::Done(Ok(lane.memory))
                });
                lanes.collect()
            }
        };
        self.failed.push(FailedTransfer::new(receive.operation.ticket, error, memory));
    }

    fn nonsense(&self, what: String) -> Error {
        Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() }
    }
}
