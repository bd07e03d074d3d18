//! Memory with two things in every word: its value, and the moment from which it is there.
use super::graph::{ENTRY, Graph, Moment};

/// Bytes of a word that has a moment of its own.
const WORD: usize = 4;

/// Bytes, and moments by word.
#[derive(Debug, Default)]
pub(super) struct Words {
    bytes: Vec<u8>,
    moments: Vec<Moment>,
}

impl Words {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let moments = vec![ENTRY; bytes.len().div_ceil(WORD)];
        Self { bytes, moments }
    }

    pub(super) fn all(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn store(&mut self, at: usize, bytes: usize, value: u64) {
        self.bytes[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    /// The moment from which all of a range is there.
    pub(super) fn moment(&self, at: usize, bytes: usize, graph: &Graph) -> Moment {
        let words = &self.moments[at / WORD..(at + bytes).div_ceil(WORD)];
        words.iter().fold(ENTRY, |latest, &moment| graph.later(latest, moment))
    }

    /// A range is there from `moment` on. Of a word that is stored in part the later moment counts.
    pub(super) fn set_moment(&mut self, at: usize, bytes: usize, moment: Moment, graph: &Graph) {
        for word in at / WORD..(at + bytes).div_ceil(WORD) {
            let whole = at <= word * WORD && (word + 1) * WORD <= at + bytes;
            let old = &mut self.moments[word];
            *old = if whole { moment } else { graph.later(*old, moment) };
        }
    }
}

/// `bytes` (at most 8) at `at`, as a number.
pub(super) fn scalar(memory: &[u8], at: usize, bytes: usize) -> u64 {
    let mut word = [0; 8];
    word[..bytes].copy_from_slice(&memory[at..at + bytes]);
    u64::from_le_bytes(word)
}

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Device(u16),
    Host,
}

#[derive(Debug)]
struct Mapping {
    base: u64,
    bytes: u64,
    allocation: usize,
    offset: u64,
}

/// All memory that kernels reach by address.
#[derive(Debug, Default)]
pub(super) struct Memory {
    mappings: Vec<Mapping>,
    pub(super) allocations: Vec<(Owner, Words)>,
}

/// A range of an allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) owner: Owner,
    pub(super) allocation: usize,
    pub(super) at: usize,
}

impl Memory {
    /// Adds memory; what it is called by [`Self::map`].
    pub(super) fn add(&mut self, owner: Owner, bytes: Vec<u8>) -> usize {
        self.allocations.push((owner, Words::new(bytes)));
        self.allocations.len() - 1
    }

    /// Makes a range of an allocation visible at `base`.
    pub(super) fn map(&mut self, base: u64, bytes: u64, allocation: usize, offset: u64) {
        self.mappings.push(Mapping { base, bytes, allocation, offset });
    }

    /// Where an access goes, or what is wrong with its address.
    pub(super) fn find(&self, address: u64, bytes: usize) -> Result<Place, String> {
        let within = |mapping: &&Mapping| address.wrapping_sub(mapping.base) < mapping.bytes;
        let mapping = self.mappings.iter().find(within);
        let mapping = mapping.ok_or_else(|| format!("{address:#x} is outside every allocation"))?;
        let offset = address - mapping.base;
        if mapping.bytes - offset < bytes as u64 {
            return Err(format!("{address:#x} and {bytes} bytes run past the end of an allocation"));
        }
        let (owner, allocation) = (self.allocations[mapping.allocation].0, mapping.allocation);
        Ok(Place { owner, allocation, at: (mapping.offset + offset) as usize })
    }

    pub(super) fn words(&mut self, place: Place) -> &mut Words {
        &mut self.allocations[place.allocation].1
    }
}
