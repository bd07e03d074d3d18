//! The channel `xth`, on an emulated node and on host memory.
#![forbid(unsafe_code)]

use meshreduce_tests::channel_scenarios;
use meshreduce_tests::channels::Cast;

channel_scenarios!(two_devices, Cast::new("xth", "cuda:0", "cuda:1").on_node("hgx-h100"));
channel_scenarios!(devices_that_are_not_the_first, Cast::new("xth", "cuda:6", "cuda:3").on_node("hgx-h100"));
channel_scenarios!(one_device, Cast::new("xth", "cuda:2", "cuda:2").on_node("hgx-h100"));
channel_scenarios!(over_tcp, Cast::new("xth", "cuda:0", "cuda:1").on_node("hgx-h100").over("tcp"));
channel_scenarios!(host_memory, Cast::new("xth", "cpu", "cpu"));
