//! Batches of one-sided writes into regions, on the side that writes.
//!
//! The pages of a batch are shared out among the channel's queue pairs, each of which writes its own in chains; the last write on each
//! comes with the batch's number. No order between queue pairs is assumed: the other side counts the batch when as many of them
//! have delivered their last write as the announcement says, which goes over the link, and by which it also knows the counter
//! ([`arrivals`](crate::gdr::arrivals)).
//!
//! Nor is there any order between what two batches write: their shares lie on different queue pairs, and memory is registered for
//! relaxed ordering, with which not even one queue pair keeps it (ibv_reg_mr(3), `IBV_ACCESS_RELAXED_ORDERING`). To keep it,
//! a batch would have to wait for the acknowledgements of all before it, a round trip each. So batches take turns on a queue pair:
//! a short one does not wait behind a long one.
//!
//! A write with a number uses up a receive of the other side. So the last write on a queue pair waits until the other side has granted
//! one; grants are asked for before they are needed, and kept for later batches.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use meshreduce_verbs_loader::RemoteMemory;

use crate::channel::{Batch, Io};
use crate::error::Error;
use crate::gdr::connect::Connections;
use crate::gdr::hub::Hub;
use crate::gdr::message::Message;
use crate::gdr::pages::PageRange;
use crate::gdr::queue_pair::{Owner, Write};
use crate::gdr::region::{Region, Target};
use crate::gdr::work::{IMMEDIATES, Immediate};
use crate::watch::Wait;

/// Receives that are asked for at a time.
const GRANT: u32 = 8;
/// Below so many that are left, more are asked for.
const FEW: u32 = 3;
/// Writes that a batch posts on a queue pair before it is another's turn.
const TURN: u32 = 128;

/// The batches that a channel writes.
#[derive(Debug)]
pub(crate) struct Batches {
    hub: Arc<Hub>,
    served: usize,
    peer: Arc<str>,
    next: u64,
    /// In order: those that have begun, then those that have not.
    line: VecDeque<Writing>,
    /// Regions of the other side's, by number.
    targets: HashMap<u64, Lease>,
    /// Of the other side's receives, by queue pair.
    grants: BTreeMap<u8, Grant>,
    failed: Vec<(Batch, Error)>,
}

/// What the other side has granted, and will.
#[derive(Clone, Copy, Debug, Default)]
struct Grant {
    left: u32,
    asked: u32,
}

/// A region of the other side's.
#[derive(Clone, Copy, Debug, Default)]
struct Lease {
    /// The other side has said that it may be written to.
    lent: bool,
    /// The other side wants it back.
    withdrawn: bool,
    /// Batches that write to it.
    in_use: u32,
}

#[derive(Debug)]
struct Writing {
    number: u64,
    batch: Batch,
    target: Target,
    wait: Result<Wait, Error>,
    /// Empty: it has not begun.
    lanes: Vec<Lane>,
    /// Bytes that have been acknowledged.
    done: u64,
}

/// A queue pair's share of a batch.
#[derive(Debug)]
struct Lane {
    pair: u8,
    lkey: u32,
    rkey: u32,
    range: PageRange,
}

impl Batches {
    pub(crate) fn new(hub: &Arc<Hub>, served: usize, peer: &Arc<str>) -> Self {
        Self {
            hub: Arc::clone(hub),
            served,
            peer: Arc::clone(peer),
            next: 0,
            line: VecDeque::new(),
            targets: HashMap::new(),
            grants: BTreeMap::new(),
            failed: Vec::new(),
        }
    }

    pub(crate) fn start(&mut self, batch: Batch, io: &mut Io<'_>) {
        let target = match self.checked(&batch) {
            Ok(target) => target,
            Err(error) => return fail(batch, error, io),
        };
        if !batch.pages.is_empty() {
            match self.targets.get(&target.number) {
                Some(lease) if lease.withdrawn => return fail(batch, self.gone(), io),
                Some(_) => {}
                None => {
                    self.targets.insert(target.number, Lease::default());
                    io.send(Message::Lend { region: target.number }.to_bytes());
                }
            }
        }
        let wait = self.hub.watch.begin(&batch.ready);
        let number = self.next;
        self.next += 1;
        self.line.push_back(Writing { number, batch, target, wait, lanes: Vec::new(), done: 0 });
    }

