//! Devices and their attributes.

use std::sync::Arc;

use super::{Driver, Error, Result, direct_rdma};
use crate::{
    engine::{Engine, Limits, Setup},
    node::{Gpu, PciBusId, uuid},
};

/// Most threads of a block, on every device.
pub(super) const MAX_THREADS_PER_BLOCK: u32 = 1024;
/// Bytes of shared memory that a block can have without asking for more.
pub(super) const SHARED_PER_BLOCK: u32 = 48 << 10;
/// Registers of a multiprocessor and of a block, on every device from compute capability 5.0.
const REGISTERS: i32 = 65536;

/// Bytes of shared memory of a multiprocessor, by compute capability (CUDA C++ Programming Guide, "Compute
/// Capabilities").
fn shared_per_multiprocessor(gpu: &Gpu) -> u32 {
    let kib = match gpu.compute_capability {
        (5, 2) | (6, 1) => 96,
        (5, _) | (6, _) => 64,
        (7, 0 | 2) => 96,
        (7, _) => 64,
        (8, 0 | 7) => 164,
        (8, _) => 100,
        (9, _) | (10, _) => 228,
        _ => 100,
    };
    kib << 10
}

/// Bytes of shared memory that the system takes of every block.
fn shared_reserved_per_block(gpu: &Gpu) -> u32 {
    if gpu.compute_capability.0 >= 8 { 1 << 10 } else { 0 }
}

/// Bytes of shared memory that a block can have if its function asks for them.
pub(super) fn shared_per_block_optin(gpu: &Gpu) -> u32 {
    shared_per_multiprocessor(gpu) - shared_reserved_per_block(gpu)
}

pub(super) fn limits(gpu: &Gpu) -> Limits {
    Limits {
        multiprocessors: gpu.multiprocessors,
        threads_per_multiprocessor: gpu.blocks_per_multiprocessor * MAX_THREADS_PER_BLOCK,
        shared_per_multiprocessor: shared_per_multiprocessor(gpu),
        shared_reserved_per_block: shared_reserved_per_block(gpu),
    }
}

impl Driver {
    /// `cuDeviceGetCount`: visible devices.
    pub fn device_count(&self) -> i32 {
        self.visible.len() as i32
    }

    /// The index in the node of the visible device `ordinal`.
    pub(super) fn device(&self, ordinal: i32) -> Result<usize> {
        let index = usize::try_from(ordinal).map_err(|_| Error::InvalidDevice)?;
        self.visible.get(index).copied().ok_or(Error::InvalidDevice)
    }

    pub(super) fn ordinal(&self, device: usize) -> Result<i32> {
        let ordinal = self.visible.iter().position(|&visible| visible == device);
        ordinal.map(|ordinal| ordinal as i32).ok_or(Error::InvalidDevice)
    }

    fn gpu(&self, ordinal: i32) -> Result<&Gpu> {
        Ok(&self.node.gpus[self.device(ordinal)?])
    }

    /// The engine of a device, started on first use.
    pub(super) fn engine(&self, device: usize) -> Result<&Engine> {
        if let Some(engine) = self.engines[device].get() {
            return Ok(engine);
        }
        let gpu = &self.node.gpus[device];
        let engine = Engine::start(Setup {
            name: format!("device {device} ({})", gpu.name),
            limits: limits(gpu),
            executor: Arc::clone(&self.executor),
            memory: Arc::new(self.memory.view(device)),
            instructions: Arc::clone(&self.instructions),
            deadlock_after: self.options.deadlock_after,
        });
        let engine = engine.map_err(|error| {
            eprintln!("meshreduce emulator: no thread for a device: {error}");
            Error::OperatingSystem
        })?;
        // If another thread was faster, this engine ends at once, unused.
        Ok(self.engines[device].get_or_init(|| engine))
    }

