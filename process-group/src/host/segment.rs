//! Segments: memory that the ranks of a host share. Each rank has one, which the others of its host map.
//!
//! It is a memfd: nothing of it has a name in a file system, and it goes with the last process that has it. It is sealed, so
//! nobody can make it shorter under those who have mapped it.
//!
//! Flags are atomics, and views of them may be kept whatever another process writes. Data lies in slots and is moved by
//! copies through raw pointers, never seen through references; who may touch a slot when is the protocol of
//! [`super::island`] and [`super::ring`].

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Two lines of a cache: neighbours are fetched in pairs.
#[repr(C, align(128))]
#[derive(Debug)]
pub(super) struct Padded<T>(pub(super) T);

/// Where a rank waits for others.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Waits {
    /// The place (in the island) of the rank whose step this rank's thread sleeps for, plus 1; 0: it does not sleep.
    pub(super) for_place: AtomicU32,
    /// Changed, and woken, by the one that it sleeps for.
    pub(super) bell: AtomicU32,
}

/// Where a rank's progress thread waits.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Mail {
    /// Whether its progress thread sleeps: [`AWAKE`], [`ASLEEP`] (mail wakes it), [`IN_STEP`] (steps too).
    pub(super) state: AtomicU32,
}

/// The progress thread does not sleep.
pub(super) const AWAKE: u32 = 0;
/// It sleeps, and mail wakes it.
pub(super) const ASLEEP: u32 = 1;
/// It sleeps, and steps wake it too.
pub(super) const IN_STEP: u32 = 2;

/// What a rank has come to, with the call that the step is of. Short inputs follow it at once, so that the first of their bytes
/// come with it, in one line of the cache.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Step {
    pub(super) number: AtomicU64,
    pub(super) fingerprint: [AtomicU64; 3],
}

/// How a rank has ended.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Ended {
    /// [`super::failure::LIVING`] and following.
    pub(super) state: AtomicU32,
    pub(super) length: AtomicU32,
    pub(super) record: [AtomicU8; Self::MOST],
}

impl Ended {
    /// Bytes of a record.
    pub(super) const MOST: usize = 1016;
}

/// The flags at the begin of a segment.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Control {
    /// What shows that this is the segment that was meant.
    pub(super) cookie: Padded<[AtomicU8; 16]>,
    pub(super) mail: Padded<Mail>,
    pub(super) waits: Padded<Waits>,
    /// The sequence number of the last collective that it has begun, plus 1.
    pub(super) position: Padded<AtomicU64>,
    pub(super) ended: Padded<Ended>,
    /// Not 0: another rank of the island has failed, and has said how before it set this. So whoever is about to say that a call has
    /// ended well looks at one word of its own.
    pub(super) is_told: Padded<AtomicU32>,
}

/// A frame in a ring: its turn, its header, and its data if they are few. A line of the cache.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Entry(pub(super) [AtomicU64; Self::WORDS]);

impl Entry {
    pub(super) const WORDS: usize = 8;
}

/// What the one that reads a ring has taken out of it.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) frames: AtomicU64,
    /// Of the ring's bytes.
    pub(super) bytes: AtomicU64,
}

/// The flags of a ring, and its frames.
#[repr(C)]
#[derive(Debug)]
pub(super) struct RingControl {
    pub(super) taken: Padded<Taken>,
    /// Whether the one that writes waits for room.
    pub(super) is_full: Padded<AtomicU32>,
    pub(super) entries: [Entry; Self::ENTRIES],
}

impl RingControl {
    /// As many frames are in a ring at most.
    pub(super) const ENTRIES: usize = 32;
}

/// How segments of an island are laid out: equal on all its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Ranks of the island.
    pub(super) ranks: usize,
    /// Bytes of a slot's part for inputs.
    pub(super) input: usize,
    /// Bytes of a slot's part for results.
    pub(super) result: usize,
    /// Bytes of a ring, for data that do not fit into its frames.
    pub(super) ring: usize,
}

const PAGE: usize = 4096;
const STEPS_AT: usize = PAGE;
const SLOTS_AT: usize = 2 * PAGE;
/// Bytes of a step and the short input behind it.
const STEP: usize = 512;
const RING_CONTROL: usize = size_of::<RingControl>();
const _: () = assert!(size_of::<Control>() <= STEPS_AT && STEPS_AT + 2 * STEP <= SLOTS_AT);
const _: () = assert!(RING_CONTROL.is_multiple_of(align_of::<RingControl>()));

impl Layout {
    /// That of an island of so many ranks: slots that stay in the second-level cache, and not too much memory in all.
    pub(super) fn of(ranks: usize) -> Self {
        let input = ((4 << 20) / ranks).clamp(64 << 10, 256 << 10) & !(PAGE - 1);
        // A power of two, and so a multiple of a line of the cache.
        let ring = ((2 << 20) / ranks).clamp(32 << 10, 256 << 10).next_power_of_two();
        Self { ranks, input, result: input / 2 + PAGE, ring }
    }

