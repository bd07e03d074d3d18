//! Against a scalar reference that shares nothing with the loops, and the values that meet badly.

use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::isa::Isa;
use super::{BLOCK, Form, Reduction};
use crate::types::{DType, ReduceOp};

/// An element as a number, in the type that it is accumulated in.
#[derive(Clone, Copy, Debug)]
enum Value {
    F32(f32),
    F64(f64),
    /// An integer of any type: what does not fit wraps at the end, which for sums and products is the same.
    Integer(i128),
}

fn value(bytes: &[u8], dtype: DType) -> Value {
    match dtype {
        DType::F32 => Value::F32(f32::from_le_bytes(bytes.try_into().unwrap())),
        DType::F64 => Value::F64(f64::from_le_bytes(bytes.try_into().unwrap())),
        DType::F16 => Value::F32(f16::from_le_bytes(bytes.try_into().unwrap()).to_f32_const()),
        DType::Bf16 => Value::F32(bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32_const()),
        DType::I8 => Value::Integer(i8::from_le_bytes(bytes.try_into().unwrap()).into()),
        DType::I16 => Value::Integer(i16::from_le_bytes(bytes.try_into().unwrap()).into()),
        DType::I32 => Value::Integer(i32::from_le_bytes(bytes.try_into().unwrap()).into()),
        DType::I64 => Value::Integer(i64::from_le_bytes(bytes.try_into().unwrap()).into()),
        DType::U8 => Value::Integer(bytes[0].into()),
    }
}

fn bytes(value: Value, dtype: DType) -> Vec<u8> {
    match (dtype, value) {
        (DType::F32, Value::F32(value)) if value.is_nan() => 0x7fff_ffff_u32.to_le_bytes().to_vec(),
        (DType::F32, Value::F32(value)) => value.to_le_bytes().to_vec(),
        (DType::F64, Value::F64(value)) if value.is_nan() => (u64::MAX >> 1).to_le_bytes().to_vec(),
        (DType::F64, Value::F64(value)) => value.to_le_bytes().to_vec(),
        (DType::F16 | DType::Bf16, Value::F32(value)) if value.is_nan() => 0x7fff_u16.to_le_bytes().to_vec(),
        (DType::F16, Value::F32(value)) => f16::from_f32_const(value).to_le_bytes().to_vec(),
        (DType::Bf16, Value::F32(value)) => bf16::from_f32_const(value).to_le_bytes().to_vec(),
        (_, Value::Integer(value)) => value.to_le_bytes()[..dtype.size()].to_vec(),
        (dtype, value) => panic!("{value:?} as {dtype}"),
    }
}

fn join(a: Value, b: Value, op: ReduceOp) -> Value {
    macro_rules! float {
        ($a:expr, $b:expr, $type:ident) => {
            match op {
                ReduceOp::Sum | ReduceOp::Avg => $a + $b,
                ReduceOp::Product => $a * $b,
                _ if $a.is_nan() || $b.is_nan() => $type::NAN,
                // The total order puts -0 before +0, and is the usual one otherwise.
                ReduceOp::Min => [$a, $b].into_iter().min_by($type::total_cmp).unwrap(),
                ReduceOp::Max => [$a, $b].into_iter().max_by($type::total_cmp).unwrap(),
            }
        };
    }
    match (a, b) {
        (Value::F32(a), Value::F32(b)) => Value::F32(float!(a, b, f32)),
        (Value::F64(a), Value::F64(b)) => Value::F64(float!(a, b, f64)),
        (Value::Integer(a), Value::Integer(b)) => Value::Integer(match op {
            ReduceOp::Sum | ReduceOp::Avg => a + b,
            ReduceOp::Product => a * b,
            ReduceOp::Min => a.min(b),
            ReduceOp::Max => a.max(b),
        }),
        _ => panic!("{a:?} and {b:?}"),
    }
}

/// The last bytes of an integer, as its type has them.
fn wrapped(value: Value, dtype: DType) -> Value {
    match value {
        Value::Integer(_) => self::value(&bytes(value, dtype), dtype),
        float => float,
    }
}

/// Pairs neighbours until one is left; one without a neighbour moves up as it is.
fn tree(mut values: Vec<Value>, reduction: Reduction) -> Value {
    while values.len() > 1 {
        values = values
            .chunks(2)
            .map(|pair| match *pair {
                [a, b] => wrapped(join(a, b, reduction.op), reduction.dtype),
                [a] => a,
                _ => unreachable!("chunks of two"),
            })
            .collect();
    }
    match (reduction.op, values[0]) {
        (ReduceOp::Avg, Value::F32(sum)) => Value::F32(sum * (1.0 / reduction.ranks as f32)),
        (ReduceOp::Avg, Value::F64(sum)) => Value::F64(sum * (1.0 / reduction.ranks as f64)),
        (ReduceOp::Avg, Value::Integer(sum)) => Value::Integer(sum / reduction.ranks as i128),
        (_, value) => value,
    }
}

