//! The sends of a channel.
//!
//! A send is announced when it is started, and said to be ready when the caller's event has passed. What the receiver then offers
//! (where to write, over which queue pairs, in pieces of which length) is written as receives are posted for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use meshreduce_verbs_loader::RemoteMemory;

use crate::channel::{Io, Operation};
use crate::error::Error;
use crate::gdr::connect::Connections;
use crate::gdr::failed_transfer::FailedTransfer;
use crate::gdr::hub::Hub;
use crate::gdr::memory::{Registered, Registering, Use};
use crate::gdr::message::{Lane, Message};
use crate::gdr::plan::Plan;
use crate::gdr::queue_pair::{Owner, Write};
use crate::gdr::starved::Starved;
use crate::gdr::work::Immediate;
use crate::matching::{Notice, Refusal, Sending, Sends};
use crate::watch::Wait;

/// Writes that one transfer posts on a queue pair before it is another's turn.
const TURN: u32 = 64;

/// The sends of a channel.
#[derive(Debug)]
pub(crate) struct Outgoing {
    hub: Arc<Hub>,
    served: usize,
    peer: Arc<str>,
    sends: Sends<Send>,
    /// Those that go on by looking: what they wait for is not told. All others are left alone until something happens to them.
    due: BTreeSet<u64>,
    starved: Starved,
    /// Those that were offered memory, whose completions are looked for.
    going: BTreeSet<u64>,
    /// Those that have come to nothing while their memory was being registered.
    failed: Vec<FailedTransfer>,
}

/// What is kept of a send.
#[derive(Debug)]
struct Send {
    wait: Result<Wait, Error>,
    /// The receiver knows that it is ready.
    told: bool,
    /// The receiver was told that it is not wanted any more.
    withdrawn: bool,
    going: Option<ActiveSend>,
}

/// What the receiver has offered.
#[derive(Debug)]
struct ActiveSend {
    address: u64,
    plan: Plan,
    lanes: Vec<SendLane>,
    /// Whether anything was posted.
    begun: bool,
    /// Bytes that have been acknowledged.
    done: u64,
}

/// A queue pair's share of a send.
#[derive(Debug)]
struct SendLane {
    lane: Lane,
    /// Pieces that were posted.
    posted: u64,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Registering(Registering),
    Registered(Registered),
}

impl Outgoing {
    pub(crate) fn new(hub: &Arc<Hub>, served: usize, peer: &Arc<str>) -> Self {
        let sends = Sends::new(Arc::clone(peer));
        Self {
            hub: Arc::clone(hub),
            served,
            peer: Arc::clone(peer),
            sends,
            due: BTreeSet::new(),
            starved: Starved::default(),
            going: BTreeSet::new(),
            failed: Vec::new(),
        }
    }

    pub(crate) fn start(&mut self, operation: Operation, io: &mut Io<'_>) {
        let mut wait = self.hub.watch.begin(&operation.ready);
        let told = wait.as_mut().is_ok_and(|wait| wait.is_over(io.now()).unwrap_or(false));
        let (number, bytes) = (operation.ticket.number(), operation.span.bytes);
        io.send(Notice::Announced { number, bytes, payload: vec![u8::from(told)] }.encode());
        self.sends.insert(operation, Send { wait, told, withdrawn: false, going: None });
        if !told {
            self.due.insert(number);
        }
    }

    /// Nothing is to be done for a send any more.
    fn forget(&mut self, number: u64) {
        self.due.remove(&number);
        self.going.remove(&number);
    }

    /// Takes a send out.
    fn remove(&mut self, number: u64) -> Result<Sending<Send>, Error> {
        self.forget(number);
        self.sends.remove(number)
    }

    /// The receiver does not take a send.
    pub(crate) fn refused(&mut self, number: u64, refusal: Refusal) -> Result<(), Error> {
        self.check_unbegun(number)?;
        self.forget(number);
        let (sending, error) = self.sends.refused(number, refusal)?;
        self.part(sending.operation, sending.state, error);
        Ok(())
    }

