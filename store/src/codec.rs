//! How everything that ranks write for one another is laid out in bytes: messages of the TCP store, records of the file
//! store, payloads of a rendezvous.
//!
//! The parts are those of c10d's wire protocol: integers are little-endian, bytes and texts are their number (u64) and
//! themselves, a list is its number (u64) and its members. What is kept for others to read later is [`seal`]ed:
//!
//! `MSHR | version u16 | kind u8 | length u64 | body | first 8 bytes of the sha256 of all before`

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 4] = b"MSHR";
const HEADER: usize = 4 + 2 + 1 + 8;
const CHECKSUM: usize = 8;

/// The layout of what is sealed: a reader of another version is told so.
pub const VERSION: u16 = 4;

/// What is wrong with bytes that were to be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They end too early.
    #[error("it ends after {found} bytes, {needed} are needed at least")]
    TooShort {
        /// Bytes that are there.
        found: usize,
        /// Bytes that there must be to get on.
        needed: usize,
    },
    /// They say something that cannot be.
    #[error("{0}")]
    Wrong(String),
}

impl Malformed {
    /// That something cannot be.
    pub fn wrong(what: impl Into<String>) -> Self {
        Self::Wrong(what.into())
    }
}

/// Writes parts behind one another.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What has been written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn i64(&mut self, value: i64) {
        self.raw(&value.to_le_bytes());
    }

    /// A rank, or another number below 2^32.
    pub fn rank(&mut self, rank: usize) {
        self.u32(rank as u32);
    }

    /// A byte, 0 or 1.
    pub fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// These bytes, without their number.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// These bytes, behind their number.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.raw(bytes);
    }

    /// A text, behind its number of bytes.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// A list, behind its number of members.
    pub fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) {
        self.u64(items.len() as u64);
        items.iter().for_each(|one| item(self, one));
    }
}

/// Reads what a [`Writer`] wrote.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes have been read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// That nothing is left.
    ///
    /// # Errors
    ///
    /// [`Malformed::Wrong`] if something is.
    pub fn end(&self) -> Result<(), Malformed> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(Malformed::wrong(format!("{left} bytes are left over"))),
        }
    }

    /// All that has not been read.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    /// As many bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed::TooShort`] if they are not there; as every method here.
    pub fn raw(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let needed = self.at.saturating_add(bytes);
        match self.bytes.get(self.at..needed) {
            Some(taken) => {
                self.at = needed;
                Ok(taken)
            }
            None => Err(Malformed::TooShort { found: self.bytes.len(), needed }),
        }
    }

    /// As many bytes as the type says.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// Eight bytes.
    pub fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_le_bytes)
    }

    /// A rank.
    pub fn rank(&mut self) -> Result<usize, Malformed> {
        self.u32().map(|rank| rank as usize)
    }

    /// A byte, 0 or 1.
    pub fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed::wrong(format!("{other} is neither yes nor no"))),
        }
    }

    /// Bytes behind their number, of which there may be `most`.
    pub fn bytes(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let length = self.u64()?;
        match usize::try_from(length) {
            Ok(length) if length <= most => self.raw(length),
            _ => Err(Malformed::wrong(format!("{length} bytes are announced, {most} are the most"))),
        }
    }

    /// A text behind its number of bytes.
    pub fn text(&mut self) -> Result<String, Malformed> {
        let bytes = self.bytes(usize::MAX)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::wrong("a text in it is not UTF-8"))
    }

    /// As many members as a number says, which is not trusted with memory.
    pub fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u64()?;
        let mut items = Vec::new();
        for _ in 0..count {
            // Members that take no bytes would let a number of eight bytes ask for any amount of memory.
            let before = self.at;
            items.push(item(self)?);
            debug_assert!(self.at > before, "a member of a list takes bytes");
        }
        Ok(items)
    }
}

fn checksum(frame: &[u8]) -> [u8; CHECKSUM] {
    let mut first = [0; CHECKSUM];
    first.copy_from_slice(&Sha256::digest(frame)[..CHECKSUM]);
    first
}

