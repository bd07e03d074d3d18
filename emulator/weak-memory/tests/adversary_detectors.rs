//! The adversary's detectors on small kernels, and what they tell.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use meshreduce_emulator_ptx::{Kernel, Launch, Module};
use meshreduce_emulator_weak_memory::adversary::{DeviceId, Options, Report, ReportKind, Session, Strategy};

fn kernel(body: &str) -> Arc<Kernel> {
    let text = format!(
        ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b)\n{{
         .reg .pred %p, %q; .reg .b32 %r<8>; .reg .b64 %x, %y;
         ld.param.u64 %x, [a]; ld.param.u64 %y, [b]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, 1;
         {body}\nret;\n}}\n"
    );
    Module::parse(&text).unwrap_or_else(|error| panic!("{error}")).kernels()[0].clone()
}

fn launch(session: &mut Session, device: DeviceId, body: &str, shape: (u32, u32), memory: [u64; 2]) {
    let params = memory.iter().flat_map(|address| address.to_le_bytes()).collect();
    let (grid, block) = ([shape.0, 1, 1], [shape.1, 1, 1]);
    session.launch(device, Launch { kernel: kernel(body), grid, block, params, dynamic_shared: 0 });
}

/// The report of two kernels, on a device each, over 256 shared bytes.
fn two(options: Options, first: &str, second: &str) -> Result<(), Report> {
    let mut session = Session::new(options);
    let (one, other) = (session.device(), session.device());
    let memory = session.allocate(one, 256);
    session.label(memory, 4, "the flag");
    launch(&mut session, one, first, (1, 1), [memory, memory + 64]);
    launch(&mut session, other, second, (1, 1), [memory, memory + 64]);
    session.run().map(|_| ())
}

const WAIT: &str = "again: ld.acquire.sys.global.u32 %r3, [%x]; setp.ne.u32 %p, %r3, 1; @%p bra again;";

#[test]
fn a_wait_for_what_nobody_does_is_starvation_and_names_the_flag() {
    // Both wait, so neither device is done.
    for seed in 0..5 {
        let report = two(Options { seed, ..Options::default() }, WAIT, WAIT).unwrap_err();
        assert_eq!(report.kind, ReportKind::Starvation, "{report}");
        assert!(report.story.contains("the flag"), "{report}");
    }
}

#[test]
fn a_read_at_a_narrow_scope_is_remembered_behind_one_at_a_wide_scope() {
    // Only the first read races with the store: its scope leaves the other device out.
    let reads = "ld.relaxed.gpu.global.u32 %r3, [%x]; ld.relaxed.sys.global.u32 %r4, [%x];";
    let writes = "st.relaxed.sys.global.u32 [%x], %r2;";
    for seed in 0..50 {
        let report = two(Options { seed, ..Options::default() }, reads, writes).unwrap_err();
        assert_eq!(report.kind, ReportKind::DataRace, "{report}");
    }
}

#[test]
fn halves_of_sixteen_bytes_race_with_the_whole() {
    let whole = ".reg .b128 %w; mov.b128 %w, {%x, %y}; st.relaxed.sys.global.b128 [%x], %w;";
    for half in [0, 8] {
        let reads = format!("ld.relaxed.sys.global.u64 %y, [%x+{half}];");
        for seed in 0..20 {
            let report = two(Options { seed, ..Options::default() }, &reads, whole).unwrap_err();
            assert_eq!(report.kind, ReportKind::MixedSize, "{report}");
        }
    }
    // Those beside it do not, nor do two wholes.
    for beside in ["ld.global.u64 %y, [%x+16];", whole] {
        two(Options::default(), beside, whole).unwrap_or_else(|report| panic!("{report}"));
    }
}

#[test]
fn a_compare_and_swap_that_fails_races_with_writes_alone() {
    let fails = "atom.relaxed.sys.global.cas.b32 %r3, [%x], 7, 8;";
    for seed in 0..50 {
        let options = Options { seed, ..Options::default() };
        two(options, fails, "ld.global.u32 %r3, [%x];").unwrap_or_else(|report| panic!("{report}"));
        let report = two(options, fails, "st.global.u32 [%x], %r2;").unwrap_err();
        assert_eq!(report.kind, ReportKind::DataRace, "{report}");
    }
}

#[test]
fn a_wait_for_a_device_that_is_done_is_told_as_such() {
    let report = two(Options::default(), WAIT, "").unwrap_err();
    assert_eq!(report.kind, ReportKind::BarrierCount, "{report}");
}

#[test]
fn an_epoch_that_is_overwritten_before_it_is_seen_is_found() {
    let both = "st.relaxed.sys.global.u32 [%x], %r2; mov.u32 %r4, 2; st.relaxed.sys.global.u32 [%x], %r4;";
    let runs = (0..100).map(|seed| two(Options { seed, ..Options::default() }, WAIT, both));
    let reports: Vec<Report> = runs.filter_map(Result::err).collect();
    assert!(!reports.is_empty(), "the wait always saw the first epoch");
    assert!(reports.iter().all(|report| report.kind == ReportKind::EpochOverwritten), "{}", reports[0]);
}