fn reference(reduction: Reduction, sources: &[Aligned]) -> Vec<u8> {
    let (dtype, size) = (reduction.dtype, reduction.dtype.size());
    (0..sources[0].bytes().len())
        .step_by(size)
        .flat_map(|at| {
            let column = sources.iter().map(|source| value(&source.bytes()[at..at + size], dtype)).collect();
            bytes(tree(column, reduction), dtype)
        })
        .collect()
}

/// Bytes at an address that suits every type.
#[derive(Clone)]
struct Aligned(Vec<u64>, usize);

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        Self(words.collect(), bytes.len())
    }

    fn zeros(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(8)], bytes)
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).take(self.1).collect()
    }

    fn pointer(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }
}

fn run(reduction: Reduction, from: Form, sources: &[Aligned], to: Form, count: usize) -> Aligned {
    let output = Aligned::zeros(count * reduction.bytes(to));
    let pointers: Vec<_> = sources.iter().map(Aligned::pointer).collect();
    let mut output = output;
    // SAFETY: all are so long, of words, and this test's own.
    unsafe { reduction.reduce(from, &pointers, to, output.0.as_mut_ptr().cast(), count) };
    output
}

/// Bit patterns that meet badly: zeros, infinities, NaNs with payloads, subnormals, limits, ties. They are tried as patterns of
/// every type; those of integers wrap.
const SPECIAL: [u64; 10] = [
    0,
    1,
    u64::MAX,
    u64::MAX >> 1,
    1 << 63,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x7fef_ffff_ffff_ffff,
    0x000f_ffff_ffff_ffff,
];
const SPECIAL_32: [u32; 12] = [
    0,
    0x8000_0000,
    1,
    0x7f80_0000,
    0xff80_0000,
    0x7f80_0001,
    0xffff_ffff,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x007f_ffff,
    0x3f80_0000,
    0x3380_0000,
];
const SPECIAL_16: [u16; 16] = [
    0, 0x8000, 1, 0x8001, 0x7f80, 0xff80, 0x7f81, 0x7c00, 0xfc00, 0x7c01, 0xffff, 0x7bff, 0x7f7f, 0x3c00,
    0x3f80, 0x03ff,
];
const SPECIAL_8: [u8; 6] = [0, 1, 0x7f, 0x80, 0xff, 0x40];

fn element(rng: &mut ChaCha8Rng, dtype: DType) -> Vec<u8> {
    let (drawn, pick) = (rng.next_u64(), rng.next_u32() as usize);
    let small = match pick % 3 {
        0 => None,
        1 => Some(f64::from(drawn as i16) / 64.0),
        _ => return drawn.to_le_bytes()[..dtype.size()].to_vec(),
    };
    let pick = pick / 3;
    match (dtype, small) {
        (DType::F64, Some(small)) => small.to_le_bytes().to_vec(),
        (DType::F32, Some(small)) => (small as f32).to_le_bytes().to_vec(),
        (DType::F16, Some(small)) => f16::from_f64_const(small).to_le_bytes().to_vec(),
        (DType::Bf16, Some(small)) => bf16::from_f64_const(small).to_le_bytes().to_vec(),
        (DType::F64 | DType::I64, _) => SPECIAL[pick % SPECIAL.len()].to_le_bytes().to_vec(),
        (DType::F32 | DType::I32, _) => SPECIAL_32[pick % SPECIAL_32.len()].to_le_bytes().to_vec(),
        (DType::F16 | DType::Bf16 | DType::I16, _) => {
            SPECIAL_16[pick % SPECIAL_16.len()].to_le_bytes().to_vec()
        }
        (DType::I8 | DType::U8, _) => vec![SPECIAL_8[pick % SPECIAL_8.len()]],
    }
}

fn sources(rng: &mut ChaCha8Rng, dtype: DType, positions: usize, count: usize) -> Vec<Aligned> {
    let one = |rng: &mut ChaCha8Rng| (0..count).flat_map(|_| element(rng, dtype)).collect::<Vec<u8>>();
    (0..positions).map(|_| Aligned::new(&one(rng))).collect()
}

