//! The adversary's memory model on the classic shapes: what the PTX axioms forbid never happens, what they allow is
//! reached.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use meshreduce_emulator_ptx::{Launch, Module};
use meshreduce_emulator_weak_memory::adversary::{Options, Session};

/// A thread: its device, and its instructions. `%x`, `%y`, `%z` are addresses; results are `%r0`, `%r1`.
type Thread = (usize, &'static str);

const SEEDS: u64 = 1500;

/// An access of sixteen bytes that nobody comes to: words have as many then.
const NEVER: &str = ".reg .b128 %never; ld.global.b128 %never, [%x];\n";

/// The kernel of the threads on one device, a block each, and behind them what is never reached.
fn text(threads: &[(usize, &str)], never: &str) -> String {
    let mut body = String::from(
        ".reg .pred %p; .reg .b32 %r<8>; .reg .b32 %b; .reg .b64 %x, %y, %z, %out, %o;
         ld.param.u64 %x, [a]; add.s64 %y, %x, 64; add.s64 %z, %x, 128; add.s64 %out, %x, 192;
         mov.u32 %r0, 0; mov.u32 %r1, 0; mov.u32 %r2, 1; mov.u32 %r3, 2; mov.u32 %b, %ctaid.x;\n",
    );
    for (block, _) in threads.iter().enumerate() {
        body += &format!("setp.eq.u32 %p, %b, {block}; @%p bra T{block};\n");
    }
    for (block, (number, code)) in threads.iter().enumerate() {
        let at = number * 8;
        body += &format!(
            "T{block}:\n{code}\nst.global.u32 [%out+{at}], %r0; st.global.u32 [%out+{}], %r1; ret;\n",
            at + 4
        );
    }
    format!(
        ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(.param .u64 a)\n{{\n{body}{never}}}\n"
    )
}

/// All outcomes over many seeds: results of all threads, then the final x, y, z, and what is behind x.
fn outcomes(threads: &[Thread]) -> BTreeSet<Vec<u32>> {
    by_seed(threads, "").into_iter().map(|(outcome, _)| outcome).collect()
}

/// The outcome of each seed, and the instructions that it took.
fn by_seed(threads: &[Thread], never: &str) -> Vec<(Vec<u32>, u64)> {
    let devices = threads.iter().map(|(device, _)| device + 1).max().unwrap();
    let modules: Vec<(u32, Module)> = (0..devices)
        .map(|device| {
            let numbered = threads.iter().enumerate();
            let mine: Vec<(usize, &str)> = numbered
                .filter(|(_, (of, _))| *of == device)
                .map(|(number, (_, code))| (number, *code))
                .collect();
            (mine.len() as u32, Module::parse(&text(&mine, never)).unwrap_or_else(|error| panic!("{error}")))
        })
        .collect();
    (0..SEEDS)
        .map(|seed| {
            let mut session = Session::new(Options { seed, detect_races: false, ..Options::default() });
            let ids: Vec<_> = (0..devices).map(|_| session.device()).collect();
            let memory = session.allocate(ids[0], 512);
            for (id, (blocks, module)) in ids.iter().zip(&modules) {
                let kernel = module.kernels()[0].clone();
                let params = memory.to_le_bytes().into();
                session.launch(
                    *id,
                    Launch { kernel, grid: [*blocks, 1, 1], block: [1; 3], params, dynamic_shared: 0 },
                );
            }
            let instructions = session.run().unwrap().instructions;
            let word = |at: u64| u32::from_le_bytes(session.read(memory + at, 4).try_into().unwrap());
            let results = (0..2 * threads.len() as u64).map(|at| word(192 + 4 * at));
            let ends = [0, 64, 128, 8].map(word);
            (results.chain(ends).collect(), instructions)
        })
        .collect()
}

fn check(name: &str, threads: &[Thread], weak: impl Fn(&[u32]) -> bool, allowed: bool) {
    let all = outcomes(threads);
    let reached = all.iter().any(|outcome| weak(outcome));
    assert_eq!(reached, allowed, "{name}: {all:?}");
    assert!(all.len() > 1, "{name} has but one outcome: {all:?}");
}

const MP_REL: &str = "st.global.u32 [%x], %r2; st.release.sys.global.u32 [%y], %r2;";
const MP_ACQ: &str = "ld.acquire.sys.global.u32 %r0, [%y]; ld.global.u32 %r1, [%x];";
fn passed(o: &[u32]) -> bool {
    o[2] == 1 && o[3] == 0
}

#[test]
fn message_passing_needs_both_sides_and_their_scopes() {
    let relaxed = "st.relaxed.sys.global.u32 [%x], %r2; st.relaxed.sys.global.u32 [%y], %r2;";
    let reads = "ld.relaxed.sys.global.u32 %r0, [%y]; ld.relaxed.sys.global.u32 %r1, [%x];";
    let gpu = "st.global.u32 [%x], %r2; st.release.gpu.global.u32 [%y], %r2;";
    let acquire_gpu = "ld.acquire.gpu.global.u32 %r0, [%y]; ld.global.u32 %r1, [%x];";
    let weak = "st.global.u32 [%x], %r2; st.global.u32 [%y], %r2;";
    check("MP rel acq", &[(0, MP_REL), (1, MP_ACQ)], passed, false);
    check("MP relaxed", &[(0, relaxed), (1, reads)], passed, true);
    check("MP release alone", &[(0, MP_REL), (1, reads)], passed, true);
    check("MP acquire alone", &[(0, relaxed), (1, MP_ACQ)], passed, true);
    check("MP weak flag", &[(0, weak), (1, MP_ACQ)], passed, true);
    check("MP gpu on one device", &[(0, gpu), (0, acquire_gpu)], passed, false);
    check("MP gpu on two devices", &[(0, gpu), (1, acquire_gpu)], passed, true);
    check("MP gpu release, sys acquire on two", &[(0, gpu), (1, MP_ACQ)], passed, true);
}

#[test]
fn sixteen_bytes_come_whole_if_they_are_one_access_and_not_if_they_are_two() {
    // Both stores write one number into both halves.
    let whole = ".reg .b64 %n; .reg .b128 %q; cvt.u64.u32 %n, %r2; mov.b128 %q, {%n, %n};
        st.relaxed.sys.global.b128 [%x], %q;
        cvt.u64.u32 %n, %r3; mov.b128 %q, {%n, %n}; st.relaxed.sys.global.b128 [%x], %q;";
    let looks = ".reg .b64 %l, %h; .reg .b128 %q; ld.relaxed.sys.global.b128 %q, [%x];
        mov.b128 {%l, %h}, %q; cvt.u32.u64 %r0, %l; cvt.u32.u64 %r1, %h;";
    let torn = |o: &[u32]| o[2] != o[3];
    check("packets of 128 bits", &[(0, whole), (1, looks)], torn, false);
    let backwards = |o: &[u32]| o[2] > o[3];
    let twice = ".reg .b64 %l, %h; .reg .b128 %q, %s; ld.relaxed.sys.global.b128 %q, [%x];
        ld.relaxed.sys.global.b128 %s, [%x];
        mov.b128 {%l, _}, %q; cvt.u32.u64 %r0, %l; mov.b128 {_, %h}, %s; cvt.u32.u64 %r1, %h;";
    check("CoRR of 128 bits", &[(0, whole), (1, twice)], backwards, false);
    let pairs = ".reg .b64 %n; cvt.u64.u32 %n, %r2; st.relaxed.sys.global.v2.u64 [%x], {%n, %n};
        cvt.u64.u32 %n, %r3; st.relaxed.sys.global.v2.u64 [%x], {%n, %n};";
    let looks = ".reg .b64 %l, %h; ld.relaxed.sys.global.v2.u64 {%l, %h}, [%x];
        cvt.u32.u64 %r0, %l; cvt.u32.u64 %r1, %h;";
    check("pairs of packets of 64 bits", &[(0, pairs), (1, looks)], torn, true);
    // In a kernel that has wide accesses, too, halves that are accessed apart come apart.
    let also_wide = ".reg .b64 %n; .reg .b128 %q; cvt.u64.u32 %n, %r2; mov.b128 %q, {%n, %n};
        st.relaxed.sys.global.v2.u64 [%x], {%n, %n}; st.relaxed.sys.global.b128 [%z], %q;
        cvt.u64.u32 %n, %r3; st.relaxed.sys.global.v2.u64 [%x], {%n, %n};";
    check("pairs beside wide accesses", &[(0, also_wide), (1, looks)], torn, true);
}

#[test]
fn halves_of_sixteen_bytes_are_locations_of_their_own() {
    // A pattern on one half is none on the other.
    let other_released = "st.global.u32 [%z], %r2; st.release.sys.global.u32 [%x], %r2;
        st.relaxed.sys.global.u32 [%x+8], %r2;";
    let reads = "ld.acquire.sys.global.u32 %r0, [%x+8]; ld.global.u32 %r1, [%z];";
    let released = "st.global.u32 [%z], %r2; st.release.sys.global.u32 [%x], %r2;";
    let other_acquired = "ld.relaxed.sys.global.u32 %r0, [%x]; ld.acquire.sys.global.u32 %r4, [%x+8];
        ld.global.u32 %r1, [%z];";
    // Which of two pairs is the last differs from half to half, and open loads of one say nothing of the other.
    let ones = ".reg .b64 %n; cvt.u64.u32 %n, %r2; st.relaxed.sys.global.v2.u64 [%x], {%n, %n};";
    let twos = ".reg .b64 %n; cvt.u64.u32 %n, %r3; st.relaxed.sys.global.v2.u64 [%x], {%n, %n};";
    let looks = "ld.relaxed.sys.global.u32 %r0, [%x]; ld.relaxed.sys.global.u32 %r1, [%x+8];";
    let loads = "ld.relaxed.sys.global.u32 %r0, [%x+8]; st.release.sys.global.u32 [%x], %r2;";
    let follows = "ld.acquire.sys.global.u32 %r0, [%x]; st.relaxed.sys.global.u32 [%x+8], %r2;";
    type Shape<'a> = (&'a str, Vec<Thread>, fn(&[u32]) -> bool);
    let shapes: [Shape<'_>; 5] = [
        ("a release of the other half", vec![(0, other_released), (1, reads)], passed),
        ("an acquire of the other half", vec![(0, released), (1, other_acquired)], passed),
        ("2W of pairs", vec![(0, ones), (1, twos)], |o| o[4] != o[7]),
        ("2W+R of pairs", vec![(0, ones), (1, twos), (1, looks)], |o| o[4] != o[5] && o[4] * o[5] != 0),
        ("LB+rel+acq", vec![(0, loads), (1, follows)], |o| o[2] == 0),
    ];
    for (name, threads, weak) in shapes {
        let narrow = by_seed(&threads, "");
        assert!(narrow.iter().any(|(outcome, _)| weak(outcome)), "{name}: {narrow:?}");
        let wide = by_seed(&threads, NEVER);
        let differ = narrow.iter().zip(&wide).position(|(one, other)| one != other);
        assert_eq!(differ, None, "{name}: the seed that plays something else where words have sixteen bytes");
    }
}

