//! Copies into shared memory, which other cores read next.
//!
//! There are two ways. *Cached*: plain stores, which leave the lines in the writer's caches; the reader takes them from there.
//! *Streaming*: stores past the caches, after which the reader takes the lines from memory. Which one is faster depends on where
//! the two cores are. Where they share a cache, a line that is read from memory costs several times what it costs from there. Where
//! they do not, each store to a line that the other side still has waits for that side to give it up, and costs several times what it
//! costs to store past both. (`docs/measured.md`, "Copies into shared memory".) A virtual machine does not know, and moves: so the
//! writer tries both, again and again, and looks what its stores cost.

use std::time::{Duration, Instant};

/// Shorter copies are left in the writer's caches: the turn that follows is waited for more than they are.
const SHORT: usize = 4 << 10;

/// How a copy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cached,
    Streaming,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Way::Cached => Way::Streaming,
            Way::Streaming => Way::Cached,
        }
    }
}

/// Copies from one trial to the next. Of them [`SAMPLES`] are made the other way: at most twice to four times as long as they need,
/// so that a trial costs a hundredth or two.
const PERIOD: u32 = 256;
/// Copies each way that are timed for a trial. The quickest counts: whatever else runs makes copies slower, never faster.
const SAMPLES: u32 = 4;
/// Before the first trial, so that its copies do not meet memory that was never touched.
const WARM_UP: u32 = 4;
/// Cached stores may cost so many times what streaming ones cost: the reader gains more by them than the writer loses. (Measured with
/// a shared cache: 0.7 to 1.7 times. Without: 3.4 to 5.)
const FACTOR: f64 = 2.0;

/// Where a trial is, and what has come of it so far: seconds per byte, of the quickest copy.
#[derive(Debug)]
struct Trial {
    copies: u32,
    way: Way,
    own: f64,
    other: f64,
}

impl Trial {
    fn new() -> Self {
        Self { copies: 0, way: Way::Cached, own: f64::INFINITY, other: f64::INFINITY }
    }

    /// How the next copy is to be made, and whether it is to be timed.
    fn next(&self) -> (Way, bool) {
        match self.copies.checked_sub(WARM_UP) {
            Some(at) if at < SAMPLES => (self.way, true),
            Some(at) if at < 2 * SAMPLES => (self.way.other(), true),
            _ => (self.way, false),
        }
    }

    /// The next copy has been made, of so many bytes, and, if it was timed, has taken so long.
    fn made(&mut self, bytes: usize, took: Option<Duration>) {
        if let Some(took) = took {
            let cost = took.as_secs_f64() / bytes as f64;
            let (way, _) = self.next();
            let least = if way == self.way { &mut self.own } else { &mut self.other };
            *least = least.min(cost);
        }
        self.copies += 1;
        if self.copies == WARM_UP + 2 * SAMPLES {
            let (cached, streaming) = match self.way {
                Way::Cached => (self.own, self.other),
                Way::Streaming => (self.other, self.own),
            };
            self.way = if cached > FACTOR * streaming { Way::Streaming } else { Way::Cached };
            (self.own, self.other) = (f64::INFINITY, f64::INFINITY);
        }
        if self.copies == PERIOD {
            self.copies = 0;
        }
    }
}

/// What one writer copies into shared memory.
#[derive(Debug)]
pub(super) struct Copies {
    trial: Trial,
}

impl Copies {
    pub(super) fn new() -> Self {
        Self { trial: Trial::new() }
    }

    /// Copies the faster way. What is written is there for whoever acquires what is released after this.
    ///
    /// # Safety
    ///
    /// As [`copy`]; `to` is aligned to 16.
    #[inline]
    pub(super) unsafe fn copy(&mut self, from: *const u8, to: *mut u8, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match cfg!(target_arch = "x86_64") && bytes >= SHORT {
                true => self.long(from, to, bytes),
                false => copy(from, to, bytes),
            }
        }
    }

    /// # Safety
    ///
    /// As [`Self::copy`].
    unsafe fn long(&mut self, from: *const u8, to: *mut u8, bytes: usize) {
        let (way, is_timed) = self.trial.next();
        let began = is_timed.then(Instant::now);
        // SAFETY: the caller's promise.
        unsafe {
            match way {
                Way::Cached => copy(from, to, bytes),
                Way::Streaming => stream(from, to, bytes),
            }
        }
        self.trial.made(bytes, began.map(|began| began.elapsed()));
    }
}

