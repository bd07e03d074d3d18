//! The slots that a direction of a channel fills, and how far the other side is with them.

use std::collections::VecDeque;
use std::sync::Arc;

use meshreduce_device::PrimaryContext;

use super::departure::Departures;
use super::lent::Lent;
use super::slots::Slots;
use super::wire::Shape;
use crate::channel::Io;
use crate::error::Error;

/// Of sends, or of batches.
#[derive(Debug)]
pub(super) struct Filling {
    peer: Arc<str>,
    shape: Shape,
    departures: Departures,
    /// Made when they are first needed.
    slots: Option<Arc<Slots>>,
    /// Chunks that have got a slot, of which the other side was told, and whose slots are free again.
    begun: u64,
    told: u64,
    freed: u64,
    /// Those of which the link may still read the slots.
    linked: VecDeque<(u64, Arc<Lent>)>,
}

impl Filling {
    pub(super) fn new(peer: Arc<str>, shape: Shape, departures: &Departures) -> Self {
        Self {
            peer,
            shape,
            departures: departures.clone(),
            slots: None,
            begun: 0,
            told: 0,
            freed: 0,
            linked: VecDeque::new(),
        }
    }

    /// Bytes of a slot.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.shape.bytes as u64
    }

    /// The number of the next chunk.
    pub(super) fn next(&self) -> u64 {
        self.begun
    }

    /// Whether its slot is free. If not, the other side says when it is.
    pub(super) fn has_room(&self) -> bool {
        self.begun - self.freed < u64::from(self.shape.slots)
    }

    /// The next chunk has its bytes, or is getting them.
    pub(super) fn begin(&mut self) {
        self.begun += 1;
    }

    /// The other side is being told of the next of those that it does not know.
    pub(super) fn tell(&mut self) {
        self.told += 1;
    }

    /// The slots; when they are made, the other side is shown them by the message `show`.
    ///
    /// # Errors
    ///
    /// Those of [`Slots::create`].
    pub(super) fn slots(
        &mut self,
        context: Option<&Arc<PrimaryContext>>,
        show: impl FnOnce() -> Vec<u8>,
        io: &mut Io<'_>,
    ) -> Result<Arc<Slots>, Error> {
        if let Some(slots) = &self.slots {
            return Ok(Arc::clone(slots));
        }
        let (made, file) = Slots::create(self.shape, context, &self.departures)?;
        if io.carries_files() && io.send_files(show(), vec![file]).is_err() {
            return Err(Error::system("slots cannot be shown to the other side", rustix::io::Errno::NOTSUP));
        }
        Ok(Arc::clone(self.slots.insert(Arc::new(made))))
    }

    /// The first bytes of a chunk's slot, for a link that carries them; `None`: there are no slots.
    ///
    /// # Safety
    ///
    /// They were written, and nobody writes them before the other side has freed the slot.
    pub(super) unsafe fn lend(&mut self, chunk: u64, bytes: u64) -> Option<Arc<Lent>> {
        let slots = self.slots.as_ref()?;
        // SAFETY: the caller's word; that the slot is free is believed only when the link does not have the value any more
        // (`freed`).
        let lent = Arc::new(unsafe { Lent::of_slot(slots, chunk, bytes) });
        self.linked.push_back((chunk, Arc::clone(&lent)));
        Some(lent)
    }

    /// The other side has done with as many chunks, of all that there were.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: that cannot be.
    pub(super) fn freed(&mut self, chunks: u64) -> Result<(), Error> {
        if chunks < self.freed || chunks > self.told {
            let what = format!("{chunks} chunks are done with, of {} to {}", self.freed, self.told);
            return Err(Error::protocol(&self.peer, what));
        }
        while let Some((chunk, lent)) = self.linked.pop_front_if(|(chunk, _)| *chunk < chunks) {
            if Arc::strong_count(&lent) > 1 {
                let what = format!("chunk {chunk} is done with, which was not sent yet");
                return Err(Error::protocol(&self.peer, what));
            }
        }
        self.freed = chunks;
        Ok(())
    }

    /// Gives the slots up, for good. (Those of the link's chunks are kept by these themselves.)
    pub(super) fn give_up(&mut self) {
        self.linked.clear();
        self.slots = None;
    }

    /// Nobody waits for the devices that still write to the slots: these are never given back.
    pub(super) fn leak(&mut self) {
        std::mem::forget(self.slots.take());
    }
}
