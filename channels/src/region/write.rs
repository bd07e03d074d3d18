//! What endpoints can do with regions and counters.
#![forbid(unsafe_code)]

use super::{CounterDescriptor, Pages, Region, RegionDescriptor};
use crate::channel::{Batch, Pair};
use crate::context::Context;
use crate::counter::Counter;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::owned::Failed;
use crate::span::Memory;
use crate::stream::After;
use crate::transfer::Transfer;

impl Context {
    /// Registers memory, for one-sided writes from it and to it.
    ///
    /// What that costs depends on the kinds of channels: a network card pins the memory, IPC only asks the driver for a handle.
    ///
    /// # Errors
    ///
    /// The memory, and why no kind of channel can register it.
    pub fn register<M: Memory>(&self, memory: M) -> Result<Region<M>, Failed<M>> {
        Region::new(self.site(), memory)
    }
}

impl Endpoint {
    /// A counter at 0 for batches of this endpoint's other side; in a forked child one that has failed.
    pub fn counter(&self) -> Counter {
        self.shared().counters().create()
    }

    /// Writes pages of `region` to the other side's region `to`, when what has been enqueued on the stream `after` so far is done;
    /// then the other side's `counter` goes up by one.
    ///
    /// The transfer has ended when the local pages may be written again, and everything is there, or is on its way and comes unless
    /// the endpoint fails, or either side closes it; it counts the bytes of all pages. Nobody need wait for it ([`Transfer::detach`]);
    /// dropped, it is aborted. One that fails fails the counter, for good, so that nobody waits in vain: also one that is refused
    /// before anything of it has begun, for whatever reason but [`Error::OtherCounter`]. (Batches for the counter that are under way
    /// then are written, and may not be counted any more.)
    /// Both regions stay for as long as the batch needs them, whatever their owners drop.
    ///
    /// Batches of a pair of devices begin in the order of the calls. What they write is in no order: neither the pages of one, nor
    /// those of two batches, nor batches and sends. So what is to be written over what a batch before it writes waits for that one
    /// to be counted at the other side ([`Counter::wait`] there, and a word from there to here). A batch without bytes counts too.
    ///
    /// What it costs: over `ipc` and `xth` one call of the driver for each page, or run of pages at equal distances on both sides,
    /// some microseconds each; pages that go on where the one before ends are one. Over `gdr` a work request for each page.
    ///
    /// What is wrong the transfer tells, and nothing is written then: [`Error::OutOfRegion`] for a page that is not within both
    /// regions, [`Error::TooManyPages`]; [`Error::BadMemory`] for a region of another context; [`Error::NotRegistered`], [`Error::NoChannel`],
    /// [`Error::NoOneSided`]; [`Error::OtherCounter`]; [`Error::RegionGone`] if the owner has given the region up; and how
    /// the endpoint ended.
    pub fn write<'a, M: Memory>(
        &self,
        region: &Region<M>,
        to: &RegionDescriptor,
        pages: impl Into<Pages>,
        counter: &CounterDescriptor,
        after: impl Into<After<'a>>,
    ) -> Transfer {
        let pages = pages.into();
        let bytes = pages.bytes();
        let pair = Pair { local: region.span().device, remote: to.device() };
        let (ticket, transfer) = self.ticket(bytes);
        let prepared = || {
            self.check(pair)?;
            self.check_counter(counter)?;
            if !region.is_of(self.site()) {
                return Err(Error::BadMemory {
                    what: "the region was registered with another context".into(),
                });
            }
            let kind = self.channel(pair)?;
            let missing = |whose: &str| {
                let what = format!("the region of {whose} is not registered with it").into();
                Error::NotRegistered { channel: kind.into(), what }
            };
            let local = region.part(kind).ok_or_else(|| missing("this side"))?;
            let remote = to.part(kind).ok_or_else(|| missing(self.peer_name()))?;
            let pages = pages.checked(region.span().bytes, self.peer_name(), to.bytes())?;
            Ok((local.clone(), remote.into(), pages, self.ready(after.into())?))
        };
        match prepared() {
            Ok((local, remote, pages, ready)) => {
                let counter = counter.number;
                self.post_batch(pair, Batch { local, remote, pages, bytes, counter, ready, ticket });
            }
            Err(error) => {
                self.post_refused(pair, counter, &error);
                ticket.fail(error);
            }
        }
        transfer
    }
}
