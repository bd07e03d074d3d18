//! The writing side of one-sided writes: pages out of a region into slots, which the owner of the other region copies them from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use meshreduce_device::{Device, PrimaryContext, Rows, copy, copy_rows};

use super::departure::Departures;
use super::filling::Filling;
use super::packing::{Packing, Run};
use super::page_wire::{DeclineReason, PageMessage, Pages};
use super::wire::Shape;
use crate::channel::{Activity, Batch, Io, Ready, RegionPart};
use crate::error::Error;
use crate::lane::Mark;
use crate::lanes::{Gate, Lanes};
use crate::region::share::{self, Part};
use crate::shared_copy;
use crate::span::Span;
use crate::transfer::{Aborts, Ticket};

/// Batches, in order, through slots of their own: sends that nobody receives hold none of these.
#[derive(Debug)]
pub(super) struct Writer {
    peer: Arc<str>,
    lanes: Lanes,
    filling: Filling,
    /// The number of the next batch.
    next: u64,
    /// Batches of which something is left to be packed.
    line: VecDeque<Writing>,
    /// Chunks on their way to the other side, which is told of them in order.
    chunks: VecDeque<Chunk>,
    /// Batches that the other side has not answered, or whose memory is still read.
    batches: BTreeMap<u64, Waiting>,
    aborts: Aborts,
    /// The channel is over.
    cause: Option<Error>,
}

#[derive(Debug)]
struct Writing {
    batch: u64,
    from: Span,
    region: u64,
    packing: Packing,
    ready: Ready,
    gate: Gate,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    counter: u32,
    /// Chunks that read its memory or are to be told of.
    under_way: u32,
    /// All of it was packed, or the other side is told that there is no more.
    is_whole: bool,
    fate: Option<Error>,
    /// Keeps the memory that is read.
    local: Arc<dyn RegionPart>,
}

/// That a slot was not filled, and when nothing reads the batch's memory any more that was to be.
struct Unfilled {
    error: Error,
    mark: Option<Mark>,
    /// Copies are under way of whose end no mark tells: only a lane that is idle does, so the channel is over.
    ends_channel: bool,
}

impl From<Error> for Unfilled {
    fn from(error: Error) -> Self {
        Self { error, mark: None, ends_channel: false }
    }
}

#[derive(Debug)]
enum Chunk {
    Rows { batch: u64, region: u64, is_last: bool, runs: Vec<Run>, place: Option<(u64, Option<Mark>)> },
    Cut { batch: u64, why: String, mark: Option<Mark> },
}

impl Chunk {
    fn batch(&self) -> u64 {
        match self {
            Chunk::Rows { batch, .. } | Chunk::Cut { batch, .. } => *batch,
        }
    }
}

impl Writer {
    pub(super) fn new(
        peer: Arc<str>,
        context: Option<Arc<PrimaryContext>>,
        shape: Shape,
        departures: &Departures,
    ) -> Self {
        Self {
            filling: Filling::new(Arc::clone(&peer), shape, departures),
            peer,
            lanes: Lanes::new(context),
            next: 0,
            line: VecDeque::new(),
            chunks: VecDeque::new(),
            batches: BTreeMap::new(),
            aborts: Aborts::default(),
            cause: None,
        }
    }

    pub(super) fn start(&mut self, batch: Batch) {
        let Batch { local, remote, pages, bytes: _, counter, ready, ticket } = batch;
        let number = self.next;
        self.next += 1;
        let from = local.as_any().downcast_ref::<Part>().map(Part::span);
        let found = match (share::number("basic", &remote), from) {
            (Ok(region), Some(from)) => Ok((region, from)),
            (Ok(_), None) => Err(Error::BadMemory { what: "the local region is another kind's".into() }),
            (Err(error), _) => Err(Error::BadDescriptor { what: error.to_string().into() }),
        };
        self.aborts.watch(&ticket);
        let waiting = Waiting { ticket, counter, under_way: 0, is_whole: false, fate: None, local };
        self.batches.insert(number, waiting);
        match found {
            Ok((region, from)) => {
                let packing = Packing::new(pages);
                let gate = Gate::Shut;
                self.line.push_back(Writing { batch: number, from, region, packing, ready, gate });
            }
            Err(error) => self.cut(number, error, None),
        }
    }

    /// Of a batch nothing more is packed: the other side is told when the mark has passed, and it fails when its memory is not read
    /// any more.
    fn cut(&mut self, batch: u64, error: Error, mark: Option<Mark>) {
        self.line.retain(|writing| writing.batch != batch);
        let Some(waiting) = self.batches.get_mut(&batch) else { return };
        let why = waiting.fate.get_or_insert(error).to_string();
        if !std::mem::replace(&mut waiting.is_whole, true) {
            waiting.under_way += 1;
            self.chunks.push_back(Chunk::Cut { batch, why, mark });
        }
    }

