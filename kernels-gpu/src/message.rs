//! The caller's input and output: any number of elements at any address that the element type allows, cut into
//! pieces without reading or writing a byte beyond them: 16-byte vectors for staging, units of half of that or of three words
//! for packets.
//!
//! A piece that lies whole and on a boundary of its size moves in one access; three words, on a boundary of a word, in three.
//! At the ragged end of a message of whole words, words that are there move, all at once. Where the pointer is aligned to its
//! element only, or the last word is half there, pieces move element by element. Pieces are the same whatever the pointer's
//! alignment, and so are results.

use core::array::from_fn;

use meshreduce_wire::{
    LaunchParams, VECTOR_BYTES,
    launch::{self, IN_PLACE},
};

use crate::{
    element::Element,
    memory::{
        Vector, load_u16, load_u32, load_u32_if, load_u32_nc, load_u32_pair, load_u32_pair_nc, load_vector,
        load_vector_nc, store_u16_cs, store_u32_cs, store_u32_cs_if, store_u32_pair_cs, store_vector,
        store_vector_cs,
    },
    thread::{block_dim_x, block_idx_x, compute_here, decide_here, grid_dim_x, thread_idx_x},
};

/// What moves at once.
pub trait Piece: Copy {
    /// What its address is a multiple of, where it does.
    const ALIGNMENT: u64;

    /// Loads one, weakly.
    ///
    /// # Safety
    /// As for [`crate::memory`].
    unsafe fn load(address: u64) -> Self;

    /// Loads one of what nobody writes during the launch.
    ///
    /// # Safety
    /// As for [`crate::memory`].
    unsafe fn load_nc(address: u64) -> Self;

    /// Stores one, weakly, streaming.
    ///
    /// # Safety
    /// As for [`crate::memory`].
    unsafe fn store_cs(address: u64, piece: Self);
}

impl Piece for Vector {
    const ALIGNMENT: u64 = size_of::<Self>() as u64;

    #[inline(always)]
    unsafe fn load(address: u64) -> Self {
        load_vector(address)
    }

    #[inline(always)]
    unsafe fn load_nc(address: u64) -> Self {
        load_vector_nc(address)
    }

    #[inline(always)]
    unsafe fn store_cs(address: u64, piece: Self) {
        store_vector_cs(address, piece);
    }
}

impl Piece for [u32; 2] {
    const ALIGNMENT: u64 = size_of::<Self>() as u64;

    #[inline(always)]
    unsafe fn load(address: u64) -> Self {
        load_u32_pair(address)
    }

    #[inline(always)]
    unsafe fn load_nc(address: u64) -> Self {
        load_u32_pair_nc(address)
    }

    #[inline(always)]
    unsafe fn store_cs(address: u64, piece: Self) {
        store_u32_pair_cs(address, piece);
    }
}

impl Piece for [u32; 3] {
    const ALIGNMENT: u64 = size_of::<u32>() as u64;

    #[inline(always)]
    unsafe fn load(address: u64) -> Self {
        [load_u32(address), load_u32(address + 4), load_u32(address + 8)]
    }

    #[inline(always)]
    unsafe fn load_nc(address: u64) -> Self {
        [load_u32_nc(address), load_u32_nc(address + 4), load_u32_nc(address + 8)]
    }

    #[inline(always)]
    unsafe fn store_cs(address: u64, [a, b, c]: Self) {
        store_u32_cs(address, a);
        store_u32_cs(address + 4, b);
        store_u32_cs(address + 8, c);
    }
}

/// A launch's input and output, in pieces of so many 32-bit words. Vectors are counted in 32 bits
/// ([`meshreduce_wire::launch::MAX_VECTORS`]), and so are units, of which a message by packets has fewer: an address is
/// then one multiply-add of a base and an index.
#[derive(Clone, Copy)]
pub struct Message<const WORDS: usize = 4> {
    input: u64,
    output: u64,
    /// Pieces that are there in full.
    whole: u32,
    /// Elements of the partial piece behind them.
    rest: u32,
    /// Bytes of an element, 2 or 4.
    element: u32,
    in_place: bool,
}

