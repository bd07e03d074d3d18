//! Allocations and their words. A scalar access lies within one aligned word, and a word keeps the history of the writes to it
//! that some thread might still read. Words have eight bytes, or sixteen where a kernel accesses so many at once.

use super::history::Cell;

/// Bits of an address that count bytes within a mapping.
const WINDOW: u32 = 32;

/// Where a scalar access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) word: WordId,
    /// Bytes from the beginning of the word.
    pub(super) shift: u8,
    /// The bytes of the word, one bit each.
    pub(super) mask: u16,
    /// The mapping through which it is reached.
    pub(super) mapping: u32,
}

impl Place {
    pub(super) fn location(&self) -> Location {
        Location::new(self.word, self.mask)
    }
}

/// The eight bytes of a word that an access concerns, or all sixteen: what a thread did at one half says nothing of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    word: WordId,
    /// A bit for each half.
    halves: u8,
}

impl Location {
    pub(super) fn new(word: WordId, mask: u16) -> Self {
        Self { word, halves: u8::from(mask & 0x00ff != 0) | u8::from(mask & 0xff00 != 0) << 1 }
    }

    /// Whether both concern the same eight bytes.
    pub(super) fn meets(self, other: Self) -> bool {
        self.word == other.word && self.halves & other.halves != 0
    }

    /// Whether the other concerns nothing else.
    pub(super) fn covers(self, other: Self) -> bool {
        self.word == other.word && other.halves & !self.halves == 0
    }
}

/// A word of an allocation, by its first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WordId {
    pub(super) allocation: u32,
    pub(super) index: u32,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    allocations: Vec<Allocation>,
    /// Mapping `i` begins at address `(i + 1) << WINDOW`.
    mappings: Vec<Mapping>,
    labels: Vec<Label>,
    cells: Vec<Cell>,
    /// Cells of memory that is gone.
    spare: Vec<u32>,
    /// Allocations without an address.
    hidden: Vec<u32>,
    /// Words that have a cell.
    active: Vec<WordId>,
    /// Whether words have sixteen bytes.
    wide: bool,
}

#[derive(Debug)]
struct Allocation {
    bytes: u64,
    words: Vec<Word>,
}

/// Eight bytes, which are a word or half of one.
#[derive(Clone, Copy, Debug)]
struct Word {
    /// The value before the writes of the cell.
    settled: u64,
    /// Index of the cell plus one, or 0. In a word of sixteen bytes its first half has it.
    cell: u32,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    allocation: u32,
    offset: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Label {
    allocation: u32,
    from: u64,
    to: u64,
    text: String,
}

impl Memory {
    /// A zeroed allocation, without an address.
    fn hidden(&mut self, bytes: u64) -> u32 {
        let words = vec![Word { settled: 0, cell: 0 }; 2 * bytes.div_ceil(16) as usize];
        self.allocations.push(Allocation { bytes, words });
        self.allocations.len() as u32 - 1
    }

    /// Shared memory of a block: zeroed, and gone with the next [`Self::settle`].
    pub(super) fn shared(&mut self, bytes: u64) -> u32 {
        let allocation = self.hidden(bytes);
        self.hidden.push(allocation);
        allocation
    }

    /// A zeroed allocation; its address.
    pub(super) fn allocate(&mut self, bytes: u64) -> u64 {
        let allocation = self.hidden(bytes);
        self.map(allocation, 0, bytes)
    }

    fn map(&mut self, allocation: u32, offset: u64, bytes: u64) -> u64 {
        self.mappings.push(Mapping { allocation, offset, bytes });
        (self.mappings.len() as u64) << WINDOW
    }

    /// A second address of memory that has one.
    pub(super) fn alias(&mut self, address: u64, bytes: u64) -> Result<u64, String> {
        let (mapping, offset) = self.find(address, bytes)?;
        let Mapping { allocation, offset: before, .. } = self.mappings[mapping as usize];
        Ok(self.map(allocation, before + offset, bytes))
    }

    pub(super) fn label(&mut self, address: u64, bytes: u64, text: &str) -> Result<(), String> {
        let (mapping, offset) = self.find(address, bytes)?;
        let Mapping { allocation, offset: before, .. } = self.mappings[mapping as usize];
        let from = before + offset;
        self.labels.push(Label { allocation, from, to: from + bytes, text: text.to_owned() });
        Ok(())
    }

