//! What can go wrong.

use std::sync::Arc;
use std::time::Duration;

use meshreduce_device::{Device, DriverError};
use meshreduce_store::StoreError;
use rustix::io::Errno;

use crate::registry::RegistryError;

/// Why a transfer, a channel, an endpoint or a context failed. Cheap to clone: what ends an endpoint ends all that waits for it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The context was closed.
    #[error("the channel context was closed")]
    ContextClosed,
    /// This side closed the endpoint.
    #[error("the endpoint to {peer} was closed")]
    Closed {
        /// Who is on the other side.
        peer: Arc<str>,
    },
    /// The other side is gone: its process ended, or the link broke.
    #[error("{peer} is gone ({how}); {received} of {bytes} bytes had come")]
    PeerLost {
        /// Who.
        peer: Arc<str>,
        /// How that shows.
        how: Arc<str>,
        /// Bytes of this transfer that had arrived, or had been taken from this side.
        received: u64,
        /// Bytes of this transfer.
        bytes: u64,
    },
    /// The other side closed the endpoint.
    #[error("{peer} has closed the endpoint; {received} of {bytes} bytes had come")]
    ClosedByPeer {
        /// Who.
        peer: Arc<str>,
        /// As in [`Error::PeerLost`].
        received: u64,
        /// As in [`Error::PeerLost`].
        bytes: u64,
    },
    /// The deadline has passed. The transfer goes on unless it is dropped.
    #[error("not done within {waited:?}: {what}")]
    TimedOut {
        /// What was waited for.
        what: Arc<str>,
        /// How long.
        waited: Duration,
    },
    /// A send and its receive have different lengths; both sides get this.
    #[error("transfer {number} with {peer}: {sent} bytes are sent and {expected} are expected")]
    LengthsDiffer {
        /// Who is on the other side.
        peer: Arc<str>,
        /// The transfer's number on its channel and in its direction, from 0.
        number: u64,
        /// Bytes of the send.
        sent: u64,
        /// Bytes of the receive.
        expected: u64,
    },
    /// No channel serves the pair.
    ///
    /// Its text is a line that says so, and a line for each kind:
    ///
    /// ```text
    /// no channel between cuda:0 here and cuda:1 of stage-1 (process 4711 on host):
    ///   xth: it is another process
    ///   ipc: not viable here: no CUDA driver
    /// ```
    #[error("no channel between {local} here and {remote} of {peer}:{}", indented(reasons))]
    NoChannel {
        /// This side's device.
        local: Device,
        /// The other side's.
        remote: Device,
        /// Who is on the other side.
        peer: Arc<str>,
        /// Every channel's name and why it does not serve the pair, a line each.
        reasons: Arc<str>,
    },
    /// A device that a context was to serve is not there, or not usable.
    #[error("{device} cannot be used: {reason}")]
    NoDevice {
        /// The device.
        device: Device,
        /// Why.
        reason: Arc<str>,
    },
    /// The registry of channels, or the environment variable with the allow list, is wrong.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The two sides did not meet.
    #[error("no connection with {with} within {:.2} s: {last}", waited.as_secs_f64())]
    NotConnected {
        /// Whom.
        with: Arc<str>,
        /// How long it was tried.
        waited: Duration,
        /// What the last attempt came to.
        last: Arc<str>,
    },
    /// The store on which two sides were to meet failed.
    #[error("the store on which {name} was to be found failed: {source}")]
    Store {
        /// The name.
        name: Arc<str>,
        /// Why.
        source: Arc<StoreError>,
    },
    /// The two sides chose different channels for a pair.
    #[error(
        "{local} here and {remote} of {peer}: channel {here} was chosen here and {there} there (do both sides have the same channels and allow list?)"
    )]
    ChoicesDiffer {
        /// This side's device.
        local: Device,
        /// The other side's.
        remote: Device,
        /// Who is on the other side.
        peer: Arc<str>,
        /// The choice here.
        here: Arc<str>,
        /// The choice there.
        there: Arc<str>,
    },
    /// The other side failed and said why.
    #[error("{peer} failed: {what}")]
    Remote {
        /// Who.
        peer: Arc<str>,
        /// What it said.
        what: Arc<str>,
    },
    /// The other side says what makes no sense: another version, or not this library.
    #[error("{peer} says something unexpected: {what}")]
    Protocol {
        /// Who.
        peer: Arc<str>,
        /// What is wrong with it.
        what: Arc<str>,
    },
    /// What was given is not memory of the device, or not a device of the context.
    #[error("{what}")]
    BadMemory {
        /// What is wrong.
        what: Arc<str>,
    },
    /// The transfer was dropped, or aborted, before it was done.
    #[error("the transfer was dropped")]
    Dropped,
    /// A channel let go of a transfer without saying how it ended: it panicked, or is wrong. Whether something still uses the
    /// memory is not known, so it is never given back.
    #[error("transfer {number} with {peer} was given up by its channel, which is a bug; its memory is lost")]
    Abandoned {
        /// Who is on the other side.
        peer: Arc<str>,
        /// As in [`Error::LengthsDiffer`].
        number: u64,
    },
    /// This process was forked from the one that the context belongs to.
    #[error("the channel context belongs to the process that this one was forked from")]
    Forked,
    /// The kind of channel has no one-sided writes.
    #[error("this kind of channel has no one-sided writes")]
    NoOneSided,
    /// The kind of channel that serves a pair of devices knows nothing of one of the regions.
    #[error("channel {channel} serves the pair: {what}")]
    NotRegistered {
        /// The kind.
        channel: Arc<str>,
        /// Which region, and why.
        what: Arc<str>,
    },
    /// The region to be written to is not there any more, or never was: its owner gave it up, or it is another process's.
    #[error("{peer} has no such region: {what}")]
    RegionGone {
        /// Whose region it should be.
        peer: Arc<str>,
        /// What is known of it.
        what: Arc<str>,
    },
    /// What should be a descriptor is none, or of another version.
    #[error("{what}")]
    BadDescriptor {
        /// What is wrong with it.
        what: Arc<str>,
    },
    /// A counter will not get as far as was waited for.
    #[error(
        "counter {counter:08x}: {batches} of {expected} batches ({bytes} bytes) have come from {peer}, and no more will: {why}"
    )]
    CountUnreachable {
        /// The counter's number, as its descriptor shows it.
        counter: u32,
        /// Who was to write.
        peer: Arc<str>,
        /// Batches that have come.
        batches: u64,
        /// Batches that were waited for.
        expected: u64,
        /// Bytes of those that have come.
        bytes: u64,
        /// Why no more will.
        why: Box<Error>,
    },
    /// Batches were to be counted by a counter that is none of the other side's for this endpoint.
    #[error(
        "counter {counter:08x} is not one of {peer} for this endpoint: counters are good for the endpoint that has made them"
    )]
    OtherCounter {
        /// The counter's number.
        counter: u32,
        /// Who is on the other side of the endpoint.
        peer: Arc<str>,
    },
    /// A range is not within its region, the local or the remote one.
    #[error("{length} bytes from {offset} on are beyond the region of {whose}, which has {bytes} bytes")]
    OutOfRegion {
        /// Whose region: `this side`, or the peer's name.
        whose: Arc<str>,
        /// Where the range begins in the region, in bytes.
        offset: u64,
        /// Bytes of the range.
        length: u64,
        /// Bytes of the region.
        bytes: u64,
    },
    /// A batch of more pages than one may have ([`Pages::MOST`](crate::Pages::MOST)).
    #[error("a batch of {pages} pages, {most} are the most")]
    TooManyPages {
        /// Pages of the batch; one more than the most if they were not counted.
        pages: u64,
        /// The most.
        most: u64,
    },
    /// A channel has sent more in one message than a link carries ([`Io::send`](crate::channel::Io::send)).
    #[error("channel {channel}: a message of {bytes} bytes, {most} are the most")]
    MessageTooLong {
        /// The kind.
        channel: Arc<str>,
        /// Bytes of the message.
        bytes: usize,
        /// The most.
        most: usize,
    },
    /// The driver refused.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: Arc<str>,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
    /// A verbs call failed, or a queue pair did.
    #[error("{what}")]
    Verbs {
        /// Which call or work request, of which NIC, and the status by its name in verbs; the root cause, not a flush that followed.
        what: Arc<str>,
    },
    /// A channel of another crate failed.
    #[error("channel {name}: {what}")]
    Other {
        /// The kind.
        name: Arc<str>,
        /// What it says.
        what: Arc<str>,
    },
}

