//! Rings: bytes from one rank to another of its host, in order.
//!
//! One writes, one reads (L. Lamport, "Specifying concurrent program modules", 1983): the writer alone moves the head, with a
//! release after the bytes are in; the reader alone moves the tail, with a release after they are out. Each acquires the
//! other's before it touches the bytes between. The ring lies in the reader's segment.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::segment::{RingControl, Segment};

/// The other end has written what no rank of ours writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it wrote into shared memory makes no sense")]
pub(super) struct Corrupt;

#[derive(Debug)]
struct End {
    /// Whose ring it is.
    segment: Arc<Segment>,
    /// The writer's place in the island.
    place: usize,
    /// The own end's position; nobody else moves it.
    position: u64,
}

impl End {
    fn ring(&self) -> (&RingControl, *mut u8, usize) {
        let (control, data) = self.segment.ring(self.place);
        (control, data, self.segment.layout().ring)
    }
}

/// The end that writes.
#[derive(Debug)]
pub(super) struct Writer(End);

/// The end that reads.
#[derive(Debug)]
pub(super) struct Reader(End);

impl Writer {
    /// Of the rank at `place`, into another's segment. There is one.
    pub(super) fn new(segment: Arc<Segment>, place: usize) -> Self {
        Self(End { segment, place, position: 0 })
    }

    /// Puts in as much of `bytes` as there is room for; says how much. If that is not all, the reader rings when there is room
    /// again.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, Corrupt> {
        let mut room = self.room()?;
        if room < bytes.len() {
            self.0.ring().0.is_full.0.store(1, Ordering::Relaxed);
            // Either the reader sees that somebody waits, or this sees what it has taken.
            fence(Ordering::SeqCst);
            room = self.room()?;
        }
        let (control, data, capacity) = self.0.ring();
        let count = room.min(bytes.len());
        let at = self.0.position as usize & (capacity - 1);
        let first = count.min(capacity - at);
        // SAFETY: `at + first` and `count - first` are within the ring's `capacity` bytes. The reader does not touch what lies
        // behind the head, and has released what lies before the tail, which `room` has acquired.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.add(at), first);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().add(first), data, count - first);
        }
        let position = self.0.position + count as u64;
        control.head.0.store(position, Ordering::Release);
        self.0.position = position;
        Ok(count)
    }

    fn room(&self) -> Result<usize, Corrupt> {
        let (control, _, capacity) = self.0.ring();
        let used = self.0.position.wrapping_sub(control.tail.0.load(Ordering::Acquire));
        usize::try_from(used).ok().and_then(|used| capacity.checked_sub(used)).ok_or(Corrupt)
    }
}

impl Reader {
    /// Of the rank whose segment it is, from the rank at `place`. There is one.
    pub(super) fn new(segment: Arc<Segment>, place: usize) -> Self {
        Self(End { segment, place, position: 0 })
    }

    /// How much there is to read.
    pub(super) fn available(&self) -> Result<usize, Corrupt> {
        let (control, _, capacity) = self.0.ring();
        let there = control.head.0.load(Ordering::Acquire).wrapping_sub(self.0.position);
        usize::try_from(there).ok().filter(|there| *there <= capacity).ok_or(Corrupt)
    }

    /// Takes out what there is, as much as fits; says how much.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Corrupt> {
        let count = self.available()?.min(bytes.len());
        let (control, data, capacity) = self.0.ring();
        let at = self.0.position as usize & (capacity - 1);
        let first = count.min(capacity - at);
        // SAFETY: `at + first` and `count - first` are within the ring's `capacity` bytes, and there are at most as many as
        // the writer has released, which `available` has acquired; it does not touch them until the tail has passed them.
        unsafe {
            std::ptr::copy_nonoverlapping(data.add(at), bytes.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(data, bytes.as_mut_ptr().add(first), count - first);
        }
        let position = self.0.position + count as u64;
        control.tail.0.store(position, Ordering::Release);
        self.0.position = position;
        Ok(count)
    }

    /// Whether the writer has waited for room since this was asked last.
    pub(super) fn was_full(&self) -> bool {
        fence(Ordering::SeqCst);
        let flag = &self.0.ring().0.is_full.0;
        flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::Layout;
    use super::*;

    fn ring() -> (Writer, Reader) {
        let segment = Arc::new(Segment::create(Layout::of(2)).unwrap().0);
        (Writer::new(Arc::clone(&segment), 1), Reader::new(segment, 1))
    }

    #[test]
    fn bytes_come_out_in_order_whatever_the_pieces() {
        let (mut writer, mut reader) = ring();
        let thread = std::thread::spawn(move || {
            let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at * 7 % 251) as u8).collect();
            let mut rest = &data[..];
            let mut piece = 1;
            while !rest.is_empty() {
                piece = (piece * 5 + 1) % 100_003;
                let written = writer.write(&rest[..piece.min(rest.len())]).unwrap();
                rest = &rest[written..];
                std::thread::yield_now();
            }
            data
        });
        let mut got = Vec::new();
        let mut bytes = [0; 7001];
        while got.len() < 3_000_000 {
            let count = reader.read(&mut bytes).unwrap();
            got.extend_from_slice(&bytes[..count]);
            if count == 0 {
                std::thread::yield_now();
            }
        }
        assert_eq!(got, thread.join().unwrap());
    }

    #[test]
    fn a_writer_without_room_is_told_of() {
        let (mut writer, mut reader) = ring();
        let data = vec![5; 1 << 20];
        let capacity = writer.0.segment.layout().ring;
        assert_eq!(writer.write(&data), Ok(capacity));
        assert_eq!(reader.read(&mut [0; 10]), Ok(10));
        assert!(reader.was_full());
        assert!(!reader.was_full());
        assert_eq!(writer.write(&data), Ok(10));
    }

    #[test]
    fn positions_that_make_no_sense_are_refused() {
        let (mut writer, mut reader) = ring();
        writer.0.ring().0.head.0.store(1 << 40, Ordering::Relaxed);
        assert_eq!(reader.read(&mut [0; 8]), Err(Corrupt));
        writer.0.ring().0.tail.0.store(9, Ordering::Relaxed);
        assert_eq!(writer.write(&[1]), Err(Corrupt));
    }
}