    /// The mapping of an address and the offset in it, or what is wrong.
    fn find(&self, address: u64, bytes: u64) -> Result<(u32, u64), String> {
        let index = (address >> WINDOW).wrapping_sub(1);
        let offset = address & ((1 << WINDOW) - 1);
        let Some(mapping) = self.mappings.get(index as usize) else {
            return Err("outside every allocation".to_owned());
        };
        if offset + bytes > mapping.bytes {
            let base = (index + 1) << WINDOW;
            let past = offset + bytes - mapping.bytes;
            return Err(format!("{past} bytes past the end of {} bytes at {base:#x}", mapping.bytes));
        }
        Ok((index as u32, offset))
    }

    /// All mappings in order: first address, bytes, allocation, offset in it.
    pub(super) fn mappings(&self) -> impl Iterator<Item = (u64, u64, usize, u64)> + '_ {
        let bases = (1..).map(|number: u64| number << WINDOW);
        bases
            .zip(&self.mappings)
            .map(|(base, mapping)| (base, mapping.bytes, mapping.allocation as usize, mapping.offset))
    }

    /// From now on words have sixteen bytes, for kernels that access so many at once. Nothing is running.
    pub(super) fn widen(&mut self) {
        assert!(self.active.is_empty(), "histories are of words of one size");
        self.wide = true;
    }

    /// The place of a scalar of `bytes` bytes at an aligned global address.
    pub(super) fn place(&self, address: u64, bytes: u32) -> Result<Place, String> {
        let (index, offset) = self.find(address, u64::from(bytes))?;
        let mapping = self.mappings[index as usize];
        Ok(self.at(mapping.allocation, mapping.offset + offset, bytes, index))
    }

    /// The place of a scalar in an allocation without an address.
    pub(super) fn hidden_place(&self, allocation: u32, offset: u64, bytes: u32) -> Result<Place, String> {
        let size = self.allocations[allocation as usize].bytes;
        if offset + u64::from(bytes) > size {
            return Err(format!("offset {offset} of {size} bytes of shared memory"));
        }
        Ok(self.at(allocation, offset, bytes, u32::MAX))
    }

    fn at(&self, allocation: u32, offset: u64, bytes: u32, mapping: u32) -> Place {
        let size = if self.wide { 16 } else { 8 };
        let shift = (offset % size) as u8;
        let mask = ((1u32 << bytes) - 1) << shift;
        let word = WordId { allocation, index: ((offset - u64::from(shift)) / 8) as u32 };
        Place { word, shift, mask: mask as u16, mapping }
    }

    /// The value of a word before its cell's writes.
    #[inline]
    pub(super) fn settled(&self, id: WordId) -> u128 {
        let words = &self.allocations[id.allocation as usize].words[id.index as usize..];
        u128::from(words[0].settled) | if self.wide { u128::from(words[1].settled) << 64 } else { 0 }
    }

    /// The history of a word, and its value before.
    #[inline]
    pub(super) fn cell(&mut self, id: WordId) -> &mut Cell {
        let word = &mut self.allocations[id.allocation as usize].words[id.index as usize];
        if word.cell == 0 {
            self.active.push(id);
            word.cell = match self.spare.pop() {
                Some(cell) => cell,
                None => {
                    self.cells.push(Cell::default());
                    self.cells.len() as u32
                }
            };
        }
        &mut self.cells[word.cell as usize - 1]
    }

    /// Ends all histories, and memory without an address: `last` says which value a history leaves behind.
    pub(super) fn settle(&mut self, mut last: impl FnMut(&Cell, u128) -> u128) {
        for id in std::mem::take(&mut self.active) {
            let settled = self.settled(id);
            let words = &mut self.allocations[id.allocation as usize].words[id.index as usize..];
            let cell = &mut self.cells[words[0].cell as usize - 1];
            let value = last(cell, settled);
            words[0].settled = value as u64;
            if self.wide {
                words[1].settled = (value >> 64) as u64;
            }
            cell.clear();
            self.spare.push(words[0].cell);
            words[0].cell = 0;
        }
        for allocation in self.hidden.drain(..) {
            self.allocations[allocation as usize].words = Vec::new();
        }
    }

