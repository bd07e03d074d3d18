//! What another process needs to know of a region, and of a counter.
#![forbid(unsafe_code)]

use std::fmt;

use meshreduce_device::Device;
use meshreduce_store::codec::{Malformed, Reader, Writer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// The version of the layout. A reader of another one refuses it.
const VERSION: u8 = 2;
/// What tells the bytes of a region and of a counter from each other and from anything else.
const REGION: [u8; 3] = *b"MRr";
const COUNTER: [u8; 3] = *b"MRc";
/// Longest name of a kind, and most kinds.
const NAME: usize = u8::MAX as usize;
/// Longest part of a kind.
const PART: usize = u16::MAX as usize;

/// What another process needs to write to a region. Plain data, of some 50 to 200 bytes: to be sent or stored however one likes.
///
/// It says nothing about whether the region is still there: writes to one that is not fail.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RegionDescriptor {
    /// As its owner counts devices.
    pub(crate) device: Device,
    pub(crate) bytes: u64,
    /// By the name of the kind of channel: what the kind needs.
    pub(crate) parts: Vec<(String, Vec<u8>)>,
}

impl RegionDescriptor {
    /// The device that it is on, as the process that owns it counts devices.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Bytes of the region.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The kinds of channels over which it can be written to.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(name, _)| name.as_str())
    }

    /// What the kind named `name` needs.
    pub(crate) fn part(&self, name: &str) -> Option<&[u8]> {
        self.parts.iter().find(|(known, _)| known == name).map(|(_, part)| part.as_slice())
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.raw(&REGION);
        out.u8(VERSION);
        out.u32(ordinal(self.device));
        out.u64(self.bytes);
        out.u8(self.parts.len() as u8);
        for (name, part) in &self.parts {
            out.u8(name.len() as u8);
            out.raw(name.as_bytes());
            out.u16(part.len() as u16);
            out.raw(part);
        }
        out.into_bytes()
    }

    /// Reads what [`RegionDescriptor::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// [`Error::BadDescriptor`] for anything else, and for what another version has written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let read = |from: &mut Reader<'_>| {
            let device = device(from.u32()?);
            let bytes = from.u64()?;
            let count = from.u8()?;
            let mut parts = Vec::new();
            for _ in 0..count {
                let length = from.u8()?;
                let name = String::from_utf8(from.raw(length.into())?.to_vec());
                let length = from.u16()?;
                let part = from.raw(length.into())?.to_vec();
                parts.push((name.map_err(|_| Malformed::wrong("a name is not UTF-8"))?, part));
            }
            Ok(Self { device, bytes, parts })
        };
        framed("a region", REGION, bytes, read)
    }

    /// Of a region with these parts. One with a longer name or part than the layout allows is left out.
    pub(crate) fn new(device: Device, bytes: u64, mut parts: Vec<(String, Vec<u8>)>) -> Self {
        parts.retain(|(name, part)| name.len() <= NAME && part.len() <= PART);
        parts.truncate(NAME);
        Self { device, bytes, parts }
    }
}

/// What another process needs to let a counter of this one go up: plain data, as a [`RegionDescriptor`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CounterDescriptor {
    /// Its endpoint, by its owner's nonce.
    pub(crate) endpoint: u64,
    pub(crate) number: u32,
}

impl CounterDescriptor {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.raw(&COUNTER);
        out.u8(VERSION);
        out.u64(self.endpoint);
        out.u32(self.number);
        out.into_bytes()
    }

    /// Reads what [`CounterDescriptor::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// As [`RegionDescriptor::from_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        framed("a counter", COUNTER, bytes, |from| Ok(Self { endpoint: from.u64()?, number: from.u32()? }))
    }
}

