//! Regions of this side that the other side has open.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use super::channel::Here;
use super::message::Message;
use super::region::Part;
use crate::channel::{Io, RegionPart};

/// What is lent, by number. Who holds the part keeps its memory.
#[derive(Debug, Default)]
pub(super) struct Lent {
    parts: HashMap<u64, Lease>,
}

#[derive(Debug)]
struct Lease {
    part: Arc<Part>,
    is_withdrawn: bool,
}

impl Lent {
    /// The writer asks for a region.
    pub(super) fn open(&mut self, region: u64, here: &Here, io: &mut Io<'_>) {
        let found = here.home.parts.find(region).filter(|part| part.span().device == here.local);
        let offer = match &found {
            Some(part) => part.offer(),
            None => Err("it has been given up, or never was here".into()),
        };
        match (found, offer) {
            (Some(part), Ok(offer)) => {
                self.parts.insert(region, Lease { part, is_withdrawn: false });
                io.send(Message::Opened { region, offer }.to_bytes());
            }
            (_, offer) => {
                let why = offer.err().unwrap_or_default();
                io.send(Message::Gone { region, why }.to_bytes());
            }
        }
    }

    /// This side wants a region back.
    pub(super) fn withdraw(&mut self, part: &dyn RegionPart, io: &mut Io<'_>) {
        let Some(region) = part.as_any().downcast_ref::<Part>().map(Part::number) else { return };
        if let Some(lease) = self.parts.get_mut(&region)
            && !std::mem::replace(&mut lease.is_withdrawn, true)
        {
            io.send(Message::Withdraw { region }.to_bytes());
        }
    }

    /// The writer has closed it.
    pub(super) fn released(&mut self, region: u64) {
        self.parts.remove(&region);
    }

    /// The writer has nothing of this side's open any more.
    pub(super) fn over(&mut self) {
        self.parts.clear();
    }

    /// Keeps what the writer may still write to for ever.
    pub(super) fn leak(&mut self) -> bool {
        let any = !self.parts.is_empty();
        self.parts.drain().for_each(|(_, lease)| std::mem::forget(lease.part));
        any
    }
}
