//! Slices of the caller's input and output: one for each rank, of any number of bytes at any address.
//!
//! Each slice is cut by itself into pieces, as a message is ([`crate::message`]). Where the pieces at an index lie whole and
//! aligned in the slices of all ranks, they move together, at places that the code knows, and so they do where all slices are of
//! whole words, as far as they are there; else one rank's after the other, and a piece that is ragged in steps of 4, 2 or 1
//! bytes, as its address and its bytes allow.

use core::array::from_fn;

use meshreduce_wire::{SliceParams, Slices, launch::IN_PLACE};

use crate::{
    call::choose,
    memory::{
        load_u8, load_u16, load_u32, load_u32_if, store_u8_cs, store_u16_cs, store_u32_cs, store_u32_cs_if,
    },
    message::{Message, Piece, piece_address},
    thread::{compute_here, decide_here, select},
};

/// Pieces of so many words of slices of the input or of the output, by position, of `W` ranks.
#[derive(Clone, Copy)]
pub struct Cut<'a, const WORDS: usize, const W: usize> {
    slices: &'a Slices,
    in_place: bool,
}

impl<'a, const WORDS: usize, const W: usize> Cut<'a, WORDS, W>
where
    [u32; WORDS]: Piece,
{
    const BYTES: u32 = (WORDS * size_of::<u32>()) as u32;

    /// Of what this rank sends.
    #[inline(always)]
    pub fn sent(params: &'a SliceParams) -> Self {
        Self { slices: &params.sent, in_place: params.launch.flags & IN_PLACE != 0 }
    }

    /// Of what this rank receives.
    #[inline(always)]
    pub fn received(params: &'a SliceParams) -> Self {
        Self { slices: &params.received, in_place: false }
    }

    /// Pieces of the longest slice.
    #[inline(always)]
    pub fn most(&self) -> u32 {
        decide_here(self.slices.most).div_ceil(Self::BYTES)
    }

    /// Pieces of the slice of the rank at `position`.
    #[inline(always)]
    pub fn of(&self, position: u32) -> u32 {
        self.bytes(position).div_ceil(Self::BYTES)
    }

    /// Whether the pieces at `index` of all slices are whole and on a boundary of their size.
    #[inline(always)]
    pub fn are_whole(&self, index: u32) -> bool {
        let is_aligned = decide_here(self.slices.alignment) as u64 >= <[u32; WORDS]>::ALIGNMENT;
        is_aligned && index < decide_here(self.slices.least) / Self::BYTES
    }

    /// Whether all slices have a piece at `index`.
    #[inline(always)]
    pub fn are_there(&self, index: u32) -> bool {
        index < decide_here(self.slices.least).div_ceil(Self::BYTES)
    }

    /// The pieces at `index` of the slices of all positions, which [`Self::are_whole`]. All loads are under way before the first
    /// is waited for.
    ///
    /// # Safety
    /// The input is readable, and nobody writes it during the launch except this launch when it is in place.
    #[inline(always)]
    pub unsafe fn load_each(&self, index: u32) -> [[u32; WORDS]; W] {
        if self.in_place {
            from_fn(|position| <[u32; WORDS]>::load(self.place(position, index)))
        } else {
            from_fn(|position| <[u32; WORDS]>::load_nc(self.place(position, index)))
        }
    }

    /// Whether pieces are moved by [`Self::load_words`] though they are whole, so that neighbouring threads need not part.
    #[inline(always)]
    pub fn go_by_words(&self, index: u32) -> bool {
        !Message::<WORDS>::IS_ONE_ACCESS && self.are_words(index)
    }

    /// Whether all slices have a piece at `index`, and are whole words on boundaries of a word.
    #[inline(always)]
    pub fn are_words(&self, index: u32) -> bool {
        let bytes = from_fn::<_, W, _>(|position| decide_here(self.slices.bytes[position]));
        let ragged = bytes.into_iter().fold(0, |all, bytes| all | bytes) % 4 != 0;
        self.are_there(index) && !ragged && decide_here(self.slices.alignment) >= 4
    }

    /// The pieces at `index` of the slices of all positions, which [`Self::are_words`]; 0 for what is not there. All loads are under
    /// way before the first is waited for.
    ///
    /// # Safety
    /// As for [`Self::load_each`].
    #[inline(always)]
    pub unsafe fn load_words(&self, index: u32) -> [[u32; WORDS]; W] {
        from_fn(|position| {
            let (address, bytes) = self.rest(position, index);
            from_fn(|word| load_u32_if(4 * (word as u32) < bytes, address + 4 * word as u64))
        })
    }

    /// Stores the pieces at `index` of the slices of all positions, which [`Self::are_words`], as far as they are there.
    ///
    /// # Safety
    /// As for [`Self::store_each`].
    #[inline(always)]
    pub unsafe fn store_words(&self, index: u32, pieces: [[u32; WORDS]; W]) {
        let _ = from_fn::<_, W, _>(|position| {
            let (address, bytes) = self.rest(position, index);
            let _ = from_fn::<_, WORDS, _>(|word| {
                let is_there = 4 * (word as u32) < bytes;
                store_u32_cs_if(is_there, address + 4 * word as u64, pieces[position][word]);
            });
        });
    }

    /// Stores the pieces at `index` of the slices of positions `N` to 2 `N` - 1 (`upper`) or 0 to `N` - 1, which
    /// [`Self::are_whole`].
    ///
    /// # Safety
    /// As for [`Self::store_each`].
    #[inline(always)]
    pub unsafe fn store_part<const N: usize>(&self, upper: bool, index: u32, pieces: [[u32; WORDS]; N]) {
        let _ = from_fn::<_, N, _>(|member| {
            <[u32; WORDS]>::store_cs(self.place_of_part::<N>(upper, member, index), pieces[member]);
        });
    }

    /// The piece at `index` of the one slice that all ranks are sent, less than [`Self::most`].
    ///
    /// # Safety
    /// As for [`Self::load_each`].
    #[inline(always)]
    pub unsafe fn load_one(&self, index: u32) -> [u32; WORDS] {
        if !self.are_whole(index) {
            self.load(0, index)
        } else if self.in_place {
            <[u32; WORDS]>::load(self.place(0, index))
        } else {
            <[u32; WORDS]>::load_nc(self.place(0, index))
        }
    }

    /// Stores the pieces at `index` of the slices of all positions, which [`Self::are_whole`].
    ///
    /// # Safety
    /// The output is writable, and nobody else accesses these pieces of it during the launch.
    #[inline(always)]
    pub unsafe fn store_each(&self, index: u32, pieces: [[u32; WORDS]; W]) {
        let _ = from_fn::<_, W, _>(|position| {
            <[u32; WORDS]>::store_cs(self.place(position, index), pieces[position]);
        });
    }

    /// The piece at `index` of the slice of one position, less than [`Self::of`]. What lies beyond the slice is 0.
    ///
    /// # Safety
    /// As for [`Self::load_each`].
    #[inline(always)]
    pub unsafe fn load(&self, position: u32, index: u32) -> [u32; WORDS] {
        let (address, bytes) = self.ragged(position, index);
        let step = step(address, bytes);
        let mut piece = [0; WORDS];
        let mut word = 0;
        while word < WORDS {
            piece[word] = load_word(address, bytes, word as u32 * 4, step);
            word += 1;
        }
        piece
    }

    /// Stores the piece at `index` of the slice of one position, less than [`Self::of`], leaving out what lies beyond it.
    ///
    /// # Safety
    /// As for [`Self::store_each`].
    #[inline(always)]
    pub unsafe fn store(&self, position: u32, index: u32, piece: [u32; WORDS]) {
        let (address, bytes) = self.ragged(position, index);
        let step = step(address, bytes);
        let mut word = 0;
        while word < WORDS {
            store_word(address, bytes, word as u32 * 4, step, piece[word]);
            word += 1;
        }
    }

    /// Stores the piece at `index` of the one slice that a reduction gives, less than [`Self::most`].
    ///
    /// # Safety
    /// As for [`Self::store_each`].
    #[inline(always)]
    pub unsafe fn store_one(&self, index: u32, piece: [u32; WORDS]) {
        if self.are_whole(index) {
            <[u32; WORDS]>::store_cs(self.place(0, index), piece);
        } else {
            self.store(0, index, piece);
        }
    }

    /// Where the piece at `index` of the slice of one position begins, and how many bytes of it there are.
    #[inline(always)]
    fn ragged(&self, position: u32, index: u32) -> (u64, u32) {
        let address = choose::<W>(position, |at| self.slices.addresses[at]);
        let rest = self.bytes(position) - index * Self::BYTES;
        (piece_address::<WORDS>(address, index), if rest < Self::BYTES { rest } else { Self::BYTES })
    }

    /// Where the piece at `index` of a slice that has one begins, and how many bytes of the slice there are from there on.
    #[inline(always)]
    fn rest(&self, position: usize, index: u32) -> (u64, u32) {
        (self.place(position, index), decide_here(self.slices.bytes[position]) - index * Self::BYTES)
    }

    #[inline(always)]
    fn bytes(&self, position: u32) -> u32 {
        choose::<W>(position, |at| self.slices.bytes[at] as u64) as u32
    }

    #[inline(always)]
    fn place_of_part<const N: usize>(&self, upper: bool, member: usize, index: u32) -> u64 {
        let addresses = &self.slices.addresses;
        piece_address::<WORDS>(compute_here(select(upper, addresses[N + member], addresses[member])), index)
    }

    #[inline(always)]
    fn place(&self, position: usize, index: u32) -> u64 {
        // From constant memory each time: no register holds an address of every slice.
        piece_address::<WORDS>(compute_here(self.slices.addresses[position]), index)
    }
}

/// Bytes that move at once of a ragged piece: 4, 2 or 1.
#[inline(always)]
fn step(address: u64, bytes: u32) -> u32 {
    let ragged = address as u32 | bytes;
    if ragged & 3 == 0 {
        4
    } else if ragged & 1 == 0 {
        2
    } else {
        1
    }
}

#[inline(always)]
unsafe fn load_word(address: u64, bytes: u32, first: u32, step: u32) -> u32 {
    let mut word = 0;
    let mut byte = first;
    while byte < first + 4 && byte < bytes {
        let place = address + byte as u64;
        let part = match step {
            4 => load_u32(place),
            2 => load_u16(place) as u32,
            _ => load_u8(place),
        };
        word |= part << (8 * (byte - first));
        byte += decide_here(step);
    }
    word
}

#[inline(always)]
unsafe fn store_word(address: u64, bytes: u32, first: u32, step: u32, word: u32) {
    let mut byte = first;
    while byte < first + 4 && byte < bytes {
        let place = address + byte as u64;
        let part = word >> (8 * (byte - first));
        match step {
            4 => store_u32_cs(place, part),
            2 => store_u16_cs(place, part as u16),
            _ => store_u8_cs(place, part),
        }
        byte += decide_here(step);
    }
}
