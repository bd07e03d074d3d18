//! What is counted, for tests.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            #[allow(non_upper_case_globals, reason = "the name is what tests ask for")]
            pub(crate) static $name: AtomicU64 = AtomicU64::new(0);
        )*

        /// The count of this name, if there is one.
        pub(crate) fn get(name: &str) -> Option<u64> {
            match name {
                $(stringify!($name) => Some($name.load(Relaxed)),)*
                _ => None,
            }
        }
    };
}

counts! {
    /// Registrations made.
    reg_mr
    /// Registrations refused.
    reg_mr_failed
    /// Registrations that live.
    live_mr
    /// Bytes of registrations that live, in whole pages.
    pinned_bytes
    /// Work requests posted to send queues.
    post_send
    /// Work requests posted to receive queues.
    post_recv
    /// Completions that programs have polled.
    completions
    /// Of those, with an error.
    failed_completions
    /// Queue pairs that live.
    live_qp
    /// Completion queues that live.
    live_cq
    /// Bytes that arrived, as messages or answers to reads.
    bytes_received
    /// Messages sent again.
    retries
    /// Connections to other processes that live.
    connections
    /// Times that device memory was flushed, by the driver or by hand.
    flushes
    /// Bytes that have been received for devices and are not seen yet.
    unseen_bytes
}

pub(crate) fn add(count: &AtomicU64, value: u64) {
    count.fetch_add(value, Relaxed);
}

pub(crate) fn sub(count: &AtomicU64, value: u64) {
    count.fetch_sub(value, Relaxed);
}