#[test]
fn a_grid_that_waits_for_its_own_later_blocks_needs_room_for_them() {
    // Block 0 waits for block 1.
    let body = format!(
        "setp.eq.u32 %q, %r1, 0; @%q bra again; st.release.gpu.global.u32 [%x], %r2; ret; {}",
        WAIT.replace(".sys", ".gpu")
    );
    for seed in 0..20 {
        let run = |resident_blocks| {
            let mut session = Session::new(Options { seed, resident_blocks, ..Options::default() });
            let device = session.device();
            let memory = session.allocate(device, 64);
            launch(&mut session, device, &body, (2, 1), [memory, memory]);
            session.run()
        };
        run(Some(2)).unwrap_or_else(|report| panic!("{report}"));
        let report = run(Some(1)).unwrap_err();
        assert_eq!(report.kind, ReportKind::ResidencyDeadlock, "{report}");
    }
}

#[test]
fn threads_that_leave_a_barrier_to_others_have_diverged() {
    let mut session = Session::new(Options::default());
    let device = session.device();
    let memory = session.allocate(device, 64);
    let body = "setp.eq.u32 %p, %r0, 0; @%p ret; bar.sync 0;";
    launch(&mut session, device, body, (1, 32), [memory, memory]);
    assert_eq!(session.run().unwrap_err().kind, ReportKind::BarrierDivergence);
}

#[test]
fn two_addresses_of_one_location_are_found() {
    let mut session = Session::new(Options::default());
    let device = session.device();
    let memory = session.allocate(device, 64);
    let other = session.alias(memory, 64);
    let body = "st.global.u32 [%x], %r2; ld.global.u32 %r3, [%y];";
    launch(&mut session, device, body, (1, 1), [memory, memory]);
    session.run().unwrap();
    launch(&mut session, device, body, (1, 1), [memory, other]);
    assert_eq!(session.run().unwrap_err().kind, ReportKind::Alias);
}

#[test]
fn the_end_of_a_kernel_orders_what_follows_on_its_device() {
    for seed in 0..50 {
        let mut session = Session::new(Options { seed, ..Options::default() });
        let device = session.device();
        let memory = session.allocate(device, 256);
        let body = "ld.global.nc.u32 %r3, [%x]; add.u32 %r3, %r3, 1; st.global.u32 [%y], %r3;";
        let (a, b) = (memory, memory + 64);
        launch(&mut session, device, body, (1, 1), [a, b]);
        launch(&mut session, device, body, (1, 1), [b, a]);
        launch(&mut session, device, body, (1, 1), [a, b]);
        session.run().unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(session.read(b, 4), 3u32.to_le_bytes(), "seed {seed}");
    }
}

#[test]
fn a_sleeping_device_does_not_reach_a_deadline_that_is_far() {
    // The timer is the instruction count: a wait of a billion never happens here.
    let waits = "mov.u64 %y, %globaltimer;
        again: ld.acquire.sys.global.u32 %r3, [%x]; setp.eq.u32 %p, %r3, 1; @%p ret;
        mov.u64 %x, %x; { .reg .b64 %now; mov.u64 %now, %globaltimer; sub.s64 %now, %now, %y;
        setp.lt.u64 %q, %now, 1000000000; } @%q bra again; trap;";
    for seed in 0..100 {
        let options = Options { seed, strategy: Strategy::Hostile, ..Options::default() };
        two(options, waits, "st.release.sys.global.u32 [%x], %r2;")
            .unwrap_or_else(|report| panic!("{report}"));
    }
}

#[test]
fn an_access_outside_every_allocation_is_a_fault() {
    let report = two(Options::default(), "ld.global.u32 %r3, [%x+256];", "").unwrap_err();
    assert_eq!(report.kind, ReportKind::Fault);
    assert!(report.story.contains("ld.global.u32 %r3, [%x+256]"), "{report}");
}

#[test]
fn a_traced_run_tells_accesses_and_barriers_in_order() {
    let mut session = Session::new(Options { trace: true, ..Options::default() });
    let device = session.device();
    let memory = session.allocate(device, 64);
    session.label(memory, 4, "the word");
    let body = "setp.eq.u32 %p, %r0, 0; @%p st.global.u32 [%x], %r2; bar.sync 0; ld.global.u32 %r3, [%x];
        setp.ne.u32 %q, %r3, 1; @%q trap;";
    launch(&mut session, device, body, (1, 2), [memory, memory]);
    session.run().unwrap();
    let told = session.interleaving(10);
    let with = |what: &str| -> Vec<usize> { (0..told.len()).filter(|&at| told[at].contains(what)).collect() };
    let (writes, passes, reads) =
        (with("writes 0x1 in the word"), with("passes barrier 0"), with("reads 0x1"));
    assert_eq!((writes.len(), passes.len(), reads.len()), (1, 2, 2), "{told:#?}");
    assert!(writes[0] < passes[0] && passes[1] < reads[0], "{told:#?}");
}
