//! Locations: where they are, and how wide.

/// A named memory location.
#[derive(Clone, Debug)]
pub struct Location {
    /// Its name.
    pub name: String,
    /// Its width, which is that of every access to it.
    pub width: Width,
    /// Its value before the test.
    pub initial: u64,
    /// The device whose memory holds it. The model does not care; an executor may.
    pub device: u32,
    /// Where it is there.
    pub home: Home,
}

/// Where a location is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Global memory, of its own.
    Global,
    /// Shared memory of a block, which is gone when the block has ended.
    Shared {
        /// The block.
        block: u32,
    },
    /// Behind another location in the memory of that one, so that vectors reach both.
    Behind {
        /// Index of that location.
        first: usize,
        /// Bytes between them.
        offset: u32,
    },
    /// It is no memory but a second address of another location.
    Alias {
        /// Index of that location.
        of: usize,
    },
}

/// Width of a location, register or access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    B8,
    /// 16 bits.
    B16,
    /// 32 bits.
    B32,
    /// 64 bits.
    B64,
}

impl Width {
    /// The width in bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::B8 => 8,
            Self::B16 => 16,
            Self::B32 => 32,
            Self::B64 => 64,
        }
    }

    /// `value` cut to this width.
    pub fn cut(self, value: u64) -> u64 {
        value & u64::MAX >> (64 - self.bits())
    }

    /// `value` of this width as a signed number.
    pub(super) fn signed(self, value: u64) -> i64 {
        (value << (64 - self.bits())) as i64 >> (64 - self.bits())
    }
}
