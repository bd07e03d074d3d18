//! What machine it is: system, driver, devices and their links.

use std::ffi::{CStr, c_char};
use std::fs;

use anyhow::{Context as _, Result, ensure};
use cust::device::{Device, DeviceAttribute};
use meshreduce::topology::Survey;

use super::Common;
use super::part::{Done, Recorder};

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let mut recorder = Recorder::new("machine", "The machine", common.json.clone())?;
    let facts = system();
    print_rows(&facts);
    recorder.table("System", &["what", "value"], facts, false);
    let mut driver_facts = Vec::new();
    recorder.check("a driver", || {
        driver_facts = driver()?;
        Ok(Done::Well(String::new()))
    })?;
    print_rows(&driver_facts);
    recorder.table("Driver", &["what", "value"], driver_facts, false);
    let mut rows = Vec::new();
    recorder.check("devices", || {
        rows = devices()?;
        ensure!(!rows.is_empty(), "the driver has no device");
        Ok(Done::Well(rows.len().to_string()))
    })?;
    print_rows(&rows);
    recorder.table("Devices", &DEVICE_COLUMNS, rows, false);
    let mut links = Vec::new();
    recorder.check("links", || match Survey::of_visible_devices() {
        Ok(survey) => {
            links = link_rows(&survey);
            Ok(Done::Well(match survey.verdict() {
                Ok(topology) => format!("{topology}"),
                Err(reason) => format!("not for a rank a device: {reason}"),
            }))
        }
        // The library can do without where the topology is given.
        Err(error) => Ok(Done::NotApplicable(error.to_string())),
    })?;
    let numbers: Vec<String> = (0..links.len()).map(|index| format!("to {index}")).collect();
    let header: Vec<&str> = ["from"].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    recorder.table("NVLinks, and P for access to the peer's memory", &header, links, false);
    recorder.finish()
}

fn print_rows(rows: &[Vec<String>]) {
    rows.iter().for_each(|row| println!("    {}", row.join("  ")));
}

fn row(what: &str, value: impl Into<String>) -> Vec<String> {
    vec![what.to_owned(), value.into()]
}

fn system() -> Vec<Vec<String>> {
    let line = |file: &str, start: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(start).map(str::to_owned));
        let value =
            line.map(|rest| rest.trim_start_matches([' ', '\t', ':', '=']).trim_matches('"').to_owned());
        value.unwrap_or_else(|| "unknown".to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut rows = vec![
        row("processor", line("/proc/cpuinfo", "model name")),
        row("cores", cores.to_string()),
        row("memory", line("/proc/meminfo", "MemTotal")),
        row("kernel", kernel.trim()),
        row("system", line("/etc/os-release", "PRETTY_NAME")),
        row("glibc", glibc()),
    ];
    for name in ["CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_MODULE_LOADING", "CUDA_VISIBLE_DEVICES"] {
        rows.extend(std::env::var(name).ok().map(|value| row(name, value)));
    }
    rows
}

fn glibc() -> String {
    unsafe extern "C" {
        // gnu/libc-version.h
        safe fn gnu_get_libc_version() -> *const c_char;
    }
    // SAFETY: the function returns a NUL-terminated string of static lifetime.
    unsafe { CStr::from_ptr(gnu_get_libc_version()) }.to_string_lossy().into_owned()
}

fn driver() -> Result<Vec<Vec<String>>> {
    meshreduce_driver_loader::status()?;
    cust::init(cust::CudaFlags::empty()).context("cuInit")?;
    let version = cust::CudaApiVersion::get().context("cuDriverGetVersion")?;
    let emulated = meshreduce_driver_loader::symbol("meshreduceEmulatorInstructions").is_some();
    let kernel_module = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let module = kernel_module.lines().next().unwrap_or("not there (/proc/driver/nvidia/version)");
    Ok(vec![
        row("library", meshreduce_driver_loader::library_path().display().to_string()),
        row("kind", if emulated { "EMULATED NODE: no GPU took part" } else { "the machine's" }),
        row("CUDA version", format!("{}.{}", version.major(), version.minor())),
        row("kernel module", module),
    ])
}

const DEVICE_COLUMNS: [&str; 9] = [
    "device",
    "name",
    "compute capability",
    "multiprocessors",
    "memory MiB",
    "clock MHz",
    "compute mode",
    "kernel time limit",
    "PCI",
];

fn devices() -> Result<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    for (ordinal, device) in Device::devices()?.enumerate() {
        let device = device?;
        let number = |attribute| device.get_attribute(attribute);
        let attribute =
            |which| number(which).map_or_else(|_| "unknown".to_owned(), |value| value.to_string());
        rows.push(vec![
            ordinal.to_string(),
            device.name()?,
            format!(
                "{}.{}",
                attribute(DeviceAttribute::ComputeCapabilityMajor),
                attribute(DeviceAttribute::ComputeCapabilityMinor)
            ),
            attribute(DeviceAttribute::MultiprocessorCount),
            (device.total_memory()? >> 20).to_string(),
            number(DeviceAttribute::ClockRate).map_or(0, |kilohertz| kilohertz / 1000).to_string(),
            match number(DeviceAttribute::ComputeMode) {
                Ok(0) => "default".to_owned(),
                Ok(2) => "prohibited".to_owned(),
                Ok(3) => "exclusive process".to_owned(),
                other => format!("{other:?}"),
            },
            if number(DeviceAttribute::KernelExecTimeout) == Ok(0) { "none" } else { "YES" }.to_owned(),
            format!(
                "{:04x}:{:02x}:{:02x}",
                number(DeviceAttribute::PciDomainId).unwrap_or(0),
                number(DeviceAttribute::PciBusId).unwrap_or(0),
                number(DeviceAttribute::PciDeviceId).unwrap_or(0)
            ),
        ]);
    }
    Ok(rows)
}

fn link_rows(survey: &Survey) -> Vec<Vec<String>> {
    let count = survey.devices().len();
    // A communicator takes at most 8.
    let count = count.min(survey.mesh().size());
    (0..count)
        .map(|from| {
            let cell = |to: usize| {
                if from == to {
                    return "-".to_owned();
                }
                let access = survey.devices()[from].accesses[to];
                format!("{}{}", survey.mesh().links(from, to), if access { " P" } else { "" })
            };
            [from.to_string()].into_iter().chain((0..count).map(cell)).collect()
        })
        .collect()
}
