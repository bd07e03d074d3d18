//! Where the state spaces lie in the generic address space.
//!
//! Global memory is where the driver says; the other spaces lie above 2^56, where no allocation can be.

use super::types::Space;

/// Generic address of the block's shared memory.
pub const SHARED: u64 = 1 << 56;
/// Generic address of the thread's local memory.
pub const LOCAL: u64 = 2 << 56;
/// Generic address of the module's constant memory.
pub const CONST: u64 = 3 << 56;
/// Generic address of the kernel's parameters.
pub const PARAM: u64 = 4 << 56;

/// Bytes of each window, far more than the space in it.
const BYTES: u64 = 1 << 56;

/// The generic address of a space's address 0.
#[inline]
pub const fn base(space: Space) -> u64 {
    match space {
        Space::Generic | Space::Global => 0,
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Const => CONST,
        Space::Param => PARAM,
    }
}

/// The space that a generic address is in.
#[inline]
pub const fn of(address: u64) -> Space {
    match address / BYTES {
        1 => Space::Shared,
        2 => Space::Local,
        3 => Space::Const,
        4 => Space::Param,
        _ => Space::Global,
    }
}

/// The space of an access and the address in it.
#[inline]
pub const fn resolve(space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Generic => {
            let space = of(address);
            (space, address.wrapping_sub(base(space)))
        }
        space => (space, address),
    }
}