    /// What is written to, if everything lies where it should.
    fn checked(&self, batch: &Batch) -> Result<Target, Error> {
        let source = batch.local.as_any().downcast_ref::<Region>();
        let Some(source) = source.filter(|source| source.is_of(&self.hub, self.served)) else {
            return Err(Error::BadMemory { what: "the local region is not of this channel's device".into() });
        };
        let target = Target::from_bytes(&batch.remote)
            .map_err(|error| Error::BadDescriptor { what: error.to_string().into() })?;
        for page in &batch.pages {
            page.check(source.span.bytes, &self.peer, target.bytes)?;
        }
        Ok(target)
    }

    fn gone(&self) -> Error {
        Error::RegionGone { peer: Arc::clone(&self.peer), what: "its owner has given it up".into() }
    }

    /// The other side has posted receives for batches.
    pub(crate) fn granted(&mut self, pair: u8, receives: u32) {
        let grant = self.grants.entry(pair).or_default();
        grant.left = grant.left.saturating_add(receives);
        grant.asked = grant.asked.saturating_sub(receives);
    }

    /// A region may be written to.
    pub(crate) fn lent(&mut self, region: u64) {
        if let Some(lease) = self.targets.get_mut(&region) {
            lease.lent = true;
        }
    }

    /// There is no such region, or no more.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] of one that was lent: that is taken back, and let go of here, before it is gone.
    pub(crate) fn not_there(&mut self, region: u64, io: &mut Io<'_>) -> Result<(), Error> {
        if self.targets.get(&region).is_some_and(|lease| lease.lent || lease.in_use > 0) {
            return Err(Error::protocol(&self.peer, format!("region {region:x} is gone, which was lent")));
        }
        self.targets.remove(&region);
        self.fail_unbegun(region, io);
        Ok(())
    }

    /// The owner wants a region back.
    pub(crate) fn withdrawn(&mut self, region: u64, io: &mut Io<'_>) {
        let Some(lease) = self.targets.get_mut(&region) else { return };
        lease.withdrawn = true;
        self.fail_unbegun(region, io);
        self.release(region, io);
    }

    fn fail_unbegun(&mut self, region: u64, io: &mut Io<'_>) {
        for one in std::mem::take(&mut self.line) {
            match one.lanes.is_empty() && one.target.number == region && !one.batch.pages.is_empty() {
                true => fail(one.batch, self.gone(), io),
                false => self.line.push_back(one),
            }
        }
    }

    /// Says so if a region that the owner wants back is not in use any more.
    fn release(&mut self, region: u64, io: &mut Io<'_>) {
        if self.targets.get(&region).is_some_and(|lease| lease.withdrawn && lease.in_use == 0) {
            self.targets.remove(&region);
            io.send(Message::Released { region }.to_bytes());
        }
    }

    /// Writes of a batch have been acknowledged.
    pub(crate) fn written(&mut self, number: u64, bytes: u64) {
        if let Some(one) = self.line.iter_mut().find(|one| one.number == number) {
            one.done += bytes;
            one.batch.ticket.progress(bytes);
        }
    }

