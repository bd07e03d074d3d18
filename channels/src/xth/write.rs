//! One-sided writes within a process: copies by the writer's stream, or of host memory by its progress thread, into memory that the
//! region's owner keeps meanwhile.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use meshreduce_device::{PrimaryContext, copy_between};
use meshreduce_store::codec::{Malformed, Reader, Writer};

use super::region::find;
use crate::channel::{Activity, Batch, Io, Ready, RegionPart};
use crate::error::Error;
use crate::lane::Mark;
use crate::lanes::{Gate, Lanes};
use crate::matching::FIRST_OWN_TAG;
use crate::region::Copies;
use crate::region::share::Part;
use crate::shared_copy;
use crate::transfer::{Aborts, Ticket};

/// That a batch has landed, and that one will not.
pub(super) const LANDED: u8 = FIRST_OWN_TAG + 1;
pub(super) const MISSED: u8 = FIRST_OWN_TAG + 2;

/// Bytes that the host copies before others have their turn.
const TURN: u64 = 1 << 20;

/// The batches of a channel, in order.
#[derive(Debug)]
pub(super) struct Writes {
    peer: Arc<str>,
    /// Of a lane of their own: batches and transfers do not wait for each other.
    lanes: Lanes,
    /// The other device, if this one has no access to it.
    apart: Option<Arc<PrimaryContext>>,
    line: VecDeque<Writing>,
    aborts: Aborts,
    flying: VecDeque<InFlight>,
}

/// What is told of a batch at its end.
#[derive(Debug)]
struct BatchCompletion {
    ticket: Ticket,
    counter: u32,
    bytes: u64,
    fate: Option<Error>,
    /// Both keep the memory, until [`BatchCompletion::end`]: for ever if the channel panics, because the lane may go on then.
    local: ManuallyDrop<Arc<dyn RegionPart>>,
    target: ManuallyDrop<Arc<Part>>,
}

#[derive(Debug)]
struct Writing {
    copies: Copies,
    ready: Ready,
    has_begun: bool,
    /// Of host memory, which waits for no stream.
    gate: Gate,
    told: BatchCompletion,
}

#[derive(Debug)]
struct InFlight {
    mark: Mark,
    told: BatchCompletion,
}

impl BatchCompletion {
    fn end(self, io: Option<&mut Io<'_>>) {
        let BatchCompletion { ticket, counter, bytes, fate, local, target } = self;
        if let Some(io) = io {
            io.send(match &fate {
                Some(error) => missed(counter, error),
                None => landed(counter, bytes),
            });
        }
        match fate {
            Some(error) => ticket.fail(error),
            None => ticket.done(),
        }
        drop((ManuallyDrop::into_inner(local), ManuallyDrop::into_inner(target)));
    }
}

impl Writes {
    pub(super) fn new(
        peer: Arc<str>,
        own: Option<Arc<PrimaryContext>>,
        apart: Option<Arc<PrimaryContext>>,
    ) -> Self {
        Self {
            peer,
            lanes: Lanes::new(own),
            apart,
            line: VecDeque::new(),
            aborts: Aborts::default(),
            flying: VecDeque::new(),
        }
    }

    pub(super) fn start(&mut self, batch: Batch, io: &mut Io<'_>) {
        let Batch { local, remote, pages, bytes, counter, ready, ticket } = batch;
        self.aborts.watch(&ticket);
        let gone = || Error::RegionGone {
            peer: Arc::clone(&self.peer),
            what: "its owner has given it up, or it is another process's".into(),
        };
        let found = match find(&remote) {
            Ok(target) => target.ok_or_else(gone),
            Err(error) => Err(Error::BadDescriptor { what: error.to_string().into() }),
        };
        let target = found.and_then(|target| {
            let room = target.span().bytes;
            // The descriptor may say otherwise than the owner.
            pages.iter().try_for_each(|page| page.check_target(&self.peer, room))?;
            Ok(target)
        });
        match target {
            Ok(target) => {
                let (local, target) = (ManuallyDrop::new(local), ManuallyDrop::new(target));
                let told = BatchCompletion { ticket, counter, bytes, fate: None, local, target };
                self.line.push_back(Writing {
                    copies: Copies::new(pages),
                    ready,
                    has_begun: false,
                    gate: Gate::Shut,
                    told,
                });
            }
            Err(error) => {
                io.send(missed(counter, &error));
                ticket.fail(error);
            }
        }
    }

