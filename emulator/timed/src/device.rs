//! What warps share: schedulers, multiprocessors, devices and blocks.

use std::collections::VecDeque;
use std::sync::Arc;

use meshreduce_emulator_ptx::{BARRIERS, BarrierKind, Launch, Slot, Votes};

use meshreduce_emulator_ptx::types::Space;

use crate::cache::Cache;
use crate::parameters::Parameters;
use crate::path::{NOBODY, NodeId};
use crate::program::Code;
use crate::time::{Rate, Time, nanoseconds};

/// A machine's parameters as times.
#[derive(Debug)]
pub(crate) struct Costs {
    pub(crate) cycle: Time,
    pub(crate) arithmetic: Time,
    pub(crate) shared: Time,
    pub(crate) barrier: Time,
    pub(crate) constant: Time,
    pub(crate) l1: Time,
    pub(crate) l2: Time,
    /// What a miss in the L2 cache takes besides.
    pub(crate) miss: Time,
    pub(crate) host: Time,
    pub(crate) gpu_fence: Time,
    pub(crate) system_fence: Time,
    pub(crate) atomic: Time,
    pub(crate) same_address: Time,
    pub(crate) sleep: Time,
    pub(crate) block: Time,
    pub(crate) next_kernel: Time,
    /// Of a multiprocessor's way to the L2 cache.
    pub(crate) port: Rate,
    pub(crate) l2_rate: Rate,
    pub(crate) dram_rate: Rate,
}

impl Costs {
    pub(crate) fn new(parameters: &Parameters) -> Self {
        let Parameters { multiprocessor: core, memory, order, launch, .. } = parameters;
        let cycle = 1_000_000 / u64::from(core.clock_mhz);
        let cycles = |count: u32| u64::from(count) * cycle;
        let clock_ghz = f64::from(core.clock_mhz) / 1000.0;
        Self {
            cycle,
            arithmetic: cycles(core.arithmetic_cycles),
            shared: cycles(core.shared_cycles),
            barrier: cycles(core.barrier_cycles),
            constant: cycles(memory.constant_cycles),
            l1: cycles(memory.l1_cycles),
            l2: cycles(memory.l2_cycles),
            miss: cycles(memory.dram_cycles.saturating_sub(memory.l2_cycles)),
            host: nanoseconds(memory.host_ns),
            gpu_fence: nanoseconds(order.gpu_fence_ns),
            system_fence: nanoseconds(order.system_fence_ns),
            atomic: cycles(order.atomic_cycles),
            same_address: cycles(order.same_address_cycles),
            sleep: nanoseconds(order.sleep_ns),
            block: nanoseconds(launch.block_ns),
            next_kernel: nanoseconds(launch.next_kernel_ns),
            port: Rate::gb_per_s(f64::from(core.bytes_per_cycle) * clock_ghz),
            l2_rate: Rate::gb_per_s(f64::from(memory.l2_gb_per_s)),
            dram_rate: Rate::gb_per_s(f64::from(memory.dram_gb_per_s)),
        }
    }
}

/// A multiprocessor.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) l1: Cache,
    /// Lines of parameters that it has looked at since the kernel began.
    pub(crate) constants: Vec<(Space, u64)>,
    /// When its ways to the L2 cache are free: out, and back.
    pub(crate) out: Time,
    pub(crate) back: Time,
    pub(crate) threads: u32,
    pub(crate) blocks: u32,
}

impl Core {
    pub(crate) fn new(parameters: &Parameters) -> Self {
        let l1 = Cache::new(u64::from(parameters.memory.l1_kib) << 10);
        Self { l1, constants: Vec::new(), out: 0, back: 0, threads: 0, blocks: 0 }
    }
}

/// A kernel that is queued.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) launch: Arc<Launch>,
    pub(crate) code: Arc<Code>,
}

/// A GPU.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) queue: VecDeque<Queued>,
    pub(crate) running: Option<Running>,
    pub(crate) l2: Cache,
    /// When the L2 cache and the memory behind it are free.
    pub(crate) l2_free: Time,
    pub(crate) dram_free: Time,
    /// By addresses that share an entry: when the next atomic may be done.
    pub(crate) atomics: Vec<Time>,
    /// When all its stores are acknowledged.
    pub(crate) acknowledged: Time,
    /// The kernels that have ended: when they began, ended and were acknowledged.
    pub(crate) ended: Vec<[Time; 3]>,
}

/// A kernel that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) launch: Arc<Launch>,
    pub(crate) code: Arc<Code>,
    pub(crate) begin: Time,
    /// Blocks that have not begun, from here.
    pub(crate) next: u64,
    pub(crate) blocks: u64,
    pub(crate) ended: u64,
    /// When the next block may begin.
    pub(crate) free: Time,
    /// The multiprocessor that is asked first.
    pub(crate) core: u32,
}

/// A block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) code: Arc<Code>,
    pub(crate) launch: Arc<Launch>,
    pub(crate) device: u16,
    pub(crate) core: u32,
    pub(crate) number: u64,
    pub(crate) shared: Vec<u8>,
    pub(crate) threads: u32,
    /// Threads that have not ended.
    pub(crate) live: u32,
    pub(crate) barriers: [Gathering; BARRIERS],
}

/// Who is at a barrier.
#[derive(Debug)]
pub(crate) struct Gathering {
    pub(crate) arrived: u32,
    /// Whether all threads of the block come.
    pub(crate) everyone: bool,
    pub(crate) votes: Votes,
    pub(crate) waiting: Vec<Waiter>,
    /// When the stores of all that came are acknowledged.
    pub(crate) stored: Time,
    pub(crate) stored_by: NodeId,
}

impl Default for Gathering {
    fn default() -> Self {
        Self {
            arrived: 0,
            everyone: false,
            votes: Votes::default(),
            waiting: Vec::new(),
            stored: 0,
            stored_by: NOBODY,
        }
    }
}

/// Threads of a warp that wait at a barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter {
    pub(crate) warp: u32,
    pub(crate) mask: u32,
    pub(crate) kind: BarrierKind,
    pub(crate) d: Slot,
}
