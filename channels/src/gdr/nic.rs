//! An open port of a NIC.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use meshreduce_verbs_loader as verbs;
use meshreduce_verbs_loader::{
    Access, CompletionQueue, Context, DmaBufSupport, MemoryRegion, PortAttributes, PortState,
    ProtectionDomain,
};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::gdr::cache::Cache;
use crate::gdr::config::Config;
use crate::gdr::descriptor::Port;
use crate::gdr::gid;
use crate::pci::{LinkLayer, NicPort};

/// Host memory that is registered to find out whether any can be. A limit of locked memory that does not allow that much is none
/// that tensors could be sent with.
const PROBE: usize = 1 << 20;

/// A port of a NIC, open, with what all channels share of it.
#[derive(Debug)]
pub(crate) struct Nic {
    /// `mlx5_0`, or `mlx5_0:2`.
    pub(crate) name: String,
    /// The port's number.
    pub(crate) port: u8,
    pub(crate) context: Context,
    pub(crate) domain: ProtectionDomain,
    /// Where everything on it completes.
    pub(crate) queue: CompletionQueue,
    /// What others are told of it, but for how near it is.
    pub(crate) told: Port,
    /// Sends, and receives, that may be under way at a time.
    pub(crate) credits: u32,
    /// What a queue pair may hold of either.
    pub(crate) depth: u32,
    /// Whether it registers dma-bufs; else why not.
    pub(crate) dma_buf: Result<(), String>,
    cache: Mutex<Cache<MemoryRegion>>,
}

impl Nic {
    /// Opens a port.
    ///
    /// # Errors
    ///
    /// Why it cannot be used. Whatever a system answers that has verbs and may not use them is such a reason.
    pub(crate) fn open(
        config: &Config,
        device: &verbs::Device,
        port: &NicPort,
        sysfs: &Path,
    ) -> Result<Self, String> {
        let name = port.name.to_string();
        let failed = |error: verbs::Error| format!("{name}: {}", explained(&error));
        let context = device.open().map_err(failed)?;
        let limits = context.query_device().map_err(failed)?;
        let number = port.name.port;
        let attributes = context.query_port(number).map_err(failed)?;
        if !is_active(&attributes) {
            return Err(format!("{name}: the port is {}", attributes.state));
        }
        let told = told(&name, port.rail, &attributes, &context.gids(number, sysfs).map_err(failed)?);
        if told.addresses.is_empty() {
            let what = if told.layer == LinkLayer::Ethernet { "no RoCE v2 address" } else { "no address" };
            return Err(format!("{name}: the port has {what} in its GID table"));
        }
        if told.longest == 0 {
            return Err(format!("{name}: the port takes no messages"));
        }
        let credits = config.credits.min(limits.max_completions / 2).max(2);
        let depth = config.depth.min(limits.max_work_requests).max(2);
        let domain = context.protection_domain().map_err(failed)?;
        let queue = context.completion_queue(credits.saturating_mul(2)).map_err(failed)?;
        probe(&domain).map_err(failed)?;
        let dma_buf = match domain.dma_buf_support() {
            DmaBufSupport::Supported => Ok(()),
            DmaBufSupport::Unsupported(why) => Err(format!("{name} takes no dma-bufs ({why})")),
            other => Err(format!("{name} takes no dma-bufs ({other:?})")),
        };
        let cache = Mutex::new(Cache::new(config.cache));
        Ok(Self { name, port: number, context, domain, queue, told, credits, depth, dma_buf, cache })
    }

    /// What is kept registered with it.
    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache<MemoryRegion>> {
        // Nothing panics half-way through a change.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its port carries data now.
    pub(crate) fn is_active(&self) -> Result<bool, verbs::Error> {
        self.context.query_port(self.port).map(|attributes| is_active(&attributes))
    }

    /// Where an address of its port, which was at `index` when others were told of it, stands in the port's table now. Addresses come
    /// and go, and others take their places: a queue pair with what is there would connect from elsewhere, or never.
    ///
    /// # Errors
    ///
    /// The port does not have it any more; or why the table cannot be read.
    pub(crate) fn current_index(&self, index: u8, sysfs: &Path) -> Result<u8, String> {
        let Some(told) = self.told.addresses.iter().find(|address| address.index == index) else {
            return Err(format!("{}: nobody was told of entry {index} of its GID table", self.name));
        };
        let ethernet = self.told.layer == LinkLayer::Ethernet;
        let failed = |error: verbs::Error| self.explained(&error);
        let entry = self.context.gid(self.port, index.into(), sysfs).map_err(failed)?;
        if entry.is_some_and(|entry| gid::stands_at(&entry, &told.gid, ethernet)) {
            return Ok(index);
        }
        let table = self.context.gids(self.port, sysfs).map_err(failed)?;
        gid::index_of(&told.gid, &table, ethernet).ok_or_else(|| {
            let Self { name, .. } = self;
            format!(
                "{name}: the GID table has changed: {} is not in it any more, which others were told of",
                told.gid
            )
        })
    }

    /// Why a registration of host memory, or a queue, was refused.
    pub(crate) fn explained(&self, error: &verbs::Error) -> String {
        format!("{}: {}", self.name, explained(error))
    }
}

fn is_active(port: &PortAttributes) -> bool {
    matches!(port.state, PortState::Active | PortState::ActiveDefer)
}

fn told(name: &str, rail: u32, port: &PortAttributes, table: &[verbs::GidEntry]) -> Port {
    let layer = match port.link_layer {
        // Before link layers were told there was InfiniBand alone.
        verbs::LinkLayer::InfiniBand | verbs::LinkLayer::Unspecified => LinkLayer::Infiniband,
        verbs::LinkLayer::Ethernet => LinkLayer::Ethernet,
        _ => LinkLayer::Other,
    };
    let addresses = match layer {
        LinkLayer::Ethernet => gid::roce_addresses(table),
        _ => gid::ib_address(table).into_iter().collect(),
    };
    Port {
        name: name.to_owned(),
        rail,
        near: false,
        layer,
        addresses,
        lid: port.lid,
        mtu: port.active_mtu,
        longest: port.max_message_bytes,
    }
}

/// Registers some host memory for a moment.
fn probe(domain: &ProtectionDomain) -> Result<(), verbs::Error> {
    let mut memory = vec![0_u8; PROBE];
    // SAFETY: the region goes before the memory does, and nobody has its keys.
    let region = unsafe { domain.register(memory.as_mut_ptr(), PROBE, Access::LOCAL_WRITE) }?;
    region.deregister()
}

/// An error, with what helps against it.
pub(crate) fn explained(error: &verbs::Error) -> String {
    match error.errno().map(Errno::from_raw_os_error) {
        Some(Errno::NOMEM) => match getrlimit(Resource::Memlock).current {
            Some(limit) => format!(
                "{error}; the limit of locked memory is {} KiB (ulimit -l unlimited, or LimitMEMLOCK=infinity of its service, lifts it)",
                limit / 1024
            ),
            None => error.to_string(),
        },
        Some(Errno::NOSYS) if error.to_string().contains("ibv_get_device_list") => format!(
            "{error}: the kernel shows no RDMA (is ib_uverbs loaded, and /dev/infiniband in the container?)"
        ),
        Some(Errno::MFILE | Errno::NFILE) => {
            format!("{error}: this process has as many open files as it may have (ulimit -n)")
        }
        Some(Errno::OPNOTSUPP | Errno::NOSYS) => format!("{error}; its driver lacks the verb"),
        _ => error.to_string(),
    }
}
