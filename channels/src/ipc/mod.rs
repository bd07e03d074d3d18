//! The channel between two processes of one host: through device memory that one shares with the other.
//!
//! Each device that sends has a *staging ring* in its memory, some slots that the other processes open by the driver's IPC handles.
//! A chunk goes from the sender's memory into a slot by a stream of the sender's, and out of it by one of the receiver's:
//!
//! ```text
//! sender                                          receiver
//! send: (event on the caller's stream)            recv: (word written by the caller's stream)
//!                                    <-- Wanted   the word has come: the memory is there
//! own stream: wait for the event,
//! copy to the slot, write the slot's word
//! Staged -->                                      own stream: wait for `go`, copy out of the slot, write `done`
//! the word has come: memory may be reused         the slot's word has come (seen through /proc): set `go`
//!                                    <-- Taken    `done` has come: the data are there
//! ```
//!
//! These are four calls of the driver on either side for a message that fits a slot, the caller's among them, and one message there
//! and one back if the receiver is there first. Chunks follow each other through the ring, which all channels of the device share
//! ([`slots`]).
//!
//! *Registered regions* are written directly: the writer opens the owner's memory and copies into it ([`write`], [`lend`]).
//!
//! # What is lent to other processes
//!
//! A driver that frees memory which another process has open may do anything. So everything that was lent, rings and regions, is
//! freed only when the borrower has said that it has closed it, or its process has ended: a borrower that is stopped, or whose
//! link broke while it lives, keeps it for as long as its process lives, whether or not it has closed it meanwhile: over a link that
//! is no more it cannot say so, and nothing is carried over to another link between the two. Nothing of this blocks; a context
//! that is closed meanwhile leaks it, and logs that.

mod channel;
mod imports;
mod lend;
mod message;
mod place;
mod receive;
mod region;
mod ring;
mod send;
mod slots;
mod words;
mod write;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use meshreduce_device::{Device, PrimaryContext, VisibleDevice, Words};

use crate::channel::{
    Channel, ChannelContext, ChannelFactory, Descriptor, Environment, Offer, Reason, RegionPart,
};
use crate::error::Error;
use crate::progress::Waker;
use crate::span::Span;
use imports::Imports;
use place::{Party, Place};
use region::Parts;
use ring::Ring;

/// The kind's name.
const NAME: &str = "ipc";
/// Its priority.
const PRIORITY: u32 = 300;

/// Between two processes of one host, over memory that they share: name `ipc`, priority 300.
///
/// ```
/// use meshreduce_channels::{Ipc, channel::ChannelFactory};
///
/// let ipc = Ipc::default().slots(8).slot_bytes(1 << 20);
/// assert_eq!((ipc.name(), ipc.priority()), ("ipc", 300));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Ipc {
    options: Options,
}

/// How the staging ring of a device is made, and followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Options {
    slots: u16,
    slot_bytes: u64,
    sees_words: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { slots: 4, slot_bytes: 8 << 20, sees_words: true }
    }
}

impl Ipc {
    /// How many slots a staging ring has, 1 to 64: 4 if this is not called.
    ///
    /// # Panics
    ///
    /// If there are none or too many.
    #[must_use]
    pub fn slots(mut self, slots: u16) -> Self {
        assert!((1..=words::MOST).contains(&slots), "{slots} slots: 1 to {} are possible", words::MOST);
        self.options.slots = slots;
        self
    }

    /// How many bytes a slot has, which is how long the chunks of a transfer are at most: 8 MiB if this is not called.
    ///
    /// # Panics
    ///
    /// For none, and more than 2^40.
    #[must_use]
    pub fn slot_bytes(mut self, bytes: u64) -> Self {
        assert!((1..=1 << 40).contains(&bytes), "slots of {bytes} bytes");
        self.options.slot_bytes = bytes;
        self
    }
}

impl Ipc {
    /// Whether the process looks itself whether a slot of another process is filled, through that one's `/proc`: so unless this is
    /// called. Where it is not allowed to, or with `false`, it is told by messages, which takes some microseconds longer.
    #[must_use]
    pub fn sees_words(mut self, sees: bool) -> Self {
        self.options.sees_words = sees;
        self
    }
}

impl ChannelFactory for Ipc {
    fn name(&self) -> &str {
        NAME
    }

    fn priority(&self) -> u32 {
        PRIORITY
    }

    fn context(&self, environment: &Environment) -> Result<Arc<dyn ChannelContext>, Reason> {
        Ok(Arc::new(Context { home: Arc::new(Home::new(self.options, environment)?) }))
    }
}

/// The kind in this process.
#[derive(Debug)]
struct Context {
    home: Arc<Home>,
}

/// What all channels of a context share.
struct Home {
    options: Options,
    devices: Vec<LocalDevice>,
    imports: Imports,
    parts: Parts,
    waker: Waker,
    next: AtomicU64,
}

/// A device of this process.
#[derive(Debug)]
struct LocalDevice {
    ordinal: u32,
    place: Place,
    descriptor: Descriptor,
    used: Mutex<Option<Used>>,
}

/// What a device needs when it is used for the first time: before that it gets no context here.
#[derive(Clone, Debug)]
struct Used {
    context: Arc<PrimaryContext>,
    words: Words,
    /// Kept by the channels that send through it.
    ring: Weak<Ring>,
}

