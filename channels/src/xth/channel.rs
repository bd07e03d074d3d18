//! An xth channel.

use std::collections::VecDeque;
use std::sync::Arc;

use meshreduce_device::{PrimaryContext, copy_between};
use meshreduce_store::codec::{Malformed, Reader, Writer};

use super::exchange::{Phase, Shower, Shown, Taken, find};
use super::write::{self, Writes};
use crate::channel::{Activity, Batch, Channel, Direction, Io, Message, Operation, OtherHalf, Ready, Rest};
use crate::error::Error;
use crate::lane::Mark;
use crate::lanes::{Gate, Lanes};
use crate::matching::{FIRST_OWN_TAG, Met, Notice, Receives, Refusal, Sends};

/// That a receive is done.
const TAKEN: u8 = FIRST_OWN_TAG;
/// Bytes that the host copies before others have their turn.
const TURN: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct XthChannel {
    peer: Arc<str>,
    /// The other device's, if both are of CUDA.
    remote: Option<Arc<PrimaryContext>>,
    lanes: Lanes,
    writes: Writes,
    sends: Sends<Shower>,
    /// What is announced is shown; `None`: no more, its side is over.
    receives: Receives<Option<Arc<Shown>>>,
    copies: VecDeque<Copying>,
    /// Receives whose sends were taken back because their side is over, of which the link tells soon.
    orphans: Vec<Operation>,
    /// Why it is over.
    cause: Option<Error>,
}

/// A receive that reads the other side's memory.
#[derive(Debug)]
struct Copying {
    operation: Operation,
    taken: Taken,
    how: How,
}

#[derive(Debug)]
enum How {
    /// A device copies, and has done so when the mark has passed.
    Device(Mark),
    /// The host copies when both gates are open; bytes that are there.
    Host { own: Gate, other: Gate, done: u64 },
}

impl XthChannel {
    pub(super) fn new(
        peer: Arc<str>,
        context: Option<Arc<PrimaryContext>>,
        remote: Option<Arc<PrimaryContext>>,
        has_access: bool,
    ) -> Self {
        let apart = remote.clone().filter(|_| !has_access);
        Self {
            writes: Writes::new(Arc::clone(&peer), context.clone(), apart),
            sends: Sends::new(Arc::clone(&peer)),
            receives: Receives::new(Arc::clone(&peer)),
            peer,
            remote,
            lanes: Lanes::new(context),
            copies: VecDeque::new(),
            orphans: Vec::new(),
            cause: None,
        }
    }

    fn meet(&mut self, met: Option<Met<Option<Arc<Shown>>>>, io: &mut Io<'_>) -> Result<(), Error> {
        match met {
            None | Some(Met::Nothing) => Ok(()),
            Some(Met::Refused { notice, .. }) => {
                io.send(notice.encode());
                Ok(())
            }
            Some(Met::Pair(paired)) => self.begin(paired.operation, paired.announcement, io),
        }
    }

    /// Begins to read what the other side shows.
    fn begin(
        &mut self,
        operation: Operation,
        shown: Option<Arc<Shown>>,
        io: &mut Io<'_>,
    ) -> Result<(), Error> {
        let Some(taken) = shown.and_then(Shown::take) else {
            self.orphans.push(operation);
            return Ok(());
        };
        if let Ready::Refused(error) = taken.ready() {
            let what = format!("send {} has failed: {error}", operation.ticket.number()).into();
            let error = Error::Remote { peer: Arc::clone(&self.peer), what };
            refuse(operation, taken, error, io);
            return Ok(());
        }
        let how = match self.lanes.context().cloned() {
            None => How::Host { own: Gate::Shut, other: Gate::Shut, done: 0 },
            Some(context) => {
                let copied = copy(&mut self.lanes, &context, self.remote.as_deref(), &operation, &taken);
                match copied {
                    Ok(Copied::Behind(mark)) => How::Device(mark),
                    Ok(Copied::Refused(error)) => {
                        refuse(operation, taken, error, io);
                        return Ok(());
                    }
                    Err(error) => {
                        // Something may have been enqueued all the same: it ends when the lane is idle.
                        let how = How::Host { own: Gate::Shut, other: Gate::Shut, done: 0 };
                        self.copies.push_back(Copying { operation, taken, how });
                        return Err(error);
                    }
                }
            }
        };
        self.copies.push_back(Copying { operation, taken, how });
        Ok(())
    }

