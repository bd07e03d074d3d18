//! The caller's input and output: any number of elements at any address that the element type allows, cut into
//! 16-byte vectors for staging, without reading or writing a byte beyond them.
//!
//! A vector that lies whole and on a 16-byte boundary moves in one access. Where the pointer is aligned to its
//! element only, and at the message's ragged end, vectors move element by element. Vectors are the same whatever the
//! pointer's alignment, and so are results.

use core::array::from_fn;

use meshreduce_wire::{LaunchParams, VECTOR_BYTES, launch::IN_PLACE};

use crate::{
    element::Element,
    memory::{Vector, load_vector, load_vector_nc, store_vector, store_vector_cs},
    thread::{block_dim_x, block_idx_x, grid_dim_x, thread_idx_x},
};

/// A launch's input and output. Vectors are counted in 32 bits ([`meshreduce_wire::launch::MAX_VECTORS`]): an address is
/// then one multiply-add of a base and an index.
#[derive(Clone, Copy)]
pub struct Message {
    input: u64,
    output: u64,
    /// Vectors that are there in full.
    whole: u32,
    /// Elements of the partial vector behind them.
    rest: u32,
    in_place: bool,
}

impl Message {
    /// The message of a launch over elements `E`.
    #[inline(always)]
    pub fn new<E: Element>(params: &LaunchParams) -> Self {
        Self {
            input: params.input,
            output: params.output,
            whole: (params.count / E::PER_VECTOR as u64) as u32,
            rest: params.count as u32 % E::PER_VECTOR as u32,
            in_place: params.flags & IN_PLACE != 0,
        }
    }

    /// Vectors that the message fills, the last one perhaps in part.
    #[inline(always)]
    pub fn vectors(&self) -> u32 {
        self.whole + (self.rest != 0) as u32
    }

    /// The vector of the input at `index`, less than [`Self::vectors`]. Elements beyond the end are 0.
    ///
    /// # Safety
    /// The input is readable, and nobody writes it during the launch except this launch when it is in place.
    #[inline(always)]
    pub unsafe fn load<E: Element>(&self, index: u32) -> Vector {
        let address = vector_address(self.input, index);
        let present = self.present::<E>(index);
        if present == E::PER_VECTOR as u32 && self.input % VECTOR_BYTES as u64 == 0 {
            if self.in_place { load_vector(address) } else { load_vector_nc(address) }
        } else {
            load_elements::<E>(address, present)
        }
    }

    /// Stores the vector of the output at `index`, less than [`Self::vectors`], leaving out what lies beyond the end.
    ///
    /// # Safety
    /// The output is writable, and nobody else accesses this vector of it during the launch.
    #[inline(always)]
    pub unsafe fn store<E: Element>(&self, index: u32, vector: Vector) {
        let address = vector_address(self.output, index);
        let present = self.present::<E>(index);
        if present == E::PER_VECTOR as u32 && self.output % VECTOR_BYTES as u64 == 0 {
            store_vector_cs(address, vector);
        } else {
            store_elements::<E>(address, present, vector);
        }
    }

    /// Whether vectors up to and with `last` are there in full and on a 16-byte boundary in input and output, so that
    /// they can be moved by [`Self::load_each`] and [`Self::store_each`].
    #[inline(always)]
    pub fn is_whole(&self, last: u32) -> bool {
        last < self.whole && (self.input | self.output) % VECTOR_BYTES as u64 == 0
    }

    /// The `N` vectors of the input at `first` and every `step` behind it, for which [`Self::is_whole`] is true. All
    /// loads are under way before the first is waited for.
    ///
    /// # Safety
    /// As for [`Self::load`].
    #[inline(always)]
    pub unsafe fn load_each<const N: usize>(&self, first: u32, step: u32) -> [Vector; N] {
        let addresses = Addresses::new(self.input, first, step);
        if self.in_place {
            addresses.map_each(|address| load_vector(address))
        } else {
            addresses.map_each(|address| load_vector_nc(address))
        }
    }

    /// Stores vectors of the output at `first` and every `step` behind it, for which [`Self::is_whole`] is true.
    ///
    /// # Safety
    /// As for [`Self::store`].
    #[inline(always)]
    pub unsafe fn store_each<const N: usize>(&self, first: u32, step: u32, vectors: [Vector; N]) {
        let mut addresses = Addresses::new(self.output, first, step);
        let _ = vectors.map(|vector| store_vector_cs(addresses.advance(), vector));
    }

    /// Elements of the vector at `index` that belong to the message.
    #[inline(always)]
    fn present<E: Element>(&self, index: u32) -> u32 {
        if index < self.whole { E::PER_VECTOR as u32 } else { self.rest }
    }
}

/// Stores vectors, weakly, at `first` and every `step` behind it of those that begin at `base`.
///
/// # Safety
/// As for [`crate::memory`].
#[inline(always)]
pub unsafe fn store_each<const N: usize>(base: u64, first: u32, step: u32, vectors: [Vector; N]) {
    let mut addresses = Addresses::new(base, first, step);
    let _ = vectors.map(|vector| store_vector(addresses.advance(), vector));
}

/// Addresses of vectors at even distances. They follow from one another, so that only one is in registers at a time.
struct Addresses {
    next: u64,
    step: u64,
}

impl Addresses {
    #[inline(always)]
    fn new(base: u64, first: u32, step: u32) -> Self {
        Self { next: vector_address(base, first), step: vector_address(0, step) }
    }

    #[inline(always)]
    fn advance(&mut self) -> u64 {
        let address = self.next;
        self.next += self.step;
        address
    }

    #[inline(always)]
    fn map_each<const N: usize>(mut self, load: impl Fn(u64) -> Vector) -> [Vector; N] {
        from_fn(|_| load(self.advance()))
    }
}

/// The address of the vector at `index` of those that begin at `base`.
#[inline(always)]
pub fn vector_address(base: u64, index: u32) -> u64 {
    base + index as u64 * VECTOR_BYTES as u64
}

#[inline(always)]
unsafe fn load_elements<E: Element>(address: u64, present: u32) -> Vector {
    let mut vector = [0; 4];
    let mut index = 0;
    while index < E::PER_VECTOR {
        if (index as u32) < present {
            let byte = index * E::BYTES;
            vector[byte / 4] |= E::load(address + byte as u64) << (byte % 4 * 8);
        }
        index += 1;
    }
    vector
}

#[inline(always)]
unsafe fn store_elements<E: Element>(address: u64, present: u32, vector: Vector) {
    let mut index = 0;
    while index < E::PER_VECTOR {
        if (index as u32) < present {
            let byte = index * E::BYTES;
            E::store(address + byte as u64, vector[byte / 4] >> (byte % 4 * 8));
        }
        index += 1;
    }
}

/// The vectors of a region that fall to one thread, by index: neighbouring threads take neighbouring vectors, then all
/// threads of the grid take the next step together. Every rank has the same grid, so thread t of block b has the same
/// share everywhere, which is what makes one barrier per block enough.
pub struct Share {
    next: u32,
    step: u32,
    end: u32,
}

impl Share {
    /// The calling thread's share of `vectors` vectors.
    ///
    /// # Safety
    /// Only in a kernel.
    #[inline(always)]
    pub unsafe fn of_thread(vectors: u32) -> Self {
        let threads = block_dim_x();
        Self { next: block_idx_x() * threads + thread_idx_x(), step: grid_dim_x() * threads, end: vectors }
    }
}

impl Iterator for Share {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        let index = self.next;
        self.next += self.step;
        (index < self.end).then_some(index)
    }
}
