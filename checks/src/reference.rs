//! The independent reference: what an all-reduce must give, bit by bit.
//!
//! It shares no code with `wire`: the tree is built level by level instead of by name, rounding is the `half`
//! crate's, and elements are read from bytes instead of words.
#![forbid(unsafe_code)]

use half::{bf16, f16};
use meshreduce::{DType, Op};

/// Reduces equal-length messages, one per *position* of the tree, into the bytes that every rank must end up with.
///
/// # Panics
/// If there is no message, or their lengths differ or are no multiple of the element size.
pub fn all_reduce(messages: &[Vec<u8>], dtype: DType, op: Op) -> Vec<u8> {
    let bytes = messages[0].len();
    assert!(messages.iter().all(|message| message.len() == bytes), "messages of one length");
    assert_eq!(bytes % dtype.size(), 0, "whole elements");
    let mut result = Vec::with_capacity(bytes);
    let mut column = Vec::with_capacity(messages.len());
    for at in (0..bytes).step_by(dtype.size()) {
        column.clear();
        column.extend(messages.iter().map(|message| widen(&message[at..at + dtype.size()], dtype)));
        narrow(reduce(&mut column, op), dtype, &mut result);
    }
    result
}

/// Pairs neighbours until one value is left; a value without a neighbour moves up as it is.
fn reduce(values: &mut Vec<f32>, op: Op) -> f32 {
    let world_size = values.len();
    while values.len() > 1 {
        let pairs = values.len().div_ceil(2);
        for pair in 0..pairs {
            values[pair] = match values.get(2 * pair + 1) {
                Some(&right) => combine(values[2 * pair], right, op),
                None => values[2 * pair],
            };
        }
        values.truncate(pairs);
    }
    match op {
        Op::Avg => values[0] * (1.0 / world_size as f32),
        _ => values[0],
    }
}

fn combine(a: f32, b: f32, op: Op) -> f32 {
    match op {
        Op::Sum | Op::Avg => a + b,
        _ if a.is_nan() || b.is_nan() => f32::NAN,
        // The total order puts -0 before +0 and is the usual order otherwise.
        Op::Min => *[a, b].iter().min_by(|x, y| x.total_cmp(y)).expect("two values"),
        Op::Max => *[a, b].iter().max_by(|x, y| x.total_cmp(y)).expect("two values"),
        other => unreachable!("no reference for {other}"),
    }
}

fn widen(bytes: &[u8], dtype: DType) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        other => unreachable!("no reference for {other}"),
    }
}

fn narrow(value: f32, dtype: DType, out: &mut Vec<u8>) {
    match (dtype, value.is_nan()) {
        (DType::Bf16 | DType::F16, true) => out.extend(0x7fff_u16.to_le_bytes()),
        (DType::F32, true) => out.extend(0x7fff_ffff_u32.to_le_bytes()),
        (DType::Bf16, false) => out.extend(bf16::from_f32(value).to_le_bytes()),
        (DType::F16, false) => out.extend(f16::from_f32(value).to_le_bytes()),
        (DType::F32, false) => out.extend(value.to_le_bytes()),
        (other, _) => unreachable!("no reference for {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Vec<Vec<u8>> {
        values.iter().map(|value| value.to_le_bytes().to_vec()).collect()
    }

    fn reduced(values: &[f32], op: Op) -> u32 {
        let bytes = all_reduce(&f32s(values), DType::F32, op);
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    #[test]
    fn the_tree_pairs_neighbours_first() {
        // 2^24 absorbs a 1 alone, but not two of them added to each other first.
        let big = 16_777_216.0;
        assert_eq!(reduced(&[big, 0.0, 1.0, 1.0], Op::Sum), (big + 2.0).to_bits());
        assert_eq!(reduced(&[big, 1.0, 1.0, 0.0], Op::Sum), big.to_bits());
    }

    #[test]
    fn a_missing_position_is_not_a_zero() {
        assert_eq!(reduced(&[-0.0, -0.0, -0.0], Op::Sum), (-0.0_f32).to_bits());
    }

    #[test]
    fn min_and_max_order_zeros_and_propagate_nan() {
        assert_eq!(reduced(&[0.0, -0.0], Op::Min), (-0.0_f32).to_bits());
        assert_eq!(reduced(&[-0.0, 0.0], Op::Max), 0.0_f32.to_bits());
        assert_eq!(reduced(&[1.0, f32::NAN, 2.0], Op::Max), 0x7fff_ffff);
        assert_eq!(reduced(&[f32::INFINITY, 3.0], Op::Min), 3.0_f32.to_bits());
    }

    #[test]
    fn sixteen_bit_results_are_rounded_once_from_fp32() {
        let one = bf16::from_f32(1.0).to_le_bytes().to_vec();
        let tiny = bf16::from_f32(0.001953125).to_le_bytes().to_vec(); // 2^-9: a quarter of bf16's step at 1
        let messages = [one, tiny.clone(), tiny.clone(), tiny];
        let sum = all_reduce(&messages, DType::Bf16, Op::Sum);
        assert_eq!(sum, bf16::from_f32(1.0078125).to_le_bytes(), "three quarters of a step round up");
    }
}
