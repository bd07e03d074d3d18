//! Modules and functions.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::{
    Driver, Error, Handle, Result,
    device::{MAX_THREADS_PER_BLOCK, SHARED_PER_BLOCK, limits, shared_per_block_optin},
    handles::new_handle,
    module::{Function, Module},
};
use meshreduce_emulator_ptx as ptx;

/// Why an image could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}: {log}")]
pub struct LoadError {
    /// The driver's code.
    pub error: Error,
    /// What goes into the JIT's error log.
    pub log: String,
}

impl From<Error> for LoadError {
    fn from(error: Error) -> Self {
        Self { error, log: error.to_string() }
    }
}

/// An attribute of a function, by `CUfunction_attribute`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FunctionAttribute {
    /// Most threads of a block.
    MaxThreadsPerBlock = 0,
    /// Bytes of static shared memory.
    SharedSizeBytes = 1,
    /// Bytes of constant memory.
    ConstSizeBytes = 2,
    /// Bytes of local memory of a thread.
    LocalSizeBytes = 3,
    /// Registers of a thread.
    NumRegs = 4,
    /// PTX version, as ten times major plus minor.
    PtxVersion = 5,
    /// Compute capability of the code, likewise.
    BinaryVersion = 6,
    /// Whether global loads are cached in L1.
    CacheModeCa = 7,
    /// Most dynamic shared memory of a block, in bytes.
    MaxDynamicSharedSizeBytes = 8,
    /// Preferred share of shared memory, in percent; -1 is the driver's choice.
    PreferredSharedMemoryCarveout = 9,
}

impl FunctionAttribute {
    /// The attribute with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        use FunctionAttribute as A;
        let all = [
            A::MaxThreadsPerBlock,
            A::SharedSizeBytes,
            A::ConstSizeBytes,
            A::LocalSizeBytes,
            A::NumRegs,
            A::PtxVersion,
            A::BinaryVersion,
            A::CacheModeCa,
            A::MaxDynamicSharedSizeBytes,
            A::PreferredSharedMemoryCarveout,
        ];
        all.get(number as usize).copied()
    }
}

impl Driver {
    /// `cuModuleLoadData`: loads PTX text into the current context.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidPtx`], with a log that names the line, if the text is not PTX, uses what is not emulated, or
    /// is for newer devices; [`Error::NoBinaryForGpu`] for machine code; [`Error::InvalidContext`] or its failure.
    pub fn module_load(&self, image: &[u8]) -> Result<Handle, LoadError> {
        let context = self.working()?;
        self.permit_unsafe()?;
        let text = text(image)?;
        let program = ptx::Module::parse(text).map_err(|error| LoadError {
            error: Error::InvalidPtx,
            log: format!("meshreduce emulator: PTX is refused: {error}"),
        })?;
        let capability = self.node.gpus[context.device].compute_capability;
        if !program.target().runs_on(capability) {
            let (major, minor) = capability;
            return Err(LoadError {
                error: Error::InvalidPtx,
                log: format!(
                    "meshreduce emulator: PTX is refused: .target {} does not run on the device, which has compute capability {major}.{minor}",
                    program.target()
                ),
            });
        }
        let handle = new_handle();
        self.modules.insert(handle, Arc::new(Module { context, program }));
        Ok(handle)
    }

