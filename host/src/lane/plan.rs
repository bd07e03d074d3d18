//! How a call is launched, remembered for the kinds of call that came last: an engine makes the same few again and again.
#![forbid(unsafe_code)]

use meshreduce_device::Function;
use meshreduce_wire::{DType, Geometry, LaunchDescriptor, LaunchParams, Op, launch};

use super::Message;
use crate::error::Error;
use crate::kernels::Kernel;
use crate::shared::Shared;

/// How many are remembered. (Two of a layer, for two batch sizes.)
const KEPT: usize = 4;

/// What of a call its plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) count: usize,
    pub(crate) dtype: DType,
    pub(crate) op: Op,
}

/// How calls of a kind are launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) function: Function,
    pub(crate) geometry: Geometry,
    /// [`LaunchDescriptor::encode`] and [`LaunchDescriptor::tag`].
    pub(crate) descriptor: u64,
    pub(crate) tag: u32,
    pub(crate) scale: f32,
    /// [`launch::kind`].
    pub(crate) kind: u32,
    /// Most elements of a launch. A longer message, of an algorithm that is forced, goes in several.
    pub(crate) piece: u64,
}

impl Plan {
    fn new(kind: Kind, bytes: u64, shared: &Shared) -> Result<Self, Error> {
        let Kind { count, dtype, op } = kind;
        let algorithm = shared.select(bytes, dtype, op)?;
        let Kernel { function, isa } =
            shared.kernels.kernel(algorithm, dtype, op).ok_or(Error::Unsupported { algorithm, dtype, op })?;
        let (count, world_size) = (count as u64, shared.world_size() as u32);
        let descriptor = LaunchDescriptor::all_reduce(algorithm, dtype, op, count);
        let piece = count.min(shared.piece(algorithm, bytes) / dtype.size() as u64);
        Ok(Self {
            function,
            geometry: Geometry::new(algorithm, piece, dtype, world_size, shared.block_cap, isa),
            descriptor: descriptor.encode(),
            tag: descriptor.tag(),
            scale: op.scale(world_size),
            kind: launch::kind(dtype, op),
            piece,
        })
    }

    /// In how many launches a message goes.
    #[inline]
    pub(crate) fn launches(&self, message: &Message) -> u64 {
        if message.count as u64 <= self.piece { 1 } else { (message.count as u64).div_ceil(self.piece) }
    }

    /// Sets where one of them begins, and how long it is.
    #[inline]
    pub(crate) fn set(&self, at: u64, message: &Message, params: &mut LaunchParams) {
        // The last one may be shorter, and has more blocks then than it needs: all ranks have the same.
        let first = at * self.piece;
        params.count = self.piece.min(message.count as u64 - first);
        params.input = message.input + first * message.dtype.size() as u64;
        params.output = message.output + first * message.dtype.size() as u64;
    }
}

/// The plans of one lane.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    kept: [Option<(Kind, Plan)>; KEPT],
    /// The one that has been kept for longest.
    oldest: usize,
}

impl Plans {
    /// The plan for calls of a kind, of so many bytes.
    ///
    /// # Errors
    ///
    /// No kernel takes them.
    #[inline]
    pub(crate) fn of(&mut self, kind: Kind, bytes: u64, shared: &Shared) -> Result<Plan, Error> {
        for (kept, plan) in self.kept.iter().flatten() {
            if *kept == kind {
                return Ok(*plan);
            }
        }
        let plan = Plan::new(kind, bytes, shared)?;
        self.kept[self.oldest] = Some((kind, plan));
        self.oldest = (self.oldest + 1) % KEPT;
        Ok(plan)
    }
}
