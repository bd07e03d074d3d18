//! Registered memory: written by the other side directly, and counted there.

mod copies;
mod descriptor;
mod pages;
mod registered;
pub(crate) mod share;
mod withdrawn;
mod write;

pub(crate) use copies::Copies;
pub use descriptor::{CounterDescriptor, RegionDescriptor};
pub use pages::Pages;
pub use registered::{Closing, Region};
pub(crate) use withdrawn::Withdrawn;
