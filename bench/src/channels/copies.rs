//! What no channel through slots can be faster than: plain copies.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Slots, and bytes of a slot, of the channel `basic`.
const SLOTS: usize = 16;
const SLOT: usize = 1 << 20;

/// Copies.
pub(crate) struct Copies {
    from: Vec<u8>,
    to: Vec<u8>,
    slots: Vec<Mutex<Vec<u8>>>,
}

impl Copies {
    /// For messages of at most `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        // Written to, so that no page is made while time is taken.
        let memory = |bytes: usize, byte| -> Vec<u8> { (0..bytes).map(|_| byte).collect() };
        let slots = (0..SLOTS).map(|_| Mutex::new(memory(SLOT.min(bytes), 3))).collect();
        Self { from: memory(bytes, 1), to: memory(bytes, 2), slots }
    }

    /// One copy; microseconds.
    pub(crate) fn one(&mut self, bytes: usize) -> f64 {
        let begun = Instant::now();
        self.to[..bytes].copy_from_slice(black_box(&self.from[..bytes]));
        black_box(&mut self.to);
        begun.elapsed().as_secs_f64() * 1e6
    }

    /// A copy into slots by one thread and out of them by another, both at the same time where there is more than one slot's worth;
    /// microseconds.
    pub(crate) fn chained(&mut self, bytes: usize) -> f64 {
        let (slots, filled, freed) = (&self.slots, AtomicUsize::new(0), AtomicUsize::new(0));
        let chunks = bytes.div_ceil(SLOT);
        let begun = Instant::now();
        if chunks == 1 {
            let mut slot = slots[0].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            slot[..bytes].copy_from_slice(black_box(&self.from[..bytes]));
            self.to[..bytes].copy_from_slice(black_box(&slot[..bytes]));
            return begun.elapsed().as_secs_f64() * 1e6;
        }
        let wait = |until: &dyn Fn() -> bool| {
            while !until() {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let (from, filled, freed) = (&self.from[..bytes], &filled, &freed);
            scope.spawn(move || {
                for (index, chunk) in from.chunks(SLOT).enumerate() {
                    wait(&|| index < freed.load(Ordering::Acquire) + SLOTS);
                    let mut slot =
                        slots[index % SLOTS].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    slot[..chunk.len()].copy_from_slice(chunk);
                    drop(slot);
                    filled.store(index + 1, Ordering::Release);
                }
            });
            for (index, chunk) in self.to[..bytes].chunks_mut(SLOT).enumerate() {
                wait(&|| index < filled.load(Ordering::Acquire));
                let slot = slots[index % SLOTS].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                chunk.copy_from_slice(&slot[..chunk.len()]);
                drop(slot);
                freed.store(index + 1, Ordering::Release);
            }
        });
        begun.elapsed().as_secs_f64() * 1e6
    }

    /// Bytes of the last message that did not arrive.
    pub(crate) fn wrong(&self, bytes: usize) -> usize {
        self.to[..bytes].iter().zip(&self.from).filter(|(to, from)| to != from).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_copies_arrive_whatever_the_size() {
        for bytes in [1, 1000, SLOT - 1, SLOT, SLOT + 1, 40 * SLOT + 17] {
            let mut copies = Copies::new(bytes);
            assert_eq!(copies.wrong(bytes), bytes, "nothing has been copied yet");
            assert!(copies.one(bytes) >= 0.0);
            assert_eq!(copies.wrong(bytes), 0);
            let mut copies = Copies::new(bytes);
            assert!(copies.chained(bytes) >= 0.0);
            assert_eq!(copies.wrong(bytes), 0, "{bytes}");
        }
    }
}