    /// Ends a receive that was withdrawn, if nothing was copied yet and the host would do it; whether it did.
    fn give_up(&mut self, number: u64) -> bool {
        let is_it = |copying: &Copying| {
            let has_not_begun = matches!(copying.how, How::Host { done: 0, .. });
            copying.operation.ticket.number() == number && has_not_begun
        };
        let at = self.copies.iter().position(is_it);
        let Some(Copying { operation, taken, .. }) = at.and_then(|at| self.copies.remove(at)) else {
            return false;
        };
        taken.give_up();
        operation.ticket.fail(self.receives.withdrawn_by_peer(number));
        true
    }

    /// Makes copies of the host go on, and ends those that are done.
    fn advance(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        let mut left = TURN;
        while let Some(Copying { operation, taken, how }) = self.copies.front_mut() {
            let number = operation.ticket.number();
            match how {
                How::Device(mark) if !self.lanes.has_passed(*mark) => {
                    return Ok(activity.max(Activity::Waiting));
                }
                How::Device(mark) => {
                    if let Err(error) = self.lanes.vouch(*mark) {
                        let Some(Copying { operation, taken, .. }) = self.copies.pop_front() else { break };
                        refuse(operation, taken, error, io);
                        activity = Activity::Moved;
                        continue;
                    }
                }
                How::Host { done: 0, .. } if operation.ticket.is_aborted() => {
                    let Some(Copying { operation, taken, .. }) = self.copies.pop_front() else { break };
                    taken.give_up();
                    io.send(Notice::Refused { number, refusal: Refusal::Dropped }.encode());
                    operation.ticket.fail(Error::Dropped);
                    activity = Activity::Moved;
                    continue;
                }
                How::Host { own, other, done } => {
                    let now = io.now();
                    let passed = match self.lanes.pass(own, &operation.ready, now) {
                        Ok(true) => self.lanes.pass(other, taken.ready(), now),
                        not => not,
                    };
                    match passed {
                        Ok(true) => {}
                        Ok(false) => return Ok(activity.max(Activity::Waiting)),
                        Err(error) => {
                            let Some(Copying { operation, taken, .. }) = self.copies.pop_front() else {
                                break;
                            };
                            refuse(operation, taken, error, io);
                            activity = Activity::Moved;
                            continue;
                        }
                    }
                    let (from, to, total) =
                        (taken.span().address, operation.span.address, operation.span.bytes);
                    let bytes = (total - *done).min(left);
                    let from = std::ptr::with_exposed_provenance::<u8>((from + *done) as usize);
                    let to = std::ptr::with_exposed_provenance_mut::<u8>((to + *done) as usize);
                    if bytes > 0 {
                        // SAFETY: the send's memory is valid and not written until its side learns that it is done with; the
                        // receive's is valid and nobody else's until its ticket has ended. So they do not overlap.
                        unsafe { from.copy_to_nonoverlapping(to, bytes as usize) };
                    }
                    *done += bytes;
                    left -= bytes;
                    operation.ticket.progress(bytes);
                    activity = Activity::Moved;
                    if *done < total {
                        return Ok(activity);
                    }
                }
            }
            let Some(Copying { operation, taken, .. }) = self.copies.pop_front() else { break };
            taken.done();
            io.send(taken_message(number));
            operation.ticket.done();
            activity = Activity::Moved;
        }
        Ok(activity)
    }

