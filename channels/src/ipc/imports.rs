//! Other processes' memory, each allocation opened once for each device.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use meshreduce_device::{Import, IpcHandle, PrimaryContext};
use meshreduce_store::identity::Process;

use super::message::MemoryOffer;
use super::place::Place;
use crate::error::{Error, shortage};
use crate::progress::Waker;

/// Which allocation, for which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    process: Process,
    /// The owner's device.
    uuid: [u8; 16],
    /// The owner's number of it: an address, and a handle, may come back for other memory.
    buffer: u64,
    /// This process's device.
    ordinal: u32,
}

/// An allocation of another process, open for as long as somebody holds it. To let go of it may take long: see [`Closing`].
#[derive(Debug)]
pub(super) struct Imported {
    import: Import,
    bytes: u64,
}

impl Imported {
    pub(super) fn address(&self) -> u64 {
        self.import.address()
    }

    /// Bytes of the allocation.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What is open in this process.
#[derive(Debug, Default)]
pub(super) struct Imports {
    open: Mutex<HashMap<Key, Weak<Imported>>>,
}

impl Imports {
    /// An allocation that `owner` offers, for the context's device.
    pub(super) fn open(
        &self,
        context: &Arc<PrimaryContext>,
        owner: &Place,
        offer: &MemoryOffer,
    ) -> Result<Arc<Imported>, Error> {
        let process = owner.party.member.process;
        let key = Key { process, uuid: owner.device.uuid, buffer: offer.buffer, ordinal: context.ordinal() };
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let import = Import::open(context, &IpcHandle { handle: offer.handle, offset: 0 });
        // The driver opens files for it, and has no word of its own for the lack of descriptors.
        let import = import.map_err(|error| match shortage() {
            Some(source) => Error::system(
                &format!("another process's memory could not be opened (see ulimit -n): {error}"),
                source,
            ),
            None => error.into(),
        })?;
        // What the driver says counts, where it says something.
        let bytes = import.bytes().map_or(offer.bytes, |found| found.min(offer.bytes));
        let imported = Arc::new(Imported { import, bytes });
        all.retain(|_, open| open.strong_count() > 0);
        all.insert(key, Arc::downgrade(&imported));
        Ok(imported)
    }
}

/// Memory that is being let go of, by a thread of its own: the driver waits for kernels of the context before it closes memory, and
/// they may wait for the progress thread.
#[derive(Debug)]
pub(super) struct Closing {
    done: Arc<AtomicBool>,
}

impl Closing {
    pub(super) fn begin(memory: Vec<Arc<Imported>>, waker: Waker) -> Self {
        let done = Arc::new(AtomicBool::new(memory.is_empty()));
        if memory.is_empty() {
            return Self { done };
        }
        let told = Arc::clone(&done);
        let close = move || {
            drop(memory);
            told.store(true, Ordering::Release);
            waker.wake();
        };
        if let Err(error) = std::thread::Builder::new().name("meshreduce close".into()).spawn(close) {
            // The memory was dropped with the thread that did not start.
            tracing::warn!(%error, "memory of another process was closed by the progress thread");
            done.store(true, Ordering::Release);
        }
        Self { done }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}
