//! How GPUDirect RDMA is to be used.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use meshreduce_verbs_loader::Library;

use crate::gdr::cache::Bound;
use crate::gdr::mutant::Mutant;
use crate::pci::{BadMap, Map};

/// The environment variable that says where sysfs is.
const SYSFS: &str = "MESHREDUCE_SYSFS";

/// How GPUDirect RDMA is to be used. The defaults are for a fabric that nobody has told us anything about.
///
/// ```
/// use std::time::Duration;
/// use meshreduce_channels::gdr::Config;
///
/// let config = Config::default()
///     .nics("cuda:0=mlx5_0,mlx5_1;cpu=mlx5_2".parse()?)
///     .retries(14, 6)
///     .connect_within(Duration::from_secs(2));
/// # Ok::<(), meshreduce_channels::pci::BadMap>(())
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) library: Option<Library>,
    nics: Option<Map>,
    sysfs: Option<PathBuf>,
    pub(crate) credits: u32,
    pub(crate) depth: u32,
    pub(crate) chunk: u32,
    pub(crate) stripe: u64,
    pub(crate) cache: Bound,
    pub(crate) timeout: u8,
    pub(crate) retries: u8,
    pub(crate) rnr_retries: u8,
    pub(crate) traffic_class: u8,
    pub(crate) service_level: u8,
    pub(crate) relaxed_ordering: bool,
    pub(crate) first: Registration,
    pub(crate) connect_within: Duration,
    pub(crate) port_down_for: Duration,
    pub(crate) link_ends_within: Duration,
    pub(crate) regions_on_all_nics: bool,
    pub(crate) mutant: Option<Mutant>,
}

/// How GPU memory is registered with a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// As a dma-buf: the driver exports the memory, the NIC's driver imports it. Needs no module.
    DmaBuf,
    /// By its address, which the module nvidia-peermem makes known to the NIC's driver.
    Peermem,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            library: None,
            nics: None,
            sysfs: None,
            credits: 1024,
            depth: 256,
            chunk: 8 << 20,
            stripe: 1 << 20,
            cache: Bound { bytes: 32 << 30, entries: 1024 },
            timeout: 20,
            retries: 6,
            rnr_retries: 7,
            traffic_class: 0,
            service_level: 0,
            relaxed_ordering: true,
            first: Registration::DmaBuf,
            connect_within: Duration::from_secs(10),
            port_down_for: Duration::from_secs(5),
            link_ends_within: Duration::from_millis(250),
            regions_on_all_nics: false,
            mutant: None,
        }
    }
}

impl Config {
    /// The libibverbs to be used. By default the process's: `MESHREDUCE_VERBS`, or the system's.
    #[must_use]
    pub fn library(mut self, library: Library) -> Self {
        self.library = Some(library);
        self
    }

    /// Which device goes by which NICs, where the PCI tree is not to decide, or knows nothing. By default the environment
    /// decides ([`Map::VARIABLE`]).
    #[must_use]
    pub fn nics(mut self, nics: Map) -> Self {
        self.nics = Some(nics);
        self
    }

    /// Where sysfs is. By default `MESHREDUCE_SYSFS`, or `/sys`.
    #[must_use]
    pub fn sysfs(mut self, root: impl Into<PathBuf>) -> Self {
        self.sysfs = Some(root.into());
        self
    }

    /// How many sends, and how many receives, may be under way on a NIC at a time, over all channels; what is beyond that
    /// waits. 1,024 by default; at least 2.
    #[must_use]
    pub fn credits(mut self, each_way: u32) -> Self {
        self.credits = each_way.max(2);
        self
    }

    /// How many of them one queue pair takes at most. 256 by default.
    #[must_use]
    pub fn depth(mut self, requests: u32) -> Self {
        self.depth = requests.max(2);
        self
    }

    /// Bytes of a message at most, also where both NICs take longer ones (most take 1 GiB). Shorter ones let transfers share a NIC
    /// more evenly, and tell more often how far they are. 8 MiB by default.
    #[must_use]
    pub fn chunk(mut self, bytes: u32) -> Self {
        self.chunk = bytes.max(1);
        self
    }