    fn slot(&self) -> usize {
        self.input + self.result
    }

    fn ring_at(&self, place: usize) -> usize {
        SLOTS_AT + 2 * self.slot() + place * (RING_CONTROL + self.ring)
    }

    fn bytes(&self) -> usize {
        self.ring_at(self.ranks).next_multiple_of(PAGE)
    }
}

/// A segment, mapped here.
#[derive(Debug)]
pub(super) struct Segment {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is memory that other processes use at the same time, and made for that: all that is reached through references
// is atomic, everything else is given out as raw pointers.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// A new one, zeroed, and its descriptor, for others to map.
    pub(super) fn create(layout: Layout) -> rustix::io::Result<(Self, OwnedFd)> {
        let file = rustix::fs::memfd_create("meshreduce", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, layout.bytes() as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(&file, layout)?, file))
    }

    /// Another rank's.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is not as long as the layout says, or might be made shorter.
    pub(super) fn open(file: &OwnedFd, layout: Layout) -> rustix::io::Result<Self> {
        let is_sealed = rustix::fs::fcntl_get_seals(file)?.contains(SealFlags::SHRINK);
        if !is_sealed || rustix::fs::fstat(file)?.st_size as u64 != layout.bytes() as u64 {
            return Err(Errno::INVAL);
        }
        Self::map(file, layout)
    }

    fn map(file: &OwnedFd, layout: Layout) -> rustix::io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the system chooses touches no other memory.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), layout.bytes(), access, MapFlags::SHARED, file, 0)?
        };
        NonNull::new(base.cast()).map(|base| Self { base, layout }).ok_or(Errno::NOMEM)
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn control(&self) -> &Control {
        // SAFETY: the mapping begins on a page, is longer than the flags, lives as long as `self`, and every bit pattern is
        // one of atomics, which others may write at any time.
        unsafe { self.base.cast().as_ref() }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.layout.bytes());
        // SAFETY: every offset that is asked for lies within the mapping: those of an even or odd step and its slot, and of
        // rings of the layout's ranks.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The flags of a step.
    pub(super) fn step(&self, step: u64) -> &Step {
        let step = self.at(STEPS_AT + (step % 2) as usize * STEP).cast::<Step>();
        // SAFETY: it lies within the mapping, aligned to 512 bytes, and is made of atomics.
        unsafe { &*step }
    }

    /// Bytes of [`Self::short`], and how many of them are in the line of the flags.
    pub(super) const SHORT: usize = STEP - size_of::<Step>();
    pub(super) const SHORT_IN_LINE: usize = 64 - size_of::<Step>();

    /// What follows the flags of a step, in the same line of the cache to begin with: for short inputs; aligned to 32 bytes.
    pub(super) fn short(&self, step: u64) -> *mut u8 {
        self.at(STEPS_AT + (step % 2) as usize * STEP + size_of::<Step>())
    }

    /// The part for inputs of the slot of a step; [`Layout::input`] bytes, aligned to a page.
    pub(super) fn input(&self, step: u64) -> *mut u8 {
        self.at(SLOTS_AT + (step % 2) as usize * self.layout.slot())
    }

    /// The part for results of the slot of a step; [`Layout::result`] bytes, aligned to a page.
    pub(super) fn result(&self, step: u64) -> *mut u8 {
        self.at(SLOTS_AT + (step % 2) as usize * self.layout.slot() + self.layout.input)
    }

    /// The ring into which the rank at `place` of the island writes.
    pub(super) fn ring(&self, place: usize) -> (&RingControl, *mut u8) {
        assert!(place < self.layout.ranks, "no such rank in the island");
        let at = self.layout.ring_at(place);
        let control = self.at(at).cast::<RingControl>();
        // SAFETY: it lies within the mapping, aligned to two lines of the cache, and is made of atomics.
        (unsafe { &*control }, self.at(at + RING_CONTROL))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and whoever uses it borrows `self`, or holds it, as those do who use its
        // raw pointers.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.layout.bytes()) } {
            tracing::warn!(%error, "a segment could not be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn whoever_maps_it_sees_the_same_and_nobody_can_shorten_it() {
        let layout = Layout::of(3);
        let (one, file) = Segment::create(layout).unwrap();
        let other = Segment::open(&file, layout).unwrap();
        one.control().position.0.store(7, Ordering::Relaxed);
        one.ring(2).0.taken.0.frames.store(9, Ordering::Relaxed);
        assert_eq!(other.control().position.0.load(Ordering::Relaxed), 7);
        assert_eq!(other.ring(2).0.taken.0.frames.load(Ordering::Relaxed), 9);
        assert!(rustix::fs::ftruncate(&file, 0).is_err());
        assert_eq!(Segment::open(&file, Layout::of(2)).unwrap_err(), Errno::INVAL);
        let loose = rustix::fs::memfd_create("loose", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&loose, layout.bytes() as u64).unwrap();
        assert_eq!(Segment::open(&loose, layout).unwrap_err(), Errno::INVAL, "it could be shortened");
    }
}
