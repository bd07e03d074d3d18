//! Arithmetic, instruction by instruction, through text and executor, against computations on the host that share no
//! code with the emulator.

#![allow(clippy::unwrap_used, clippy::precedence, clippy::double_comparisons, clippy::needless_range_loop)]

mod support;

use meshreduce_emulator_ptx::semantics::round::{BF16, F16, F32};
use meshreduce_emulator_ptx::types::Rounding;
use proptest::prelude::*;
use support::{Memory, kernel, run};

/// Runs `instructions` on inputs in `%a0..` (64 bits each, also as `%w` 32, `%h` 16 bits) and returns `%d0..%d3`.
fn compute(instructions: &str, inputs: &[u64]) -> [u64; 4] {
    let mut body = String::from(
        ".reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %w<4>; .reg .b64 %a<5>; .reg .b64 %d<4>;
         .reg .b32 %r<4>; .reg .b16 %s<4>; ld.param.u64 %a4, [p];\n",
    );
    for index in 0..inputs.len() {
        body += &format!(
            "ld.global.u64 %a{index}, [%a4+{0}]; ld.global.u32 %w{index}, [%a4+{0}]; ld.global.u16 %h{index}, [%a4+{0}];\n",
            8 * index
        );
    }
    body += "mov.b64 %d0, 0; mov.b64 %d1, 0; mov.b64 %d2, 0; mov.b64 %d3, 0;\n";
    body += instructions;
    body += "\nst.global.u64 [%a4+32], %d0; st.global.u64 [%a4+40], %d1; st.global.u64 [%a4+48], %d2; st.global.u64 [%a4+56], %d3;";
    let memory = Memory::default();
    let base = memory.allocate(64);
    inputs.iter().enumerate().for_each(|(index, &value)| memory.write_u64(base + 8 * index as u64, value));
    run(&memory, &kernel(".param .u64 p", &body), 1, 1, &[base]).unwrap_or_else(|fault| panic!("{fault:?}"));
    [0, 1, 2, 3].map(|index| memory.u64(base + 32 + 8 * index))
}

/// A 32-bit instruction on `%w0..`.
fn word(instruction: &str, inputs: &[u32]) -> u32 {
    let operands: String = (0..inputs.len()).map(|index| format!(", %w{index}")).collect();
    let inputs: Vec<u64> = inputs.iter().map(|&value| value.into()).collect();
    compute(&format!("{instruction} %r0{operands}; cvt.u64.u32 %d0, %r0;"), &inputs)[0] as u32
}

fn long(instruction: &str, inputs: &[u64]) -> u64 {
    let operands: String = (0..inputs.len()).map(|index| format!(", %a{index}")).collect();
    compute(&format!("{instruction} %d0{operands};"), inputs)[0]
}

fn half(instruction: &str, inputs: &[u16]) -> u16 {
    let operands: String = (0..inputs.len()).map(|index| format!(", %h{index}")).collect();
    let inputs: Vec<u64> = inputs.iter().map(|&value| value.into()).collect();
    compute(&format!("{instruction} %s0{operands}; cvt.u64.u16 %d0, %s0;"), &inputs)[0] as u16
}

fn predicate(instruction: &str, a: u64, b: u64, register: char) -> bool {
    compute(&format!("{instruction} %p0, %{register}0, %{register}1; selp.u64 %d0, 1, 0, %p0;"), &[a, b])[0]
        == 1
}

/// The bits of a result, with the one NaN that PTX computes with fp32.
///
/// It asks the bits, and is never inlined: LLVM turns `x.sqrt().is_nan()` into a comparison of `x` and joins that with
/// other comparisons of `x`; for a signaling NaN the outcome was seen to be false in one build of these tests and
/// true in another.
#[inline(never)]
fn canonical(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { bits }
}

/// Numbers among which the special ones are frequent.
fn bits32() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        prop::sample::select(vec![
            0,
            1,
            0x8000_0000,
            0x8000_0001,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0001,
            0x007f_ffff,
            0x0080_0000,
            0x3f80_0000,
            0xbf80_0000,
            0x7f7f_ffff,
            0xffff_ffff,
            31,
            32,
            33,
            0x4f00_0000,
            0x7fff_ffff,
        ]),
        (0x3f00_0000u32..0x4100_0000),
    ]
}

