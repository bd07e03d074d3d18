//! How payloads are written into the store: framed, versioned, length-checked and checksummed.
//!
//! `MSHR | version u16 | kind u8 | body length u32 | body | first 8 bytes of the sha256 of all before`, little-endian.
#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 4] = b"MSHR";
const VERSION: u16 = 2;
const HEADER: usize = 4 + 2 + 1 + 4;
const CHECKSUM: usize = 8;

/// Something that ranks write into the store.
pub(crate) trait Payload: Sized {
    /// Tells the payloads apart, so that one is not read as another.
    const KIND: u8;

    fn write(&self, out: &mut Writer);
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed>;

    fn to_bytes(&self) -> Vec<u8> {
        let mut body = Writer::default();
        self.write(&mut body);
        let mut frame = Vec::with_capacity(HEADER + body.bytes.len() + CHECKSUM);
        frame.extend_from_slice(MAGIC);
        frame.extend_from_slice(&VERSION.to_le_bytes());
        frame.push(Self::KIND);
        frame.extend_from_slice(&(body.bytes.len() as u32).to_le_bytes());
        frame.extend_from_slice(&body.bytes);
        let checksum = checksum(&frame);
        frame.extend_from_slice(&checksum);
        frame
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let Some(length) = bytes.len().checked_sub(HEADER + CHECKSUM) else {
            return Err(Malformed(format!("{} bytes are shorter than any payload", bytes.len())));
        };
        let (frame, sum) = bytes.split_at(HEADER + length);
        if &frame[..4] != MAGIC {
            return Err(Malformed("it does not begin as a payload does".into()));
        }
        let version = u16::from_le_bytes([frame[4], frame[5]]);
        if version != VERSION {
            return Err(Malformed(format!("its version is {version}, {VERSION} is expected")));
        }
        if frame[7..11] != (length as u32).to_le_bytes() {
            return Err(Malformed(format!("its body has {length} bytes, its header says otherwise")));
        }
        if sum != checksum(frame) {
            return Err(Malformed("wrong checksum".into()));
        }
        if frame[6] != Self::KIND {
            return Err(Malformed(format!(
                "it is a payload of kind {}, {} is expected",
                frame[6],
                Self::KIND
            )));
        }
        let mut reader = Reader { left: &frame[HEADER..] };
        let value = Self::read(&mut reader)?;
        if reader.left.is_empty() {
            Ok(value)
        } else {
            Err(Malformed(format!("{} bytes are left over", reader.left.len())))
        }
    }
}

fn checksum(frame: &[u8]) -> [u8; CHECKSUM] {
    let mut first = [0; CHECKSUM];
    first.copy_from_slice(&Sha256::digest(frame)[..CHECKSUM]);
    first
}

/// What is wrong with a payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) String);

#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn rank(&mut self, rank: usize) {
        self.u32(rank as u32);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.raw(text.as_bytes());
    }
}

pub(crate) struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, left) =
            self.left.split_at_checked(bytes).ok_or_else(|| Malformed("its body ends too early".into()))?;
        self.left = left;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed(format!("{other} is neither yes nor no"))),
        }
    }

    pub(crate) fn rank(&mut self) -> Result<usize, Malformed> {
        self.u32().map(|rank| rank as usize)
    }

    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        String::from_utf8(self.take(length)?.to_vec())
            .map_err(|_| Malformed("a text in it is not UTF-8".into()))
    }

    /// As many items as a count says; the count is not trusted with memory.
    pub(crate) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq)]
    struct Sample(u64, String, Vec<u32>);

    impl Payload for Sample {
        const KIND: u8 = 200;

        fn write(&self, out: &mut Writer) {
            out.u64(self.0);
            out.text(&self.1);
            out.u32(self.2.len() as u32);
            self.2.iter().for_each(|value| out.u32(*value));
        }

        fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
            Ok(Self(from.u64()?, from.text()?, from.list(Reader::u32)?))
        }
    }

    proptest! {
        #[test]
        fn payloads_survive_the_round_trip(
            number: u64,
            text in ".{0,20}",
            list in prop::collection::vec(any::<u32>(), 0..9),
        ) {
            let sample = Sample(number, text, list);
            prop_assert_eq!(Sample::from_bytes(&sample.to_bytes()), Ok(sample));
        }

        #[test]
        fn any_changed_byte_and_any_cut_is_found(text in ".{0,20}", at: prop::sample::Index, flip in 1..=255_u8) {
            let bytes = Sample(7, text, vec![1, 2]).to_bytes();
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= flip;
            prop_assert!(Sample::from_bytes(&changed).is_err());
            prop_assert!(Sample::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
            let mut longer = bytes;
            longer.push(flip);
            prop_assert!(Sample::from_bytes(&longer).is_err());
        }

        #[test]
        fn noise_is_no_payload_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Sample::from_bytes(&bytes).is_err());
        }
    }

    #[test]
    fn one_payload_is_not_read_as_another() {
        struct Other;
        impl Payload for Other {
            const KIND: u8 = 201;
            fn write(&self, _: &mut Writer) {}
            fn read(_: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(Other)
            }
        }
        assert!(Sample::from_bytes(&Other.to_bytes()).unwrap_err().0.contains("kind 201"));
        assert!(Other::from_bytes(&Other.to_bytes()).is_ok());
    }
}
