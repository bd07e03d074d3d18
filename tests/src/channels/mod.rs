//! Channels between two parties: one suite of scenarios for all kinds, all devices, and all ways to meet.
//!
//! A [`Cast`] says who plays: which channels, which devices, whether both parties are of one process, and on which node. It starts
//! the program `channel-party`, which makes a [`Party`] of each side and runs a scenario of [`scenarios::ALL`] on it. So the same
//! scenarios run on host memory, on an emulated node, in a virtual machine and on a machine with GPUs:
//!
//! ```no_run
//! use meshreduce_tests::channels::Cast;
//!
//! let cast = Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes();
//! cast.play("both_directions_at_once");
//! ```
//!
//! [`crate::channel_scenarios!`] makes a test of each scenario.

pub mod cast;
pub mod kills;
pub mod left;
pub mod memory;
pub mod party;
pub mod scenarios;

pub use cast::Cast;
pub use party::{Party, Role};

/// Makes a test of every scenario that is named, for a cast.
///
/// ```ignore
/// channel_scenarios!(ipc, Cast::new("ipc", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes(); descriptors, one_way);
/// ```
#[macro_export]
macro_rules! channel_scenarios {
    // A GiB each way, when it is asked for: `-- --ignored a_gibibyte`.
    ($module:ident, $cast:expr; long) => {
        mod $module {
            use super::*;

            #[test]
            #[ignore = "the long form: several GiB of memory"]
            fn a_gibibyte() {
                $cast.play("a_gibibyte");
            }
        }
    };
    ($module:ident, $cast:expr; $($scenario:ident),+ $(,)?) => {
        mod $module {
            use super::*;

            $(#[test]
            fn $scenario() {
                $cast.play(stringify!($scenario));
            })+
        }
    };
    ($module:ident, $cast:expr) => {
        $crate::channel_scenarios!(
            $module, $cast;
            descriptors,
            one_way_and_back,
            both_directions_at_once,
            many_tensors,
            empty_and_not,
            receiver_first,
            sender_first,
            offsets_in_allocations,
            across_devices_and_back,
            only_the_devices_that_are_served_are_touched,
            lengths_from_a_byte_to_many,
            ten_thousand_transfers,
            lengths_that_differ,
            streams_are_waited_for_and_wait,
            memory_freed_and_allocated_again,
            dropped_transfers,
            dropped_at_random,
            threads_share_an_endpoint,
            many_endpoints,
            refused_copies_fail_their_transfer_alone,
            closed_during_transfers,
            link_cut,
        );
    };
}