/// Frames what `write` writes, so that [`unseal`] finds whether it is whole, of this version and of this kind.
pub fn seal(kind: u8, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut frame = Writer::new();
    frame.raw(MAGIC);
    frame.u16(VERSION);
    frame.u8(kind);
    frame.u64(0);
    write(&mut frame);
    let mut bytes = frame.into_bytes();
    let length = (bytes.len() - HEADER) as u64;
    bytes[HEADER - 8..HEADER].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

/// As many bytes as [`sealed_as`] needs.
pub const TELLING: usize = 7;

/// What kind `bytes` say they were [`seal`]ed as, if they begin as what is sealed.
pub fn sealed_as(bytes: &[u8]) -> Option<u8> {
    bytes.strip_prefix(MAGIC)?.get(2).copied()
}

/// Reads what [`seal`] framed as `kind`.
///
/// # Errors
///
/// [`Malformed`] if it is cut, changed, of another version or kind, or not what `read` expects.
pub fn unseal<'a, T>(
    kind: u8,
    bytes: &'a [u8],
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<T, Malformed> {
    let Some(length) = bytes.len().checked_sub(HEADER + CHECKSUM) else {
        return Err(Malformed::TooShort { found: bytes.len(), needed: HEADER + CHECKSUM });
    };
    let (frame, sum) = bytes.split_at(HEADER + length);
    let mut header = Reader::new(frame);
    if header.raw(MAGIC.len())? != MAGIC {
        return Err(Malformed::wrong("it does not begin as a sealed text does"));
    }
    let version = header.u16()?;
    if version != VERSION {
        return Err(Malformed::wrong(format!("its version is {version}, {VERSION} is expected")));
    }
    let found = header.u8()?;
    if header.u64()? != length as u64 {
        return Err(Malformed::wrong(format!("its body has {length} bytes, its header says otherwise")));
    }
    if sum != checksum(frame) {
        return Err(Malformed::wrong("wrong checksum"));
    }
    if found != kind {
        return Err(Malformed::wrong(format!("it is of kind {found}, {kind} is expected")));
    }
    let mut body = Reader::new(&frame[HEADER..]);
    let value = read(&mut body)?;
    body.end()?;
    Ok(value)
}

/// Something that ranks write into the store for one another.
pub trait Payload: Sized {
    /// Tells the payloads apart, so that one is not read as another.
    const KIND: u8;

    /// Writes what [`Payload::read`] reads.
    fn write(&self, out: &mut Writer);

    /// Reads what [`Payload::write`] wrote.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is something else.
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// The payload, [`seal`]ed.
    fn to_bytes(&self) -> Vec<u8> {
        seal(Self::KIND, |out| self.write(out))
    }

    /// Reads what [`Payload::to_bytes`] gave.
    ///
    /// # Errors
    ///
    /// As [`unseal`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        unseal(Self::KIND, bytes, |from| Self::read(from))
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
            out.list(&self.2, |out, value| out.u32(*value));
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
        fn any_changed_bit_and_any_cut_is_found(text in ".{0,20}", at: prop::sample::Index, flip in 1..=255_u8) {
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

        #[test]
        fn parts_are_read_as_they_were_written(a: u8, b: u16, c: u32, d: u64, e: i64, f: bool, g: Vec<u8>) {
            let mut out = Writer::new();
            out.u8(a);
            out.u16(b);
            out.u32(c);
            out.u64(d);
            out.i64(e);
            out.flag(f);
            out.bytes(&g);
            let bytes = out.into_bytes();
            let mut from = Reader::new(&bytes);
            prop_assert_eq!((from.u8(), from.u16(), from.u32(), from.u64()), (Ok(a), Ok(b), Ok(c), Ok(d)));
            prop_assert_eq!((from.i64(), from.flag(), from.bytes(g.len())), (Ok(e), Ok(f), Ok(&g[..])));
            prop_assert_eq!((from.end(), from.position()), (Ok(()), bytes.len()));
            prop_assert_eq!((from.rest(), Reader::new(&bytes).rest()), (&[][..], &bytes[..]));
            prop_assert_eq!(from.u8(), Err(Malformed::TooShort { found: bytes.len(), needed: bytes.len() + 1 }));
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
        assert!(Sample::from_bytes(&Other.to_bytes()).unwrap_err().to_string().contains("kind 201"));
        assert!(Other::from_bytes(&Other.to_bytes()).is_ok());
        assert_eq!(sealed_as(&Other.to_bytes()[..TELLING]), Some(201));
        assert_eq!([&b"MSHR\x03\x00"[..], b"mSHR\x03\x00\xc9", b""].map(sealed_as), [None; 3]);
    }

    #[test]
    fn what_is_announced_is_not_believed() {
        let mut out = Writer::new();
        out.u64(u64::MAX);
        let bytes = out.into_bytes();
        let text = Reader::new(&bytes).bytes(100).unwrap_err().to_string();
        assert_eq!(text, "18446744073709551615 bytes are announced, 100 are the most");
        assert!(Reader::new(&bytes).bytes(usize::MAX).is_err());
        assert!(Reader::new(&bytes).list(Reader::u8).is_err());
    }
}