impl<const WORDS: usize> Message<WORDS>
where
    [u32; WORDS]: Piece,
{
    /// Whether a whole piece moves in one access; else word by word, whole or not, and neighbouring threads need not part.
    pub const IS_ONE_ACCESS: bool = <[u32; WORDS]>::ALIGNMENT > 4;

    /// The message of a launch over elements `E`.
    #[inline(always)]
    pub fn new<E: Element>(params: &LaunchParams) -> Self {
        Self::of(params.input, params.output, params.count, E::BYTES as u32, params.flags)
    }

    /// The message of a launch over elements of the type that it says.
    #[inline(always)]
    pub fn of_kind(params: &LaunchParams) -> Self {
        let bytes = launch::element_bytes(decide_here(params.kind));
        Self::of(params.input, params.output, params.count, bytes, params.flags)
    }

    /// The same, computed here, where it is used: in a loop that waits, no register then holds it from turn to turn.
    #[inline(always)]
    pub fn here(params: &LaunchParams) -> Self {
        let bytes = launch::element_bytes(decide_here(params.kind));
        let [input, output, count] =
            [params.input, params.output, params.count].map(|word| compute_here(word));
        Self::of(input, output, count, bytes, params.flags)
    }

    /// A message of so many elements, of the type that the launch says, which is loaded as one that is in place is.
    #[inline(always)]
    pub fn of_list(params: &LaunchParams, input: u64, output: u64, count: u32) -> Self {
        let bytes = launch::element_bytes(decide_here(params.kind));
        Self::of(input, output, count as u64, bytes, IN_PLACE)
    }

    #[inline(always)]
    fn of(input: u64, output: u64, count: u64, element: u32, flags: u32) -> Self {
        // A word has one element, or two.
        let pair = (element == 2) as u32;
        let words = count >> pair;
        let whole = (words / WORDS as u64) as u32;
        let rest = ((words % WORDS as u64) as u32) << pair | count as u32 & pair;
        Self { input, output, whole, rest, element, in_place: flags & IN_PLACE != 0 }
    }

    /// Pieces that the message fills, the last one perhaps in part.
    #[inline(always)]
    pub fn pieces(&self) -> u32 {
        self.whole + (self.rest != 0) as u32
    }

    /// The piece of the input at `index`, less than [`Self::pieces`]. Elements beyond the end are 0.
    ///
    /// # Safety
    /// The input is readable, and nobody writes it during the launch except this launch when it is in place.
    #[inline(always)]
    pub unsafe fn load(&self, index: u32) -> [u32; WORDS] {
        let address = piece_address::<WORDS>(self.input, index);
        let present = self.present(index);
        if Self::IS_ONE_ACCESS && index < self.whole && self.input % <[u32; WORDS]>::ALIGNMENT == 0 {
            self.load_whole(address)
        } else {
            load_elements(address, present, self.element)
        }
    }

    /// Stores the piece of the output at `index`, less than [`Self::pieces`], leaving out what lies beyond the end.
    ///
    /// # Safety
    /// The output is writable, and nobody else accesses this piece of it during the launch.
    #[inline(always)]
    pub unsafe fn store(&self, index: u32, piece: [u32; WORDS]) {
        let address = piece_address::<WORDS>(self.output, index);
        let present = self.present(index);
        if Self::IS_ONE_ACCESS && index < self.whole && self.output % <[u32; WORDS]>::ALIGNMENT == 0 {
            <[u32; WORDS]>::store_cs(address, piece);
        } else {
            store_elements(address, present, self.element, piece);
        }
    }

    /// Whether pieces up to and with `last` are there in full and on a boundary of their size in input and output, so that
    /// they can be moved by [`Self::load_each`] and [`Self::store_each`].
    #[inline(always)]
    pub fn is_whole(&self, last: u32) -> bool {
        last < self.whole && (self.input | self.output) % <[u32; WORDS]>::ALIGNMENT == 0
    }

    /// The `N` pieces of the input at `first` and every `step` behind it, for which [`Self::is_whole`] is true. All
    /// loads are under way before the first is waited for.
    ///
    /// # Safety
    /// As for [`Self::load`].
    #[inline(always)]
    pub unsafe fn load_each<const N: usize>(&self, first: u32, step: u32) -> [[u32; WORDS]; N] {
        let addresses = Addresses::new::<WORDS>(self.input, first, step);
        if self.in_place {
            addresses.map_each(|address| <[u32; WORDS]>::load(address))
        } else {
            addresses.map_each(|address| <[u32; WORDS]>::load_nc(address))
        }
    }

    /// Stores pieces of the output at `first` and every `step` behind it, for which [`Self::is_whole`] is true.
    ///
    /// # Safety
    /// As for [`Self::store`].
    #[inline(always)]
    pub unsafe fn store_each<const N: usize>(&self, first: u32, step: u32, pieces: [[u32; WORDS]; N]) {
        let mut addresses = Addresses::new::<WORDS>(self.output, first, step);
        let _ = pieces.map(|piece| <[u32; WORDS]>::store_cs(addresses.advance(), piece));
    }

    /// Whether the message is whole words on a boundary of a word in input and output, so that pieces of it can be moved by
    /// [`Self::load_words`] and [`Self::store_words`].
    #[inline(always)]
    pub fn is_of_words(&self) -> bool {
        (self.input | self.output) % 4 == 0 && (self.element == 4 || self.rest % 2 == 0)
    }

    /// The `N` pieces of the input at `first` and every `step` behind it, as far as they are there, of a message that
    /// [`Self::is_of_words`]; 0 for the rest. All loads are under way before the first is waited for.
    ///
    /// # Safety
    /// As for [`Self::load`].
    #[inline(always)]
    pub unsafe fn load_words<const N: usize>(&self, first: u32, step: u32) -> [[u32; WORDS]; N] {
        let (mut addresses, end) = (Addresses::new::<WORDS>(self.input, first, step), self.end());
        from_fn(|_| {
            let address = addresses.advance();
            from_fn(|word| load_u32_if(address + 4 * (word as u64) < end, address + 4 * word as u64))
        })
    }

    /// Stores the pieces of the output at `first` and every `step` behind it, as far as they are there, of a message that
    /// [`Self::is_of_words`].
    ///
    /// # Safety
    /// As for [`Self::store`].
    #[inline(always)]
    pub unsafe fn store_words<const N: usize>(&self, first: u32, step: u32, pieces: [[u32; WORDS]; N]) {
        let end = self.end() - self.input + self.output;
        let mut addresses = Addresses::new::<WORDS>(self.output, first, step);
        let _ = pieces.map(|piece| {
            let address = addresses.advance();
            let _ = from_fn::<_, WORDS, _>(|word| {
                let place = address + 4 * word as u64;
                store_u32_cs_if(place < end, place, piece[word]);
            });
        });
    }

    /// Where the input ends.
    #[inline(always)]
    fn end(&self) -> u64 {
        piece_address::<WORDS>(self.input, self.whole) + (self.rest * self.element) as u64
    }

    #[inline(always)]
    unsafe fn load_whole(&self, address: u64) -> [u32; WORDS] {
        if self.in_place { <[u32; WORDS]>::load(address) } else { <[u32; WORDS]>::load_nc(address) }
    }

    /// Elements of the piece at `index` that belong to the message.
    #[inline(always)]
    fn present(&self, index: u32) -> u32 {
        if index < self.whole { self.per_piece() } else { self.rest }
    }

    #[inline(always)]
    fn per_piece(&self) -> u32 {
        (WORDS as u32) << (self.element == 2) as u32
    }
}

