//! A region's share of a kind that knows it by a number alone: found by whoever is told the number, until it is given up.
#![forbid(unsafe_code)]

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use meshreduce_store::codec::{Malformed, Reader, Writer};

use crate::channel::{Descriptor, RegionPart};
use crate::error::Error;
use crate::meet::random;
use crate::span::Span;

const VERSION: u8 = 1;

/// The part of a region. Whoever holds it keeps the memory.
#[derive(Debug)]
pub(crate) struct Part {
    /// Random: who knows it was given it.
    number: u64,
    span: Span,
    /// Where it can be found.
    open: Arc<Parts>,
}

/// The regions that were not given up, of a context or of a process.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    open: Mutex<HashMap<u64, Weak<Part>>>,
}

impl Parts {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Weak<Part>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part that can be found.
    pub(crate) fn register(self: &Arc<Self>, span: Span) -> Result<Arc<Part>, Error> {
        let mut open = self.open();
        let number = new_number(|number| open.contains_key(&number))?;
        let part = Arc::new(Part { number, span, open: Arc::clone(self) });
        open.insert(number, Arc::downgrade(&part));
        Ok(part)
    }

    /// The part with this number, if it was not given up.
    pub(crate) fn find(&self, number: u64) -> Option<Arc<Part>> {
        // Under the lock, which `close` takes too: behind that nobody gets hold of it any more.
        self.open().get(&number).and_then(Weak::upgrade)
    }
}

impl Part {
    pub(crate) fn span(&self) -> Span {
        self.span
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, other: &dyn RegionPart) -> bool {
        other.as_any().downcast_ref::<Part>().is_some_and(|other| std::ptr::eq(self, other))
    }
}

impl RegionPart for Part {
    fn descriptor(&self) -> Descriptor {
        descriptor(self.number)
    }

    fn close(&self) {
        self.open.open().remove(&self.number);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // If it was not given up in order.
        self.close();
    }
}

/// A number that nobody can guess and that is not taken.
pub(crate) fn new_number(is_taken: impl Fn(u64) -> bool) -> Result<u64, Error> {
    loop {
        let random = random::<8>().map_err(|error| Error::system("there is nothing random", error))?;
        let number = u64::from_ne_bytes(random);
        if !is_taken(number) {
            return Ok(number);
        }
    }
}

/// What others are told of a region that is known by a number.
pub(crate) fn descriptor(number: u64) -> Descriptor {
    let mut out = Writer::new();
    out.u8(VERSION);
    out.u64(number);
    out.into_bytes()
}

/// The number in a descriptor of the kind named `kind`.
pub(crate) fn number(kind: &str, descriptor: &[u8]) -> Result<u64, Malformed> {
    let from = &mut Reader::new(descriptor);
    match from.u8()? {
        VERSION => {}
        found => {
            let what = format!("version {found} of a region of channel {kind}, {VERSION} is expected");
            return Err(Malformed::wrong(what));
        }
    }
    let number = from.u64()?;
    from.end()?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use meshreduce_device::Device;

    use super::*;

    #[test]
    fn a_region_is_found_until_it_is_given_up() {
        let parts = Arc::<Parts>::default();
        let part = parts.register(Span { device: Device::Cpu, address: 512, bytes: 9 }).unwrap();
        let number = number("basic", &part.descriptor()).unwrap();
        assert!(parts.find(number).is_some_and(|found| found.is(&*part)));
        assert!(Arc::<Parts>::default().find(number).is_none(), "another context's");
        part.close();
        assert!(parts.find(number).is_none());
    }

    #[test]
    fn other_descriptors_are_refused() {
        let part =
            Arc::<Parts>::default().register(Span { device: Device::Cpu, address: 0, bytes: 1 }).unwrap();
        let mut descriptor = part.descriptor();
        assert!(number("basic", &descriptor[1..]).is_err());
        descriptor[0] = 7;
        let error = number("basic", &descriptor).unwrap_err();
        assert!(error.to_string().contains("version 7 of a region of channel basic"), "{error}");
    }
}
