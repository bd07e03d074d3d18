//! A call's transfers, on their way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use meshreduce::RawStream;
use meshreduce_channels::{Error as ChannelError, OnStream, Transfer};

use super::peers::Shared;
use crate::backend::{GroupInfo, Request};
use crate::call::Call;
use crate::error::{Cause, Error};
use crate::types::Operation;
use crate::work::{Completion, Outcome};

/// How long a look at a transfer lasts at most while others of the call may fail.
const TURN: Duration = Duration::from_millis(50);

/// How long a rank that has left is not blamed yet: perhaps it left because of another one, of which this rank hears in a moment.
const GRACE: Duration = Duration::from_secs(1);

/// One transfer of a call.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) transfer: Transfer,
    /// The rank in the group that it is with.
    pub(super) peer: usize,
    pub(super) is_send: bool,
}

/// All transfers of a call.
#[derive(Debug)]
pub(super) struct Flight {
    backend: Arc<str>,
    group: Arc<GroupInfo>,
    operation: Operation,
    request: Request,
    /// Of a receive: whom it is from.
    source: Option<usize>,
    legs: Vec<Leg>,
    /// The device of its tensors.
    ordinal: u32,
    /// It was ended early, because its time was up.
    late: AtomicBool,
    /// Why the group ended it.
    cause: OnceLock<Error>,
    /// Whoever made it has heard how it failed.
    told: AtomicBool,
    /// When it was seen that a peer had left.
    left: OnceLock<Instant>,
    peers: Arc<Shared>,
}

/// What is known of a transfer.
enum State {
    Done,
    GoesOn,
    Failed(ChannelError),
}

impl Leg {
    fn state(&self) -> State {
        match self.transfer.poll() {
            Ok(true) => State::Done,
            Ok(false) => State::GoesOn,
            // Nobody knows what still uses its memory, so it must never be said to have ended.
            Err(ChannelError::Abandoned { .. }) => State::GoesOn,
            Err(error) => State::Failed(error),
        }
    }

    fn goes_on(&self) -> bool {
        matches!(self.state(), State::GoesOn)
    }
}

impl Flight {
    pub(super) fn new(
        backend: &Arc<str>,
        group: &Arc<GroupInfo>,
        call: &Call<'_>,
        request: &Request,
        legs: Vec<Leg>,
        ordinal: u32,
        peers: &Arc<Shared>,
    ) -> Self {
        let source = matches!(call, Call::Recv { .. }).then(|| call.peer()).flatten();
        Self {
            backend: Arc::clone(backend),
            group: Arc::clone(group),
            operation: call.operation(),
            request: *request,
            source,
            legs,
            ordinal,
            late: AtomicBool::new(false),
            cause: OnceLock::new(),
            told: AtomicBool::new(false),
            left: OnceLock::new(),
            peers: Arc::clone(peers),
        }
    }

    /// Makes the stream wait for all of them.
    pub(super) fn enqueue_waits(&self, stream: OnStream<'_>) -> Result<(), Error> {
        for leg in &self.legs {
            // One that has failed already holds nothing up; the work tells it.
            match leg.transfer.wait_on(stream) {
                Ok(()) => {}
                Err(_) if matches!(leg.state(), State::Failed(_)) => {}
                Err(error) => return Err(self.error(error, Some(leg))),
            }
        }
        Ok(())
    }

    /// Ends what goes on. Its end is still to come.
    pub(super) fn abort(&self) {
        self.legs.iter().for_each(|leg| leg.transfer.abort());
    }

    /// Ends what goes on, with `cause`.
    pub(super) fn fail(&self, cause: &Error) {
        let _ = self.cause.set(cause.clone());
        self.abort();
    }

    pub(super) fn has_ended(&self) -> bool {
        !self.legs.iter().any(Leg::goes_on)
    }