    /// What a verbose compiler says of a module: one line a kernel.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn module_summary(&self, module: Handle) -> Result<String> {
        let line = |kernel: &Arc<ptx::Kernel>| {
            let ptx::Kernel { name, registers, local_bytes, shared_bytes, .. } = &**kernel;
            format!(
                "meshreduce emulator: {name}: {registers} registers, {local_bytes} bytes local, {shared_bytes} bytes shared\n"
            )
        };
        Ok(self.modules.find(module)?.program.kernels().iter().map(line).collect())
    }

    /// `cuModuleUnload`: its functions are gone; launches already queued still run.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn module_unload(&self, module: Handle) -> Result<()> {
        self.permit_unsafe()?;
        self.modules.remove(module)?;
        self.functions.retain(|function| function.module != module);
        Ok(())
    }

    /// `cuModuleGetFunction`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the module has no such entry, [`Error::InvalidHandle`], or the context's failure.
    pub fn module_function(&self, module: Handle, name: &str) -> Result<Handle> {
        let found = self.modules.find(module)?;
        found.context.check()?;
        let kernel = found.program.kernel(name).ok_or(Error::NotFound)?;
        let (major, minor) = found.program.version();
        let handle = new_handle();
        let function = Function {
            context: Arc::clone(&found.context),
            module,
            ptx_version: (major * 10 + minor) as i32,
            max_dynamic_shared: AtomicU32::new(SHARED_PER_BLOCK.saturating_sub(kernel.shared_bytes)),
            kernel,
        };
        self.functions.insert(handle, Arc::new(function));
        Ok(handle)
    }

    /// `cuModuleGetGlobal_v2`: address and size of a `.global` variable. Modules with such variables do not load, so
    /// there is never one.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::InvalidHandle`], or the context's failure.
    pub fn module_global(&self, module: Handle, _name: &str) -> Result<(u64, u64)> {
        self.modules.find(module)?.context.check()?;
        Err(Error::NotFound)
    }

    /// `cuFuncGetModule`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn function_module(&self, function: Handle) -> Result<Handle> {
        Ok(self.functions.find(function)?.module)
    }

    /// `cuFuncGetName`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn function_kernel(&self, function: Handle) -> Result<Arc<ptx::Kernel>> {
        Ok(Arc::clone(&self.functions.find(function)?.kernel))
    }

    /// `cuFuncGetAttribute`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn function_attribute(&self, function: Handle, attribute: FunctionAttribute) -> Result<i32> {
        let function = self.functions.find(function)?;
        let kernel = &function.kernel;
        let (major, minor) = self.node.gpus[function.context.device].compute_capability;
        Ok(match attribute {
            FunctionAttribute::MaxThreadsPerBlock => max_threads(kernel) as i32,
            FunctionAttribute::SharedSizeBytes => kernel.shared_bytes as i32,
            FunctionAttribute::ConstSizeBytes => 0,
            FunctionAttribute::LocalSizeBytes => kernel.local_bytes as i32,
            FunctionAttribute::NumRegs => kernel.registers as i32,
            FunctionAttribute::PtxVersion => function.ptx_version,
            FunctionAttribute::BinaryVersion => (major * 10 + minor) as i32,
            FunctionAttribute::CacheModeCa => 0,
            FunctionAttribute::MaxDynamicSharedSizeBytes => {
                function.max_dynamic_shared.load(Ordering::Relaxed) as i32
            }
            FunctionAttribute::PreferredSharedMemoryCarveout => -1,
        })
    }

    /// `cuFuncSetAttribute`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for attributes that cannot be set, or more shared memory than the device has;
    /// [`Error::InvalidHandle`].
    pub fn set_function_attribute(
        &self,
        function: Handle,
        attribute: FunctionAttribute,
        value: i32,
    ) -> Result<()> {
        let function = self.functions.find(function)?;
        match attribute {
            FunctionAttribute::MaxDynamicSharedSizeBytes => {
                let optin = shared_per_block_optin(&self.node.gpus[function.context.device]);
                let most = optin.saturating_sub(function.kernel.shared_bytes);
                let wanted = u32::try_from(value).map_err(|_| Error::InvalidValue)?;
                if wanted > most {
                    return Err(Error::InvalidValue);
                }
                function.max_dynamic_shared.store(wanted, Ordering::Relaxed);
                Ok(())
            }
            // A preference, which changes nothing here.
            FunctionAttribute::PreferredSharedMemoryCarveout if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Error::InvalidValue),
        }
    }

    /// `cuOccupancyMaxActiveBlocksPerMultiprocessor`: by the rule that the device follows too.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], [`Error::InvalidValue`] for a block size below 1.
    pub fn occupancy(&self, function: Handle, block_size: i32, dynamic_shared: u64) -> Result<i32> {
        let function = self.functions.find(function)?;
        let threads = u32::try_from(block_size).map_err(|_| Error::InvalidValue)?;
        if threads == 0 {
            return Err(Error::InvalidValue);
        }
        let dynamic = u32::try_from(dynamic_shared).map_err(|_| Error::InvalidValue)?;
        if threads > max_threads(&function.kernel) {
            return Ok(0);
        }
        let limits = limits(&self.node.gpus[function.context.device]);
        let shared = function.kernel.shared_bytes.saturating_add(dynamic);
        Ok(limits.blocks_per_multiprocessor(threads, shared) as i32)
    }

    /// `cuOccupancyMaxPotentialBlockSize`: the smallest grid and the largest block that fill the device.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`].
    pub fn best_block_size(
        &self,
        function: Handle,
        dynamic_shared: impl Fn(i32) -> u64,
        limit: i32,
    ) -> Result<(i32, i32)> {
        let found = self.functions.find(function)?;
        let limit = if limit <= 0 { MAX_THREADS_PER_BLOCK as i32 } else { limit };
        let most = (max_threads(&found.kernel) as i32).min(limit);
        let multiprocessors = self.node.gpus[found.context.device].multiprocessors as i32;
        let mut best = (0, 0, 0);
        for size in (1..=most).filter(|size| size % 32 == 0 || *size == most).rev() {
            let blocks = self.occupancy(function, size, dynamic_shared(size))?;
            if blocks * size > best.0 {
                best = (blocks * size, blocks * multiprocessors, size);
            }
        }
        Ok((best.1, best.2))
    }

    /// `cuOccupancyAvailableDynamicSMemPerBlock`, in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHandle`], [`Error::InvalidValue`] if so many blocks do not fit at all.
    pub fn available_dynamic_shared(&self, function: Handle, blocks: i32, block_size: i32) -> Result<u64> {
        let found = self.functions.find(function)?;
        if blocks < 1 || self.occupancy(function, block_size, 0)? < blocks {
            return Err(Error::InvalidValue);
        }
        let gpu = &self.node.gpus[found.context.device];
        let limits = limits(gpu);
        let each = limits.shared_per_multiprocessor / blocks as u32;
        let own = each.saturating_sub(limits.shared_reserved_per_block).min(shared_per_block_optin(gpu));
        Ok(u64::from(own.saturating_sub(found.kernel.shared_bytes)))
    }
}

