//! Modules from PTX, and the functions in them.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cust_raw::{CUfunction, CUjit_option, CUmodule, CUresult, CUstream};

use super::{PrimaryContext, check, log_failure};
use crate::error::DriverError;

/// Bytes of the log of the driver's compiler that are kept.
const LOG_BYTES: usize = 8192;

/// A loaded module.
#[derive(Debug)]
pub(crate) struct Module {
    raw: CUmodule,
    context: Arc<PrimaryContext>,
}

// SAFETY: the driver API takes module handles from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A function of a module that is still loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(CUfunction);

// SAFETY: the driver API takes function handles from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// Compiles and loads PTX; on failure the second value is the compiler's log.
    pub(crate) fn load(context: &Arc<PrimaryContext>, ptx: &str) -> Result<Self, (DriverError, String)> {
        // The driver reads up to the first NUL.
        let text: Vec<u8> = ptx.bytes().chain([0]).collect();
        let _current = context.enter().map_err(|error| (error, String::new()))?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options =
            [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The driver takes a number in the place of a pointer.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the text is NUL-terminated; options and values are as many as is said; the buffer is as long
        // as is said; all outlive the call.
        let answer = unsafe {
            cust_raw::cuModuleLoadDataEx(
                &mut raw,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        check("cuModuleLoadDataEx", answer).map_err(|error| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            (error, String::from_utf8_lossy(&log[..end]).trim().to_owned())
        })?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    /// The function `name`; `None` if the module has none.
    pub(crate) fn function(&self, name: &str) -> Result<Option<Function>, DriverError> {
        let Ok(name) = CString::new(name) else { return Ok(None) };
        let _current = self.context.enter()?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the name is NUL-terminated, and both outlive the call.
        match unsafe { cust_raw::cuModuleGetFunction(&mut function, self.raw, name.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => Ok(None),
            answer => check("cuModuleGetFunction", answer).map(|()| Some(Function(function))),
        }
    }

    /// Blocks of `threads` threads of one of this module's functions that fit a multiprocessor at once. Asking makes
    /// a driver that loads lazily load the function.
    pub(crate) fn occupancy(&self, function: Function, threads: u32) -> Result<u32, DriverError> {
        let _current = self.context.enter()?;
        let mut blocks = 0;
        // SAFETY: `blocks` outlives the call; `self` keeps the function loaded.
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", unsafe {
            cust_raw::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function.0, threads as i32, 0)
        })?;
        Ok(blocks.max(0) as u32)
    }
}

impl Function {
    /// Launches the function with one parameter.
    ///
    /// # Safety
    ///
    /// The function's module is loaded; `T` is its only parameter, and what the parameter leads to is valid until the
    /// kernel has ended; `stream` is a stream of the module's context.
    pub(crate) unsafe fn launch<T>(
        self,
        blocks: u32,
        threads: u32,
        stream: CUstream,
        parameter: &T,
    ) -> CUresult {
        let mut parameters = [std::ptr::from_ref(parameter).cast_mut().cast::<c_void>()];
        // SAFETY: the driver reads the parameter, as long as the function declares it, before it returns; the caller
        // vouches for the rest.
        unsafe {
            cust_raw::cuLaunchKernel(
                self.0,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let unload = || {
            let _current = self.context.enter()?;
            // SAFETY: whoever drops the module sees to it that none of its kernels runs or will be launched.
            check("cuModuleUnload", unsafe { cust_raw::cuModuleUnload(self.raw) })
        };
        log_failure(unload());
    }
}
