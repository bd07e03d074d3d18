//! The channel `basic`: on host memory, and on an emulated node.
#![forbid(unsafe_code)]

use meshreduce_tests::channel_scenarios;
use meshreduce_tests::channels::Cast;

channel_scenarios!(host_memory_of_two_processes, Cast::new("basic", "cpu", "cpu").in_processes());
channel_scenarios!(host_memory_over_tcp, Cast::new("basic", "cpu", "cpu").in_processes().over("tcp"));
channel_scenarios!(
    devices_of_two_processes,
    Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes()
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
