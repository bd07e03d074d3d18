//! Kinds of devices and devices, as callers name them.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceType {
    /// Host memory.
    Cpu,
    /// Memory of a CUDA device.
    Cuda,
}

impl DeviceType {
    /// Every kind.
    pub const ALL: [DeviceType; 2] = [DeviceType::Cpu, DeviceType::Cuda];

    /// `cpu`, `cuda`.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceType::Cpu => "cpu",
            DeviceType::Cuda => "cuda",
        }
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DeviceType {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let named = Self::ALL.into_iter().find(|value| value.name() == text);
        named.ok_or_else(|| UnknownName::new("a device type (cpu, cuda)", text))
    }
}

/// A device: where memory is. Serialised as its text.
///
/// ```
/// use meshreduce_device::{Device, DeviceType};
///
/// assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
/// assert_eq!(Device::Cuda(3).kind(), DeviceType::Cuda);
/// assert_eq!(Device::Cpu.to_string(), "cpu");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Device {
    /// Host memory.
    Cpu,
    /// The CUDA device with this ordinal, as this process counts them.
    Cuda(u32),
}

impl Device {
    /// Its kind.
    pub const fn kind(self) -> DeviceType {
        match self {
            Device::Cpu => DeviceType::Cpu,
            Device::Cuda(_) => DeviceType::Cuda,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(ordinal) => f.pad(&format!("cuda:{ordinal}")),
        }
    }
}

impl FromStr for Device {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let unknown = || UnknownName::new("a device (cpu, cuda:0)", text);
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::Cpu),
            Some(("cuda", ordinal)) => ordinal.parse().map(Device::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl TryFrom<String> for Device {
    type Error = UnknownName;

    fn try_from(text: String) -> Result<Self, UnknownName> {
        text.parse()
    }
}

/// A word that names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct UnknownName {
    what: &'static str,
    text: String,
}

impl UnknownName {
    /// That `text` is not `what`: "a device (cpu, cuda:0)".
    pub fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_to_its_value() {
        for value in DeviceType::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(7)] {
            assert_eq!(device.to_string().parse(), Ok(device));
            assert_eq!(Device::try_from(String::from(device)), Ok(device));
        }
    }

    #[test]
    fn a_word_that_names_no_device_is_shown() {
        for text in ["", "cuda", "cuda:", "cuda:x", "gpu:0", "cpu:0"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        assert_eq!(
            "gpu".parse::<DeviceType>().unwrap_err().to_string(),
            "\"gpu\" is not a device type (cpu, cuda)"
        );
    }
}
