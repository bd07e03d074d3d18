//! Launches.

use std::{
    ffi::c_void,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Driver, Error, Handle, Result,
    device::{MAX_THREADS_PER_BLOCK, limits},
    graph::Work,
    modules::max_threads,
};
use crate::engine::Op;
use meshreduce_emulator_ptx::{Kernel, Launch};

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
}

/// Where a kernel's parameters come from.
#[derive(Clone, Copy, Debug)]
pub enum Parameters {
    /// An array of pointers, one to each parameter: `kernelParams`.
    Pointers(*const *const c_void),
    /// All of them as the kernel lays them out: `CU_LAUNCH_PARAM_BUFFER_POINTER` and its size.
    Buffer(*const u8, usize),
    /// None.
    None,
}

/// Grid dimensions beyond x (CUDA C++ Programming Guide, "Technical Specifications").
const MAX_GRID_YZ: u32 = 65535;
const MAX_BLOCK_Z: u32 = 64;

impl Driver {
    /// `cuLaunchKernel`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for a shape beyond the kernel's or the device's limits or missing parameters,
    /// [`Error::LaunchOutOfResources`] if not even one block fits, [`Error::InvalidHandle`] for a function or stream
    /// that is none or of another context, or the failure of the context.
    ///
    /// # Safety
    ///
    /// `parameters` must lead to as many bytes as the kernel's parameters have. (What the kernel does with them is
    /// checked when it does it.)
    pub unsafe fn launch(
        &self,
        function: Handle,
        config: LaunchConfig,
        stream: Handle,
        parameters: Parameters,
    ) -> Result<()> {
        let function = self.functions.find(function)?;
        let target = self.target(stream)?;
        if function.context.handle != target.context.handle {
            return Err(Error::InvalidHandle);
        }
        let kernel = &function.kernel;
        check_shape(kernel, &config)?;
        if config.dynamic_shared > function.max_dynamic_shared.load(Ordering::Relaxed) {
            return Err(Error::InvalidValue);
        }
        let shared_bytes = kernel.shared_bytes + config.dynamic_shared;
        let threads = config.block.iter().product();
        let limits = limits(&self.node.gpus[target.context.device]);
        if limits.blocks_per_multiprocessor(threads, shared_bytes) == 0 {
            return Err(Error::LaunchOutOfResources);
        }
        // SAFETY: the caller's promise.
        let params = unsafe { copy_parameters(kernel, parameters)? };
        let launch = Arc::new(Launch {
            kernel: Arc::clone(kernel),
            grid: config.grid,
            block: config.block,
            params,
            dynamic_shared: config.dynamic_shared,
        });
        if self.is_captured(&target)? {
            let function = Arc::downgrade(&function);
            return self.capture(&target, Work::Kernel { launch, shared_bytes, function });
        }
        self.submit(&target, Op::Launch { launch, shared_bytes })
    }
}

fn check_shape(kernel: &Kernel, config: &LaunchConfig) -> Result<()> {
    let [grid_x, grid_y, grid_z] = config.grid;
    let [x, y, z] = config.block;
    if [grid_x, grid_y, grid_z, x, y, z].contains(&0) {
        return Err(Error::InvalidValue);
    }
    if grid_x > i32::MAX as u32 || grid_y > MAX_GRID_YZ || grid_z > MAX_GRID_YZ {
        return Err(Error::InvalidValue);
    }
    if x > MAX_THREADS_PER_BLOCK || y > MAX_THREADS_PER_BLOCK || z > MAX_BLOCK_Z {
        return Err(Error::InvalidValue);
    }
    // At most 2^26, by the checks above.
    if x * y * z > max_threads(kernel) {
        return Err(Error::InvalidValue);
    }
    match kernel.required_threads {
        Some(required) if required != config.block => Err(Error::InvalidValue),
        _ => Ok(()),
    }
}

/// Copies the parameters into one buffer, laid out as the kernel declares them.
///
/// # Safety
///
/// `parameters` must lead to as many bytes as the kernel's parameters have.
unsafe fn copy_parameters(kernel: &Kernel, parameters: Parameters) -> Result<Box<[u8]>> {
    let mut bytes = vec![0u8; kernel.param_bytes as usize];
    match parameters {
        Parameters::Pointers(pointers) if !pointers.is_null() => {
            for (index, param) in kernel.params.iter().enumerate() {
                // SAFETY: the caller promises one pointer for each parameter.
                let pointer = unsafe { pointers.add(index).read() };
                if pointer.is_null() {
                    return Err(Error::InvalidValue);
                }
                let (start, len) = (param.offset as usize, param.bytes as usize);
                let to = &mut bytes[start..start + len];
                // SAFETY: the caller promises that the pointer leads to the parameter; `to` has its length.
                unsafe { std::ptr::copy_nonoverlapping(pointer.cast(), to.as_mut_ptr(), len) };
            }
        }
        Parameters::Buffer(start, len) if !start.is_null() => {
            let needed =
                kernel.params.iter().map(|param| param.offset + param.bytes).max().unwrap_or(0) as usize;
            if len < needed {
                return Err(Error::InvalidValue);
            }
            // SAFETY: the caller promises `len` bytes, which are at least as many.
            unsafe { std::ptr::copy_nonoverlapping(start, bytes.as_mut_ptr(), needed) };
        }
        _ if kernel.params.is_empty() => {}
        _ => return Err(Error::InvalidValue),
    }
    Ok(bytes.into())
}
