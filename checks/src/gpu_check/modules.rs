//! The driver takes every PTX text: load times, the compiler's log, and what each kernel needs.

use std::ffi::{CString, c_void};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use cust::context::Context;
use cust::device::{Device, DeviceAttribute};
use cust_raw::{CUfunction, CUfunction_attribute as Attribute, CUjit_option, CUmodule, CUresult};
use meshreduce::{ShippedKernels, shipped_kernels};
use meshreduce_wire::{DType, Isa, MAX_THREADS, TextName};

use super::part::Done;
use super::{Common, begin};

/// Bytes of each log that are kept.
const LOG_BYTES: usize = 64 << 10;

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let (mut recorder, place) = begin(common, "modules", "The driver takes every PTX text")?;
    let device = place.devices(1)[0];
    let mut modules = Vec::new();
    let mut functions = Vec::new();
    let mut logs = Vec::new();
    for text in shipped_kernels() {
        let name = text_name(&text);
        recorder.check(&name, || {
            let _context = Context::new(Device::get_device(device)?)?;
            let best = best(device)?;
            if best < text.isa {
                return Ok(Done::NotApplicable(format!("device and driver take PTX ISA {best} at most")));
            }
            let look = Look::at(&text, &mut logs)?;
            modules.push(look.summary(&name));
            functions.extend(look.kernels.iter().map(Kernel::row));
            look.judge()
        })?;
    }
    recorder.table(
        "Load times (first, and again with what the driver has cached) and the most that a kernel of the text needs",
        &["text", "load ms", "again ms", "kernels", "registers", "local bytes", "shared bytes", "blocks per SM"],
        modules,
        false,
    );
    recorder.table(
        "Every kernel",
        &[
            "kernel",
            "registers",
            "local bytes",
            "shared bytes",
            "max threads",
            "blocks per SM",
            "PTX",
            "binary",
        ],
        functions,
        true,
    );
    for (title, log) in logs {
        recorder.log(&title, &log);
    }
    recorder.finish()
}

/// What the driver made of one text.
struct Look {
    first_ms: f64,
    again_ms: f64,
    kernels: Vec<Kernel>,
    /// How many there must be.
    wanted: usize,
    world_size: usize,
}

/// What the driver says of one kernel.
struct Kernel {
    name: String,
    registers: i32,
    local: i32,
    shared: i32,
    max_threads: i32,
    blocks: i32,
    ptx_version: i32,
    binary_version: i32,
}

/// The file of a text, without `.ptx`.
fn text_name(text: &ShippedKernels) -> String {
    TextName { algorithm: text.algorithm, world_size: text.world_size, isa: text.isa }.to_string()
}

/// The latest ISA that a device and the driver take.
pub(super) fn best(device: u32) -> Result<Isa> {
    let device = Device::get_device(device)?;
    let attribute = |attribute| anyhow::Ok(device.get_attribute(attribute)? as u32);
    let capability = (
        attribute(DeviceAttribute::ComputeCapabilityMajor)?,
        attribute(DeviceAttribute::ComputeCapabilityMinor)?,
    );
    Ok(Isa::best(capability, meshreduce_device::driver_version()?.0))
}

/// How many kernels a text must have: one, or sum and max of each type, since avg is a sum and min is a max.
fn wanted(text: &ShippedKernels) -> usize {
    if text.algorithm.has_kernel_per_kind() { 2 * DType::ALL.len() } else { 1 }
}

impl Look {
    fn at(text: &ShippedKernels, logs: &mut Vec<(String, String)>) -> Result<Self> {
        let name = text_name(text);
        let (first, first_ms) = Loaded::new(text.ptx, &name, logs)?;
        let kernels = entries(text.ptx).map(|entry| first.kernel(entry)).collect::<Result<_>>()?;
        drop(first);
        let (_, again_ms) = Loaded::new(text.ptx, &name, &mut Vec::new())?;
        Ok(Self { first_ms, again_ms, kernels, world_size: text.world_size, wanted: wanted(text) })
    }

    fn judge(&self) -> Result<Done> {
        let (found, wanted) = (self.kernels.len(), self.wanted);
        ensure!(found == wanted, "{found} kernels for {} ranks, must be {wanted}", self.world_size);
        for kernel in &self.kernels {
            let Kernel { name, max_threads, blocks, .. } = kernel;
            ensure!(
                *max_threads >= MAX_THREADS as i32 && *blocks >= 1,
                "{name} takes {max_threads} threads a block, {blocks} blocks of {MAX_THREADS} a multiprocessor"
            );
        }
        let spilling = self.kernels.iter().filter(|kernel| kernel.local > 0).count();
        let spills =
            if spilling > 0 { format!(", {spilling} of them use local memory") } else { String::new() };
        Ok(Done::Well(format!("{found} kernels in {:.1} ms{spills}", self.first_ms)))
    }

