//! The sends of a channel.
//!
//! A send is announced when it is started, and said to be ready when the caller's event has passed. What the receiver then offers
//! (where to write, over which queue pairs, in pieces of which length) is written as receives are posted for it.

use std::sync::Arc;

use meshreduce_verbs_loader::RemoteMemory;

use crate::channel::{Io, Operation};
use crate::error::Error;
use crate::gdr::connect::Connections;
use crate::gdr::hub::Hub;
use crate::gdr::memory::{Registered, Registering, Use};
use crate::gdr::message::{Lane, Message};
use crate::gdr::parting::Parting;
use crate::gdr::plan::Plan;
use crate::gdr::queue_pair::{Owner, Write};
use crate::gdr::work::Immediate;
use crate::matching::{Notice, Refusal, Sends};
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
    /// Those that have come to nothing while their memory was being registered.
    parting: Vec<Parting>,
}

/// What is kept of a send.
#[derive(Debug)]
struct Send {
    wait: Result<Wait, Error>,
    /// The receiver knows that it is ready.
    told: bool,
    /// The receiver was told that it is not wanted any more.
    withdrawn: bool,
    going: Option<Going>,
}

/// What the receiver has offered.
#[derive(Debug)]
struct Going {
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
        Self { hub: Arc::clone(hub), served, peer: Arc::clone(peer), sends, parting: Vec::new() }
    }

    pub(crate) fn start(&mut self, operation: Operation, io: &mut Io<'_>) {
        let mut wait = self.hub.watch.begin(&operation.ready);
        let told = wait.as_mut().is_ok_and(|wait| wait.is_over(io.now()).unwrap_or(false));
        let (number, bytes) = (operation.ticket.number(), operation.span.bytes);
        io.send(Notice::Announced { number, bytes, payload: vec![u8::from(told)] }.encode());
        self.sends.insert(operation, Send { wait, told, withdrawn: false, going: None });
    }

    /// The receiver does not take a send.
    pub(crate) fn refused(&mut self, number: u64, refusal: Refusal) -> Result<(), Error> {
        self.check_unbegun(number)?;
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
        sending.state.going = Some(Going { address, plan, lanes: lanes.collect(), begun: false, done: 0 });
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
        let sending = self.sends.remove(number)?;
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
            let sending = self.sends.remove(number)?;
            // The registration goes before the memory is given back.
            drop(sending.state);
            sending.operation.ticket.done();
        }
        Ok(())
    }

    /// Goes on with all of them. Whether anything has moved, and whether something is to be looked for.
    pub(crate) fn poll(
        &mut self,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<(bool, bool), Error> {
        for number in self.sends.newly_aborted() {
            self.abort(number, io)?;
        }
        let (mut moved, mut looking) = (false, false);
        let mut over = Vec::new();
        for (number, sending) in self.sends.iter_mut() {
            let ready = match sending.state.wait.as_mut().map(|wait| wait.is_over(io.now())) {
                Ok(Ok(ready)) => ready,
                Ok(Err(error)) => {
                    sending.state.wait = Err(error);
                    true
                }
                Err(_) => true,
            };
            looking |= !ready;
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
                    moved |= going.post(&self.hub, number, sending.operation.span.address, connections)?
                }
                Ok(false) => {}
                Err(error) => over.push((number, Some(error))),
            }
            looking = true;
        }
        for (number, error) in over {
            moved = true;
            let has_bytes = self.sends.get_mut(number).is_some_and(|one| one.operation.span.bytes > 0);
            match error {
                Some(error) if has_bytes => self.cancel(number, error.to_string(), error, io)?,
                // The receiver, who has nothing to wait for, was done when it was ready.
                Some(error) => self.sends.remove(number)?.operation.ticket.fail(error),
                None => self.sends.remove(number)?.operation.ticket.done(),
            }
        }
        self.parting.retain_mut(|parting| !parting.is_over());
        Ok((moved, looking || !self.parting.is_empty()))
    }

    /// Ends all that is under way, once nothing reads their memory any more.
    pub(crate) fn end(&mut self, cause: &Error) {
        let all: Vec<_> = self.sends.take_all().collect();
        for sending in all {
            self.part(sending.operation, sending.state, cause.clone());
        }
    }

    /// Whether all registrations are done, after the end.
    pub(crate) fn is_quiet(&self) -> bool {
        self.parting.iter().all(Parting::is_quiet)
    }

    /// Ends the tickets: nothing reads their memory any more.
    pub(crate) fn settle(&mut self) {
        self.parting.drain(..).for_each(Parting::settle);
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
        let sending = self.sends.remove(number)?;
        self.part(sending.operation, sending.state, error);
        Ok(())
    }

    fn part(&mut self, operation: Operation, state: Send, error: Error) {
        let lanes = state.going.map_or(Vec::new(), |going| going.lanes);
        let memory = lanes.into_iter().map(|lane| match lane.memory {
            Memory::Registering(registering) => registering,
            Memory::Registered(registered) => Registering::Done(Ok(registered)),
        });
        self.parting.push(Parting::new(operation.ticket, error, memory.collect()));
    }

    fn nonsense(&self, what: String) -> Error {
        Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() }
    }
}

impl Going {
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
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let Memory::Registered(memory) = &lane.memory else { continue };
            let allowed = u64::from(lane.lane.receives).min(self.plan.pieces_over(index)) - lane.posted;
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
mod tests {
    use meshreduce_device::Device;

    use super::*;
    use crate::channel::{Direction, Ready, Side};
    use crate::gdr::receive::Incoming;
    use crate::gdr::testing::{Said, connections, hub};
    use crate::span::Span;
    use crate::transfer::{Transfer, testing::started};