    /// How far the reader of a send is of which the other side says that it is over: nobody reads it any more, or will.
    fn read(&mut self, number: u64) -> Result<Phase, Error> {
        // Where there is none the caller learns that.
        let Some(sending) = self.sends.get_mut(number) else { return Ok(Phase::Done) };
        let shown = sending.state.shown();
        shown.withdraw();
        match shown.phase() {
            phase @ (Phase::Done | Phase::Withdrawn) => Ok(phase),
            Phase::Shown | Phase::Taken | Phase::Lost => {
                let what = format!("send {number} is answered while it is being read");
                Err(Error::protocol(&self.peer, what))
            }
        }
    }

    /// Ends the sends that nobody reads any more, behind the end of the channel.
    fn end_sends(&mut self, cause: &Error) -> bool {
        let mut under_way = Vec::new();
        for sending in self.sends.take_all() {
            let shown = sending.state.shown();
            match shown.phase() {
                Phase::Shown if shown.withdraw() => sending.operation.ticket.fail(cause.clone()),
                Phase::Withdrawn => sending.operation.ticket.fail(cause.clone()),
                Phase::Done => sending.operation.ticket.done(),
                // Its memory is lost.
                Phase::Lost => drop(sending.operation.ticket),
                Phase::Shown | Phase::Taken => under_way.push(sending),
            }
        }
        let is_over = under_way.is_empty();
        for sending in under_way {
            self.sends.insert(sending.operation, sending.state);
        }
        is_over
    }
}

/// Fails a receive by what the driver has said of it alone.
fn refuse(operation: Operation, taken: Taken, error: Error, io: &mut Io<'_>) {
    let number = operation.ticket.number();
    taken.give_up();
    let refusal = Refusal::Failed { what: error.to_string() };
    io.send(Notice::Refused { number, refusal }.encode());
    operation.ticket.fail(error);
}

/// What the driver has made of a copy.
enum Copied {
    /// It is done when the mark has passed.
    Behind(Mark),
    /// Nothing: it has copied nothing, and will not.
    Refused(Error),
}

/// Enqueues the copy of what was taken, behind whatever both callers have to do first.
fn copy(
    lanes: &mut Lanes,
    here: &PrimaryContext,
    there: Option<&PrimaryContext>,
    operation: &Operation,
    taken: &Taken,
) -> Result<Copied, Error> {
    let (to, from, bytes) = (operation.span.address, taken.span().address, operation.span.bytes);
    let there = there.unwrap_or(here);
    let lane = lanes.own()?;
    for ready in [&operation.ready, taken.ready()] {
        if let Err(error) = lane.wait_for(ready) {
            return Ok(Copied::Refused(error.into()));
        }
    }
    let attempt = lane.attempt(|_, stream| {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the send's memory is valid on its device and not written until its side learns that it is done with, which is
        // behind the mark; the receive's is valid on this device and nobody else's until its ticket has ended, also behind it.
        // The stream is the lane's, of this device's context.
        unsafe { copy_between((here, to), (there, from), bytes, stream) }
    })?;
    Ok(match attempt.refused {
        Some(error) => Copied::Refused(error.into()),
        None => Copied::Behind(attempt.mark),
    })
}

pub(super) fn taken_message(number: u64) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(TAKEN);
    out.u64(number);
    out.into_bytes()
}

fn read_taken(message: &[u8]) -> Result<u64, Malformed> {
    let mut from = Reader::new(message);
    let (tag, number) = (from.u8()?, from.u64()?);
    from.end()?;
    if tag == TAKEN { Ok(number) } else { Err(Malformed::wrong(format!("a message with the tag {tag}"))) }
}