    /// The receiver is ready.
    pub(crate) fn offered(
        &mut self,
        number: u64,
        address: u64,
        piece: u64,
        lanes: Vec<Lane>,
        connections: &mut Connections,
    ) -> Result<(), Error> {
        let Some(sending) = self.sends.get_mut(number) else {
            return Err(self.nonsense(format!("receive {number} is ready, which no send is under way for")));
        };
        let span = sending.operation.span;
        // The receiver hears that it is not wanted, and answers; but of what has no bytes it is done, and answers nothing.
        if sending.state.withdrawn && span.bytes > 0 {
            return Ok(());
        }
        let sensible = sending.state.going.is_none()
            && lanes.iter().all(|lane| connections.pair(lane.pair).is_some())
            && lanes.is_empty() == (span.bytes == 0)
            // Who receives nothing waits for the sender all the same.
            && (span.bytes > 0 || sending.state.told)
            && piece <= u64::from(u32::MAX);
        let plan = Plan::told(span.bytes, piece, lanes.len().max(1)).filter(|_| sensible);
        let Some(plan) = plan else {
            return Err(self.nonsense(format!("receive {number} is ready in a way that makes no sense")));
        };
        let memory = if span.bytes > 0 { Some(self.hub.locate(self.served, span)) } else { None };
        let lanes = lanes.into_iter().filter_map(|lane| {
            let nic = connections.pair(lane.pair)?.nic;
            let registering = match memory.as_ref()? {
                // SAFETY: the memory of an operation is valid until its ticket has ended. That is ended only when the
                // registration has been made and dropped: by `part` where it is still being made.
                Ok(memory) => unsafe { self.hub.register(nic, *memory, Use::Send) },
                Err(error) => Registering::Done(Err(error.clone())),
            };
            Some(SendLane { lane, posted: 0, memory: Memory::Registering(registering) })
        });
        sending.state.going =
            Some(ActiveSend { address, plan, lanes: lanes.collect(), begun: false, done: 0 });
        self.due.insert(number);
        self.going.insert(number);
        Ok(())
    }

    /// The receiver has posted further receives.
    pub(crate) fn posted(&mut self, number: u64, lane: u8, receives: u32) -> Result<(), Error> {
        // The receive may have been revoked, and the send cancelled, meanwhile.
        let Some(sending) = self.sends.get_mut(number) else { return Ok(()) };
        if sending.state.withdrawn {
            return Ok(());
        }
        let going = sending.state.going.as_mut();
        match going.and_then(|going| going.lanes.get_mut(usize::from(lane))) {
            Some(lane) => {
                lane.lane.receives = lane.lane.receives.saturating_add(receives);
                self.due.insert(number);
                Ok(())
            }
            None => Err(self
                .nonsense(format!("receives are posted for send {number}, which nothing was offered for"))),
        }
    }

    /// The receiver does not want it any more, after having been ready.
    pub(crate) fn revoked(&mut self, number: u64, io: &mut Io<'_>) -> Result<(), Error> {
        let begun = |send: &Send| send.going.as_ref().is_some_and(|going| going.begun);
        match self.sends.get_mut(number) {
            // It has been done, or will be in a moment.
            None => Ok(()),
            Some(sending) if begun(&sending.state) => Ok(()),
            // The receiver hears that of the send, and answers it.
            Some(sending) if sending.state.withdrawn => Ok(()),
            Some(_) => {
                let what = format!("receive {number} was dropped");
                let error = Error::Remote { peer: Arc::clone(&self.peer), what: what.clone().into() };
                self.cancel(number, what, error, io)
            }
        }
    }

    /// The receive has come to nothing.
    pub(crate) fn cancelled(&mut self, number: u64, what: String) -> Result<(), Error> {
        self.check_unbegun(number)?;
        let sending = self.remove(number)?;
        let error = Error::Remote { peer: Arc::clone(&self.peer), what: what.into() };
        self.part(sending.operation, sending.state, error);
        Ok(())
    }

    /// Writes of a send have been acknowledged.
    pub(crate) fn written(&mut self, number: u64, bytes: u64) -> Result<(), Error> {
        let Some(sending) = self.sends.get_mut(number) else { return Ok(()) };
        let Some(going) = &mut sending.state.going else { return Ok(()) };
        going.done += bytes;
        sending.operation.ticket.progress(bytes);
        if going.done == sending.operation.span.bytes {
            let sending = self.remove(number)?;
            // The registration goes before the memory is given back.
            drop(sending.state);
            sending.operation.ticket.done();
        }
        Ok(())
    }

