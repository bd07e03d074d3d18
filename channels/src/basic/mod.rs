//! `basic`: any pair of devices, host memory too, with or without CUDA.
//!
//! The data pass through slots of page-locked memory in chunks: copied into a slot, announced or sent, copied out of the slot; all
//! three at the same time. Between processes of a host the slots are memory that both have mapped, and the link carries no data;
//! between hosts it does. There the memory of the host is sent from where it is.
//!
//! Each direction of a channel has its own slots, made when they are first needed: 16 MiB as it is (page-locked where one of the
//! two devices is of CUDA). So have batches of writes into registered regions, which the writer packs into slots and the owner of
//! the region copies to where they belong ([`writer`], [`owner`]): nobody else reaches into its memory, so that it comes back at once
//! when the region is given up.

mod channel;
mod chunks;
mod departure;
#[cfg(test)]
mod dropped;
mod emptying;
mod filling;
#[cfg(test)]
mod hostile;
mod lent;
mod owner;
mod packing;
mod page_wire;
mod receiver;
mod sender;
mod slots;
mod wire;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use meshreduce_device::{Device, PrimaryContext, Words};

use crate::channel::{
    Channel, ChannelContext, ChannelFactory, Descriptor, Environment, Offer, Reason, RegionPart,
};
use crate::error::Error;
use crate::progress::Waker;
use crate::region::share::Parts;
use crate::span::Span;
use crate::watch::Watch;
use departure::Departures;
use wire::Shape;

/// The kind `basic`. See the module of the same name in the documentation of [`Registry`](crate::Registry).
#[derive(Clone, Debug)]
pub struct Basic {
    shape: Shape,
}

impl Default for Basic {
    /// 16 slots of 1 MiB.
    fn default() -> Self {
        Self { shape: Shape { slots: 16, bytes: 1 << 20 } }
    }
}

impl Basic {
    /// With as many slots of as many bytes for each direction of a channel. `None`: not 1 to 4096 slots of 4 KiB to 32 MiB, a
    /// multiple of 4 KiB, of 1 GiB at most together.
    pub fn with_slots(slots: u32, bytes: usize) -> Option<Self> {
        Shape { slots, bytes }.check().ok().map(|shape| Self { shape })
    }
}

impl ChannelFactory for Basic {
    fn name(&self) -> &str {
        "basic"
    }

    fn priority(&self) -> u32 {
        100
    }

    fn context(&self, environment: &Environment) -> Result<Arc<dyn ChannelContext>, Reason> {
        let (mut devices, mut left_out) = (BTreeMap::new(), Vec::new());
        for device in &environment.devices {
            match *device {
                Device::Cpu => drop(devices.insert(Device::Cpu, None)),
                Device::Cuda(ordinal) => {
                    let Some(context) = environment.context(ordinal) else { continue };
                    match Words::new(context) {
                        Ok(_) => drop(devices.insert(*device, Some(Arc::clone(context)))),
                        Err(error) => left_out.push((device.to_string(), error.to_string())),
                    }
                }
            }
        }
        Ok(Arc::new(BasicContext {
            shape: self.shape,
            devices,
            left_out,
            parts: Arc::default(),
            watch: Arc::default(),
            bell: environment.waker.clone(),
        }))
    }
}

#[derive(Debug)]
struct BasicContext {
    shape: Shape,
    /// With the contexts of those of CUDA.
    devices: BTreeMap<Device, Option<Arc<PrimaryContext>>>,
    left_out: Vec<(String, String)>,
    /// Regions of this side.
    parts: Arc<Parts>,
    watch: Arc<Watch>,
    /// Of the progress thread.
    bell: Waker,
}

impl ChannelContext for BasicContext {
    fn name(&self) -> &str {
        "basic"
    }

    fn descriptors(&self) -> Vec<(Device, Descriptor)> {
        self.devices.keys().map(|device| (*device, self.shape.descriptor())).collect()
    }

    fn can_communicate(&self, local: &[u8], remote: &[u8]) -> Result<(), Reason> {
        let shape = |side: &str, bytes| {
            Shape::of_descriptor(bytes).map_err(|error| Reason(format!("the descriptor {side}: {error}")))
        };
        shape("here", local)?;
        shape("there", remote)?;
        Ok(())
    }

    fn connect(&self, offer: Offer<'_>) -> Result<Box<dyn Channel>, Error> {
        let Some(context) = self.devices.get(&offer.pair.local) else {
            return Err(crate::devices::not_served(offer.pair.local));
        };
        let theirs = Shape::of_descriptor(offer.remote)
            .map_err(|error| Error::protocol(&offer.peer, format!("its descriptor: {error}")))?;
        let (shapes, of_context) = ((self.shape, theirs), (&self.parts, &self.watch));
        let departures = Departures::new(self.bell.clone());
        Ok(Box::new(channel::BasicChannel::new(offer.peer, context.clone(), shapes, of_context, departures)))
    }

    unsafe fn register(&self, span: Span) -> Result<Option<Arc<dyn RegionPart>>, Error> {
        if !self.devices.contains_key(&span.device) || span.bytes == 0 {
            return Ok(None);
        }
        Ok(Some(self.parts.register(span)?))
    }

    fn report(&self) -> Vec<(String, String)> {
        let Shape { slots, bytes } = self.shape;
        let mut rows = vec![("slots".to_owned(), format!("{slots} of {bytes} bytes"))];
        rows.extend(self.left_out.iter().cloned());
        rows
    }
}
