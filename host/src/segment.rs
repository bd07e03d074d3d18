//! Segments: the memory that ranks share, this rank's own and its peers'.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use meshreduce_wire::pad;
use meshreduce_wire::segment::SegmentLayout;

use meshreduce_device::{DeviceMemory, DriverError, Import, IpcHandle, PrimaryContext, Stream};

use crate::error::{Error, SharedNamespaces};

/// This rank's segment. Peers in this process hold it too, so that it is freed when the last of them lets go.
#[derive(Debug)]
pub(crate) struct Segment {
    memory: DeviceMemory,
}

impl Segment {
    /// Allocates a segment and initialises its pads (signals start at the epoch `first_call`, all else is 0) and packet
    /// memory: no packet is there.
    pub(crate) fn new(
        context: &Arc<PrimaryContext>,
        layout: SegmentLayout,
        lanes: u32,
        first_call: u64,
        stream: &Stream,
    ) -> Result<Self, DriverError> {
        let memory = DeviceMemory::new(context, layout.bytes())?;
        let mut bytes = vec![0; pad::BYTES as usize];
        // The epoch of the call before the first.
        let before = pad::signal_word(first_call, 0);
        for signal in bytes[..pad::SIGNAL_BYTES as usize].chunks_exact_mut(8) {
            signal.copy_from_slice(&before.to_le_bytes());
        }
        for lane in 0..lanes {
            memory.write(layout.pad(lane), &bytes, stream)?;
            // The abort is sent by such a call while kernels run. The first one may make the driver load what it
            // needs for that, which could wait for those very kernels.
            memory.set(layout.pad(lane) + pad::ABORT, 0, stream)?;
        }
        let packets = layout.packets(0);
        memory.clear(packets, layout.staging(0) - packets, stream)?;
        stream.synchronize()?;
        Ok(Self { memory })
    }

    pub(crate) fn export(&self) -> Result<IpcHandle, DriverError> {
        IpcHandle::of(&self.memory)
    }
}

/// A rank's segment as this rank's device sees it.
#[derive(Debug)]
pub(crate) enum Mapping {
    /// This rank's own.
    Own(Arc<Segment>),
    /// Of a rank in this process: by its own address.
    Local(Arc<Segment>),
    /// Of another process: mapped.
    Remote(Import),
}

impl Mapping {
    /// Opens what a rank of another process offers, of which `namespaces` says what it shares with this one.
    pub(crate) fn remote(
        context: &Arc<PrimaryContext>,
        rank: usize,
        peer: usize,
        handle: &IpcHandle,
        needed: u64,
        namespaces: SharedNamespaces,
    ) -> Result<Self, Error> {
        let namespaces = Some(namespaces);
        let refused = |source| Error::IpcRefused { rank, peer, namespaces, source };
        let import = Import::open(context, handle).map_err(refused)?;
        // Kernels go by the layout that was agreed on; what the store says is not believed for memory.
        if let Some(found) = import.bytes().filter(|found| *found < needed) {
            return Err(Error::SegmentTooSmall { rank, peer, found, needed });
        }
        Ok(Mapping::Remote(import))
    }

    /// Takes the segment of another rank of this process, and lets this rank's device access it.
    pub(crate) fn local(
        context: &PrimaryContext,
        generation: u64,
        rank: usize,
        peer: usize,
        needed: u64,
    ) -> Result<Self, Error> {
        let found = local().get(&(generation, peer)).cloned();
        let segment = found.and_then(|segment| segment.upgrade()).ok_or_else(|| Error::RankFailed {
            rank: peer,
            message: "its segment is gone, or it uses another copy of this library in the same process"
                .into(),
        })?;
        context.enable_peer(segment.memory.context()).map_err(|source| Error::IpcRefused {
            rank,
            peer,
            namespaces: None,
            source,
        })?;
        let found = segment.memory.bytes();
        if found < needed {
            return Err(Error::SegmentTooSmall { rank, peer, found, needed });
        }
        Ok(Mapping::Local(segment))
    }

    /// Enqueues setting the 32-bit word at `offset` of the segment.
    pub(crate) fn set(&self, offset: u64, word: u32, stream: &Stream) -> Result<(), DriverError> {
        match self {
            Mapping::Own(segment) | Mapping::Local(segment) => segment.memory.set(offset, word, stream),
            Mapping::Remote(import) => import.set(offset, word, stream),
        }
    }

    /// The segment's address on this rank's device.
    pub(crate) fn address(&self) -> u64 {
        match self {
            Mapping::Own(segment) | Mapping::Local(segment) => segment.memory.address(),
            Mapping::Remote(import) => import.address(),
        }
    }
}

/// The segments of this process's ranks, by generation and rank: the driver does not open a handle in the process
/// that exported it.
static LOCAL: Mutex<BTreeMap<(u64, usize), Weak<Segment>>> = Mutex::new(BTreeMap::new());

fn local() -> MutexGuard<'static, BTreeMap<(u64, usize), Weak<Segment>>> {
    LOCAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The registration of a segment for the other ranks of this process; until dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    key: (u64, usize),
}

impl Registration {
    pub(crate) fn new(generation: u64, rank: usize, segment: &Arc<Segment>) -> Self {
        let key = (generation, rank);
        local().insert(key, Arc::downgrade(segment));
        Self { key }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        local().remove(&self.key);
    }
}