/// # Safety
///
/// Both are valid for so many bytes and do not overlap, unless they are the same.
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    if bytes > 0 && from != to.cast_const() {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    }
}

/// Past the own caches, where the processor has such stores.
///
/// # Safety
///
/// As [`copy`]; `to` is aligned to 16.
unsafe fn stream(from: *const u8, to: *mut u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        debug_assert!((to as usize).is_multiple_of(16), "slots and what lies in them are aligned");
        let whole = bytes & !15;
        // SAFETY: the caller's promise; every x86-64 has SSE2. The fence orders these weakly ordered stores before all that
        // follow, the release among them (Intel SDM 1, 10.4.6.2).
        unsafe {
            for at in (0..whole).step_by(16) {
                _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast()));
            }
            copy(from.add(whole), to.add(whole), bytes - whole);
            _mm_sfence();
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        copy(from, to, bytes);
    }
}

/// Copies to behind the flags of a step, whose line others look at all the time, and each time take from this core: what goes into
/// that line, so much of it, goes last.
///
/// # Safety
///
/// As [`copy`].
pub(super) unsafe fn copy_behind_flags(from: *const u8, to: *mut u8, bytes: usize, in_line: usize) {
    let first = bytes.min(in_line);
    // SAFETY: the caller's promise.
    unsafe {
        copy(from.add(first), to.add(first), bytes - first);
        copy(from, to, first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `copies` of 64 KiB where the ways cost so much, nanoseconds a byte; how many were made by streaming.
    fn play(trial: &mut Trial, copies: u32, cached: f64, streaming: f64) -> u32 {
        let mut streamed = 0;
        for _ in 0..copies {
            let (way, is_timed) = trial.next();
            streamed += u32::from(way == Way::Streaming);
            let cost = if way == Way::Cached { cached } else { streaming };
            let bytes = 64 << 10;
            trial.made(bytes, is_timed.then(|| Duration::from_secs_f64(cost * bytes as f64 * 1e-9)));
        }
        streamed
    }

    /// The costs are those measured with and without a shared cache.
    #[test]
    fn what_stores_cost_decides_and_is_looked_at_again() {
        let mut trial = Trial::new();
        let shared = play(&mut trial, 10 * PERIOD, 0.17, 0.15);
        assert_eq!(shared, 10 * SAMPLES, "only in trials");
        // The next trial of a machine that has moved finds it out.
        let apart = play(&mut trial, PERIOD, 0.65, 0.13);
        assert_eq!(apart, PERIOD - WARM_UP - SAMPLES);
        let apart = play(&mut trial, 9 * PERIOD, 0.65, 0.13);
        assert_eq!(apart, 9 * (PERIOD - SAMPLES), "all but in trials");
        let shared = play(&mut trial, 2 * PERIOD, 0.17, 0.15);
        assert_eq!(shared, WARM_UP + SAMPLES + SAMPLES);
    }

    #[test]
    fn a_copy_that_was_in_the_way_of_others_does_not_decide() {
        let mut trial = Trial::new();
        for at in 0..20 * PERIOD {
            let (way, is_timed) = trial.next();
            assert!(way == Way::Cached || is_timed, "streaming only in trials");
            // Three of four are disturbed.
            let micros = if at % 4 == 0 { 10 } else { 90 };
            trial.made(64 << 10, is_timed.then(|| Duration::from_micros(micros)));
        }
    }

    #[test]
    fn both_ways_copy_the_same_and_nothing_beside() {
        let source: Vec<u8> = (0..80_000u32).map(|at| (at % 251) as u8).collect();
        let mut target = vec![0u8; source.len() + 64];
        let aligned = target.as_ptr().align_offset(16);
        let mut copies = Copies::new();
        for (round, bytes) in (0..3 * PERIOD as usize).map(|round| (round, 4090 + round * 7)) {
            for from in [0, 1, 13] {
                target.fill(0xa5);
                let to = &mut target[aligned..];
                // SAFETY: both have so many bytes and are apart; `to` is aligned.
                unsafe { copies.copy(source[from..].as_ptr(), to.as_mut_ptr(), bytes) };
                assert_eq!(to[..bytes], source[from..from + bytes], "round {round}");
                assert!(to[bytes..].iter().all(|byte| *byte == 0xa5), "round {round}");
            }
        }
    }
}
