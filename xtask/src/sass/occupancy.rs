//! How many blocks of a kernel a multiprocessor holds at once (CUDA C++ Programming Guide, "Compute Capabilities",
//! tables of technical specifications).

/// Warps of a block of [`meshreduce_wire::MAX_THREADS`] threads.
const WARPS: u32 = meshreduce_wire::MAX_THREADS / 32;

/// What a multiprocessor of a target has.
#[derive(Clone, Copy, Debug)]
struct Multiprocessor {
    registers: u32,
    warps: u32,
    blocks: u32,
    shared_bytes: u32,
    /// Shared memory that the system takes of every block.
    reserved_bytes: u32,
    /// Shared memory is given in multiples of this.
    shared_unit: u32,
}

/// Registers are given to a warp in multiples of this, on every target.
const REGISTER_UNIT: u32 = 256;

/// Parts of a multiprocessor, each with its own registers and every fourth warp, on every target.
const PARTS: u32 = 4;

impl Multiprocessor {
    fn of(target: &str) -> Option<Self> {
        let since_ampere = |kib: u32| Self {
            registers: 65_536,
            warps: 64,
            blocks: 32,
            shared_bytes: kib << 10,
            reserved_bytes: 1 << 10,
            shared_unit: 128,
        };
        Some(match target {
            "sm_70" => Self { reserved_bytes: 0, shared_unit: 256, ..since_ampere(96) },
            "sm_80" => since_ampere(164),
            "sm_90" | "sm_100" => since_ampere(228),
            _ => return None,
        })
    }
}

/// Blocks of 512 threads that a multiprocessor holds; `None` for a target that is not known.
pub(super) fn blocks(target: &str, registers: u32, shared_bytes: u32) -> Option<u32> {
    let has = Multiprocessor::of(target)?;
    let of_warp = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
    let by_registers = has.registers / PARTS / of_warp * PARTS / WARPS;
    let of_block = (shared_bytes + has.reserved_bytes).next_multiple_of(has.shared_unit).max(1);
    let by_shared = has.shared_bytes / of_block;
    Some(by_registers.min(by_shared).min(has.warps / WARPS).min(has.blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_decide_at_512_threads() {
        let at = |registers| blocks("sm_90", registers, 16);
        assert_eq!(
            [at(32), at(33), at(40), at(42), at(64), at(65), at(128), at(129)].map(Option::unwrap),
            [4, 3, 3, 2, 2, 1, 1, 0]
        );
    }

    #[test]
    fn shared_memory_decides_where_there_is_much_of_it() {
        assert_eq!(blocks("sm_70", 32, 40 << 10), Some(2));
        assert_eq!(blocks("sm_80", 32, 53 << 10), Some(3));
        assert_eq!(blocks("sm_80", 32, 54 << 10), Some(2));
        assert_eq!(blocks("sm_60", 32, 0), None);
    }
}
