//! What no channel through slots can be faster than: plain copies.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Slots, and bytes of a slot, of the channel `basic`.
const SLOTS: usize = 16;
const SLOT: usize = 1 << 20;

/// How many messages of a size are under way at a time when they follow each other, each in memory of its own.
pub(crate) fn window(bytes: usize) -> usize {
    ((32 << 20) / bytes.max(1)).clamp(2, 16)
}

/// Copies.
pub(crate) struct Copies {
    /// As many as there are messages under way at a time.
    from: Vec<Vec<u8>>,
    to: Vec<Vec<u8>>,
    slots: Vec<Mutex<Vec<u8>>>,
}

impl Copies {
    /// For messages of at most `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        // Written to, so that no page is made while time is taken.
        let memory = |bytes: usize, byte| -> Vec<u8> { (0..bytes).map(|_| byte).collect() };
        let slots = (0..SLOTS).map(|_| Mutex::new(memory(SLOT.min(bytes), 3))).collect();
        let messages = |byte| (0..window(bytes)).map(|_| memory(bytes, byte)).collect();
        Self { from: messages(1), to: messages(2), slots }
    }

    /// One copy; microseconds.
    pub(crate) fn one(&mut self, bytes: usize) -> f64 {
        let begun = Instant::now();
        self.to[0][..bytes].copy_from_slice(black_box(&self.from[0][..bytes]));
        black_box(&mut self.to);
        begun.elapsed().as_secs_f64() * 1e6
    }

    /// A copy into slots by one thread and out of them by another, both at the same time where there is more than one slot's worth;
    /// microseconds.
    pub(crate) fn chained(&mut self, bytes: usize) -> f64 {
        if bytes > SLOT {
            return self.follow(bytes, 1);
        }
        let begun = Instant::now();
        let mut slot = self.slots[0].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        slot[..bytes].copy_from_slice(black_box(&self.from[0][..bytes]));
        self.to[0][..bytes].copy_from_slice(black_box(&slot[..bytes]));
        begun.elapsed().as_secs_f64() * 1e6
    }

    /// The same of `count` messages, one behind the other and whatever their size: while one is copied out, the next one is copied in.
    pub(crate) fn follow(&mut self, bytes: usize, count: usize) -> f64 {
        let (slots, filled, freed) = (&self.slots, AtomicUsize::new(0), AtomicUsize::new(0));
        let begun = Instant::now();
        let wait = |until: &dyn Fn() -> bool| {
            while !until() {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let (from, filled, freed) = (&self.from, &filled, &freed);
            scope.spawn(move || {
                let messages = from.iter().cycle().take(count);
                for (index, chunk) in messages.flat_map(|from| from[..bytes].chunks(SLOT)).enumerate() {
                    wait(&|| index < freed.load(Ordering::Acquire) + SLOTS);
                    let mut slot =
                        slots[index % SLOTS].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    slot[..chunk.len()].copy_from_slice(chunk);
                    drop(slot);
                    filled.store(index + 1, Ordering::Release);
                }
            });
            let (places, mut index) = (self.to.len(), 0);
            for message in 0..count {
                for chunk in self.to[message % places][..bytes].chunks_mut(SLOT) {
                    wait(&|| index < filled.load(Ordering::Acquire));
                    let slot = slots[index % SLOTS].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    chunk.copy_from_slice(&slot[..chunk.len()]);
                    drop(slot);
                    index += 1;
                    freed.store(index, Ordering::Release);
                }
            }
        });
        begun.elapsed().as_secs_f64() * 1e6
    }

    /// Bytes of the first `messages` messages that did not arrive.
    pub(crate) fn wrong(&self, bytes: usize, messages: usize) -> usize {
        let wrong = |(to, from): (&Vec<u8>, &Vec<u8>)| {
            to[..bytes].iter().zip(from).filter(|(to, from)| to != from).count()
        };
        self.to.iter().zip(&self.from).take(messages).map(wrong).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_copies_arrive_whatever_the_size() {
        for bytes in [1, 1000, SLOT - 1, SLOT, SLOT + 1, 40 * SLOT + 17] {
            let mut copies = Copies::new(bytes);
            assert_eq!(copies.wrong(bytes, 1), bytes, "nothing has been copied yet");
            assert!(copies.one(bytes) >= 0.0);
            assert_eq!(copies.wrong(bytes, 1), 0);
            let mut copies = Copies::new(bytes);
            assert!(copies.chained(bytes) >= 0.0);
            assert_eq!(copies.wrong(bytes, 1), 0, "{bytes}");
            let mut copies = Copies::new(bytes);
            assert!(copies.follow(bytes, window(bytes) + 1) >= 0.0);
            assert_eq!(copies.wrong(bytes, window(bytes)), 0, "{bytes}");
        }
    }
}