    pub(super) fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        while let Some(InFlight { told, .. }) =
            self.flying.pop_front_if(|flying| self.lanes.has_passed(flying.mark))
        {
            told.end(Some(io));
            activity = Activity::Moved;
        }
        if self.aborts.any() {
            for Writing { told, .. } in &mut self.line {
                if told.fate.is_none() && told.ticket.is_aborted() {
                    told.fate = Some(Error::Dropped);
                }
            }
        }
        if !self.line.is_empty() {
            let step = match self.lanes.context() {
                Some(_) => self.enqueue(io),
                None => Ok(self.copy_by_host(io)),
            };
            activity = activity.max(step?);
        }
        self.lanes.check(io.now())?;
        let under_way = if self.flying.is_empty() { Activity::Idle } else { Activity::Waiting };
        Ok(activity.max(under_way))
    }

    /// Enqueues some copies of the first batch.
    fn enqueue(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let Some(writing) = self.line.front_mut() else { return Ok(Activity::Idle) };
        if writing.told.fate.is_some() && !writing.has_begun {
            if let Some(writing) = self.line.pop_front() {
                writing.told.end(Some(io));
            }
            return Ok(Activity::Moved);
        }
        let Some(local) = writing.told.local.as_any().downcast_ref::<Part>() else {
            writing.told.fate = Some(Error::BadMemory { what: "the local region is another kind's".into() });
            return Ok(Activity::Moved);
        };
        let (from, to) = (local.span().address, writing.told.target.span().address);
        if !writing.has_begun {
            match self.lanes.pass(&mut writing.gate, &writing.ready, io.now()) {
                Ok(true) => writing.has_begun = true,
                Ok(false) => return Ok(Activity::Waiting),
                Err(error) => {
                    writing.told.fate = Some(error);
                    return Ok(Activity::Moved);
                }
            }
        }
        let (lane, apart) = (self.lanes.own()?, self.apart.as_ref());
        let is_given_up = writing.told.fate.is_some();
        let copies = &mut writing.copies;
        let mut is_all = is_given_up;
        let attempt = lane.attempt(|context, stream| {
            if is_given_up {
                return Ok(());
            }
            // SAFETY: the pages lie in the local region (the endpoint has checked that) and in the target (checked at the start),
            // both kept by the batch until the lane's mark has passed; and the stream is the lane's, of the device's context.
            is_all = unsafe {
                match apart {
                    None => copies.enqueue(context, from, to, stream)?,
                    Some(there) => copies.enqueue_each(|page| {
                        copy_between((there, to + page.to), (context, from + page.from), page.bytes, stream)
                    })?,
                }
            };
            Ok(())
        })?;
        if let Some(error) = attempt.refused {
            // What was enqueued before is waited for.
            writing.told.fate = Some(error.into());
            is_all = true;
        }
        if is_all && let Some(writing) = self.line.pop_front() {
            self.flying.push_back(InFlight { mark: attempt.mark, told: writing.told });
        }
        Ok(Activity::Moved)
    }

    /// Copies some pages of the first batch, if its memory is there.
    fn copy_by_host(&mut self, io: &mut Io<'_>) -> Activity {
        let Some(Writing { copies, ready, gate, told, .. }) = self.line.front_mut() else {
            return Activity::Idle;
        };
        let local = told.local.as_any().downcast_ref::<Part>().map(Part::span);
        let mut is_all = told.fate.is_some();
        match (local, self.lanes.pass(gate, ready, io.now())) {
            (None, _) => {
                told.fate = Some(Error::BadMemory { what: "the local region is another kind's".into() });
                is_all = true;
            }
            (Some(_), Ok(false)) if !is_all => return Activity::Waiting,
            (Some(_), Err(error)) => {
                told.fate.get_or_insert(error);
                is_all = true;
            }
            (Some(local), Ok(_)) => {
                let (from, to) = (local.address, told.target.span().address);
                let mut left = TURN;
                while !is_all && left > 0 {
                    let Some(page) = copies.next_of(left) else {
                        is_all = true;
                        break;
                    };
                    left -= page.bytes;
                    let from = std::ptr::with_exposed_provenance::<u8>((from + page.from) as usize);
                    let to = std::ptr::with_exposed_provenance_mut::<u8>((to + page.to) as usize);
                    // SAFETY: the page lies in the local region (the endpoint has checked that) and in the target (checked at the
                    // start), both kept by the batch. Who has registered memory looks at it meanwhile by such copies alone
                    // (`Region::read`), or sees to the races. If they overlap, a region is written into itself, to anybody's cost.
                    unsafe { shared_copy::copy(from, to, page.bytes as usize) };
                    told.ticket.progress(page.bytes);
                }
            }
        }
        if is_all && let Some(writing) = self.line.pop_front() {
            writing.told.end(Some(io));
        }
        Activity::Moved
    }

    /// Behind the end: fails everything when nothing is copied any more; whether that is so.
    pub(super) fn end(&mut self, cause: &Error) -> bool {
        while let Some(InFlight { told, .. }) =
            self.flying.pop_front_if(|flying| self.lanes.has_passed(flying.mark))
        {
            told.end(None);
        }
        if !self.lanes.are_idle() {
            return false;
        }
        let line = self.line.drain(..).map(|writing| writing.told);
        for mut told in line.chain(self.flying.drain(..).map(|flying| flying.told)) {
            told.fate.get_or_insert_with(|| cause.clone());
            told.end(None);
        }
        true
    }
}

fn landed(counter: u32, bytes: u64) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(LANDED);
    out.u32(counter);
    out.u64(bytes);
    out.into_bytes()
}

fn missed(counter: u32, why: &Error) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(MISSED);
    out.u32(counter);
    out.text(&why.to_string());
    out.into_bytes()
}

/// Takes what the writer says of a batch; whether it was that.
pub(super) fn heard(message: &[u8], peer: &Arc<str>, io: &mut Io<'_>) -> Result<bool, Malformed> {
    let from = &mut Reader::new(message);
    match from.u8()? {
        LANDED => {
            let (counter, bytes) = (from.u32()?, from.u64()?);
            from.end()?;
            io.arrived(counter, bytes);
        }
        MISSED => {
            let (counter, why) = (from.u32()?, from.text()?);
            from.end()?;
            io.missed(counter, &Error::Remote { peer: Arc::clone(peer), what: why.into() });
        }
        _ => return Ok(false),
    }
    Ok(true)
}
