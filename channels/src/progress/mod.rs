//! The thread that makes everything of a context go on: links, channels, and the ends of transfers.
//!
//! It spins for a moment after something has moved, then gives its core to others, then sleeps: shortly while a channel waits for
//! what only looking tells of, else until a link, or whoever starts a transfer, wakes it.

mod command;
mod connection;
mod leaving;
mod missed;
mod pulse;
mod run;
mod slot;
#[cfg(test)]
mod testing;
mod waker;

pub(crate) use command::{Command, Latch, Site};
pub(crate) use connection::Connection;
pub(crate) use missed::Missed;
use pulse::Pulse;
pub(crate) use run::start;
pub(crate) use slot::unharmed;
pub use waker::Waker;