    /// Goes on with those for which something may be to be done. Whether anything has moved, and whether something is to be looked for.
    pub(crate) fn poll(
        &mut self,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<(bool, bool), Error> {
        for number in self.sends.newly_aborted() {
            self.abort(number, io)?;
        }
        if !self.starved.is_empty() {
            let (state, sends, due) = (self.hub.state(), &self.sends, &mut self.due);
            let room = |pair| connections.pair(pair).map_or(0, |pair| pair.room_for_writes(&state));
            self.starved.take(room, |number| !sends.has(number), |number| due.extend([number]));
        }
        let mut moved = false;
        let mut over = Vec::new();
        for number in std::mem::take(&mut self.due) {
            let Some(sending) = self.sends.get_mut(number) else { continue };
            let ready = match sending.state.wait.as_mut().map(|wait| wait.is_over(io.now())) {
                Ok(Ok(ready)) => ready,
                Ok(Err(error)) => {
                    sending.state.wait = Err(error);
                    true
                }
                Err(_) => true,
            };
            if !ready {
                self.due.insert(number);
            }
            if ready && !sending.state.told {
                sending.state.told = true;
                moved = true;
                io.send(Message::ReadyToSend { number }.to_bytes());
            }
            let Some(going) = sending.state.going.as_mut().filter(|_| ready) else { continue };
            if let Err(error) = &sending.state.wait {
                over.push((number, Some(error.clone())));
                continue;
            }
            if going.lanes.is_empty() {
                over.push((number, None));
                continue;
            }
            match going.registered() {
                Ok(true) => {
                    moved |= going.post(&self.hub, number, sending.operation.span.address, connections)?;
                    // Of the others there is nothing that could be posted until the receiver has posted more.
                    for (index, lane) in going.lanes.iter().enumerate() {
                        if lane.posted < going.allowed(index, lane) {
                            self.starved.wait(lane.lane.pair, number);
                        }
                    }
                }
                // That is not told.
                Ok(false) => self.due.extend([number]),
                Err(error) => over.push((number, Some(error))),
            }
        }
        for (number, error) in over {
            moved = true;
            let has_bytes = self.sends.get_mut(number).is_some_and(|one| one.operation.span.bytes > 0);
            match error {
                Some(error) if has_bytes => self.cancel(number, error.to_string(), error, io)?,
                // The receiver, who has nothing to wait for, was done when it was ready.
                Some(error) => self.remove(number)?.operation.ticket.fail(error),
                None => self.remove(number)?.operation.ticket.done(),
            }
        }
        self.failed.retain_mut(|failed| !failed.is_over());
        // Whoever is starved is going.
        let looking = !(self.due.is_empty() && self.going.is_empty() && self.failed.is_empty());
        Ok((moved, looking))
    }

    /// Ends all that is under way, once nothing reads their memory any more.
    pub(crate) fn end(&mut self, cause: &Error) {
        (self.due, self.going) = (BTreeSet::new(), BTreeSet::new());
        let all: Vec<_> = self.sends.take_all().collect();
        for sending in all {
            self.part(sending.operation, sending.state, cause.clone());
        }
    }

    /// Whether all registrations are done, after the end.
    pub(crate) fn is_quiet(&self) -> bool {
        self.failed.iter().all(FailedTransfer::is_quiet)
    }

    /// Ends the tickets: nothing reads their memory any more.
    pub(crate) fn settle(&mut self) {
        self.failed.drain(..).for_each(FailedTransfer::settle);
    }

    /// A send is not wanted any more.
    fn abort(&mut self, number: u64, io: &mut Io<'_>) -> Result<(), Error> {
        let Some(sending) = self.sends.get_mut(number) else { return Ok(()) };
        match &sending.state.going {
            None => {
                sending.state.withdrawn = true;
                io.send(Notice::Withdrawn { number }.encode());
                Ok(())
            }
            // It is done sooner than it could be taken back; of what has no bytes the receiver is done already.
            Some(going) if going.begun || going.lanes.is_empty() => Ok(()),
            Some(_) => self.cancel(number, format!("send {number} was dropped"), Error::Dropped, io),
        }
    }

    /// Whoever has offered his memory cannot say any more that nothing is read of this side's.
    fn check_unbegun(&mut self, number: u64) -> Result<(), Error> {
        let going = self.sends.get_mut(number).and_then(|sending| sending.state.going.as_ref());
        match going.is_some_and(|going| going.begun) {
            true => Err(self.nonsense(format!("send {number} is not wanted any more, and is under way"))),
            false => Ok(()),
        }
    }

    /// Ends a send of which nothing was posted.
    fn cancel(&mut self, number: u64, what: String, error: Error, io: &mut Io<'_>) -> Result<(), Error> {
        io.send(Message::Cancelled { number, send: true, what }.to_bytes());
        let sending = self.remove(number)?;
        self.part(sending.operation, sending.state, error);
        Ok(())
    }

    fn part(&mut self, operation: Operation, state: Send, error: Error) {
        let lanes = state.going.map_or(Vec::new(), |going| going.lanes);
        let memory = lanes.into_iter().map(|lane| match lane.memory {
            Memory::Registering(registering) => registering,
            Memory::Registered(registered) => Registering::Done(Ok(registered)),
        });
        self.failed.push(FailedTransfer::new(operation.ticket, error, memory.collect()));
    }

    fn nonsense(&self, what: String) -> Error {
        Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() }
    }
}

