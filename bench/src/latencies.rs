//! What single steps take on a device, each waiting for the one before: loads, atomics, fences, barriers. They are what calls are
//! made of, and what the parameters of a simulated machine stand for.

use std::mem::offset_of;

use anyhow::{Context, Result};

use crate::cuda::{Memory, Module, Pinned, Stream};
use crate::floor::PTX;
use crate::floor::parameters::{Flags, Parameters, STEPS_A_ROUND};
use crate::row::Latency;
use crate::statistics::percentile;

/// Launches of each kernel; the median counts.
const RUNS: usize = 5;
/// Rounds of a launch at most.
const MOST_ROUNDS: u64 = 1000;
/// From one load of memory that is in no cache to the next one: further than what is fetched along with a line.
const STRIDE: u64 = 16 << 10;

/// A kernel and how it is launched.
struct Step {
    what: &'static str,
    ptx: &'static str,
    kernel: &'static str,
    threads: u32,
    on: On,
}

/// What a step is made on.
#[derive(Clone, Copy, PartialEq)]
enum On {
    /// A word of the device that holds its own address.
    Word,
    /// Such a word of the host, page-locked.
    Host,
    /// Zeroed memory of the device that is in no cache.
    Memory,
}

const fn step(what: &'static str, ptx: &'static str, kernel: &'static str) -> Step {
    Step { what, ptx, kernel, threads: 1, on: On::Word }
}

const STEPS: [Step; 17] = [
    step("arithmetic", "mad.lo.u32", "floor_arithmetic"),
    step("load, L1 cache", "ld.global.ca.u64", "floor_load_l1"),
    step("load, L2 cache", "ld.relaxed.gpu.global.u64", "floor_load_gpu"),
    step("load, L2 cache, system scope", "ld.relaxed.sys.global.u64", "floor_load_sys"),
    step("acquire, L2 cache", "ld.acquire.sys.global.u64", "floor_load_acquire_sys"),
    Step { on: On::Memory, ..step("load, memory", "ld.relaxed.gpu.global.u64", "floor_load_memory") },
    Step { on: On::Host, ..step("load, host's memory", "ld.relaxed.sys.global.u64", "floor_load_sys") },
    step("atomic, gpu scope", "atom.relaxed.gpu.global.exch.b64", "floor_atomic_gpu"),
    step("atomic, system scope", "atom.relaxed.sys.global.exch.b64", "floor_atomic_sys"),
    step("fence, gpu scope", "fence.acq_rel.gpu", "floor_fence_gpu"),
    step("fence, system scope", "fence.acq_rel.sys", "floor_fence_sys"),
    step("store and fence, gpu scope", "st.relaxed.gpu, fence.acq_rel.gpu", "floor_store_fence_gpu"),
    step("store and fence, system scope", "st.relaxed.sys, fence.acq_rel.sys", "floor_store_fence_sys"),
    step("barrier, 1 warp", "bar.sync", "floor_barrier"),
    Step { threads: 256, ..step("barrier, 8 warps", "bar.sync", "floor_barrier") },
    Step { threads: 512, ..step("barrier, 16 warps", "bar.sync", "floor_barrier") },
    step("clock", "mov.u64 %globaltimer", "floor_timer"),
];

/// Measures every step, so many rounds a launch (1,000 at most), on the current device, which nobody else uses meanwhile.
///
/// # Errors
/// The driver's.
pub(crate) fn measure(rounds: u64, stream: &Stream) -> Result<Vec<Latency>> {
    let rounds = rounds.min(MOST_ROUNDS);
    let module = Module::load(PTX)?;
    let flags = Memory::new(size_of::<Flags>(), stream)?;
    let mut through = Pinned::new(size_of::<Flags>())?;
    let word = flags.address() + offset_of!(Flags, flag) as u64;
    flags.write(&word.to_le_bytes(), &mut through, stream)?;
    let mut host = Pinned::new(size_of::<u64>())?;
    let host_word = host.device_address()?;
    host.bytes_mut().copy_from_slice(&host_word.to_le_bytes());
    let mut latencies = Vec::new();
    for step in &STEPS {
        let kernel = module.function(step.kernel)?;
        let steps = rounds * STEPS_A_ROUND;
        let (mut nanoseconds, mut cycles) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            // What is zeroed last stays in the caches: as much again lies behind what is loaded.
            let bytes = 2 * (steps + STEPS_A_ROUND) * STRIDE;
            let memory = (step.on == On::Memory).then(|| Memory::new(bytes as usize, stream)).transpose()?;
            let parameters = Parameters {
                own: flags.address(),
                peer: match &memory {
                    Some(memory) => memory.address(),
                    None if step.on == On::Host => host_word,
                    None => word,
                },
                rounds,
                stride: STRIDE,
                ..Parameters::default()
            };
            // SAFETY: the module is loaded; the flags, the host's word and the memory, which is as long as all steps need, live until
            // the stream has been waited for.
            unsafe { kernel.launch(step.threads, stream, &parameters) }?;
            stream.synchronize()?;
            let bytes = flags.read(size_of::<Flags>(), &mut through, stream)?;
            let field = |offset: usize| {
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[offset..offset + 8]);
                u64::from_le_bytes(word)
            };
            let [began, ended, counted] =
                [offset_of!(Flags, began), offset_of!(Flags, ended), offset_of!(Flags, cycles)].map(field);
            nanoseconds.push(ended.saturating_sub(began) as f64 / steps as f64);
            cycles.push(counted as f64 / steps as f64);
        }
        latencies.push(Latency {
            what: step.what.into(),
            ptx: step.ptx.into(),
            steps: steps as usize,
            nanoseconds: percentile(&nanoseconds, 50.0).context("no runs")?,
            cycles: percentile(&cycles, 50.0).context("no runs")?,
        });
    }
    Ok(latencies)
}
