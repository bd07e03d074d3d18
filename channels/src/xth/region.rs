//! A region's share of this kind: found by whoever writes to it in this process.
#![forbid(unsafe_code)]

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use meshreduce_store::codec::{Malformed, Reader, Writer};

use crate::channel::{Descriptor, RegionPart};
use crate::error::Error;
use crate::meet::random;
use crate::span::Span;

const VERSION: u8 = 1;

/// The part of a region. Whoever holds it keeps the memory.
#[derive(Debug)]
pub(super) struct Part {
    number: u64,
    span: Span,
}

/// The regions of this process that were not given up.
static OPEN: LazyLock<Mutex<HashMap<u64, Weak<Part>>>> = LazyLock::new(Mutex::default);

fn open() -> MutexGuard<'static, HashMap<u64, Weak<Part>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Part {
    /// A part that can be found.
    pub(super) fn new(span: Span) -> Result<Arc<Self>, Error> {
        let system = |error| Error::system("there is nothing random", error);
        loop {
            let number = u64::from_ne_bytes(random::<8>().map_err(system)?);
            if let std::collections::hash_map::Entry::Vacant(free) = open().entry(number) {
                let part = Arc::new(Self { number, span });
                free.insert(Arc::downgrade(&part));
                return Ok(part);
            }
        }
    }

    pub(super) fn span(&self) -> Span {
        self.span
    }
}

impl RegionPart for Part {
    fn descriptor(&self) -> Descriptor {
        let mut out = Writer::new();
        out.u8(VERSION);
        out.u64(self.number);
        out.into_bytes()
    }

    fn close(&self) {
        open().remove(&self.number);
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

/// The part with this descriptor, if it was not given up.
pub(super) fn find(descriptor: &[u8]) -> Result<Option<Arc<Part>>, Malformed> {
    let from = &mut Reader::new(descriptor);
    match from.u8()? {
        VERSION => {}
        found => {
            let what = format!("version {found} of a region of channel xth, {VERSION} is expected");
            return Err(Malformed::wrong(what));
        }
    }
    let number = from.u64()?;
    from.end()?;
    // Under the lock, which `close` takes too: behind that nobody gets hold of it any more.
    Ok(open().get(&number).and_then(Weak::upgrade))
}

#[cfg(test)]
mod tests {
    use meshreduce_device::Device;

    use super::*;

    #[test]
    fn a_region_is_found_until_it_is_given_up() {
        let part = Part::new(Span { device: Device::Cuda(0), address: 512, bytes: 9 }).unwrap();
        let descriptor = part.descriptor();
        assert_eq!(find(&descriptor).unwrap().unwrap().span(), part.span());
        part.close();
        assert!(find(&descriptor).unwrap().is_none());
        drop(part);
        let mut other = descriptor.clone();
        other[0] = 7;
        assert!(find(&other).is_err() && find(&descriptor[1..]).is_err());
    }
}
