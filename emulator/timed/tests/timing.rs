//! What tiny kernels take, where it can be reckoned by hand.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;

use meshreduce_emulator_ptx::{Launch, Module};
use meshreduce_emulator_timed::{Parameters, Session, StepKind, Timed, TimedError};

/// Addresses of a device's memory: 64 KiB each.
fn memory(device: usize) -> u64 {
    (device as u64 + 1) << 32
}

const BYTES: usize = 64 << 10;

/// A machine of round numbers: a cycle is a nanosecond.
fn machine() -> Parameters {
    let mut machine = Parameters::shipped("hgx-h100").unwrap();
    machine.multiprocessor.clock_mhz = 1000;
    machine.memory.l2_cycles = 200;
    machine.memory.l1_cycles = 30;
    machine.memory.constant_cycles = 0;
    machine.nvlink.one_way_ns = 500;
    machine.nvlink.link_gb_per_s = 1.0;
    machine.nvlink.switched = 10;
    machine
}

/// Runs one body a device, of `threads` threads; `%rd1` is the own memory and `%rd2` the next device's, `%r1` the thread.
fn run_on(machine: &Parameters, bodies: &[&str], threads: u32) -> Result<Timed, TimedError> {
    run_with(machine, "7.0", "70", bodies, threads)
}

/// The same of a text of an ISA version, for a compute capability.
fn run_with(
    machine: &Parameters,
    version: &str,
    capability: &str,
    bodies: &[&str],
    threads: u32,
) -> Result<Timed, TimedError> {
    let devices = bodies.len();
    let mut session = Session::new(machine, devices);
    for (device, body) in bodies.iter().enumerate() {
        let text = format!(
            ".version {version}\n.target sm_{capability}\n.address_size 64
             .visible .entry k(.param .u64 a, .param .u64 b) {{
             .reg .pred %p<10>; .reg .b32 %r<20>; .reg .b64 %rd<20>;
             ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; mov.u32 %r1, %tid.x;\n{body}\nexit; }}"
        );
        let kernel = Module::parse(&text).unwrap_or_else(|error| panic!("{error}")).kernel("k").unwrap();
        session.add_memory(Some(device), memory(device), vec![0; BYTES]);
        let parameters = [memory(device), memory((device + 1) % devices)];
        let params = parameters.iter().flat_map(|address| address.to_le_bytes()).collect();
        let (grid, block) = ([1; 3], [threads, 1, 1]);
        session.launch(device, Arc::new(Launch { kernel, grid, block, params, dynamic_shared: 0 }));
    }
    let results = memory(0)..memory(0) + 64;
    session.run(std::slice::from_ref(&results), true)
}

/// Nanoseconds until a device's kernel has ended.
fn end(timed: &Timed, device: usize) -> f64 {
    timed.kernels[device][0].end as f64 / 1000.0
}

/// What one body takes on a single device, or on the first of two of which the other does nothing.
fn takes(body: &str) -> f64 {
    end(&run_on(&machine(), &[body, ""], 32).unwrap(), 0)
}

#[track_caller]
fn near(value: f64, expected: f64) {
    assert!((value - expected).abs() <= expected * 0.02 + 3.0, "{value}, expected {expected}");
}

#[test]
fn a_chain_of_loads_takes_one_latency_each() {
    let link = "ld.relaxed.gpu.global.u64 %rd3, [%rd1]; add.u64 %rd1, %rd1, %rd3;";
    let once = takes(link);
    let four = takes(&link.repeat(4));
    near(four - once, 3.0 * (200.0 + 4.0));
    // Loads that wait for nothing of one another are under way together.
    let beside = "ld.relaxed.gpu.global.u64 %rd3, [%rd1]; ld.relaxed.gpu.global.u64 %rd4, [%rd1+64]; \
        add.u64 %rd1, %rd3, %rd4;";
    near(takes(beside) - once, 2.0);
}

#[test]
fn weak_loads_hit_the_l1_cache_until_an_acquire() {
    let load = "ld.global.u64 %rd3, [%rd1]; add.u64 %rd1, %rd1, %rd3;";
    near(takes(&load.repeat(2)) - takes(load), 30.0 + 4.0);
    let acquire = "ld.acquire.gpu.global.u64 %rd4, [%rd1+512];";
    near(takes(&[load, acquire, load].concat()) - takes(&[load, acquire].concat()), 200.0 + 4.0);
}

