//! One-sided writes: copies into the other side's regions, by this side's stream.

use std::collections::{HashMap, VecDeque};
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use meshreduce_device::{DriverError, Stream, Word};

use super::channel::Here;
use super::imports::{Closing, Imported};
use super::message::{Message, RegionOffer};
use super::region::{self, Part};
use crate::channel::{Activity, Batch, Io, Page, Ready, RegionPart};
use crate::error::Error;
use crate::region::Copies;
use crate::stall_check::StallCheck;
use crate::transfer::{Aborts, Ticket};

#[derive(Debug, Default)]
pub(super) struct Writes {
    way: Option<Way>,
    /// By its number.
    targets: HashMap<u64, Target>,
    /// Batches that were not enqueued in whole, in order.
    line: VecDeque<Writing>,
    aborts: Aborts,
    /// Those that were, as they are in the stream.
    flying: VecDeque<InFlight>,
    /// Targets that are being closed.
    closing: Vec<(u64, Closing)>,
}

#[derive(Debug)]
struct Way {
    stream: Stream,
    /// Written by the stream behind each batch.
    word: Word,
    turn: u32,
    stall_check: StallCheck,
}

impl Way {
    fn new(here: &Here) -> Result<Self, DriverError> {
        let stream = Stream::new(&here.used.context)?;
        Ok(Self { stream, word: here.used.words.take()?, turn: 0, stall_check: StallCheck::default() })
    }
}

/// A region of the other side.
#[derive(Debug, Default)]
struct Target {
    /// `None`: the owner was asked.
    open: Option<Open>,
    /// Batches of which something was enqueued and is not done.
    in_use: u32,
    /// The owner gives it up.
    is_withdrawn: bool,
}

#[derive(Debug)]
struct Open {
    memory: Arc<Imported>,
    address: u64,
    bytes: u64,
}

/// What is told of a batch at its end.
#[derive(Debug)]
struct BatchCompletion {
    ticket: Ticket,
    counter: u32,
    bytes: u64,
    fate: Option<Error>,
    /// Keeps the memory that is read, until [`BatchCompletion::end`]: for ever if the channel is dropped before, because the stream may go on
    /// then.
    local: ManuallyDrop<Arc<dyn RegionPart>>,
}

#[derive(Debug)]
struct Writing {
    target: u64,
    from: u64,
    /// That which reaches furthest in the target.
    furthest: Option<Page>,
    copies: Copies,
    ready: Ready,
    has_begun: bool,
    told: BatchCompletion,
}

#[derive(Debug)]
struct InFlight {
    target: u64,
    turn: u32,
    told: BatchCompletion,
}

impl BatchCompletion {
    fn end(self, io: Option<&mut Io<'_>>) {
        let BatchCompletion { ticket, counter, bytes, fate, local } = self;
        match fate {
            Some(error) => {
                if let Some(io) = io {
                    io.send(Message::Missed { counter, why: error.to_string() }.to_bytes());
                }
                ticket.fail(error);
            }
            None => {
                if let Some(io) = io {
                    io.send(Message::Landed { counter, bytes }.to_bytes());
                }
                ticket.done();
            }
        }
        drop(ManuallyDrop::into_inner(local));
    }
}

impl Writes {
    pub(super) fn start(&mut self, batch: Batch, here: &Here, io: &mut Io<'_>) -> Result<(), Error> {
        let Batch { local, remote, pages, bytes, counter, ready, ticket } = batch;
        self.aborts.watch(&ticket);
        let from = local.as_any().downcast_ref::<Part>().map(Part::span);
        let mut told =
            BatchCompletion { ticket, counter, bytes, fate: None, local: ManuallyDrop::new(local) };
        let number = match (region::number(&remote), from) {
            (Ok(number), Some(from)) if from.device == here.local => Ok((number, from.address)),
            (Ok(_), _) => {
                Err(Error::BadMemory { what: "the local region is not of this channel's device".into() })
            }
            (Err(error), _) => Err(Error::BadDescriptor { what: error.to_string().into() }),
        };
        let (target, from) = match number {
            Ok(found) => found,
            Err(error) => {
                told.fate = Some(error);
                told.end(Some(io));
                return Ok(());
            }
        };
        if self.way.is_none() {
            match Way::new(here) {
                Ok(way) => self.way = Some(way),
                Err(error) => {
                    told.fate = Some(error.into());
                    told.end(Some(io));
                    return Ok(());
                }
            }
        }
        match self.targets.get(&target) {
            Some(known) if known.is_withdrawn => {
                told.fate = Some(here.gone("its owner is giving it up"));
                told.end(Some(io));
                return Ok(());
            }
            Some(_) => {}
            None => {
                self.targets.insert(target, Target::default());
                io.send(Message::Open { region: target }.to_bytes());
            }
        }
        let furthest = pages.iter().max_by_key(|page| page.to.saturating_add(page.bytes)).copied();
        let copies = Copies::new(pages);
        self.line.push_back(Writing { target, from, furthest, copies, ready, has_begun: false, told });
        Ok(())
    }

