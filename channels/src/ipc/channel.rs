//! One half of a channel: what it is told and asked, given to its parts.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_device::Device;

use super::imports::{Closing, Imported};
use super::lend::Lent;
use super::message;
use super::place::Place;
use super::receive::Receives;
use super::send::Sends;
use super::write::Writes;
use super::{Home, LocalDevice, Used};
use crate::channel::{
    Activity, Batch, Channel, Direction, Io, Message, Operation, OtherHalf, RegionPart, Rest,
};
use crate::error::Error;

/// How often one looks whether a process that was lost has ended.
const LOOK: Duration = Duration::from_millis(2);

/// How long the other half may take to let go of slots before other channels get others. It has ended as well, so that it says so at
/// once unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// How far a side may be ahead of the other one, in transfers: what it says of them is kept.
const MOST_AHEAD: u64 = 1 << 20;

/// Who and where a half is.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) home: Arc<Home>,
    pub(super) local: Device,
    pub(super) used: Used,
    pub(super) remote: Place,
    pub(super) peer: Arc<str>,
    /// In the ring's books.
    pub(super) number: u64,
    at: usize,
}

impl Here {
    pub(super) fn device(&self) -> &LocalDevice {
        &self.home.devices[self.at]
    }

    pub(super) fn nonsense(&self, what: String) -> Error {
        Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() }
    }

    pub(super) fn remote_error(&self, what: &str) -> Error {
        Error::Remote { peer: Arc::clone(&self.peer), what: what.into() }
    }

    pub(super) fn gone(&self, what: &str) -> Error {
        Error::RegionGone { peer: Arc::clone(&self.peer), what: what.into() }
    }
}

#[derive(Debug)]
pub(super) struct IpcChannel {
    here: Here,
    sends: Sends,
    receives: Receives,
    writes: Writes,
    lent: Lent,
    end: Option<End>,
}

/// How far the end is.
#[derive(Debug)]
struct End {
    cause: Error,
    /// What nothing here uses any more of the other side's.
    opened: Vec<Arc<Imported>>,
    /// What was opened is being closed; `None`: copies are still under way.
    closing: Option<Vec<Closing>>,
    is_over: bool,
    /// When it was looked last whether the other process has ended.
    looked: Option<Instant>,
    /// Since when only the other half is waited for.
    waits: Option<Instant>,
}

impl IpcChannel {
    pub(super) fn new(
        home: &Arc<Home>,
        number: u64,
        local: Device,
        remote: Place,
        peer: Arc<str>,
    ) -> Result<Self, Error> {
        let used = home.device(local)?.used()?;
        let at = home.devices.iter().position(|known| Device::Cuda(known.ordinal) == local).unwrap_or(0);
        let here = Here { home: Arc::clone(home), local, used, remote, peer, number, at };
        let (sends, receives, writes, lent) = Default::default();
        Ok(Self { here, sends, receives, writes, lent, end: None })
    }
}

impl Channel for IpcChannel {
    fn start(&mut self, operation: Operation, io: &mut Io<'_>) -> Result<(), Error> {
        match operation.direction {
            Direction::Send => self.sends.start(operation, &self.here, io)?,
            Direction::Receive => self.receives.start(operation, &self.here),
        }
        self.poll(io).map(|_| ())
    }

    fn write(&mut self, batch: Batch, io: &mut Io<'_>) -> Result<(), Error> {
        self.writes.start(batch, &self.here, io)?;
        self.poll(io).map(|_| ())
    }

    fn withdraw(&mut self, part: &Arc<dyn RegionPart>, io: &mut Io<'_>) -> Result<(), Error> {
        self.lent.withdraw(&**part, io);
        Ok(())
    }