impl Home {
    fn new(options: Options, environment: &Environment) -> Result<Self, Reason> {
        let reason = |error: &dyn fmt::Display| Reason(error.to_string());
        meshreduce_device::initialise().map_err(|error| reason(&error))?;
        let party = Party::current()?;
        let count = VisibleDevice::count().map_err(|error| reason(&error))?;
        let all = (0..count).map(|ordinal| {
            let device = VisibleDevice::get(ordinal)?;
            Ok((device, device.identity()?))
        });
        let all: Vec<_> =
            all.collect::<Result<_, meshreduce_device::Error>>().map_err(|error| reason(&error))?;
        let (mut devices, mut refused) = (Vec::new(), Vec::new());
        for (device, _) in &all {
            let ordinal = device.ordinal();
            if !environment.devices.contains(&Device::Cuda(ordinal)) {
                continue;
            }
            if !device.shares_memory().map_err(|error| reason(&error))? {
                refused.push(format!("the driver of device {ordinal} shares no memory between processes"));
                continue;
            }
            let place = Place::of(&party, *device, &all)?;
            devices.push(LocalDevice {
                ordinal,
                descriptor: place.to_bytes(),
                place,
                used: Mutex::default(),
            });
        }
        if devices.is_empty() {
            refused.push("it serves CUDA devices, and there is none".to_owned());
            return Err(Reason(refused.join("; ")));
        }
        let (imports, parts, waker) = (Imports::default(), Parts::default(), environment.waker.clone());
        Ok(Self { options, devices, imports, parts, waker, next: AtomicU64::new(0) })
    }

    fn device(&self, device: Device) -> Result<&LocalDevice, Error> {
        let known = self.devices.iter().find(|known| Device::Cuda(known.ordinal) == device);
        known
            .ok_or_else(|| Error::BadMemory { what: format!("{device} is not served by channel ipc").into() })
    }
}

impl LocalDevice {
    fn used(&self) -> Result<Used, Error> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = &*used {
            return Ok(used.clone());
        }
        let context = PrimaryContext::retain(self.ordinal)?;
        let words = Words::new(&context)?;
        Ok(used.insert(Used { context, words, ring: Weak::new() }).clone())
    }

    /// The device's staging ring, made when there is none.
    fn ring(&self, options: Options) -> Result<Arc<Ring>, Error> {
        self.used()?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(used) = &mut *used else { return Err(Error::ContextClosed) };
        if let Some(ring) = used.ring.upgrade() {
            return Ok(ring);
        }
        let ring = Arc::new(Ring::new(&used.context, options)?);
        used.ring = Arc::downgrade(&ring);
        Ok(ring)
    }

    /// A peer that is lost and lives keeps slots of the ring for as long as it likes: whoever sends from now on does so over another
    /// one. Whether that is new.
    fn retire(&self, ring: &Arc<Ring>) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = used.as_mut().filter(|used| used.ring.ptr_eq(&Arc::downgrade(ring))) {
            used.ring = Weak::new();
        }
        ring.retire()
    }
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Home")
            .field("options", &self.options)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

impl ChannelContext for Context {
    fn name(&self) -> &str {
        NAME
    }

    fn descriptors(&self) -> Vec<(Device, Descriptor)> {
        let one = |device: &LocalDevice| (Device::Cuda(device.ordinal), device.descriptor.clone());
        self.home.devices.iter().map(one).collect()
    }

    fn can_communicate(&self, local: &[u8], remote: &[u8]) -> Result<(), Reason> {
        let read = |bytes: &[u8]| Place::from_bytes(bytes).map_err(|error| Reason(error.to_string()));
        read(local)?.can_reach(&read(remote)?)
    }

    fn connect(&self, offer: Offer<'_>) -> Result<Box<dyn Channel>, Error> {
        let what = |error: meshreduce_store::codec::Malformed| Error::Protocol {
            peer: Arc::clone(&offer.peer),
            what: error.to_string().into(),
        };
        let remote = Place::from_bytes(offer.remote).map_err(what)?;
        let number = self.home.next.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(channel::IpcChannel::new(&self.home, number, offer.pair.local, remote, offer.peer)?))
    }

    unsafe fn register(&self, span: Span) -> Result<Option<Arc<dyn RegionPart>>, Error> {
        let Ok(device) = self.home.device(span.device) else { return Ok(None) };
        if span.bytes == 0 {
            return Ok(None);
        }
        let part = self.home.parts.register(&device.used()?.context, span)?;
        Ok(Some(part))
    }

    fn report(&self) -> Vec<(String, String)> {
        let Options { slots, slot_bytes, .. } = self.home.options;
        let mut rows =
            vec![("staging ring".to_owned(), format!("{slots} slots of {slot_bytes} bytes a device"))];
        for device in &self.home.devices {
            let others: Vec<String> = device
                .place
                .others
                .iter()
                .filter(|(_, can)| !can)
                .map(|(uuid, _)| {
                    let other = self.home.devices.iter().find(|other| other.place.device.uuid == *uuid);
                    other.map_or("a device that is not served".to_owned(), |other| {
                        format!("cuda:{}", other.ordinal)
                    })
                })
                .collect();
            let access = match others.as_slice() {
                [] => "accesses all others that this process sees".to_owned(),
                _ => format!("no access to {}", others.join(", ")),
            };
            rows.push((format!("cuda:{}", device.ordinal), format!("{}; {access}", device.place.device)));
        }
        rows
    }
}