    fn operation(direction: Direction, bytes: u64) -> (Operation, Transfer) {
        let (ticket, transfer) = started(direction, 0, bytes);
        let span = Span { device: Device::Cpu, address: 4096, bytes };
        (Operation { direction, span, ready: Ready::Now, ticket }, transfer)
    }

    #[test]
    fn a_send_without_bytes_that_is_withdrawn_while_the_receiver_answers_is_over() {
        let (hub, mut here, mut there) = (hub(), Said::default(), Said::default());
        let (mut near, mut far) = (connections(&hub, Side::Connecting), connections(&hub, Side::Listening));
        let (mut sends, mut receives) =
            (Outgoing::new(&hub, 0, &"far".into()), Incoming::new(&hub, 0, &"near".into()));
        let (send, sent) = operation(Direction::Send, 0);
        let (receive, received) = operation(Direction::Receive, 0);
        sends.start(send, &mut here.io());
        receives.start(receive, &mut there.io());
        receives.announced(0, 0, &[1], &mut there.io()).unwrap();
        receives.poll(&mut far, &mut there.io()).unwrap();
        assert!(received.poll().unwrap());
        sent.abort();
        here.take();
        sends.poll(&mut near, &mut here.io()).unwrap();
        assert_eq!(here.take(), [Notice::Withdrawn { number: 0 }.encode()]);
        let answer = Message::ReadyToReceive { number: 0, address: 4096, piece: 1, lanes: Vec::new() };
        assert_eq!(there.take(), [answer.to_bytes()]);
        receives.withdrawn(0, &mut far, &mut there.io()).unwrap();
        assert!(there.take().is_empty(), "it has been received");
        sends.offered(0, 4096, 1, Vec::new(), &mut near).unwrap();
        sends.poll(&mut near, &mut here.io()).unwrap();
        assert!(sent.poll().unwrap());
    }

    #[test]
    fn a_send_without_bytes_that_is_dropped_when_the_receiver_has_answered_cancels_nothing() {
        let (hub, mut here, mut there) = (hub(), Said::default(), Said::default());
        let (mut near, mut far) = (connections(&hub, Side::Connecting), connections(&hub, Side::Listening));
        let (mut sends, mut receives) =
            (Outgoing::new(&hub, 0, &"far".into()), Incoming::new(&hub, 0, &"near".into()));
        let (send, sent) = operation(Direction::Send, 0);
        let (receive, received) = operation(Direction::Receive, 0);
        sends.start(send, &mut here.io());
        assert_eq!(here.take().len(), 1, "it is announced");
        receives.start(receive, &mut there.io());
        receives.announced(0, 0, &[1], &mut there.io()).unwrap();
        receives.poll(&mut far, &mut there.io()).unwrap();
        assert!(received.poll().unwrap());
        // The answer is heard, and before the send is looked at again it is dropped.
        sends.offered(0, 4096, 1, Vec::new(), &mut near).unwrap();
        sent.abort();
        sends.poll(&mut near, &mut here.io()).unwrap();
        assert!(here.take().is_empty(), "there is nothing to cancel: it has been received");
        assert!(sent.poll().unwrap());
    }

    #[test]
    fn a_receiver_of_nothing_cannot_be_ready_before_the_sender_is() {
        let (hub, mut said) = (hub(), Said::default());
        let (mut sends, mut near) =
            (Outgoing::new(&hub, 0, &"far".into()), connections(&hub, Side::Connecting));
        let (send, sent) = operation(Direction::Send, 0);
        sends.start(send, &mut said.io());
        sends.sends.get_mut(0).unwrap().state.told = false;
        let error = sends.offered(0, 4096, 1, Vec::new(), &mut near).unwrap_err();
        assert!(error.to_string().contains("makes no sense"), "{error}");
        sends.end(&error);
        sends.settle();
        assert!(matches!(sent.poll(), Err(Error::Protocol { .. })));
    }

    /// A send of which the receiver has not heard yet that it was withdrawn.
    fn withdrawn() -> (Outgoing, Transfer, Connections, Said) {
        let (hub, mut said) = (hub(), Said::default());
        let (mut sends, mut connections) =
            (Outgoing::new(&hub, 0, &"far".into()), connections(&hub, Side::Connecting));
        let (send, sent) = operation(Direction::Send, 8);
        sends.start(send, &mut said.io());
        sent.abort();
        sends.poll(&mut connections, &mut said.io()).unwrap();
        said.take();
        let lanes = vec![Lane { pair: 0, rkey: 7, receives: 1 }];
        sends.offered(0, 4096, 8, lanes, &mut connections).unwrap();
        (sends, sent, connections, said)
    }

    /// The receiver has heard of it.
    fn is_over((mut sends, sent, mut connections, mut said): (Outgoing, Transfer, Connections, Said)) {
        sends.refused(0, Refusal::Dropped).unwrap();
        sends.poll(&mut connections, &mut said.io()).unwrap();
        assert!(matches!(sent.poll(), Err(Error::Dropped)));
    }

    #[test]
    fn a_transfer_that_both_sides_drop_is_over_on_both() {
        let (mut sends, sent, connections, mut said) = withdrawn();
        sends.revoked(0, &mut said.io()).unwrap();
        assert!(said.take().is_empty(), "the receiver answers the withdrawal");
        is_over((sends, sent, connections, said));
    }

    #[test]
    fn receives_that_are_posted_for_a_send_that_was_withdrawn_are_of_no_interest() {
        let (mut sends, sent, connections, said) = withdrawn();
        sends.posted(0, 0, 3).unwrap();
        is_over((sends, sent, connections, said));
    }
}
