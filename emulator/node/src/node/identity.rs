//! How a device is named: by its place on the PCI bus and by its UUID.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

/// A place on the PCI bus. There are two spellings (a domain of four or of eight digits, letters of either case),
/// so ids are parsed and compared as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PciBusId {
    /// The domain.
    pub domain: u32,
    /// The bus.
    pub bus: u32,
    /// The device.
    pub device: u32,
}

/// A text that is no PCI bus id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a PCI bus id such as `00000000:06:00.0`")]
pub struct PciBusIdError(String);

impl PciBusId {
    /// The id of function 0 of a device.
    pub const fn new(domain: u32, bus: u32, device: u32) -> Self {
        Self { domain, bus, device }
    }

    /// The spelling with a domain of four digits, as the driver gives it: `0000:06:00.0`.
    pub fn short(&self) -> String {
        format!("{:04x}:{:02x}:{:02x}.0", self.domain, self.bus, self.device)
    }
}

/// The spelling with a domain of eight digits, as NVML gives it.
impl fmt::Display for PciBusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}:{:02X}:{:02X}.0", self.domain, self.bus, self.device)
    }
}

impl FromStr for PciBusId {
    type Err = PciBusIdError;

    fn from_str(text: &str) -> Result<Self, PciBusIdError> {
        let field = |text: &str, most_digits: usize| match text.len() {
            n if n >= 1 && n <= most_digits && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u32::from_str_radix(text, 16).ok()
            }
            _ => None,
        };
        let parse = || {
            let (place, function) = text.split_once('.').unwrap_or((text, "0"));
            if function != "0" {
                return None;
            }
            let mut parts = place.rsplitn(3, ':');
            let device = field(parts.next()?, 2)?;
            let bus = field(parts.next()?, 2)?;
            let domain = parts.next().map_or(Some(0), |domain| field(domain, 8))?;
            Some(Self { domain, bus, device })
        };
        parse().ok_or_else(|| PciBusIdError(text.to_owned()))
    }
}

/// The UUID of GPU `index` of instance `instance` of node `node`: the same in every process, and different between
/// nodes, instances and GPUs.
pub fn uuid(node: &str, instance: &str, index: usize) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in [node.as_bytes(), instance.as_bytes(), &(index as u64).to_le_bytes()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash.finalize()[..16]);
    // RFC 9562: version 8 (custom), variant 10.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// `GPU-` and the UUID in its usual spelling.
pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
