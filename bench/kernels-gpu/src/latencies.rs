//! What a step takes that waits for the one before: loads, atomics, fences and barriers, each in a kernel of its own.
//!
//! Every kernel makes its step [`STEPS_A_ROUND`] times a round, one after the other, and reports by [`Parameters`]'s flags how long
//! all rounds but the first took: nanoseconds by `%globaltimer`, cycles by `%clock64`. The first brings code and data into the
//! caches. How latencies are measured by a chain of loads is old (McVoy, Staelin: lmbench, USENIX 1996).

use core::arch::asm;
use core::mem::offset_of;

use crate::parameters::{Flags, Parameters, STEPS_A_ROUND};
use crate::signal::store_relaxed_sys_u64;
use crate::time::globaltimer;

/// Cycles of the multiprocessor's clock. `%clock64` (PTX ISA, "Special Registers").
#[inline(always)]
unsafe fn clock() -> u64 {
    let now;
    asm!("mov.u64 {}, %clock64;", out(reg64) now, options(nostack, preserves_flags));
    now
}

/// Reports what the rounds took that began at these two clocks, and what the last step left.
#[inline(always)]
unsafe fn report(parameters: &Parameters, began: u64, began_cycles: u64, left: u64) {
    let cycles = clock() - began_cycles;
    let ended = globaltimer();
    let own = parameters.own;
    store_relaxed_sys_u64(own + offset_of!(Flags, began) as u64, began);
    store_relaxed_sys_u64(own + offset_of!(Flags, ended) as u64, ended);
    store_relaxed_sys_u64(own + offset_of!(Flags, cycles) as u64, cycles);
    store_relaxed_sys_u64(own + offset_of!(Flags, left) as u64, left);
    store_relaxed_sys_u64(own + offset_of!(Flags, completed) as u64, parameters.rounds);
}

/// A kernel for a step that takes a value and leaves one; the first is [`Parameters::peer`]. The step's text stands eight times.
macro_rules! latency {
    ($(#[$doc:meta])* $name:ident, $type:ident in $register:ident, $($step:literal),+) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The parameters are as [`Parameters`] says; the memory is nobody else's.
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(parameters: Parameters) {
            const { assert!(STEPS_A_ROUND == 8) };
            let (mut value, stride) = (parameters.peer as $type, parameters.stride as $type);
            let (mut began, mut began_cycles) = (0, 0);
            let mut round = 0;
            while round <= parameters.rounds {
                if round == 1 {
                    began = globaltimer();
                    began_cycles = clock();
                }
                asm!(
                    "{{ .reg .b64 %read;",
                    $($step,)+ $($step,)+ $($step,)+ $($step,)+ $($step,)+ $($step,)+ $($step,)+ $($step,)+
                    "// {stride} {value}",
                    "\t}}",
                    value = inout($register) value, stride = in($register) stride,
                    options(nostack, preserves_flags)
                );
                round += 1;
            }
            report(&parameters, began, began_cycles, value as u64);
        }
    };
}

latency!(
    /// Arithmetic: `mad.lo.u32` of the result before.
    floor_arithmetic, u32 in reg32,
    "mad.lo.u32 {value}, {value}, {stride}, {stride};"
);
latency!(
    /// A weak load that the L1 cache answers: `ld.global.ca.u64`.
    floor_load_l1, u64 in reg64,
    "ld.global.ca.u64 {value}, [{value}];"
);
latency!(
    /// A load that the L2 cache answers: `ld.relaxed.gpu.global.u64`.
    floor_load_gpu, u64 in reg64,
    "ld.relaxed.gpu.global.u64 {value}, [{value}];"
);
latency!(
    /// The same at system scope: `ld.relaxed.sys.global.u64`.
    floor_load_sys, u64 in reg64,
    "ld.relaxed.sys.global.u64 {value}, [{value}];"
);
latency!(
    /// An acquire: `ld.acquire.sys.global.u64`.
    floor_load_acquire_sys, u64 in reg64,
    "ld.acquire.sys.global.u64 {value}, [{value}];"
);
latency!(
    /// A load of zeroed memory that no cache holds: `ld.relaxed.gpu.global.u64`, each a stride further.
    floor_load_memory, u64 in reg64,
    "ld.relaxed.gpu.global.u64 %read, [{value}];",
    "add.u64 {value}, {value}, %read;",
    "add.u64 {value}, {value}, {stride};"
);
latency!(
    /// An atomic of gpu scope: `atom.relaxed.gpu.global.exch.b64`.
    floor_atomic_gpu, u64 in reg64,
    "atom.relaxed.gpu.global.exch.b64 {value}, [{value}], {value};"
);
latency!(
    /// An atomic of system scope: `atom.relaxed.sys.global.exch.b64`.
    floor_atomic_sys, u64 in reg64,
    "atom.relaxed.sys.global.exch.b64 {value}, [{value}], {value};"
);
latency!(
    /// A fence that has nothing to wait for: `fence.acq_rel.gpu`.
    floor_fence_gpu, u64 in reg64,
    "fence.acq_rel.gpu;"
);
latency!(
    /// The same at system scope: `fence.acq_rel.sys`.
    floor_fence_sys, u64 in reg64,
    "fence.acq_rel.sys;"
);
latency!(
    /// A store and the fence that waits for it: `st.relaxed.gpu.global.u64` and `fence.acq_rel.gpu`.
    floor_store_fence_gpu, u64 in reg64,
    "st.relaxed.gpu.global.u64 [{value}], {value};",
    "fence.acq_rel.gpu;"
);
latency!(
    /// The same at system scope: `st.relaxed.sys.global.u64` and `fence.acq_rel.sys`.
    floor_store_fence_sys, u64 in reg64,
    "st.relaxed.sys.global.u64 [{value}], {value};",
    "fence.acq_rel.sys;"
);
latency!(
    /// A block's barrier: `bar.sync`; the block has as many warps as it is launched with.
    floor_barrier, u64 in reg64,
    "bar.sync 0;"
);
latency!(
    /// A look at the clock: `mov.u64 %globaltimer`.
    floor_timer, u64 in reg64,
    "mov.u64 %read, %globaltimer;",
    "add.u64 {value}, {value}, %read;"
);