#[test]
fn message_passing_by_fences() {
    let fence = "st.global.u32 [%x], %r2; fence.acq_rel.sys; st.relaxed.sys.global.u32 [%y], %r2;";
    let reads = "ld.relaxed.sys.global.u32 %r0, [%y]; fence.acq_rel.sys; ld.global.u32 %r1, [%x];";
    let weak_flag = "st.global.u32 [%x], %r2; fence.acq_rel.sys; st.global.u32 [%y], %r2;";
    let narrow = "ld.relaxed.sys.global.u32 %r0, [%y]; fence.acq_rel.gpu; ld.global.u32 %r1, [%x];";
    check("MP fences", &[(0, fence), (1, reads)], passed, false);
    check("MP fence to acquire", &[(0, fence), (1, MP_ACQ)], passed, false);
    check("MP weak flag behind fence", &[(0, weak_flag), (1, reads)], passed, true);
    check("MP narrow fence", &[(0, fence), (1, narrow)], passed, true);
    let volatile = "st.volatile.global.u32 [%x], %r2; st.volatile.global.u32 [%y], %r2;";
    let volatiles = "ld.volatile.global.u32 %r0, [%y]; ld.volatile.global.u32 %r1, [%x];";
    check("MP volatile", &[(0, volatile), (1, volatiles)], passed, true);
}

