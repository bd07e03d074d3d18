//! Which device is meant.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// Where a device sits. Compared as numbers: its spelling differs between the driver and NVML.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// The domain.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on the bus.
    pub device: u8,
    /// The device's function.
    pub function: u8,
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address (domain:bus:device.function)")]
pub struct NotAPciAddress(String);

impl FromStr for PciAddress {
    type Err = NotAPciAddress;

    /// Reads `domain:bus:device[.function]` in hexadecimal, the domain with any number of digits.
    fn from_str(text: &str) -> Result<Self, NotAPciAddress> {
        let parse = || {
            let text = text.trim();
            // Numbers take a plus sign, which no address has.
            let mut parts = Some(text).filter(|text| !text.contains('+'))?.split(':');
            let domain = u32::from_str_radix(parts.next()?, 16).ok()?;
            let bus = u8::from_str_radix(parts.next()?, 16).ok()?;
            let last = parts.next()?;
            let (device, function) = last.split_once('.').unwrap_or((last, "0"));
            let device = u8::from_str_radix(device, 16).ok()?;
            let function = u8::from_str_radix(function, 16).ok()?;
            parts.next().is_none().then_some(Self { domain, bus, device, function })
        };
        parse().ok_or_else(|| NotAPciAddress(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where it sits.
    pub pci: PciAddress,
    /// The driver's UUID of it.
    pub uuid: [u8; 16],
}

impl Device {
    /// The UUID as NVML and CUDA_VISIBLE_DEVICES spell it.
    pub fn uuid_text(&self) -> String {
        let hex: String = self.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pci, self.uuid_text())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pci_addresses_are_numbers_not_spellings() {
        let long: PciAddress = "00000000:1B:00.0".parse().unwrap();
        assert_eq!(long, "0000:1b:00.0".parse().unwrap());
        assert_eq!(long.to_string(), "00000000:1b:00.0");
        assert_ne!(long, "0001:1b:00.0".parse().unwrap());
        for bad in
            ["", "1b:00.0", "0000:1b", "0000:1b:00.0:1", "0000:xx:00.0", "FFFFFFFFF:00:00.0", "0000:+b:00.0"]
        {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn uuids_are_spelled_as_nvml_does() {
        let device = Device { pci: "0:1:0.0".parse().unwrap(), uuid: std::array::from_fn(|i| i as u8 * 17) };
        assert_eq!(device.uuid_text(), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