    /// From how many bytes on a transfer goes over all NICs that are equally near. 1 MiB by default.
    #[must_use]
    pub fn stripe_from(mut self, bytes: u64) -> Self {
        self.stripe = bytes;
        self
    }

    /// How much memory that no transfer and no region uses stays registered, per NIC: bytes, and allocations. 32 GiB and 1,024 by
    /// default.
    #[must_use]
    pub fn cache(mut self, bytes: u64, allocations: usize) -> Self {
        self.cache = Bound { bytes, entries: allocations };
        self
    }

    /// How long a NIC waits for the other's answer, 4.096 us times two to the power of `timeout` (0 to 31; 0 is for ever), and how
    /// often it tries again (0 to 7). By default 20 and 6: half a minute in all, so that a busy fabric, or a switch that reboots,
    /// breaks nothing. A peer that has died is found by the link's end long before. Some devices, the kernel's soft RoCE
    /// among them, take 7 for "for ever".
    #[must_use]
    pub fn retries(mut self, timeout: u8, retries: u8) -> Self {
        (self.timeout, self.retries) = (timeout.min(31), retries.min(7));
        self
    }

    /// How often a NIC tries again when the other has no receive posted; 7, the default, is for ever. As every send waits for its
    /// receive, it never happens.
    #[must_use]
    pub fn rnr_retries(mut self, retries: u8) -> Self {
        self.rnr_retries = retries.min(7);
        self
    }

    /// The traffic class of packets (on RoCE, DSCP in the upper six bits) and the service level (on RoCE, the priority). By default 0
    /// and 0.
    #[must_use]
    pub fn traffic(mut self, class: u8, service_level: u8) -> Self {
        (self.traffic_class, self.service_level) = (class, service_level.min(15));
        self
    }

    /// Whether the bytes of a message may reach memory in any order, where library and NIC can: on some machines it is three times as
    /// fast. Nothing here looks at memory before the message has completed, so it changes no result. By default yes.
    #[must_use]
    pub fn relaxed_ordering(mut self, yes: bool) -> Self {
        self.relaxed_ordering = yes;
        self
    }

    /// What is tried first where there are two ways to register GPU memory; the other one is taken for allocations that it
    /// refuses. By default dma-buf.
    #[must_use]
    pub fn register_first_by(mut self, way: Registration) -> Self {
        self.first = way;
        self
    }

    /// How long two NICs may take to be connected before other NICs are tried; and for how long a large transfer waits for further
    /// NICs when one pair is connected: from then on it goes by those that are. When three times as long has brought no connection at
    /// all, the channel fails. 10 s by default.
    #[must_use]
    pub fn connect_within(mut self, limit: Duration) -> Self {
        self.connect_within = limit;
        self
    }

    /// How long a port may be down before what goes over it fails: links that come back lose nothing. 5 s by default.
    #[must_use]
    pub fn port_down_for(mut self, limit: Duration) -> Self {
        self.port_down_for = limit;
        self
    }

    /// When a NIC says that the other side does not answer, how long the link may take to say that the other side has gone, which
    /// is the better reason. 250 ms by default.
    #[must_use]
    pub fn link_ends_within(mut self, limit: Duration) -> Self {
        self.link_ends_within = limit;
        self
    }

    /// Whether regions are registered with all NICs that could replace the nearest ones when those do not reach each other. By
    /// default with the nearest alone.
    #[must_use]
    pub fn regions_on_all_nics(mut self, yes: bool) -> Self {
        self.regions_on_all_nics = yes;
        self
    }

    /// The map that holds.
    pub(crate) fn map(&self) -> Result<Map, BadMap> {
        self.nics.clone().map_or_else(Map::from_env, Ok)
    }

    /// The root of sysfs that holds.
    pub(crate) fn root(&self) -> PathBuf {
        let named = || std::env::var_os(SYSFS).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.sysfs.clone().or_else(named).unwrap_or_else(|| Path::new("/sys").to_owned())
    }

    /// Whether a mistake is to be made on purpose.
    pub(crate) fn makes(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}
