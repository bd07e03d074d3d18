//! Recognises a thread that only reads again what did not change.
//!
//! A scheduling hint, nothing more: a thread that is taken for a spinner merely yields to others earlier.

/// Places in the table of what a thread saw in its turn.
const SEEN: usize = 64;
/// Repeated reads after which a thread is taken for a spinner.
const PATIENCE: u32 = 16;
/// The same for a thread that spun in its last turn, too.
const IMPATIENCE: u32 = 4;
/// Instructions without a read after which a thread is taken to compute something.
const COMPUTING: u64 = 2000;

/// What the running thread has read and written since its turn began.
pub(super) struct Spin {
    seen: [u64; SEEN],
    /// The thread has read something strongly and seen nothing new since.
    pub(super) polling: bool,
    repeats: u32,
    patience: u32,
    last: u64,
}

impl Spin {
    pub(super) fn new() -> Self {
        Self { seen: [0; SEEN], polling: false, repeats: 0, patience: PATIENCE, last: 0 }
    }

    /// Begins a thread's turn.
    pub(super) fn begin(&mut self, spun: bool) {
        self.polling = false;
        self.patience = if spun { IMPATIENCE } else { PATIENCE };
    }

    /// A strong access, a read of a clock, or while `polling` any access: what was read or written where. Returns
    /// whether the thread spins.
    pub(super) fn note(&mut self, now: u64, pc: u32, address: u64, value: u64) -> bool {
        if !self.polling {
            self.polling = true;
            self.seen = [0; SEEN];
            self.repeats = 0;
            self.last = now;
        }
        let mut hash = address ^ u64::from(pc) << 40;
        hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ value;
        hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd) | 1;
        // The place depends on where, not on what, so that a changed value replaces the old one.
        let place = (address >> 2 ^ u64::from(pc).wrapping_mul(7)) as usize % SEEN;
        let known = self.seen[place] == hash && now - self.last < COMPUTING;
        self.seen[place] = hash;
        self.last = now;
        self.repeats = if known { self.repeats + 1 } else { 0 };
        self.repeats >= self.patience
    }
}
