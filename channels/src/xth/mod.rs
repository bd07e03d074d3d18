//! `xth`: two devices of one process, or its host memory with itself.
//!
//! The sender shows where the data are, and the event behind which they are there. The receiver, on a stream of its own, waits for
//! that event and for its own caller's, copies, and writes a word, which its progress thread sees: one driver call for the sender
//! (the record of the event), and five at most for the receiver. Host memory is copied by the progress thread.

mod channel;
mod exchange;
#[cfg(test)]
mod hostile;
mod region;
mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use meshreduce_device::{Device, DeviceType, PrimaryContext, Words};

use crate::channel::{
    Channel, ChannelContext, ChannelFactory, Descriptor, Environment, Offer, Pair, Reason, RegionPart,
};
use crate::error::Error;
use crate::meet::random;
use crate::span::Span;

/// The layout of descriptors.
const VERSION: u8 = 1;

/// The kind `xth`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Xth;

/// Random, and known to this process alone and to whom it tells. A child that was forked has one of its own.
fn process() -> std::io::Result<[u8; 16]> {
    static OWN: Mutex<Option<(u32, [u8; 16])>> = Mutex::new(None);
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let id = std::process::id();
    match *own {
        Some((process, secret)) if process == id => Ok(secret),
        _ => Ok(own.insert((id, random()?)).1),
    }
}

impl ChannelFactory for Xth {
    fn name(&self) -> &str {
        "xth"
    }

    fn priority(&self) -> u32 {
        400
    }

    fn context(&self, environment: &Environment) -> Result<Arc<dyn ChannelContext>, Reason> {
        let secret = process().map_err(|error| Reason(format!("there is nothing random: {error}")))?;
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
        Ok(Arc::new(XthContext { secret, devices, left_out }))
    }
}

#[derive(Debug)]
struct XthContext {
    secret: [u8; 16],
    /// With the contexts of those of CUDA.
    devices: BTreeMap<Device, Option<Arc<PrimaryContext>>>,
    left_out: Vec<(String, String)>,
}

/// What the other side is told of a device.
fn descriptor(secret: [u8; 16], kind: DeviceType) -> Descriptor {
    let mut bytes = vec![VERSION, kind as u8];
    bytes.extend_from_slice(&secret);
    bytes
}

impl ChannelContext for XthContext {
    fn name(&self) -> &str {
        "xth"
    }

    fn descriptors(&self) -> Vec<(Device, Descriptor)> {
        self.devices.keys().map(|device| (*device, descriptor(self.secret, device.kind()))).collect()
    }

    fn can_communicate(&self, local: &[u8], remote: &[u8]) -> Result<(), Reason> {
        match (local, remote) {
            ([VERSION, here, ours @ ..], [VERSION, there, theirs @ ..]) if ours == theirs => {
                if here == there { Ok(()) } else { Err("one of the two is host memory".into()) }
            }
            ([VERSION, _, _, ..], [VERSION, _, _, ..]) => Err("it is another process".into()),
            _ => Err("a descriptor of another version".into()),
        }
    }

    fn is_told(&self, pair: Pair, after: Device) -> bool {
        // The receiver's device copies.
        pair.remote != Device::Cpu && pair.remote != after
    }

    fn connect(&self, offer: Offer<'_>) -> Result<Box<dyn Channel>, Error> {
        let Some(context) = self.devices.get(&offer.pair.local) else {
            return Err(crate::devices::not_served(offer.pair.local));
        };
        let remote = match (context, offer.pair.remote) {
            (Some(_), Device::Cuda(ordinal)) => {
                Some(PrimaryContext::retain(ordinal).map_err(Error::from_device)?)
            }
            _ => None,
        };
        let mut has_access = true;
        if let (Some(here), Some(there)) = (context, &remote) {
            // Without, the driver copies through host memory.
            if let Err(error) = here.enable_peer(there) {
                tracing::debug!(pair = %offer.pair, %error, "no access between the devices");
                has_access = false;
            }
        }
        Ok(Box::new(channel::XthChannel::new(offer.peer, context.clone(), remote, has_access)))
    }

    unsafe fn register(&self, span: Span) -> Result<Option<Arc<dyn RegionPart>>, Error> {
        if !self.devices.contains_key(&span.device) || span.bytes == 0 {
            return Ok(None);
        }
        Ok(Some(region::register(span)?))
    }

    fn report(&self) -> Vec<(String, String)> {
        self.left_out.clone()
    }
}
