//! The receives of a channel.
//!
//! A receive that has been paired with its announcement, and whose caller's event has passed, is registered with the NICs that it
//! is to come over, and a receive is posted for each of its pieces, as far as there are credits. Then the sender is told.
//!
//! That is done as soon as the sender is ready; and before, so that the data can follow the sender's event at once, while there are
//! credits enough: those of a receive whose sender is not ready may be held for long, and the sender may be waiting for
//! another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::channel::{Io, Operation};
use crate::error::Error;
use crate::gdr::connect::Connections;
use crate::gdr::hub::Hub;
use crate::gdr::memory::{Registering, Use};
use crate::gdr::message::{Lane, Message};
use crate::gdr::mutant::Mutant;
use crate::gdr::parting::Parting;
use crate::gdr::target::{ReceiveLane, Target, has_plenty, most_receives};
use crate::gdr::work::widen;
use crate::matching::{Met, Notice, Paired, Receives, Refusal};
use crate::watch::Wait;

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
    parting: Vec<Parting>,
}

/// What is kept of an announcement.
#[derive(Debug)]
struct Announced {
    number: u64,
    /// The sender's event has passed.
    ready: bool,
}

/// A receive that has met its send.
#[derive(Debug)]
struct Receive {
    operation: Operation,
    wait: Result<Wait, Error>,
    sender_ready: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// For the caller's event, the sender, queue pairs, credits.
    Waiting,
    /// The NICs are told of the memory.
    Registering(Vec<(u8, Registering)>),
    /// The NICs know it; no receive is posted yet.
    Registered(Target),
    /// The sender may write, or does.
    Open(Target),
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
            parting: Vec::new(),
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
        if let Some(receive) = self.paired.remove(&number) {
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
        let Some(receive) = self.paired.remove(&number) else {
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
        found.ok_or_else(|| {
            self.nonsense(format!("a piece of a transfer ({lower} in 30 bits) that no receive is open for"))
        })
    }

    /// Goes on with all of them. Whether anything has moved, and whether something is to be looked for.
    pub(crate) fn poll(
        &mut self,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<(bool, bool), Error> {
        self.matching.drop_aborted();
        let (mut moved, mut looking) = (false, false);
        let mut over = Vec::new();
        for (number, receive) in &mut self.paired {
            let ready = match receive.wait.as_mut().map(|wait| wait.is_over(io.now())) {
                Ok(Ok(ready)) => ready,
                Ok(Err(error)) => {
                    receive.wait = Err(error);
                    true
                }
                Err(_) => true,
            };
            let step = match (&receive.wait, receive.operation.ticket.is_aborted()) {
                (_, true) => receive.abort(*number, io),
                (Err(error), _) if matches!(receive.stage, Stage::Waiting) => Step::Failed(error.clone()),
                _ if ready => receive.advance(&self.hub, self.served, *number, connections, io)?,
                _ => Step::Looking,
            };
            match step {
                Step::Idle => {}
                Step::Looking => looking = true,
                Step::Moved => (moved, looking) = (true, true),
                Step::Done | Step::Failed(_) | Step::Dropped => over.push((*number, step)),
            }
        }
        moved |= !over.is_empty();
        self.finish(over, connections, io)?;
        self.parting.retain_mut(|parting| !parting.is_over());
        Ok((moved, looking || !self.parting.is_empty()))
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
            let Some(receive) = self.paired.remove(&number) else { continue };
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
        for (_, receive) in std::mem::take(&mut self.paired) {
            self.part(receive, cause.clone(), connections);
        }
    }

    /// Whether all registrations are done, after the end.
    pub(crate) fn is_quiet(&self) -> bool {
        self.parting.iter().all(Parting::is_quiet)
    }

    /// Ends the tickets: nothing writes to their memory any more.
    pub(crate) fn settle(&mut self) {
        self.parting.drain(..).for_each(Parting::settle);
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
        self.parting.push(Parting::new(receive.operation.ticket, error, memory));
    }

    fn nonsense(&self, what: String) -> Error {
        Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() }
    }
}

/// What has come of a look at a receive.
enum Step {
    /// The other side has to say something.
    Idle,
    /// Something is to be looked for.
    Looking,
    /// Something was done.
    Moved,
    /// Everything has come.
    Done,
    /// It cannot be received.
    Failed(Error),
    /// It was dropped, and the sender was told nothing.
    Dropped,
}

impl Receive {
    /// It is not wanted any more.
    fn abort(&mut self, number: u64, io: &mut Io<'_>) -> Step {
        match &mut self.stage {
            Stage::Waiting | Stage::Registering(_) | Stage::Registered(_) => Step::Dropped,
            Stage::Open(target) if target.is_complete() => Step::Done,
            Stage::Open(target) => {
                if !target.revoked {
                    target.revoked = true;
                    io.send(Message::Revoke { number }.to_bytes());
                }
                Step::Looking
            }
        }
    }

