//! The channel `basic`: on host memory, and on an emulated node.
#![forbid(unsafe_code)]

use meshreduce::store::MemoryStore;
use meshreduce_channels::{Basic, Context, Device, Registry};
use meshreduce_checks::channels::Cast;
use meshreduce_checks::in_process::{all_driver_calls, alone, open_driver};
use meshreduce_tests::channel_peer::{Gpu, LONG};
use meshreduce_tests::channel_scenarios;

channel_scenarios!(
    reset,
    Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes();
    the_context_is_reset,
    the_context_is_renewed,
    a_kernel_faults,
    a_kernel_faults_before_a_receive,
    refused_streams_fail_their_transfer_alone
);
channel_scenarios!(host_memory_of_two_processes, Cast::new("basic", "cpu", "cpu").in_processes());
channel_scenarios!(
    host_memory_over_tcp,
    Cast::new("basic", "cpu", "cpu").in_processes().over("tcp");
    all and many
);
channel_scenarios!(
    devices_of_two_processes,
    Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes();
    all and many
);
channel_scenarios!(
    devices_over_tcp,
    Cast::new("basic", "cuda:2", "cuda:5").on_node("hgx-h100").in_processes().over("tcp")
);
channel_scenarios!(long, Cast::new("basic", "cuda:0", "cuda:1").on_large_devices().in_processes(); long);
channel_scenarios!(long_over_tcp, Cast::new("basic", "cpu", "cpu").in_processes().over("tcp"); long);
channel_scenarios!(devices_of_one_process, Cast::new("basic", "cuda:3", "cuda:3").on_node("hgx-h100"));
channel_scenarios!(
    from_the_host_to_a_device,
    Cast::new("basic", "cpu", "cuda:7").on_node("hgx-h100").in_processes()
);
channel_scenarios!(
    from_a_device_to_the_host_over_tcp,
    Cast::new("basic", "cuda:7", "cpu").on_node("hgx-h100").in_processes().over("tcp")
);
channel_scenarios!(
    streams_of_two_processes,
    Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes();
    streams_that_stand_still
);
channel_scenarios!(
    streams_over_tcp,
    Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes().over("tcp");
    streams_that_stand_still
);

/// The sender records its stream's event, has another stream wait for it and write a word, copies and writes a word; the receiver's
/// stream writes a word, and it copies and writes another. (No other test of this process calls the driver.)
#[test]
fn a_message_takes_five_calls_of_the_driver_to_send_and_three_to_receive() {
    const ROUNDS: u64 = 50;
    // Calls of the whole process are counted.
    let _alone = alone();
    open_driver();
    let mut registry = Registry::empty();
    registry.register(Basic::default()).unwrap();
    let store = MemoryStore::default();
    let [a, b] = [0, 1].map(|ordinal| Context::new(&registry, &[Device::Cuda(ordinal)]).unwrap());
    let [sends, receives] = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| b.connect(&store, "sides", LONG).unwrap());
        [a.listen(&store, "sides", LONG).unwrap(), connecting.join().unwrap()]
    });
    let (from, to) = (Gpu::new(0), Gpu::new(1));
    let (mut source, mut target) = (from.memory(&[7; 5000]), to.empty(5000));
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
    assert_eq!(least, 8, "calls of the driver for a message");
    assert_eq!(to.read(target.address(), 5000), vec![7; 5000]);
}
