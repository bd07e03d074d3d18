//! The thread that makes everything of a context go on: links, channels, and the ends of transfers.
//!
//! It spins for a moment after something has moved, then gives its core to others, then sleeps: shortly while a channel waits for
//! what only looking tells of, else until a link, or whoever starts a transfer, wakes it.

mod command;
mod connection;
mod heartbeat;
mod leaving;
mod missed;
mod run;
mod slot;
#[cfg(test)]
mod testing;
mod waker;

pub(crate) use command::{Command, Latch, Site};
pub(crate) use connection::Connection;
use heartbeat::Heartbeat;
pub(crate) use missed::Missed;
pub(crate) use run::start;
pub(crate) use slot::unharmed;
pub use waker::Waker;
