//! From a call to the calls of NCCL that make it.
//!
//! | call | NCCL's |
//! |---|---|
//! | all_reduce, reduce, broadcast | the same |
//! | all_gather, reduce_scatter of equal parts of one tensor | the same |
//! | all_gather of other parts | a group with a broadcast for each rank's part |
//! | reduce_scatter of other parts | a group with a reduce for each rank's part |
//! | gather, scatter, all_to_all | groups of sends and receives, a rank's own part among them |
//! | send, recv | the same |
//! | barrier | an all_reduce of one number |
//! | batch | groups of what its calls are |
//!
//! What only moves is moved as its own type, or as bytes where NCCL has no such type. What is empty on all ranks that it concerns
//! is left out.
//!
//! A group of NCCL holds a bounded number of calls, and versions of NCCL have hung with more than 256 sends and receives in one
//! (pytorch #174288, nccl #2130). So groups are cut, in such a way that both sides of a send have it in the same group, counted from
//! the beginning of the call: sends and receives go by how many there were before them between the same two ranks in the same
//! direction, and by the distance between the ranks, both of which are the same on both sides ([`Place`]). Every group then matches
//! one of each peer, and no rank waits in a group for one that waits in an earlier one.
#![forbid(unsafe_code)]

use meshreduce_nccl_loader::sys::{ncclDataType_t, ncclRedOp_t};

use crate::call::Call;
use crate::tensor::{Parts, Tensor};
use crate::types::{DType, Operation, ReduceOp};

/// Most calls of NCCL in one group.
const MOST: usize = 256;

/// A run of elements as NCCL is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) address: u64,
    pub(super) count: usize,
    pub(super) data: ncclDataType_t,
}

/// One call of NCCL, or the border between two groups of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    AllReduce {
        input: Run,
        output: u64,
        op: ncclRedOp_t,
    },
    Reduce {
        input: Run,
        output: u64,
        op: ncclRedOp_t,
        root: usize,
    },
    /// `input` matters on the root alone.
    Broadcast {
        input: u64,
        output: Run,
        root: usize,
    },
    AllGather {
        input: Run,
        output: u64,
    },
    ReduceScatter {
        input: u64,
        output: Run,
        op: ncclRedOp_t,
    },
    Send {
        input: Run,
        peer: usize,
    },
    Recv {
        output: Run,
        peer: usize,
    },
    Cut,
}

/// NCCL's name for a type, if it has it.
pub(super) fn data_type(dtype: DType) -> Option<ncclDataType_t> {
    Some(match dtype {
        DType::F32 => ncclDataType_t::FLOAT32,
        DType::F64 => ncclDataType_t::FLOAT64,
        DType::F16 => ncclDataType_t::FLOAT16,
        DType::Bf16 => ncclDataType_t::BFLOAT16,
        DType::I8 => ncclDataType_t::INT8,
        DType::I32 => ncclDataType_t::INT32,
        DType::I64 => ncclDataType_t::INT64,
        DType::U8 => ncclDataType_t::UINT8,
        DType::I16 => return None,
    })
}

/// NCCL's name for a reduction.
fn red_op(op: ReduceOp) -> ncclRedOp_t {
    match op {
        ReduceOp::Sum => ncclRedOp_t::SUM,
        ReduceOp::Avg => ncclRedOp_t::AVG,
        ReduceOp::Min => ncclRedOp_t::MIN,
        ReduceOp::Max => ncclRedOp_t::MAX,
        ReduceOp::Product => ncclRedOp_t::PROD,
    }
}

/// What NCCL lacks for a call: an empty text where the operation, its type and its reduction say it all.
pub(super) fn supports(call: &Call<'_>) -> Result<(), String> {
    match call {
        Call::Batch(calls) => calls.iter().try_for_each(supports),
        Call::Send { tag, .. } | Call::Recv { tag, .. } if *tag != 0 => {
            Err(format!("NCCL has no tags, so that only 0 will do, not {tag}"))
        }
        Call::Recv { peer: None, .. } => Err("NCCL cannot receive from whoever sends first".to_owned()),
        _ => match (call.op(), call.dtype()) {
            (Some(_), Some(dtype)) if data_type(dtype).is_none() => {
                Err("NCCL has no such type; it can move it, but not reduce it".to_owned())
            }
            _ => Ok(()),
        },
    }
}

