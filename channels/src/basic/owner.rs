//! The owner's side of one-sided writes: out of the writer's slots into regions of this side.

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use meshreduce_device::{Device, PrimaryContext, Rows, copy, copy_rows};

use super::departure::Departures;
use super::emptying::Emptying;
use super::packing::Run;
use super::page_wire::{DeclineReason, PageMessage, Pages};
use super::wire::Shape;
use crate::channel::{Activity, Io, RegionPart};
use crate::error::{Error, THIS_SIDE};
use crate::lane::Mark;
use crate::lanes::Lanes;
use crate::region::share::{Part, Parts};
use crate::shared_copy;

/// Batches that come, in order.
#[derive(Debug)]
pub(super) struct Owner {
    peer: Arc<str>,
    device: Device,
    parts: Arc<Parts>,
    lanes: Lanes,
    emptying: Emptying,
    /// Batches from this number on are new. (One that was cut off before its turn does not come.)
    next: u64,
    line: VecDeque<Landing>,
    /// Batches that were declined and of which more may come.
    declined: HashSet<u64>,
}

/// A batch of which something has come.
#[derive(Debug)]
struct Landing {
    batch: u64,
    counter: u32,
    bytes: u64,
    /// Keeps the memory. `None`: there is no such region.
    part: Option<Arc<Part>>,
    held: VecDeque<(u64, Vec<Run>)>,
    /// Chunks that a device is placing.
    under_way: VecDeque<(Mark, u64)>,
    /// Nothing more comes.
    is_whole: bool,
    /// It is not taken: why, as the writer is told, and as this side is.
    declined: Option<(DeclineReason, Error)>,
    /// The writer has cut it off, and knows.
    is_cut: bool,
}

impl Owner {
    pub(super) fn new(
        peer: Arc<str>,
        context: Option<Arc<PrimaryContext>>,
        shape: Shape,
        parts: Arc<Parts>,
        departures: &Departures,
    ) -> Self {
        let device = context.as_ref().map_or(Device::Cpu, |context| Device::Cuda(context.ordinal()));
        Self {
            emptying: Emptying::new(Arc::clone(&peer), shape, departures),
            peer,
            device,
            parts,
            lanes: Lanes::new(context),
            next: 0,
            line: VecDeque::new(),
            declined: HashSet::new(),
        }
    }

    fn protocol(&self, what: impl Into<String>) -> Error {
        Error::protocol(&self.peer, what)
    }

    fn gone(&self) -> (DeclineReason, Error) {
        let what = "the region has been given up, or never was here".into();
        (DeclineReason::Gone, Error::RegionGone { peer: "this side".into(), what })
    }

    /// The writer shows its slots.
    pub(super) fn slots(&mut self, files: Vec<OwnedFd>) -> Result<(), Error> {
        self.emptying.show(self.lanes.context(), files)
    }

    /// Some pages have come.
    pub(super) fn pages(&mut self, pages: Pages<'_>, io: &mut Io<'_>) -> Result<(), Error> {
        let Pages { batch, region, counter, is_last, runs, payload } = pages;
        let total = runs.iter().try_fold(0_u64, |sum, run| sum.checked_add(run.total()));
        let Some(bytes) = total.filter(|total| *total <= self.emptying.slot_bytes()) else {
            return Err(self.protocol("more pages than a slot holds"));
        };
        let carried = if io.carries_files() { 0 } else { bytes };
        if payload.len() as u64 != carried {
            return Err(self.protocol(format!("{bytes} bytes of pages with {} bytes", payload.len())));
        }
        let chunk = match bytes {
            0 => None,
            _ => {
                let chunk = self.emptying.heard(carried > 0)?;
                if carried > 0 {
                    self.emptying.keep(self.lanes.context(), payload, chunk)?;
                }
                Some(chunk)
            }
        };
        if self.declined.contains(&batch) {
            chunk.into_iter().for_each(|chunk| self.emptying.chunks.done(chunk));
            if is_last {
                self.declined.remove(&batch);
            }
            return Ok(());
        }
        let landing = self.landing(batch, region, counter)?;
        landing.is_whole = is_last;
        landing.bytes += bytes;
        if let (Some(part), None) = (&landing.part, &landing.declined) {
            let room = part.span().bytes;
            if let Some(run) = runs.iter().find(|run| end_of(run).is_none_or(|end| end > room)) {
                // The descriptor says otherwise than the owner. (What has no end is behind every end.)
                let (offset, length) = (run.to, end_of(run).map_or(u64::MAX, |end| end - run.to));
                let whose = THIS_SIDE.into();
                let error = Error::OutOfRegion { whose, offset, length, bytes: room };
                landing.declined = Some((DeclineReason::OutOfRegion { offset, length, bytes: room }, error));
            }
        }
        if let Some(chunk) = chunk {
            landing.held.push_back((chunk, runs));
        }
        Ok(())
    }