    /// Goes on. The caller's event has passed.
    fn advance(
        &mut self,
        hub: &Arc<Hub>,
        served: usize,
        number: u64,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<Step, Error> {
        let span = self.operation.span;
        if span.bytes == 0 {
            if !self.sender_ready {
                return Ok(Step::Idle);
            }
            let message =
                Message::ReadyToReceive { number, address: span.address, piece: 1, lanes: Vec::new() };
            io.send(message.to_bytes());
            return Ok(Step::Done);
        }
        match &mut self.stage {
            Stage::Waiting => {
                let all = span.bytes >= hub.config.stripe;
                if !connections.need(all, io) {
                    return Ok(Step::Looking);
                }
                let lanes = connections.lanes();
                let lanes = match all {
                    true => lanes.to_vec(),
                    // Short ones take turns.
                    false => vec![lanes[(number % lanes.len() as u64) as usize]],
                };
                if !self.sender_ready && !has_plenty(hub, connections, &lanes) {
                    return Ok(Step::Idle);
                }
                let memory = match hub.locate(served, span) {
                    Ok(memory) => memory,
                    Err(error) => return Ok(Step::Failed(error)),
                };
                let registering = lanes.into_iter().filter_map(|index| {
                    let nic = connections.pair(index)?.nic;
                    // SAFETY: the memory of an operation is valid until its ticket has ended. That is ended only when the
                    // registration has been made and dropped: by `Parting` where it is still being made.
                    Some((index, unsafe { hub.register(nic, memory, Use::Receive) }))
                });
                self.stage = Stage::Registering(registering.collect());
                self.advance(hub, served, number, connections, io)
            }
            Stage::Registering(lanes) => {
                if !lanes.iter().all(|(_, registering)| registering.has_ended()) {
                    return Ok(Step::Looking);
                }
                let mut registered = Vec::new();
                for (pair, registering) in lanes {
                    match registering.outcome() {
                        Some(Ok(memory)) => {
                            registered.push(ReceiveLane { pair: *pair, memory, posted: 0, arrived: 0 })
                        }
                        Some(Err(error)) => return Ok(Step::Failed(error)),
                        // Each is asked once.
                        None => return Ok(Step::Looking),
                    }
                }
                let Some(target) = Target::new(hub, span.bytes, registered, connections) else {
                    return Ok(Step::Looking);
                };
                self.stage = Stage::Registered(target);
                self.advance(hub, served, number, connections, io)
            }
            Stage::Registered(target) => {
                let late = hub.config.makes(Mutant::AnswersBeforePosting);
                let most = most_receives(hub, self.sender_ready);
                if !late && !target.post(&mut hub.state(), most, connections).iter().any(|posted| *posted > 0)
                {
                    return Ok(Step::Looking);
                }
                target.opened = Some(io.now());
                let lanes = target.lanes.iter().enumerate().map(|(index, lane)| Lane {
                    pair: lane.pair,
                    rkey: lane.memory.rkey(),
                    receives: if late { target.plan.pieces_over(index) as u32 } else { lane.posted as u32 },
                });
                let (piece, lanes) = (target.plan.piece(), lanes.collect());
                io.send(Message::ReadyToReceive { number, address: span.address, piece, lanes }.to_bytes());
                self.stage = match std::mem::replace(&mut self.stage, Stage::Waiting) {
                    Stage::Registered(target) => Stage::Open(target),
                    other => other,
                };
                Ok(Step::Moved)
            }
            Stage::Open(target) if target.is_complete() => Ok(Step::Done),
            Stage::Open(target) => {
                if !self.sender_ready {
                    // Until the sender says so nothing comes.
                    return Ok(Step::Idle);
                }
                let late = hub.config.makes(Mutant::AnswersBeforePosting);
                let open_for = target.opened.map(|opened| io.now().saturating_duration_since(opened));
                if late && open_for < Some(MUTANT_LATE) {
                    return Ok(Step::Looking);
                }
                let posted = target.post(&mut hub.state(), u32::MAX, connections);
                for (lane, receives) in
                    posted.iter().enumerate().filter(|(_, receives)| **receives > 0 && !late)
                {
                    io.send(Message::Posted { number, lane: lane as u8, receives: *receives }.to_bytes());
                }
                Ok(if posted.iter().any(|receives| *receives > 0) { Step::Moved } else { Step::Looking })
            }
        }
    }
}

/// How late a mutant posts.
const MUTANT_LATE: Duration = Duration::from_millis(100);
