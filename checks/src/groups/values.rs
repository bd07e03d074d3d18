//! Elements as numbers: the tree over them, what another order may differ by, and elements from a seed.
//!
//! It shares no code with the backends: the tree is built level by level, from bytes, one element at a time.
#![forbid(unsafe_code)]

use half::{bf16, f16};
use meshreduce_process_group::{DType, ReduceOp};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// An element in the type that it is accumulated in. Integers are wrapped to their type after every step.
#[derive(Clone, Copy, Debug)]
enum Value {
    F32(f32),
    F64(f64),
    Integer(i128),
}

fn read(bytes: &[u8], dtype: DType) -> Value {
    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().expect("an element's bytes")
    }
    match dtype {
        DType::F32 => Value::F32(f32::from_le_bytes(array(bytes))),
        DType::F64 => Value::F64(f64::from_le_bytes(array(bytes))),
        DType::F16 => Value::F32(f16::from_le_bytes(array(bytes)).to_f32()),
        DType::Bf16 => Value::F32(bf16::from_le_bytes(array(bytes)).to_f32()),
        DType::I8 => Value::Integer(i8::from_le_bytes(array(bytes)).into()),
        DType::I16 => Value::Integer(i16::from_le_bytes(array(bytes)).into()),
        DType::I32 => Value::Integer(i32::from_le_bytes(array(bytes)).into()),
        DType::I64 => Value::Integer(i64::from_le_bytes(array(bytes)).into()),
        DType::U8 => Value::Integer(u8::from_le_bytes(array(bytes)).into()),
        other => unreachable!("no reference for {other}"),
    }
}

fn write(value: Value, dtype: DType) -> Vec<u8> {
    match (dtype, value) {
        (DType::F16 | DType::Bf16, Value::F32(value)) if value.is_nan() => 0x7fff_u16.to_le_bytes().to_vec(),
        (DType::F16, Value::F32(value)) => f16::from_f32(value).to_le_bytes().to_vec(),
        (DType::Bf16, Value::F32(value)) => bf16::from_f32(value).to_le_bytes().to_vec(),
        (_, Value::F32(value)) if value.is_nan() => 0x7fff_ffff_u32.to_le_bytes().to_vec(),
        (_, Value::F32(value)) => value.to_le_bytes().to_vec(),
        (_, Value::F64(value)) if value.is_nan() => 0x7fff_ffff_ffff_ffff_u64.to_le_bytes().to_vec(),
        (_, Value::F64(value)) => value.to_le_bytes().to_vec(),
        (dtype, Value::Integer(value)) => value.to_le_bytes()[..dtype.size()].to_vec(),
    }
}

macro_rules! join_floats {
    ($a:expr, $b:expr, $op:expr, $type:ident) => {
        match $op {
            ReduceOp::Sum | ReduceOp::Avg => $a + $b,
            ReduceOp::Product => $a * $b,
            _ if $a.is_nan() || $b.is_nan() => $type::NAN,
            // The total order puts -0 before +0 and is the usual order otherwise.
            ReduceOp::Min => *[$a, $b].iter().min_by(|x, y| x.total_cmp(y)).expect("two values"),
            ReduceOp::Max => *[$a, $b].iter().max_by(|x, y| x.total_cmp(y)).expect("two values"),
            other => unreachable!("no reference for {other}"),
        }
    };
}

fn join(a: Value, b: Value, dtype: DType, op: ReduceOp) -> Value {
    match (a, b) {
        (Value::F32(a), Value::F32(b)) => Value::F32(join_floats!(a, b, op, f32)),
        (Value::F64(a), Value::F64(b)) => Value::F64(join_floats!(a, b, op, f64)),
        (Value::Integer(a), Value::Integer(b)) => {
            let joined = match op {
                ReduceOp::Sum | ReduceOp::Avg => a + b,
                ReduceOp::Product => a * b,
                ReduceOp::Min => a.min(b),
                ReduceOp::Max => a.max(b),
                other => unreachable!("no reference for {other}"),
            };
            read(&write(Value::Integer(joined), dtype), dtype)
        }
        _ => unreachable!("elements of one type"),
    }
}

/// Reduces columns of elements, one byte string per position, in tree order: pairs of neighbours until one is left; one without
/// a neighbour moves up as it is.
pub fn tree(columns: &[&[u8]], dtype: DType, op: ReduceOp) -> Vec<u8> {
    in_order(columns, dtype, op, |mut values| {
        while values.len() > 1 {
            let pairs = values.chunks(2).map(|pair| match *pair {
                [a, b] => join(a, b, dtype, op),
                _ => pair[0],
            });
            values = pairs.collect();
        }
        values[0]
    })
}

/// The same, one position after the other: what a backend with another order would give.
pub fn chain(columns: &[&[u8]], dtype: DType, op: ReduceOp) -> Vec<u8> {
    in_order(columns, dtype, op, |values| {
        values.into_iter().reduce(|a, b| join(a, b, dtype, op)).expect("a position")
    })
}

