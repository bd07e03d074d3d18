//! Modules, functions, occupancy and launches.

use std::ffi::{CStr, c_char, c_void};

use meshreduce_emulator_node::driver::{
    Error, FunctionAttribute, Handle, LaunchConfig, LoadError, Parameters, Result, driver,
};

use crate::{
    abi::{Out, Text, exports},
    missing,
};

/// `CUjit_option` numbers.
const WALL_TIME: u32 = 2;
const INFO_LOG: u32 = 3;
const INFO_LOG_SIZE: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_LOG_SIZE: u32 = 6;
const LOG_VERBOSE: u32 = 12;

/// The `extra` array of `cuLaunchKernel`.
const PARAM_END: usize = 0;
const PARAM_BUFFER_POINTER: usize = 1;
const PARAM_BUFFER_SIZE: usize = 2;

/// `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfigEx {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: Handle,
    attributes: *const LaunchAttribute,
    attribute_count: u32,
}

/// `CUlaunchAttribute`.
#[repr(C)]
struct LaunchAttribute {
    id: u32,
    padding: [u8; 4],
    value: [u64; 8],
}

/// `CU_LAUNCH_ATTRIBUTE_IGNORE`.
const IGNORE: u32 = 0;

type BlockSizeToShared = extern "C" fn(i32) -> usize;

fn image<'a>(image: *const c_void) -> Result<&'a [u8]> {
    if image.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the C API's contract: an image is PTX text that ends with a zero byte, or a binary, of which we look at
    // the magic number: binaries with one of those contain a zero byte soon after it.
    Ok(unsafe { CStr::from_ptr(image.cast()) }.to_bytes())
}

/// Loads an image and reports a refusal on stderr, for callers that gave no buffer for it.
fn load(module: Out<Handle>, image: &[u8]) -> Result<()> {
    let module = module.require()?;
    let handle = driver()?.module_load(image).map_err(|LoadError { error, log }| {
        eprintln!("{log}");
        error
    })?;
    module.set(handle)
}

/// The buffers that the caller gave for logs.
struct Logs {
    error: Log,
    info: Log,
    /// The information says what each kernel needs.
    verbose: bool,
    /// Where the milliseconds go that loading took.
    wall_time: Option<*mut *mut c_void>,
}

#[derive(Default)]
struct Log {
    buffer: Option<*mut c_char>,
    /// Where the size came from and the filled size goes.
    size: Option<(*mut *mut c_void, usize)>,
}

impl Logs {
    fn new(count: u32, options: *const u32, values: *mut *mut c_void) -> Result<Self> {
        let mut logs = Logs { error: Log::default(), info: Log::default(), verbose: false, wall_time: None };
        if count > 0 && (options.is_null() || values.is_null()) {
            return Err(Error::InvalidValue);
        }
        for index in 0..count as usize {
            // SAFETY: the C API's contract: both arrays have `count` elements.
            let (option, slot) = unsafe { (*options.add(index), values.add(index)) };
            // SAFETY: as above.
            let value = unsafe { *slot };
            match option {
                INFO_LOG => logs.info.buffer = Some(value.cast()),
                ERROR_LOG => logs.error.buffer = Some(value.cast()),
                // The C API passes 32-bit values in the low half of a pointer.
                INFO_LOG_SIZE => logs.info.size = Some((slot, value as usize as u32 as usize)),
                ERROR_LOG_SIZE => logs.error.size = Some((slot, value as usize as u32 as usize)),
                LOG_VERBOSE => logs.verbose = value as usize as u32 != 0,
                WALL_TIME => logs.wall_time = Some(slot),
                // Everything else tunes a compiler that is not there.
                _ => {}
            }
        }
        Ok(logs)
    }
}

impl Logs {
    fn set_wall_time(&self, milliseconds: f32) {
        if let Some(slot) = self.wall_time {
            // SAFETY: an element of the array of values, by the C API's contract; it takes a `float` in the low half.
            unsafe { slot.cast::<f32>().write(milliseconds) };
        }
    }
}

