//! PTX instructions a second on one core, for a loop like those of the shipped kernels: address arithmetic, 128-bit
//! loads from two allocations, fp32 additions, a store. Run with `cargo bench -p meshreduce-emulator-node`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

fn main() {
    let text = support::kernel(
        ".param .u64 a, .param .u64 b",
        ".reg .pred %p; .reg .b32 %r<9>; .reg .b64 %rd<9>;
         ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b];
         mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 16; add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
         mov.u32 %r2, 0;
         again:
         ld.global.v2.b64 {%rd4, %rd5}, [%rd1]; ld.global.v2.b64 {%rd6, %rd7}, [%rd2];
         mov.b64 {%r3, %r4}, %rd4; mov.b64 {%r5, %r6}, %rd6;
         add.rn.f32 %r3, %r3, %r5; add.rn.f32 %r4, %r4, %r6; shl.b32 %r7, %r3, 16; and.b32 %r8, %r4, -65536;
         or.b32 %r7, %r7, %r8; mov.b64 %rd4, {%r3, %r7};
         st.global.v2.b64 [%rd1], {%rd4, %rd5};
         add.s32 %r2, %r2, 1; setp.lt.u32 %p, %r2, 1000; @%p bra again;",
    );
    let memory = support::Memory::default();
    let (a, b) = (memory.allocate(16 * 512), memory.allocate(16 * 512));
    let mut best = 0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let instructions =
            support::run(&memory, &text, 4, 512, &[a, b]).unwrap_or_else(|fault| panic!("{fault:?}"));
        best = best.max(instructions as f64 / start.elapsed().as_secs_f64());
    }
    println!("{:.0} million PTX instructions a second", best / 1e6);
}
