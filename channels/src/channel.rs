//! What a kind of channel is: its context in this process, and the channel of one pair of devices.
//!
//! A [`ChannelFactory`] says by name and priority what it makes. In a process it makes a [`ChannelContext`], or says why the kind is
//! not viable here. Two processes show each other the descriptors of their contexts; for every pair of devices the first kind by
//! descending priority whose descriptors can communicate makes a [`Channel`] on either side. A channel lives in the progress
//! thread of its process: it is called there alone, one call at a time, and never blocks. What it has to say to its other half
//! goes through the endpoint's link ([`Io::send`]), in order and whole.
//!
//! Others implement the same three traits in their own crates.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use meshreduce_device::{Device, PrimaryContext};

use crate::counter::Counters;
use crate::error::Error;
use crate::link::{Kind, LONGEST, Outbox};
use crate::progress::Missed;
pub use crate::ready::Ready;
use crate::span::Span;
use crate::transfer::Ticket;

/// Why something is not so, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(pub String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: Into<String>> From<T> for Reason {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

/// Makes one kind of channel.
pub trait ChannelFactory: Send + Sync + fmt::Debug {
    /// Its name: lower case letters, digits and `_`.
    fn name(&self) -> &str;

    /// The kind with the highest priority that can serve a pair is taken. No two kinds of a registry have the same.
    fn priority(&self) -> u32;

    /// The kind in this process, or why it is not viable here. Whatever is missing (a library, a device, a right) is a reason.
    fn context(&self, environment: &Environment) -> Result<Arc<dyn ChannelContext>, Reason>;
}

/// Where contexts are made.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The devices that are to be served; [`Device::Cpu`] among them.
    pub devices: Vec<Device>,
    /// The contexts of the CUDA devices among them, in their order.
    pub contexts: Vec<Arc<PrimaryContext>>,
    /// Random, for this context of this process alone: whoever knows it has it from this process.
    pub secret: [u8; 16],
    /// Wakes the progress thread, from any thread.
    pub waker: crate::progress::Waker,
}

impl Environment {
    /// The context of the CUDA device with this ordinal, if it is to be served.
    pub fn context(&self, ordinal: u32) -> Option<&Arc<PrimaryContext>> {
        self.contexts.iter().find(|context| context.ordinal() == ordinal)
    }
}

/// What a kind tells the other side of one of its devices: bytes of the kind's own, with a version in them.
pub type Descriptor = Vec<u8>;

/// Two devices, as seen from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// On this side.
    pub local: Device,
    /// On the other.
    pub remote: Device,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} here and {} there", self.local, self.remote)
    }
}

/// Which of the two sides of an endpoint this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that listened.
    Listening,
    /// The one that connected.
    Connecting,
}

/// One kind of channel in this process.
pub trait ChannelContext: Send + Sync + fmt::Debug {
    /// The factory's name.
    fn name(&self) -> &str;

    /// A descriptor for every device that the kind serves here.
    fn descriptors(&self) -> Vec<(Device, Descriptor)>;

    /// Whether a local and a remote device can communicate. Symmetric: the other side comes to the same answer.
    ///
    /// # Errors
    ///
    /// Why not.
    fn can_communicate(&self, local: &[u8], remote: &[u8]) -> Result<(), Reason>;

    /// Whether a send of the pair that waits for a stream of `after` is told of that by a word ([`Ready::Told`]), not an event: where a
    /// stream of another device is to wait for it. What waits for an event of a device that is lost waits for ever, or goes on as
    /// if it had come; a word the host can write in that device's place.
    fn is_told(&self, pair: Pair, after: Device) -> bool {
        let _ = (pair, after);
        false
    }

    /// This side's half of a channel. The other side makes its own, sooner or later; what it says before is kept.
    ///
    /// # Errors
    ///
    /// What the driver or the system refuses.
    fn connect(&self, offer: Offer<'_>) -> Result<Box<dyn Channel>, Error>;

    /// Registers memory for one-sided writes, both as their source and as their target; `None`: the kind has none.
    ///
    /// # Errors
    ///
    /// What the driver, the NIC or the system refuses.
    ///
    /// # Safety
    ///
    /// The memory stays valid for as long as the part lives.
    unsafe fn register(&self, span: Span) -> Result<Option<Arc<dyn RegionPart>>, Error> {
        let _ = span;
        Ok(None)
    }

    /// What a person wants to know of it: rows of the doctor's table.
    fn report(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Looks after what no channel does. The progress thread calls it about twice a second while it is awake, and wakes for it as long as
    /// the answer is that there is more to look after.
    fn tend(&self) -> bool {
        false
    }

    /// Ends it: no new channels. Those there are have been ended.
    fn close(&self) {}
}

/// What a channel is made of.
#[derive(Debug)]
pub struct Offer<'a> {
    /// The pair that it is for.
    pub pair: Pair,
    /// Which side this is.
    pub side: Side,
    /// The local device's descriptor.
    pub local: &'a [u8],
    /// The remote one's.
    pub remote: &'a [u8],
    /// Who is on the other side, for errors.
    pub peer: Arc<str>,
}

/// A kind's share of a registered region; the registration ends with it.
pub trait RegionPart: Send + Sync + fmt::Debug {
    /// What the other side needs in order to write to it: bytes of the kind's own, with a version in them.
    fn descriptor(&self) -> Descriptor;