    /// The owner lends a region.
    pub(super) fn opened(
        &mut self,
        number: u64,
        offer: &RegionOffer,
        here: &Here,
        io: &mut Io<'_>,
    ) -> Result<(), Error> {
        let asked = self.targets.get_mut(&number).filter(|target| target.open.is_none());
        let Some(target) = asked else {
            return Err(here.nonsense(format!("it lends region {number:x}, for which nobody asked")));
        };
        let opened = here.home.imports.open(&here.used.context, &here.remote, &offer.memory);
        let opened = opened.and_then(|memory| {
            let end = offer.offset.checked_add(offer.bytes).filter(|end| *end <= memory.bytes());
            let address = end.and_then(|_| memory.address().checked_add(offer.offset));
            let Some(address) = address else {
                let RegionOffer { offset, bytes, .. } = offer;
                return Err(
                    here.nonsense(format!("a region of {bytes} bytes at {offset} of {}", memory.bytes()))
                );
            };
            Ok(Open { memory, address, bytes: offer.bytes })
        });
        match opened {
            Ok(open) => target.open = Some(open),
            Err(error) => {
                self.targets.remove(&number);
                self.fail_unbegun(number, &error, io);
                io.send(Message::Released { region: number }.to_bytes());
            }
        }
        Ok(())
    }

    /// The owner has no such region.
    pub(super) fn gone(&mut self, number: u64, why: &str, here: &Here, io: &mut Io<'_>) {
        if self.targets.get(&number).is_some_and(|target| target.open.is_none()) {
            self.targets.remove(&number);
            self.fail_unbegun(number, &here.gone(why), io);
        }
    }

    /// The owner wants a region back.
    pub(super) fn withdrawn(&mut self, number: u64, here: &Here, io: &mut Io<'_>) {
        let Some(target) = self.targets.get_mut(&number) else { return };
        target.is_withdrawn = true;
        self.fail_unbegun(number, &here.gone("its owner is giving it up"), io);
        self.let_go(number, here);
    }

    /// Batches for a region that were not begun fail.
    fn fail_unbegun(&mut self, number: u64, error: &Error, io: &mut Io<'_>) {
        for writing in std::mem::take(&mut self.line) {
            if writing.target == number && !writing.has_begun {
                let mut told = writing.told;
                told.fate.get_or_insert_with(|| error.clone());
                told.end(Some(io));
            } else {
                self.line.push_back(writing);
            }
        }
    }

    /// Closes a region that was withdrawn and is not in use.
    fn let_go(&mut self, number: u64, here: &Here) {
        let Some(target) = self.targets.get_mut(&number) else { return };
        if target.is_withdrawn
            && target.in_use == 0
            && let Some(open) = target.open.take()
        {
            self.closing.push((number, Closing::begin(vec![open.memory], here.home.waker.clone())));
        }
    }

    pub(super) fn poll(&mut self, here: &Here, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = self.land(here, Some(io));
        if self.aborts.any() {
            for writing in &mut self.line {
                if writing.told.fate.is_none() && writing.told.ticket.is_aborted() {
                    writing.told.fate = Some(Error::Dropped);
                }
            }
        }
        activity = activity.max(self.enqueue(here, io)?);
        self.closing.retain(|(number, closing)| {
            let goes_on = !closing.is_done();
            if !goes_on {
                io.send(Message::Released { region: *number }.to_bytes());
                self.targets.remove(number);
                activity = Activity::Moved;
            }
            goes_on
        });
        let under_way = if self.flying.is_empty() { Activity::Idle } else { Activity::Waiting };
        activity = activity.max(under_way);
        if let Some(way) = &mut self.way {
            way.stall_check.ask(io.now(), activity == Activity::Waiting, &way.stream)?;
        }
        Ok(activity)
    }

    /// Ends what was done.
    fn land(&mut self, here: &Here, mut io: Option<&mut Io<'_>>) -> Activity {
        let mut activity = Activity::Idle;
        while let Some(InFlight { target, told, .. }) = self.next_landed() {
            activity = Activity::Moved;
            told.end(io.as_deref_mut());
            if let Some(known) = self.targets.get_mut(&target) {
                known.in_use -= 1;
            }
            self.let_go(target, here);
        }
        activity
    }

    fn next_landed(&mut self) -> Option<InFlight> {
        let word = &self.way.as_ref()?.word;
        self.flying.pop_front_if(|flying| word.has_reached(flying.turn))
    }

