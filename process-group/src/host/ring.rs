//! Rings: frames from one rank to another of its host, in order.
//!
//! One writes, one reads (L. Lamport, "Specifying concurrent program modules", 1983). The `n`-th frame lies in the entry `n`
//! modulo their number: its header, and its data if they are few; more data lie in the ring's bytes, one behind the other, as
//! the frames do. The writer stores all of that and then the frame's turn, `n + 1`, in the entry, with a release; the reader
//! acquires it there, and so a message of 16 bytes costs one line of the cache that goes from one core to the other. (The lines of
//! a longer one, as long as they are few, go all at once, not one behind the other: whoever waits for it asks for all of them,
//! [`Turn::has_come_with`].) What an entry has had before in that place is the turn of a lap before, never data, so nothing that
//! was sent looks like a turn. The reader counts what it has taken out, with a release after it has; the writer acquires these counts
//! before it touches a place again, and looks at them only when it knows of no room. The ring lies in the reader's segment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::frame::{Header, Kind};
use super::segment::{Entry, RingControl, Segment};
use super::stream::Copies;
use crate::prefetch::prefetch_read;

/// The other end has written what no rank of ours writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it wrote into shared memory makes no sense")]
pub(super) struct Corrupt;

const ENTRIES: u64 = RingControl::ENTRIES as u64;
/// Bytes of a line of the cache; data begin at multiples of it.
const LINE: usize = 64;

/// Data that lie in their frame's entry at most: there, a message that is sent unasked has no use for ids.
const INLINE: usize = 16;
/// Where they lie in the words of the header.
const INLINE_AT: usize = Header::WORDS - INLINE / 8;

/// How many bytes of the ring so much data of a frame take; 0: they lie in its entry.
fn room_of(kind: Kind, data: usize) -> usize {
    if data == 0 || (kind == Kind::Eager && data <= INLINE) { 0 } else { data.next_multiple_of(LINE) }
}

#[derive(Debug)]
struct End {
    /// Whose ring it is.
    segment: Arc<Segment>,
    /// The writer's place in the island.
    place: usize,
    /// Frames and bytes that this end has put in or taken out; nobody else moves them.
    frames: u64,
    bytes: u64,
}

impl End {
    fn new(segment: Arc<Segment>, place: usize) -> Self {
        Self { segment, place, frames: 0, bytes: 0 }
    }

    fn control(&self) -> &RingControl {
        self.segment.ring(self.place).0
    }

    fn capacity(&self) -> usize {
        self.segment.layout().ring
    }

    /// The entry of the next frame.
    fn entry(&self) -> &[AtomicU64; Entry::WORDS] {
        &self.control().entries[(self.frames % ENTRIES) as usize].0
    }

    /// Where so many bytes of the next frame's data lie: how many before the ring's end, and where; the rest is at its begin.
    fn place_of(&self, data: usize) -> (usize, *mut u8, *mut u8) {
        let (begin, capacity) = (self.segment.ring(self.place).1, self.capacity());
        let at = self.bytes as usize & (capacity - 1);
        // SAFETY: `at` is below the capacity.
        (data.min(capacity - at), unsafe { begin.add(at) }, begin)
    }
}

/// A frame that is to come, for those who look for it without having the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    place: usize,
    frames: u64,
    /// Where its data will begin, if they do not fit into its entry.
    at: usize,
}

/// As many bytes of data are brought near with each look at a frame's turn. More are not: then there is a writer to be disturbed in the
/// midst of what it writes. (Some of a message's lines are worse than all or none.)
const AHEAD: usize = 4 * LINE;

impl Turn {
    /// Whether it is there, or was and has been taken by somebody else a lap ago: one look at a line of the cache.
    pub(super) fn has_come(self, own: &Segment) -> bool {
        let entry = &own.ring(self.place).0.entries[(self.frames % ENTRIES) as usize].0;
        entry[0].load(Ordering::Relaxed) > self.frames
    }

    /// The same of a message of so many bytes, whose data are brought near with every look: the writer has taken all of its lines of
    /// the cache away by the time when the turn is there, and so they come back together, not one behind the other.
    #[inline]
    pub(super) fn has_come_with(self, own: &Segment, bytes: usize) -> bool {
        let has_come = self.has_come(own);
        if bytes <= AHEAD && room_of(Kind::Eager, bytes) > 0 {
            // Beyond the ring's end they are at its begin, which is left to be read as it comes.
            let most = bytes.min(own.layout().ring.saturating_sub(self.at));
            prefetch_read(own.ring(self.place).1.wrapping_add(self.at), most);
        }
        has_come
    }
}

