//! How a message is cut into blocks and threads.
//!
//! A pure function of what all ranks know, because block b of one rank waits for block b of every other.

use crate::{Algorithm, DType, Isa, MAX_BLOCKS, MAX_THREADS, VECTOR_BYTES, packets};

/// A launch's blocks and threads per block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks of the grid, 1 to [`MAX_BLOCKS`].
    pub blocks: u32,
    /// Threads of a block, a multiple of 32, at most [`MAX_THREADS`].
    pub threads: u32,
}

/// Threads of the smallest block. Small messages gain from more and smaller blocks, which move through the
/// multiprocessors' load queues side by side.
pub const MIN_THREADS: u32 = 128;

/// Vectors of [`VECTOR_BYTES`] that `count` elements fill, the last one perhaps in part.
#[inline(always)]
pub const fn vectors(count: u64, dtype: DType) -> u64 {
    count.div_ceil((VECTOR_BYTES / dtype.size()) as u64)
}

/// Vectors in one rank's slice of a two-shot message: the message's vectors shared out evenly, rounded up, so that
/// the last slices may be shorter or empty.
#[inline(always)]
pub const fn slice_vectors(vectors: u64, world_size: u32) -> u64 {
    vectors.div_ceil(world_size as u64)
}

/// Where in a staging half the second region begins, in bytes: behind the staged input of `vectors` vectors. A
/// two-shot rank publishes its reduced slice there, a rank of a hybrid cube mesh its quad's partial sums in fp32.
#[inline(always)]
pub const fn second_region(vectors: u64) -> u64 {
    vectors * VECTOR_BYTES as u64
}

/// Bytes that a call needs in one staging half: the staged input and, where there is one, the second region. A call by
/// packets needs none; [`packets::phase_bytes`] says what it needs.
///
/// ```
/// use meshreduce_wire::{Algorithm, DType, geometry::staging_bytes};
/// assert_eq!(staging_bytes(Algorithm::OneShot, 4096, DType::Bf16, 8), 8192);
/// assert_eq!(staging_bytes(Algorithm::TwoShot, 4096, DType::Bf16, 8), 8192 + 1024);
/// assert_eq!(staging_bytes(Algorithm::HybridCubeMesh, 4096, DType::Bf16, 8), 8192 + 16384);
/// ```
pub const fn staging_bytes(algorithm: Algorithm, count: u64, dtype: DType, world_size: u32) -> u64 {
    let vectors = vectors(count, dtype);
    let second = match algorithm {
        Algorithm::OneShotLl
        | Algorithm::TwoShotLl
        | Algorithm::HybridCubeMeshLl
        | Algorithm::ExchangeLl
        | Algorithm::ReduceScatterLl
        | Algorithm::CubeMeshExchangeLl
        | Algorithm::CubeMeshReduceScatterLl
        | Algorithm::GroupLl => return 0,
        // What does not fit goes in several pieces.
        Algorithm::Exchange | Algorithm::ReduceScatter => return 0,
        Algorithm::OneShot => 0,
        Algorithm::TwoShot => slice_vectors(vectors, world_size) * VECTOR_BYTES as u64,
        Algorithm::HybridCubeMesh => vectors * (VECTOR_BYTES / dtype.size() * size_of::<f32>()) as u64,
    };
    second_region(vectors) + second
}

impl Geometry {
    /// The geometry of `count` elements (at least one) over `world_size` ranks, in at most `block_cap` blocks (at least one):
    /// as many blocks as the cap allows before blocks grow beyond [`MIN_THREADS`]; beyond [`MAX_THREADS`] every thread takes
    /// several steps. A thread's step is a vector, or of packets a unit. In a call by packets the last warp of every block has
    /// no part of the message: it counts. Neither has block 0, where there is more than one: it meets the peers' headers.
    ///
    /// ```
    /// use meshreduce_wire::{Algorithm, DType, Geometry, Isa};
    /// let small = Geometry::new(Algorithm::OneShot, 4096, DType::Bf16, 8, 64, Isa::V70);
    /// assert_eq!((small.blocks, small.threads), (4, 128));
    /// let large = Geometry::new(Algorithm::OneShot, 128 << 10, DType::Bf16, 8, 64, Isa::V70);
    /// assert_eq!((large.blocks, large.threads), (32, 512));
    /// ```
    pub const fn new(
        algorithm: Algorithm,
        count: u64,
        dtype: DType,
        world_size: u32,
        block_cap: u32,
        isa: Isa,
    ) -> Self {
        let (vectors, units) = (vectors(count, dtype), packets::units(count, dtype, isa));
        let work = match algorithm {
            Algorithm::TwoShot => slice_vectors(vectors, world_size),
            Algorithm::TwoShotLl => packets::slice_units(units, world_size),
            algorithm if algorithm.is_by_packets() => units,
            _ => vectors,
        };
        Self::of_work(algorithm, work, block_cap)
    }

