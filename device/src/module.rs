//! Modules from PTX, and the functions in them.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use meshreduce_driver_loader::sys::{self, CUfunction, CUmodule, CUresult};

use crate::error::{DriverError, check};
use crate::{ContextState, PrimaryContext, RawStream};

/// `CU_JIT_ERROR_LOG_BUFFER` and `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`.
const ERROR_LOG: [i32; 2] = [5, 6];

/// Bytes of the log of the driver's compiler that are kept.
const LOG_BYTES: usize = 8192;

/// A loaded module. Whoever drops it sees to it that none of its kernels runs or will be launched.
#[derive(Debug)]
pub struct Module {
    raw: CUmodule,
    context: Arc<PrimaryContext>,
}

// SAFETY: the driver API takes module handles from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A function of a module that is still loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(CUfunction);

// SAFETY: the driver API takes function handles from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// Compiles and loads PTX. Nothing in it runs before it is launched.
    ///
    /// # Errors
    ///
    /// The driver's answer, and the log of its compiler.
    pub fn load(context: &Arc<PrimaryContext>, ptx: &str) -> Result<Self, (DriverError, String)> {
        // The driver reads up to the first NUL.
        let text: Vec<u8> = ptx.bytes().chain([0]).collect();
        let _entered = context.enter().map_err(|error| (error, String::new()))?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = ERROR_LOG;
        // The driver takes a number in the place of a pointer.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the text is NUL-terminated; options and values are as many as is said; the buffer is as long
        // as is said; all outlive the call.
        let answer = unsafe {
            sys::cuModuleLoadDataEx(
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

    /// The function `name`; `None` if the module has none. It must not be launched once the module is dropped.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn function(&self, name: &str) -> Result<Option<Function>, DriverError> {
        let Ok(name) = CString::new(name) else { return Ok(None) };
        let _entered = self.context.enter()?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the name is NUL-terminated, and both outlive the call.
        match unsafe { sys::cuModuleGetFunction(&mut function, self.raw, name.as_ptr()) } {
            CUresult::NOT_FOUND => Ok(None),
            answer => check("cuModuleGetFunction", answer).map(|()| Some(Function(function))),
        }
    }
}

impl Function {
    /// A function that another crate has found.
    ///
    /// # Safety
    ///
    /// `handle` is a function of a module that is loaded (`CUfunction`), for as long as this value is used.
    pub unsafe fn from_raw<T>(handle: *mut T) -> Self {
        Self(handle.cast::<c_void>())
    }

    /// Blocks of `threads` threads of the function that fit a multiprocessor at once. Asking makes a driver that loads
    /// lazily load the function.
    ///
    /// # Safety
    ///
    /// The function's module is loaded, in `context`.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn occupancy(self, context: &PrimaryContext, threads: u32) -> Result<u32, DriverError> {
        let _entered = context.enter()?;
        let mut blocks = 0;
        // SAFETY: `blocks` outlives the call; the caller vouches for the function.
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, self.0, threads as i32, 0)
        })?;
        Ok(blocks.max(0) as u32)
    }

    /// Launches the function with one parameter.
    ///
    /// # Safety
    ///
    /// The function's module is loaded; `T` is its only parameter, and what the parameter leads to is valid until the
    /// kernel has ended; `stream` is a stream of the module's context, which is current if it is a default stream.
    ///
    /// # Errors
    ///
    /// The driver's.
    #[inline]
    pub unsafe fn launch<T>(
        self,
        blocks: u32,
        threads: u32,
        stream: RawStream,
        parameter: &T,
    ) -> Result<(), DriverError> {
        let mut parameters = [std::ptr::from_ref(parameter).cast_mut().cast::<c_void>()];
        // SAFETY: the driver reads the parameter, as long as the function declares it, before it returns; the caller
        // vouches for the rest.
        check("cuLaunchKernel", unsafe {
            sys::cuLaunchKernel(
                self.0,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.get(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // The driver is asked, also where nothing has failed yet: kernels are shared, and whoever drops them last may not have
        // used the context since it was reset. A module that went with it must not be unloaded from one that came after.
        if self.context.state() != ContextState::Alive {
            return;
        }
        self.context.release(|| {
            // SAFETY: whoever drops the module sees to it that none of its kernels runs or will be launched.
            check("cuModuleUnload", unsafe { sys::cuModuleUnload(self.raw) })
        });
    }
}
