//! The longest dependent path, counted on kernels small enough to count by hand.

use meshreduce_emulator_ptx::{Launch, Module};
use meshreduce_emulator_weak_memory::adversary::{DeviceId, Options, Session};
use meshreduce_emulator_weak_memory::path::{Path, PathError, StepKind, Traced, trace};

/// Words of a rank's pad: a signal, a flag that stays 0, and what a fence has to wait for.
const SIGNAL: u64 = 0;
const ABORT: u64 = 8;
const NOTE: u64 = 16;

/// Two ranks that run one body, which may store to the first half of data. In it: `%rd1` the rank's table (own pad, peer's pad, own data, peer's data), `%rd2` its
/// output; `%r9` the thread's index; registers `%p`, `%r` and `%rd` from 10 on are free.
fn two_ranks(body: &str, threads: u32) -> Result<Traced, PathError> {
    let text = format!(
        ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b) {{\n\
         .reg .pred %p<40>; .reg .b32 %r<40>; .reg .b64 %rd<40>; .shared .b32 word;\n\
         ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; mov.u32 %r9, %tid.x;\n{body}\nret; }}"
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let mut session = Session::new(Options::default());
    let devices: Vec<DeviceId> = (0..2).map(|_| session.device()).collect();
    let pads: Vec<u64> = devices.iter().map(|&device| session.allocate(device, 64)).collect();
    let data: Vec<u64> = devices.iter().map(|&device| session.allocate(device, 512)).collect();
    let mut outputs = Vec::new();
    for (rank, &device) in devices.iter().enumerate() {
        let host = session.allocate_host(8);
        let table = session.allocate(device, 40);
        let output = session.allocate(device, 256);
        let entries = [pads[rank], pads[1 - rank], data[rank], data[1 - rank], host];
        session.write(table, &entries.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<u8>>());
        session.write(data[rank], &[rank as u8 + 1; 512]);
        let params: Vec<u8> = [table, output].iter().flat_map(|address| address.to_le_bytes()).collect();
        let kernel = module.kernel("k").expect("the kernel");
        let params = params.into();
        session.launch(
            device,
            Launch { kernel, grid: [1; 3], block: [threads, 1, 1], params, dynamic_shared: 0 },
        );
        outputs.push(output..output + 256);
    }
    trace(&session, &outputs)
}

/// Round trips, local accesses by phase, system and gpu fences to the result.
fn counted(body: &str) -> (f64, Vec<u16>, u16, u16) {
    let traced = two_ranks(body, 32).unwrap_or_else(|error| panic!("{error}"));
    told(&traced.result.expect("a result"))
}

fn told(path: &Path) -> (f64, Vec<u16>, u16, u16) {
    (path.length.trips(), path.local_by_phase(), path.length.system_fences, path.length.gpu_fences)
}

/// A rank stages, signals, awaits, pulls and stores: `staged` stands before the release, `pulled` behind the wait.
fn barrier(staged: &str, pulled: &str) -> String {
    format!(
        "ld.global.nc.u64 %rd10, [%rd1]; ld.global.nc.u64 %rd11, [%rd1+8];
         ld.global.nc.u64 %rd12, [%rd1+16]; ld.global.nc.u64 %rd13, [%rd1+24];
         mul.wide.u32 %rd14, %r9, 4; add.u64 %rd15, %rd12, %rd14; add.u64 %rd16, %rd13, %rd14;
         st.global.u32 [%rd15], %r9; {staged}
         bar.sync 0; setp.ne.u32 %p1, %r9, 0; @%p1 bra $there;
         mov.u64 %rd20, 1; st.release.sys.global.u64 [%rd11+{SIGNAL}], %rd20;
         $wait: ld.relaxed.sys.global.u32 %r10, [%rd10+{ABORT}]; setp.ne.u32 %p2, %r10, 0; @%p2 bra $there;
         ld.acquire.sys.global.u64 %rd21, [%rd10+{SIGNAL}]; setp.lt.u64 %p3, %rd21, 1; @%p3 bra $wait;
         $there: bar.sync 0; {pulled}
         ld.global.u32 %r11, [%rd16]; add.u64 %rd17, %rd2, %rd14; st.global.u32 [%rd17], %r11;"
    )
}

/// Data and flag in one word straight into the peer's memory; it polls its own.
fn packets(before: &str, behind: &str) -> String {
    format!(
        "ld.global.nc.u64 %rd12, [%rd1+16]; ld.global.nc.u64 %rd13, [%rd1+24];
         mul.wide.u32 %rd14, %r9, 8; add.u64 %rd15, %rd12, %rd14; add.u64 %rd16, %rd13, %rd14;
         mov.u64 %rd20, 7; {before} st.relaxed.sys.global.u64 [%rd16], %rd20;
         $wait: ld.relaxed.sys.global.u64 %rd21, [%rd15]; setp.ne.u64 %p3, %rd21, 7; @%p3 bra $wait;
         {behind} add.u64 %rd17, %rd2, %rd14; st.global.u64 [%rd17], %rd21;"
    )
}

