//! Which real devices this machine has.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use cust::device::Device;
use cust_raw::{CUresult, cuDeviceCanAccessPeer};
use serde::{Deserialize, Serialize};

use crate::cluster::this_program;

/// What the machine's own driver says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Devices {
    /// Names of the first devices that all access each other's memory, by CUDA ordinal; empty if there is no driver.
    pub names: Vec<String>,
    /// Why there is none, in the driver's or the loader's words.
    pub reason: Option<String>,
}

/// Asks the driver of this process.
pub fn devices() -> Devices {
    match names() {
        Ok(names) => Devices { names, reason: None },
        Err(error) => Devices { names: Vec::new(), reason: Some(format!("{error:#}")) },
    }
}

fn names() -> Result<Vec<String>> {
    meshreduce_driver_loader::status()?;
    cust::init(cust::CudaFlags::empty())?;
    let devices: Vec<Device> = Device::devices()?.collect::<Result<_, _>>()?;
    // Ranks take the first devices, so what counts is how many of them all reach each other.
    let mut connected = Vec::new();
    for device in devices {
        let mut reaches_all = true;
        for other in &connected {
            reaches_all &= reaches(&device, other)? && reaches(other, &device)?;
        }
        if !reaches_all {
            break;
        }
        connected.push(device);
    }
    connected.iter().map(|device| Ok(device.name()?)).collect()
}

fn reaches(device: &Device, peer: &Device) -> Result<bool> {
    let mut can = 0;
    // SAFETY: the call writes one int to the address and takes the ordinals by value.
    let code = unsafe { cuDeviceCanAccessPeer(&mut can, device.as_raw(), peer.as_raw()) };
    ensure!(code == CUresult::CUDA_SUCCESS, "cuDeviceCanAccessPeer answers {code:?}");
    Ok(can == 1)
}

/// Asks in a process of its own, so that this one keeps no driver open.
///
/// # Errors
/// If the process cannot be started or says nothing that can be read.
pub fn devices_of_machine() -> Result<Devices> {
    let output = Command::new(this_program()?)
        .arg("probe")
        .env_remove("MESHREDUCE_DRIVER")
        .output()
        .context("asking for the machine's devices")?;
    serde_json::from_slice(&output.stdout).context("reading the machine's devices")
}
