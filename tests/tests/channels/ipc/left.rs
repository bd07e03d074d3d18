//! What a process has open of channel `ipc`, and what is left of it behind an end.

use meshreduce_channels::{Context, Error};
use meshreduce_device::Device;
use meshreduce_tests::channel_peer::{Gpu, LONG, Peer, data, descriptors, eventually};
use meshreduce_tests::rank_process::Part;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{SLOT, channels, play};

pub(super) fn left_behind(part: Part) {
    let gpu = Gpu::new(0);
    let round = |name: &str, part: &Part| {
        let context = Context::new(&channels(), &[Device::Cuda(0)]).unwrap();
        let endpoint = Peer::endpoint(part, &context, name);
        let received = endpoint.recv(gpu.empty(50_000), Device::Cuda(0), &gpu.stream);
        endpoint
            .send(gpu.memory(&data(part.rank as u64, 50_000)), Device::Cuda(0), &gpu.stream)
            .wait(LONG)
            .unwrap();
        let memory = received.wait(LONG).unwrap().0;
        gpu.assert_holds(memory.address(), 1 - part.rank as u64, 50_000);
        if part.rank == 0 {
            endpoint.close();
        }
        endpoint.join(LONG).unwrap();
        context.close();
        context.join(LONG).unwrap();
    };
    let before = descriptors();
    for name in ["first", "second", "third", "fourth"] {
        round(name, &part);
    }
    // Memory of the other process is closed by a thread of its own, and contexts end on theirs.
    eventually("all is closed", || descriptors() == before);
}

#[test]
fn nothing_is_left_open_behind_an_end() {
    play("left behind");
}

/// Words of a staging ring that this process has open, its own.
pub(super) fn rings() -> usize {
    descriptors().iter().filter(|target| target.contains("meshreduce-ipc-words")).count()
}

/// What this process has open, and which memory of emulated devices, its own or another process's, it has mapped.
pub(super) fn held() -> (Vec<String>, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let names = ["meshreduce-device-memory", "meshreduce-ipc-words"];
    (descriptors(), maps.lines().filter(|line| names.iter().any(|name| line.contains(name))).count())
}

/// Rank 1 has no descriptor left when it is to open the ring of rank 0: both are told so, nothing is leaked, and later there are
/// channels again.
pub(super) fn no_descriptors(part: Part) {
    let (rank, gpu) = (part.rank as u32, Gpu::new(part.rank as u32));
    let (own, remote) = (u64::from(rank), Device::Cuda(1 - rank));
    let before = held();
    let Peer { part, context, endpoint } = Peer::meet(part, &channels(), &[gpu.device()]);
    // The ring of rank 1 is open, so that a word over it needs no descriptor.
    let from_1 = |number: u64| match rank {
        1 => drop(endpoint.send(gpu.memory(&data(number, 10)), remote, None).wait(LONG).unwrap()),
        _ => drop(endpoint.recv(gpu.empty(10), remote, None).wait(LONG).unwrap()),
    };
    from_1(1);
    if rank == 1 {
        let memory = gpu.empty(SLOT);
        let word = gpu.memory(&data(2, 10));
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
        let sent = endpoint.send(word, remote, None).wait(LONG);
        let received = endpoint.recv(memory, remote, None).wait(LONG);
        setrlimit(Resource::Nofile, limit).unwrap();
        sent.unwrap();
        let failed = received.unwrap_err();
        let text = failed.error.to_string();
        assert!(matches!(failed.error, Error::System { .. }) && text.contains("ulimit -n"), "{text}");
        assert!(failed.into_memory().is_some());
    } else {
        from_1(2);
        let failed = endpoint.send(gpu.memory(&data(3, SLOT)), remote, None).wait(LONG).unwrap_err();
        let text = failed.error.to_string();
        assert!(matches!(failed.error, Error::Remote { .. }) && text.contains("ulimit -n"), "{text}");
        assert!(failed.into_memory().is_some());
    }
    let again = Peer::endpoint(&part, &context, "again");
    let received = again.recv(gpu.empty(3 * SLOT), remote, None);
    let sent = again.send(gpu.memory(&data(own, 3 * SLOT)), remote, None);
    let (memory, _) = received.wait(LONG).unwrap();
    gpu.assert_holds(memory.address(), 1 - own, 3 * SLOT);
    sent.wait(LONG).unwrap();
    drop(memory);
    part.meet_at("the end");
    context.close();
    context.join(LONG).unwrap();
    drop((endpoint, again, context));
    eventually(&format!("nothing is left of {before:?} and more"), || held() == before);
}

#[test]
fn without_descriptors_a_ring_is_not_opened_and_both_sides_are_told_why() {
    play("no descriptors");
}