/// The end that writes.
#[derive(Debug)]
pub(super) struct Writer {
    end: End,
    /// What the reader is known to have taken out.
    taken: (u64, u64),
    copies: Copies,
}

/// The end that reads.
#[derive(Debug)]
pub(super) struct Reader(End);

impl Writer {
    /// Of the rank at `place`, into another's segment. There is one.
    pub(super) fn new(segment: Arc<Segment>, place: usize) -> Self {
        Self { end: End::new(segment, place), taken: (0, 0), copies: Copies::new() }
    }

    /// Most bytes of data that one frame should have, so that the reader takes some out while others are put in.
    pub(super) fn piece(&self) -> usize {
        self.end.capacity() / 4
    }

    /// Puts a frame in, if there is room for it; says whether. If not, the reader says when it has taken something out.
    /// `data` are as long as the header says, and at most half of what the ring can hold.
    #[inline]
    pub(super) fn write(&mut self, header: &Header, data: &[u8]) -> Result<bool, Corrupt> {
        debug_assert!(data.len() == header.data() && data.len() <= self.end.capacity() / 2);
        let room = room_of(header.kind, data.len());
        if !self.has_room(room) {
            self.look()?;
            if !self.has_room(room) {
                self.end.control().is_full.0.store(1, Ordering::Relaxed);
                // Either the reader sees that somebody waits, or this sees what it has taken.
                fence(Ordering::SeqCst);
                self.look()?;
                if !self.has_room(room) {
                    return Ok(false);
                }
            }
        }
        let entry = self.end.entry();
        let mut words = header.words();
        // The line with the turn comes last, and all of it at once: the reader looks at it all the time, and each time has it back.
        if room == 0 {
            if !data.is_empty() {
                let mut bytes = [0; INLINE];
                bytes[..data.len()].copy_from_slice(data);
                let (inline, _) = bytes.as_chunks();
                words[INLINE_AT..]
                    .iter_mut()
                    .zip(inline)
                    .for_each(|(word, bytes)| *word = u64::from_ne_bytes(*bytes));
            }
        } else {
            let (first, at, begin) = self.end.place_of(data.len());
            // SAFETY: `first` bytes at `at` and the others at the begin are within the ring's bytes, and `has_room` has
            // acquired that the reader has taken out what was there; it does not touch it before it has acquired the turn. The
            // place and the begin are aligned to a line.
            unsafe {
                self.copies.copy(data.as_ptr(), at, first);
                self.copies.copy(data.as_ptr().add(first), begin, data.len() - first);
            }
        }
        for (place, word) in entry[1..].iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        entry[0].store(self.end.frames + 1, Ordering::Release);
        self.end.frames += 1;
        self.end.bytes += room as u64;
        Ok(true)
    }

    fn has_room(&self, bytes: usize) -> bool {
        let used = (self.end.bytes - self.taken.1) as usize;
        self.end.frames - self.taken.0 < ENTRIES && bytes <= self.end.capacity() - used
    }

    /// What the reader says that it has taken out.
    fn count(&self) -> (u64, u64) {
        let taken = &self.end.control().taken.0;
        // The bytes of a frame are counted before the frame: these are at least those of the frames.
        (taken.frames.load(Ordering::Acquire), taken.bytes.load(Ordering::Acquire))
    }

    /// Looks how much the reader has taken out.
    fn look(&mut self) -> Result<(), Corrupt> {
        let (frames, bytes) = self.count();
        let goes_on = (self.taken.0..=self.end.frames).contains(&frames)
            && (self.taken.1..=self.end.bytes).contains(&bytes);
        if !goes_on {
            return Err(Corrupt);
        }
        self.taken = (frames, bytes);
        Ok(())
    }

    /// Whether the reader has taken something out since this end has looked last.
    pub(super) fn has_more_room(&self) -> bool {
        self.count() != self.taken
    }
}

impl Reader {
    /// Of the rank whose segment it is, from the rank at `place`. There is one.
    pub(super) fn new(segment: Arc<Segment>, place: usize) -> Self {
        Self(End::new(segment, place))
    }

    /// The next frame.
    pub(super) fn turn(&self) -> Turn {
        Turn {
            place: self.0.place,
            frames: self.0.frames,
            at: self.0.bytes as usize & (self.0.capacity() - 1),
        }
    }