#[test]
fn store_buffering_is_allowed_but_for_fence_sc() {
    let both = |o: &[u32]| o[0] == 0 && o[2] == 0;
    let acq_rel = (
        "st.release.sys.global.u32 [%x], %r2; ld.acquire.sys.global.u32 %r0, [%y];",
        "st.release.sys.global.u32 [%y], %r2; ld.acquire.sys.global.u32 %r0, [%x];",
    );
    check("SB rel acq", &[(0, acq_rel.0), (1, acq_rel.1)], both, true);
    let sc = (
        "st.relaxed.sys.global.u32 [%x], %r2; fence.sc.sys; ld.relaxed.sys.global.u32 %r0, [%y];",
        "st.relaxed.sys.global.u32 [%y], %r2; fence.sc.sys; ld.relaxed.sys.global.u32 %r0, [%x];",
    );
    check("SB sc", &[(0, sc.0), (1, sc.1)], both, false);
    let gpu = (
        "st.relaxed.sys.global.u32 [%x], %r2; fence.sc.gpu; ld.relaxed.sys.global.u32 %r0, [%y];",
        "st.relaxed.sys.global.u32 [%y], %r2; fence.sc.gpu; ld.relaxed.sys.global.u32 %r0, [%x];",
    );
    check("SB sc gpu on two devices", &[(0, gpu.0), (1, gpu.1)], both, true);
    check("SB sc gpu on one device", &[(0, gpu.0), (0, gpu.1)], both, false);
}