    fn heard(&mut self, message: Message<'_>, io: &mut Io<'_>) -> Result<(), Error> {
        use message::Message;
        let here = &self.here;
        let said = Message::from_bytes(message.bytes).map_err(|error| here.nonsense(error.to_string()))?;
        let next = self.sends.next().max(self.receives.next());
        if said.transfer().is_some_and(|number| number.saturating_sub(next) >= MOST_AHEAD) {
            return Err(here.nonsense(format!("{said:?}, and {next} is the next here")));
        }
        match said {
            Message::Ring(offer) => self.receives.ring(&offer, here, io)?,
            Message::Wanted { number, bytes } => self.sends.wanted(number, bytes, here, io),
            Message::Unwanted { number } => self.sends.unwanted(number, here),
            Message::Staged { number, offset, bytes, slot, filled } => {
                self.receives.staged((number, offset, bytes), (slot, filled), here, io)?;
            }
            Message::Filled { slot, filled } => self.receives.filled(slot, filled),
            Message::Nothing { number } => self.receives.nothing(number, here, io)?,
            Message::NothingCame { number } => self.sends.nothing_came(number, here)?,
            Message::Taken { slot } => self.sends.taken(slot, here, io)?,
            Message::Blind => self.sends.blind(io),
            Message::Differs { number, sent } => self.receives.differs(number, sent, here),
            Message::GivenUp { number } => self.receives.given_up(number, here),
            Message::SendFailed { number, what } => self.receives.send_failed(number, what, here),
            Message::ReceiveFailed { number, what } => self.sends.receive_failed(number, &what, here),
            Message::Open { region } => self.lent.open(region, here, io),
            Message::Opened { region, offer } => self.writes.opened(region, &offer, here, io)?,
            Message::Gone { region, why } => self.writes.gone(region, &why, here, io),
            Message::Withdraw { region } => self.writes.withdrawn(region, here, io),
            Message::Released { region } => self.lent.released(region),
            Message::Landed { counter, bytes } => io.arrived(counter, bytes),
            Message::Missed { counter, why } => io.missed(counter, &here.remote_error(&why)),
        }
        self.poll(io).map(|_| ())
    }

    fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let sends = self.sends.poll(&self.here, io)?;
        let receives = self.receives.poll(io)?;
        let writes = self.writes.poll(&self.here, io)?;
        Ok(sends.max(receives).max(writes))
    }

    fn end(&mut self, cause: &Error) {
        self.sends.end(cause, &self.here);
        self.receives.end();
        let (opened, closing, looked, waits) = Default::default();
        self.end = Some(End { cause: cause.clone(), opened, closing, is_over: false, looked, waits });
    }

    fn linger(&mut self, other: OtherHalf) -> Rest {
        let Some(end) = &mut self.end else { return Rest::Busy };
        if end.is_over {
            return Rest::Over;
        }
        let here = &self.here;
        let closing = match &mut end.closing {
            Some(closing) => closing,
            none => {
                // All are asked: each notes what of it is done. None waits for the others' streams.
                let idle = [self.sends.is_idle(here), self.receives.is_idle(), self.writes.is_idle(here)];
                if idle[0] {
                    self.sends.fail(&end.cause);
                }
                if idle[1] {
                    end.opened.extend(self.receives.fail(&end.cause));
                }
                if idle[2] {
                    end.opened.extend(self.writes.fail(&end.cause));
                }
                if idle.contains(&false) {
                    return Rest::Busy;
                }
                let mut closing = self.writes.closing();
                let opened = std::mem::take(&mut end.opened);
                closing.push(Closing::begin(opened, here.home.waker.clone()));
                none.insert(closing)
            }
        };
        if !closing.iter().all(Closing::is_done) {
            return Rest::Busy;
        }
        let has_let_go = match other {
            OtherHalf::Busy => false,
            OtherHalf::Quiet => true,
            OtherHalf::Lost => {
                let now = Instant::now();
                let is_due = end.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK);
                if is_due {
                    end.looked = Some(now);
                }
                // Its files, the driver's among them, are closed before the system says that it has ended.
                is_due && here.remote.party.member.process.has_ended()
            }
        };
        if !has_let_go {
            let waits = *end.waits.get_or_insert_with(Instant::now);
            if waits.elapsed() >= PATIENCE
                && let Some(ring) = self.sends.lends()
                && here.device().retire(ring)
            {
                tracing::warn!(peer = %here.peer, "it does not let go of slots of a staging ring: others get another ring");
                here.home.waker.wake();
            }
            return Rest::Quiet;
        }
        self.sends.over(here);
        self.lent.over();
        end.is_over = true;
        Rest::Over
    }
}

impl Drop for IpcChannel {
    fn drop(&mut self) {
        if self.end.as_ref().is_some_and(|end| end.is_over) {
            return;
        }
        // Whoever drops it waits no longer. What is lent stays allocated, and what is borrowed stays open: only that is safe.
        let opened = self.end.as_mut().map(|end| std::mem::take(&mut end.opened)).unwrap_or_default();
        let is_open = !opened.is_empty();
        std::mem::forget(opened);
        let leaked = [
            self.sends.leak(&self.here),
            self.lent.leak(),
            self.receives.leak(),
            self.writes.leak(),
            is_open,
        ];
        if leaked.contains(&true) {
            tracing::error!(
                peer = %self.here.peer,
                "memory that another process has open, or this one of it, is never freed: the other process did not let go in time"
            );
        }
    }
}
