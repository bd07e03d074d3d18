//! GPUDirect RDMA: NICs that read and write the memory of GPUs, and of the host, without either taking part.
//!
//! [`Gdr`] makes this kind of channel. It serves a GPU where libibverbs is there, a port of a NIC is active, and memory of the GPU can
//! be registered with it (the module nvidia-peermem, or dma-buf); and host memory wherever there is a NIC. What is missing is a
//! reason, which the registry's report tells.
//!
//! # A transfer
//!
//! 1. The sender announces it, and says when its memory may be read: when the caller's event has passed.
//! 2. The receiver, when its own event has passed, registers its memory, posts a receive for every piece, and tells where the pieces
//!    go ([`message`], `ReadyToReceive`).
//! 3. The sender writes the pieces there (RDMA WRITE WITH IMMEDIATE), none longer than the longest message of either NIC, over all
//!    NICs that are equally near if the transfer is large.
//! 4. The receiver, when all have come, makes them visible to the GPU ([`visible`]), and then says that they are there.
//!
//! Why writes, where sends into posted buffers would do: a receive without a buffer is like any other, so none has to be matched,
//! and what one transfer has left over the next one uses; pieces are no longer than the sender's choice of NIC allows, and the
//! receiver need not cut its buffer; and NICs put short sends into the completion, from where the *processor* copies them to the
//! buffer, which a GPU's memory does not stand. What it costs is a key: a peer can write into the whole allocation for as long as
//! that is registered. Peers of a job trust each other; others must not be let in.
//!
//! Nothing is ever inlined into work requests, for the same reason.
//!
//! # Files
//!
//! [`context`] finds out what there is; [`hub`] is what channels share; [`connect`] makes queue pairs, [`queue_pair`] posts on
//! them; [`send`], [`receive`] and [`batch`] are what a [`channel`] does.

mod arrivals;
mod batch;
mod cache;
mod channel;
mod choice;
mod config;
mod connect;
mod context;
mod credits;
mod descriptor;
mod failed_transfer;
mod freed;
mod gid;
mod hub;
mod job;
mod making;
mod memory;
mod message;
mod mutant;
mod nic;
mod pages;
mod plan;
mod queue_pair;
mod rails;
mod receive;
mod region;
mod send;
mod served;
mod starved;
mod target;
#[cfg(test)]
mod testing;
mod visible;
mod work;

use std::sync::{Arc, Mutex, PoisonError, Weak};

pub use cache::CacheStats;
pub use config::{Config, Registration};
pub use gid::preferred as preferred_gid;
pub use hub::Posting;
#[cfg(feature = "mutants")]
pub use mutant::Mutant;

use crate::channel::{ChannelContext, ChannelFactory, Environment, Reason};
use crate::span::Span;
use context::GdrContext;
use hub::Hub;

/// The name of this kind of channel.
pub const NAME: &str = "gdr";
/// Its priority.
pub const PRIORITY: u32 = 200;

/// Makes channels over RDMA. Clones are the same: keep one to ask for [`Gdr::stats`], or to tell of memory that is freed.
///
/// ```
/// use meshreduce_channels::gdr::{Config, Gdr};
///
/// let gdr = Gdr::new(Config::default().chunk(4 << 20));
/// assert!(gdr.stats().is_empty(), "no context has been made of it");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Gdr {
    config: Config,
    hubs: Arc<Mutex<Vec<Weak<Hub>>>>,
}

/// What has come of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NicStats {
    /// The NIC, and its port where it is not the first.
    pub nic: String,
    /// Of registered device memory.
    pub cache: CacheStats,
    /// Sends that are under way now, and the most that were at the same time.
    pub sends: (u32, u32),
    /// Receives that are posted now, and the most that were at the same time.
    pub receives: (u32, u32),
    /// What posting writes has taken.
    pub posting: Posting,
}

impl Gdr {
    /// With this configuration.
    pub fn new(config: Config) -> Self {
        Self { config, hubs: Arc::default() }
    }

    /// Counts of every NIC of every context that was made of this and is still there.
    pub fn stats(&self) -> Vec<NicStats> {
        let mut all = Vec::new();
        for hub in self.hubs() {
            let state = hub.state();
            for (nic, counts) in hub.nics.iter().zip(&state.nics) {
                all.push(NicStats {
                    nic: nic.name.clone(),
                    cache: nic.cache().stats(),
                    sends: (counts.sends.taken(), counts.sends.most()),
                    receives: (counts.receives.taken(), counts.receives.most()),
                    posting: counts.posting,
                });
            }
        }
        all
    }

    /// Gives up the registrations of device memory that `span` touches: it is about to be freed, and the next allocation needs the room
    /// at once. Without this a registration may keep freed memory pinned until the driver is asked for it: soon, or when other memory
    /// is registered. It is never used for other memory.
    ///
    /// A registration that a transfer uses, or a region, goes when they do.
    pub fn forget(&self, span: Span) {
        for hub in self.hubs() {
            for nic in &hub.nics {
                let removed = nic.cache().forget(span.address, span.bytes);
                drop(removed);
            }
        }
    }

    fn hubs(&self) -> Vec<Arc<Hub>> {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.retain(|hub| hub.strong_count() > 0);
        hubs.iter().filter_map(Weak::upgrade).collect()
    }
}

impl ChannelFactory for Gdr {
    fn name(&self) -> &str {
        NAME
    }

    fn priority(&self) -> u32 {
        PRIORITY
    }

    fn context(&self, environment: &Environment) -> Result<Arc<dyn ChannelContext>, Reason> {
        let (context, hub) = GdrContext::new(&self.config, environment)?;
        self.hubs.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&hub));
        Ok(Arc::new(context))
    }
}