#[test]
fn load_buffering_is_allowed_but_not_out_of_thin_air() {
    let one = |o: &[u32]| o[0] == 1 && o[2] == 1;
    let relaxed = (
        "ld.relaxed.sys.global.u32 %r0, [%x]; st.relaxed.sys.global.u32 [%y], %r2;",
        "ld.relaxed.sys.global.u32 %r0, [%y]; st.relaxed.sys.global.u32 [%x], %r2;",
    );
    check("LB relaxed", &[(0, relaxed.0), (1, relaxed.1)], one, true);
    let release = (
        "ld.relaxed.sys.global.u32 %r0, [%x]; st.release.sys.global.u32 [%y], %r2;",
        "ld.acquire.sys.global.u32 %r0, [%y]; st.relaxed.sys.global.u32 [%x], %r2;",
    );
    check("LB rel acq", &[(0, release.0), (1, release.1)], one, false);
    let data = (
        "ld.relaxed.sys.global.u32 %r0, [%x]; st.relaxed.sys.global.u32 [%y], %r0;",
        "ld.relaxed.sys.global.u32 %r0, [%y]; st.relaxed.sys.global.u32 [%x], %r0;",
    );
    let all = outcomes(&[(0, data.0), (1, data.1)]);
    assert!(all.iter().all(|o| o.iter().all(|&value| value == 0)), "out of thin air: {all:?}");
}

#[test]
fn coherence_of_reads_holds_for_strong_reads_alone() {
    let writes = "st.relaxed.sys.global.u32 [%x], %r2; st.relaxed.sys.global.u32 [%x], %r3;";
    let backwards = |o: &[u32]| o[2] > o[3];
    let strong = "ld.relaxed.sys.global.u32 %r0, [%x]; ld.relaxed.sys.global.u32 %r1, [%x];";
    let weak = "ld.global.u32 %r0, [%x]; ld.global.u32 %r1, [%x];";
    check("CoRR strong", &[(0, writes), (1, strong)], backwards, false);
    check("CoRR weak", &[(0, writes), (1, weak)], backwards, true);
    let narrow = "st.relaxed.gpu.global.u32 [%x], %r2; st.relaxed.gpu.global.u32 [%x], %r3;";
    check("CoRR gpu on two devices", &[(0, narrow), (1, strong)], backwards, true);
    let own = "st.relaxed.sys.global.u32 [%x], %r2; ld.relaxed.sys.global.u32 %r0, [%x]; mov.u32 %r1, 1;";
    let other = "st.relaxed.sys.global.u32 [%x], %r3;";
    check("CoWR", &[(0, own), (1, other)], |o| o[0] == 0, false);
    check("CoWR, then overwritten", &[(0, own), (1, other)], |o| o[0] == 2 && o[4] == 1, false);
}

#[test]
fn writes_reach_observers_in_different_orders() {
    let (x, y) = ("st.relaxed.sys.global.u32 [%x], %r2;", "st.relaxed.sys.global.u32 [%y], %r2;");
    let apart = |o: &[u32]| o[4] == 1 && o[5] == 0 && o[6] == 1 && o[7] == 0;
    let acquire = (
        "ld.acquire.sys.global.u32 %r0, [%x]; ld.acquire.sys.global.u32 %r1, [%y];",
        "ld.acquire.sys.global.u32 %r0, [%y]; ld.acquire.sys.global.u32 %r1, [%x];",
    );
    check("IRIW acq", &[(0, x), (1, y), (2, acquire.0), (3, acquire.1)], apart, true);
    let sc = (
        "ld.relaxed.sys.global.u32 %r0, [%x]; fence.sc.sys; ld.relaxed.sys.global.u32 %r1, [%y];",
        "ld.relaxed.sys.global.u32 %r0, [%y]; fence.sc.sys; ld.relaxed.sys.global.u32 %r1, [%x];",
    );
    check("IRIW sc", &[(0, x), (1, y), (2, sc.0), (3, sc.1)], apart, false);
}