impl ActiveSend {
    /// Whether all NICs know the memory.
    fn registered(&mut self) -> Result<bool, Error> {
        let mut all = true;
        for lane in &mut self.lanes {
            if let Memory::Registering(registering) = &mut lane.memory {
                match registering.outcome() {
                    Some(outcome) => lane.memory = Memory::Registered(outcome?),
                    None => all = false,
                }
            }
        }
        Ok(all)
    }

    /// How many pieces may be posted on a lane, all that were posted among them.
    fn allowed(&self, index: usize, lane: &SendLane) -> u64 {
        u64::from(lane.lane.receives).min(self.plan.pieces_over(index))
    }

    /// Posts what there is room for. Whether it has posted anything.
    fn post(
        &mut self,
        hub: &Hub,
        number: u64,
        from: u64,
        connections: &mut Connections,
    ) -> Result<bool, Error> {
        let mut state = hub.state();
        let mut any = false;
        for index in 0..self.lanes.len() {
            let allowed = self.allowed(index, &self.lanes[index]) - self.lanes[index].posted;
            let lane = &mut self.lanes[index];
            let Memory::Registered(memory) = &lane.memory else { continue };
            let Some(pair) = connections.pair(lane.lane.pair).filter(|_| allowed > 0) else { continue };
            let (plan, address, rkey, lkey) = (self.plan, self.address, lane.lane.rkey, memory.lkey());
            let pieces = (lane.posted..).map_while(|n| plan.nth_over(index, n));
            let writes = pieces.map(|piece| Write {
                from: from + piece.start,
                // Pieces are that short: it was checked when they were offered.
                bytes: (piece.end - piece.start) as u32,
                lkey,
                to: RemoteMemory { address: address.wrapping_add(piece.start), rkey },
                immediate: Some(Immediate::Transfer(number as u32)),
            });
            let most = TURN.min(u32::try_from(allowed).unwrap_or(u32::MAX));
            // SAFETY: the memory of the operation is valid, and nobody writes it, until its ticket has ended, which it does when
            // all its writes have been acknowledged (`written`), or when the queue pairs are gone (`settle`); until then the
            // lanes hold the registration. The other side has offered what is written.
            let posted = unsafe { pair.post(&mut state, Owner::Send(number), most, writes) };
            match posted {
                Ok(posted) => {
                    lane.posted += u64::from(posted);
                    any |= posted > 0;
                    self.begun |= posted > 0;
                }
                // It shows in the pair, with what comes after it.
                Err(_) => self.begun = true,
            }
        }
        Ok(any)
    }
}

#[cfg(test)]
mod tests;