impl Log {
    fn write(&self, text: &str) -> bool {
        let (Some(buffer), Some((slot, size))) = (self.buffer, self.size) else { return false };
        if buffer.is_null() || size == 0 {
            return false;
        }
        let taken = text.len().min(size - 1);
        // SAFETY: the C API's contract: the buffer has `size` bytes, of which `taken` + 1 are at most all; the slot is
        // an element of the array of values.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), taken);
            buffer.add(taken).write(0);
            *slot = taken as *mut c_void;
        }
        true
    }
}

fn parameters(pointers: *const *const c_void, extra: *const *const c_void) -> Result<Parameters> {
    if !pointers.is_null() {
        return if extra.is_null() { Ok(Parameters::Pointers(pointers)) } else { Err(Error::InvalidValue) };
    }
    if extra.is_null() {
        return Ok(Parameters::None);
    }
    let (mut buffer, mut size) = (std::ptr::null(), std::ptr::null::<usize>());
    for pair in 0.. {
        // SAFETY: the C API's contract: the array has pairs up to PARAM_END, where we stop.
        let key = unsafe { *extra.add(2 * pair) } as usize;
        if key == PARAM_END {
            break;
        }
        // SAFETY: as above.
        let value = unsafe { *extra.add(2 * pair + 1) };
        match key {
            PARAM_BUFFER_POINTER => buffer = value.cast::<u8>(),
            PARAM_BUFFER_SIZE => size = value.cast(),
            _ => return Err(Error::InvalidValue),
        }
    }
    if buffer.is_null() || size.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the C API's contract: the size is a pointer to a `size_t`.
    Ok(Parameters::Buffer(buffer, unsafe { *size }))
}

fn attribute(number: u32) -> Result<FunctionAttribute> {
    FunctionAttribute::from_number(number).ok_or(Error::InvalidValue)
}

