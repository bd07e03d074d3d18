//! Lists of all-reduces: as many of them in one launch as go by packets together.

use meshreduce_device::{DriverError, Function, RawStream};
use meshreduce_wire::launch::{self, MAX_TENSORS};
use meshreduce_wire::packets::{self, SLOT_BYTES};
use meshreduce_wire::{Algorithm, DType, Geometry, GroupParams, Isa, LaunchDescriptor, LaunchParams, Op};

use super::plan::Plan;
use super::slice_plan::SlicePlan;
use super::{Enqueued, Lane, Message, SliceCall, StreamOrder, check_addresses};
use crate::error::Error;
use crate::kernels::Kernel;
use crate::shared::Shared;
use crate::work::Work;

/// A tensor of a list of all-reduces ([`Lane::all_reduce_group_raw`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// The device address of its input.
    pub input: u64,
    /// The device address of its output: that of the input, or apart from all else in the list.
    pub output: u64,
    /// Its elements, perhaps none.
    pub count: usize,
    /// Their type.
    pub dtype: DType,
    /// What is done to them.
    pub op: Op,
}

impl From<Message> for RawTensor {
    fn from(Message { input, output, count, dtype, op }: Message) -> Self {
        Self { input, output, count, dtype, op }
    }
}

impl RawTensor {
    fn bytes(&self) -> u64 {
        (self.count as u64).saturating_mul(self.dtype.size() as u64)
    }

    fn message(&self) -> Message {
        let Self { input, output, count, dtype, op } = *self;
        Message { input, output, count, dtype, op }
    }
}

/// Tensors of a list that one call, or one launch, reduces.
enum Part {
    /// One, by itself, in as many launches as it needs.
    Single(Box<(Message, Plan, LaunchParams)>),
    /// One of no elements, by itself.
    Nothing(Box<(SliceCall, SlicePlan)>),
    /// Several, in one launch.
    Together(Function, Geometry, Box<GroupParams>),
}

impl Part {
    fn launches(&self) -> u64 {
        match self {
            Part::Single(single) => single.1.launches(&single.0),
            Part::Nothing(nothing) => nothing.1.pieces(),
            Part::Together(..) => 1,
        }
    }

    /// # Safety
    ///
    /// As for [`Lane::submit`].
    unsafe fn launch(&self, at: u64, stream: RawStream, world_size: usize) -> Result<(), DriverError> {
        // SAFETY: as for the calls themselves; kernels of lists take one `GroupParams`.
        unsafe {
            match self {
                Part::Single(single) => {
                    let (message, Plan { function, geometry, .. }, mut params) = **single;
                    single.1.set(at, &message, &mut params);
                    function.launch(geometry.blocks, geometry.threads, stream, &params)
                }
                Part::Nothing(nothing) => {
                    let (call, plan) = &**nothing;
                    let (geometry, params) = plan.launch(call, at, world_size);
                    plan.kernel.function.launch(geometry.blocks, geometry.threads, stream, &params)
                }
                Part::Together(function, geometry, params) => {
                    function.launch(geometry.blocks, geometry.threads, stream, &**params)
                }
            }
        }
    }
}

