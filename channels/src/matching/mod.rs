//! How the k-th send of a channel finds the k-th receive, for every kind of channel.
//!
//! The sender announces ([`Notice::Announced`]: number, bytes, and what its kind adds). [`Receives`] holds whichever of the two
//! comes first, an announcement or a receive, and pairs them in order. A receive that was dropped, or has another length, is
//! answered by [`Notice::Refused`]; a send that was dropped is taken back by [`Notice::Withdrawn`], and is over when it has been
//! refused or has been done all the same. [`Sends`] holds what is announced until then. So one transfer that fails leaves its
//! channel in order.
#![forbid(unsafe_code)]

mod notice;
mod receives;
mod sends;
#[cfg(test)]
mod tests;

pub use notice::{FIRST_OWN_TAG, Notice, Refusal};
pub use receives::{Met, Paired, Receives};
pub use sends::{Sending, Sends};