    /// Waits until all have ended, or until `end`.
    pub(super) fn settle(&self, end: Option<Instant>) {
        while let Some(leg) = self.legs.iter().find(|leg| leg.goes_on()) {
            let left = end.map_or(TURN, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            self.look(leg, left.min(TURN));
        }
    }

    /// Waits for a transfer.
    fn look(&self, leg: &Leg, limit: Duration) {
        if let Err(ChannelError::Abandoned { .. }) = leg.transfer.wait(limit) {
            std::thread::sleep(limit);
        }
    }

    /// Whether the call's time is up.
    fn is_late(&self) -> bool {
        self.request.end().is_some_and(|end| Instant::now() >= end)
    }

    fn error(&self, error: ChannelError, leg: Option<&Leg>) -> Error {
        let with = leg.map(|leg| (leg.peer, leg.is_send));
        convert(error, &self.backend, &self.group, with, self.operation, &self.request)
    }

    /// That it has not ended, or why it was ended by the group.
    pub(super) fn unended(&self) -> Option<Error> {
        let mut missing: Vec<usize> =
            self.legs.iter().filter(|leg| leg.goes_on()).map(|leg| leg.peer).collect();
        missing.sort_unstable();
        missing.dedup();
        let cause = self.cause.get().cloned();
        let late = || self.request.timed_out(self.operation, &self.group.name, missing.clone());
        cause.or_else(|| (!missing.is_empty()).then(late))
    }

    /// Of one that has ended: whether all is known, and told, of it.
    ///
    /// # Errors
    ///
    /// Its failure, if whoever made it has not heard of it.
    pub(super) fn untold(&self) -> Result<bool, Error> {
        match self.outcome() {
            Ok(ended) => Ok(ended.is_some()),
            Err(_) if self.told.load(Ordering::Acquire) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The same, waiting until it is known, or until `end`.
    pub(super) fn wait_untold(&self, end: Option<Instant>) -> Option<Error> {
        if self.told.load(Ordering::Acquire) {
            return None;
        }
        self.ended(end).err()
    }

    /// What came of it, if all have ended. What can no longer end well is ended early.
    fn outcome(&self) -> Result<Option<Outcome>, Error> {
        let (mut goes_on, mut failed) = (false, None);
        for leg in &self.legs {
            match leg.state() {
                State::Done => {}
                State::GoesOn => goes_on = true,
                State::Failed(error) => {
                    let says_more = failed.as_ref().is_none_or(|(known, _)| weight(&error) > weight(known));
                    if says_more {
                        failed = Some((error, leg));
                    }
                }
            }
        }
        if goes_on {
            let is_late_now = failed.is_none() && self.is_late() && !self.late.swap(true, Ordering::AcqRel);
            if failed.is_some() || is_late_now {
                self.abort();
            }
            return Ok(None);
        }
        let Some((error, leg)) = failed else {
            return Ok(Some(self.source.map_or_else(Outcome::default, Outcome::from_rank)));
        };
        if let Some(cause) = self.cause.get() {
            return Err(cause.clone());
        }
        if self.late.load(Ordering::Acquire) && matches!(error, ChannelError::Dropped) {
            let missing = self.legs.iter().filter(|leg| matches!(leg.state(), State::Failed(_)));
            let mut missing: Vec<usize> = missing.map(|leg| leg.peer).collect();
            missing.sort_unstable();
            missing.dedup();
            return Err(self.request.timed_out(self.operation, &self.group.name, missing));
        }
        if matches!(error, ChannelError::ClosedByPeer { .. } | ChannelError::Remote { .. }) {
            if let Some((rank, how)) = self.peers.lost() {
                let group = Arc::clone(&self.group.name);
                return Err(Error::RankDied { rank, group, how: how.to_string() });
            }
            if self.left.get_or_init(Instant::now).elapsed() < GRACE {
                return Ok(None);
            }
        }
        Err(self.error(error, Some(leg)))
    }
}

/// Of two failures the one with more weight says more: what was dropped was dropped because of another one, and who has left may
/// have left because of one that died.
fn weight(error: &ChannelError) -> u32 {
    match error {
        ChannelError::Dropped => 0,
        ChannelError::ClosedByPeer { .. } | ChannelError::Remote { .. } => 1,
        ChannelError::PeerLost { .. } => 3,
        _ => 2,
    }
}

impl Completion for Flight {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        self.outcome()
    }

    fn wait(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error> {
        self.ended(end)
    }

    unsafe fn wait_on(&self, stream: RawStream) -> Result<(), Error> {
        // SAFETY: the caller vouches for the stream.
        self.enqueue_waits(unsafe { OnStream::raw(self.ordinal, stream) })
    }

    fn heard(&self) {
        self.told.store(true, Ordering::Release);
    }
}

impl Flight {
    /// Waits at most until `end` for its end.
    fn ended(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error> {
        loop {
            match self.outcome()? {
                None => {}
                ended => return Ok(ended),
            }
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                return Ok(None);
            }
            let Some(leg) = self.legs.iter().find(|leg| leg.goes_on()) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            // One of several may fail while another is looked at.
            let longest = if self.legs.len() > 1 { TURN } else { Duration::from_secs(3600) };
            // A call that is late is waited for until it has ended, which after an abort is soon.
            let deadline = self.request.end().filter(|_| !self.late.load(Ordering::Acquire));
            let until = [end, deadline].into_iter().flatten().min();
            let left = until.map_or(longest, |until| until.saturating_duration_since(now).min(longest));
            self.look(leg, left);
        }
    }
}

/// A failure of a channel as one of the group; `with`: the rank that it is with, and whether this one sends.
pub(super) fn convert(
    error: ChannelError,
    backend: &Arc<str>,
    group: &GroupInfo,
    with: Option<(usize, bool)>,
    operation: Operation,
    request: &Request,
) -> Error {
    let name = || Arc::clone(&group.name);
    let rank = with.map(|(rank, _)| rank);
    match (&error, rank) {
        (ChannelError::PeerLost { .. } | ChannelError::ClosedByPeer { .. }, Some(rank)) => {
            Error::RankDied { rank, group: name(), how: error.to_string() }
        }
        (ChannelError::TimedOut { .. } | ChannelError::NotConnected { .. }, _) => {
            request.timed_out(operation, &group.name, rank.into_iter().collect())
        }
        (ChannelError::LengthsDiffer { sent, expected, .. }, Some(rank)) => {
            let (send, receive) =
                (format!("a send of {sent} bytes"), format!("a receive of {expected} bytes"));
            let calls =
                if with.is_some_and(|(_, is_send)| is_send) { (send, receive) } else { (receive, send) };
            Error::Mismatch { sequence: request.sequence, group: name(), ranks: (group.rank, rank), calls }
        }
        (ChannelError::ContextClosed | ChannelError::Closed { .. }, _) => Error::ShutDown { group: name() },
        _ => Error::Backend { backend: Arc::clone(backend), group: name(), source: Cause::new(error) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_does_not_connect_is_named() {
        let ranks: Arc<[usize]> = Arc::from([0, 1, 2]);
        let group = GroupInfo { name: "world".into(), rank: 0, world_size: 3, ranks };
        let of =
            |error| convert(error, &"mesh".into(), &group, Some((2, true)), Operation::Send, &Request::new());
        let late = of(ChannelError::TimedOut { what: "a connection".into(), waited: Duration::ZERO });
        assert!(matches!(&late, Error::Timeout { missing, .. } if *missing == [2]), "{late}");
    }
}