    /// Goes on with all of them. Whether anything has moved, and whether something is to be looked for.
    pub(crate) fn poll(
        &mut self,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<(bool, bool), Error> {
        let (mut moved, mut looking) = (false, false);
        let mut over = Vec::new();
        // They begin in order.
        let mut may_begin = true;
        for one in &mut self.line {
            let begun = !one.lanes.is_empty();
            if !begun {
                let outcome = one.begin(may_begin, &self.hub, &mut self.targets, connections, io);
                may_begin &= matches!(outcome, Ok(Begun::Yes | Begun::Empty) | Err(_));
                looking |= matches!(outcome, Ok(Begun::NotReady));
                match outcome {
                    Ok(Begun::Yes) => moved = true,
                    Ok(Begun::No | Begun::NotReady) => continue,
                    Ok(Begun::Empty) => over.push((one.number, None)),
                    Err(error) => over.push((one.number, Some(error))),
                }
            }
            moved |= one.post(&self.hub, &mut self.grants, connections, io);
            looking = true;
            if one.is_done() {
                over.push((one.number, None));
            }
        }
        moved |= !over.is_empty();
        for (number, error) in over {
            let place = self.line.iter().position(|one| one.number == number);
            let Some(one) = place.and_then(|place| self.line.remove(place)) else { continue };
            if let Some(lease) = self.targets.get_mut(&one.target.number)
                && !one.lanes.is_empty()
            {
                lease.in_use -= 1;
            }
            match error {
                Some(error) => fail(one.batch, error, io),
                None => one.batch.ticket.done(),
            }
            self.release(one.target.number, io);
        }
        Ok((moved, looking))
    }

    /// Ends all that is under way, once nothing reads their memory any more.
    pub(crate) fn end(&mut self, cause: &Error) {
        self.failed.extend(self.line.drain(..).map(|one| (one.batch, cause.clone())));
    }

    /// Ends the tickets: nothing reads their memory any more.
    pub(crate) fn settle(&mut self) {
        for (batch, error) in self.failed.drain(..) {
            batch.ticket.fail(error);
        }
    }
}

/// Fails a batch of which nothing was written, also for whoever waits for it on the other side.
fn fail(batch: Batch, error: Error, io: &mut Io<'_>) {
    io.send(Message::Missed { counter: batch.counter, what: error.to_string() }.to_bytes());
    batch.ticket.fail(error);
}

/// What has come of a batch that had not begun.
enum Begun {
    Yes,
    /// It has no bytes, and was counted.
    Empty,
    /// The other side, or a batch before it, is waited for.
    No,
    /// Something is waited for that only looking tells of.
    NotReady,
}

impl Writing {
    /// Begins it, if it can. An error is what it fails with.
    fn begin(
        &mut self,
        may_begin: bool,
        hub: &Hub,
        targets: &mut HashMap<u64, Lease>,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> Result<Begun, Error> {
        if self.batch.ticket.is_aborted() {
            return Err(Error::Dropped);
        }
        let wait = self.wait.as_mut().map_err(|error| error.clone())?;
        if !wait.is_over(io.now())? {
            return Ok(Begun::NotReady);
        }
        if !may_begin {
            return Ok(Begun::No);
        }
        if self.batch.pages.is_empty() {
            self.announce(0, io);
            return Ok(Begun::Empty);
        }
        let all = self.batch.bytes >= hub.config.stripe;
        if !connections.need(all, io) {
            return Ok(Begun::No);
        }
        let Some(lease) = targets.get_mut(&self.target.number).filter(|lease| lease.lent) else {
            return Ok(Begun::No);
        };
        self.lanes = self.share_out(hub, all, connections)?;
        lease.in_use += 1;
        self.announce(self.lanes.len() as u8, io);
        Ok(Begun::Yes)
    }

    fn announce(&self, parts: u8, io: &mut Io<'_>) {
        let (batch, counter) = ((self.number % u64::from(IMMEDIATES)) as u32, self.batch.counter);
        io.send(Message::Writing { batch, counter, bytes: self.batch.bytes, parts }.to_bytes());
    }

    fn share_out(&self, hub: &Hub, all: bool, connections: &Connections) -> Result<Vec<Lane>, Error> {
        let lanes = connections.lanes();
        let chosen = match all {
            true => lanes.to_vec(),
            // Short ones take turns.
            false => vec![lanes[(self.number % lanes.len() as u64) as usize]],
        };
        let longest = chosen.iter().filter_map(|index| connections.longest(*index)).min();
        let longest = longest.unwrap_or(hub.config.chunk).min(hub.config.chunk);
        let ranges = PageRange::share(&self.batch.pages, self.batch.bytes, chosen.len(), longest.into());
        let source = self.batch.local.as_any().downcast_ref::<Region>();
        let keyed = |(pair, range): (u8, PageRange)| {
            let (here, there) = connections.pairing(pair)?;
            let lkey = source?.registered(here)?.lkey();
            Some(Lane { pair, lkey, rkey: self.target.rkey(there)?, range })
        };
        let lanes: Option<Vec<Lane>> = chosen.into_iter().zip(ranges).map(keyed).collect();
        lanes.filter(|lanes| !lanes.is_empty()).ok_or_else(|| Error::NotRegistered {
            channel: crate::gdr::NAME.into(),
            what: "the NICs that are nearest do not reach each other, and regions are registered with those alone \
                   (Config::regions_on_all_nics)"
                .into(),
        })
    }

    fn is_done(&self) -> bool {
        let written = self.lanes.iter().all(|lane| lane.range.is_done());
        !self.lanes.is_empty() && written && self.done == self.batch.bytes
    }

    /// Posts what there is room for. Whether it has posted anything.
    fn post(
        &mut self,
        hub: &Hub,
        grants: &mut BTreeMap<u8, Grant>,
        connections: &mut Connections,
        io: &mut Io<'_>,
    ) -> bool {
        let mut state = hub.state();
        let mut any = false;
        let (number, pages, target) = (self.number, &self.batch.pages, self.target.address);
        let Some(source) = self.batch.local.as_any().downcast_ref::<Region>() else { return false };
        let (source, lower) = (source.span.address, (number % u64::from(IMMEDIATES)) as u32);
        for lane in self.lanes.iter_mut().filter(|lane| !lane.range.is_done()) {
            let grant = grants.entry(lane.pair).or_default();
            if grant.left < FEW && grant.asked == 0 {
                grant.asked = GRANT;
                io.send(Message::Want { pair: lane.pair, receives: GRANT }.to_bytes());
            }
            let Some(pair) = connections.pair(lane.pair) else { continue };
            let Lane { lkey, rkey, range, .. } = lane;
            let writes = std::iter::from_fn(|| {
                if grant.left == 0 && range.is_last(pages) {
                    return None;
                }
                let page = range.next(pages)?;
                let immediate = range.is_done().then_some(Immediate::Batch(lower));
                grant.left -= u32::from(immediate.is_some());
                Some(Write {
                    from: source + page.from,
                    // No longer than a message.
                    bytes: page.bytes as u32,
                    lkey: *lkey,
                    to: RemoteMemory { address: target.wrapping_add(page.to), rkey: *rkey },
                    immediate,
                })
            });
            // SAFETY: the memory of a batch is valid, and nobody writes it, until its ticket has ended, which it does when all its
            // writes have been acknowledged (`is_done`), or when the queue pairs are gone (`settle`); until then the batch
            // holds the region, and that its registrations. All pages lie within it (`checked`). The other side has
            // lent its own, and was not told that it has been released.
            let posted = unsafe { pair.post(&mut state, Owner::Batch(number), TURN, writes) };
            // A queue pair that has failed says so itself.
            any |= posted.is_ok_and(|posted| posted > 0);
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gdr::testing::{SentMessages, hub};

    #[test]
    fn a_region_that_was_lent_is_not_gone_at_once() {
        let (mut batches, mut said) = (Batches::new(&hub(), 0, &"p".into()), SentMessages::default());
        batches.targets.insert(7, Lease { lent: true, withdrawn: false, in_use: 1 });
        batches.targets.insert(8, Lease::default());
        assert!(matches!(batches.not_there(7, &mut said.io()), Err(Error::Protocol { .. })));
        assert!(batches.targets.contains_key(&7), "a batch that ends looks for it");
        batches.not_there(8, &mut said.io()).unwrap();
        assert!(!batches.targets.contains_key(&8));
    }
}