#[test]
fn a_barrier_costs_one_way_and_a_pull_a_round_trip() {
    // Table, staging | the look that succeeds, output. The fence waits for the staging; the abort word is looked at
    // while the signal is on its way.
    assert_eq!(counted(&barrier("", "")), (1.5, vec![2, 2], 1, 0));
}

#[test]
fn a_remote_store_before_the_publishing_fence_costs_a_round_trip() {
    let note = format!("st.relaxed.sys.global.u32 [%rd11+{NOTE}], %r9;");
    let traced = two_ranks(&barrier(&note, ""), 32).expect("it ends");
    let result = traced.result.expect("a result");
    // The staging is done long before the acknowledgement is back, and not on the path.
    assert_eq!(told(&result), (2.5, vec![1, 2], 1, 0));
    assert_eq!(result.acknowledgements(), 1);
}

#[test]
fn a_store_of_any_thread_of_the_block_is_waited_for_once_it_came_to_the_barrier() {
    let note = format!(
        "setp.ne.u32 %p5, %r9, 31; @%p5 bra $not; st.relaxed.sys.global.u32 [%rd11+{NOTE}], %r9; $not:"
    );
    assert_eq!(counted(&barrier(&note, "")).0, 2.5);
    // Behind the publishing fence it is nobody's.
    let late = format!("st.relaxed.sys.global.u32 [%rd11+{NOTE}], %r9;");
    assert_eq!(counted(&barrier("", &late)).0, 1.5);
}

#[test]
fn one_more_wait_over_nvlink_is_one_more_round_trip() {
    let again = "ld.global.u32 %r20, [%rd16]; setp.eq.u32 %p6, %r20, 77; @%p6 bra $there;";
    assert_eq!(counted(&barrier("", again)), (2.5, vec![2, 2], 1, 0));
    let before = "ld.global.u64 %rd30, [%rd16+256]; and.b64 %rd30, %rd30, 0; add.u64 %rd20, %rd20, %rd30;";
    assert_eq!(counted(&packets("", "")), (0.5, vec![1, 2], 0, 0));
    assert_eq!(counted(&packets(before, "")), (1.5, vec![1, 2], 0, 0));
}

#[test]
fn one_more_dependent_local_access_is_counted_where_it_is() {
    // A word whose value decides the next address, as a pointer behind a pointer.
    let link = |base: &str| {
        format!("ld.global.u64 %rd30, [{base}]; and.b64 %rd30, %rd30, 0; add.u64 %rd14, %rd14, %rd30;")
    };
    let late = format!("{} add.u64 %rd16, %rd13, %rd14;", link("%rd12+256"));
    assert_eq!(counted(&barrier("", &late)), (1.5, vec![2, 3], 1, 0));
    let early = format!("{} add.u64 %rd16, %rd13, %rd14;", link("%rd12+256"));
    assert_eq!(counted(&packets(&early, "")), (0.5, vec![2, 2], 0, 0));
    assert_eq!(counted(&packets("", &link("%rd12+256"))), (0.5, vec![1, 3], 0, 0));
}

#[test]
fn loads_that_wait_for_nothing_of_one_another_count_once() {
    let beside = "ld.global.u64 %rd30, [%rd12+256]; ld.global.u64 %rd31, [%rd12+264]; ld.global.u64 %rd32, [%rd12+272];
        and.b64 %rd30, %rd30, 0; and.b64 %rd31, %rd31, 0; add.u64 %rd20, %rd20, %rd30; add.u64 %rd20, %rd20, %rd31;";
    assert_eq!(counted(&packets(beside, "")), (0.5, vec![2, 2], 0, 0));
    let remote = "ld.global.u32 %r20, [%rd16]; ld.global.u32 %r21, [%rd13]; ld.global.u32 %r22, [%rd13+4];";
    assert_eq!(counted(&barrier("", remote)).0, 1.5);
}

#[test]
fn a_wait_counts_as_the_look_that_succeeds_however_often_it_looked() {
    // Rank 1 answers only what rank 0 has sent, so rank 0 looks in vain first.
    let chain = "ld.global.nc.u64 %rd10, [%rd1]; ld.global.nc.u64 %rd11, [%rd1+8]; ld.global.nc.u64 %rd12, [%rd1+16];
        setp.ne.u32 %p1, %r9, 0; @%p1 bra $end; ld.global.u8 %r10, [%rd12]; setp.ne.u32 %p2, %r10, 1; @%p2 bra $second;
        mov.u64 %rd20, 1; st.relaxed.sys.global.u64 [%rd11], %rd20;
        $one: ld.relaxed.sys.global.u32 %r11, [%rd10+8]; ld.relaxed.sys.global.u64 %rd21, [%rd10];
        setp.ne.u64 %p3, %rd21, 2; @%p3 bra $one; st.global.u64 [%rd2], %rd21; bra $end;
        $second: ld.relaxed.sys.global.u64 %rd22, [%rd10]; setp.ne.u64 %p4, %rd22, 1; @%p4 bra $second;
        mov.u64 %rd20, 2; st.relaxed.sys.global.u64 [%rd11], %rd20; $end:";
    // Table and which rank | the look | the look, the output.
    assert_eq!(counted(chain), (1.0, vec![2, 1, 2], 0, 0));
}

