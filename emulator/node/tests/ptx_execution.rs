//! Whole kernels on the direct executor: control flow, memory faults, barriers, atomics and spinning.

#![allow(clippy::unwrap_used, clippy::precedence, clippy::double_comparisons, clippy::needless_range_loop)]

mod support;

use meshreduce_emulator_node::exec::TurnEnd;
use meshreduce_emulator_ptx::FaultKind;
use support::{Memory, blocks, kernel, launch, run, run_all};

const OUT: &str = ".param .u64 out";

#[test]
fn every_thread_of_every_block_knows_its_place() {
    let text = kernel(
        OUT,
        ".reg .b32 %r<6>; .reg .b64 %rd<4>;
         ld.param.u64 %rd1, [out]; cvta.to.global.u64 %rd1, %rd1;
         mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
         mad.lo.s32 %r4, %r1, %r2, %r3;
         mul.wide.u32 %rd2, %r4, 4; add.s64 %rd3, %rd1, %rd2;
         mov.u32 %r5, %laneid; shl.b32 %r5, %r5, 16; or.b32 %r5, %r5, %r4;
         st.global.u32 [%rd3], %r5; ret;",
    );
    let memory = Memory::default();
    let out = memory.allocate(4 * 300);
    let instructions = run(&memory, &text, 3, 100, &[out]).unwrap();
    assert_eq!(instructions, 300 * 13);
    for index in 0..300 {
        assert_eq!(memory.u32(out + 4 * index), (index % 100 % 32 << 16 | index) as u32);
    }
}

#[test]
fn a_loop_with_a_guarded_branch_ends_when_its_guard_is_false() {
    let text = kernel(
        OUT,
        ".reg .pred %p; .reg .u32 %i, %sum; .reg .u64 %a;
         ld.param.u64 %a, [out];
         mov.u32 %i, 0; mov.u32 %sum, 0;
         again: add.u32 %sum, %sum, %i; add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 10; @%p bra again;
         @!%p st.global.u32 [%a], %sum;",
    );
    let memory = Memory::default();
    let out = memory.allocate(4);
    run(&memory, &text, 1, 1, &[out]).unwrap();
    assert_eq!(memory.u32(out), 45);
}

#[test]
fn an_access_past_the_end_names_kernel_line_thread_and_allocation() {
    let text = kernel(
        OUT,
        ".reg .u64 %a, %t; .reg .u32 %r;
         mov.u32 %r, %tid.x;
         mul.wide.u32 %t, %r, 4;
         ld.param.u64 %a, [out];
         add.u64 %a, %a, %t;
         st.global.u32 [%a], %r;",
    );
    let memory = Memory::default();
    let out = memory.allocate(64);
    let fault = run(&memory, &text, 1, 17, &[out]).unwrap_err();
    assert_eq!((fault.kernel.as_str(), fault.line, fault.thread), ("k", 11, [16, 0, 0]));
    assert_eq!(fault.text, "st.global.u32 [%a], %r;");
    match fault.kind {
        FaultKind::OutOfBounds { access: "store", address, bytes: 4, nearest } => {
            assert_eq!(address, out + 64);
            assert!(nearest.contains("0 bytes past the end"), "{nearest}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn sixteen_bytes_move_at_once_the_lower_half_first() {
    let text = kernel(
        OUT,
        ".reg .u64 %a, %x, %y; .reg .b128 %w<3>; .shared .align 16 .b8 s[16]; .local .align 16 .b8 l[16];
         ld.param.u64 %a, [out]; ld.global.b128 %w0, [%a]; st.shared.b128 [s], %w0; ld.shared.b128 %w1, [s];
         mov.b128 %w2, %w1; mov.b128 {%x, %y}, %w2; add.u64 %x, %x, 1; mov.b128 %w2, {%y, %x};
         st.local.b128 [l], %w2; ld.local.b128 %w0, [l]; st.relaxed.sys.global.b128 [%a+16], %w0;",
    );
    let memory = Memory::default();
    let out = memory.allocate(32);
    memory.write(out, &[[7u64.to_le_bytes(), 9u64.to_le_bytes()].concat(), vec![0; 16]].concat());
    run(&memory, &text, 1, 1, &[out]).unwrap();
    assert_eq!(memory.read(out + 16, 16), [9u64.to_le_bytes(), 8u64.to_le_bytes()].concat());
    let off = kernel(OUT, ".reg .u64 %a; .reg .b128 %w; ld.param.u64 %a, [out]; ld.global.b128 %w, [%a+8];");
    let fault = run(&memory, &off, 1, 1, &[out]).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Misaligned { access: "load", bytes: 16, .. }), "{fault:?}");
}

#[test]
fn a_vector_must_be_aligned_as_a_whole_and_lie_in_one_allocation() {
    let text = kernel(OUT, ".reg .u64 %a, %x, %y; ld.param.u64 %a, [out]; ld.global.v2.u64 {%x, %y}, [%a];");
    let memory = Memory::default();
    let out = memory.allocate(24);
    let fault = run(&memory, &text, 1, 1, &[out + 8]).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Misaligned { access: "load", bytes: 16, .. }), "{fault:?}");
    let fault = run(&memory, &text, 1, 1, &[out + 16]).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::OutOfBounds { bytes: 16, .. }), "{fault:?}");
    run(&memory, &text, 1, 1, &[out]).unwrap();
}

