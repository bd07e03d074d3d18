//! The scenarios of all channels, over RDMA on emulated nodes.
#![forbid(unsafe_code)]

use meshreduce_checks::channels::Cast;
use meshreduce_checks::gdr::node::TWO;
use meshreduce_tests::channel_scenarios;

channel_scenarios!(
    devices_of_two_processes,
    Cast::new("gdr", "cuda:0", "cuda:1").on_adapters_of(TWO).in_processes();
    all and many
);
channel_scenarios!(
    devices_of_two_nodes,
    Cast::new("gdr", "cuda:0", "cuda:0").on_two_nodes(TWO, TWO).over("tcp")
);
channel_scenarios!(
    devices_that_are_not_the_first,
    Cast::new("gdr", "cuda:6", "cuda:3").on_adapters_of("dgx-a100").in_processes()
);
channel_scenarios!(
    from_the_host_to_a_device,
    Cast::new("gdr", "cpu", "cuda:1").on_adapters_of(TWO).in_processes()
);
channel_scenarios!(
    host_memory_of_two_nodes,
    Cast::new("gdr", "cpu", "cpu").on_two_nodes(TWO, TWO).over("tcp");
    all and many
);
channel_scenarios!(
    reset_in_two_processes,
    Cast::new("gdr", "cuda:0", "cuda:1").on_adapters_of(TWO).in_processes();
    the_context_is_reset,
    the_context_is_renewed,
    a_kernel_faults,
    a_kernel_faults_before_a_receive,
    refused_streams_fail_their_transfer_alone
);
channel_scenarios!(
    reset_while_the_host_sends,
    Cast::new("gdr", "cpu", "cuda:1").on_adapters_of(TWO).in_processes();
    the_context_is_reset,
    the_context_is_renewed,
    a_kernel_faults
);
channel_scenarios!(
    streams_of_two_processes,
    Cast::new("gdr", "cuda:0", "cuda:1").on_adapters_of(TWO).in_processes();
    streams_that_stand_still
);
