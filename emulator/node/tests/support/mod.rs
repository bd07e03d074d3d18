//! A flat device memory for tests, and a loop that runs a grid.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::result_large_err)]

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use meshreduce_emulator_node::exec::{AddressSpace, Block, DirectExecutor, Executor, Region, TurnEnd};
use meshreduce_emulator_ptx::{Fault, Launch, Module};

/// The first address that [`Memory::allocate`] gives out.
pub const BASE: u64 = 0x7000_0000_0000;

/// Allocations with gaps in between.
#[derive(Default)]
pub struct Memory {
    regions: Mutex<BTreeMap<u64, Region>>,
    version: AtomicU64,
}

impl Memory {
    /// A zeroed allocation.
    pub fn allocate(&self, bytes: usize) -> u64 {
        let words = Arc::new((0..bytes.div_ceil(16) * 2).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        let mut words = words;
        // The host address must be aligned like the device address.
        while !(words.as_ptr() as usize).is_multiple_of(16) {
            words = Arc::new((0..bytes.div_ceil(16) * 2 + 1).map(|_| AtomicU64::new(0)).collect());
        }
        let mut regions = self.regions.lock().unwrap();
        let base = regions
            .last_key_value()
            .map_or(BASE, |(base, region)| (base + region.len).next_multiple_of(1 << 16) + (1 << 16));
        let host = NonNull::new(words.as_ptr() as *mut u8).unwrap();
        regions.insert(base, Region { base, len: bytes as u64, host, backing: words });
        self.version.fetch_add(1, Ordering::Release);
        base
    }

    pub fn free(&self, base: u64) {
        self.regions.lock().unwrap().remove(&base).unwrap();
        self.version.fetch_add(1, Ordering::Release);
    }

    fn host(&self, address: u64, bytes: usize) -> *mut u8 {
        let region = self.find(address).unwrap();
        let offset = address - region.base;
        assert!(offset + bytes as u64 <= region.len);
        region.host.as_ptr().wrapping_add(offset as usize)
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        // SAFETY: `host` checked the range; tests write only while no block runs.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.host(address, data.len()), data.len()) }
    }

    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.host(address, bytes), data.as_mut_ptr(), bytes) }
        data
    }

    pub fn write_u64(&self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    pub fn write_u32(&self, address: u64, value: u32) {
        self.write(address, &value.to_le_bytes());
    }

    pub fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read(address, 8).try_into().unwrap())
    }

    pub fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.read(address, 4).try_into().unwrap())
    }
}

impl AddressSpace for Memory {
    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn find(&self, address: u64) -> Result<Region, String> {
        let regions = self.regions.lock().unwrap();
        match regions.range(..=address).next_back() {
            Some((base, region)) if address - base < region.len => Ok(region.clone()),
            Some((base, region)) => {
                Err(format!("{} bytes past the end of {base:#x}", address - base - region.len))
            }
            None => Err("before every allocation".to_owned()),
        }
    }
}

/// The text of a module with one kernel `k`, which takes `params` (".param .u64 a, ...") and has the given body.
pub fn kernel(params: &str, body: &str) -> String {
    format!(".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k({params})\n{{\n{body}\n}}\n")
}

pub fn launch(text: &str, grid: u32, block: u32, params: &[u64]) -> Arc<Launch> {
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let kernel = module.kernels()[0].clone();
    let params: Vec<u8> = params.iter().flat_map(|value| value.to_le_bytes()).collect();
    Arc::new(Launch {
        kernel,
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        params: params.into(),
        dynamic_shared: 0,
    })
}

pub fn blocks(launch: &Arc<Launch>) -> Vec<Box<dyn Block>> {
    (0..launch.grid[0]).map(|x| DirectExecutor.block(launch, [x, 0, 0])).collect()
}

/// Runs all blocks in turns until all are done; the instructions executed.
pub fn run_all(memory: &Memory, mut blocks: Vec<Box<dyn Block>>) -> Result<u64, Fault> {
    let mut total = 0;
    let mut rounds = 0;
    while !blocks.is_empty() {
        rounds += 1;
        assert!(rounds < 100_000, "no end in sight");
        let mut left = Vec::new();
        for mut block in blocks {
            let turn = block.run(memory, 10_000);
            total += turn.instructions;
            match turn.end {
                TurnEnd::Done => {}
                TurnEnd::Budget | TurnEnd::Spinning => left.push(block),
                TurnEnd::Fault(fault) => return Err(*fault),
            }
        }
        blocks = left;
    }
    Ok(total)
}

/// Runs one kernel to its end.
pub fn run(memory: &Memory, text: &str, grid: u32, block: u32, params: &[u64]) -> Result<u64, Fault> {
    run_all(memory, blocks(&launch(text, grid, block, params)))
}