    /// The geometry of a call of an algorithm of slices of which the longest has so many bytes, as in [`Self::new`].
    ///
    /// ```
    /// use meshreduce_wire::{Algorithm, Geometry, Isa};
    /// let barrier = Geometry::of_slices(Algorithm::ExchangeLl, 0, 64, Isa::V70);
    /// assert_eq!((barrier.blocks, barrier.threads), (1, 160));
    /// ```
    pub const fn of_slices(algorithm: Algorithm, longest: u64, block_cap: u32, isa: Isa) -> Self {
        let bytes = if algorithm.is_by_packets() { isa.unit_bytes() } else { VECTOR_BYTES };
        let work = longest.div_ceil(bytes as u64);
        let geometry = Self::of_work(algorithm, work, block_cap);
        // Of nothing, block 0 alone is enough.
        if work == 0 { Self { blocks: 1, ..geometry } } else { geometry }
    }

    /// The geometry of a launch of [`Algorithm::GroupLl`] of so many units ([`crate::GroupParams::units`]), as in [`Self::new`].
    pub const fn of_list(units: u32, block_cap: u32) -> Self {
        Self::of_work(Algorithm::GroupLl, units as u64, block_cap)
    }

    const fn of_work(algorithm: Algorithm, work: u64, block_cap: u32) -> Self {
        let most = match algorithm {
            // Every block costs world size signals, and at these sizes half the pad's blocks fill the links.
            Algorithm::OneShot | Algorithm::HybridCubeMesh => MAX_BLOCKS / 2,
            _ => MAX_BLOCKS,
        };
        let cap = clamp(block_cap as u64, 1, most as u64);
        let headers = if algorithm.is_by_packets() && cap > 1 { 1 } else { 0 };
        let cap = cap - headers;
        let counting = packets::counting_threads(algorithm);
        let most = (MAX_THREADS - counting) as u64;
        let threads = clamp(work.div_ceil(cap).next_multiple_of(32), MIN_THREADS as u64, most);
        let blocks = clamp(work.div_ceil(threads), 1, cap) + headers;
        Self { blocks: blocks as u32, threads: threads as u32 + counting }
    }
}

const fn clamp(value: u64, low: u64, high: u64) -> u64 {
    if value < low {
        low
    } else if value > high {
        high
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_stays_within_the_pad_and_the_cap() {
        for algorithm in Algorithm::ALL {
            for dtype in DType::ALL {
                for world_size in 2..=8 {
                    for cap in [1, 2, 3, 24, 63, 64, 132] {
                        for count in [1, 7, 8, 9, 1000, 1 << 12, (1 << 17) + 1, 5 << 20] {
                            for isa in Isa::ALL {
                                let shape = Geometry::new(algorithm, count, dtype, world_size, cap, isa);
                                let blocks = 1..=cap.min(MAX_BLOCKS);
                                assert!(blocks.contains(&shape.blocks), "{shape:?}");
                                assert!(shape.threads.is_multiple_of(32), "{shape:?}");
                                let threads = MIN_THREADS..=MAX_THREADS;
                                assert!(threads.contains(&shape.threads), "{shape:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_partial_vector_counts_as_one() {
        assert_eq!(vectors(8, DType::Bf16), 1);
        assert_eq!(vectors(9, DType::Bf16), 2);
        assert_eq!(vectors(4, DType::F32), 1);
        assert_eq!(vectors(5, DType::F32), 2);
    }
}
