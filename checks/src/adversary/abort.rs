//! A rank that is told to give up while everybody is at work.

use std::mem::offset_of;
use std::sync::{Arc, LazyLock};

use meshreduce_emulator_ptx::{Kernel, Launch, Module};
use meshreduce_emulator_weak_memory::adversary::Session;
use meshreduce_wire::launch::HostPage;
use meshreduce_wire::{AbortWord, RecordKind};

use super::LANES;
use super::scenario::Draw;

/// Who is told to give up, and when.
#[derive(Clone, Copy, Debug)]
pub struct Abort {
    /// The rank.
    pub rank: usize,
    /// By whom.
    pub by: AbortSource,
    /// Turns of an idle loop before.
    pub turns: u32,
}

/// By whom a rank is told to give up, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortSource {
    /// A peer, by the abort word in the rank's pad: whoever waits looks there.
    Peer,
    /// Its host, in the host page.
    Host,
    /// A kernel of another of its lanes, by the abort word beside its counters: whoever begins a call looks there.
    Lane,
}

/// Stores a word after some turns of a loop.
static KERNEL: LazyLock<Option<Arc<Kernel>>> = LazyLock::new(|| {
    let text = "\
.version 7.0
.target sm_70
.address_size 64
.visible .entry abort(.param .u64 place, .param .u32 word, .param .u32 turns) {
    .reg .pred %p<2>; .reg .b32 %r<4>; .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [place]; ld.param.u32 %r1, [word]; ld.param.u32 %r2, [turns];
$L_again:
    setp.eq.u32 %p1, %r2, 0;
    @%p1 bra $L_now;
    sub.s32 %r2, %r2, 1;
    bra.uni $L_again;
$L_now:
    st.release.sys.global.u32 [%rd1], %r1;
    ret;
}";
    Module::parse(text).ok().and_then(|module| module.kernel("abort"))
});

impl Abort {
    pub(super) fn draw(draw: &mut Draw, ranks: usize) -> Self {
        let rank = draw.below(ranks);
        let by = draw.of(&[AbortSource::Peer, AbortSource::Peer, AbortSource::Lane, AbortSource::Host]);
        // Most of what goes wrong does so when a call begins, and calls are short beside the turns of hundreds of threads.
        let turns = draw.of(&[0, 1, 2, 4, 8, 16, 32, 64]) as u32;
        Self { rank, by, turns: turns + draw.below(8) as u32 }
    }

    /// Launches the kernel that does it, on a device of its own.
    ///
    /// The lane is one of so many ranks, and the places are the rank's: abort word in the pad, host page, abort word beside the
    /// counters.
    pub(super) fn launch(
        self,
        session: &mut Session,
        (lane, ranks): (u32, usize),
        [in_pad, host_page, own]: [u64; 3],
    ) {
        let Some(kernel) = KERNEL.clone() else { return };
        let word = |origin: usize, lane| {
            let origin = origin as u32;
            AbortWord { kind: RecordKind::HostAbort, culprit: origin, origin, lane }.encode()
        };
        let (place, word) = match self.by {
            AbortSource::Peer => (in_pad, word((self.rank + 1) % ranks, lane)),
            AbortSource::Host => (host_page + offset_of!(HostPage, abort) as u64, 1),
            AbortSource::Lane => (own, word(self.rank, (lane + 1) % LANES)),
        };
        let params = [&place.to_le_bytes()[..], &word.to_le_bytes(), &self.turns.to_le_bytes()].concat();
        let launch = Launch { kernel, grid: [1; 3], block: [1; 3], params: params.into(), dynamic_shared: 0 };
        let device = session.device();
        session.launch(device, launch);
    }
}