    /// Bytes of settled memory.
    pub(super) fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, String> {
        let (mapping, offset) = self.find(address, bytes as u64)?;
        let Mapping { allocation, offset: before, .. } = self.mappings[mapping as usize];
        let words = &self.allocations[allocation as usize].words;
        let (mut at, end) = ((before + offset) as usize, (before + offset) as usize + bytes);
        let mut data = Vec::with_capacity(bytes);
        while at < end {
            let of_word = words[at / 8].settled.to_le_bytes();
            let part = &of_word[at % 8..(end - at + at % 8).min(8)];
            data.extend_from_slice(part);
            at += part.len();
        }
        Ok(data)
    }

    /// Writes settled memory.
    pub(super) fn write(&mut self, address: u64, data: &[u8]) -> Result<(), String> {
        let (mapping, offset) = self.find(address, data.len() as u64)?;
        let Mapping { allocation, offset: before, .. } = self.mappings[mapping as usize];
        let words = &mut self.allocations[allocation as usize].words;
        let (mut at, mut left) = ((before + offset) as usize, data);
        while !left.is_empty() {
            let word = &mut words[at / 8].settled;
            let mut of_word = word.to_le_bytes();
            let part = &mut of_word[at % 8..(left.len() + at % 8).min(8)];
            let (now, later) = left.split_at(part.len());
            part.copy_from_slice(now);
            *word = u64::from_le_bytes(of_word);
            (at, left) = (at + now.len(), later);
        }
        Ok(())
    }

    /// A place in words: the label with the offset in it, else allocation and offset.
    pub(super) fn describe(&self, word: WordId, mask: u16) -> String {
        let offset = u64::from(word.index) * 8 + u64::from(mask.trailing_zeros().min(15));
        // The narrowest label says most.
        let label = self
            .labels
            .iter()
            .filter(|label| label.allocation == word.allocation && (label.from..label.to).contains(&offset))
            .min_by_key(|label| label.to - label.from);
        match label {
            Some(label) if label.to - label.from <= 8 => label.text.clone(),
            Some(label) => format!("{}, byte {}", label.text, offset - label.from),
            None => match self.mappings.iter().position(|mapping| mapping.allocation == word.allocation) {
                Some(index) => format!("{:#x}", ((index as u64 + 1) << WINDOW) + offset),
                None => format!("shared memory, byte {offset}"),
            },
        }
    }
}

/// Expands a mask of bytes to a mask of bits.
#[inline]
pub(super) fn bits_of(mask: u16) -> u128 {
    let [low, high] = mask.to_le_bytes();
    u128::from(BITS[usize::from(low)]) | u128::from(BITS[usize::from(high)]) << 64
}

/// By mask of eight bytes: the mask of bits.
static BITS: [u64; 256] = {
    let mut all = [0; 256];
    let mut mask = 0;
    while mask < all.len() {
        let mut at = 0;
        while at < 8 {
            all[mask] |= (0xff * (mask >> at & 1) as u64) << (at * 8);
            at += 1;
        }
        mask += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_anywhere_is_read_there_and_nothing_beside_it() {
        let mut memory = Memory::default();
        let base = memory.allocate(40);
        let mut expected = vec![0; 40];
        for (number, (offset, bytes)) in (0..20).flat_map(|at| (0..20).map(move |n| (at, n))).enumerate() {
            let data: Vec<u8> = (0..bytes).map(|at| (number + 3 * at) as u8).collect();
            memory.write(base + offset as u64, &data).expect("within the allocation");
            expected[offset..][..bytes].copy_from_slice(&data);
            assert_eq!(memory.read(base, 40).as_ref(), Ok(&expected));
            assert_eq!(memory.read(base + offset as u64, bytes), Ok(data));
        }
        assert!(memory.write(base + 39, &[0; 2]).is_err() && memory.read(base + 40, 1).is_err());
    }

    #[test]
    fn a_mask_of_bytes_is_one_of_bits() {
        for mask in [0, 1, 0x8001, 0x00ff, 0xff00, 0xffff, 0x5a3c] {
            let bit = |at: u32| mask >> (at / 8) & 1 == 1;
            assert!((0..128).all(|at| bit(at) == (bits_of(mask) >> at & 1 == 1)), "{mask:#x}");
        }
    }
}