    fn summary(&self, name: &str) -> Vec<String> {
        let most = |of: fn(&Kernel) -> i32| self.kernels.iter().map(of).max().unwrap_or(0).to_string();
        let fewest = self.kernels.iter().map(|kernel| kernel.blocks).min().unwrap_or(0);
        vec![
            name.to_owned(),
            format!("{:.1}", self.first_ms),
            format!("{:.1}", self.again_ms),
            self.kernels.len().to_string(),
            most(|kernel| kernel.registers),
            most(|kernel| kernel.local),
            most(|kernel| kernel.shared),
            fewest.to_string(),
        ]
    }
}

impl Kernel {
    fn row(&self) -> Vec<String> {
        let numbers = [
            self.registers,
            self.local,
            self.shared,
            self.max_threads,
            self.blocks,
            self.ptx_version,
            self.binary_version,
        ];
        [self.name.clone()].into_iter().chain(numbers.map(|number| number.to_string())).collect()
    }
}

/// The names of the kernels in a text.
fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.split(".entry ").skip(1).filter_map(|rest| rest.split(['(', '\n', ' ']).next())
}

/// A loaded module of the current context.
struct Loaded(CUmodule);

impl Loaded {
    /// Compiles and loads the text; says how many milliseconds it took, and what the compiler said.
    fn new(ptx: &str, name: &str, logs: &mut Vec<(String, String)>) -> Result<(Self, f64)> {
        let text = CString::new(ptx).context("a NUL in the text")?;
        let (mut info, mut error) = (vec![0_u8; LOG_BYTES], vec![0_u8; LOG_BYTES]);
        let mut options = [
            CUjit_option::CU_JIT_INFO_LOG_BUFFER,
            CUjit_option::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
            CUjit_option::CU_JIT_LOG_VERBOSE,
        ];
        // The driver takes numbers in the place of pointers.
        let number = |value: usize| std::ptr::without_provenance_mut::<c_void>(value);
        let mut values = [
            info.as_mut_ptr().cast(),
            number(LOG_BYTES),
            error.as_mut_ptr().cast(),
            number(LOG_BYTES),
            number(1),
        ];
        let mut module = std::ptr::null_mut();
        let began = Instant::now();
        // SAFETY: the text is NUL-terminated; options and values are as many as is said, the buffers as long as is
        // said; all outlive the call.
        let answer = unsafe {
            cust_raw::cuModuleLoadDataEx(
                &mut module,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let milliseconds = began.elapsed().as_secs_f64() * 1e3;
        for (kind, log) in [("information", &info), ("errors", &error)] {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]).into_owned();
            if !log.trim().is_empty() {
                logs.push((format!("{name}: {kind} of the driver's compiler"), log));
            }
        }
        ensure!(answer == CUresult::CUDA_SUCCESS, "cuModuleLoadDataEx answers {answer:?}: see the log");
        Ok((Self(module), milliseconds))
    }

    fn kernel(&self, name: &str) -> Result<Kernel> {
        let mut function = std::ptr::null_mut();
        let text = CString::new(name)?;
        // SAFETY: the module is loaded, the name is NUL-terminated, and the place outlives the call.
        let answer = unsafe { cust_raw::cuModuleGetFunction(&mut function, self.0, text.as_ptr()) };
        ensure!(answer == CUresult::CUDA_SUCCESS, "{name}: cuModuleGetFunction answers {answer:?}");
        let attribute = |which| attribute(function, which).with_context(|| name.to_owned());
        let mut blocks = 0;
        // SAFETY: the function's module is loaded, and the place outlives the call.
        let answer = unsafe {
            let threads = MAX_THREADS as i32;
            cust_raw::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, threads, 0)
        };
        ensure!(answer == CUresult::CUDA_SUCCESS, "{name}: the occupancy is not told: {answer:?}");
        Ok(Kernel {
            name: name.to_owned(),
            registers: attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local: attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared: attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            max_threads: attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            blocks,
            ptx_version: attribute(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?,
            binary_version: attribute(Attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION)?,
        })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: nothing of the module was launched.
        unsafe { cust_raw::cuModuleUnload(self.0) };
    }
}

fn attribute(function: CUfunction, which: Attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: the function's module is loaded, and the place outlives the call.
    match unsafe { cust_raw::cuFuncGetAttribute(&mut value, which, function) } {
        CUresult::CUDA_SUCCESS => Ok(value),
        answer => Err(anyhow!("cuFuncGetAttribute of {which:?} answers {answer:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_text_names_its_kernels() {
        for text in shipped_kernels() {
            let found: Vec<_> = entries(text.ptx).collect();
            assert_eq!(found.len(), wanted(&text), "{found:?}");
            let start = text.algorithm.kernel_name();
            assert!(found.iter().all(|name| name.starts_with(start)), "{found:?}");
        }
    }
}
