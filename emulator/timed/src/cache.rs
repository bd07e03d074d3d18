//! Which lines a cache has: sets of sixteen ways, of which the one filled first goes first.

/// Bytes of a line.
pub(crate) const LINE: u64 = 128;

const WAYS: usize = 16;

#[derive(Debug)]
pub(crate) struct Cache {
    sets: Vec<[u64; WAYS]>,
    /// By set: the way that is filled next.
    next: Vec<u8>,
    is_empty: bool,
}

impl Cache {
    /// An empty one of so many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let sets = (bytes / LINE / WAYS as u64).max(1) as usize;
        Self { sets: vec![[u64::MAX; WAYS]; sets], next: vec![0; sets], is_empty: true }
    }

    fn set(&self, line: u64) -> usize {
        // Spread by multiplication, so that buffers at multiples of a power of two do not share a few sets.
        let spread = line.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((spread * self.sets.len() as u64) >> 32) as usize
    }

    /// Whether a line is there; from now on it is.
    pub(crate) fn touch(&mut self, line: u64) -> bool {
        let set = self.set(line);
        if self.sets[set].contains(&line) {
            return true;
        }
        self.is_empty = false;
        let way = usize::from(self.next[set]);
        self.sets[set][way] = line;
        self.next[set] = ((way + 1) % WAYS) as u8;
        false
    }

    /// From now on the line is not there.
    pub(crate) fn drop_line(&mut self, line: u64) {
        let set = self.set(line);
        self.sets[set].iter_mut().filter(|known| **known == line).for_each(|known| *known = u64::MAX);
    }

    /// From now on none is there.
    pub(crate) fn clear(&mut self) {
        // Whoever polls empties it with every look.
        if !std::mem::replace(&mut self.is_empty, true) {
            self.sets.fill([u64::MAX; WAYS]);
        }
    }
}