    /// Whether there is a frame.
    pub(super) fn has_frame(&self) -> bool {
        self.turn().has_come(&self.0.segment)
    }

    /// The words of the next frame's header, if there is one. It stays.
    #[inline]
    pub(super) fn words(&self) -> Result<Option<[u64; Header::WORDS]>, Corrupt> {
        let entry = self.0.entry();
        let turn = entry[0].load(Ordering::Acquire);
        if turn != self.0.frames + 1 {
            // That of a lap before.
            let is_old = turn == (self.0.frames + 1).saturating_sub(ENTRIES);
            return if is_old { Ok(None) } else { Err(Corrupt) };
        }
        Ok(Some(std::array::from_fn(|at| entry[at + 1].load(Ordering::Relaxed))))
    }

    /// The header of the next frame, if there is one. It stays.
    pub(super) fn peek(&self) -> Result<Option<Header>, Corrupt> {
        let Some(words) = self.words()? else { return Ok(None) };
        let mut header = Header::of_words(words).map_err(|_| Corrupt)?;
        if header.kind == Kind::Eager {
            (header.id, header.to) = (0, 0);
        }
        if header.data() > self.0.capacity() / 2 {
            return Err(Corrupt);
        }
        Ok(Some(header))
    }

    /// Takes out the frame that was peeked at, its data into `data`, which are as many.
    pub(super) fn take(&mut self, header: &Header, data: &mut [u8]) {
        assert_eq!(data.len(), header.data(), "all of a frame's data are taken");
        self.take_out(header.kind, data);
    }

    /// The same of a frame whose [words](Self::words) were looked at: a message that is all there, with as many data.
    #[inline]
    pub(super) fn take_message(&mut self, data: &mut [u8]) {
        assert!(data.len() <= self.0.capacity() / 2, "no frame has more");
        self.take_out(Kind::Eager, data);
    }

    #[inline]
    fn take_out(&mut self, kind: Kind, data: &mut [u8]) {
        let room = room_of(kind, data.len());
        if room == 0 {
            if !data.is_empty() {
                let mut bytes = [0; INLINE];
                let words = &self.0.entry()[1 + INLINE_AT..];
                for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
                    bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
                }
                data.copy_from_slice(&bytes[..data.len()]);
            }
        } else {
            let (first, at, begin) = self.0.place_of(data.len());
            // SAFETY: `first` bytes at `at` and the others at the begin are within the ring's bytes, of which a frame takes half at
            // most; the writer has released them with the turn, which `peek` has acquired, and does not touch them until they
            // are counted as taken.
            unsafe {
                std::ptr::copy_nonoverlapping(at, data.as_mut_ptr(), first);
                std::ptr::copy_nonoverlapping(begin, data.as_mut_ptr().add(first), data.len() - first);
            }
        }
        self.pass(room);
    }

    /// Takes out the frame that was peeked at, and nothing of its data.
    pub(super) fn skip(&mut self, header: &Header) {
        self.pass(room_of(header.kind, header.data()));
    }

    fn pass(&mut self, room: usize) {
        self.0.frames += 1;
        self.0.bytes += room as u64;
        let taken = &self.0.control().taken.0;
        taken.bytes.store(self.0.bytes, Ordering::Release);
        taken.frames.store(self.0.frames, Ordering::Release);
    }

    /// Whether whoever has just taken out a frame of so many bytes must ask whether the writer [waits](Self::was_full), which a fence goes
    /// with: with every fourth frame, and with each eighth of the bytes. A writer that waits has put in as many frames as there may be,
    /// or half of the bytes at least, so that this comes before all of them are taken out; and when it comes for the last time there is
    /// room for any frame, which the writer finds by itself if it begins to wait only then.
    #[inline]
    pub(super) fn is_to_ask(&self, kind: Kind, data: usize) -> bool {
        let End { frames, bytes, .. } = self.0;
        let (room, eighth) = (room_of(kind, data) as u64, self.0.capacity() as u64 / 8);
        frames.is_multiple_of(4) || (room > 0 && bytes / eighth != (bytes - room) / eighth)
    }

    /// Whether the writer has waited for room since this was asked last.
    pub(super) fn was_full(&self) -> bool {
        fence(Ordering::SeqCst);
        let flag = &self.0.control().is_full.0;
        flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests;
