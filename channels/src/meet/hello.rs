//! What two sides say of themselves when they have met.

use std::time::Duration;

use meshreduce_device::Device;
use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_store::identity::Member;

use crate::choice::{Offered, Offers};

/// What is said on links, and how. Both sides must have the same.
const VERSION: u16 = 2;
/// Bytes of a descriptor that are believed.
const LONGEST_DESCRIPTOR: usize = 1 << 20;

/// Who a side is, and what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) library: String,
    pub(crate) member: Member,
    /// What the process calls itself.
    pub(crate) name: Option<String>,
    /// How long it takes silence for life.
    pub(crate) silence: Duration,
    /// Random: tells this endpoint's counters from another one's.
    pub(crate) nonce: u64,
    pub(crate) offers: Offers,
}

impl Hello {
    /// For people.
    pub(crate) fn label(&self) -> String {
        let who = format!("process {} on {}", self.member.process.pid, self.member.host.name);
        match &self.name {
            Some(name) => format!("{name} ({who})"),
            None => who,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u16(VERSION);
        out.text(&self.library);
        self.member.write(&mut out);
        out.flag(self.name.is_some());
        out.text(self.name.as_deref().unwrap_or_default());
        out.u64(u64::try_from(self.silence.as_millis()).unwrap_or(u64::MAX));
        out.u64(self.nonce);
        out.list(&self.offers.devices, |out, device| out.text(&device.to_string()));
        out.list(&self.offers.kinds, |out, kind| {
            out.text(&kind.name);
            let descriptors: Vec<_> = kind.descriptors.iter().collect();
            out.list(&descriptors, |out, (device, descriptor)| {
                out.text(&device.to_string());
                out.bytes(descriptor);
            });
        });
        out.list(&self.offers.without, |out, (name, reason)| {
            out.text(name);
            out.text(reason);
        });
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let version = from.u16()?;
        if version != VERSION {
            return Err(Malformed::wrong(format!("it speaks version {version} and not {VERSION}")));
        }
        let library = from.text()?;
        let member = Member::read(&mut from)?;
        let name = from.flag()?;
        let text = from.text()?;
        let name = name.then_some(text);
        let silence = Duration::from_millis(from.u64()?);
        let nonce = from.u64()?;
        let devices = from.list(device)?;
        if devices.is_empty() {
            return Err(Malformed::wrong("it serves no device, not even host memory"));
        }
        let kinds = from.list(|from| {
            let name = from.text()?;
            let descriptors =
                from.list(|from| Ok((device(from)?, from.bytes(LONGEST_DESCRIPTOR)?.to_vec())))?;
            Ok(Offered { name, descriptors: descriptors.into_iter().collect() })
        })?;
        let without = from.list(|from| Ok((from.text()?, from.text()?)))?;
        from.end()?;
        let offers = Offers { devices, kinds, without };
        Ok(Self { library, member, name, silence, nonce, offers })
    }
}

pub(super) fn device(from: &mut Reader<'_>) -> Result<Device, Malformed> {
    from.text()?.parse().map_err(|error: meshreduce_device::UnknownName| Malformed::wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_comes_back_and_another_version_is_named() {
        let kind = Offered { name: "xth".into(), descriptors: [(Device::Cuda(2), vec![1, 2])].into() };
        let offers = Offers {
            devices: vec![Device::Cpu, Device::Cuda(2)],
            kinds: vec![kind],
            without: vec![("gdr".into(), "no NIC".into())],
        };
        let hello = Hello {
            library: "0.1.0".into(),
            member: Member::current().unwrap(),
            name: Some("decode 3".into()),
            silence: Duration::from_secs(30),
            nonce: 5,
            offers,
        };
        let mut bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello.clone()));
        assert!(hello.label().starts_with("decode 3 (process "), "{}", hello.label());
        assert!(Hello::decode(&bytes[..bytes.len() - 1]).is_err());
        let offers = Offers { devices: Vec::new(), ..hello.offers.clone() };
        assert!(Hello::decode(&Hello { offers, ..hello.clone() }.encode()).is_err(), "of no devices");
        bytes[0] = 9;
        assert_eq!(Hello::decode(&bytes).unwrap_err().to_string(), "it speaks version 9 and not 2");
    }
}