fn every_kind() -> impl Iterator<Item = (DType, ReduceOp)> {
    DType::ALL.into_iter().flat_map(|dtype| ReduceOp::ALL.into_iter().map(move |op| (dtype, op)))
}

#[test]
fn every_type_and_reduction_of_1_to_17_sources_is_the_references() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (dtype, op) in every_kind() {
        for positions in 1..=17 {
            let count = 1 + rng.next_u32() as usize % 150;
            let sources = sources(&mut rng, dtype, positions, count);
            let reduction = Reduction { dtype, op, ranks: positions };
            let found = run(reduction, Form::Elements, &sources, Form::Elements, count);
            assert_eq!(found.bytes(), reference(reduction, &sources), "{dtype} {op} of {positions}");
        }
    }
}

#[test]
fn counts_around_a_block_are_reduced_to_the_last_element() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (dtype, op) in every_kind() {
        for (count, positions) in [(0, 2), (BLOCK - 1, 2), (BLOCK, 3), (BLOCK + 1, 2), (2 * BLOCK + 13, 5)] {
            let sources = sources(&mut rng, dtype, positions, count);
            let reduction = Reduction { dtype, op, ranks: positions };
            let found = run(reduction, Form::Elements, &sources, Form::Elements, count);
            assert_eq!(
                found.bytes(),
                reference(reduction, &sources),
                "{count} of {dtype}, {op} of {positions}"
            );
        }
    }
}

#[test]
fn subtrees_that_go_on_as_partials_end_in_the_bits_of_the_whole() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (dtype, op) in every_kind() {
        for positions in 2..=17_usize {
            let count = 1 + rng.next_u32() as usize % 60;
            let sources = sources(&mut rng, dtype, positions, count);
            let reduction = Reduction { dtype, op, ranks: positions };
            let partial = |sources: &[Aligned]| run(reduction, Form::Elements, sources, Form::Partial, count);
            let parts: Vec<_> = sources.chunks(4).map(partial).collect();
            // The upper level once in one go, once by way of another level of partials.
            let twice: Vec<_> = parts
                .chunks(2)
                .map(|pair| run(reduction, Form::Partial, pair, Form::Partial, count))
                .collect();
            for parts in [parts, twice] {
                let found = run(reduction, Form::Partial, &parts, Form::Elements, count);
                assert_eq!(found.bytes(), reference(reduction, &sources), "{dtype} {op} of {positions}");
            }
        }
    }
}

#[test]
fn the_output_may_be_any_of_the_sources() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for (dtype, op) in every_kind() {
        for positions in 1..=5 {
            for own in 0..positions {
                let count = 700;
                let mut sources = sources(&mut rng, dtype, positions, count);
                let reduction = Reduction { dtype, op, ranks: positions };
                let expected = reference(reduction, &sources);
                let output = sources[own].0.as_mut_ptr();
                let pointers: Vec<_> = (0..positions)
                    .map(|at| if at == own { output.cast_const().cast() } else { sources[at].pointer() })
                    .collect();
                // SAFETY: as in `run`; the output is one of the sources.
                unsafe { reduction.reduce(Form::Elements, &pointers, Form::Elements, output.cast(), count) };
                assert_eq!(sources[own].bytes(), expected, "{dtype} {op} of {positions} into {own}");
            }
        }
    }
}

#[test]
fn the_output_may_be_both_sources() {
    for (dtype, op) in every_kind() {
        let mut own = sources(&mut ChaCha8Rng::seed_from_u64(5), dtype, 1, 99).remove(0);
        let reduction = Reduction { dtype, op, ranks: 2 };
        let expected = reference(reduction, &[own.clone(), own.clone()]);
        let output: *mut u8 = own.0.as_mut_ptr().cast();
        // SAFETY: as in `run`; the output is both sources.
        unsafe {
            reduction.reduce(
                Form::Elements,
                &[output; 2].map(|own| own.cast_const()),
                Form::Elements,
                output,
                99,
            )
        };
        assert_eq!(own.bytes(), expected, "{dtype} {op}");
    }
}

#[test]
fn a_hundred_sources_are_a_tree_like_any_other() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for dtype in DType::ALL {
        let sources = sources(&mut rng, dtype, 100, 33);
        let reduction = Reduction { dtype, op: ReduceOp::Avg, ranks: 100 };
        let found = run(reduction, Form::Elements, &sources, Form::Elements, 33);
        assert_eq!(found.bytes(), reference(reduction, &sources), "{dtype}");
    }
}

