//! Launch parameters as the bytes that a kernel is given.
#![forbid(unsafe_code)]

use std::mem::{offset_of, size_of};

use meshreduce_wire::{LaneParams, LaunchParams};

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
    let LaneParams { phase_bytes, ranks, rank, position, relay, lane: index, lanes, .. } = params.lane;
    for (at, value) in [
        (offset_of!(LaneParams, phase_bytes), phase_bytes),
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
    bytes.into()
}