fn in_order(columns: &[&[u8]], dtype: DType, op: ReduceOp, all: impl Fn(Vec<Value>) -> Value) -> Vec<u8> {
    let size = dtype.size();
    let reduced = (0..columns[0].len()).step_by(size).flat_map(|at| {
        let values = columns.iter().map(|column| read(&column[at..at + size], dtype)).collect();
        let value = match (op, all(values)) {
            (ReduceOp::Avg, Value::F32(sum)) => Value::F32(sum * (1.0 / columns.len() as f32)),
            (ReduceOp::Avg, Value::F64(sum)) => Value::F64(sum * (1.0 / columns.len() as f64)),
            (ReduceOp::Avg, Value::Integer(sum)) => Value::Integer(sum / columns.len() as i128),
            (_, value) => value,
        };
        write(value, dtype)
    });
    reduced.collect()
}

/// How a result is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// Bit by bit: the tree.
    Tree,
    /// Sums, averages and products of floats in any order, rounded to the element's type at every step if a backend likes; all
    /// else bit by bit.
    AnyOrder,
}

impl Exactness {
    /// Compares what was found with what the columns give; `None` as `op`: with the one column that there is.
    ///
    /// # Errors
    /// The first element that is wrong, in words.
    pub fn judge(
        self,
        columns: &[&[u8]],
        dtype: DType,
        op: Option<ReduceOp>,
        found: &[u8],
    ) -> Result<(), String> {
        let expected = match op {
            None => columns[0].to_vec(),
            Some(op) => tree(columns, dtype, op),
        };
        let size = dtype.size();
        if expected.len() != found.len() {
            return Err(format!("{} bytes instead of {}", found.len(), expected.len()));
        }
        for at in (0..expected.len()).step_by(size) {
            let range = at..at + size;
            if expected[range.clone()] == found[range.clone()] {
                continue;
            }
            let (wanted, got) = (read(&expected[range.clone()], dtype), read(&found[range.clone()], dtype));
            let column = columns.iter().map(|column| read(&column[range.clone()], dtype));
            let allowed = op.map_or(0.0, |op| self.allowance(column.clone(), dtype, op));
            if (number(wanted) - number(got)).abs() <= allowed {
                continue;
            }
            let column: Vec<_> = column.collect();
            let hex = |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
            return Err(format!(
                "element {} is {got:?} (0x{}) instead of {wanted:?} (0x{}), of {column:?}",
                at / size,
                hex(&found[range.clone()]),
                hex(&expected[range]),
            ));
        }
        Ok(())
    }

    /// How far a result may be from the tree's, which itself is as far from the exact one at most: W roundings, each of at
    /// most half a unit of the largest that a partial sum can be.
    fn allowance(self, column: impl Iterator<Item = Value> + Clone, dtype: DType, op: ReduceOp) -> f64 {
        let Some((epsilon, least)) = steps(dtype) else { return 0.0 };
        if self == Exactness::Tree {
            return 0.0;
        }
        let ranks = column.clone().count() as f64;
        let magnitudes = column.map(|value| number(value).abs());
        match op {
            ReduceOp::Sum => ranks * (epsilon * magnitudes.sum::<f64>() + least),
            // A product with the reciprocal, or a quotient: two roundings more.
            ReduceOp::Avg => (ranks + 2.0) * (epsilon * magnitudes.sum::<f64>() / ranks + least),
            ReduceOp::Product => ranks * (epsilon * magnitudes.product::<f64>() + least),
            _ => 0.0,
        }
    }
}

/// A float type's step at 1, and its least positive number.
fn steps(dtype: DType) -> Option<(f64, f64)> {
    match dtype {
        DType::F64 => Some((f64::EPSILON, f64::from_bits(1))),
        DType::F32 => Some((f32::EPSILON.into(), f32::from_bits(1).into())),
        DType::F16 => Some((f16::EPSILON.to_f64(), f16::from_bits(1).to_f64())),
        DType::Bf16 => Some((bf16::EPSILON.to_f64(), bf16::from_bits(1).to_f64())),
        _ => None,
    }
}

fn number(value: Value) -> f64 {
    match value {
        Value::F32(value) => value.into(),
        Value::F64(value) => value,
        Value::Integer(value) => value as f64,
    }
}

/// `count` elements. For a comparison bit by bit one in eight has any bits at all, and one in eight those of zeros, infinities, NaNs,
/// subnormals and limits, which then meet; the others, and all others, are small numbers.
pub fn elements(random: &mut ChaCha8Rng, dtype: DType, count: usize, exactness: Exactness) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * dtype.size());
    for _ in 0..count {
        let (word, kind) = (random.next_u64(), random.next_u32());
        match kind % 8 {
            0 if exactness == Exactness::Tree => bytes.extend(&word.to_le_bytes()[..dtype.size()]),
            1 if exactness == Exactness::Tree => bytes.extend(special(dtype, (kind / 8) as usize)),
            _ => bytes.extend(small(dtype, word as i16)),
        }
    }
    bytes
}