    /// The other side has done with as many chunks, of all that there were.
    pub(super) fn freed(&mut self, chunks: u64) -> Result<(), Error> {
        self.filling.freed(chunks)
    }

    /// A batch is there.
    pub(super) fn placed(&mut self, batch: u64, chunks: u64) -> Result<(), Error> {
        self.freed(chunks)?;
        match self.batches.remove(&batch) {
            Some(Waiting { ticket, under_way: 0, is_whole: true, .. }) => {
                ticket.done();
                Ok(())
            }
            // It has failed here, which the other side learns too late.
            None if batch < self.next => Ok(()),
            other => {
                // Its memory may still be read.
                self.batches.extend(other.map(|waiting| (batch, waiting)));
                Err(Error::protocol(&self.peer, format!("batch {batch} cannot have come")))
            }
        }
    }

    /// The other side does not take a batch.
    pub(super) fn declined(&mut self, batch: u64, chunks: u64, why: DeclineReason) -> Result<(), Error> {
        self.freed(chunks)?;
        if batch >= self.next {
            return Err(Error::protocol(
                &self.peer,
                format!("batch {batch} is declined, which there is not"),
            ));
        }
        self.cut(batch, why.error(&self.peer), None);
        self.settle(batch);
        Ok(())
    }

    /// Ends a batch that has failed and whose memory nobody reads any more.
    fn settle(&mut self, batch: u64) {
        let is_over = |waiting: &Waiting| waiting.fate.is_some() && waiting.under_way == 0;
        if self.batches.get(&batch).is_some_and(is_over)
            && let Some(Waiting { ticket, fate: Some(error), .. }) = self.batches.remove(&batch)
        {
            ticket.fail(error);
        }
    }