    /// The batch of which something comes: the last one, or a new one.
    fn landing(&mut self, batch: u64, region: u64, counter: u32) -> Result<&mut Landing, Error> {
        if batch >= self.next {
            self.next =
                batch.checked_add(1).ok_or_else(|| self.protocol(format!("pages of batch {batch}")))?;
            let found = self.parts.find(region).filter(|part| part.span().device == self.device);
            let declined = if found.is_none() { Some(self.gone()) } else { None };
            self.line.push_back(Landing {
                batch,
                counter,
                bytes: 0,
                part: found,
                held: VecDeque::new(),
                under_way: VecDeque::new(),
                is_whole: false,
                declined,
                is_cut: false,
            });
        }
        let peer = &self.peer;
        let last = self.line.back_mut().filter(|last| last.batch == batch && !last.is_whole);
        last.ok_or_else(|| {
            Error::protocol(peer, format!("pages of batch {batch} where others were expected"))
        })
    }

    /// Of a batch nothing more comes.
    pub(super) fn cut(&mut self, batch: u64, counter: u32, why: String, io: &mut Io<'_>) {
        if self.declined.remove(&batch) {
            return;
        }
        let error = Error::Remote { peer: Arc::clone(&self.peer), what: why.clone().into() };
        match self.line.iter_mut().find(|landing| landing.batch == batch && !landing.is_whole) {
            Some(landing) => {
                (landing.is_whole, landing.is_cut) = (true, true);
                landing.declined = Some((DeclineReason::Failed(why), error));
            }
            // It is the first that is heard of it.
            None => io.missed(counter, &error),
        }
    }

    /// A region is being given up: what has not come in whole is not taken.
    pub(super) fn withdraw(&mut self, part: &dyn RegionPart) {
        let gone = self.gone();
        let hit = |landing: &&mut Landing| landing.part.as_ref().is_some_and(|known| known.is(part));
        for landing in self.line.iter_mut().filter(hit).filter(|landing| !landing.is_whole) {
            landing.declined.get_or_insert_with(|| gone.clone());
        }
    }

