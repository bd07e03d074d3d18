//! A region's share of this kind: found by whoever writes to it in this process.
#![forbid(unsafe_code)]

use std::sync::{Arc, LazyLock};

use meshreduce_store::codec::Malformed;

use crate::error::Error;
use crate::region::share::{self, Part, Parts};
use crate::span::Span;

/// The regions of this process that were not given up.
static OPEN: LazyLock<Arc<Parts>> = LazyLock::new(Arc::default);

/// A part that can be found.
pub(super) fn register(span: Span) -> Result<Arc<Part>, Error> {
    OPEN.register(span)
}

/// The part with this descriptor, if it was not given up.
pub(super) fn find(descriptor: &[u8]) -> Result<Option<Arc<Part>>, Malformed> {
    Ok(OPEN.find(share::number("xth", descriptor)?))
}

#[cfg(test)]
mod tests {
    use meshreduce_device::Device;

    use super::*;
    use crate::channel::RegionPart;

    #[test]
    fn a_region_is_found_until_it_is_given_up() {
        let part = register(Span { device: Device::Cuda(0), address: 512, bytes: 9 }).unwrap();
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
