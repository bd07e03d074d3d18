//! Which backend serves which kind of device.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::backend::Registry;
use crate::types::DeviceType;

/// What serves host memory unless a configuration says otherwise.
pub const CPU_DEFAULT: &str = "host";
/// What serves CUDA devices unless a configuration says otherwise.
pub const CUDA_DEFAULT: &str = "mesh";

/// Which backend serves which kind of device, as it is written: nothing (every kind has its default), the name of one backend
/// (it serves all kinds that it can), or pairs, `cpu:host,cuda:nccl` (those kinds and no other). Spaces and case do not matter.
///
/// ```
/// use meshreduce_process_group::BackendConfig;
///
/// let config: BackendConfig = " CUDA:nccl, cpu : host".parse()?;
/// assert_eq!(config.to_string(), "cpu:host,cuda:nccl");
/// # Ok::<(), meshreduce_process_group::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendConfig {
    /// Every kind's default.
    #[default]
    Undefined,
    /// One backend, for what it can serve.
    One(String),
    /// By kind of device, in order, each kind at most once.
    Pairs(Vec<(DeviceType, String)>),
}

/// What is wrong with a configuration or with a backend's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A part that is no pair of a device type and a backend.
    #[error("{part:?} in the configuration {text:?} is no pair such as cpu:host")]
    BadPair {
        /// The part.
        part: String,
        /// All of it.
        text: String,
    },
    /// A device type that is none.
    #[error("{device:?} in the configuration {text:?} is no device type (cpu, cuda)")]
    UnknownDevice {
        /// The word.
        device: String,
        /// All of it.
        text: String,
    },
    /// A device type with two backends.
    #[error("{device} has two backends in the configuration {text:?}")]
    DeviceTwice {
        /// The device type.
        device: DeviceType,
        /// All of it.
        text: String,
    },
    /// A backend that is not there.
    #[error("there is no backend {name:?}: there are {}{}", .known.join(", "), hint(.name))]
    UnknownBackend {
        /// The word.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A backend for devices that it cannot serve.
    #[error("backend {name} cannot serve {device}: it serves {}", kinds(.serves))]
    CannotServe {
        /// The backend.
        name: String,
        /// The device type.
        device: DeviceType,
        /// What it can serve.
        serves: Vec<DeviceType>,
    },
    /// A backend was to be registered under a name that is none.
    #[error("{name:?} is no name for a backend: small letters, digits, _ and -, and no device type")]
    BadName {
        /// The name.
        name: String,
    },
    /// A backend was to be registered under a name that another one has.
    #[error("there is a backend {name} already")]
    NameTaken {
        /// The name.
        name: String,
    },
}

/// What may have been meant by a name that is none here.
fn hint(name: &str) -> &'static str {
    match name {
        "gloo" => " (what gloo is for, host does: cpu:host)",
        "mpi" => " (mpi is there with this crate's feature mpi)",
        "cpu" | "cuda" => " (a kind of device is written with its backend: cpu:host, cuda:mesh)",
        _ => "",
    }
}

fn kinds(kinds: &[DeviceType]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for BackendConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let words = text.to_lowercase();
        let words = words.trim();
        if words.is_empty() {
            return Ok(Self::Undefined);
        }
        if !words.contains([':', ',']) {
            return Ok(Self::One(words.to_owned()));
        }
        let mut pairs: Vec<(DeviceType, String)> = Vec::new();
        for part in words.split(',') {
            let bad = || ConfigError::BadPair { part: part.trim().to_owned(), text: text.to_owned() };
            let (device, backend) = part.split_once(':').ok_or_else(bad)?;
            let (device, backend) = (device.trim(), backend.trim());
            if device.is_empty() || backend.is_empty() || backend.contains(':') {
                return Err(bad());
            }
            let device: DeviceType = device.parse().map_err(|_| ConfigError::UnknownDevice {
                device: device.to_owned(),
                text: text.to_owned(),
            })?;
            if pairs.iter().any(|(one, _)| *one == device) {
                return Err(ConfigError::DeviceTwice { device, text: text.to_owned() });
            }
            pairs.push((device, backend.to_owned()));
        }
        pairs.sort();
        Ok(Self::Pairs(pairs))
    }
}

impl fmt::Display for BackendConfig {
    /// The canonical form: what parses to the same. Undefined is empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undefined => Ok(()),
            Self::One(name) => f.write_str(name),
            Self::Pairs(pairs) => {
                for (at, (device, backend)) in pairs.iter().enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    write!(f, "{comma}{device}:{backend}")?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for BackendConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackendConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl BackendConfig {
    /// The backend of every kind of device, checked against those that there are.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnknownBackend`], [`ConfigError::CannotServe`].
    pub fn resolve(&self, registry: &Registry) -> Result<Vec<(DeviceType, String)>, ConfigError> {
        let pairs = match self {
            Self::Undefined => {
                let defaults = [(DeviceType::Cpu, CPU_DEFAULT), (DeviceType::Cuda, CUDA_DEFAULT)];
                defaults.map(|(device, name)| (device, name.to_owned())).to_vec()
            }
            Self::One(name) => {
                let devices = registry.factory(name)?.devices();
                devices.iter().map(|device| (*device, name.clone())).collect()
            }
            Self::Pairs(pairs) => pairs.clone(),
        };
        for (device, name) in &pairs {
            let serves = registry.factory(name)?.devices();
            if !serves.contains(device) {
                let (name, serves) = (name.clone(), serves.to_vec());
                return Err(ConfigError::CannotServe { name, device: *device, serves });
            }
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests;
