//! The lanes' contexts in device memory: where kernels learn what their lane consists of.
//!
//! A captured graph holds the address of a context for as long as the graph exists, and the library learns neither of
//! its replays nor of its end. So the contexts of a communicator whose calls were captured outlive it, *buried*: they
//! lead to a signal pad in which the abort word is raised. A replay sees it on entry and ends; it has touched nothing but
//! the context, that pad and its caller's input.

use std::mem::offset_of;
use std::sync::Arc;

use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{AbortWord, LaneContext, MAX_RANKS, RecordKind, pad};

use meshreduce_device::{DeviceMemory, DriverError, PrimaryContext, Stream};

use crate::segment::Mapping;
use crate::topology::Mesh;

/// Bytes from one lane's context to the next.
const STRIDE: u64 = 256;
const _: () = assert!(size_of::<LaneContext>() as u64 <= STRIDE);

/// The contexts of all lanes, and a pad to bury them with, which must not need memory when the time has come.
#[derive(Debug)]
pub(crate) struct Contexts {
    memory: DeviceMemory,
    /// What is in the memory, by lane.
    written: Vec<LaneContext>,
    lanes: u32,
}

impl Contexts {
    /// Memory for the contexts of `lanes` lanes.
    pub(crate) fn new(context: &Arc<PrimaryContext>, lanes: u32) -> Result<Self, DriverError> {
        let memory = DeviceMemory::new(context, STRIDE * u64::from(lanes) + pad::BYTES)?;
        Ok(Self { memory, written: Vec::new(), lanes })
    }

    /// Device address of a lane's context.
    pub(crate) fn address(&self, lane: u32) -> u64 {
        self.memory.address() + offset(lane)
    }

    /// Writes the context of the next lane.
    pub(crate) fn push(&mut self, context: LaneContext, stream: &Stream) -> Result<(), DriverError> {
        self.memory.write(offset(self.written.len() as u32), bytes_of(&context), stream)?;
        self.written.push(context);
        Ok(())
    }

    /// Leads every kernel that begins from now on to a pad in which `rank` has aborted. Returns what `drained` says of
    /// those that had begun before; only if it is true are the contexts cleared of all other addresses.
    pub(crate) fn bury(
        &self,
        rank: usize,
        stream: &Stream,
        drained: impl FnOnce() -> Result<bool, DriverError>,
    ) -> Result<bool, DriverError> {
        let grave = offset(self.lanes);
        self.memory.write(grave, &dead_pad(rank as u32), stream)?;
        let own_pad = self.memory.address() + grave;
        // One aligned word, which a kernel that begins meanwhile reads old or new. Each thread reads it once, and a block
        // of which one thread sees the abort stages nothing that it publishes.
        for lane in 0..self.lanes {
            let place = offset(lane) + offset_of!(LaneContext, own_pad) as u64;
            self.memory.write(place, &own_pad.to_le_bytes(), stream)?;
        }
        if !drained()? {
            return Ok(false);
        }
        for (lane, context) in (0..).zip(&self.written) {
            let buried = LaneContext {
                pads: [0; MAX_RANKS],
                staging: [0; MAX_RANKS],
                own_pad,
                own_staging: 0,
                staging_half_bytes: 0,
                host_page: 0,
                ..*context
            };
            self.memory.write(offset(lane), bytes_of(&buried), stream)?;
        }
        Ok(true)
    }
}

fn offset(lane: u32) -> u64 {
    STRIDE * u64::from(lane)
}

/// A pad, for all lanes, in which the abort word is raised, and the record claimed, so that nobody reports it or tells
/// others.
fn dead_pad(rank: u32) -> Vec<u8> {
    let mut bytes = vec![0; pad::BYTES as usize];
    let mut put = |at: u64, word: u32| bytes[at as usize..][..4].copy_from_slice(&word.to_le_bytes());
    put(pad::ABORT, AbortWord { kind: RecordKind::HostAbort, culprit: rank, origin: rank, lane: 0 }.encode());
    put(pad::RECORD_CLAIM, 1);
    bytes
}

/// The device's view of lane `index`, whose host page is at `host_page`.
pub(crate) fn lane_context(
    mappings: &[Option<Mapping>],
    layout: SegmentLayout,
    mesh: &Mesh,
    rank: usize,
    index: u32,
    host_page: u64,
) -> LaneContext {
    let segment = |rank: usize| mappings[rank].as_ref().map(Mapping::address);
    let order = mesh.positions();
    let position = order.iter().position(|other| *other == rank).unwrap_or(rank);
    let relay = mesh.relay(rank).and_then(|relay| order.iter().position(|other| *other == relay));
    let mut context = LaneContext {
        pads: [0; MAX_RANKS],
        staging: [0; MAX_RANKS],
        own_pad: 0,
        own_staging: 0,
        staging_half_bytes: layout.half_bytes(),
        host_page,
        ranks: [0; MAX_RANKS],
        rank: rank as u32,
        world_size: mappings.len() as u32,
        position: position as u32,
        relay: relay.unwrap_or(position) as u32,
        lane: index,
        lanes: layout.lanes(),
    };
    for (position, &other) in order.iter().enumerate() {
        context.ranks[position] = other as u32;
        if let Some(address) = segment(other) {
            context.pads[other] = address + layout.pad(index);
            context.staging[position] = address + layout.staging(index);
        }
    }
    context.own_pad = context.pads[rank];
    context.own_staging = context.staging[position];
    context
}

fn bytes_of(context: &LaneContext) -> &[u8] {
    // SAFETY: the struct is `repr(C)` of plain integers without padding (wire tests its size), so all its bytes are
    // initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(context).cast(), size_of::<LaneContext>()) }
}