impl Lane {
    /// Enqueues an all-reduce of each tensor of a list, as one call: short ones together, up to 64 of one type and operation in one
    /// launch where they go by packets, others each by itself, in order. The results are those of single calls, bit by bit. Where
    /// nothing goes by packets in one step (a hybrid cube mesh, limits without packets, another algorithm that is forced), each has
    /// a launch of its own.
    ///
    /// All ranks give the same list, but for the addresses. Those of which the counts of a tensor differ get
    /// [`Error::TensorMismatch`], which names its place; others that differ get [`Error::LaunchMismatch`]. An empty list is a launch
    /// of nothing.
    ///
    /// The outputs of a list share nothing with one another, nor with the inputs of other tensors. Inputs may overlap.
    ///
    /// (NCCL's name for several calls in one launch is a group, that of PyTorch's c10d is coalesced collectives.)
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`], of each tensor.
    ///
    /// # Errors
    ///
    /// As for [`Lane::all_reduce_raw`], and [`Error::TensorsOverlap`]. If the driver refuses a launch behind the first one, the
    /// communicator is over.
    pub unsafe fn all_reduce_group_raw(
        &mut self,
        tensors: &[RawTensor],
        stream: impl Into<StreamOrder>,
    ) -> Result<Work, Error> {
        // SAFETY: the caller vouches for the pointers, the stream and its order.
        Ok(unsafe { self.enqueue_group(tensors, stream.into()) }?.observed())
    }

    /// The same, and waits for it.
    ///
    /// # Safety
    ///
    /// As for [`Lane::enqueue_and_wait`].
    #[cfg_attr(not(feature = "cust"), allow(dead_code))] // the typed calls are built on it
    pub(crate) unsafe fn enqueue_group_and_wait(
        &mut self,
        tensors: &[RawTensor],
        order: StreamOrder,
    ) -> Result<(), Error> {
        // SAFETY: the caller vouches for all of it.
        unsafe { self.and_wait(order, |lane| lane.enqueue_group(tensors, order)) }
    }

    unsafe fn enqueue_group(&mut self, tensors: &[RawTensor], order: StreamOrder) -> Result<Enqueued, Error> {
        self.state.status()?;
        check(tensors)?;
        let parts = self.parts(tensors)?;
        let world_size = self.shared.world_size();
        // SAFETY: as for calls of their own; the caller vouches for all tensors.
        unsafe {
            self.submit(order, true, |stream, done| {
                let mut before = 0;
                for part in &parts {
                    let end = before + part.launches();
                    while *done < end {
                        part.launch(*done - before, stream, world_size)?;
                        *done += 1;
                    }
                    before = end;
                }
                Ok(())
            })
        }
    }

    /// The list in parts, in order; an empty one as one of no elements.
    fn parts(&mut self, tensors: &[RawTensor]) -> Result<Vec<Part>, Error> {
        let room = self.state.params.phase_bytes / SLOT_BYTES as u32;
        let (mut parts, mut begin) = (Vec::new(), 0);
        while begin < tensors.len() {
            let end = begin + together(&tensors[begin..], room, &self.shared);
            parts.push(match &tensors[begin..end] {
                [RawTensor { count: 0, dtype, op, .. }] => self.nothing(*dtype, *op)?,
                [single] => {
                    let message = single.message();
                    let plan = self.plan(&message)?;
                    Part::Single(Box::new((message, plan, self.launch_params(&message, &plan))))
                }
                several => self.together(several, begin as u32)?,
            });
            begin = end;
        }
        if parts.is_empty() {
            parts.push(self.nothing(DType::F32, Op::Sum)?);
        }
        Ok(parts)
    }

    fn nothing(&self, dtype: DType, op: Op) -> Result<Part, Error> {
        let call = SliceCall::all_reduce_of_nothing(dtype, op);
        let plan = self.slice_plan(&call)?;
        Ok(Part::Nothing(Box::new((call, plan))))
    }

    /// Tensors of one type and operation as one launch; `place`: that of the first in the caller's list.
    fn together(&self, tensors: &[RawTensor], place: u32) -> Result<Part, Error> {
        let RawTensor { dtype, op, .. } = tensors[0];
        let algorithm = Algorithm::GroupLl;
        let Kernel { function, isa } = self
            .shared
            .kernels
            .kernel(algorithm, dtype, op)
            .ok_or(Error::Unsupported { algorithm, dtype, op })?;
        let world_size = self.shared.world_size() as u32;
        let descriptor = LaunchDescriptor::all_reduce(algorithm, dtype, op, tensors.len() as u64);
        let launch = LaunchParams {
            descriptor: descriptor.encode(),
            scale: op.scale(world_size),
            kind: launch::kind(dtype, op),
            ..self.launch_of_nothing()
        };
        let mut params = GroupParams::new(launch, world_size, place, launch::neutral(dtype, op));
        // No longer than packet memory has units.
        params.set(tensors.iter().map(|one| (one.input, one.output, one.count as u32)), dtype, isa);
        let geometry = Geometry::of_list(params.units, self.shared.block_cap);
        Ok(Part::Together(function, geometry, Box::new(params)))
    }
}

/// How many tensors from the first on go in one launch: a single one if it does not go with others.
fn together(tensors: &[RawTensor], room: u32, shared: &Shared) -> usize {
    let [RawTensor { dtype, op, .. }, ..] = *tensors else { return 0 };
    if shared.kernels.kernel(Algorithm::GroupLl, dtype, op).is_none() {
        return 1;
    }
    let fits = |bytes| matches!(shared.select(bytes, dtype, op), Ok(Algorithm::OneShotLl));
    let alike = tensors.iter().take_while(|tensor| (tensor.dtype, tensor.op) == (dtype, op));
    prefix(alike.map(|tensor| (tensor.count as u64, tensor.bytes())), dtype, room, fits).max(1)
}

/// How many of these tensors, given by elements and bytes, have room in as many units and `fits` by their bytes in all. What ranks
/// that take another ISA than this one would pack tighter counts as if they did not: so it is the same everywhere.
fn prefix(
    tensors: impl Iterator<Item = (u64, u64)>,
    dtype: DType,
    room: u32,
    fits: impl Fn(u64) -> bool,
) -> usize {
    let (mut units, mut bytes) = (0u64, 0u64);
    let mut taken = 0;
    for (count, more) in tensors.take(MAX_TENSORS) {
        units += packets::units(count, dtype, Isa::V70);
        bytes = bytes.saturating_add(more);
        let with_counts = units + GroupParams::units_of_counts(taken + 1) as u64;
        if with_counts > room.into() || !fits(bytes) {
            break;
        }
        taken += 1;
    }
    taken
}

/// Checks the addresses of a list.
fn check(tensors: &[RawTensor]) -> Result<(), Error> {
    for tensor in tensors {
        check_addresses(tensor.input, tensor.output, tensor.bytes(), tensor.dtype)?;
    }
    let there = || tensors.iter().enumerate().filter(|(_, tensor)| tensor.count > 0);
    let mut outputs: Vec<_> = there().map(|(at, tensor)| (tensor.output, tensor.bytes(), at)).collect();
    outputs.sort_unstable();
    for two in outputs.windows(2) {
        let [(first, bytes, one), (second, _, other)] = *two else { continue };
        if second < first.saturating_add(bytes) {
            return Err(Error::TensorsOverlap { written: one.min(other), other: one.max(other) });
        }
    }
    for (other, tensor) in there() {
        // Outputs are apart: an input that is an output of its own tensor is none of another one.
        let next =
            outputs.partition_point(|(output, bytes, _)| output.saturating_add(*bytes) <= tensor.input);
        if let Some((output, _, written)) = outputs.get(next)
            && *output < tensor.input.saturating_add(tensor.bytes())
            && *written != other
        {
            return Err(Error::TensorsOverlap { written: *written, other });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(input: u64, output: u64, count: usize) -> RawTensor {
        RawTensor { input, output, count, dtype: DType::F32, op: Op::Sum }
    }

    #[test]
    fn outputs_share_nothing_with_what_others_have() {
        let inputs_may = [tensor(0x1000, 0x2000, 4), tensor(0x1008, 0x2010, 4), tensor(0x3000, 0x3000, 4)];
        check(&inputs_may).unwrap();
        for (first, second) in [
            (tensor(0x1000, 0x2000, 4), tensor(0x3000, 0x200c, 4)),
            (tensor(0x1000, 0x2000, 4), tensor(0x200c, 0x3000, 4)),
            (tensor(0x3000, 0x1000, 4), tensor(0x1000, 0x1000, 4)),
        ] {
            let found = check(&[first, second]);
            assert!(matches!(found, Err(Error::TensorsOverlap { written: 0, other: 1 })), "{found:?}");
        }
        check(&[tensor(0x1000, 0x2000, 4), tensor(0x2000, 0x2000, 0)]).unwrap();
    }

    #[test]
    fn as_many_go_together_as_there_is_room_for() {
        let all = |_| true;
        let of = |counts: &[u64], room, fits: &dyn Fn(u64) -> bool| {
            prefix(counts.iter().map(|count| (*count, 4 * count)), DType::F32, room, fits)
        };
        assert_eq!(of(&[1; 100], 1 << 20, &all), MAX_TENSORS);
        // Two elements a unit, behind 32 units of counts.
        assert_eq!(of(&[2, 3, 1], 32 + 4, &all), 3);
        assert_eq!(of(&[2, 3, 1], 32 + 3, &all), 2);
        // The 33rd has counts of another tile before it.
        assert_eq!(of(&[0; 40], 40, &all), 32);
        assert_eq!(of(&[2, 2, 2], 1 << 20, &|bytes| bytes <= 16), 2);
        assert_eq!(of(&[9], 1, &all), 0);
    }
}