#[test]
fn the_tree_is_the_meshs() {
    // 2^24 absorbs a 1 alone, but not two of them that were added to each other first.
    let big = 16_777_216.0_f32;
    for (values, expected) in [
        (vec![big, 0.0, 1.0, 1.0], big + 2.0),
        (vec![big, 1.0, 1.0], big),
        (vec![0.0, 0.0, 0.0, big, 1.0, 1.0], big + 2.0),
        (vec![0.0, 0.0, 0.0, big, 1.0, 0.0, 1.0], big + 2.0),
        (vec![0.0, 0.0, 0.0, 0.0, big, 0.0, 0.0, 0.0, 1.0], big),
    ] {
        let sources: Vec<_> = values.iter().map(|value| Aligned::new(&value.to_le_bytes())).collect();
        let reduction = Reduction { dtype: DType::F32, op: ReduceOp::Sum, ranks: values.len() };
        let found = run(reduction, Form::Elements, &sources, Form::Elements, 1);
        assert_eq!(found.bytes(), expected.to_le_bytes(), "{values:?}");
    }
}

#[test]
fn zeros_are_ordered_and_missing_positions_are_none() {
    let zeros = |values: &[f32], op| {
        let sources: Vec<_> = values.iter().map(|value| Aligned::new(&value.to_le_bytes())).collect();
        run(Reduction { dtype: DType::F32, op, ranks: 3 }, Form::Elements, &sources, Form::Elements, 1)
            .bytes()
    };
    for pair in [[0.0, -0.0], [-0.0, 0.0]] {
        assert_eq!(zeros(&pair, ReduceOp::Min), (-0.0_f32).to_le_bytes());
        assert_eq!(zeros(&pair, ReduceOp::Max), 0.0_f32.to_le_bytes());
    }
    assert_eq!(zeros(&[-0.0; 3], ReduceOp::Sum), (-0.0_f32).to_le_bytes());
}

#[test]
fn an_average_of_integers_is_that_of_the_wrapped_sum_towards_zero() {
    for (values, expected) in [([100_i8, 100], -28), ([-3, 0], -1), ([3, 0], 1), ([-128, -128], 0)] {
        let sources = values.map(|value| Aligned::new(&value.to_le_bytes()));
        let reduction = Reduction { dtype: DType::I8, op: ReduceOp::Avg, ranks: 2 };
        let found = run(reduction, Form::Elements, &sources, Form::Elements, 1).bytes();
        assert_eq!(found, [expected as u8], "{values:?}");
    }
}

#[test]
fn f16_is_converted_by_the_processor_as_by_the_crate() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    for isa in [Isa::detect(), Isa::BASELINE] {
        let mut wide = vec![std::mem::MaybeUninit::uninit(); halves.len()];
        let wide = isa.widen(&halves, &mut wide);
        for (half, wide) in halves.iter().zip(&*wide) {
            let expected = half.to_f32_const();
            assert!(
                wide.to_bits() == expected.to_bits() || wide.is_nan() && half.is_nan(),
                "{:#x}",
                half.to_bits()
            );
        }
        // Every value, the ones halfway between two and those right beside them.
        let near: Vec<f32> = wide
            .iter()
            .filter(|value| value.is_finite())
            .flat_map(|value| {
                let halfway = value.to_bits() + (1 << 12);
                [value.to_bits(), halfway - 1, halfway, halfway + 1].map(f32::from_bits)
            })
            .collect();
        let mut output = vec![f16::ZERO; near.len()];
        isa.narrow(&near, &mut output);
        for (value, found) in near.iter().zip(&output) {
            let expected = f16::from_f32_const(*value).to_bits();
            assert_eq!(found.to_bits(), expected, "{value:e}");
        }
    }
}

#[test]
fn the_baseline_gives_the_bits_of_wider_vectors() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (dtype, op) in every_kind() {
        for positions in [1, 2, 3, 8] {
            let sources = sources(&mut rng, dtype, positions, 77);
            let reduction = Reduction { dtype, op, ranks: positions };
            let pointers: Vec<_> = sources.iter().map(Aligned::pointer).collect();
            let results = [Isa::detect(), Isa::BASELINE].map(|isa| {
                let mut output = Aligned::zeros(77 * dtype.size());
                // SAFETY: as in `run`.
                unsafe {
                    reduction.reduce_with(
                        isa,
                        Form::Elements,
                        &pointers,
                        Form::Elements,
                        output.0.as_mut_ptr().cast(),
                        77,
                    );
                }
                output.bytes()
            });
            assert_eq!(results[0], results[1], "{dtype} {op} of {positions}");
        }
    }
}
