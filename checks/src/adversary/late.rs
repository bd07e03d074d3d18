//! A rank that begins a call so late that the others have asked what it launches.

use std::sync::{Arc, LazyLock};

use meshreduce_emulator_ptx::{Kernel, Launch, Module};
use meshreduce_emulator_weak_memory::adversary::{DeviceId, Session};

use super::scenario::Draw;

/// Nanoseconds (instructions): more than the 100 us after which a waiting rank asks, less than the session's patience.
pub(crate) const IDLE_NS: u64 = 130_000;

/// Who comes late, and to which call.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// The rank.
    pub rank: usize,
    /// The call's index.
    pub call: usize,
}

/// Lets time pass.
static KERNEL: LazyLock<Option<Arc<Kernel>>> = LazyLock::new(|| {
    let text = "\
.version 7.0
.target sm_70
.address_size 64
.visible .entry idle(.param .u64 time) {
    .reg .pred %p<2>; .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [time];
    mov.u64 %rd2, %globaltimer;
$L_again:
    nanosleep.u32 100;
    mov.u64 %rd3, %globaltimer;
    sub.s64 %rd4, %rd3, %rd2;
    setp.lt.u64 %p1, %rd4, %rd1;
    @%p1 bra $L_again;
    ret;
}";
    Module::parse(text).ok().and_then(|module| module.kernel("idle"))
});

impl Late {
    pub(super) fn draw(draw: &mut Draw, ranks: usize, calls: usize) -> Self {
        // The last call most often: what it finds in the place of its descriptor is of the call before the one before it.
        let call = if draw.below(4) == 0 { draw.below(calls) } else { calls - 1 };
        Self { rank: draw.below(ranks), call }
    }

    /// Launches a kernel that does nothing for long, behind which the call begins.
    pub(super) fn launch(self, session: &mut Session, device: DeviceId) {
        let Some(kernel) = KERNEL.clone() else { return };
        let params = IDLE_NS.to_le_bytes().into();
        session.launch(device, Launch { kernel, grid: [1; 3], block: [1; 3], params, dynamic_shared: 0 });
    }
}