#[test]
fn a_load_over_nvlink_takes_both_ways() {
    let load = |from| format!("ld.relaxed.sys.global.u64 %rd3, [{from}]; add.u64 %rd4, %rd1, %rd3;");
    // A header there, 32 bytes and a header back, at 10 bytes a nanosecond, each into a queue and out of it.
    near(takes(&load("%rd2")) - takes(&load("%rd1")), 2.0 * 500.0 + 1.6 + 4.8);
}

#[test]
fn a_store_reaches_a_reader_that_polls_after_one_way() {
    let send = "mov.u64 %rd3, 7; st.relaxed.sys.global.u64 [%rd2], %rd3;";
    let poll = "$w: ld.relaxed.sys.global.u64 %rd3, [%rd1]; setp.ne.u64 %p1, %rd3, 7; @%p1 bra $w;
        st.global.u64 [%rd1+8], %rd3;";
    let timed = run_on(&machine(), &[poll, send], 1).unwrap();
    assert_eq!(timed.read(memory(0) + 8, 8), 7u64.to_le_bytes());
    // To its own port and on, over NVLink; there the look that sees it is under way for 200 ns, and may have just begun.
    let there = end(&timed, 0);
    assert!((700.0..=950.0).contains(&there), "{there}");
    let kinds: Vec<StepKind> = timed.path.iter().map(|step| step.kind).collect();
    assert_eq!(kinds, [StepKind::RemoteStore, StepKind::Load, StepKind::Store]);
    assert_eq!(timed.path.iter().map(|step| step.device).collect::<Vec<_>>(), [1, 0, 0]);
}

#[test]
fn the_path_of_a_wait_for_two_goes_by_the_one_that_came_last() {
    let late =
        "mov.u64 %rd3, 7; st.relaxed.sys.global.u64 [%rd2], %rd3; ld.relaxed.sys.global.u64 %rd4, [%rd2+64];
        add.u64 %rd3, %rd3, %rd4; st.relaxed.sys.global.u64 [%rd2+8], %rd3;";
    let poll = "$w: ld.relaxed.sys.global.u64 %rd4, [%rd1+8];
        ld.relaxed.sys.global.u64 %rd3, [%rd1];
        setp.ne.u64 %p1, %rd3, 7; @%p1 bra $w; setp.ne.u64 %p1, %rd4, 7; @%p1 bra $w; st.global.u64 [%rd1+16], %rd3;";
    let timed = run_on(&machine(), &[poll, late], 1).unwrap();
    let kinds: Vec<(usize, StepKind)> = timed.path.iter().map(|step| (step.device, step.kind)).collect();
    use StepKind::{Load, RemoteLoad, RemoteStore, Store};
    assert_eq!(kinds, [(1, RemoteLoad), (1, RemoteStore), (0, Load), (0, Store)]);
}

#[test]
fn loads_of_sixteen_bytes_that_are_copied_behind_are_under_way_together() {
    let load = |at: u32| {
        format!(
            "{{ .reg .b128 %whole; ld.relaxed.sys.global.b128 %whole, [%rd1+{at}]; mov.b128 {{%rd{0}, %rd{1}}}, %whole; }}",
            at / 16 * 2 + 4,
            at / 16 * 2 + 5
        )
    };
    let text = |loads: &[u32]| {
        let sum = |at: &u32| {
            let low = at / 16 * 2 + 4;
            format!("add.u64 %rd1, %rd1, %rd{low}; add.u64 %rd1, %rd1, %rd{};", low + 1)
        };
        let sums: String = loads.iter().map(sum).collect();
        loads.iter().map(|&at| load(at)).collect::<String>() + &sums
    };
    let runs = |body: String| end(&run_with(&machine(), "8.4", "90", &[&body], 1).unwrap(), 0);
    // Three loads more to issue, and six sums of four cycles behind them.
    near(runs(text(&[0, 16, 32, 48])) - runs(text(&[0])), 27.0);
}

