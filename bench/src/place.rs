//! Where the ranks run, and the environment that must stand before the driver is opened.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result};
use cust::device::Device;
use meshreduce_arguments::bench::Plan;
use meshreduce_checks::{emulated_node::EmulatedNode, probe};
use serde::Serialize;

use crate::cuda;

/// The emulated node where nothing else is asked for or found.
const DEFAULT_NODE: &str = "hgx-h100";

/// What the process's driver says of the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// The driver is the emulated node's: times are the emulator's.
    pub emulated: bool,
    /// The first device's name.
    pub device: String,
    /// The number of devices.
    pub devices: usize,
    /// The driver's CUDA version, such as 12.9.
    pub cuda: String,
    /// The driver library.
    pub driver: String,
}

/// The variables to be set for this plan, in a process that has no driver open.
///
/// # Errors
/// If the emulated node is wanted and not built, or the machine's devices cannot be asked for.
pub fn environment(plan: &Plan) -> Result<Vec<(&'static str, Option<OsString>)>> {
    let given = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let mut variables: Vec<(&'static str, Option<OsString>)> = Vec::new();
    let mut unless_given = |name: &'static str, value: &str| {
        if !given(name) {
            variables.push((name, Some(value.into())));
        }
    };
    // A kernel that is loaded lazily would be loaded behind a spinning one, and wait for it.
    unless_given("CUDA_MODULE_LOADING", "EAGER");
    // Streams that share a hardware queue wait for each other; every rank on a device needs its own.
    unless_given("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    let emulated = |name: &str| -> Result<Vec<_>> {
        let environment = EmulatedNode::new(name)?.environment();
        Ok(environment.into_iter().map(|(name, value)| (name, Some(value))).collect())
    };
    match plan.node.as_deref() {
        Some("real") => variables.push(("MESHREDUCE_DRIVER", None)),
        Some(node) => variables.extend(emulated(node)?),
        None if given("MESHREDUCE_DRIVER") => {}
        None => {
            let needed = if plan.shared_device { 1 } else { 2 };
            if probe::devices_of_machine()?.names.len() < needed {
                variables.extend(emulated(DEFAULT_NODE)?);
            }
        }
    }
    Ok(variables)
}

/// Sets (or removes) variables of this process.
///
/// # Safety
/// No other thread runs.
pub unsafe fn settle<'a>(variables: impl IntoIterator<Item = (&'a str, Option<&'a OsStr>)>) {
    for (name, value) in variables {
        // SAFETY: no other thread runs, so nobody reads the environment meanwhile.
        unsafe {
            match value {
                Some(value) => std::env::set_var(name, value),
                None => std::env::remove_var(name),
            }
        }
    }
}

impl Place {
    /// Opens the driver and asks it.
    ///
    /// # Errors
    /// If there is no driver, or no device.
    pub fn look() -> Result<Self> {
        cuda::initialise()?;
        let first = Device::get_device(0).context("there is no GPU")?;
        let version = cust::CudaApiVersion::get()?;
        Ok(Self {
            emulated: meshreduce_driver_loader::symbol("meshreduceEmulatorCalls").is_some(),
            device: first.name()?,
            devices: cuda::devices()?,
            cuda: format!("{}.{}", version.major(), version.minor()),
            driver: meshreduce_driver_loader::library_path().display().to_string(),
        })
    }
}
