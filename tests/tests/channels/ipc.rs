//! The channel `ipc`: two processes on an emulated node.

use std::time::Duration;

use meshreduce_channels::channel::Pair;
use meshreduce_channels::{Context, Error, Ipc, Registry, Slice};
use meshreduce_checks::channels::Cast;
use meshreduce_checks::in_process::{all_driver_calls, lose_context};
use meshreduce_device::{Device, VisibleDevice, Words};
use meshreduce_tests::channel_peer::{Gate, Gpu, LONG, Peer, byte, data, eventually};
use meshreduce_tests::channel_scenarios;
use meshreduce_tests::here;
use meshreduce_tests::rank_process::{Part, Stage, heard};

mod kills;
mod left;

use kills::survive;
use left::{left_behind, no_descriptors};

channel_scenarios!(
    two_devices,
    Cast::new("ipc", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes();
    all and many
);
channel_scenarios!(one_device, Cast::new("ipc", "cuda:6", "cuda:6").on_node("hgx-h100").in_processes());
channel_scenarios!(
    devices_over_tcp,
    Cast::new("ipc", "cuda:3", "cuda:2").on_node("hgx-h100").in_processes().over("tcp")
);
channel_scenarios!(reset, Cast::new("ipc", "cuda:4", "cuda:5").on_node("hgx-h100").in_processes(); the_context_is_reset, the_context_is_renewed, a_kernel_faults, a_kernel_faults_before_a_receive, refused_streams_fail_their_transfer_alone);
channel_scenarios!(long, Cast::new("ipc", "cuda:0", "cuda:1").on_large_devices().in_processes(); long);

const SLOT: u64 = 4096;
const SLOTS: u16 = 4;

fn with(ipc: Ipc) -> Registry {
    let mut registry = Registry::empty();
    registry.register(ipc).unwrap();
    registry
}

/// Channel ipc alone, with a small ring.
fn channels() -> Registry {
    with(Ipc::default().slots(SLOTS).slot_bytes(SLOT))
}

/// For two processes that run [`rank`].
fn two_ranks() -> Stage {
    Stage::new(here!("rank"), 2)
}

/// Both ranks, each of which ends well.
fn play(part: &str) {
    let stage = two_ranks();
    let ranks = [0, 1].map(|rank| stage.start(rank, part));
    ended_well(part, ranks);
}

fn ended_well(part: &str, ranks: [std::process::Child; 2]) {
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
        "every byte" => every_byte(part, &channels()),
        "every byte by messages" => {
            every_byte(part, &with(Ipc::default().slots(2).slot_bytes(SLOT).sees_words(false)));
        }
        "one slot" => every_byte(part, &with(Ipc::default().slots(1).slot_bytes(SLOT))),
        "many at once" => many_at_once(part),
        "unmatched" => unmatched(part),
        "not ready" => not_ready(part),
        "calls" => calls(part),
        "hidden" => hidden(part),
        "refused" => refused(part),
        "lost" => other_context_is_lost(part),
        "left behind" => left_behind(part),
        "no descriptors" => no_descriptors(part),
        "killed" => survive(part, Duration::from_secs(30)),
        "stopped" => survive(part, Duration::from_secs(3)),
        other => panic!("there is no part {other}"),
    }
}

