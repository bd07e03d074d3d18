//! A launch of a kernel: what every executor derives from it for its blocks and threads.

use std::sync::Arc;

use super::program::Kernel;
use super::types::Special;

/// Lanes of a warp.
pub const WARP: u32 = 32;

/// Barriers of a block (PTX ISA, `bar`).
pub const BARRIERS: usize = 16;

/// One kernel launch, as the driver checked it.
#[derive(Debug)]
pub struct Launch {
    /// The kernel entry.
    pub kernel: Arc<Kernel>,
    /// Blocks of the grid in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// The parameter bytes, laid out as the entry declares them.
    pub params: Box<[u8]>,
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
}

impl Launch {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Bytes of shared memory of a block, static and dynamic.
    pub fn shared_bytes(&self) -> u64 {
        let dynamic = u64::from(self.kernel.dynamic_shared_offset) + u64::from(self.dynamic_shared);
        dynamic.max(self.kernel.shared_bytes.into())
    }

    /// The index in the grid of the block with this number.
    pub fn block_index(&self, block: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [block % x, block / x % y, block / (x * y)].map(|axis| axis as u32)
    }

    /// The index in its block of the thread with this number.
    pub fn thread_index(&self, thread: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [thread % x, thread / x % y, thread / (x * y)]
    }

    /// The slots of a thread at its beginning: registers that are zero, the kernel's constants, and the special registers
    /// of that thread of the block with this index.
    pub fn slots(&self, block: [u32; 3], thread: u32) -> Vec<u64> {
        let mut slots = vec![0; self.kernel.slots()];
        self.begin(&mut slots, block, thread);
        slots
    }

    /// Makes zeros the slots of a thread at its beginning, as [`Self::slots`] gives them.
    ///
    /// # Panics
    /// If they are not as many as the kernel has.
    pub fn begin(&self, slots: &mut [u64], block: [u32; 3], thread: u32) {
        let kernel = &self.kernel;
        let (constants, specials) =
            slots[usize::from(kernel.register_slots)..].split_at_mut(kernel.constants.len());
        constants.copy_from_slice(&kernel.constants);
        assert_eq!(specials.len(), kernel.specials.len(), "slots of another kernel");
        for (slot, &special) in specials.iter_mut().zip(&kernel.specials) {
            *slot = self.special(special, block, thread);
        }
    }

    fn special(&self, special: Special, block: [u32; 3], thread: u32) -> u64 {
        let axis = |values: [u32; 3], axis: u8, fourth: u32| {
            values.get(usize::from(axis)).copied().unwrap_or(fourth)
        };
        let lane = thread % WARP;
        let dynamic = self.dynamic_shared;
        let value = match special {
            Special::Tid(at) => axis(self.thread_index(thread), at, 0),
            Special::Ntid(at) => axis(self.block, at, 1),
            Special::Ctaid(at) => axis(block, at, 0),
            Special::Nctaid(at) => axis(self.grid, at, 1),
            Special::Laneid => lane,
            Special::Warpid => thread / WARP,
            Special::Nwarpid => self.threads().div_ceil(WARP),
            // Placement on multiprocessors is not emulated; the ISA promises nothing about these but their range.
            Special::Smid | Special::Gridid => 0,
            Special::Nsmid => 1,
            Special::LanemaskEq => 1 << lane,
            Special::LanemaskLt => (1 << lane) - 1,
            Special::LanemaskLe => u32::MAX >> (31 - lane),
            Special::LanemaskGe => u32::MAX << lane,
            Special::LanemaskGt => u32::MAX << lane & !(1 << lane),
            Special::DynamicSmemSize => dynamic,
            Special::TotalSmemSize => self.kernel.dynamic_shared_offset + dynamic,
        };
        u64::from(value)
    }
}
