//! What a machine's parts take, as a TOML file says it.

use serde::Deserialize;
use thiserror::Error;

/// A machine: its GPUs, all alike, and what is between them. Each number has its source beside it in the file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// Its name.
    pub name: String,
    /// The compute capability of its GPUs, such as `9.0`.
    pub compute_capability: String,
    /// GPUs.
    pub gpus: usize,
    /// A multiprocessor.
    pub multiprocessor: Multiprocessor,
    /// A GPU's memory.
    pub memory: Memory,
    /// NVLink.
    pub nvlink: NvLink,
    /// What orders.
    pub order: Order,
    /// What is before a kernel.
    pub launch: LaunchCost,
}

/// A multiprocessor. Cycles are of its clock.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Multiprocessor {
    /// How many a GPU has.
    pub count: u32,
    /// Its clock.
    pub clock_mhz: u32,
    /// Warp schedulers; each issues one instruction a cycle.
    pub schedulers: u32,
    /// Threads at a time.
    pub threads: u32,
    /// Blocks at a time.
    pub blocks: u32,
    /// From an arithmetic instruction to one that needs its result.
    pub arithmetic_cycles: u32,
    /// The same of shared memory.
    pub shared_cycles: u32,
    /// From the last warp's arrival at a barrier until all go on.
    pub barrier_cycles: u32,
    /// Bytes a cycle between it and the L2 cache, each way.
    pub bytes_per_cycle: u32,
}

/// A GPU's memory. Latencies are from a load to an instruction that needs its value.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The first look of a multiprocessor at a line of constants or parameters; further looks are free.
    pub constant_cycles: u32,
    /// A hit in the L1 cache.
    pub l1_cycles: u32,
    /// Its size.
    pub l1_kib: u32,
    /// A hit in the L2 cache.
    pub l2_cycles: u32,
    /// Its size.
    pub l2_mib: u32,
    /// Its bandwidth.
    pub l2_gb_per_s: u32,
    /// A miss there.
    pub dram_cycles: u32,
    /// Bandwidth of the memory behind it.
    pub dram_gb_per_s: u32,
    /// A load from the host's memory.
    pub host_ns: u32,
}

/// NVLink.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NvLink {
    /// From one GPU's L2 cache to another's, switches included.
    pub one_way_ns: u32,
    /// Bandwidth of a link, one direction.
    pub link_gb_per_s: f64,
    /// What each request and each answer of up to 128 bytes has besides its data.
    pub header_bytes: u32,
    /// Data is carried in units of so many bytes.
    pub unit_bytes: u32,
    /// Links of each GPU to switches; 0 where there are none.
    #[serde(default)]
    pub switched: u32,
    /// Without switches: links between GPUs.
    #[serde(default)]
    pub direct: Vec<Vec<u32>>,
}

/// What orders.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// A fence of gpu scope; longer where what it waits for is there later.
    pub gpu_fence_ns: u32,
    /// A fence of system scope, likewise.
    pub system_fence_ns: u32,
    /// What an atomic takes longer than a load.
    pub atomic_cycles: u32,
    /// From one atomic to the next at one address.
    pub same_address_cycles: u32,
    /// What a `nanosleep` takes.
    pub sleep_ns: u32,
}

/// What is before a kernel.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchCost {
    /// From the start of a kernel to its first block, and from one block to the next that a GPU starts.
    pub block_ns: u32,
    /// From the end of a kernel in a stream to the start of the next.
    pub next_kernel_ns: u32,
    /// What a call in a stream takes besides what the kernel does.
    pub stream_ns: u32,
    /// The same of a node of a graph. The only number that is fitted.
    pub graph_ns: u32,
}

/// Why a text describes no machine.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ParametersError {
    /// It is not TOML, or a key is unknown, missing or of another type.
    #[error("machine {name}: {reason}")]
    Text {
        /// The file or the shipped name.
        name: String,
        /// What the reader says.
        reason: String,
    },
    /// A number cannot be.
    #[error("machine {name}: {key} must be {must}")]
    Number {
        /// The machine's name.
        name: String,
        /// Which.
        key: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// There is no shipped machine of the name.
    #[error("no machine {name} is shipped; there are {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
}

const SHIPPED: [(&str, &str); 6] = [
    ("dgx-1v", include_str!("../machines/dgx-1v.toml")),
    ("dgx-a100", include_str!("../machines/dgx-a100.toml")),
    ("hgx-h100", include_str!("../machines/hgx-h100.toml")),
    ("hgx-h200", include_str!("../machines/hgx-h200.toml")),
    ("hgx-b200", include_str!("../machines/hgx-b200.toml")),
    ("shared-h200", include_str!("../machines/shared-h200.toml")),
];

impl Parameters {
    /// The names of the shipped machines.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// A shipped machine.
    ///
    /// # Errors
    /// If there is none of the name.
    pub fn shipped(name: &str) -> Result<Self, ParametersError> {
        let found = SHIPPED.iter().find(|(known, _)| *known == name);
        let known = || Self::names().collect::<Vec<_>>().join(", ");
        let (name, text) =
            found.ok_or_else(|| ParametersError::Unknown { name: name.to_owned(), known: known() })?;
        Self::parse(text, name)
    }

    /// The machine that a text describes, which came from `name`.
    ///
    /// # Errors
    /// If it describes none.
    pub fn parse(text: &str, name: &str) -> Result<Self, ParametersError> {
        let machine: Self = toml::from_str(text).map_err(|error| ParametersError::Text {
            name: name.to_owned(),
            reason: error.to_string().trim().to_owned(),
        })?;
        machine.check()?;
        Ok(machine)
    }

    fn check(&self) -> Result<(), ParametersError> {
        let wrong = |key, must| Err(ParametersError::Number { name: self.name.clone(), key, must });
        let (core, memory) = (&self.multiprocessor, &self.memory);
        let positive = [
            ("gpus", self.gpus as u32),
            ("multiprocessor.count", core.count),
            ("multiprocessor.clock_mhz", core.clock_mhz),
            ("multiprocessor.schedulers", core.schedulers),
            ("multiprocessor.threads", core.threads),
            ("multiprocessor.blocks", core.blocks),
            ("multiprocessor.bytes_per_cycle", core.bytes_per_cycle),
            ("memory.l1_kib", memory.l1_kib),
            ("memory.l2_mib", memory.l2_mib),
            ("memory.l2_gb_per_s", memory.l2_gb_per_s),
            ("memory.dram_gb_per_s", memory.dram_gb_per_s),
            ("nvlink.unit_bytes", self.nvlink.unit_bytes),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return wrong(key, "more than zero");
        }
        let link = &self.nvlink;
        if !(link.link_gb_per_s.is_finite() && link.link_gb_per_s > 0.0) {
            return wrong("nvlink.link_gb_per_s", "more than zero");
        }
        if link.switched > 0 && !link.direct.is_empty() {
            return wrong("nvlink.direct", "absent where there are switches");
        }
        let alike = |a: usize, b: usize| link.direct[a][b] == link.direct[b][a] && link.direct[a][a] == 0;
        let whole = link.direct.iter().all(|row| row.len() == self.gpus);
        if link.switched == 0
            && !(link.direct.len() == self.gpus
                && whole
                && (0..self.gpus).all(|a| (0..self.gpus).all(|b| alike(a, b))))
        {
            return wrong("nvlink.direct", "a symmetric matrix over all GPUs with a zero diagonal");
        }
        Ok(())
    }
}