    /// The region is being given up: from now on nobody else gets hold of the part. Who has it already is told by
    /// [`Channel::withdraw`]. Called once, from any thread. If it panics, or the part when it is dropped, the memory is never freed.
    fn close(&self) {}

    /// The part, for the kind that made it.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// Which way the data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the other side.
    Send,
    /// From the other side.
    Receive,
}

/// A transfer that was asked for.
///
/// The memory is valid, and nobody else's, until the ticket has ended. Until then at least the operation's creator keeps it.
#[derive(Debug)]
pub struct Operation {
    /// Which way.
    pub direction: Direction,
    /// From where, or to where.
    pub span: Span,
    /// When the memory may be used.
    pub ready: Ready,
    /// Tells whoever asked for it how it ends.
    pub ticket: Ticket,
}

impl Operation {
    /// Its ticket, to be ended. What else it holds is let go of, so that the next transfer finds it free.
    pub fn into_ticket(self) -> Ticket {
        let Self { ready, ticket, .. } = self;
        drop(ready);
        ticket
    }
}

/// One-sided writes that belong together.
#[derive(Debug)]
pub struct Batch {
    /// This side's share of the local region.
    pub local: Arc<dyn RegionPart>,
    /// The descriptor of the remote one's.
    pub remote: Arc<[u8]>,
    /// What to write; each within both regions, none empty.
    pub pages: Vec<Page>,
    /// Bytes of all pages.
    pub bytes: u64,
    /// The counter that goes up by one on the other side when everything is there.
    pub counter: u32,
    /// When the local memory may be read.
    pub ready: Ready,
    /// Ends when the local memory may be written again.
    pub ticket: Ticket,
}

/// One stretch of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it begins in the local region, in bytes.
    pub from: u64,
    /// Where it goes in the remote region, in bytes.
    pub to: u64,
    /// How long it is.
    pub bytes: u64,
}

/// A message of the other half.
#[derive(Debug)]
pub struct Message<'a> {
    /// What it says.
    pub bytes: &'a [u8],
    /// Descriptors that came with it: on links within a host alone.
    pub files: Vec<OwnedFd>,
}

/// What a channel may use while it is called.
#[derive(Debug)]
pub struct Io<'a> {
    pub(crate) outbox: Outbox<'a>,
    pub(crate) counters: &'a Counters,
    pub(crate) now: Instant,
}

impl Io<'_> {
    /// The longest message, in bytes: 64 MiB.
    pub const LONGEST: usize = LONGEST;

    /// Sends a message to the other half, behind all that were sent before. One of more than [`Io::LONGEST`] bytes is not sent, and
    /// ends the channel when the call that sends it has returned, with [`Error::MessageTooLong`].
    pub fn send(&mut self, message: Vec<u8>) {
        self.outbox.send(message);
    }

    /// Sends `head`, and behind it, in the same message, the `payload`, which is kept until the system has taken it. Both together
    /// are one message of [`Io::send`].
    pub fn send_with(&mut self, head: Vec<u8>, payload: Arc<dyn Payload>) {
        self.outbox.send_with(head, payload);
    }

    /// As [`Io::send`], with descriptors; `Err` gives them back if the link cannot carry any.
    ///
    /// # Errors
    ///
    /// The link is not a Unix socket.
    pub fn send_files(&mut self, message: Vec<u8>, files: Vec<OwnedFd>) -> Result<(), Vec<OwnedFd>> {
        self.outbox.send_files(message, files)
    }

    /// Whether descriptors can be sent.
    pub fn carries_files(&self) -> bool {
        self.outbox.carries_files()
    }

    /// Bytes that the system has not taken yet.
    pub fn queued(&self) -> usize {
        self.outbox.queued()
    }

    /// Notes that a batch for one of this side's counters has come in whole, and is to be seen by host and device.
    pub fn arrived(&mut self, counter: u32, bytes: u64) {
        self.counters.arrived(self.outbox.channel(), counter, bytes);
    }

    /// Notes that a batch for one of this side's counters will not come: its count cannot be reached any more.
    pub fn missed(&mut self, counter: u32, why: &Error) {
        self.counters.missed(counter, why);
    }

    /// That nothing was too long for the link.
    pub(crate) fn check(&self, channel: &str) -> Result<(), Error> {
        let most = LONGEST;
        self.outbox
            .excess()
            .map_or(Ok(()), |bytes| Err(Error::MessageTooLong { channel: channel.into(), bytes, most }))
    }

    /// Tells the other side that a batch for one of its counters was refused and does not come: the counter fails, so that nobody
    /// waits for it in vain. For kinds that have no message of their own for that.
    pub fn refused(&mut self, counter: u32, why: &Error) {
        let missed = Missed { counters: vec![counter], why: why.told() };
        missed.encode().for_each(|body| self.outbox.control(Kind::Missed, body));
    }

    /// The time of this call.
    pub fn now(&self) -> Instant {
        self.now
    }
}