/// Most threads of a block of this kernel.
pub(super) fn max_threads(kernel: &ptx::Kernel) -> u32 {
    match kernel.required_threads.or(kernel.max_threads) {
        Some([x, y, z]) => x.saturating_mul(y).saturating_mul(z).min(MAX_THREADS_PER_BLOCK),
        None => MAX_THREADS_PER_BLOCK,
    }
}

/// The PTX text of an image, which ends with its first zero byte, if it has one.
fn text(image: &[u8]) -> Result<&str, LoadError> {
    const ELF: &[u8] = b"\x7fELF";
    const FAT_BINARY: &[u8] = &0xba55_ed50_u32.to_le_bytes();
    const FAT_BINARY_WRAPPER: &[u8] = &0x4662_43b1_u32.to_le_bytes();
    if [ELF, FAT_BINARY, FAT_BINARY_WRAPPER].iter().any(|magic| image.starts_with(magic)) {
        return Err(LoadError {
            error: Error::NoBinaryForGpu,
            log: "meshreduce emulator: the image is machine code; an emulated device takes PTX text"
                .to_owned(),
        });
    }
    let end = image.iter().position(|&byte| byte == 0).unwrap_or(image.len());
    std::str::from_utf8(&image[..end]).map_err(|error| LoadError {
        error: Error::InvalidImage,
        log: format!("meshreduce emulator: the image is not text: {error}"),
    })
}