#[test]
fn causality_is_transitive_through_synchronization() {
    let middle = "ld.acquire.sys.global.u32 %r0, [%x]; st.release.sys.global.u32 [%y], %r0;";
    let last = "ld.acquire.sys.global.u32 %r0, [%y]; ld.relaxed.sys.global.u32 %r1, [%x];";
    let lost = |o: &[u32]| o[4] == 1 && o[5] == 0;
    check("WRC", &[(0, "st.relaxed.sys.global.u32 [%x], %r2;"), (1, middle), (2, last)], lost, false);
    let relaxed = "ld.relaxed.sys.global.u32 %r0, [%x]; st.relaxed.sys.global.u32 [%y], %r0;";
    check("WRC relaxed", &[(0, "st.relaxed.sys.global.u32 [%x], %r2;"), (1, relaxed), (2, last)], lost, true);
    let first = "st.global.u32 [%x], %r2; st.release.sys.global.u32 [%y], %r2;";
    let second = "ld.acquire.sys.global.u32 %r0, [%y]; st.release.sys.global.u32 [%z], %r0;";
    let third = "ld.acquire.sys.global.u32 %r0, [%z]; ld.global.u32 %r1, [%x];";
    check("ISA2", &[(0, first), (1, second), (2, third)], lost, false);
}

#[test]
fn releases_are_seen_through_atomics() {
    let through = "atom.relaxed.sys.global.add.u32 %r0, [%y], 1;";
    let reads = "ld.acquire.sys.global.u32 %r0, [%y]; ld.global.u32 %r1, [%x];";
    let lost = |o: &[u32]| o[2] == 1 && o[4] == 2 && o[5] == 0;
    check("MP through an atomic", &[(0, MP_REL), (1, through), (2, reads)], lost, false);
    let stored = "ld.relaxed.sys.global.u32 %r0, [%y]; st.relaxed.sys.global.u32 [%y], %r3;";
    check("MP through a store", &[(0, MP_REL), (1, stored), (2, reads)], lost, true);
    let narrow = "atom.gpu.global.add.u32 %r0, [%y], 1;";
    check("MP through a gpu atomic", &[(0, MP_REL), (1, narrow), (2, reads)], lost, true);
}

#[test]
fn atomics_are_atomic_as_far_as_their_scope_reaches() {
    let both = |o: &[u32]| o[0] == 0 && o[2] == 0;
    let (gpu, sys) =
        ("atom.gpu.global.add.u32 %r0, [%x], 1;", "atom.relaxed.sys.global.add.u32 %r0, [%x], 1;");
    check("two at sys scope", &[(0, sys), (1, sys)], both, false);
    check("two at gpu scope on one device", &[(0, gpu), (0, gpu)], both, false);
    check("two at gpu scope on two devices", &[(0, gpu), (1, gpu)], both, true);
}

#[test]
fn writes_may_be_ordered_against_their_threads() {
    let (one, two) = (
        "st.relaxed.sys.global.u32 [%x], %r2; st.relaxed.sys.global.u32 [%y], %r3;",
        "st.relaxed.sys.global.u32 [%y], %r2; st.relaxed.sys.global.u32 [%x], %r3;",
    );
    check("2+2W", &[(0, one), (1, two)], |o| o[4] == 1 && o[5] == 1, true);
    let (one, two) = (
        "st.relaxed.sys.global.u32 [%x], %r2; st.release.sys.global.u32 [%y], %r2;",
        "ld.acquire.sys.global.u32 %r0, [%y]; st.relaxed.sys.global.u32 [%x], %r3;",
    );
    check("S", &[(0, one), (1, two)], |o| o[2] == 1 && o[4] == 1, false);
}

#[test]
fn vectors_tear() {
    let writes = "st.global.v2.u32 [%x], {%r2, %r2};";
    let reads = "ld.global.v2.u32 {%r0, %r1}, [%x];";
    check("torn, first half first", &[(0, writes), (1, reads)], |o| o[2] == 1 && o[3] == 0, true);
    check("torn, second half first", &[(0, writes), (1, reads)], |o| o[2] == 0 && o[3] == 1, true);
}

#[test]
fn no_acquire_makes_the_noncoherent_cache_forget() {
    let reads = "ld.acquire.sys.global.u32 %r0, [%y]; ld.global.nc.u32 %r1, [%x];";
    check("MP, data by nc", &[(0, MP_REL), (1, reads)], passed, true);
}