exports! {
    fn cuModuleLoad(module: Out<Handle>, path: Text) {
        let text = std::fs::read(path.get()?).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::FileNotFound,
            _ => Error::OperatingSystem,
        })?;
        load(module, &text)
    }

    fn cuModuleLoadData(module: Out<Handle>, text: *const c_void) {
        load(module, image(text)?)
    }

    fn cuModuleLoadDataEx(
        module: Out<Handle>,
        text: *const c_void,
        count: u32,
        options: *const u32,
        values: *mut *mut c_void,
    ) {
        let module = module.require()?;
        let logs = Logs::new(count, options, values)?;
        let began = std::time::Instant::now();
        let loaded = driver()?.module_load(image(text)?);
        logs.set_wall_time(began.elapsed().as_secs_f32() * 1e3);
        match loaded {
            Ok(handle) => {
                logs.info.write(&if logs.verbose { driver()?.module_summary(handle)? } else { String::new() });
                logs.error.write("");
                module.set(handle)
            }
            Err(LoadError { error, log }) => {
                logs.info.write("");
                if !logs.error.write(&log) {
                    eprintln!("{log}");
                }
                Err(error)
            }
        }
    }

    fn cuModuleLoadFatBinary(module: Out<Handle>, text: *const c_void) {
        load(module, image(text)?)
    }

    fn cuModuleUnload(module: Handle) {
        driver()?.module_unload(module)
    }

    fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Text) {
        let function = function.require()?;
        function.set(driver()?.module_function(module, name.get()?)?)
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) {
        let global = driver()?.module_global(module, name.get()?)?;
        address.set_if_wanted(global.0);
        bytes.set_if_wanted(global.1 as usize);
        Ok(())
    }

    // Modules are loaded eagerly: 1 is CU_MODULE_EAGER_LOADING.
    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        driver()?;
        mode.set(1)
    }

    fn cuFuncGetModule(module: Out<Handle>, function: Handle) {
        module.set(driver()?.function_module(function)?)
    }

    fn cuFuncGetAttribute(value: Out<i32>, number: u32, function: Handle) {
        value.set(driver()?.function_attribute(function, attribute(number)?)?)
    }

    fn cuFuncSetAttribute(function: Handle, number: u32, value: i32) {
        driver()?.set_function_attribute(function, attribute(number)?, value)
    }

    // Preferences about caches and banks, which an emulated device does not have.
    fn cuFuncSetCacheConfig(function: Handle, _config: u32) {
        driver()?.function_module(function).map(|_| ())
    }

    fn cuFuncSetSharedMemConfig(function: Handle, _config: u32) {
        driver()?.function_module(function).map(|_| ())
    }

    // Functions are loaded with their modules: 1 is CU_FUNCTION_LOADING_STATE_LOADED.
    fn cuFuncIsLoaded(state: Out<u32>, function: Handle) {
        driver()?.function_module(function)?;
        state.set(1)
    }

    fn cuFuncLoad(function: Handle) {
        driver()?.function_module(function).map(|_| ())
    }

    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        let kernel = driver()?.function_kernel(function)?;
        let param = kernel.params.get(index).ok_or(Error::InvalidValue)?;
        offset.set(param.offset as usize)?;
        bytes.set_if_wanted(param.bytes as usize);
        Ok(())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>,
        function: Handle,
        block_size: i32,
        dynamic_shared: usize,
    ) {
        blocks.set(driver()?.occupancy(function, block_size, dynamic_shared as u64)?)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>,
        function: Handle,
        block_size: i32,
        dynamic_shared: usize,
        _flags: u32,
    ) {
        blocks.set(driver()?.occupancy(function, block_size, dynamic_shared as u64)?)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>,
        block: Out<i32>,
        function: Handle,
        to_shared: Option<BlockSizeToShared>,
        dynamic_shared: usize,
        limit: i32,
    ) {
        let shared = |size| to_shared.map_or(dynamic_shared, |to_shared| to_shared(size)) as u64;
        let best = driver()?.best_block_size(function, shared, limit)?;
        grid.set(best.0)?;
        block.set(best.1)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>,
        block: Out<i32>,
        function: Handle,
        to_shared: Option<BlockSizeToShared>,
        dynamic_shared: usize,
        limit: i32,
        _flags: u32,
    ) {
        let shared = |size| to_shared.map_or(dynamic_shared, |to_shared| to_shared(size)) as u64;
        let best = driver()?.best_block_size(function, shared, limit)?;
        grid.set(best.0)?;
        block.set(best.1)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: Out<usize>, function: Handle, blocks: i32, block_size: i32) {
        bytes.set(driver()?.available_dynamic_shared(function, blocks, block_size)? as usize)
    }

    fn cuLaunchKernel(
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared: u32,
        stream: Handle,
        pointers: *const *const c_void,
        extra: *const *const c_void,
    ) {
        let config = LaunchConfig {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared,
        };
        let parameters = parameters(pointers, extra)?;
        // SAFETY: the C API's contract: the parameters are as many and as long as the kernel declares.
        unsafe { driver()?.launch(function, config, stream, parameters) }
    }

    // Attributes (clusters, cooperative launches, programmatic dependencies, ...) are not emulated.
    fn cuLaunchKernelEx(
        config: *const LaunchConfigEx,
        function: Handle,
        pointers: *const *const c_void,
        extra: *const *const c_void,
    ) {
        // SAFETY: null or valid for reads, by the C API's contract.
        let config = unsafe { config.as_ref() }.ok_or(Error::InvalidValue)?;
        if config.attribute_count > 0 && config.attributes.is_null() {
            return Err(Error::InvalidValue);
        }
        for index in 0..config.attribute_count as usize {
            // SAFETY: the C API's contract: the array has so many elements.
            if unsafe { (*config.attributes.add(index)).id } != IGNORE {
                missing::report("cuLaunchKernelEx with attributes");
                return Err(Error::NotSupported);
            }
        }
        let shape = LaunchConfig {
            grid: config.grid,
            block: config.block,
            dynamic_shared: config.dynamic_shared,
        };
        let parameters = parameters(pointers, extra)?;
        // SAFETY: the C API's contract: the parameters are as many and as long as the kernel declares.
        unsafe { driver()?.launch(function, shape, config.stream, parameters) }
    }
}
