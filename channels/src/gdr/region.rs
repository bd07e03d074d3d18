//! Memory that peers write to without anybody here taking part, and that is written from.
//!
//! Its descriptor has all that a NIC needs. A peer asks for it all the same before its first write ([`Lent`]), and then until it is
//! asked to let go: so that what is written to a region that is being given up, or was, fails by itself, and not by a NIC that breaks
//! the queue pair.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use meshreduce_store::codec::{Malformed, Reader, Writer};

use crate::channel::{Descriptor, Io, RegionPart};
use crate::error::Error;
use crate::gdr::descriptor::VERSION;
use crate::gdr::hub::Hub;
use crate::gdr::memory::Registered;
use crate::gdr::message::Message;
use crate::span::Span;

/// A region, as the NICs of its device know it.
#[derive(Debug)]
pub(crate) struct Region {
    /// Random: nobody else's has the same.
    number: u64,
    pub(crate) span: Span,
    served: usize,
    /// By the place of the NIC's port in the device's descriptor.
    keys: Vec<(u8, Registered)>,
    hub: Arc<Hub>,
}

/// What others know of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) number: u64,
    /// Where it begins.
    pub(crate) address: u64,
    /// How long it is.
    pub(crate) bytes: u64,
    /// The key of each NIC, by the place of its port in the device's descriptor.
    keys: Vec<(u8, u32)>,
}

impl Region {
    /// Registers memory with the NICs of its device; `None` if the device is not served.
    ///
    /// # Safety
    ///
    /// The memory stays valid for as long as the region lives.
    pub(crate) unsafe fn register(hub: &Arc<Hub>, span: Span) -> Result<Option<Arc<Self>>, Error> {
        let Some(served) = hub.place_of(span.device) else { return Ok(None) };
        if span.bytes == 0 {
            return Err(Error::BadMemory { what: "a region without bytes".into() });
        }
        let memory = hub.locate(served, span)?;
        let mut keys = Vec::new();
        for (place, chosen) in hub.served[served].nics.iter().enumerate() {
            if chosen.near || hub.config.regions_on_all_nics {
                // SAFETY: the caller's: registrations of the region go with it.
                let registered = unsafe { hub.register_region(chosen.nic, memory) }?;
                keys.push((place as u8, registered));
            }
        }
        let mut number = [0; 8];
        rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::system("a random number", error))?;
        let number = u64::from_ne_bytes(number);
        let region = Arc::new(Self { number, span, served, keys, hub: Arc::clone(hub) });
        hub.regions().push(Arc::downgrade(&region));
        Ok(Some(region))
    }

    /// Whether it is memory of a context's device.
    pub(crate) fn is_of(&self, hub: &Arc<Hub>, served: usize) -> bool {
        Arc::ptr_eq(&self.hub, hub) && self.served == served
    }

    /// As a NIC knows it, by the place of its port.
    pub(crate) fn registered(&self, place: usize) -> Option<&Registered> {
        self.keys.iter().find(|(known, _)| usize::from(*known) == place).map(|(_, registered)| registered)
    }

    fn covers(&self, span: Span) -> bool {
        self.span.device == span.device
            && self.span.address <= span.address
            && span.address.saturating_add(span.bytes) <= self.span.address.saturating_add(self.span.bytes)
    }
}

impl RegionPart for Region {
    fn descriptor(&self) -> Descriptor {
        let keys = self.keys.iter().map(|(place, registered)| (*place, registered.rkey())).collect();
        let Span { address, bytes, .. } = self.span;
        Target { number: self.number, address, bytes, keys }.to_bytes()
    }

    fn close(&self) {
        self.hub
            .regions()
            .retain(|region| region.upgrade().is_some_and(|region| region.number != self.number));
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Hub {
    fn regions(&self) -> MutexGuard<'_, Vec<Weak<Region>>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registration of a region with a NIC that a span lies in, if there is such a region.
    pub(crate) fn region_of(&self, nic: usize, span: Span) -> Option<Registered> {
        let region = self.regions().iter().filter_map(Weak::upgrade).find(|region| region.covers(span))?;
        let place = self.served[region.served].nics.iter().position(|chosen| chosen.nic == nic)?;
        let registered = region.registered(place)?.clone();
        Some(registered.of(region))
    }

    fn region(&self, number: u64) -> Option<Arc<Region>> {
        self.regions().iter().filter_map(Weak::upgrade).find(|region| region.number == number)
    }
}

/// Regions that the other half of a channel may write to.
#[derive(Debug, Default)]
pub(crate) struct Lent {
    /// By number; and whether it was asked to let go.
    regions: HashMap<u64, (Arc<Region>, bool)>,
}

impl Lent {
    /// The other half wants to write to a region of a served device.
    pub(crate) fn asked(&mut self, number: u64, hub: &Arc<Hub>, served: usize, io: &mut Io<'_>) {
        let region = hub.region(number).filter(|region| region.is_of(hub, served));
        let answer = match region {
            Some(region) => {
                self.regions.insert(number, (region, false));
                Message::Lent { region: number }
            }
            None => Message::Gone { region: number },
        };
        io.send(answer.to_bytes());
    }

    /// A region is given up.
    pub(crate) fn withdraw(&mut self, part: &dyn RegionPart, io: &mut Io<'_>) {
        let Some(region) = part.as_any().downcast_ref::<Region>() else { return };
        if let Some((_, asked)) = self.regions.get_mut(&region.number)
            && !std::mem::replace(asked, true)
        {
            io.send(Message::Withdraw { region: region.number }.to_bytes());
        }
    }

    /// The other half does not write to a region any more.
    pub(crate) fn released(&mut self, number: u64) {
        self.regions.remove(&number);
    }

    /// Nobody writes to any.
    pub(crate) fn clear(&mut self) {
        self.regions.clear();
    }
}

impl Target {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION);
        [self.number, self.address, self.bytes].into_iter().for_each(|number| out.u64(number));
        out.list(&self.keys, |out, (place, rkey)| {
            out.u8(*place);
            out.u32(*rkey);
        });
        out.into_bytes()
    }

    /// Reads what [`RegionPart::descriptor`] gave on the other side.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let from = &mut Reader::new(bytes);
        match from.u8()? {
            VERSION => {}
            other => {
                return Err(Malformed::wrong(format!("a region of version {other}, {VERSION} is expected")));
            }
        }
        let [number, address, bytes] = [from.u64()?, from.u64()?, from.u64()?];
        let keys = from.list(|from| Ok((from.u8()?, from.u32()?)))?;
        from.end()?;
        Ok(Self { number, address, bytes, keys })
    }

    /// The key of the NIC there whose port has this place.
    pub(crate) fn rkey(&self, place: usize) -> Option<u32> {
        self.keys.iter().find(|(known, _)| usize::from(*known) == place).map(|(_, rkey)| *rkey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_others_know_survives_the_round_trip(
            number: u64, address: u64, bytes: u64, keys in prop::collection::vec(any::<(u8, u32)>(), 0..9),
            at: prop::sample::Index,
        ) {
            let target = Target { number, address, bytes, keys };
            let encoded = target.to_bytes();
            prop_assert_eq!(Target::from_bytes(&encoded), Ok(target));
            prop_assert!(Target::from_bytes(&encoded[..at.index(encoded.len())]).is_err());
        }
    }
}
