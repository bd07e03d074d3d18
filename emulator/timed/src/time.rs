//! Simulated time, in whole picoseconds, so that two runs agree to the last digit.

/// Picoseconds from the beginning.
pub(crate) type Time = u64;

/// A time that is not known yet.
pub(crate) const UNKNOWN: Time = Time::MAX;

pub(crate) fn nanoseconds(count: u32) -> Time {
    Time::from(count) * 1000
}

/// How fast bytes go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Femtoseconds a byte.
    femtoseconds: u64,
}

impl Rate {
    pub(crate) fn gb_per_s(rate: f64) -> Self {
        Self { femtoseconds: (1_000_000.0 / rate).round() as u64 }
    }

    pub(crate) fn takes(self, bytes: u64) -> Time {
        bytes * self.femtoseconds / 1000
    }
}