fn bits64() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), (0u64..100), bits32().prop_map(u64::from), Just(1 << 63), Just(u64::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn integer_arithmetic_wraps(a in bits32(), b in bits32(), c in bits32(), x in bits64(), y in bits64()) {
        prop_assert_eq!(word("add.s32", &[a, b]), a.wrapping_add(b));
        prop_assert_eq!(word("sub.u32", &[a, b]), a.wrapping_sub(b));
        prop_assert_eq!(word("mul.lo.s32", &[a, b]), a.wrapping_mul(b));
        prop_assert_eq!(word("mul.hi.u32", &[a, b]), (u64::from(a) * u64::from(b) >> 32) as u32);
        prop_assert_eq!(word("mul.hi.s32", &[a, b]), (i64::from(a as i32) * i64::from(b as i32) >> 32) as u32);
        prop_assert_eq!(long("mul.hi.u64", &[x, y]), (u128::from(x) * u128::from(y) >> 64) as u64);
        prop_assert_eq!(long("mul.hi.s64", &[x, y]), (i128::from(x as i64) * i128::from(y as i64) >> 64) as u64);
        prop_assert_eq!(word("mad.lo.u32", &[a, b, c]), a.wrapping_mul(b).wrapping_add(c));
        prop_assert_eq!(word("add.sat.s32", &[a, b]), (a as i32).saturating_add(b as i32) as u32);
        prop_assert_eq!(word("sad.u32", &[a, b, c]), c.wrapping_add(a.abs_diff(b)));
        prop_assert_eq!(half("add.u16", &[a as u16, b as u16]), (a as u16).wrapping_add(b as u16));
        prop_assert_eq!(
            compute("mul.wide.s32 %d0, %w0, %w1; mul.wide.u32 %d1, %w0, %w1; mad.wide.u32 %d2, %w0, %w1, %a2;", &[a.into(), b.into(), x])[..3].to_vec(),
            vec![
                (i64::from(a as i32) * i64::from(b as i32)) as u64,
                u64::from(a) * u64::from(b),
                (u64::from(a) * u64::from(b)).wrapping_add(x),
            ]
        );
        if b != 0 {
            prop_assert_eq!(word("div.u32", &[a, b]), a / b);
            prop_assert_eq!(word("rem.s32", &[a, b]), (a as i32).wrapping_rem(b as i32) as u32);
        }
        prop_assert_eq!(word("min.s32", &[a, b]), (a as i32).min(b as i32) as u32);
        prop_assert_eq!(long("max.u64", &[x, y]), x.max(y));
    }

    #[test]
    fn carries_make_wide_additions(x in bits64(), y in bits64(), v in bits64(), w in bits64()) {
        let result = compute("add.cc.u64 %d0, %a0, %a1; addc.u64 %d1, %a2, %a3; sub.cc.u64 %d2, %a0, %a1; subc.u64 %d3, %a2, %a3;", &[x, y, v, w]);
        let (a, b) = (u128::from(v) << 64 | u128::from(x), u128::from(w) << 64 | u128::from(y));
        let (sum, difference) = (a.wrapping_add(b), a.wrapping_sub(b));
        prop_assert_eq!(result, [sum as u64, (sum >> 64) as u64, difference as u64, (difference >> 64) as u64]);
    }

    #[test]
    fn shifts_are_clamped_and_fields_are_cut_out(a in bits32(), x in bits64(), b in bits32(), n in 0u32..80, len in 0u32..80) {
        let shifted = |value: u64, left: bool, bits: u32| match (n < bits, left) {
            (false, _) => 0,
            (true, true) => value << n,
            (true, false) => value >> n,
        };
        prop_assert_eq!(word("shl.b32", &[a, n]), shifted(a.into(), true, 32) as u32);
        prop_assert_eq!(word("shr.u32", &[a, n]), shifted(a.into(), false, 32) as u32);
        prop_assert_eq!(word("shr.s32", &[a, n]), (i64::from(a as i32) >> n.min(32)) as u32);
        let result = compute("shl.b64 %d0, %a0, %w1; shr.u64 %d1, %a0, %w1; shr.s64 %d2, %a0, %w1; bfe.s64 %d3, %a0, %w1, %w2;", &[x, n.into(), len.into()]);
        prop_assert_eq!(result[0], shifted(x, true, 64));
        prop_assert_eq!(result[1], shifted(x, false, 64));
        prop_assert_eq!(result[2], (i128::from(x as i64) >> n.min(64)) as u64);
        // The ISA's own loop for bfe.
        let field = |bits: u32, value: u64, signed: bool| {
            let sign = if !signed || len == 0 { 0 } else { value >> (n + len - 1).min(bits - 1) & 1 };
            (0..bits).fold(0u64, |all, i| {
                let bit = if i < len && n + i < bits { value >> (n + i) & 1 } else { sign };
                all | bit << i
            })
        };
        prop_assert_eq!(result[3], field(64, x, true));
        prop_assert_eq!(word("bfe.u32", &[a, n, len]), field(32, a.into(), false) as u32);
        prop_assert_eq!(word("bfe.s32", &[a, n, len]), field(32, a.into(), true) as u32);
        let inserted = (0..len).take_while(|i| n + i < 32).fold(b, |all, i| all & !(1 << (n + i)) | (a >> i & if i < 32 { 1 } else { 0 }) << (n + i));
        prop_assert_eq!(word("bfi.b32", &[a, b, n, len]), inserted);
        let joined = u64::from(b) << 32 | u64::from(a);
        prop_assert_eq!(word("shf.l.wrap.b32", &[a, b, n]), (joined << (n & 31) >> 32) as u32);
        prop_assert_eq!(word("shf.r.clamp.b32", &[a, b, n]), (joined >> n.min(32)) as u32);
    }

    #[test]
    fn bit_counts_permutations_and_tables(a in bits32(), b in bits32(), c in bits32(), x in bits64()) {
        prop_assert_eq!(word("popc.b32", &[a]), a.count_ones());
        prop_assert_eq!(word("clz.b32", &[a]), a.leading_zeros());
        prop_assert_eq!(word("brev.b32", &[a]), a.reverse_bits());
        prop_assert_eq!(word("bfind.u32", &[a]), if a == 0 { u32::MAX } else { a.ilog2() });
        prop_assert_eq!(compute("clz.b64 %r0, %a0; cvt.u64.u32 %d0, %r0;", &[x])[0], u64::from(x.leading_zeros()));
        prop_assert_eq!(compute("lop3.b32 %r0, %w0, %w1, %w2, 0xe8; cvt.u64.u32 %d0, %r0;", &[a.into(), b.into(), c.into()])[0] as u32, a & b | a & c | b & c);
        prop_assert_eq!(compute("lop3.b32 %r0, %w0, %w1, %w2, 0xd8; cvt.u64.u32 %d0, %r0;", &[a.into(), b.into(), c.into()])[0] as u32, c & b | !c & a);
        let bytes: Vec<u8> = a.to_le_bytes().into_iter().chain(b.to_le_bytes()).collect();
        let permuted: [u8; 4] = std::array::from_fn(|lane| {
            let select = c >> (4 * lane) & 15;
            let byte = bytes[(select & 7) as usize];
            if select & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 }
        });
        prop_assert_eq!(word("prmt.b32", &[a, b, c]), u32::from_le_bytes(permuted));
    }

    #[test]
    fn comparisons_follow_type_and_order(a in bits32(), b in bits32()) {
        let (x, y) = (u64::from(a), u64::from(b));
        prop_assert_eq!(predicate("setp.lt.s32", x, y, 'w'), (a as i32) < b as i32);
        prop_assert_eq!(predicate("setp.lt.u32", x, y, 'w'), a < b);
        prop_assert_eq!(predicate("setp.hs.u32", x, y, 'w'), a >= b);
        let (f, g) = (f32::from_bits(a), f32::from_bits(b));
        prop_assert_eq!(predicate("setp.lt.f32", x, y, 'w'), f < g);
        prop_assert_eq!(predicate("setp.ne.f32", x, y, 'w'), f < g || f > g);
        prop_assert_eq!(predicate("setp.neu.f32", x, y, 'w'), f != g);
        prop_assert_eq!(predicate("setp.geu.f32", x, y, 'w'), f >= g || f.is_nan() || g.is_nan());
        prop_assert_eq!(predicate("setp.nan.f32", x, y, 'w'), f.is_nan() || g.is_nan());
        let both = compute("setp.lt.u32 %p3, %w0, 7; setp.ge.and.s32 %p0|%p1, %w0, %w1, !%p3; selp.u64 %d0, 1, 0, %p0; selp.u64 %d1, 1, 0, %p1;", &[x, y]);
        prop_assert_eq!(both[0] == 1, a as i32 >= b as i32 && a >= 7);
        prop_assert_eq!(both[1] == 1, (a as i32) < b as i32 && a >= 7);
    }

    #[test]
    fn fp32_is_ieee_with_one_nan(a in bits32(), b in bits32(), c in bits32()) {
        let (x, y, z) = (f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
        prop_assert_eq!(word("add.rn.f32", &[a, b]), canonical(x + y));
        prop_assert_eq!(word("sub.f32", &[a, b]), canonical(x - y));
        prop_assert_eq!(word("mul.rn.f32", &[a, b]), canonical(x * y));
        prop_assert_eq!(word("div.rn.f32", &[a, b]), canonical(x / y));
        prop_assert_eq!(word("rcp.rn.f32", &[a]), canonical(1.0 / x));
        prop_assert_eq!(word("sqrt.rn.f32", &[a]), canonical(x.sqrt()));
        prop_assert_eq!(word("fma.rn.f32", &[a, b, c]), canonical(x.mul_add(y, z)));
        prop_assert_eq!(word("neg.f32", &[a]), a ^ 1 << 31);
        prop_assert_eq!(word("abs.f32", &[a]), a & !(1 << 31));
        let flush = |v: f32| if v.is_subnormal() { 0f32.copysign(v) } else { v };
        prop_assert_eq!(word("add.ftz.f32", &[a, b]), canonical(flush(flush(x) + flush(y))));
        let sum = x + y;
        let saturated = if sum > 0.0 { sum.min(1.0) } else { 0.0 };
        prop_assert_eq!(word("add.sat.f32", &[a, b]), saturated.to_bits());
    }

    #[test]
    fn directed_rounding_brackets_the_exact_result(a in bits32(), b in bits32(), c in bits32()) {
        let (x, y, z) = (f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
        for (name, nearest, arguments) in [
            ("add", x + y, vec![a, b]),
            ("mul", x * y, vec![a, b]),
            ("div", x / y, vec![a, b]),
            ("fma", x.mul_add(y, z), vec![a, b, c]),
            ("sqrt", x.sqrt(), vec![a]),
        ] {
            let at = |mode: &str| f32::from_bits(word(&format!("{name}.{mode}.f32"), &arguments));
            let (down, up, zero) = (at("rm"), at("rp"), at("rz"));
            if nearest.is_nan() {
                prop_assert!(down.is_nan() && up.is_nan() && zero.is_nan());
                continue;
            }
            prop_assert!(down <= nearest && nearest <= up, "{} {:e} {:e} {:e}", name, down, nearest, up);
            prop_assert!(down == up || down.next_up() == up, "{} {:e} {:e}", name, down, up);
            prop_assert!(nearest == down || nearest == up);
            prop_assert_eq!(zero.abs(), down.abs().min(up.abs()));
        }
    }

    #[test]
    fn fp64_agrees_with_the_host(x in any::<f64>(), y in any::<f64>(), z in any::<f64>()) {
        let canonical = |v: f64| if v.is_nan() { 0x7ff8_0000_0000_0000 } else { v.to_bits() };
        let (a, b, c) = (x.to_bits(), y.to_bits(), z.to_bits());
        prop_assert_eq!(long("add.f64", &[a, b]), canonical(x + y));
        prop_assert_eq!(long("mul.rn.f64", &[a, b]), canonical(x * y));
        prop_assert_eq!(long("fma.rn.f64", &[a, b, c]), canonical(x.mul_add(y, z)));
        let (down, up) = (f64::from_bits(long("add.rm.f64", &[a, b])), f64::from_bits(long("add.rp.f64", &[a, b])));
        prop_assert!((x + y).is_nan() || down <= x + y && x + y <= up && (down == up || down.next_up() == up));
    }

    #[test]
    fn conversions_between_floats_and_integers(a in bits32(), x in bits64()) {
        let f = f32::from_bits(a);
        prop_assert_eq!(word("cvt.rzi.s32.f32", &[a]), f as i32 as u32);
        prop_assert_eq!(word("cvt.rzi.u32.f32", &[a]), f as u32);
        prop_assert_eq!(word("cvt.rni.s32.f32", &[a]), f.round_ties_even() as i32 as u32);
        prop_assert_eq!(word("cvt.rmi.f32.f32", &[a]), canonical(f.floor()));
        prop_assert_eq!(word("cvt.rn.f32.s32", &[a]), (a as i32 as f32).to_bits());
        let result = compute("cvt.rn.f32.u64 %r0, %a0; cvt.u64.u32 %d0, %r0; cvt.rn.f64.s64 %d1, %a0; cvt.rzi.s64.f32 %d2, %w1; cvt.f64.f32 %d3, %w1;", &[x, a.into()]);
        prop_assert_eq!(result[0] as u32, (x as f32).to_bits());
        prop_assert_eq!(result[1], (x as i64 as f64).to_bits());
        prop_assert_eq!(result[2], if f.is_nan() { 1 << 63 } else { f as i64 as u64 });
        prop_assert_eq!(result[3], if f.is_nan() { 0x7ff8_0000_0000_0000 } else { f64::from(f).to_bits() });
        let result = compute("cvt.s64.s8 %d0, %w0; cvt.u64.u8 %d1, %w0; cvt.sat.u8.s32 %d2, %w0; cvt.s32.s8 %r1, %w0; cvt.s64.s32 %d3, %r1;", &[a.into()]);
        prop_assert_eq!(result, [a as i8 as u64, u64::from(a as u8), (a as i32).clamp(0, 255) as u64, a as i8 as u64]);
    }

    #[test]
    fn narrow_conversions_agree_with_the_half_crate(a in bits32()) {
        let f = f32::from_bits(a);
        let h = half::f16::from_f32(f);
        let b = half::bf16::from_f32(f);
        let result = compute("cvt.rn.f16.f32 %s0, %w0; cvt.u64.u16 %d0, %s0; cvt.rn.bf16.f32 %s1, %w0; cvt.u64.u16 %d1, %s1; cvt.rn.bf16x2.f32 %r0, %w0, %w1; cvt.u64.u32 %d2, %r0;", &[a.into(), u64::from(1f32.to_bits())]);
        prop_assert_eq!(result[0] as u16, if f.is_nan() { 0x7fff } else { h.to_bits() });
        prop_assert_eq!(result[1] as u16, if f.is_nan() { 0x7fff } else { b.to_bits() });
        prop_assert_eq!(result[2], result[1] << 16 | 0x3f80);
    }

    #[test]
    fn half_arithmetic_rounds_once(a in any::<u16>(), b in any::<u16>(), c in any::<u16>()) {
        // A sum of two binary16 fits fp64 exactly; the half crate then rounds a value that fp32 also holds or not:
        // compare only through the bracket of its neighbours.
        let wide = |bits: u16| half::f16::from_bits(bits).to_f64();
        for (name, exact) in [("add.f16", wide(a) + wide(b)), ("mul.f16", wide(a) * wide(b))] {
            let result = half(name, &[a, b]);
            if exact.is_nan() {
                prop_assert_eq!(result, 0x7fff);
            } else if exact.abs() < 65504.0 {
                let error = (wide(result) - exact).abs();
                let neighbours = [wide(result.wrapping_add(1)), wide(result.wrapping_sub(1))];
                prop_assert!(neighbours.iter().all(|n| n.is_nan() || (n - exact).abs() >= error), "{} {:x}", name, result);
            }
        }
        let low = half("fma.rn.f16", &[a, b, c]);
        let pair = compute("mov.b32 %r0, {%h0, %h0}; mov.b32 %r1, {%h1, %h1}; mov.b32 %r2, {%h2, %h2}; fma.rn.f16x2 %r3, %r0, %r1, %r2; cvt.u64.u32 %d0, %r3;", &[a.into(), b.into(), c.into()])[0];
        prop_assert_eq!(pair, u64::from(low) << 16 | u64::from(low));
    }
}

#[test]
fn every_fp32_on_a_bf16_or_f16_tie_rounds_like_the_half_crate() {
    for upper in 0..=0xffffu32 {
        for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1000, 0x0fff, 0x1001, 0x2000, 0x3000] {
            let value = f32::from_bits(upper << 16 | lower);
            if !value.is_nan() {
                let wide = f64::from(value);
                assert_eq!(
                    BF16.narrow(wide, Rounding::Nearest) as u16,
                    half::bf16::from_f32(value).to_bits()
                );
                assert_eq!(F16.narrow(wide, Rounding::Nearest) as u16, half::f16::from_f32(value).to_bits());
                assert_eq!(F32.narrow(wide, Rounding::Nearest) as u32, value.to_bits());
            }
        }
    }
}