#[test]
fn polling_the_peers_memory_costs_a_round_trip() {
    let pull = "ld.global.nc.u64 %rd10, [%rd1]; ld.global.nc.u64 %rd11, [%rd1+8]; mov.u64 %rd20, 1;
        st.relaxed.sys.global.u64 [%rd10], %rd20;
        $wait: ld.relaxed.sys.global.u64 %rd21, [%rd11]; setp.ne.u64 %p3, %rd21, 1; @%p3 bra $wait;
        st.global.u64 [%rd2], %rd21;";
    assert_eq!(counted(pull), (1.0, vec![2], 0, 0));
}

#[test]
fn fences_and_what_is_behind_the_result_are_told() {
    let count = "bar.sync 0; ld.global.nc.u64 %rd10, [%rd1]; mov.u32 %r20, 1; \
        atom.acq_rel.gpu.global.add.u32 %r21, [%rd10+24], %r20; setp.ne.u32 %p7, %r21, 31; @%p7 bra $out; \
        st.global.u32 [%rd10+24], %r20; $out:";
    let traced = two_ranks(&format!("{}\n{count}", packets("", "")), 32).expect("it ends");
    let (result, end) = (traced.result.expect("a result"), traced.end);
    assert_eq!(told(&result), (0.5, vec![1, 2], 0, 0));
    // The fence waits for the packet's acknowledgement; what is behind it is not on the way to the result.
    assert_eq!((end.length.trips(), end.length.gpu_fences), (1.0, 1));
    let kinds: Vec<StepKind> = end.steps.iter().map(|step| step.kind).collect();
    use StepKind::{Acknowledged, Atomic, GpuFence, Load, Store};
    assert_eq!(kinds, [Load, Acknowledged, GpuFence, Atomic, Store]);
    let text = packets("fence.sc.sys;", "membar.gl;");
    assert_eq!(counted(&text), (1.0, vec![2], 1, 1));
}

#[test]
fn acknowledgements_that_nobody_waits_for_are_told_apart() {
    let traced = two_ranks(&packets("", ""), 32).expect("it ends");
    assert_eq!((traced.end.length.trips(), traced.acknowledged.length.trips()), (0.5, 1.0));
}

#[test]
fn shared_memory_and_parameters_cost_nothing_and_carry_what_they_wait_for() {
    let through = "mov.u64 %rd30, word; setp.ne.u32 %p8, %r9, 5; @%p8 bra $skip;
        ld.global.u32 %r30, [%rd12+256]; st.shared.u32 [%rd30], %r30; $skip: bar.sync 0;
        ld.shared.u32 %r31, [%rd30]; and.b32 %r31, %r31, 0; cvt.u64.u32 %rd31, %r31; add.u64 %rd20, %rd20, %rd31;";
    assert_eq!(counted(&packets(through, "")), (0.5, vec![2, 2], 0, 0));
}

#[test]
fn host_memory_is_told_apart() {
    let host = "ld.global.nc.u64 %rd30, [%rd1+32]; ld.relaxed.sys.global.u32 %r20, [%rd30];
        setp.ne.u32 %p9, %r20, 0; @%p9 bra $wait;";
    let result = two_ranks(&packets(host, ""), 32).expect("it ends").result.expect("a result");
    assert_eq!((result.length.host, result.length.trips()), (1, 0.5));
}

#[test]
fn memory_is_left_as_the_kernels_leave_it_and_a_path_names_its_lines() {
    let traced = two_ranks(&packets("", ""), 32).expect("it ends");
    let result = traced.result.clone().expect("a result");
    let last = result.steps.last().expect("a step");
    assert_eq!((last.kind, last.text.contains("st.global.u64")), (StepKind::Store, true));
    assert!(last.line > 0 && last.place.starts_with("0x"), "{last:?}");
    let output = u64::from_str_radix(&last.place[2..], 16).expect("an address");
    assert_eq!(traced.read(output, 8), 7u64.to_le_bytes());
}

#[test]
fn what_cannot_go_on_is_an_error() {
    let error = two_ranks("setp.ne.u32 %p1, %r9, 0; @%p1 bra $end; bar.sync 0; $end:", 32).unwrap_err();
    assert_eq!(error, PathError::Stuck(2));
    let error = two_ranks("ld.global.u32 %r10, [%rd2+256];", 1).unwrap_err();
    assert!(matches!(error, PathError::Fault { device: 0, thread: 0, .. }), "{error}");
    assert!(error.to_string().contains("ld.global.u32"), "{error}");
    let forever = "ld.global.nc.u64 %rd10, [%rd1]; $wait: bra $wait;";
    assert!(two_ranks(forever, 1).unwrap_err().to_string().contains("no end"));
}
