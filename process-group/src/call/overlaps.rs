//! Memory that a call may not use twice.
#![forbid(unsafe_code)]

use super::Call;
use crate::error::CallError;
use crate::tensor::{Parts, Tensor};

fn overlap(input: &Tensor, output: &Tensor) -> CallError {
    CallError::Overlap { input: input.address, output: output.address }
}

/// Of a call that is no batch.
pub(super) fn check(call: &Call<'_>, rank: usize, world_size: usize) -> Result<(), CallError> {
    // What may be the same memory: this rank's own.
    let own = match call {
        Call::AllReduce { input, output, .. } | Call::Reduce { input, output: Some(output), .. } => {
            Some((*input, *output))
        }
        Call::AllGather { input, outputs } | Call::Gather { input, outputs: Some(outputs), .. } => {
            Some((*input, outputs.part(rank, world_size)))
        }
        Call::Scatter { inputs: Some(inputs), output, .. } | Call::ReduceScatter { inputs, output, .. } => {
            Some((inputs.part(rank, world_size), *output))
        }
        Call::Broadcast { .. } => return Ok(()),
        _ => None,
    };
    let is_in_place = own.is_some_and(|(input, output)| input == output);
    let apart = |(at, input): (usize, &Tensor)| {
        let of_another_rank = match call {
            // Parts of one tensor share nothing with one another.
            Call::Scatter { inputs: Some(Parts::List(_)), .. }
            | Call::ReduceScatter { inputs: Parts::List(_), .. } => at != rank,
            _ => false,
        };
        let meets = |output: &&Tensor| (!is_in_place || of_another_rank) && input.overlaps(output);
        call.outputs().iter().find(meets).map_or(Ok(()), |output| Err(overlap(input, output)))
    };
    call.inputs().iter().enumerate().try_for_each(apart)?;
    check_apart(call.outputs())
}

/// Outputs must not share memory with one another.
fn check_apart(outputs: &[Tensor]) -> Result<(), CallError> {
    for (at, one) in outputs.iter().enumerate() {
        if let Some(other) = outputs[..at].iter().find(|other| one.overlaps(other)) {
            return Err(overlap(other, one));
        }
    }
    Ok(())
}

/// What one call of a batch writes no other one uses: they all go on at once.
pub(super) fn check_batch(calls: &[Call<'_>]) -> Result<(), CallError> {
    if calls.len() < 2 {
        return Ok(());
    }
    let with_elements = |(at, call)| {
        let outputs = Call::outputs(call).iter().filter(|tensor| tensor.count > 0);
        outputs.map(move |tensor| (tensor, at))
    };
    let mut written: Vec<(&Tensor, usize)> = calls.iter().enumerate().flat_map(with_elements).collect();
    written.sort_unstable_by_key(|(tensor, _)| tensor.address);
    // (Those of one call have been compared.)
    let meets_next = |pair: &&[(&Tensor, usize)]| pair[0].0.overlaps(pair[1].0);
    if let Some(pair) = written.windows(2).find(meets_next) {
        return Err(overlap(pair[0].0, pair[1].0));
    }
    for (at, call) in calls.iter().enumerate() {
        for input in call.inputs() {
            // They share nothing with one another, so that those that begin before its end end in the order in which they begin.
            let end = input.address.saturating_add(input.bytes() as u64);
            let before_end = written.partition_point(|(output, _)| output.address < end);
            let mut meeting =
                written[..before_end].iter().rev().take_while(|(output, _)| output.overlaps(input));
            if let Some((output, _)) = meeting.find(|(_, its)| *its != at) {
                return Err(overlap(input, output));
            }
        }
    }
    Ok(())
}