    /// `cuDeviceGet`: checks an ordinal.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn device_get(&self, ordinal: i32) -> Result<i32> {
        self.device(ordinal).map(|_| ordinal)
    }

    /// `cuDeviceGetName`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn device_name(&self, ordinal: i32) -> Result<&str> {
        Ok(&self.gpu(ordinal)?.name)
    }

    /// `cuDeviceGetUuid`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn device_uuid(&self, ordinal: i32) -> Result<[u8; 16]> {
        Ok(uuid(&self.node.name, &self.options.instance, self.device(ordinal)?))
    }

    /// `cuDeviceTotalMem_v2`, in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn device_total_memory(&self, ordinal: i32) -> Result<u64> {
        Ok(self.gpu(ordinal)?.memory_bytes())
    }

    /// `cuDeviceGetPCIBusId`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`].
    pub fn device_pci_bus_id(&self, ordinal: i32) -> Result<PciBusId> {
        Ok(self.gpu(ordinal)?.pci)
    }

    /// `cuDeviceGetByPCIBusId`: the ordinal of a visible device.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if `text` is no bus id, [`Error::InvalidDevice`] if no visible device is there.
    pub fn device_by_pci_bus_id(&self, text: &str) -> Result<i32> {
        let id: PciBusId = text.parse().map_err(|_| Error::InvalidValue)?;
        let found = self.visible.iter().position(|&device| self.node.gpus[device].pci == id);
        found.map(|ordinal| ordinal as i32).ok_or(Error::InvalidDevice)
    }

    /// `cuDeviceGetP2PAttribute`: performance rank, access, native atomics, array access (1 to 4).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`] (also for a device and itself), [`Error::InvalidValue`] for another attribute.
    pub fn p2p_attribute(&self, attribute: u32, ordinal: i32, peer: i32) -> Result<i32> {
        let (device, other) = (self.device(ordinal)?, self.device(peer)?);
        if device == other {
            return Err(Error::InvalidDevice);
        }
        let (gpu, remote) = (&self.node.gpus[device], &self.node.gpus[other]);
        let access = gpu.p2p[other];
        let by_nvlink =
            gpu.links_to(other) > 0 || (gpu.links_to_switches() > 0 && remote.links_to_switches() > 0);
        match attribute {
            // Rank 0 is the best; devices without NVLink between them are one worse.
            1 => Ok(i32::from(!by_nvlink)),
            2 | 4 => Ok(i32::from(access)),
            3 => Ok(i32::from(access && by_nvlink)),
            _ => Err(Error::InvalidValue),
        }
    }

    /// `cuDeviceGetAttribute`, by the number of `CUdevice_attribute`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDevice`], [`Error::InvalidValue`] for an unknown attribute.
    pub fn device_attribute(&self, attribute: i32, ordinal: i32) -> Result<i32> {
        let gpu = self.gpu(ordinal)?;
        let (major, minor) = gpu.compute_capability;
        let limits = limits(gpu);
        Ok(match attribute {
            // Threads per block and per dimension, grid dimensions.
            1..=3 => MAX_THREADS_PER_BLOCK as i32,
            4 => 64,
            5 => i32::MAX,
            6 | 7 => 65535,
            8 => SHARED_PER_BLOCK as i32,
            9 => 65536,
            10 => 32,
            11 => i32::MAX,
            12 | 82 => REGISTERS,
            // Clock rates (kHz) and bus width (bits): nominal, as emulated time is not the real device's.
            13 => 1_500_000,
            36 => 1_500_000,
            37 => 5120,
            14 => 512,
            15 => 1,
            16 => gpu.multiprocessors as i32,
            17 | 18 => 0,
            19 => 1,
            20 => 0,
            30 => 512,
            31 | 32 => 1,
            33 => gpu.pci.bus as i32,
            34 => gpu.pci.device as i32,
            35 => 0,
            38 => 40 << 20,
            39 => limits.threads_per_multiprocessor as i32,
            40 => 3,
            41 => 1,
            50 => gpu.pci.domain as i32,
            51 => 32,
            75 => major as i32,
            76 => minor as i32,
            78 => 1,
            79 | 80 => 1,
            81 => limits.shared_per_multiprocessor as i32,
            // Managed memory, multi-GPU boards, native host atomics, pageable access: none.
            83 | 84 | 85 | 86 | 88 | 89 => 0,
            87 => 2,
            90 => 1,
            91 => 1,
            // The first forms of stream memory operations, as the real driver answers since it has the second ones;
            // cooperative launches: not emulated.
            92..=96 => 0,
            97 => shared_per_block_optin(gpu) as i32,
            98 => 0,
            99 => 1,
            // GPUDirect RDMA: whether there is any, flushes by the host (a bit), who sees writes without a flush, dma-bufs.
            116 | 117 => i32::from(direct_rdma::is_supported(gpu)),
            // The kernel has a part in these.
            124 => i32::from(direct_rdma::is_supported(gpu) && self.node.dma_buf),
            118 => direct_rdma::writes_ordering(gpu),
            // Stream memory operations of 64 bits and with NOR, events between processes.
            122 | 123 | 125 => 1,
            // Virtual memory management, external handles, pools' handle types, multicast: not emulated.
            100..=105 | 107..=110 | 112..=114 | 119..=121 | 126..=135 => 0,
            106 => crate::engine::MAX_BLOCKS_PER_MULTIPROCESSOR as i32,
            111 => limits.shared_reserved_per_block as i32,
            115 => 1,
            // Textures and surfaces: not emulated.
            21..=29 | 42..=49 | 52..=74 | 77 => 0,
            _ => return Err(Error::InvalidValue),
        })
    }
}
