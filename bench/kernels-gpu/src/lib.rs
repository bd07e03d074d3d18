//! What no all-reduce can be faster than: a kernel that does nothing, a flag that goes to a peer and back, and what single
//! steps take.
//!
//! The hardware modules are those of `kernels-gpu`, file by file. `cargo xtask build-ptx` compiles this crate; nothing
//! else can (`nvptx64-nvidia-cuda`, `core` from source).
#![no_std]
#![feature(abi_ptx, asm_experimental_arch, stdarch_nvptx)]

use core::mem::offset_of;

pub mod latencies;
pub mod parameters;
#[path = "../../../kernels-gpu/src/signal.rs"]
pub mod signal;
#[path = "../../../kernels-gpu/src/time.rs"]
pub mod time;

use parameters::{Flags, Parameters};
use signal::{load_acquire_sys_u64, load_relaxed_sys_u64, store_relaxed_sys_u64, store_release_sys_u64};
use time::globaltimer;

/// Does nothing.
///
/// # Safety
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn floor_empty(_parameters: Parameters) {}

/// Sends a flag back and forth between two ranks, each a block of one thread: a release store into the peer's memory, and an
/// acquire load of one's own that spins, both at system scope, as the library's kernels signal. Ends after the last
/// round trip or at the deadline, and reports.
///
/// # Safety
/// The parameters are as [`Parameters`] says; the peer runs the same kernel with the same base and rounds, and the
/// addresses the other way round; one of the two serves.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn floor_ping_pong(parameters: Parameters) {
    ping_pong(
        &parameters,
        |address, value| store_release_sys_u64(address, value),
        |address| load_acquire_sys_u64(address),
    );
}

/// The same by relaxed accesses, which order nothing else, as packets go: what is sent is the flag itself.
///
/// # Safety
/// As of [`floor_ping_pong`]; both ranks run this one.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn floor_ping_pong_relaxed(parameters: Parameters) {
    ping_pong(
        &parameters,
        |address, value| store_relaxed_sys_u64(address, value),
        |address| load_relaxed_sys_u64(address),
    );
}

#[inline(always)]
unsafe fn ping_pong(parameters: &Parameters, store: impl Fn(u64, u64), load: impl Fn(u64) -> u64) {
    let deadline = globaltimer() + parameters.deadline_ns;
    let own = parameters.own;
    let mut looks = 0;
    let mut completed = 0;
    let mut began = 0;
    while completed < parameters.rounds {
        let value = parameters.base + completed + 1;
        if parameters.serves != 0 {
            store(parameters.peer + FLAG, value);
        }
        if !reaches(own + FLAG, value, &load, &mut looks, deadline) {
            break;
        }
        if parameters.serves == 0 {
            store(parameters.peer + FLAG, value);
        }
        completed += 1;
        if completed == 1 {
            began = globaltimer();
        }
    }
    store_relaxed_sys_u64(own + offset_of!(Flags, began) as u64, began);
    store_relaxed_sys_u64(own + offset_of!(Flags, ended) as u64, globaltimer());
    store_relaxed_sys_u64(own + offset_of!(Flags, completed) as u64, completed);
}

const FLAG: u64 = offset_of!(Flags, flag) as u64;

/// Waits until the flag has reached `value`; `false` if it is past the deadline. `looks` counts over all round trips, so that
/// the deadline also ends round trips that are each fast.
#[inline(always)]
unsafe fn reaches(flag: u64, value: u64, load: impl Fn(u64) -> u64, looks: &mut u32, deadline: u64) -> bool {
    loop {
        // The clock is slower to read than a flag in one's own memory.
        *looks = looks.wrapping_add(1);
        if *looks & 63 == 0 && globaltimer() > deadline {
            return false;
        }
        if load(flag) >= value {
            return true;
        }
    }
}

/// Never reached: panics compile to `trap` (`-Cpanic=immediate-abort`).
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
