//! The channel `xth`, on an emulated node and on host memory.
#![forbid(unsafe_code)]

use meshreduce::store::MemoryStore;
use meshreduce_channels::{Context, Device, Registry, Xth};
use meshreduce_checks::channels::Cast;
use meshreduce_checks::in_process::{all_driver_calls, alone, open_driver};
use meshreduce_tests::channel_peer::{Gpu, LONG};
use meshreduce_tests::channel_scenarios;

channel_scenarios!(reset, Cast::new("xth", "cuda:0", "cuda:1").on_node("hgx-h100"); the_context_is_reset, the_context_is_renewed, a_kernel_faults, a_kernel_faults_before_a_receive, refused_streams_fail_their_transfer_alone);
channel_scenarios!(two_devices, Cast::new("xth", "cuda:0", "cuda:1").on_node("hgx-h100"); all and many);
channel_scenarios!(devices_that_are_not_the_first, Cast::new("xth", "cuda:6", "cuda:3").on_node("hgx-h100"));
channel_scenarios!(one_device, Cast::new("xth", "cuda:2", "cuda:2").on_node("hgx-h100"));
channel_scenarios!(over_tcp, Cast::new("xth", "cuda:0", "cuda:1").on_node("hgx-h100").over("tcp"));
channel_scenarios!(long, Cast::new("xth", "cuda:0", "cuda:1").on_large_devices(); long);
channel_scenarios!(host_memory, Cast::new("xth", "cpu", "cpu"); all and many);

/// Both callers' streams write a word; the receiver waits for both, if they are not there yet, copies and writes another. (No other test
/// of this process calls the driver.)
#[test]
fn a_message_takes_one_call_of_the_driver_to_send_and_at_most_four_to_receive() {
    const ROUNDS: u64 = 50;
    // Calls of the whole process are counted.
    let _alone = alone();
    open_driver();
    let mut registry = Registry::empty();
    registry.register(Xth).unwrap();
    let store = MemoryStore::default();
    let [a, b] = [0, 1].map(|ordinal| Context::new(&registry, &[Device::Cuda(ordinal)]).unwrap());
    let [sends, receives] = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| b.connect(&store, "sides", LONG).unwrap());
        [a.listen(&store, "sides", LONG).unwrap(), connecting.join().unwrap()]
    });
    let (from, to) = (Gpu::new(0), Gpu::new(1));
    let (mut source, mut target) = (from.memory(&[7; 1 << 20]), to.empty(1 << 20));
    // A lane that stands still for long asks the driver, so the least counts.
    let mut least = u64::MAX;
    for _ in 0..ROUNDS {
        let before = all_driver_calls();
        let sent = sends.send(source, to.device(), &from.stream);
        let received = receives.recv(target, from.device(), &to.stream);
        target = received.wait(LONG).unwrap().0;
        source = sent.wait(LONG).unwrap().0;
        least = least.min(all_driver_calls() - before);
    }
    assert!((4..=5).contains(&least), "{least} calls of the driver for a message");
    assert_eq!(to.read(target.address(), 1 << 20), vec![7; 1 << 20]);
}