#[test]
fn min_and_max_order_zeros_and_skip_nan() {
    const NAN: u32 = 0x7fc0_1234;
    for (instruction, a, b, expected) in [
        ("min.f32", 0, 1 << 31, 1 << 31),
        ("min.f32", 1 << 31, 0, 1 << 31),
        ("max.f32", 1 << 31, 0, 0),
        ("min.f32", NAN, 5, 5),
        ("max.f32", 0xff80_0000, NAN, 0xff80_0000),
        ("min.f32", NAN, NAN, 0x7fff_ffff),
        ("min.NaN.f32", 5, NAN, 0x7fff_ffff),
        ("max.NaN.f32", 0x3f80_0000, 0x4000_0000, 0x4000_0000),
        ("min.f32", 0xbf80_0000, 0xc000_0000, 0xc000_0000),
        ("max.ftz.f32", 0x8000_0001, 0x8000_0002, 0x8000_0000),
        ("copysign.f32", 1 << 31, 0x3f80_0000, 0xbf80_0000),
    ] {
        assert_eq!(word(instruction, &[a, b]), expected, "{instruction} {a:#x} {b:#x}");
    }
}

#[test]
fn conversions_out_of_range_clamp_and_nan_is_zero_or_the_top_bit() {
    let f = |value: f32| value.to_bits();
    assert_eq!(word("cvt.rzi.s32.f32", &[f(3e9)]), i32::MAX as u32);
    assert_eq!(word("cvt.rzi.u32.f32", &[f(-1.0)]), 0);
    assert_eq!(word("cvt.rzi.s32.f32", &[0x7fc0_0000]), 0);
    assert_eq!(compute("cvt.rzi.u64.f32 %d0, %w0;", &[0x7fc0_0000])[0], 1 << 63);
    assert_eq!(compute("cvt.rzi.s8.f32 %d0, %w0;", &[f(-1000.0).into()])[0], -128i64 as u64);
    assert_eq!(word("cvt.sat.f32.f32", &[f(7.5)]), f(1.0));
    assert_eq!(word("cvt.sat.f32.f32", &[0x7fc0_0000]), 0);
    assert_eq!(word("cvt.ftz.f32.f32", &[0x8000_0001]), 0x8000_0000);
}

#[test]
fn moves_pack_and_unpack() {
    let result = compute(
        "mov.b64 {%r0, %r1}, %a0; mov.b64 %d0, {%r1, %r0}; mov.b32 {%s0, _}, %r0; mov.b32 %r2, {%s0, %s0};
         mov.b64 %d1, {%r2, 7}; mov.b64 %d2, {%s0, %s0, %s0, %s0}; mov.f64 %d3, 0d3FF8000000000000;",
        &[0x1111_2222_3333_4444],
    );
    assert_eq!(result, [0x3333_4444_1111_2222, 0x7_4444_4444, 0x4444_4444_4444_4444, 1.5f64.to_bits()]);
}
