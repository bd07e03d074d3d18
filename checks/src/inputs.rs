//! Random messages from a seed: the same bytes in every process, with the values that break reductions among them.
#![forbid(unsafe_code)]

use half::{bf16, f16};
use meshreduce::DType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The message that `rank` brings to launch `launch` of case `case`. In one element in 16 all ranks draw from the type's table,
/// in another from its zeros and subnormals, so that zeros meet zeros of the other sign, infinities infinities, and subnormals subnormals.
pub fn message(seed: u64, case: usize, launch: usize, rank: usize, count: usize, dtype: DType) -> Vec<u8> {
    let random = |last: u64| {
        let mut key = [0; 32];
        for (part, value) in key.chunks_exact_mut(8).zip([seed, case as u64, launch as u64, last]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        ChaCha8Rng::from_seed(key)
    };
    let (mut random, mut common) = (random(rank as u64), random(u64::MAX));
    let mut bytes = Vec::with_capacity(count * dtype.size());
    for _ in 0..count {
        let word = random.next_u32();
        // The lowest bits say whether an element is of the table.
        let word = match common.next_u32() % 16 {
            0 => word & !127 | 1,
            1 => ((word >> 7) % SMALL) << 7 | 1,
            _ => word,
        };
        match dtype {
            DType::Bf16 => bytes.extend(bf16_bits(word).to_le_bytes()),
            DType::F16 => bytes.extend(f16_bits(word).to_le_bytes()),
            DType::F32 => bytes.extend(f32_bits(word, random.next_u32()).to_le_bytes()),
            other => unreachable!("no inputs of {other}"),
        }
    }
    bytes
}

/// So many entries of each table come first that are zeros or about as small.
const SMALL: u32 = 5;

/// Of the others, one element in 64 is exceptional: half of those any bit pattern at all, the others an element of the type's table
/// of signed zeros, subnormals, extremes, infinities and NaNs. The rest are numbers between -4 and 4 of the magnitudes
/// that occur in activations.
fn element<T: Copy>(word: u32, any: T, table: &[T], number: impl FnOnce(f32) -> T) -> T {
    match word % 128 {
        0 => any,
        1 => table[(word >> 7) as usize % table.len()],
        _ => number(tame(word)),
    }
}

fn tame(word: u32) -> f32 {
    let magnitude = (word >> 8 & 0xffff) as f32 / 65_536.0 * 4.0;
    let scaled = if word & 0x0100_0000 == 0 { magnitude } else { magnitude * 0.001 };
    if word & 0x8000_0000 == 0 { scaled } else { -scaled }
}

fn bf16_bits(word: u32) -> u16 {
    const TABLE: [u16; 10] = [0x0000, 0x8000, 0x0001, 0x807f, 0x0080, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0xffc1];
    element(word, (word >> 16) as u16, &TABLE, |value| bf16::from_f32(value).to_bits())
}

fn f16_bits(word: u32) -> u16 {
    const TABLE: [u16; 10] = [0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0xfe01];
    element(word, (word >> 16) as u16, &TABLE, |value| f16::from_f32(value).to_bits())
}

fn f32_bits(word: u32, any: u32) -> u32 {
    const TABLE: [u32; 10] = [
        0x0000_0000,
        0x8000_0000,
        0x0000_0001,
        0x807f_ffff,
        0x0080_0000,
        0x7f7f_ffff,
        0xff7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0xffc0_0001,
    ];
    element(word, any, &TABLE, f32::to_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_depend_on_every_part_of_their_key() {
        let base = message(1, 2, 3, 4, 64, DType::Bf16);
        assert_eq!(base, message(1, 2, 3, 4, 64, DType::Bf16));
        assert_ne!(base, message(0, 2, 3, 4, 64, DType::Bf16));
        assert_ne!(base, message(1, 0, 3, 4, 64, DType::Bf16));
        assert_ne!(base, message(1, 2, 0, 4, 64, DType::Bf16));
        assert_ne!(base, message(1, 2, 3, 0, 64, DType::Bf16));
    }

    #[test]
    fn messages_contain_numbers_and_exceptions() {
        for dtype in DType::ALL {
            let bytes = message(0, 0, 0, 0, 1 << 16, dtype);
            assert_eq!(bytes.len(), dtype.size() << 16);
            let values: Vec<f32> = match dtype {
                DType::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                DType::F16 => {
                    bytes.chunks(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
                }
                _ => bytes.chunks(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            };
            let small = values.iter().filter(|value| value.abs() <= 4.0).count();
            assert!(small > values.len() * 8 / 10, "{dtype}: {small} of {}", values.len());
            assert!(values.iter().any(|value| value.is_sign_negative()));
            assert!(values.iter().any(|value| value.is_nan()), "{dtype}: no NaN");
            assert!(values.iter().any(|value| value.is_infinite()), "{dtype}: no infinity");
        }
    }

    #[test]
    fn exceptions_meet() {
        let count = 1 << 14;
        let ranks: Vec<Vec<u8>> = (0..3).map(|rank| message(5, 0, 0, rank, count, DType::Bf16)).collect();
        let zero = |rank: usize, at: usize| ranks[rank][2 * at] == 0 && ranks[rank][2 * at + 1] & 0x7f == 0;
        let all = (0..count).filter(|&at| (0..3).all(|rank| zero(rank, at))).count();
        assert!(all > 0, "no element is a zero on all ranks");
    }
}
