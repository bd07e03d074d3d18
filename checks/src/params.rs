//! Launch parameters as the bytes that a kernel is given.
#![forbid(unsafe_code)]

use std::mem::{offset_of, size_of};

use meshreduce_wire::launch::{self, MAX_TENSORS};
use meshreduce_wire::{
    DType, GroupParams, Isa, LaneParams, LaunchParams, MAX_RANKS, Op, SliceParams, Slices,
};

/// The bytes of `params`.
pub fn bytes(params: &LaunchParams) -> Box<[u8]> {
    let mut bytes = vec![0; size_of::<LaunchParams>()];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let lane = offset_of!(LaunchParams, lane);
    for (position, pad) in params.lane.pads.iter().enumerate() {
        set(lane + offset_of!(LaneParams, pads) + 8 * position, &pad.to_le_bytes());
    }
    let LaneParams { own_pad, staging, half_bytes, packets, counters, host_page, .. } = params.lane;
    for (at, value) in [
        (offset_of!(LaneParams, own_pad), own_pad),
        (offset_of!(LaneParams, staging), staging),
        (offset_of!(LaneParams, half_bytes), half_bytes),
        (offset_of!(LaneParams, packets), packets),
        (offset_of!(LaneParams, counters), counters),
        (offset_of!(LaneParams, host_page), host_page),
    ] {
        set(lane + at, &value.to_le_bytes());
    }
    let LaneParams { phase_bytes, relays, ranks, rank, position, relay, lane: index, lanes, .. } =
        params.lane;
    for (at, value) in [
        (offset_of!(LaneParams, phase_bytes), phase_bytes),
        (offset_of!(LaneParams, relays), relays),
        (offset_of!(LaneParams, ranks), ranks),
        (offset_of!(LaneParams, rank), rank),
        (offset_of!(LaneParams, position), position),
        (offset_of!(LaneParams, relay), relay),
        (offset_of!(LaneParams, lane), index),
        (offset_of!(LaneParams, lanes), lanes),
    ] {
        set(lane + at, &value.to_le_bytes());
    }
    let LaunchParams { input, output, count, descriptor, deadline_ns, tag, flags, scale, .. } = *params;
    for (at, value) in [
        (offset_of!(LaunchParams, input), input),
        (offset_of!(LaunchParams, output), output),
        (offset_of!(LaunchParams, count), count),
        (offset_of!(LaunchParams, descriptor), descriptor),
        (offset_of!(LaunchParams, deadline_ns), deadline_ns),
    ] {
        set(at, &value.to_le_bytes());
    }
    set(offset_of!(LaunchParams, tag), &tag.to_le_bytes());
    set(offset_of!(LaunchParams, flags), &flags.to_le_bytes());
    set(offset_of!(LaunchParams, scale), &scale.to_le_bytes());
    set(offset_of!(LaunchParams, kind), &params.kind.to_le_bytes());
    bytes.into()
}

/// The bytes of `params`.
pub fn slice_bytes(params: &SliceParams) -> Box<[u8]> {
    let mut all = bytes(&params.launch).into_vec();
    all.resize(size_of::<SliceParams>(), 0);
    let mut set = |at: usize, value: &[u8]| all[at..at + value.len()].copy_from_slice(value);
    for (at, slices) in
        [(offset_of!(SliceParams, sent), &params.sent), (offset_of!(SliceParams, received), &params.received)]
    {
        for position in 0..MAX_RANKS {
            set(at + offset_of!(Slices, addresses) + 8 * position, &slices.addresses[position].to_le_bytes());
            set(at + offset_of!(Slices, bytes) + 4 * position, &slices.bytes[position].to_le_bytes());
        }
        set(at + offset_of!(Slices, most), &slices.most.to_le_bytes());
        set(at + offset_of!(Slices, least), &slices.least.to_le_bytes());
        set(at + offset_of!(Slices, alignment), &slices.alignment.to_le_bytes());
    }
    set(offset_of!(SliceParams, stride), &params.stride.to_le_bytes());
    for position in 0..MAX_RANKS {
        set(offset_of!(SliceParams, said) + 8 * position, &params.said[position].to_le_bytes());
        set(offset_of!(SliceParams, expected) + 8 * position, &params.expected[position].to_le_bytes());
        set(offset_of!(SliceParams, tags_said) + 4 * position, &params.tags_said[position].to_le_bytes());
        set(
            offset_of!(SliceParams, tags_expected) + 4 * position,
            &params.tags_expected[position].to_le_bytes(),
        );
    }
    all.into()
}

/// The parameter of a list whose tensors lie one behind the other from the launch's input and output on, the first of which has
/// this place in its call.
pub fn list(
    launch: LaunchParams,
    place: u32,
    counts: &[u32],
    (dtype, op): (DType, Op),
    (world_size, isa): (usize, Isa),
) -> GroupParams {
    let mut params = GroupParams::new(launch, world_size as u32, place, launch::neutral(dtype, op));
    let mut before = 0;
    let tensors = counts.iter().map(|&count| {
        let at = before;
        before += u64::from(count) * dtype.size() as u64;
        (launch.input + at, launch.output + at, count)
    });
    params.set(tensors, dtype, isa);
    params
}

/// The bytes of `params`.
pub fn list_bytes(params: &GroupParams) -> Box<[u8]> {
    let mut all = bytes(&params.launch).into_vec();
    all.resize(size_of::<GroupParams>(), 0);
    let mut set = |at: usize, value: &[u8]| all[at..at + value.len()].copy_from_slice(value);
    for tensor in 0..MAX_TENSORS {
        set(offset_of!(GroupParams, inputs) + 8 * tensor, &params.inputs[tensor].to_le_bytes());
        set(offset_of!(GroupParams, outputs) + 8 * tensor, &params.outputs[tensor].to_le_bytes());
        set(offset_of!(GroupParams, counts) + 4 * tensor, &params.counts[tensor].to_le_bytes());
        set(offset_of!(GroupParams, firsts) + 4 * tensor, &params.firsts[tensor].to_le_bytes());
    }
    let GroupParams { units, world_size, place, neutral, .. } = *params;
    for (at, value) in [
        (offset_of!(GroupParams, units), units),
        (offset_of!(GroupParams, world_size), world_size),
        (offset_of!(GroupParams, place), place),
        (offset_of!(GroupParams, neutral), neutral),
    ] {
        set(at, &value.to_le_bytes());
    }
    all.into()
}