/// Reads what is behind `magic` and the version.
fn framed<T>(
    what: &str,
    magic: [u8; 3],
    bytes: &[u8],
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<T, Error> {
    let mut from = Reader::new(bytes);
    let all = || {
        if from.array()? != magic {
            return Err(Malformed::wrong("it begins otherwise"));
        }
        match from.u8()? {
            VERSION => {}
            found => return Err(Malformed::wrong(format!("its version is {found}, {VERSION} is expected"))),
        }
        let value = read(&mut from)?;
        from.end()?;
        Ok(value)
    };
    all().map_err(|problem| Error::BadDescriptor {
        what: format!("no descriptor of {what}: {problem}").into(),
    })
}

fn ordinal(device: Device) -> u32 {
    match device {
        Device::Cpu => u32::MAX,
        Device::Cuda(ordinal) => ordinal,
    }
}

fn device(ordinal: u32) -> Device {
    if ordinal == u32::MAX { Device::Cpu } else { Device::Cuda(ordinal) }
}

impl fmt::Display for RegionDescriptor {
    /// `4096 bytes on cuda:1 (ipc, gdr)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<&str> = self.kinds().collect();
        let kinds = if kinds.is_empty() { "no kind of channel".to_owned() } else { kinds.join(", ") };
        write!(f, "{} bytes on {} ({kinds})", self.bytes, self.device)
    }
}

impl fmt::Debug for RegionDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionDescriptor({self})")
    }
}

impl fmt::Display for CounterDescriptor {
    /// `counter 1a2b3c4d`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counter {:08x}", self.number)
    }
}

impl fmt::Debug for CounterDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CounterDescriptor({self})")
    }
}

/// Serialised as bytes; formats without bytes write them as a list of numbers.
macro_rules! as_bytes {
    ($($kind:ty)*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_bytes(&self.to_bytes())
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Bytes;
                impl<'de> serde::de::Visitor<'de> for Bytes {
                    type Value = Vec<u8>;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("bytes")
                    }

                    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                        Ok(bytes.to_vec())
                    }

                    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut from: A) -> Result<Vec<u8>, A::Error> {
                        let mut bytes = Vec::new();
                        while let Some(byte) = from.next_element()? {
                            bytes.push(byte);
                        }
                        Ok(bytes)
                    }
                }
                let bytes = from.deserialize_bytes(Bytes)?;
                Self::from_bytes(&bytes).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_bytes!(RegionDescriptor CounterDescriptor);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region() -> RegionDescriptor {
        let parts = vec![("ipc".to_owned(), vec![1; 20]), ("gdr".to_owned(), vec![2; 60])];
        RegionDescriptor::new(Device::Cuda(3), 1 << 40, parts)
    }

    #[test]
    fn descriptors_come_back_from_bytes_and_from_serde() {
        let region = region();
        assert_eq!(RegionDescriptor::from_bytes(&region.to_bytes()).unwrap(), region);
        assert!(region.to_bytes().len() < 120, "{}", region.to_bytes().len());
        let text = serde_json::to_string(&region).unwrap();
        assert_eq!(serde_json::from_str::<RegionDescriptor>(&text).unwrap(), region);
        let host = RegionDescriptor { device: Device::Cpu, ..region };
        assert_eq!(RegionDescriptor::from_bytes(&host.to_bytes()).unwrap(), host);
        let counter = CounterDescriptor { endpoint: 9, number: 7 };
        assert_eq!(CounterDescriptor::from_bytes(&counter.to_bytes()).unwrap(), counter);
        let text = serde_json::to_string(&counter).unwrap();
        assert_eq!(serde_json::from_str::<CounterDescriptor>(&text).unwrap(), counter);
    }

    #[test]
    fn a_descriptor_says_what_it_describes() {
        assert_eq!(region().to_string(), "1099511627776 bytes on cuda:3 (ipc, gdr)");
        assert_eq!((region().part("gdr"), region().part("xth")), (Some(&[2; 60][..]), None));
    }

    #[test]
    fn another_version_is_refused_and_named() {
        let mut bytes = region().to_bytes();
        bytes[3] = 9;
        let error = RegionDescriptor::from_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains("version is 9, 2 is expected"), "{error}");
        let error = RegionDescriptor::from_bytes(&CounterDescriptor { endpoint: 9, number: 1 }.to_bytes())
            .unwrap_err();
        assert!(error.to_string().contains("no descriptor of a region"), "{error}");
    }

    proptest! {
        #[test]
        fn cut_and_random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..100) {
            let mut framed = b"MRr\x02".to_vec();
            framed.extend(bytes);
            // Whatever they are, they are read as themselves or not at all.
            if let Ok(read) = RegionDescriptor::from_bytes(&framed) {
                prop_assert_eq!(read.to_bytes(), framed);
            }
            let whole = region().to_bytes();
            let cut = cut % whole.len();
            prop_assert!(RegionDescriptor::from_bytes(&whole[..cut]).is_err());
        }
    }
}