    pub(super) fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let is_aborted = |waiting: &Waiting| waiting.fate.is_none() && waiting.ticket.is_aborted();
        let aborted: Vec<u64> = match self.aborts.any() {
            true => {
                let all = self.batches.iter();
                all.filter(|(_, waiting)| is_aborted(waiting)).map(|(batch, _)| *batch).collect()
            }
            false => Vec::new(),
        };
        for batch in aborted {
            // One that is whole comes all the same, and its end is told.
            if self.batches.get(&batch).is_some_and(|waiting| !waiting.is_whole) {
                self.cut(batch, Error::Dropped, None);
            }
        }
        let activity = self.pack(io)?.max(self.tell(io));
        self.lanes.check(io.now())?;
        Ok(activity)
    }

    /// Packs as many chunks as there is room for, by copies of the host at most one slot's bytes.
    fn pack(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        let mut left = self.filling.slot_bytes();
        while let Some(writing) = self.line.front_mut() {
            let batch = writing.batch;
            match self.lanes.pass(&mut writing.gate, &writing.ready, io.now()) {
                Ok(true) => {}
                Ok(false) => return Ok(activity.max(Activity::Waiting)),
                Err(error) => {
                    self.cut(batch, error, None);
                    activity = Activity::Moved;
                    continue;
                }
            }
            // A batch without bytes is told of, too.
            let is_empty = writing.packing.is_over();
            if !is_empty && !self.filling.has_room() {
                // The other side says when there is room again.
                return Ok(activity);
            }
            let (from, region) = (writing.from, writing.region);
            let runs = writing.packing.chunk(self.filling.slot_bytes());
            let is_last = writing.packing.is_over();
            let place = match is_empty {
                true => Ok(None),
                false => self.fill(from, &runs, io).map(Some),
            };
            let place = match place {
                Ok(place) => place,
                Err(Unfilled { error, ends_channel: true, .. }) => return Err(error),
                Err(Unfilled { error, mark, .. }) => {
                    self.fail(batch, error, mark)?;
                    activity = Activity::Moved;
                    continue;
                }
            };
            if place.is_some_and(|(_, mark)| mark.is_none()) {
                left = left.saturating_sub(runs.iter().map(Run::total).sum());
            }
            if let Some(waiting) = self.batches.get_mut(&batch) {
                waiting.under_way += 1;
                waiting.is_whole = is_last;
            }
            self.chunks.push_back(Chunk::Rows { batch, region, is_last, runs, place });
            if is_last {
                self.line.pop_front();
            }
            activity = Activity::Moved;
            if left == 0 {
                break;
            }
        }
        Ok(activity)
    }

    /// A batch fails by what concerns it alone; what does not is the channel's end.
    fn fail(&mut self, batch: u64, error: Error, mark: Option<Mark>) -> Result<(), Error> {
        if !error.is_refusal() && !error.is_shortage() {
            return Err(error);
        }
        self.cut(batch, error, mark);
        Ok(())
    }

    /// Copies rows into the next slot, which is free: which one, and when they are there.
    fn fill(&mut self, from: Span, runs: &[Run], io: &mut Io<'_>) -> Result<(u64, Option<Mark>), Unfilled> {
        let slots = self.filling.slots(self.lanes.context(), || PageMessage::Slots.encode(), io)?;
        let chunk = self.filling.next();
        let mark = if from.device == Device::Cpu {
            let mut to = slots.host(chunk).as_ptr();
            for run in runs {
                for row in 0..run.count {
                    let address = (from.address + run.from + row * run.from_stride) as usize;
                    let row = std::ptr::with_exposed_provenance::<u8>(address);
                    // SAFETY: the rows lie in the local region (the endpoint has checked that), which the batch keeps; all of them
                    // have room in the slot, which is free. They do not overlap: the slots are this channel's own.
                    unsafe {
                        shared_copy::copy(row, to, run.bytes as usize);
                        to = to.add(run.bytes as usize);
                    }
                }
            }
            None
        } else {
            let Some(mut to) = slots.device(chunk) else {
                let what = "the slots are not seen by the device".into();
                return Err(Error::BadMemory { what }.into());
            };
            let copied = self.lanes.own()?.attempt(|context, stream| {
                for run in runs {
                    let address = from.address + run.from;
                    // SAFETY: as above; the batch ends when the mark has passed, or the lane is idle.
                    unsafe {
                        if run.count == 1 {
                            copy(context, to, address, run.bytes, stream)?;
                        } else {
                            let source = Rows { address, stride: run.from_stride };
                            let slot = Rows { address: to, stride: run.bytes };
                            copy_rows(context, slot, source, run.bytes, run.count, stream)?;
                        }
                    }
                    to += run.total();
                }
                Ok(())
            });
            let copied = copied.map_err(|error| Unfilled {
                error: Error::Driver(error),
                mark: None,
                ends_channel: true,
            })?;
            if let Some(error) = copied.refused {
                return Err(Unfilled { error: error.into(), mark: Some(copied.mark), ends_channel: false });
            }
            Some(copied.mark)
        };
        self.filling.begin();
        Ok((chunk, mark))
    }

    /// Tells the other side of the chunks that are where it finds them.
    fn tell(&mut self, io: &mut Io<'_>) -> Activity {
        let mut activity = Activity::Idle;
        while let Some(chunk) = self.chunks.front() {
            let Some(waiting) = self.batches.get_mut(&chunk.batch()) else {
                self.chunks.pop_front();
                continue;
            };
            match chunk {
                Chunk::Cut { mark: Some(mark), .. } if !self.lanes.has_passed(*mark) => {
                    return activity.max(Activity::Waiting);
                }
                Chunk::Cut { batch, why, .. } => {
                    let (counter, why) = (waiting.counter, why.clone());
                    io.send(PageMessage::Cut { batch: *batch, counter, why }.encode());
                }
                Chunk::Rows { batch, region, is_last, runs, place } => {
                    if let Some((_, Some(mark))) = place
                        && !self.lanes.has_passed(*mark)
                    {
                        return activity.max(Activity::Waiting);
                    }
                    let bytes: u64 = runs.iter().map(Run::total).sum();
                    let (batch, region, counter, is_last) = (*batch, *region, waiting.counter, *is_last);
                    let pages = Pages { batch, region, counter, is_last, runs: runs.clone(), payload: &[] };
                    let head = PageMessage::Pages(pages).encode();
                    let mut lent = None;
                    if let Some((slot, _)) = place {
                        self.filling.tell();
                        if !io.carries_files() {
                            // SAFETY: the copies into the slot are done, and the next ones come when the owner has freed it.
                            lent = unsafe { self.filling.lend(*slot, bytes) };
                        }
                    }
                    match lent {
                        Some(lent) => io.send_with(head, lent),
                        None => io.send(head),
                    }
                    waiting.ticket.progress(bytes);
                }
            }
            waiting.under_way -= 1;
            let batch = chunk.batch();
            self.chunks.pop_front();
            self.settle(batch);
            activity = Activity::Moved;
        }
        activity
    }

    pub(super) fn end(&mut self, cause: &Error) {
        self.cause = Some(cause.clone());
        self.line.clear();
        // The slots of the link's chunks are kept by these themselves.
        self.chunks.clear();
    }

    pub(super) fn linger(&mut self) -> bool {
        if !self.lanes.are_idle() {
            return false;
        }
        let cause = self.cause.clone().unwrap_or(Error::ContextClosed);
        for Waiting { ticket, fate, .. } in std::mem::take(&mut self.batches).into_values() {
            ticket.fail(fate.unwrap_or_else(|| cause.clone()));
        }
        self.filling.give_up();
        true
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.lanes.leak_if_busy() {
            self.filling.leak();
            let batches = std::mem::take(&mut self.batches);
            // The tickets end here, if in no good way.
            batches.into_values().for_each(|waiting| std::mem::forget(waiting.local));
        }
    }
}
