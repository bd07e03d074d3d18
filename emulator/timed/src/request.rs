//! What a warp's access to memory is while it is under way.

use meshreduce_emulator_ptx::types::{Order, Space, Type};
use meshreduce_emulator_ptx::{Op, Slot, WARP};

use crate::cache::LINE;
use crate::memory::{Owner, Place};
use crate::path::{NOBODY, NodeId, StepKind};
use crate::time::Time;
use crate::warp::{Warp, lanes};

/// Bytes that the L2 cache is read and written by.
pub(crate) const SECTOR: u64 = 32;

pub(crate) const LANES: usize = WARP as usize;

/// By thread: what is stored, by lane of a vector; of an atomic its operands.
pub(crate) type Values = Box<[[u64; 4]; LANES]>;

/// Threads of a warp that access one allocation.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) warp: u32,
    /// Its instruction.
    pub(crate) at: u32,
    pub(crate) mask: u32,
    pub(crate) place: Place,
    pub(crate) addresses: [u64; LANES],
    /// Of all but a load.
    pub(crate) values: Option<Values>,
    pub(crate) lines: u64,
    pub(crate) sectors: u64,
    pub(crate) begin: Time,
    /// What its instruction waited for last.
    pub(crate) cause: NodeId,
    /// The load that its answer belongs to, if it has one.
    pub(crate) awaited: Option<u32>,
}

/// An instruction whose registers are on their way.
#[derive(Debug)]
pub(crate) struct Awaited {
    /// Requests that are under way.
    pub(crate) parts: u32,
    pub(crate) ready: Time,
    pub(crate) cause: NodeId,
}

/// What an instruction accesses.
pub(crate) struct Shape {
    pub(crate) access: &'static str,
    pub(crate) space: Space,
    pub(crate) base: Slot,
    pub(crate) offset: i32,
    pub(crate) ty: Type,
    pub(crate) lanes: u32,
    pub(crate) order: Order,
}

impl Shape {
    pub(crate) fn of(op: &Op) -> Self {
        let (access, target, ty, lanes, order) = match op {
            Op::Load(load) => ("load", load.target, load.ty, load.lanes, load.order),
            Op::Store(store) => ("store", store.target, store.ty, store.lanes, store.order),
            Op::Atomic(atomic) => ("atomic", atomic.target, atomic.ty, 1, atomic.order),
            _ => unreachable!("no access to memory"),
        };
        let (space, base, offset) = (target.space, target.base, target.offset);
        Self { access, space, base, offset, ty, lanes: u32::from(lanes), order }
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.ty.bytes() * self.lanes
    }

    pub(crate) fn address(&self, warp: &Warp, lane: u32) -> u64 {
        warp.get(lane, self.base).wrapping_add_signed(i64::from(self.offset))
    }
}

/// The registers of an instruction's results.
pub(crate) fn results(op: &Op) -> &[Slot] {
    match op {
        Op::Load(load) => &load.d[..usize::from(load.lanes)],
        Op::Atomic(atomic) => atomic.d.as_slice(),
        _ => &[],
    }
}

impl Request {
    /// Stands where a request was.
    pub(crate) fn none() -> Self {
        Self {
            warp: 0,
            at: 0,
            mask: 0,
            place: Place::NOWHERE,
            addresses: [0; LANES],
            values: None,
            lines: 0,
            sectors: 0,
            begin: 0,
            cause: NOBODY,
            awaited: None,
        }
    }
}

pub(crate) fn kind(op: &Op, owner: Owner, device: u16) -> StepKind {
    let (own, remote) = match op {
        Op::Load(_) => (StepKind::Load, StepKind::RemoteLoad),
        Op::Store(_) => (StepKind::Store, StepKind::RemoteStore),
        _ => (StepKind::Atomic, StepKind::RemoteAtomic),
    };
    match owner {
        Owner::Host => StepKind::Host,
        Owner::Device(owner) if owner == device => own,
        Owner::Device(_) => remote,
    }
}

/// The lines that a warp's access touches.
pub(crate) struct Touched {
    pub(crate) lines: [u64; LANES],
    pub(crate) count: usize,
    /// Sectors of them.
    pub(crate) sectors: u64,
}

impl Touched {
    pub(crate) fn of(mask: u32, addresses: &[u64; LANES], bytes: u32) -> Self {
        let mut touched = Self { lines: [0; LANES], count: 0, sectors: 0 };
        let mut sectors = [0u8; LANES];
        for lane in lanes(mask) {
            // An access is aligned, and so within one line.
            let address = addresses[lane as usize];
            let line = address / LINE;
            let known = &touched.lines[..touched.count];
            let at = known.iter().rposition(|known| *known == line).unwrap_or_else(|| {
                touched.lines[touched.count] = line;
                touched.count += 1;
                touched.count - 1
            });
            let first = address % LINE / SECTOR;
            let last = (address % LINE + u64::from(bytes) - 1) / SECTOR;
            (first..=last).for_each(|sector| sectors[at] |= 1 << sector);
        }
        touched.sectors = sectors[..touched.count].iter().map(|one| u64::from(one.count_ones())).sum();
        touched
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = u64> {
        self.lines[..self.count].iter().copied()
    }
}