/// Whose a region is that the process has itself.
pub(crate) const THIS_SIDE: &str = "this side";

/// What the system says if this process, or all of them, have as many descriptors as they may have at the moment.
pub(crate) fn shortage() -> Option<Errno> {
    match rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC) {
        Err(why @ (Errno::MFILE | Errno::NFILE)) => Some(why),
        _ => None,
    }
}

/// That this process has no room for the descriptors that have come from a peer.
pub(crate) fn no_descriptors(peer: &str, source: Errno) -> Error {
    Error::system(&format!("descriptors from {peer} could not be taken in (see ulimit -n)"), source)
}

/// The beginning of a text that the other side is told: at most `most` bytes, and whole characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Each line on one of its own.
fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("\n  {line}")).collect()
}

impl From<meshreduce_device::Error> for Error {
    fn from(error: meshreduce_device::Error) -> Self {
        match error {
            meshreduce_device::Error::Driver(error) => Error::Driver(error),
            other => Error::BadMemory { what: other.to_string().into() },
        }
    }
}

impl Error {
    /// What the device crate says.
    pub(crate) fn from_device(error: meshreduce_device::Error) -> Self {
        match error {
            meshreduce_device::Error::Driver(error) => error.into(),
            other => Error::BadMemory { what: other.to_string().into() },
        }
    }

    /// Whether the driver has refused something and goes on otherwise, so that it concerns one transfer alone. A context that is
    /// lost ends every channel on it.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Error::Driver(error) if !error.loses_context())
    }

    /// Whether the system had no descriptor or no memory left at the moment, which concerns one transfer alone.
    pub(crate) fn is_shortage(&self) -> bool {
        let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
        matches!(self, Error::System { source, .. } if Errno::from_io_error(source).is_some_and(|why| short.contains(&why)))
    }

    /// That the other side says what makes no sense.
    pub(crate) fn protocol(peer: &Arc<str>, what: impl Into<String>) -> Self {
        Error::Protocol { peer: Arc::clone(peer), what: what.into().into() }
    }

    /// What the other side is told of it: a text that fits any message.
    pub(crate) fn told(&self) -> String {
        cut(&self.to_string(), 64 << 10).to_owned()
    }

    /// That the system has refused `what`.
    pub(crate) fn system(what: &str, source: impl Into<std::io::Error>) -> Self {
        Error::System { what: what.into(), source: Arc::new(source.into()) }
    }
}
