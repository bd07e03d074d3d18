//! One device's view of the table.

use std::sync::{Arc, atomic::Ordering};

use super::allocation::{Allocation, Kind};
use super::space::{Memory, Table};
use crate::exec::{AddressSpace, Region};

/// What the kernels of one device may touch: its own memory, that of peers it was given access to, what it opened
/// of other processes, and page-locked host memory.
pub struct DeviceView {
    memory: Arc<Memory>,
    device: usize,
}

impl Memory {
    /// The address space of a device.
    pub fn view(self: &Arc<Self>, device: usize) -> DeviceView {
        DeviceView { memory: Arc::clone(self), device }
    }
}

impl DeviceView {
    fn may_touch(&self, table: &Table, allocation: &Allocation) -> bool {
        match allocation.kind() {
            Kind::Device { device } => device == self.device || table.peers[self.device][device],
            Kind::Imported { device, .. } => device == self.device,
            Kind::Host | Kind::Registered => true,
        }
    }

    fn describe(&self, table: &Table, address: u64) -> String {
        let before = table.live.range(..=address).next_back().map(|(_, allocation)| allocation);
        if let Some(allocation) = before
            && allocation.contains(address, 1)
        {
            let (base, len) = (allocation.base(), allocation.len());
            return match allocation.kind() {
                Kind::Imported { device, pid, .. } => format!(
                    "inside a {len}-byte allocation of process {pid} at {base:#x} that device {device} opened, not device {}",
                    self.device
                ),
                _ => format!(
                    "inside a {len}-byte allocation of device {} at {base:#x}, to which device {} was not given peer access",
                    allocation.device().unwrap_or_default(),
                    self.device
                ),
            };
        }
        let freed =
            table.freed.iter().rev().find(|freed| address >= freed.base && address - freed.base < freed.len);
        if let Some(freed) = freed {
            return format!(
                "{} bytes into a {}-byte allocation at {:#x} that was freed by {}",
                address - freed.base,
                freed.len,
                freed.base,
                freed.how
            );
        }
        let past = before.map(|allocation| {
            let past = address - (allocation.base() + allocation.len());
            let text = format!(
                "{past} bytes past the end of a {}-byte allocation at {:#x}",
                allocation.len(),
                allocation.base()
            );
            (past, text)
        });
        let ahead = table.live.range(address..).next().map(|(_, allocation)| {
            let ahead = allocation.base() - address;
            let text = format!(
                "{ahead} bytes before a {}-byte allocation at {:#x}",
                allocation.len(),
                allocation.base()
            );
            (ahead, text)
        });
        match past.into_iter().chain(ahead).min_by_key(|(distance, _)| *distance) {
            Some((_, text)) => text,
            None => "nothing is allocated".to_owned(),
        }
    }
}

impl AddressSpace for DeviceView {
    fn version(&self) -> u64 {
        self.memory.version.load(Ordering::Acquire)
    }

    fn find(&self, address: u64) -> Result<Region, String> {
        let table = self.memory.read();
        if let Some((_, allocation)) = table.live.range(..=address).next_back()
            && allocation.contains(address, 1)
            && self.may_touch(&table, allocation)
        {
            return Ok(allocation.region());
        }
        Err(self.describe(&table, address))
    }
}