/// Bytes that are sent from where they are.
pub trait Payload: Send + Sync + fmt::Debug {
    /// The bytes; the same until the last reference is gone.
    fn bytes(&self) -> &[u8];
}

/// What a look has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// Nothing is under way: look again when there is a message or an operation.
    Idle,
    /// Something is under way that only looking tells of: look again soon.
    Waiting,
    /// Something has moved.
    Moved,
}

/// One half of a channel.
///
/// Transfers are matched in the order in which they were started, sends and receives apart, and end in any order. A channel that
/// answers an error is over: everything on it fails, and so does all that comes later.
pub trait Channel: Send + fmt::Debug {
    /// Begins a transfer.
    ///
    /// # Errors
    ///
    /// What ends the channel. What ends the transfer alone goes to its ticket.
    fn start(&mut self, operation: Operation, io: &mut Io<'_>) -> Result<(), Error>;

    /// Begins a batch of writes. Kinds whose contexts register no regions are never asked. Whoever refuses one tells the other side,
    /// whose counter waits for it: by a message of its own and [`Io::missed`] there, or by [`Io::refused`].
    ///
    /// # Errors
    ///
    /// As [`Channel::start`].
    fn write(&mut self, batch: Batch, io: &mut Io<'_>) -> Result<(), Error> {
        io.refused(batch.counter, &Error::NoOneSided);
        batch.ticket.fail(Error::NoOneSided);
        Ok(())
    }

    /// A region of this side is being given up: the other half, if it may write to it, is told to finish and to let go. The
    /// memory is given back when nobody holds the part any more.
    ///
    /// # Errors
    ///
    /// As [`Channel::start`].
    fn withdraw(&mut self, part: &Arc<dyn RegionPart>, io: &mut Io<'_>) -> Result<(), Error> {
        let _ = (part, io);
        Ok(())
    }

    /// Takes what the other half has said.
    ///
    /// # Errors
    ///
    /// What ends the channel; what makes no sense, too.
    fn heard(&mut self, message: Message<'_>, io: &mut Io<'_>) -> Result<(), Error>;

    /// Looks what has happened otherwise: words that a device has written, completions of a NIC.
    ///
    /// # Errors
    ///
    /// What ends the channel.
    fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error>;

    /// Ends it: everything that is under way fails with `cause`, as soon as nothing uses its memory any more. It is called once, and
    /// then only [`Channel::linger`].
    fn end(&mut self, cause: &Error);

    /// Behind the end: how far it is. Looked at again and again, until it is [`Rest::Over`] and the channel is dropped. When all
    /// channels of an endpoint are quiet, the other side is told so, as long as there is a link.
    ///
    /// One that is dropped before that, because the context waits no longer, leaks what may still be used, and logs it.
    fn linger(&mut self, other: OtherHalf) -> Rest {
        let _ = other;
        Rest::Over
    }
}

/// What the other half of a channel that was ended can still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherHalf {
    /// It may still use what this half has lent it.
    Busy,
    /// It has ended too, and has said that it uses nothing of this half's any more.
    Quiet,
    /// The link has ended before it said so: it is dead, or cannot say it any more.
    Lost,
}

/// How far a channel is that was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rest {
    /// Something of it still uses the memory of transfers, or what the other half has lent it.
    Busy,
    /// No more. All tickets have been ended.
    Quiet,
    /// Nor does the other half use anything of this half's.
    Over,
}
