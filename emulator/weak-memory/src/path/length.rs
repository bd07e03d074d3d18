//! How long a path is.
use std::fmt;

/// The length of a dependent path. Lengths compare field by field in this order: a round trip costs as much as eight
/// local accesses, so no number of the latter that occurs makes up for one of the former.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Length {
    /// Accesses to host memory, across PCIe.
    pub host: u16,
    /// Half round trips to other devices: 1 for a store's way, 2 for a load or an acknowledgement.
    pub half_trips: u16,
    /// Accesses to the device's own memory.
    pub local: u16,
    /// Fences of system scope, those in releases among them.
    pub system_fences: u16,
    /// Fences of gpu (or cluster) scope, likewise.
    pub gpu_fences: u16,
}

impl Length {
    /// Round trips to other devices; a half is one way.
    pub fn trips(self) -> f64 {
        f64::from(self.half_trips) / 2.0
    }

    /// This length and one step more.
    pub(super) fn plus(mut self, kind: StepKind) -> Self {
        let (field, by) = match kind {
            StepKind::Load | StepKind::Store | StepKind::Atomic => (&mut self.local, 1),
            StepKind::RemoteLoad | StepKind::RemoteAtomic | StepKind::Acknowledged => {
                (&mut self.half_trips, 2)
            }
            StepKind::Way => (&mut self.half_trips, 1),
            StepKind::Host => (&mut self.host, 1),
            StepKind::SystemFence => (&mut self.system_fences, 1),
            StepKind::GpuFence => (&mut self.gpu_fences, 1),
        };
        *field = field.saturating_add(by);
        self
    }
}

/// What a step of a path waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// A load of the device's own memory.
    Load,
    /// A store to the device's own memory, until it is done.
    Store,
    /// An atomic on the device's own memory.
    Atomic,
    /// A load of another device's memory: a round trip.
    RemoteLoad,
    /// An atomic on another device's memory whose result is used: a round trip.
    RemoteAtomic,
    /// A store to another device's memory until its acknowledgement is back, for which a fence waits: a round trip.
    Acknowledged,
    /// A store to another device's memory until it is there: half a round trip. A signal, or a packet.
    Way,
    /// An access to host memory.
    Host,
    /// A fence of system scope.
    SystemFence,
    /// A fence of gpu or cluster scope.
    GpuFence,
}

impl StepKind {
    /// Whether it is an access to the device's own memory.
    pub const fn is_local(self) -> bool {
        matches!(self, StepKind::Load | StepKind::Store | StepKind::Atomic)
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            StepKind::Load => "local load",
            StepKind::Store => "local store",
            StepKind::Atomic => "local atomic",
            StepKind::RemoteLoad => "remote load",
            StepKind::RemoteAtomic => "remote atomic",
            StepKind::Acknowledged => "acknowledgement",
            StepKind::Way => "one way",
            StepKind::Host => "host access",
            StepKind::SystemFence => "system fence",
            StepKind::GpuFence => "gpu fence",
        })
    }
}
