//! The reduction that a barrier does.

use super::program::BarrierKind;

/// The predicates that threads have brought to a barrier.
#[derive(Clone, Copy, Debug, Default)]
pub struct Votes {
    all: u32,
    truths: u32,
}

impl Votes {
    /// A thread arrives; only a reduction takes its predicate.
    #[inline]
    pub fn add(&mut self, kind: BarrierKind, truth: bool) {
        if !matches!(kind, BarrierKind::Arrive | BarrierKind::Sync) {
            self.all += 1;
            self.truths += u32::from(truth);
        }
    }

    /// What a thread that came for `kind` gets, if that is a reduction.
    #[inline]
    pub fn result(self, kind: BarrierKind) -> Option<u64> {
        match kind {
            BarrierKind::Sync | BarrierKind::Arrive => None,
            BarrierKind::Popc => Some(u64::from(self.truths)),
            BarrierKind::And => Some(u64::from(self.truths == self.all)),
            BarrierKind::Or => Some(u64::from(self.truths > 0)),
        }
    }
}
