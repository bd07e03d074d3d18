//! The staging ring of channel `ipc` between three processes on an emulated node: one that is stopped keeps what it has, and holds up
//! nobody else.

use meshreduce_tests::here;
use std::time::Duration;

use meshreduce_channels::{Context, Error, Ipc, Options, Registry};
use meshreduce_device::Device;
use meshreduce_tests::channel_peer::{Gpu, LONG, data};
use meshreduce_tests::rank_process::{Part, Stage, heard};
use rustix::process::{Pid, Signal, kill_process};

const SLOT: u64 = 4096;
const SILENCE: Duration = Duration::from_secs(2);
const GPU: Device = Device::Cuda(0);

/// Channel ipc alone, with a ring of one slot: whoever holds it stops everybody.
fn context(rank: usize) -> Context {
    let mut registry = Registry::empty();
    registry.register(Ipc::default().slots(1).slot_bytes(SLOT)).unwrap();
    let options = Options { name: Some(format!("rank {rank}")), silence: SILENCE, ..Options::default() };
    Context::with_options(&registry, &[GPU], options).unwrap()
}

/// Not a test of its own: what the test below runs as processes.
#[test]
fn rank() {
    let Some(part) = Part::of_this_process() else { return };
    match part.rank {
        0 => send(&part),
        1 => stop(&part),
        _ => receive(&part),
    }
}

/// More chunks than a process receives before it stops itself.
const LARGE: u64 = 64 << 20;
/// Sends to the third process, after the first.
const SENDS: u64 = 5;

/// Sends to both others from one device.
fn send(part: &Part) {
    let (context, gpu) = (context(0), Gpu::new(0));
    let stopped = context.listen(&*part.store, "stopped", LONG).unwrap();
    let other = context.listen(&*part.store, "other", LONG).unwrap();
    // Its channel is there, and uses the ring.
    other.send(gpu.memory(&data(0, 100)), GPU, &gpu.stream).wait(LONG).unwrap();
    let large = stopped.send(gpu.empty(LARGE), GPU, &gpu.stream).wait(LONG).unwrap_err();
    assert!(matches!(large.error, Error::PeerLost { .. }), "{large}");
    for number in 1..=SENDS {
        let memory = gpu.memory(&data(number, 3 * SLOT + number));
        other.send(memory, GPU, &gpu.stream).wait(LONG).unwrap();
    }
    other.close();
    other.join(LONG).unwrap();
    part.say("sent");
    // The stopped process keeps what it has for as long as it lives.
    part.store.set("sent", b"").unwrap();
    context.close();
    stopped.join(LONG).unwrap();
}

/// Stops itself while a slot is on its way to it.
fn stop(part: &Part) {
    let (context, gpu) = (context(1), Gpu::new(0));
    let endpoint = context.connect(&*part.store, "stopped", LONG).unwrap();
    let received = endpoint.recv(gpu.empty(LARGE), GPU, &gpu.stream);
    while received.moved() == 0 {
        std::thread::yield_now();
    }
    kill_process(Pid::from_raw(std::process::id() as i32).unwrap(), Signal::STOP).unwrap();
    // The signal may reach another thread first: this one must not go on, and drop the receive, meanwhile.
    loop {
        std::thread::park();
    }
}

fn receive(part: &Part) {
    let (context, gpu) = (context(2), Gpu::new(0));
    let endpoint = context.connect(&*part.store, "other", LONG).unwrap();
    for number in 0..=SENDS {
        let bytes = if number == 0 { 100 } else { 3 * SLOT + number };
        let (memory, _) = endpoint.recv(gpu.empty(bytes), GPU, &gpu.stream).wait(LONG).unwrap();
        gpu.assert_holds(memory.address(), number, bytes);
    }
    part.say("received");
}

#[test]
fn a_stopped_process_that_holds_all_slots_does_not_stop_sends_to_others_for_ever() {
    let stage = Stage::new(here!("rank"), 3);
    let [sender, mut stopped, receiver] = [0, 1, 2].map(|rank| stage.start(rank, "rings"));
    stage.wait_for_key("sent");
    stopped.kill().unwrap();
    stopped.wait().unwrap();
    for (child, last) in [(sender, "sent"), (receiver, "received")] {
        let (said, well) = heard(child);
        assert!(well && said.last().is_some_and(|said| said == last), "{said:?}");
    }
}
