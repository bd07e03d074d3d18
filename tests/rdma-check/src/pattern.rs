//! Bytes that tell where they belong.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};

/// What stands around a transfer, and must stay.
pub(crate) const GUARD: u8 = 0xA5;

/// `length` bytes that differ with their place and with `round`.
pub(crate) fn pattern(round: u64, length: usize) -> Vec<u8> {
    let word = |index: u64| {
        // The finaliser of splitmix64.
        let mixed = (index ^ round << 40).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ mixed >> 27).to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8) as u64).flat_map(word).collect();
    bytes.truncate(length);
    bytes
}

/// Compares every byte of `found`: guards, `expected` from `skip` on, guards.
pub(crate) fn compare(found: &[u8], skip: usize, expected: &[u8]) -> Result<()> {
    let inside = skip..skip + expected.len();
    for (place, byte) in found.iter().enumerate() {
        let right = if inside.contains(&place) { expected[place - skip] } else { GUARD };
        if *byte != right {
            bail!("byte {place} is {byte:#04x} and not {right:#04x}; the transfer has bytes {inside:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_places_differ() {
        let first = pattern(0, 4099);
        assert_eq!(first.len(), 4099);
        assert_ne!(first, pattern(1, 4099));
        assert_ne!(first[..2048], first[2048..4096]);
    }

    #[test]
    fn a_wrong_byte_is_found_wherever_it_is() {
        let expected = pattern(3, 100);
        let mut found = vec![GUARD; 120];
        found[10..110].copy_from_slice(&expected);
        compare(&found, 10, &expected).unwrap();
        for place in [0, 9, 10, 55, 109, 110, 119] {
            let mut wrong = found.clone();
            wrong[place] ^= 1;
            let error = compare(&wrong, 10, &expected).unwrap_err().to_string();
            assert!(error.starts_with(&format!("byte {place} is ")), "{error}");
        }
    }
}
