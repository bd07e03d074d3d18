//! A region's share of this kind: what its owner lends to others.
#![forbid(unsafe_code)]

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use meshreduce_device::{DriverError, IpcHandle, PrimaryContext};
use meshreduce_store::codec::Malformed;

use super::message::{MemoryOffer, RegionOffer};
use crate::channel::{Descriptor, RegionPart};
use crate::error::Error;
use crate::region::share;
use crate::span::Span;

/// The part of a region on a device. Whoever holds it keeps the memory.
#[derive(Debug)]
pub(super) struct Part {
    /// Random: who knows it was given it.
    number: u64,
    span: Span,
    /// `None`: the driver shares this memory with nobody, so that it is a source alone.
    offer: Result<RegionOffer, DriverError>,
    closed: AtomicBool,
}

impl Part {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn span(&self) -> Span {
        self.span
    }

    /// What another process needs to write to it, if it is not being given up.
    pub(super) fn offer(&self) -> Result<RegionOffer, String> {
        if self.closed.load(Ordering::Acquire) {
            return Err("it has been given up".into());
        }
        let refused = |error: &DriverError| {
            format!("its driver does not share this memory with other processes: {error}")
        };
        self.offer.clone().map_err(|error| refused(&error))
    }
}

impl RegionPart for Part {
    fn descriptor(&self) -> Descriptor {
        share::descriptor(self.number)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The number in a descriptor.
pub(super) fn number(descriptor: &[u8]) -> Result<u64, Malformed> {
    share::number("ipc", descriptor)
}

/// The regions of this process.
#[derive(Debug, Default)]
pub(super) struct Parts {
    all: Mutex<HashMap<u64, Weak<Part>>>,
}

impl Parts {
    pub(super) fn register(&self, context: &PrimaryContext, span: Span) -> Result<Arc<Part>, Error> {
        let (handle, allocation) = match IpcHandle::of_address(context, span.address) {
            Ok((handle, allocation)) => (Ok(handle), allocation),
            Err(meshreduce_device::Error::Driver(error)) => {
                (Err(error), meshreduce_device::allocation_of(context, span.address)?)
            }
            Err(error) => return Err(error.into()),
        };
        let offset = span.address - allocation.base;
        if allocation.bytes.checked_sub(offset).is_none_or(|left| left < span.bytes) {
            let what = format!(
                "{span} are not in one allocation, which ends after {} bytes",
                allocation.bytes - offset
            );
            return Err(Error::BadMemory { what: what.into() });
        }
        let offer = handle.map(|handle| {
            let memory =
                MemoryOffer { handle: handle.handle, buffer: allocation.buffer_id, bytes: allocation.bytes };
            RegionOffer { memory, offset, bytes: span.bytes }
        });
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, part| part.strong_count() > 0);
        let number = share::new_number(|number| all.contains_key(&number))?;
        let part = Arc::new(Part { number, span, offer, closed: AtomicBool::new(false) });
        all.insert(number, Arc::downgrade(&part));
        Ok(part)
    }

    pub(super) fn find(&self, number: u64) -> Option<Arc<Part>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).get(&number).and_then(Weak::upgrade)
    }
}
