//! The slots that a direction of a channel empties: the other side's, or own ones into which the link's bytes are put.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use meshreduce_device::PrimaryContext;

use super::chunks::Chunks;
use super::departure::Departures;
use super::slots::Slots;
use super::wire::Shape;
use crate::error::Error;

/// Of receives, or of the batches that others write.
#[derive(Debug)]
pub(super) struct Emptying {
    peer: Arc<str>,
    /// Of the other side's slots: as many chunks may be here at a time.
    shape: Shape,
    departures: Departures,
    slots: Option<Slots>,
    /// Which chunks are here.
    pub(super) chunks: Chunks,
}

impl Emptying {
    pub(super) fn new(peer: Arc<str>, shape: Shape, departures: &Departures) -> Self {
        Self { peer, shape, departures: departures.clone(), slots: None, chunks: Chunks::default() }
    }

    /// Bytes of a slot.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.shape.bytes as u64
    }

    /// The other side shows its slots.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: it shows none, or has done so before; those of [`Slots::open`].
    pub(super) fn show(
        &mut self,
        context: Option<&Arc<PrimaryContext>>,
        files: Vec<OwnedFd>,
    ) -> Result<(), Error> {
        let Ok([file]) = <[OwnedFd; 1]>::try_from(files) else {
            return Err(Error::protocol(&self.peer, "slots without their memory"));
        };
        if self.slots.is_some() {
            return Err(Error::protocol(&self.peer, "slots once more"));
        }
        self.slots = Some(Slots::open(self.shape, context, file, &self.departures)?);
        Ok(())
    }

    /// A chunk has come: its number. Its bytes are not in its slot before [`Emptying::keep`] if the link has carried them.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: there are as many as there are slots, or there are no slots yet and the link carries nothing.
    pub(super) fn heard(&mut self, is_carried: bool) -> Result<u64, Error> {
        let Some(chunk) = self.chunks.heard(self.shape.slots) else {
            return Err(Error::protocol(&self.peer, "more chunks than there are slots"));
        };
        if !is_carried && self.slots.is_none() {
            return Err(Error::protocol(&self.peer, "a chunk before the slots"));
        }
        Ok(chunk)
    }

    /// Copies bytes that the link has brought into the slot of a chunk that has come: a slot's bytes at most.
    ///
    /// # Errors
    ///
    /// Those of [`Slots::create`].
    pub(super) fn keep(
        &mut self,
        context: Option<&Arc<PrimaryContext>>,
        payload: &[u8],
        chunk: u64,
    ) -> Result<(), Error> {
        let slots = match &self.slots {
            Some(slots) => slots,
            None => self.slots.insert(Slots::create(self.shape, context, &self.departures)?.0),
        };
        assert!(payload.len() <= self.shape.bytes, "checked when it came");
        // SAFETY: the slot is long enough, and free: fewer chunks are here than there are slots.
        unsafe { payload.as_ptr().copy_to_nonoverlapping(slots.host(chunk).as_ptr(), payload.len()) };
        Ok(())
    }

    /// The slots in which chunks are that have come.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: there are none.
    pub(super) fn slots(&self) -> Result<&Slots, Error> {
        self.slots.as_ref().ok_or_else(|| Error::protocol(&self.peer, "a chunk before the slots"))
    }

    /// How many chunks are done with, if a quarter of the slots has been done with since the other side was told last.
    pub(super) fn tell_many(&mut self) -> Option<u64> {
        self.chunks.tell_many(self.shape.slots)
    }

    /// Gives the slots up, for good.
    pub(super) fn give_up(&mut self) {
        self.slots = None;
    }

    /// Nobody waits for the devices that still read the slots: these are never given back.
    pub(super) fn leak(&mut self) {
        std::mem::forget(self.slots.take());
    }
}