/// A tensor that is only moved.
fn moved(tensor: &Tensor) -> Run {
    let (count, data) = match data_type(tensor.dtype) {
        Some(data) => (tensor.count, data),
        None => (tensor.bytes(), ncclDataType_t::UINT8),
    };
    Run { address: tensor.address, count, data }
}

/// The group of a send or receive among those of its call: equal on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// How many of the same two ranks in the same direction there were before it, by so many as a group has.
    round: usize,
    /// How far the receiver is behind the sender, in ranks, by so many as a group has.
    band: usize,
}

/// How many distances between ranks one group has, and how many sends of each.
fn quota(world_size: usize) -> (usize, usize) {
    let distances = (MOST / 2).min(world_size).max(1);
    (distances, (MOST / 2 / distances).max(1))
}

fn distance(sender: usize, receiver: usize, world_size: usize) -> usize {
    (receiver + world_size - sender) % world_size
}

/// Gives what a call is made of, in order, to `give`.
pub(super) struct Plan<'a> {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    /// Where the number of a barrier is.
    pub(super) barrier: u64,
    pub(super) call: &'a Call<'a>,
}

impl Plan<'_> {
    /// Whether there may be more than one call of NCCL, which then are a group.
    pub(super) fn is_grouped(&self) -> bool {
        match self.call {
            Call::AllGather { outputs: parts, .. } | Call::ReduceScatter { inputs: parts, .. } => {
                parts.whole(self.world_size).is_none()
            }
            call => matches!(
                call.operation(),
                Operation::Gather | Operation::Scatter | Operation::AllToAll | Operation::Batch
            ),
        }
    }

    /// Gives them.
    ///
    /// # Errors
    ///
    /// The first of `give`.
    pub(super) fn run<E>(&self, give: &mut impl FnMut(Step) -> Result<(), E>) -> Result<(), E> {
        match self.call {
            Call::Batch(calls) if self.call.is_point_to_point() => self.exchange(calls, give),
            Call::Batch(calls) => {
                // As many calls in a group on all ranks, whatever each of them is made of on this one.
                let simple = matches!(
                    calls.first().map(Call::operation),
                    Some(Operation::AllReduce | Operation::Reduce | Operation::Broadcast)
                );
                let most = if simple { MOST } else { (MOST / 2 / self.world_size).max(1) };
                for (number, call) in calls.iter().enumerate() {
                    cut(number, most, give)?;
                    self.one(call, give)?;
                }
                Ok(())
            }
            call => self.one(call, give),
        }
    }

    fn one<E>(&self, call: &Call<'_>, give: &mut impl FnMut(Step) -> Result<(), E>) -> Result<(), E> {
        // What reduces was checked to have a type of NCCL's.
        match call {
            Call::AllReduce { input, output, op } => {
                let step = Step::AllReduce { input: moved(input), output: output.address, op: red_op(*op) };
                some(input, step, give)
            }
            Call::Reduce { input, output, op, root } => {
                let output = output.map_or(0, |output| output.address);
                some(input, Step::Reduce { input: moved(input), output, op: red_op(*op), root: *root }, give)
            }
            Call::Broadcast { tensor, root } => {
                let step = Step::Broadcast { input: tensor.address, output: moved(tensor), root: *root };
                some(tensor, step, give)
            }
            Call::AllGather { input, outputs } => self.all_gather(input, outputs, give),
            Call::ReduceScatter { inputs, output, op } => {
                self.reduce_scatter(inputs, output, red_op(*op), give)
            }
            Call::Gather { input, outputs, root } => {
                let outputs = outputs.as_ref();
                self.pairs(
                    |peer| (peer == *root).then_some(*input),
                    |peer| outputs.map(|outputs| outputs.part(peer, self.world_size)),
                    give,
                )
            }
            Call::Scatter { inputs, output, root } => {
                let inputs = inputs.as_ref();
                self.pairs(
                    |peer| inputs.map(|inputs| inputs.part(peer, self.world_size)),
                    |peer| (peer == *root).then_some(*output),
                    give,
                )
            }
            Call::AllToAll { inputs, outputs } => self.pairs(
                |peer| Some(inputs.part(peer, self.world_size)),
                |peer| Some(outputs.part(peer, self.world_size)),
                give,
            ),
            Call::Send { input, peer, .. } => {
                some(input, Step::Send { input: moved(input), peer: *peer }, give)
            }
            Call::Recv { output, peer: Some(peer), .. } => {
                some(output, Step::Recv { output: moved(output), peer: *peer }, give)
            }
            Call::Barrier { .. } => {
                let input = Run { address: self.barrier, count: 1, data: ncclDataType_t::INT32 };
                give(Step::AllReduce { input, output: self.barrier, op: ncclRedOp_t::SUM })
            }
            // Refused, or not nested.
            Call::Recv { peer: None, .. } | Call::Batch(_) => Ok(()),
        }
    }

    fn all_gather<E>(
        &self,
        input: &Tensor,
        outputs: &Parts<'_>,
        give: &mut impl FnMut(Step) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(whole) = outputs.whole(self.world_size) {
            return some(input, Step::AllGather { input: moved(input), output: whole.address }, give);
        }
        for root in 0..self.world_size {
            cut(root, MOST, give)?;
            let part = outputs.part(root, self.world_size);
            // The others' is not looked at.
            some(&part, Step::Broadcast { input: input.address, output: moved(&part), root }, give)?;
        }
        Ok(())
    }

    fn reduce_scatter<E>(
        &self,
        inputs: &Parts<'_>,
        output: &Tensor,
        op: ncclRedOp_t,
        give: &mut impl FnMut(Step) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(whole) = inputs.whole(self.world_size) {
            let step = Step::ReduceScatter { input: whole.address, output: moved(output), op };
            return some(output, step, give);
        }
        for root in 0..self.world_size {
            cut(root, MOST, give)?;
            let part = inputs.part(root, self.world_size);
            let output = if root == self.rank { output.address } else { 0 };
            some(&part, Step::Reduce { input: moved(&part), output, op, root }, give)?;
        }
        Ok(())
    }

    /// Sends every peer what `to` says, and receives what `from` says, by peer. What goes to the rank itself stays where it is if
    /// that is where it is to be.
    fn pairs<E>(
        &self,
        to: impl Fn(usize) -> Option<Tensor>,
        from: impl Fn(usize) -> Option<Tensor>,
        give: &mut impl FnMut(Step) -> Result<(), E>,
    ) -> Result<(), E> {
        let own = |tensor: Option<Tensor>| tensor.map(|tensor| tensor.address);
        let in_place = own(to(self.rank)) == own(from(self.rank));
        for distance in usize::from(in_place)..self.world_size {
            cut(distance, MOST / 2, give)?;
            let receiver = (self.rank + distance) % self.world_size;
            if let Some(input) = to(receiver) {
                some(&input, Step::Send { input: moved(&input), peer: receiver }, give)?;
            }
            let sender = (self.rank + self.world_size - distance) % self.world_size;
            if let Some(output) = from(sender) {
                some(&output, Step::Recv { output: moved(&output), peer: sender }, give)?;
            }
        }
        Ok(())
    }

    /// A batch of sends and receives.
    fn exchange<E>(&self, calls: &[Call<'_>], give: &mut impl FnMut(Step) -> Result<(), E>) -> Result<(), E> {
        // By peer: how many there were to it, and from it.
        let mut before = vec![[0_usize; 2]; self.world_size];
        let (distances, sends) = quota(self.world_size);
        let mut placed = Vec::with_capacity(calls.len());
        for call in calls {
            let (peer, sender, receiver) = match call {
                Call::Send { peer, .. } => (*peer, self.rank, *peer),
                Call::Recv { peer: Some(peer), .. } => (*peer, *peer, self.rank),
                // Refused.
                _ => continue,
            };
            let before = &mut before[peer][usize::from(sender == peer)];
            let band = distance(sender, receiver, self.world_size) / distances;
            placed.push((Place { round: *before / sends, band }, call));
            *before += 1;
        }
        // In one place they stay in the order of the batch.
        placed.sort_by_key(|(place, _)| *place);
        let mut last = None;
        for (place, call) in placed {
            if last.replace(place).is_some_and(|last| last != place) {
                give(Step::Cut)?;
            }
            self.one(call, give)?;
        }
        Ok(())
    }
}

/// Gives a step unless it is about nothing.
fn some<E>(tensor: &Tensor, step: Step, give: &mut impl FnMut(Step) -> Result<(), E>) -> Result<(), E> {
    if tensor.count == 0 { Ok(()) } else { give(step) }
}

/// Gives a border before every `most`th.
fn cut<E>(number: usize, most: usize, give: &mut impl FnMut(Step) -> Result<(), E>) -> Result<(), E> {
    if number > 0 && number.is_multiple_of(most) { give(Step::Cut) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
