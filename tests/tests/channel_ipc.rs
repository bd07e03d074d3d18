//! The channel `ipc`: two processes on an emulated node.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use meshreduce_channels::{Ipc, Registry, Slice};
use meshreduce_device::Device;
use meshreduce_tests::channel_peer::{Gpu, LONG, Peer, data};
use meshreduce_tests::channel_scenarios;
use meshreduce_tests::channels::Cast;
use meshreduce_tests::rank_process::{Part, Stage, heard};

channel_scenarios!(two_devices, Cast::new("ipc", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes());
channel_scenarios!(one_device, Cast::new("ipc", "cuda:6", "cuda:6").on_node("hgx-h100").in_processes());
channel_scenarios!(
    devices_over_tcp,
    Cast::new("ipc", "cuda:3", "cuda:2").on_node("hgx-h100").in_processes().over("tcp")
);

const SLOT: u64 = 4096;
const SLOTS: u16 = 4;

/// Channel ipc alone, with a small ring.
fn channels() -> Registry {
    let mut registry = Registry::empty();
    registry.register(Ipc::default().slots(SLOTS).slot_bytes(SLOT)).unwrap();
    registry
}

/// Both ranks, each of which ends well.
fn play(stage: &Stage, part: &str) {
    let ranks = [0, 1].map(|rank| stage.start(rank, part));
    for (rank, child) in ranks.into_iter().enumerate() {
        let (said, well) = heard(child);
        assert!(well, "rank {rank} of {part}: {said:?}");
    }
}

/// Not a test of its own: what the tests below run as processes.
#[test]
fn rank() {
    let Some(part) = Part::of_this_process() else { return };
    match part.name.clone().as_str() {
        "every byte" => every_byte(part),
        other => panic!("there is no part {other}"),
    }
}

/// Lengths around those of slots and rings.
fn lengths() -> Vec<u64> {
    let ring = SLOT * u64::from(SLOTS);
    let around = |bytes: u64| [bytes - 1, bytes, bytes + 1];
    let mut all = vec![1, 3, 0, 511];
    all.extend([SLOT, 2 * SLOT, ring, 3 * ring].into_iter().flat_map(around));
    all.extend([100_003, 1 << 20]);
    all
}

fn every_byte(part: Part) {
    let peer = Peer::meet(part, &channels(), &[Device::Cuda(0), Device::Cuda(1)]);
    let rank = peer.part.rank as u64;
    for (local, remote) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let (local, remote) = if rank == 0 { (local, remote) } else { (remote, local) };
        let gpu = Gpu::new(local);
        assert_eq!(
            peer.endpoint
                .channel(meshreduce_channels::channel::Pair {
                    local: gpu.device(),
                    remote: Device::Cuda(remote)
                })
                .unwrap(),
            "ipc"
        );
        for (number, bytes) in lengths().into_iter().enumerate() {
            let number = number as u64;
            let offset = number % 5;
            let mut source = data(99, offset);
            source.extend(data(2 * number + rank, bytes));
            let source = Slice::new(gpu.memory(&source), offset..offset + bytes).unwrap();
            let target = Slice::new(gpu.empty(bytes + 8), 3..3 + bytes).unwrap();
            let received = peer.endpoint.recv(target, Device::Cuda(remote), &gpu.stream);
            let sent = peer.endpoint.send(source, Device::Cuda(remote), &gpu.stream);
            let (target, moved) = received.wait(LONG).unwrap();
            assert_eq!(moved, bytes);
            sent.wait(LONG).unwrap();
            let target = target.into_inner();
            gpu.assert_holds(target.address() + 3, 2 * number + 1 - rank, bytes);
        }
    }
    peer.end();
}

#[test]
fn every_byte_arrives_whatever_the_length_and_the_pair_of_devices() {
    play(&Stage::new("rank", 2), "every byte");
}