    /// Enqueues some copies of the first batch.
    fn enqueue(&mut self, here: &Here, io: &mut Io<'_>) -> Result<Activity, Error> {
        let Some(way) = &mut self.way else { return Ok(Activity::Idle) };
        let Some(mut writing) = self.line.pop_front() else { return Ok(Activity::Idle) };
        let Some(target) = self.targets.get_mut(&writing.target) else {
            // It was given up, and all batches for it have failed with that.
            writing.told.fate.get_or_insert(Error::Dropped);
            writing.told.end(Some(io));
            return Ok(Activity::Moved);
        };
        let is_to_end = writing.told.fate.is_some();
        if is_to_end && !writing.has_begun {
            writing.told.end(Some(io));
            return Ok(Activity::Moved);
        }
        let Some(open) = &target.open else {
            self.line.push_front(writing);
            return Ok(Activity::Idle);
        };
        // Another device's stream is lost alone, and this one's would go on, or stand still for ever.
        if !writing.has_begun && writing.ready.is_for_the_host(&here.used.context) {
            match writing.ready.has_come() {
                Ok(true) => {}
                Ok(false) => {
                    self.line.push_front(writing);
                    return Ok(Activity::Waiting);
                }
                Err(error) => {
                    writing.told.fate = Some(error.into());
                    writing.told.end(Some(io));
                    return Ok(Activity::Moved);
                }
            }
        }
        // The descriptor may say otherwise than the owner.
        let fits = writing.furthest.map_or(Ok(()), |page| page.check_target(&here.peer, open.bytes));
        if let Err(error) = fits {
            writing.told.fate = Some(error);
            writing.told.end(Some(io));
            return Ok(Activity::Moved);
        }
        let (context, stream) = (way.stream.context(), way.stream.raw());
        let cause = |error| context.cause_of(error);
        if !std::mem::replace(&mut writing.has_begun, true) {
            target.in_use += 1;
            // SAFETY: the channel's own stream, which nobody captures.
            if let Err(error) = unsafe { writing.ready.wait_on(stream) }.map_err(cause) {
                if error.loses_context() {
                    self.line.push_front(writing);
                    return Err(error.into());
                }
                writing.told.fate = Some(error.into());
            }
        }
        let is_to_end = writing.told.fate.is_some();
        // SAFETY: the pages lie in the local region (the endpoint has checked that), which the batch keeps, and in the target
        // (checked above), which is open until nothing of it is in use; both until the word has reached this batch's turn. The
        // stream is the channel's own.
        let enqueued = is_to_end
            || match unsafe { writing.copies.enqueue(context, writing.from, open.address, stream) }
                .map_err(cause)
            {
                Ok(enqueued) => enqueued,
                Err(error) if error.loses_context() => {
                    self.line.push_front(writing);
                    return Err(error.into());
                }
                Err(error) => {
                    // It concerns this batch alone, which ends when what was enqueued of it is done.
                    writing.told.fate = Some(error.into());
                    true
                }
            };
        if !enqueued {
            self.line.push_front(writing);
            return Ok(Activity::Moved);
        }
        let turn = way.turn.wrapping_add(1);
        // SAFETY: as above; turns grow by one.
        if let Err(error) = unsafe { way.word.enqueue_write(turn, stream) }.map_err(cause) {
            self.line.push_front(writing);
            return Err(error.into());
        }
        way.turn = turn;
        self.flying.push_back(InFlight { target: writing.target, turn, told: writing.told });
        Ok(Activity::Moved)
    }

    /// Behind the end: whether none of its copies is under way any more.
    pub(super) fn is_idle(&mut self, here: &Here) -> bool {
        self.land(here, None);
        let has_begun = self.line.front().is_some_and(|writing| writing.has_begun);
        let Some(way) = self.way.as_ref().filter(|_| has_begun || !self.flying.is_empty()) else {
            return true;
        };
        match way.stream.finish(Duration::ZERO) {
            Ok(finished) => finished,
            Err(error) => error.loses_context(),
        }
    }

    /// Behind the end, and idle: everything fails. What was opened of the other side's, to be closed.
    pub(super) fn fail(&mut self, cause: &Error) -> Vec<Arc<Imported>> {
        let told = self.line.drain(..).map(|writing| writing.told);
        for mut told in told.chain(self.flying.drain(..).map(|flying| flying.told)) {
            told.fate.get_or_insert_with(|| cause.clone());
            told.end(None);
        }
        self.targets.drain().filter_map(|(_, target)| target.open).map(|open| open.memory).collect()
    }

    /// What is being closed already.
    pub(super) fn closing(&mut self) -> Vec<Closing> {
        self.closing.drain(..).map(|(_, closing)| closing).collect()
    }

    /// Keeps what may still be used for ever.
    pub(super) fn leak(&mut self) -> bool {
        let open: Vec<_> = self.targets.drain().filter_map(|(_, target)| target.open).collect();
        let any = !open.is_empty();
        open.into_iter().for_each(|open| std::mem::forget(open.memory));
        any
    }
}
