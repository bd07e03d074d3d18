//! 128-bit packing: four 32-bit words are the unit of every access to staging.
//!
//! Element `i` of a vector of 16-bit elements lies in word `i / 2`, low half first: little-endian memory order.

/// The two 16-bit elements of a word, the one at the lower address first.
#[inline(always)]
pub const fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

/// A word of two 16-bit elements, the one at the lower address first.
#[inline(always)]
pub const fn word([low, high]: [u16; 2]) -> u32 {
    low as u32 | (high as u32) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_follows_memory_order() {
        let bytes = [0x11, 0x22, 0x33, 0x44];
        assert_eq!(halves(u32::from_le_bytes(bytes)), [0x2211, 0x4433]);
        assert_eq!(word([0x2211, 0x4433]).to_le_bytes(), bytes);
    }
}
