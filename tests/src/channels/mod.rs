//! A test of every scenario of channels ([`meshreduce_checks::channels`]), and parties that are killed.

pub mod kills;

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
    // All, and those that take long: once or twice for each kind of channel, as what they show depends on the kind.
    ($module:ident, $cast:expr; all and many) => {
        $crate::channel_scenarios!($module, $cast; all with ten_thousand_transfers, many_endpoints);
    };
    ($module:ident, $cast:expr) => {
        $crate::channel_scenarios!($module, $cast; all with);
    };
    ($module:ident, $cast:expr; all with $($many:ident),*) => {
        $crate::channel_scenarios!(
            $module, $cast;
            $($many,)*
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
            lengths_that_differ,
            streams_are_waited_for_and_wait,
            memory_freed_and_allocated_again,
            dropped_transfers,
            dropped_at_random,
            threads_share_an_endpoint,
            refused_copies_fail_their_transfer_alone,
            closed_during_transfers,
            link_cut,
        );
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
}