/// Stores vectors, weakly, at `first` and every `step` behind it of those that begin at `base`.
///
/// # Safety
/// As for [`crate::memory`].
#[inline(always)]
pub unsafe fn store_each<const N: usize>(base: u64, first: u32, step: u32, vectors: [Vector; N]) {
    let mut addresses = Addresses::new::<4>(base, first, step);
    let _ = vectors.map(|vector| store_vector(addresses.advance(), vector));
}

/// Addresses of pieces at even distances. They follow from one another, so that only one is in registers at a time.
struct Addresses {
    next: u64,
    step: u64,
}

impl Addresses {
    #[inline(always)]
    fn new<const WORDS: usize>(base: u64, first: u32, step: u32) -> Self {
        Self { next: piece_address::<WORDS>(base, first), step: piece_address::<WORDS>(0, step) }
    }

    #[inline(always)]
    fn advance(&mut self) -> u64 {
        let address = self.next;
        self.next += self.step;
        address
    }

    #[inline(always)]
    fn map_each<P, const N: usize>(mut self, load: impl Fn(u64) -> P) -> [P; N] {
        from_fn(|_| load(self.advance()))
    }
}

/// The address of the vector at `index` of those that begin at `base`.
#[inline(always)]
pub fn vector_address(base: u64, index: u32) -> u64 {
    base + index as u64 * VECTOR_BYTES as u64
}

/// The address of the piece at `index` of those that begin at `base`.
#[inline(always)]
pub fn piece_address<const WORDS: usize>(base: u64, index: u32) -> u64 {
    base + index as u64 * (WORDS * size_of::<u32>()) as u64
}

/// Loads as many elements of so many bytes as are `present`, one by one.
#[inline(always)]
unsafe fn load_elements<const WORDS: usize>(address: u64, present: u32, element: u32) -> [u32; WORDS] {
    if are_words(address, present, element) {
        let bytes = present * element;
        return from_fn(|word| load_u32_if(4 * (word as u32) < bytes, address + 4 * word as u64));
    }
    let mut piece = [0; WORDS];
    let mut word = 0;
    while word < WORDS {
        let place = address + 4 * word as u64;
        if (2 * word as u32) < present {
            piece[word] = load_u16(place) as u32;
        }
        if (2 * word as u32 + 1) < present {
            piece[word] |= (load_u16(place + 2) as u32) << 16;
        }
        word += 1;
    }
    piece
}

/// Whether so many elements of so many bytes are whole words on a boundary of a word.
#[inline(always)]
fn are_words(address: u64, present: u32, element: u32) -> bool {
    element == 4 || (address as u32 % 4 == 0 && present % 2 == 0)
}

/// Stores as many elements of so many bytes as are `present`, one by one.
#[inline(always)]
unsafe fn store_elements<const WORDS: usize>(address: u64, present: u32, element: u32, piece: [u32; WORDS]) {
    if are_words(address, present, element) {
        let bytes = present * element;
        let _ = from_fn::<_, WORDS, _>(|word| {
            store_u32_cs_if(4 * (word as u32) < bytes, address + 4 * word as u64, piece[word]);
        });
        return;
    }
    let mut word = 0;
    while word < WORDS {
        let place = address + 4 * word as u64;
        if (2 * word as u32) < present {
            store_u16_cs(place, piece[word] as u16);
        }
        if (2 * word as u32 + 1) < present {
            store_u16_cs(place + 2, (piece[word] >> 16) as u16);
        }
        word += 1;
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
