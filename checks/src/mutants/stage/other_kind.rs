//! A rank that launches a call of another kind: it says so in its pad, and gives no signal that the others await.

use std::sync::{Arc, LazyLock};

use meshreduce_emulator_ptx::{Kernel, Launch, Module};
use meshreduce_wire::{LaunchDescriptor, MAX_RANKS, pad};

use super::memory::Memory;

/// Nanoseconds (instructions) between two beats: less than the patience of the session.
const BEAT_NS: u64 = 50_000;
/// Nanoseconds after which there are no more. Whoever waits has asked sixteen times by then: the executor may give what was
/// there before, but hardly as often.
const BEATS_NS: u64 = 15_500_000;

/// Stores two words for every peer, and ends when its rank is told to give up. Till then it counts now and then, so that the session does
/// not take waiting for starvation.
static KERNEL: LazyLock<Option<Arc<Kernel>>> = LazyLock::new(|| {
    let stores: String = (0..MAX_RANKS)
        .map(|reader| format!("st.relaxed.sys.global.v2.u64 [%rd1+{}], {{%rd2, %rd3}};\n", 16 * reader))
        .collect();
    let text = format!(
        ".version 7.0\n.target sm_70\n.address_size 64
.visible .entry other(.param .u64 place, .param .u64 low, .param .u64 high, .param .u64 abort, .param .u64 beats) {{
    .reg .pred %p<4>; .reg .b32 %r<2>; .reg .b64 %rd<12>;
    ld.param.u64 %rd1, [place]; ld.param.u64 %rd2, [low]; ld.param.u64 %rd3, [high]; ld.param.u64 %rd4, [abort];
    ld.param.u64 %rd5, [beats];
    {stores}
    mov.u64 %rd6, %globaltimer;
    add.s64 %rd7, %rd6, {BEAT_NS};
    add.s64 %rd8, %rd6, {BEATS_NS};
$L_again:
    ld.relaxed.sys.global.u32 %r1, [%rd4];
    setp.ne.b32 %p1, %r1, 0;
    @%p1 bra $L_end;
    mov.u64 %rd9, %globaltimer;
    setp.lt.u64 %p2, %rd9, %rd7;
    @%p2 bra $L_again;
    setp.gt.u64 %p3, %rd9, %rd8;
    @%p3 bra $L_again;
    add.s64 %rd7, %rd9, {BEAT_NS};
    st.global.u64 [%rd5], %rd9;
    bra.uni $L_again;
$L_end:
    ret;
}}"
    );
    Module::parse(&text).ok().and_then(|module| module.kernel("other"))
});

/// Launches call `number` of a lane of a rank.
pub(super) fn launch(memory: &mut Memory, (lane, rank): (u32, usize), what: LaunchDescriptor, number: u64) {
    let Some(kernel) = KERNEL.clone() else { return };
    let stream = memory.stream(lane, rank);
    let beats = memory.session.allocate(stream, 8);
    let own = memory.pad(lane, rank);
    let [low, high] = pad::descriptor_words(what.encode(), number);
    let params = [own + pad::descriptor(number, 0), low, high, own + pad::ABORT, beats];
    let params = params.map(u64::to_le_bytes).concat().into();
    memory.session.launch(stream, Launch { kernel, grid: [1; 3], block: [1; 3], params, dynamic_shared: 0 });
}