/// The pairs of two devices on either side, as this rank sees them.
fn pairs(rank: usize) -> Vec<(u32, u32)> {
    let all = [(0, 0), (0, 1), (1, 0), (1, 1)];
    all.into_iter().map(|(one, other)| if rank == 0 { (one, other) } else { (other, one) }).collect()
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

fn every_byte(part: Part, channels: &Registry) {
    let peer = Peer::meet(part, channels, &[Device::Cuda(0), Device::Cuda(1)]);
    let rank = peer.part.rank as u64;
    for (local, remote) in pairs(peer.part.rank) {
        let (gpu, remote) = (Gpu::new(local), Device::Cuda(remote));
        assert_eq!(peer.endpoint.channel(Pair { local: gpu.device(), remote }).unwrap(), "ipc");
        for (number, bytes) in lengths().into_iter().enumerate() {
            let number = number as u64;
            let offset = number % 5;
            let mut source = data(99, offset);
            source.extend(data(2 * number + rank, bytes));
            let source = Slice::new(gpu.memory(&source), offset..offset + bytes).unwrap();
            let target = Slice::new(gpu.empty(bytes + 8), 3..3 + bytes).unwrap();
            let received = peer.endpoint.recv(target, remote, &gpu.stream);
            let sent = peer.endpoint.send(source, remote, &gpu.stream);
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
    play("every byte");
}

#[test]
fn a_receiver_that_does_not_see_the_words_is_told() {
    play("every byte by messages");
}

#[test]
fn one_slot_is_enough() {
    play("one slot");
}

/// The first rank's transfers wait for a stream of another device than the memory's, whose context is lost by a kernel that faults:
/// they fail on both sides, alone.
fn other_context_is_lost(part: Part) {
    const BYTES: u64 = 70_000;
    let peer = Peer::meet(part, &channels(), &[Device::Cuda(0), Device::Cuda(1)]);
    let (gpu, other) = (Gpu::new(0), Gpu::new(1));
    let gate = Gate::shut(&other);
    let module = (peer.part.rank == 0).then(|| lose_context(&other.stream));
    let after = module.as_ref().map(|_| &other.stream);
    let transfers = [
        peer.endpoint.send(gpu.empty(BYTES), gpu.device(), after),
        peer.endpoint.recv(gpu.empty(BYTES), gpu.device(), after),
    ];
    peer.meet_at("the start");
    drop(gate);
    for transfer in transfers {
        let failed = transfer.wait(LONG).unwrap_err();
        let is_it = match failed.error {
            Error::Driver(_) => peer.part.rank == 0,
            Error::Remote { .. } => peer.part.rank == 1,
            _ => false,
        };
        assert!(is_it && failed.error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{failed}");
        assert!(failed.into_memory().is_some(), "the memory comes back");
    }
    let sent = peer.endpoint.send(gpu.memory(&data(1, BYTES)), gpu.device(), &gpu.stream);
    let (received, _) = peer.endpoint.recv(gpu.empty(BYTES), gpu.device(), &gpu.stream).wait(LONG).unwrap();
    gpu.assert_holds(received.address(), 1, BYTES);
    sent.wait(LONG).unwrap();
    peer.meet_at("the end");
    peer.end();
}

#[test]
fn a_stream_of_another_device_that_is_lost_fails_its_transfers_alone() {
    play("lost");
}

/// Long transfers in both directions over four channels, two to a ring.
fn many_at_once(part: Part) {
    const BYTES: u64 = 300_001;
    let peer = Peer::meet(part, &channels(), &[Device::Cuda(0), Device::Cuda(1)]);
    let rank = peer.part.rank as u64;
    let gpus = [Gpu::new(0), Gpu::new(1)];
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    for round in 0..5 {
        for (at, (local, remote)) in pairs(peer.part.rank).into_iter().enumerate() {
            let (gpu, remote) = (&gpus[local as usize], Device::Cuda(remote));
            let number = 8 * round + 2 * at as u64;
            let source = gpu.memory(&data(number + rank, BYTES));
            sends.push(peer.endpoint.send(source, remote, &gpu.stream));
            let received = peer.endpoint.recv(gpu.empty(BYTES), remote, &gpu.stream);
            receives.push((received, gpu, number + 1 - rank));
        }
    }
    for (received, gpu, number) in receives {
        let (target, _) = received.wait(LONG).unwrap();
        gpu.assert_holds(target.address(), number, BYTES);
    }
    sends.into_iter().for_each(|sent| drop(sent.wait(LONG).unwrap()));
    peer.end();
}

#[test]
fn channels_share_the_ring_of_a_device_in_both_directions_at_once() {
    play("many at once");
}

/// Sends that nobody receives hold no slots: others over the same ring go on.
fn unmatched(part: Part) {
    let peer = Peer::meet(part, &channels(), &[Device::Cuda(0), Device::Cuda(1)]);
    let gpu = Gpu::new(0);
    if peer.part.rank == 0 {
        let early: Vec<_> = (0..20)
            .map(|number| {
                peer.endpoint.send(gpu.memory(&data(number, 3 * SLOT)), Device::Cuda(1), &gpu.stream)
            })
            .collect();
        for number in 0..20 {
            let sent = peer.endpoint.send(gpu.memory(&data(number, 9 * SLOT)), Device::Cuda(0), &gpu.stream);
            sent.wait(LONG).unwrap();
        }
        assert!(early.iter().all(|sent| !sent.poll().unwrap() && sent.moved() == 0));
        peer.meet_at("the others are done");
        early.into_iter().for_each(|sent| drop(sent.wait(LONG).unwrap()));
    } else {
        let receive = |gpu: &Gpu, bytes| peer.endpoint.recv(gpu.empty(bytes), Device::Cuda(0), &gpu.stream);
        for number in 0..20 {
            let (target, _) = receive(&gpu, 9 * SLOT).wait(LONG).unwrap();
            gpu.assert_holds(target.address(), number, 9 * SLOT);
        }
        peer.meet_at("the others are done");
        let gpu = Gpu::new(1);
        for number in 0..20 {
            let (target, _) = receive(&gpu, 3 * SLOT).wait(LONG).unwrap();
            gpu.assert_holds(target.address(), number, 3 * SLOT);
        }
    }
    peer.end();
}

#[test]
fn sends_that_nobody_receives_hold_no_slots() {
    play("unmatched");
}

/// Sends whose stream is held up do not hold up those of other channels over the same ring.
fn not_ready(part: Part) {
    const BYTES: u64 = 10 * SLOT;
    let devices = [Device::Cuda(0), Device::Cuda(1), Device::Cuda(2), Device::Cuda(3)];
    let peer = Peer::meet(part, &channels(), &devices);
    if peer.part.rank == 0 {
        let (gpu, held_up) = (Gpu::new(0), Gpu::new(0));
        let go = Words::new(&held_up.context).unwrap().take().unwrap();
        let held = [1, 2, 3].map(|remote| (held_up.memory(&data(remote, BYTES)), remote as u32));
        // SAFETY: the stream is alive and not captured.
        unsafe { go.enqueue_wait(1, held_up.stream.raw()) }.unwrap();
        let held =
            held.map(|(memory, remote)| peer.endpoint.send(memory, Device::Cuda(remote), &held_up.stream));
        // Freeing memory would wait for the stream that is held up.
        let mut kept = Vec::new();
        for number in 10..20 {
            let sent = peer.endpoint.send(gpu.memory(&data(number, BYTES)), Device::Cuda(0), &gpu.stream);
            kept.push(sent.wait(LONG).unwrap());
        }
        assert!(held.iter().all(|sent| !sent.poll().unwrap()));
        go.set(1);
        held.into_iter().for_each(|sent| drop(sent.wait(LONG).unwrap()));
    } else {
        let gpus = [0, 1, 2, 3].map(Gpu::new);
        let receive = |gpu: &Gpu| peer.endpoint.recv(gpu.empty(BYTES), Device::Cuda(0), &gpu.stream);
        let held = [1, 2, 3].map(|at| receive(&gpus[at]));
        for number in 10..20 {
            let (target, _) = receive(&gpus[0]).wait(LONG).unwrap();
            gpus[0].assert_holds(target.address(), number, BYTES);
        }
        for (held, at) in held.into_iter().zip(1..) {
            let (target, _) = held.wait(LONG).unwrap();
            gpus[at].assert_holds(target.address(), at as u64, BYTES);
        }
    }
    peer.end();
}

#[test]
fn sends_whose_stream_is_held_up_do_not_hold_up_others() {
    play("not ready");
}

/// Calls of the driver for one message that fits a slot, the caller's and the progress thread's.
fn calls(part: Part) {
    const ROUNDS: u32 = 50;
    let peer = Peer::meet(part, &channels(), &[Device::Cuda(0), Device::Cuda(1)]);
    let (gpu, rank) = (Gpu::new(peer.part.rank as u32), peer.part.rank);
    let remote = Device::Cuda(1 - rank as u32);
    let mut memory = gpu.memory(&data(7, SLOT));
    let mut transfer = |rounds: u32| {
        let before = all_driver_calls();
        for _ in 0..rounds {
            let given = std::mem::replace(&mut memory, gpu.empty(1));
            let given = match rank {
                0 => peer.endpoint.send(given, remote, &gpu.stream).wait(LONG),
                _ => peer.endpoint.recv(given, remote, &gpu.stream).wait(LONG),
            };
            memory = given.unwrap().0;
        }
        all_driver_calls() - before
    };
    transfer(3);
    peer.meet_at("warm");
    // What the test itself asks of the driver in a round: allocating and freeing a byte.
    let before = all_driver_calls();
    drop(gpu.empty(1));
    let own = all_driver_calls() - before;
    // The driver is asked besides whenever something has stood still for long, as it may for any of them on a busy machine.
    let made = (0..ROUNDS).map(|_| transfer(1) - own).min().unwrap_or_default();
    peer.part.say(&format!("{made} calls for a message"));
    assert!((3..=4).contains(&made), "{made} calls for a message");
    peer.end();
}

#[test]
fn a_message_that_fits_a_slot_takes_four_calls_of_the_driver_on_either_side() {
    play("calls");
}

/// Rank 1 sees one device, which it calls 0, and rank 0 sees all or, in the part "refused", another one.
fn hidden(part: Part) {
    let devices = if part.rank == 0 { vec![Device::Cuda(0), Device::Cuda(5)] } else { vec![Device::Cuda(0)] };
    let peer = Peer::meet(part, &channels(), &devices);
    let uuid = |ordinal: u32| VisibleDevice::get(ordinal).unwrap().identity().unwrap().uuid;
    if peer.part.rank == 0 {
        assert_eq!(peer.part.hear("uuid"), uuid(5));
        for (number, local) in [(0, 0), (1, 5)] {
            let gpu = Gpu::new(local);
            assert_eq!(
                peer.endpoint.channel(Pair { local: gpu.device(), remote: Device::Cuda(0) }).unwrap(),
                "ipc"
            );
            let sent = peer.endpoint.send(gpu.memory(&data(number, 9999)), Device::Cuda(0), &gpu.stream);
            sent.wait(LONG).unwrap();
        }
    } else {
        peer.part.tell("uuid", &uuid(0));
        let gpu = Gpu::new(0);
        for (number, remote) in [(0, 0), (1, 5)] {
            let received = peer.endpoint.recv(gpu.empty(9999), Device::Cuda(remote), &gpu.stream);
            gpu.assert_holds(received.wait(LONG).unwrap().0.address(), number, 9999);
        }
    }
    peer.end();
}

#[test]
fn devices_are_known_by_their_uuids_where_one_process_sees_fewer() {
    let stage = two_ranks();
    let mut sees_one = stage.command_as(1, "hidden");
    sees_one.env("CUDA_VISIBLE_DEVICES", "5");
    let ranks = [stage.start(0, "hidden"), sees_one.spawn().unwrap()];
    ended_well("hidden", ranks);
}

/// No channel serves the pair, for the reason that the other rank's environment is made for.
fn refused(part: Part) {
    let expected = std::env::var("EXPECTED").unwrap();
    let peer = Peer::meet(part, &channels(), &[Device::Cuda(0)]);
    let pair = Pair { local: Device::Cuda(0), remote: Device::Cuda(0) };
    let reasons = match peer.endpoint.channel(pair) {
        Err(Error::NoChannel { reasons, .. }) => reasons,
        other => panic!("{other:?}"),
    };
    assert!(reasons.contains("ipc: ") && reasons.contains(&expected), "{reasons}");
    let gpu = Gpu::new(0);
    let failed = peer.endpoint.send(gpu.memory(&[1]), Device::Cuda(0), &gpu.stream).wait(LONG).unwrap_err();
    assert!(matches!(failed.error, Error::NoChannel { .. }), "{failed}");
    peer.meet_at("the end");
    peer.end();
}

#[test]
fn what_cannot_be_is_refused_with_the_reason_on_both_sides() {
    let play = |expected: &str, environment: [&[(&str, &str)]; 2]| {
        let stage = two_ranks();
        let ranks = [0, 1].map(|rank| {
            let mut command = stage.command_as(rank, "refused");
            command.env("EXPECTED", expected).envs(environment[rank].iter().copied());
            command.spawn().unwrap()
        });
        ended_well(expected, ranks);
    };
    play("two hosts", [&[("MESHREDUCE_HOST_ID", "here")], &[("MESHREDUCE_HOST_ID", "there")]]);
    let devices: [&[(&str, &str)]; 2] = [&[("CUDA_VISIBLE_DEVICES", "2")], &[("CUDA_VISIBLE_DEVICES", "3")]];
    play("neither process sees both", devices);
    // GPUs of two halves of this machine have no access to each other.
    let far = [("MESHREDUCE_NODE", "dgx-1v"), ("CUDA_VISIBLE_DEVICES", "0,5")];
    let near = [("MESHREDUCE_NODE", "dgx-1v"), ("CUDA_VISIBLE_DEVICES", "5,0")];
    play("cannot access each other's memory", [&far, &near]);
}

#[test]
fn without_a_driver_the_kind_is_not_viable_and_says_why() {
    if std::env::var_os("ALONE").is_some() {
        let report = Context::new(&channels(), &[]).unwrap().report();
        let reason = report.rows[0].reason.clone().unwrap();
        assert!(reason.contains("no CUDA driver"), "{reason}");
        return;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", here!("without_a_driver_the_kind_is_not_viable_and_says_why")]);
    command.env("ALONE", "").env("MESHREDUCE_DRIVER", "/nowhere/libcuda.so.1");
    assert!(command.status().unwrap().success());
}

#[test]
fn the_bytes_of_data_differ() {
    let all: Vec<u64> = (0..64)
        .map(|number| (0..8).fold(0, |sum, index| sum << 8 | u64::from(byte(number, index))))
        .collect();
    assert!((0..64).all(|one| !all[..one].contains(&all[one])));
}