#[test]
fn stores_over_nvlink_queue_for_its_bandwidth() {
    // 32 threads of 16 bytes: four lines of 144 bytes with their headers, at 10 bytes a nanosecond.
    let store =
        "mul.wide.u32 %rd5, %r1, 16; add.u64 %rd6, %rd2, %rd5; st.global.v2.u64 [%rd6], {%rd5, %rd5};";
    let acknowledged = |count: usize| {
        let more = "st.global.v2.u64 [%rd6], {%rd5, %rd5};".repeat(count - 1);
        let timed = run_on(&machine(), &[&[store, &more].concat(), ""], 32).unwrap();
        timed.kernels[0][0].acknowledged as f64 / 1000.0
    };
    near(acknowledged(21) - acknowledged(1), 20.0 * 57.6);
}

#[test]
fn directions_do_not_wait_for_each_other() {
    let store = "mul.wide.u32 %rd5, %r1, 16; add.u64 %rd6, %rd2, %rd5;".to_owned()
        + &"st.global.v2.u64 [%rd6], {%rd5, %rd5};".repeat(20);
    let alone = run_on(&machine(), &[&store, ""], 32).unwrap().kernels[0][0].acknowledged;
    let both = run_on(&machine(), &[&store, &store], 32).unwrap().kernels[0][0].acknowledged;
    assert_eq!(alone, both);
}

#[test]
fn a_fence_waits_for_the_acknowledgement_which_comes_meanwhile() {
    let fence = f64::from(machine().order.system_fence_ns);
    let store = |to| format!("st.relaxed.sys.global.u64 [{to}+64], %rd1;");
    let alone = takes("fence.acq_rel.sys;");
    near(alone - takes(""), fence);
    near(takes(&[&store("%rd1"), "fence.acq_rel.sys;"].concat()) - alone, (200.0 - fence).max(0.0));
    near(takes(&[&store("%rd2"), "fence.acq_rel.sys;"].concat()) - alone, 2.0 * 500.0 + 200.0 - fence);
    // A release begins with one; one of the block's threads alone waits for nothing.
    near(
        takes(&[&store("%rd2"), "st.release.sys.global.u64 [%rd1], %rd1;"].concat()) - alone,
        1200.0 - fence,
    );
    near(takes("fence.acq_rel.cta;") - takes(""), 0.0);
}

#[test]
fn a_fence_behind_a_barrier_waits_for_the_stores_of_all_that_came() {
    let body = |store: &str| {
        format!(
            "setp.ne.u32 %p1, %r1, 40; @%p1 bra $on; {store} $on: bar.sync 0;
             setp.ne.u32 %p2, %r1, 0; @%p2 bra $end; fence.acq_rel.sys; $end:"
        )
    };
    let takes = |body: &str| end(&run_on(&machine(), &[body, ""], 64).unwrap(), 0);
    let store = "st.relaxed.sys.global.u64 [%rd2+64], %rd1;";
    let fence = f64::from(machine().order.system_fence_ns);
    assert!(takes(&body(store)) - takes(&body("")) > 1000.0 - fence);
}

#[test]
fn atomics_on_one_address_give_every_thread_another_number() {
    let body = "mov.u32 %r2, 1; atom.relaxed.gpu.global.add.u32 %r3, [%rd1], %r2;
        mul.wide.u32 %rd5, %r3, 4; add.u64 %rd6, %rd1, %rd5; st.global.u32 [%rd6+64], %r1;";
    let timed = run_on(&machine(), &[body], 96).unwrap();
    assert_eq!(timed.read(memory(0), 4), 96u32.to_le_bytes());
    let mut seen: Vec<u8> = timed.read(memory(0) + 64, 4 * 96).chunks(4).map(|word| word[0]).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..96).collect::<Vec<u8>>());
}

#[test]
fn threads_that_part_meet_again_and_a_wait_for_another_thread_of_the_warp_ends() {
    // The odd threads store; the even ones wait for them, and stand first in the text.
    let body =
        "and.b32 %r2, %r1, 1; setp.ne.u32 %p1, %r2, 0; mul.wide.u32 %rd5, %r1, 8; add.u64 %rd6, %rd1, %rd5;
        @%p1 bra $odd;
        $w: ld.relaxed.gpu.global.u64 %rd7, [%rd6+8]; setp.ne.u64 %p2, %rd7, 5; @%p2 bra $w; bra $join;
        $odd: mov.u64 %rd7, 5; st.relaxed.gpu.global.u64 [%rd6], %rd7;
        $join: bar.warp.sync 0xffffffff; st.global.u64 [%rd6+1024], %rd7;";
    let timed = run_on(&machine(), &[body], 32).unwrap();
    assert_eq!(timed.read(memory(0) + 1024, 256), 5u64.to_le_bytes().repeat(32));
    let joined = timed.steps.iter().filter(|step| step.text.contains("+1024")).count();
    assert_eq!(joined, 1);
}

