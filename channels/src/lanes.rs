//! The lanes of one direction of a channel.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use meshreduce_device::{Device, PrimaryContext};

use crate::channel::Ready;
use crate::error::Error;
use crate::lane::{Lane, Mark};
use crate::stall_check::StallCheck;

/// A lane of the own device, and, for host memory, of those whose streams callers have named.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// The own device's, if it is one of CUDA.
    own: Option<Arc<PrimaryContext>>,
    lanes: BTreeMap<u32, Lane>,
    /// Of what only words, or other devices' events, tell of.
    stall_check: StallCheck,
}

/// Whether memory may be used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gate {
    /// It was not looked at yet.
    Shut,
    /// When the mark of this device's lane has passed.
    Behind(u32, Mark),
    /// It may. (A device's: as far as its lane is concerned.)
    Open,
}

impl Lanes {
    pub(crate) fn new(own: Option<Arc<PrimaryContext>>) -> Self {
        Self { own, lanes: BTreeMap::new(), stall_check: StallCheck::default() }
    }

    /// The context of the own device, if it is one of CUDA.
    pub(crate) fn context(&self) -> Option<&Arc<PrimaryContext>> {
        self.own.as_ref()
    }

    fn of(&mut self, context: &Arc<PrimaryContext>) -> Result<&mut Lane, Error> {
        let lane = match self.lanes.entry(context.ordinal()) {
            std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::btree_map::Entry::Vacant(none) => none.insert(Lane::new(context)?),
        };
        Ok(lane)
    }

    /// The own device's.
    pub(crate) fn own(&mut self) -> Result<&mut Lane, Error> {
        let context = self
            .own
            .clone()
            .ok_or_else(|| Error::BadMemory { what: format!("{} is not of CUDA", Device::Cpu).into() })?;
        self.of(&context)
    }

    /// Whether the memory of a transfer may be used now: by a device, in its lane; by the host, if it says `true`.
    ///
    /// # Errors
    ///
    /// Of this transfer alone: what it waits for is lost, or cannot be waited for.
    pub(crate) fn pass(&mut self, gate: &mut Gate, ready: &Ready, now: Instant) -> Result<bool, Error> {
        match *gate {
            Gate::Open => {}
            Gate::Behind(ordinal, mark) => {
                if !self.lanes.get(&ordinal).is_some_and(|lane| lane.has_passed(mark)) {
                    return Ok(false);
                }
                *gate = Gate::Open;
            }
            Gate::Shut => match (ready, self.own.is_some()) {
                (Ready::Now, _) => *gate = Gate::Open,
                // In the lane: if the stream is lost, so is the lane.
                (Ready::Behind(_) | Ready::Told(..), true) if !self.is_of_another(ready) => {
                    self.own()?.wait_for(ready)?;
                    *gate = Gate::Open;
                }
                // The host sees it itself.
                (Ready::Told(..) | Ready::Refused(_), _) | (Ready::Behind(_), true) => {
                    let has_come = ready.has_come()?;
                    if self.stall_check.is_due(now, !has_come) {
                        ready.check()?;
                    }
                    if !has_come {
                        return Ok(false);
                    }
                    *gate = Gate::Open;
                }
                (Ready::Behind(event), false) => {
                    let context = Arc::clone(event.context());
                    let lane = self.of(&context)?;
                    lane.wait_for(ready)?;
                    let mark = lane.enqueue(|_, _| Ok(()))?;
                    *gate = Gate::Behind(context.ordinal(), mark);
                    return self.pass(gate, ready, now);
                }
            },
        }
        Ok(true)
    }

    fn is_of_another(&self, ready: &Ready) -> bool {
        self.own.as_ref().is_some_and(|own| ready.is_of_another(own))
    }

    /// As [`Lane::vouch`], of the own lane.
    pub(crate) fn vouch(&mut self, mark: Mark) -> Result<(), Error> {
        Ok(self.own()?.vouch(mark)?)
    }

    /// Whether a mark of the own lane has passed.
    pub(crate) fn has_passed(&self, mark: Mark) -> bool {
        let ordinal = self.own.as_ref().map(|context| context.ordinal());
        ordinal.and_then(|ordinal| self.lanes.get(&ordinal)).is_some_and(|lane| lane.has_passed(mark))
    }

    /// As [`Lane::check`], for all.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Error> {
        self.lanes.values_mut().try_for_each(|lane| Ok(lane.check(now)?))
    }

    /// As [`Lane::is_idle`], for all.
    pub(crate) fn are_idle(&mut self) -> bool {
        self.lanes.values_mut().all(Lane::is_idle)
    }

    /// Where nobody waits for what is under way any more: whether something is. The lanes are never freed then (a device still writes
    /// their words), nor must be what the work uses.
    pub(crate) fn leak_if_busy(&mut self) -> bool {
        if self.are_idle() {
            return false;
        }
        std::mem::forget(std::mem::take(&mut self.lanes));
        tracing::error!(
            "a channel is dropped while a device copies for it: what the copies use is never freed"
        );
        true
    }
}
