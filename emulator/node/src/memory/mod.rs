//! Device memory and page-locked host memory of one process, as the devices of the node see it.
//!
//! Every device allocation is a memfd of its own. Other processes reach it through the owner's descriptor
//! (`/proc/<pid>/fd/<n>`), so nothing has a name that could outlive its owner. Device addresses come from ranges
//! that are reserved without access: a host access to one faults, as on a real node, and no host pointer can be
//! mistaken for one. Page-locked host memory has the same address on the devices as on the host.
//!
//! An allocation begins as far into the first page of its memfd as its device address is into a page, so that whole
//! pages of device addresses are whole pages of the file, as a dma-buf needs them.

mod allocation;
mod error;
mod ipc;
mod mapping;
mod marks;
mod space;
mod view;

pub use allocation::{ALIGNMENT, Allocation, Kind};
pub use error::MemoryError;
pub use ipc::{Exported, IpcHandle};
pub(crate) use mapping::PAGE;
pub use marks::SharedMarks;
pub use space::Memory;
pub use view::DeviceView;

#[cfg(test)]
mod tests;