    pub(super) fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let activity = self.place()?.max(self.finish(io));
        if let Some(chunks) = self.emptying.tell_many() {
            io.send(PageMessage::Freed { chunks }.encode());
        }
        self.lanes.check(io.now())?;
        Ok(activity)
    }

    /// Copies what has come to where it belongs: by the host at most one slot's bytes.
    fn place(&mut self) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        let mut left = self.emptying.slot_bytes();
        for landing in &mut self.line {
            while left > 0
                && let Some((chunk, runs)) = landing.held.pop_front()
            {
                activity = Activity::Moved;
                let (Some(part), None) = (&landing.part, &landing.declined) else {
                    self.emptying.chunks.done(chunk);
                    continue;
                };
                let span = part.span();
                let slots = self.emptying.slots()?;
                if span.device == Device::Cpu {
                    let mut from = slots.host(chunk).as_ptr().cast_const();
                    for run in &runs {
                        for row in 0..run.count {
                            let address = (span.address + run.to + row * run.to_stride) as usize;
                            let to = std::ptr::with_exposed_provenance_mut::<u8>(address);
                            // SAFETY: the rows lie in the region (checked when they came), which the landing keeps, and in the
                            // slot, which the writer fills again only when it is told that it is free. Who has registered memory
                            // looks at it meanwhile by such copies alone (`Region::read`), or sees to the races.
                            unsafe {
                                shared_copy::copy(from, to, run.bytes as usize);
                                from = from.add(run.bytes as usize);
                            }
                        }
                        left = left.saturating_sub(run.total());
                    }
                    self.emptying.chunks.done(chunk);
                } else {
                    let Some(mut from) = slots.device(chunk) else {
                        return Err(Error::BadMemory { what: "the slots are not seen by the device".into() });
                    };
                    let copied = self.lanes.own()?.attempt(|context, stream| {
                        for run in &runs {
                            let address = span.address + run.to;
                            // SAFETY: as above; the landing ends when the mark has passed, or the lane is idle.
                            unsafe {
                                if run.count == 1 {
                                    copy(context, address, from, run.bytes, stream)?;
                                } else {
                                    let slot = Rows { address: from, stride: run.bytes };
                                    let target = Rows { address, stride: run.to_stride };
                                    copy_rows(context, target, slot, run.bytes, run.count, stream)?;
                                }
                            }
                            from += run.total();
                        }
                        Ok(())
                    })?;
                    if let Some(error) = copied.refused {
                        landing.declined = Some((DeclineReason::Failed(error.to_string()), error.into()));
                    }
                    landing.under_way.push_back((copied.mark, chunk));
                }
            }
        }
        Ok(activity)
    }

    /// Ends what is there, and what is not taken, in order.
    fn finish(&mut self, io: &mut Io<'_>) -> Activity {
        let mut activity = Activity::Idle;
        while let Some(landing) = self.line.front_mut() {
            while let Some((mark, chunk)) = landing.under_way.front().copied() {
                if !self.lanes.has_passed(mark) {
                    return activity.max(Activity::Waiting);
                }
                landing.under_way.pop_front();
                self.emptying.chunks.done(chunk);
                activity = Activity::Moved;
            }
            let is_over = landing.held.is_empty() && (landing.is_whole || landing.declined.is_some());
            if !is_over {
                // More comes, or it is placed in the next turn.
                let is_held = !landing.held.is_empty();
                return if is_held { activity.max(Activity::Waiting) } else { activity };
            }
            let Some(landing) = self.line.pop_front() else { break };
            let Landing { batch, counter, bytes, declined, is_whole, is_cut, part, .. } = landing;
            // Before anybody learns of it: whoever waits for the memory looks at this.
            drop(part);
            activity = Activity::Moved;
            match declined {
                None => {
                    io.arrived(counter, bytes);
                    io.send(PageMessage::Placed { batch, chunks: self.emptying.chunks.tell() }.encode());
                }
                Some((why, error)) => {
                    io.missed(counter, &error);
                    if !is_whole {
                        self.declined.insert(batch);
                    }
                    if !is_cut {
                        io.send(
                            PageMessage::Declined { batch, chunks: self.emptying.chunks.tell(), why }
                                .encode(),
                        );
                    }
                }
            }
        }
        activity
    }

    /// Behind the end: whether nothing is copied any more.
    pub(super) fn linger(&mut self) -> bool {
        if !self.lanes.are_idle() {
            return false;
        }
        self.line.clear();
        self.emptying.give_up();
        true
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.lanes.leak_if_busy() {
            self.emptying.leak();
            self.line.drain(..).for_each(|landing| std::mem::forget(landing.part));
        }
    }
}

/// Behind the last byte of a run's rows in the region.
fn end_of(run: &Run) -> Option<u64> {
    let rows = run.to_stride.checked_mul(run.count - 1)?;
    run.to.checked_add(rows)?.checked_add(run.bytes)
}
