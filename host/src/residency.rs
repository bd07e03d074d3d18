//! How much of each device the communicators of this process may fill at once.
//!
//! Blocks wait for blocks of other ranks, so all blocks that may run at the same time must be resident at the same time
//! (PTX ISA: nothing is promised to a block that waits for one that is not). A communicator's share is agreed at the
//! rendezvous and never depends on what else this process has; whether it still fits beside the others is counted here.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks in use by device, by its UUID.
static IN_USE: Mutex<BTreeMap<[u8; 16], u32>> = Mutex::new(BTreeMap::new());

fn in_use() -> MutexGuard<'static, BTreeMap<[u8; 16], u32>> {
    // A count is whole whatever panicked elsewhere.
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blocks of a device that one communicator of this process may fill; until dropped.
#[derive(Debug)]
pub(crate) struct Residency {
    device: [u8; 16],
    blocks: u32,
    /// The process whose device it is of. Its forked child has a copy, and perhaps the lock as another thread held it.
    process: u32,
}

impl Residency {
    /// Takes `blocks` of the `resident` blocks that fit the device at once; if they are not there, says how many others of
    /// this process have.
    pub(crate) fn take(device: [u8; 16], blocks: u32, resident: u32) -> Result<Self, u32> {
        let mut all = in_use();
        let taken = all.entry(device).or_default();
        match taken.checked_add(blocks) {
            Some(sum) if sum <= resident => {
                *taken = sum;
                Ok(Self { device, blocks, process: std::process::id() })
            }
            _ => Err(*taken),
        }
    }

    /// Gives back what is beyond `blocks`.
    pub(crate) fn shrink(&mut self, blocks: u32) {
        let surplus = self.blocks.saturating_sub(blocks);
        self.blocks -= surplus;
        give_back(self.device, surplus);
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        give_back(self.device, self.blocks);
    }
}

fn give_back(device: [u8; 16], blocks: u32) {
    if let Some(taken) = in_use().get_mut(&device) {
        *taken = taken.saturating_sub(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let device = [200; 16];
        let mut first = Residency::take(device, 60, 100).unwrap();
        assert_eq!(Residency::take(device, 41, 100).unwrap_err(), 60);
        first.shrink(40);
        let second = Residency::take(device, 60, 100).unwrap();
        assert_eq!(Residency::take(device, 1, 100).unwrap_err(), 100);
        drop(first);
        assert_eq!(Residency::take(device, 41, 100).unwrap_err(), 60);
        drop(second);
        drop(Residency::take(device, 100, 100).unwrap());
    }

    #[test]
    fn devices_are_counted_apart() {
        let one = Residency::take([201; 16], 10, 10).unwrap();
        let other = Residency::take([202; 16], 10, 10).unwrap();
        drop((one, other));
    }
}