fn small(dtype: DType, drawn: i16) -> Vec<u8> {
    let float = f32::from(drawn) / 4096.0;
    match dtype {
        DType::F64 => f64::from(float).to_le_bytes().to_vec(),
        DType::F32 => float.to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(float).to_le_bytes().to_vec(),
        DType::Bf16 => bf16::from_f32(float).to_le_bytes().to_vec(),
        _ => i64::from(drawn % 64).to_le_bytes()[..dtype.size()].to_vec(),
    }
}

fn special(dtype: DType, at: usize) -> Vec<u8> {
    const F64: [u64; 8] = [
        0,
        1 << 63,
        1,
        0x7ff0 << 48,
        0xfff0 << 48,
        (0x7ff0 << 48) + 1,
        0x7fef_ffff_ffff_ffff,
        0x8010_0000_0000_0000,
    ];
    const F32: [u32; 8] =
        [0, 1 << 31, 1, 0x7f80 << 16, 0xff80 << 16, (0xff80 << 16) + 1, 0x7f7f_ffff, 0x8080_0000];
    const BF16: [u16; 8] = [0, 1 << 15, 1, 0x7f80, 0xff80, 0xff81, 0x7f7f, 0x8080];
    const F16: [u16; 8] = [0, 1 << 15, 1, 0x7c00, 0xfc00, 0xfc01, 0x7bff, 0x8400];
    const INTEGER: [i64; 8] = [0, -1, 1, i64::MAX, i64::MIN, 0x7fff_ffff, 0x7f7f_7f7f_7f7f_7f7f, 2];
    match dtype {
        DType::F64 => F64[at % 8].to_le_bytes().to_vec(),
        DType::F32 => F32[at % 8].to_le_bytes().to_vec(),
        DType::F16 => F16[at % 8].to_le_bytes().to_vec(),
        DType::Bf16 => BF16[at % 8].to_le_bytes().to_vec(),
        _ => INTEGER[at % 8].to_le_bytes()[..dtype.size()].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(values: &[f32], op: ReduceOp) -> Vec<u8> {
        let bytes: Vec<_> = values.iter().map(|value| value.to_le_bytes()).collect();
        tree(&bytes.iter().map(<[u8; 4]>::as_slice).collect::<Vec<_>>(), DType::F32, op)
    }

    #[test]
    fn the_tree_pairs_neighbours_first() {
        // 2^24 absorbs a 1 alone, but not two of them added to each other first.
        let big = 16_777_216.0_f32;
        assert_eq!(reduced(&[big, 0.0, 1.0, 1.0], ReduceOp::Sum), (big + 2.0).to_le_bytes());
        assert_eq!(reduced(&[big, 1.0, 1.0, 0.0], ReduceOp::Sum), big.to_le_bytes());
        assert_eq!(reduced(&[0.0, -0.0], ReduceOp::Min), (-0.0_f32).to_le_bytes());
    }

    #[test]
    fn it_agrees_with_the_meshs_reference_where_that_has_the_type() {
        use crate::inputs::message;
        for (dtype, of_mesh) in DType::ALL.into_iter().filter_map(|dtype| Some((dtype, dtype.on_mesh()?))) {
            for (op, op_of_mesh) in ReduceOp::ALL.into_iter().filter_map(|op| Some((op, op.on_mesh()?))) {
                for ranks in 1..=8 {
                    let messages: Vec<_> =
                        (0..ranks).map(|rank| message(3, 0, 0, rank, 500, of_mesh)).collect();
                    let columns: Vec<_> = messages.iter().map(Vec::as_slice).collect();
                    let expected = crate::reference::all_reduce(&messages, of_mesh, op_of_mesh);
                    assert_eq!(tree(&columns, dtype, op), expected, "{dtype} {op} of {ranks}");
                }
            }
        }
    }

    #[test]
    fn another_order_is_within_the_allowance_and_a_wrong_value_is_not() {
        let columns = [1.0_f32, 5e-8, 5e-8, 5e-8].map(f32::to_le_bytes);
        let columns: Vec<_> = columns.iter().map(<[u8; 4]>::as_slice).collect();
        let found = chain(&columns, DType::F32, ReduceOp::Sum);
        assert_ne!(found, tree(&columns, DType::F32, ReduceOp::Sum));
        let judge = |exactness: Exactness, found: &[u8]| {
            exactness.judge(&columns, DType::F32, Some(ReduceOp::Sum), found)
        };
        assert!(judge(Exactness::AnyOrder, &found).is_ok());
        assert!(judge(Exactness::Tree, &found).is_err());
        for wrong in [1.00001_f32, f32::NAN, f32::INFINITY] {
            assert!(judge(Exactness::AnyOrder, &wrong.to_le_bytes()).is_err(), "{wrong}");
        }
    }
}
