//! What tests of the parts of a channel need: a hub without NICs, and a link that keeps what is said.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use meshreduce_device::Device;

use crate::channel::{Io, Pair, Side};
use crate::counter::Counters;
use crate::gdr::config::Config;
use crate::gdr::connect::Connections;
use crate::gdr::descriptor;
use crate::gdr::hub::Hub;
use crate::gdr::served::Served;
use crate::link::{Outbox, Queue};
use crate::progress::Waker;

/// A hub that serves the host's memory by no NIC.
pub(crate) fn hub() -> Arc<Hub> {
    let served = Served::new(Device::Cpu, Vec::new(), None, &[]);
    Arc::new(Hub::new(Config::default(), Vec::new(), vec![served], Waker::new().unwrap()))
}

/// The queue pairs, of which there are none, of a channel to a peer `p`.
pub(crate) fn connections(hub: &Arc<Hub>, side: Side) -> Connections {
    let ports = || descriptor::Served { gpu: false, ports: Vec::new() };
    let devices = Pair { local: Device::Cpu, remote: Device::Cpu };
    Connections::new(hub, (0, 0), (devices, side, &"p".into()), (ports(), ports()))
}

/// What one side says to the other.
pub(crate) struct SentMessages {
    queue: Queue,
    counters: Counters,
}

impl Default for SentMessages {
    fn default() -> Self {
        Self { queue: Queue::new(false), counters: Counters::new("p".into(), 1) }
    }
}

impl SentMessages {
    pub(crate) fn io(&mut self) -> Io<'_> {
        Io { outbox: Outbox::new(&mut self.queue, 0), counters: &self.counters, now: Instant::now() }
    }

    /// What was said since the last time.
    pub(crate) fn take(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.queue.pop()).map(|outgoing| outgoing.head).collect()
    }
}