#[test]
fn memory_that_is_freed_between_two_turns_is_not_found_again() {
    let text = kernel(
        OUT,
        ".reg .u64 %a; .reg .u32 %r; ld.param.u64 %a, [out];
         again: ld.volatile.global.u32 %r, [%a]; bra again;",
    );
    let memory = Memory::default();
    let out = memory.allocate(4);
    let mut block = blocks(&launch(&text, 1, 1, &[out])).remove(0);
    assert!(matches!(block.run(&memory, 10_000).end, TurnEnd::Spinning));
    memory.free(out);
    match block.run(&memory, 10_000).end {
        TurnEnd::Fault(fault) => assert!(matches!(fault.kind, FaultKind::OutOfBounds { .. })),
        other => panic!("{other:?}"),
    }
}

#[test]
fn shared_memory_is_a_blocks_own_and_bounded() {
    let text = kernel(
        OUT,
        ".shared .align 8 .b8 words[16]; .reg .u64 %a, %s, %v; .reg .u32 %r; .reg .pred %p;
         mov.u32 %r, %ctaid.x; st.shared.u32 [words+4], %r;
         mov.u64 %s, words; cvta.shared.u64 %s, %s; isspacep.shared %p, %s;
         ld.u32 %r, [%s+4];
         cvt.u64.u32 %v, %r; shl.b64 %v, %v, 2; ld.param.u64 %a, [out]; add.u64 %a, %a, %v;
         @%p st.global.u32 [%a], %r;
         st.u32 [%s+16], %r;",
    );
    let memory = Memory::default();
    let out = memory.allocate(8);
    let launch = launch(&text, 2, 1, &[out]);
    assert_eq!(launch.kernel.shared_bytes, 16);
    for mut block in blocks(&launch) {
        match block.run(&memory, 1000).end {
            TurnEnd::Fault(fault) => match fault.kind {
                FaultKind::OutOfBounds { nearest, .. } => {
                    assert_eq!(nearest, "offset 16 of 16 bytes of shared memory");
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((memory.u32(out), memory.u32(out + 4)), (0, 1));
}

#[test]
fn a_barrier_lets_every_thread_see_what_the_others_wrote_before_it() {
    let text = kernel(
        OUT,
        ".shared .u32 words[64]; .reg .u64 %a, %o; .reg .u32 %t, %s, %n, %r;
         mov.u32 %t, %tid.x; shl.b32 %s, %t, 2; add.u32 %r, %t, 100;
         .reg .u32 %base; mov.u32 %base, words; add.u32 %s, %s, %base; st.shared.u32 [%s], %r;
         bar.sync 0;
         add.u32 %n, %t, 1; and.b32 %n, %n, 63; shl.b32 %n, %n, 2; add.u32 %n, %n, %base;
         ld.shared.u32 %r, [%n];
         ld.param.u64 %a, [out]; mul.wide.u32 %o, %t, 4; add.u64 %a, %a, %o; st.global.u32 [%a], %r;",
    );
    let memory = Memory::default();
    let out = memory.allocate(256);
    run(&memory, &text, 1, 64, &[out]).unwrap();
    for thread in 0..64 {
        assert_eq!(memory.u32(out + 4 * thread), ((thread + 1) % 64 + 100) as u32);
    }
}

#[test]
fn a_barrier_that_threads_have_left_for_good_is_a_divergence() {
    let text = kernel(
        "",
        ".reg .u32 %t; .reg .pred %p; mov.u32 %t, %tid.x; setp.eq.u32 %p, %t, 3; @%p exit; bar.sync 0;",
    );
    let fault = run(&Memory::default(), &text, 1, 32, &[]).unwrap_err();
    match fault.kind {
        FaultKind::BarrierDivergence(text) => assert!(text.contains("1 threads have exited"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(fault.text.ends_with("bar.sync 0;"));
}

#[test]
fn threads_at_different_barriers_are_a_divergence() {
    let text = kernel(
        "",
        ".reg .u32 %t; .reg .pred %p; mov.u32 %t, %tid.x; and.b32 %t, %t, 1; setp.eq.u32 %p, %t, 0;
         @%p bra even; bar.sync 1; ret;
         even: bar.sync 2;",
    );
    let fault = run(&Memory::default(), &text, 1, 32, &[]).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::BarrierDivergence(_)), "{fault:?}");
}

#[test]
fn barrier_reductions_and_partial_barriers_count_their_threads() {
    let text = kernel(
        OUT,
        ".reg .u32 %t, %n; .reg .pred %p, %all, %any; .reg .u64 %a;
         mov.u32 %t, %tid.x; setp.lt.u32 %p, %t, 5;
         bar.red.popc.u32 %n, 0, %p; bar.red.and.pred %all, 0, %p; bar.red.or.pred %any, 0, 64, !%p;
         bar.arrive 1, 64; 
         ld.param.u64 %a, [out];
         @%any add.u32 %n, %n, 100; @%all add.u32 %n, %n, 1000;
         @%p st.global.u32 [%a], %n;",
    );
    let memory = Memory::default();
    let out = memory.allocate(4);
    run(&memory, &text, 1, 64, &[out]).unwrap();
    assert_eq!(memory.u32(out), 105);
}

#[test]
fn atomics_of_many_threads_add_up() {
    let text = kernel(
        OUT,
        ".reg .u64 %a, %x; .reg .u32 %r, %t; .reg .f32 %f;
         ld.param.u64 %a, [out]; mov.u32 %t, %tid.x;
         atom.acq_rel.sys.global.add.u32 %r, [%a], 2;
         red.release.gpu.global.max.u32 [%a+4], %t;
         atom.global.inc.u32 %r, [%a+8], 9;
         mov.f32 %f, 0f3F000000; red.add.f32 [%a+12], %f;
         atom.relaxed.sys.cas.b64 %x, [%a+16], 0, 7;
         atom.exch.b32 %r, [%a+24], %t;",
    );
    let memory = Memory::default();
    let out = memory.allocate(32);
    run(&memory, &text, 2, 32, &[out]).unwrap();
    assert_eq!(memory.u32(out), 128);
    assert_eq!(memory.u32(out + 4), 31);
    assert_eq!(memory.u32(out + 8), 4, "64 increments modulo 10");
    assert_eq!(f32::from_bits(memory.u32(out + 12)), 32.0);
    assert_eq!(memory.u64(out + 16), 7);
    assert_eq!(memory.u32(out + 24), 31);
}

#[test]
fn a_trap_is_a_fault() {
    let fault = run(&Memory::default(), &kernel("", "trap;"), 1, 1, &[]).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Trap));
    assert_eq!((fault.line, fault.text.as_str()), (6, "trap;"));
}

const WAIT: &str = ".reg .u64 %a, %t, %end; .reg .u32 %r, %abort, %n; .reg .pred %p;
     ld.param.u64 %a, [out];
     mov.u32 %n, %tid.x; setp.ne.u32 %p, %n, 0; @%p bra done;
     mov.u64 %end, %globaltimer; add.u64 %end, %end, 3600000000000;
     again: ld.acquire.sys.global.u32 %r, [%a]; setp.ne.u32 %p, %r, 0; @%p bra done;
     ld.relaxed.sys.global.u32 %abort, [%a+4]; setp.ne.u32 %p, %abort, 0; @%p bra done;
     add.u32 %n, %n, 1; and.b32 %abort, %n, 63; setp.ne.u32 %p, %abort, 0; @%p bra skip;
     ld.relaxed.sys.u32 %abort, [%a+12];
     skip: mov.u64 %t, %globaltimer; setp.lt.u64 %p, %t, %end; @%p bra again;
     done: bar.sync 0;
     mov.u32 %n, %tid.x; setp.eq.u32 %p, %n, 0; @%p st.global.u32 [%a+8], 1;";

#[test]
fn a_block_that_waits_for_a_flag_says_so_after_few_instructions() {
    let memory = Memory::default();
    let out = memory.allocate(16);
    let mut block = blocks(&launch(&kernel(OUT, WAIT), 1, 64, &[out])).remove(0);
    for turn in 0..300 {
        let turn_end = block.run(&memory, 1_000_000);
        assert!(matches!(turn_end.end, TurnEnd::Spinning), "{:?}", turn_end.end);
        assert!(turn_end.instructions < if turn == 0 { 1000 } else { 200 }, "{}", turn_end.instructions);
    }
    memory.write_u32(out, 1);
    assert!(matches!(block.run(&memory, 1_000_000).end, TurnEnd::Done));
    assert_eq!(memory.u32(out + 8), 1);
}

#[test]
fn threads_that_wait_for_each_other_within_a_block_make_progress() {
    let text = kernel(
        "",
        ".shared .u32 flag; .reg .u32 %t, %r; .reg .pred %p;
         mov.u32 %t, %tid.x;
         again: ld.volatile.shared.u32 %r, [flag]; setp.ne.u32 %p, %r, %t; @%p bra again;
         add.u32 %r, %r, 1; st.volatile.shared.u32 [flag], %r;",
    );
    let launch = launch(&text, 1, 64, &[]);
    let mut block = blocks(&launch).remove(0);
    assert!(matches!(block.run(&Memory::default(), 10_000_000).end, TurnEnd::Done));
}

#[test]
fn a_loop_over_strong_loads_of_other_addresses_is_no_spinning() {
    let text = kernel(
        OUT,
        ".reg .u64 %a, %end; .reg .u32 %r, %s; .reg .pred %p;
         ld.param.u64 %a, [out]; add.u64 %end, %a, 4096; mov.u32 %s, 0;
         again: ld.relaxed.gpu.u32 %r, [%a]; add.u32 %s, %s, %r; add.u64 %a, %a, 4;
         setp.ne.u64 %p, %a, %end; @%p bra again;",
    );
    let memory = Memory::default();
    let out = memory.allocate(4096);
    let mut block = blocks(&launch(&text, 1, 1, &[out])).remove(0);
    assert!(matches!(block.run(&memory, 1_000_000).end, TurnEnd::Done));
}

#[test]
fn the_budget_is_kept_and_no_thread_starves() {
    let text = kernel(
        OUT,
        ".reg .u64 %a; .reg .u32 %t, %r; .reg .pred %p;
         ld.param.u64 %a, [out]; mov.u32 %t, %tid.x; setp.ne.u32 %p, %t, 0; @%p bra set;
         again: ld.global.u32 %r, [%a]; setp.eq.u32 %p, %r, 0; @%p bra again; ret;
         set: mov.u32 %r, 1; st.global.u32 [%a], %r;",
    );
    let memory = Memory::default();
    let out = memory.allocate(4);
    let mut block = blocks(&launch(&text, 1, 2, &[out])).remove(0);
    let first = block.run(&memory, 500);
    assert!(matches!(first.end, TurnEnd::Budget) && first.instructions == 500);
    run_all(&memory, vec![block]).unwrap();
}

#[test]
fn warp_barriers_wait_for_the_lanes_of_their_mask() {
    let text = kernel(
        OUT,
        ".shared .u32 word; .reg .u32 %t, %r; .reg .pred %p; .reg .u64 %a;
         mov.u32 %t, %tid.x; setp.eq.u32 %p, %t, 31; @%p st.shared.u32 [word], %t;
         bar.warp.sync 0xffffffff;
         ld.shared.u32 %r, [word]; ld.param.u64 %a, [out]; setp.eq.u32 %p, %t, 0; @%p st.global.u32 [%a], %r;",
    );
    let memory = Memory::default();
    let out = memory.allocate(4);
    run(&memory, &text, 1, 32, &[out]).unwrap();
    assert_eq!(memory.u32(out), 31);
}

#[test]
fn constants_parameters_and_local_memory_are_readable_generically() {
    let text = ".version 7.7\n.target sm_70\n.address_size 64
        .const .align 4 .u32 table[3] = {5, 6, 7};
        .visible .entry k(.param .u64 out, .param .align 8 .b8 by_value[16]) {
        .local .align 8 .b8 depot[16]; .reg .b64 %rd<8>; .reg .b32 %r<8>; .reg .b16 %h;
        ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [by_value+4];
        mov.u64 %rd2, by_value; cvta.param.u64 %rd2, %rd2; ld.u32 %r2, [%rd2+8];
        ld.const.u32 %r3, [table+8];
        mov.u64 %rd3, depot; cvta.local.u64 %rd4, %rd3; st.local.u8 [%rd3+3], 200; ld.s8 %h, [%rd4+3];
        cvt.s32.s16 %r4, %h;
        st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4}; }";
    let memory = Memory::default();
    let out = memory.allocate(16);
    run(&memory, text, 1, 1, &[out, 11 << 32, 22]).unwrap();
    let words: Vec<u32> = (0..4).map(|word| memory.u32(out + 4 * word)).collect();
    assert_eq!(words, [11, 22, 7, -56i32 as u32]);
}
