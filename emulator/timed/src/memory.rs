//! All memory that kernels reach by address, and, if the path is followed, who wrote it last.

use meshreduce_emulator_ptx::FaultKind;

use crate::path::{NOBODY, NodeId};

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Device(u16),
    Host,
}

#[derive(Debug)]
struct Region {
    base: u64,
    owner: Owner,
    bytes: Vec<u8>,
    /// By four bytes: the store that is there.
    writers: Vec<NodeId>,
}

/// Bytes by address.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// In the order of their addresses.
    regions: Vec<Region>,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) owner: Owner,
    region: u32,
}

impl Place {
    /// No place at all.
    pub(crate) const NOWHERE: Self = Self { owner: Owner::Host, region: u32::MAX };

    /// Whether both are in one allocation.
    pub(crate) fn is(self, other: Self) -> bool {
        self.region == other.region
    }
}

impl Memory {
    /// Adds memory; whether its addresses were free.
    pub(crate) fn add(&mut self, owner: Owner, base: u64, bytes: Vec<u8>) -> bool {
        let at = self.regions.partition_point(|region| region.base < base);
        let overlaps =
            |region: &Region, base, end| region.base < end && base < region.base + region.bytes.len() as u64;
        let end = base + bytes.len() as u64;
        if self.regions.iter().any(|region| overlaps(region, base, end)) {
            return false;
        }
        self.regions.insert(at, Region { base, owner, bytes, writers: Vec::new() });
        true
    }

    /// From now on it is known who wrote.
    pub(crate) fn follow(&mut self) {
        for region in &mut self.regions {
            region.writers = vec![NOBODY; region.bytes.len().div_ceil(4)];
        }
    }

    /// The ranges of a device's memory.
    pub(crate) fn of(&self, device: u16) -> impl Iterator<Item = (u64, u64)> {
        let own = self.regions.iter().filter(move |region| region.owner == Owner::Device(device));
        own.map(|region| (region.base, region.bytes.len() as u64))
    }

    /// Where an access goes; `hint` is where the last one went.
    #[inline]
    pub(crate) fn find(
        &self,
        address: u64,
        bytes: u32,
        access: &'static str,
        hint: Option<Place>,
    ) -> Result<Place, FaultKind> {
        if !address.is_multiple_of(u64::from(bytes)) {
            return Err(FaultKind::Misaligned { access, address, bytes });
        }
        let fits = |region: &Region| {
            let offset = address.wrapping_sub(region.base);
            offset < region.bytes.len() as u64 && offset + u64::from(bytes) <= region.bytes.len() as u64
        };
        if let Some(place) = hint.filter(|place| fits(&self.regions[place.region as usize])) {
            return Ok(place);
        }
        let before = self.regions.partition_point(|region| region.base <= address);
        let region = before.checked_sub(1).map(|at| (at, &self.regions[at]));
        match region {
            Some((at, region)) if fits(region) => Ok(Place { owner: region.owner, region: at as u32 }),
            _ => Err(FaultKind::OutOfBounds { access, address, bytes, nearest: self.nearest(address) }),
        }
    }

    fn nearest(&self, address: u64) -> String {
        let distance = |region: &&Region| {
            let end = region.base + region.bytes.len() as u64;
            if address < region.base { region.base - address } else { address.saturating_sub(end) }
        };
        match self.regions.iter().min_by_key(distance) {
            Some(region) => format!("nearest are {} bytes at {:#x}", region.bytes.len(), region.base),
            None => "there is no memory".to_owned(),
        }
    }

    #[inline]
    pub(crate) fn load(&self, place: Place, address: u64, bytes: usize) -> u64 {
        let region = &self.regions[place.region as usize];
        scalar(&region.bytes, (address - region.base) as usize, bytes)
    }

    #[inline]
    pub(crate) fn store(&mut self, place: Place, address: u64, bytes: usize, value: u64) {
        let region = &mut self.regions[place.region as usize];
        let at = (address - region.base) as usize;
        region.bytes[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    /// By the words of a range: who wrote them last.
    pub(crate) fn writers(&self, place: Place, address: u64, bytes: u32) -> &[NodeId] {
        let region = &self.regions[place.region as usize];
        let at = (address - region.base) as usize;
        &region.writers[at / 4..(at + bytes as usize).div_ceil(4)]
    }

    pub(crate) fn set_writer(&mut self, place: Place, address: u64, bytes: u32, writer: NodeId) {
        let region = &mut self.regions[place.region as usize];
        let at = (address - region.base) as usize;
        region.writers[at / 4..(at + bytes as usize).div_ceil(4)].fill(writer);
    }

    /// A range, if it is within one region.
    pub(crate) fn read(&self, address: u64, bytes: usize) -> Option<&[u8]> {
        let region = self.regions.iter().rev().find(|region| region.base <= address)?;
        region.bytes.get((address - region.base) as usize..)?.get(..bytes)
    }
}

/// `bytes` (at most 8) at `at`, as a number.
#[inline]
pub(crate) fn scalar(memory: &[u8], at: usize, bytes: usize) -> u64 {
    let mut word = [0; 8];
    word[..bytes].copy_from_slice(&memory[at..at + bytes]);
    u64::from_le_bytes(word)
}