#[test]
fn a_barrier_reduces_and_lets_all_go_when_the_last_has_come() {
    let body = "setp.eq.u32 %p1, %r1, 70; bar.red.popc.u32 %r2, 0, %p1; mul.wide.u32 %rd5, %r1, 4;
        add.u64 %rd6, %rd1, %rd5; st.global.u32 [%rd6], %r2;";
    let timed = run_on(&machine(), &[body], 128).unwrap();
    assert_eq!(timed.read(memory(0), 512), 1u32.to_le_bytes().repeat(128));
}

#[test]
fn the_next_kernel_begins_when_all_stores_are_acknowledged() {
    let machine = machine();
    let mut session = Session::new(&machine, 2);
    let text = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(.param .u64 a) {
        .reg .b64 %rd<4>; ld.param.u64 %rd1, [a]; st.global.u64 [%rd1], %rd1; exit; }";
    let kernel = Module::parse(text).unwrap().kernel("k").unwrap();
    (0..2).for_each(|device| session.add_memory(Some(device), memory(device), vec![0; BYTES]));
    for _ in 0..2 {
        let (kernel, params) = (kernel.clone(), memory(1).to_le_bytes().into());
        session
            .launch(0, Arc::new(Launch { kernel, grid: [1; 3], block: [1; 3], params, dynamic_shared: 0 }));
    }
    let timed = session.run(&[], false).unwrap();
    let [first, second] = timed.kernels[0][..] else { panic!("two kernels") };
    assert!(first.acknowledged >= first.end + 1_000_000);
    assert_eq!(second.begin, first.acknowledged + u64::from(machine.launch.next_kernel_ns) * 1000);
    assert!(timed.path.is_empty() && timed.steps.is_empty());
}

#[test]
fn two_runs_are_the_same() {
    let body = "mov.u32 %r2, 1; atom.relaxed.sys.global.add.u32 %r3, [%rd2], %r2; bar.sync 0;
        mul.wide.u32 %rd5, %r3, 4; add.u64 %rd6, %rd1, %rd5; st.global.u32 [%rd6+64], %r1;";
    let run = || {
        let timed = run_on(&machine(), &[body, body], 256).unwrap();
        (timed.kernels.clone(), timed.steps.clone(), timed.read(memory(0), BYTES).to_vec())
    };
    assert_eq!(run(), run());
}

#[test]
fn what_cannot_go_on_is_an_error() {
    let error = |body: &str| run_on(&machine(), &[body], 64).unwrap_err().to_string();
    assert!(error("setp.lt.u32 %p1, %r1, 32; @%p1 bra $o; bar.sync 0, 96; $o:").contains("1 warps wait"));
    let text = error("ld.global.u64 %rd3, [%rd1+65536];");
    assert!(
        text.contains("out of bounds") && text.contains("ld.global.u64") && text.contains("device 0"),
        "{text}"
    );
    assert!(error("ld.global.u64 %rd3, [%rd1+4];").contains("misaligned"));
    assert!(error("trap;").contains("trap"));
    let mut slow = machine();
    slow.multiprocessor.clock_mhz = 1;
    let error = run_on(&slow, &["$w: bra $w;"], 1).unwrap_err();
    assert!(matches!(error, TimedError::NoEnd { .. }), "{error}");
    let mesh = Parameters::shipped("dgx-1v").unwrap();
    let far = "sub.u64 %rd3, %rd1, 12884901888; st.global.u64 [%rd3], %rd1;";
    let error = run_on(&mesh, &["", "", "", "", "", far], 1).unwrap_err();
    assert!(matches!(error, TimedError::NoLink { from: 5, to: 2, .. }), "{error}");
    let mut small = machine();
    small.multiprocessor.threads = 32;
    let error = run_on(&small, &[""], 64).unwrap_err();
    assert!(matches!(error, TimedError::Block { threads: 64, most: 32 }), "{error}");
}