impl Channel for XthChannel {
    fn start(&mut self, operation: Operation, io: &mut Io<'_>) -> Result<(), Error> {
        match operation.direction {
            Direction::Send => {
                let shower = Shower::new(operation.span, operation.ready.clone());
                let (number, bytes) = (operation.ticket.number(), operation.span.bytes);
                let payload = shower.token().to_le_bytes().to_vec();
                io.send(Notice::Announced { number, bytes, payload }.encode());
                self.sends.insert(operation, shower);
                Ok(())
            }
            Direction::Receive => {
                let met = self.receives.start(operation);
                self.meet(met, io)
            }
        }
    }

    fn write(&mut self, batch: Batch, io: &mut Io<'_>) -> Result<(), Error> {
        self.writes.start(batch, io);
        Ok(())
    }

    fn heard(&mut self, message: Message<'_>, io: &mut Io<'_>) -> Result<(), Error> {
        let malformed = |error: Malformed| Error::protocol(&self.peer, error.to_string());
        match Notice::decode(message.bytes).map_err(malformed)? {
            Some(Notice::Announced { number, bytes, payload }) => {
                let token = <[u8; 8]>::try_from(&payload[..]).ok().map(u64::from_le_bytes);
                let Some(token) = token else {
                    return Err(Error::protocol(&self.peer, format!("send {number} shows nothing")));
                };
                let shown = find(token);
                if shown.as_ref().is_some_and(|shown| shown.span.bytes != bytes) {
                    return Err(Error::protocol(&self.peer, format!("send {number} shows something else")));
                }
                let met = self.receives.announced(number, bytes, shown)?;
                self.meet(met, io)
            }
            Some(Notice::Withdrawn { number }) => {
                // One that is being copied is answered when that is done.
                if self.receives.withdrawn(number)?.is_some() || self.give_up(number) {
                    io.send(Notice::Refused { number, refusal: Refusal::Dropped }.encode());
                }
                Ok(())
            }
            Some(Notice::Refused { number, refusal }) => {
                self.read(number)?;
                let (sending, error) = self.sends.refused(number, refusal)?;
                // The other side has met what this one's driver refused.
                let error = match &sending.operation.ready {
                    Ready::Refused(error) => error.clone().into(),
                    _ => error,
                };
                sending.operation.ticket.fail(error);
                Ok(())
            }
            None if write::heard(message.bytes, &self.peer, io).map_err(malformed)? => Ok(()),
            None => {
                let number = read_taken(message.bytes).map_err(malformed)?;
                if self.read(number)? != Phase::Done {
                    let what = format!("send {number} was received before it was read");
                    return Err(Error::protocol(&self.peer, what));
                }
                self.sends.remove(number)?.operation.ticket.done();
                Ok(())
            }
        }
    }

    fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        self.receives.drop_aborted();
        for number in self.sends.newly_aborted() {
            io.send(Notice::Withdrawn { number }.encode());
        }
        let activity = self.advance(io)?.max(self.writes.poll(io)?);
        self.lanes.check(io.now())?;
        Ok(activity)
    }

    fn end(&mut self, cause: &Error) {
        self.cause = Some(cause.clone());
        self.receives.end(cause);
        self.orphans.drain(..).for_each(|operation| operation.ticket.fail(cause.clone()));
        self.end_sends(cause);
    }

    fn linger(&mut self, _: OtherHalf) -> Rest {
        let cause = self.cause.clone().unwrap_or(Error::ContextClosed);
        let has_sent = self.end_sends(&cause) & self.writes.end(&cause);
        if !self.lanes.are_idle() {
            return Rest::Busy;
        }
        for Copying { operation, taken, how } in self.copies.drain(..) {
            // The send's side learns by this alone whether its data are there. A lane whose context is lost is idle as well.
            match how {
                How::Device(mark) if self.lanes.has_passed(mark) && self.lanes.vouch(mark).is_ok() => {
                    taken.done();
                    operation.ticket.done();
                }
                How::Device(_) | How::Host { .. } => {
                    taken.give_up();
                    operation.ticket.fail(cause.clone());
                }
            }
        }
        if has_sent { Rest::Over } else { Rest::Busy }
    }
}
