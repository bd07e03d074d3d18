//! What client and server say to one another: the table in [the module above](super).

use crate::codec::{Malformed, Reader, Writer};
use crate::limits::MAX_VALUE;

/// What a client begins with, behind [`Opcode::Validate`].
pub(super) const MAGIC: u32 = 0x3C85_F7CE;

/// Longest key on the wire, as in c10d.
pub(super) const LONGEST_KEY: usize = 8 << 10;

/// Most members of one list, as in c10d.
pub(super) const MOST_MEMBERS: usize = 128 << 10;

/// Longest request: what is beyond it comes in several, see [`batches`].
pub(super) const LONGEST_REQUEST: usize = 64 << 20;

/// A key that a server of this crate says to have and no client can make, because theirs begin with a slash. A client learns
/// by it that its server has every operation, and wakes nobody for a key that has not been there.
pub(super) const MARK: &[u8] = b"meshreduce/";

/// What stands before the keys of users; c10d's own (`init/`) have none.
pub(crate) const SLASH: &str = "/";

/// [`Opcode::Wait`] and [`Opcode::Barrier`]: they have come. [`Opcode::Check`]: all are there.
pub(super) const YES: u8 = 0;
/// [`Opcode::Check`]: something is missing.
pub(super) const NO: u8 = 1;
/// [`Opcode::CancelWait`]: nothing is waited for any more.
pub(super) const CANCELED: u8 = 1;

/// What a request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Opcode {
    Validate,
    Set,
    CompareSet,
    Get,
    Add,
    Check,
    Wait,
    NumKeys,
    Delete,
    Append,
    MultiGet,
    MultiSet,
    CancelWait,
    Ping,
    QueuePush,
    QueuePop,
    QueueLen,
    ListKeys,
    Barrier,
}

/// How opcodes are numbered: as listed, or as before there was [`Opcode::Validate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Numbering {
    /// By torch since 2.2.
    #[default]
    Validated,
    /// By torch before 2.2: there is no [`Opcode::Validate`], nothing behind [`Opcode::CancelWait`], and the others have the
    /// number before theirs.
    Bare,
}

impl Numbering {
    /// That of a client, by what it sends first; `None` until there is enough of it. [`MAGIC`] is no length of a key.
    pub(super) fn of_client(first: &[u8]) -> Option<Self> {
        match (*first.first()?, first.get(1..5)) {
            (0, None) => None,
            (0, Some(magic)) if magic == MAGIC.to_le_bytes() => Some(Self::Validated),
            _ => Some(Self::Bare),
        }
    }
}

/// How a part of a request is laid out.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// As many bytes.
    Fixed(usize),
    /// Bytes behind their number, at most [`LONGEST_KEY`].
    Key,
    /// Bytes behind their number, at most [`MAX_VALUE`].
    Value,
    /// Members of these fields behind their number, at most [`MOST_MEMBERS`].
    List(&'static [Field]),
}

impl Opcode {
    const ALL: [Self; 19] = [
        Self::Validate,
        Self::Set,
        Self::CompareSet,
        Self::Get,
        Self::Add,
        Self::Check,
        Self::Wait,
        Self::NumKeys,
        Self::Delete,
        Self::Append,
        Self::MultiGet,
        Self::MultiSet,
        Self::CancelWait,
        Self::Ping,
        Self::QueuePush,
        Self::QueuePop,
        Self::QueueLen,
        Self::ListKeys,
        Self::Barrier,
    ];

    pub(super) fn from_byte(byte: u8, numbering: Numbering) -> Result<Self, Malformed> {
        let known = match numbering {
            Numbering::Validated => Self::ALL.get(usize::from(byte)),
            Numbering::Bare => Self::ALL[..=Self::CancelWait as usize].get(usize::from(byte) + 1),
        };
        known.copied().ok_or_else(|| Malformed::wrong(format!("there is no opcode {byte}")))
    }

    fn byte(self, numbering: Numbering) -> u8 {
        match numbering {
            Numbering::Validated => self as u8,
            // Validate, which has none before it, is not sent.
            Numbering::Bare => (self as u8).wrapping_sub(1),
        }
    }

    fn shape(self) -> &'static [Field] {
        use Field::{Fixed, Key, List, Value};
        match self {
            Self::Validate | Self::Ping => &[Fixed(4)],
            Self::Set | Self::Append | Self::QueuePush => &[Key, Value],
            Self::CompareSet => &[Key, Value, Value],
            Self::Get | Self::Delete | Self::QueuePop | Self::QueueLen => &[Key],
            Self::Add | Self::Barrier => &[Key, Fixed(8)],
            Self::Check | Self::Wait | Self::MultiGet => &[List(&[Key])],
            Self::MultiSet => &[List(&[Key, Value])],
            Self::NumKeys | Self::CancelWait | Self::ListKeys => &[],
        }
    }
}

/// Finds where a request ends, in bytes that come piece by piece: each is looked at once, however small the pieces are.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    numbering: Numbering,
    /// What the request is made of; nothing before its first byte.
    shape: Option<&'static [Field]>,
    /// Bytes of the request that have been looked at.
    at: usize,
    /// Bytes that belong to the field before, whatever they are.
    skip: usize,
    /// The next field.
    field: usize,
    /// Members that are to come of the list which this field is, and the field of the next one.
    members: u64,
    member: usize,
}

impl Scanner {
    pub(super) fn new(numbering: Numbering) -> Self {
        Self { numbering, ..Self::default() }
    }

    /// The length of the request with which `bytes` begin, once it is all there. To be called with the same bytes again, and
    /// more behind them, until it is.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for what is no request or beyond a limit, as soon as that can be seen.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        loop {
            let step = self.skip.min(bytes.len() - self.at);
            self.at += step;
            self.skip -= step;
            if self.skip > 0 {
                return Ok(None);
            }
            let Some(shape) = self.shape else {
                let Some(opcode) = bytes.first() else { return Ok(None) };
                self.shape = Some(Opcode::from_byte(*opcode, self.numbering)?.shape());
                self.at = 1;
                continue;
            };
            let Some(field) = shape.get(self.field) else {
                let length = self.at;
                *self = Self::new(self.numbering);
                return Ok(Some(length));
            };
            let inner = match field {
                Field::List(inner) if self.members > 0 => Some(*inner),
                _ => None,
            };
            let field = inner.map_or(*field, |inner| inner[self.member]);
            if !self.enter(field, bytes)? {
                return Ok(None);
            }
            if let Some(inner) = inner {
                self.member = (self.member + 1) % inner.len();
                self.members -= u64::from(self.member == 0);
            }
            // A list is over with its last member, anything else at once.
            self.field += usize::from(self.members == 0);
            if self.at.saturating_add(self.skip) > LONGEST_REQUEST {
                return Err(Malformed::wrong(format!("a request has more than {LONGEST_REQUEST} bytes")));
            }
        }
    }

    /// Reads how long a field is, if that is there already.
    fn enter(&mut self, field: Field, bytes: &[u8]) -> Result<bool, Malformed> {
        let most = match field {
            Field::Fixed(length) => {
                self.skip = length;
                return Ok(true);
            }
            Field::Key => LONGEST_KEY,
            Field::Value => MAX_VALUE,
            Field::List(_) => MOST_MEMBERS,
        };
        let Some(header) = bytes.get(self.at..self.at + 8) else { return Ok(false) };
        let announced = Reader::new(header).u64()?;
        if announced > most as u64 {
            return Err(Malformed::wrong(format!("{announced} are announced, {most} are the most")));
        }
        self.at += 8;
        match field {
            Field::List(_) => (self.members, self.member) = (announced, 0),
            _ => self.skip = announced as usize,
        }
        Ok(true)
    }
}

/// Writes a key as users give it.
fn name(out: &mut Writer, key: &str) {
    out.u64((SLASH.len() + key.len()) as u64);
    out.raw(SLASH.as_bytes());
    out.raw(key.as_bytes());
}

/// The requests of a client, one behind another.
#[derive(Debug, Default)]
pub(super) struct Requests {
    numbering: Numbering,
    out: Writer,
}

impl Requests {
    /// For servers that number opcodes like this.
    pub(super) fn to(numbering: Numbering) -> Self {
        Self { numbering, out: Writer::new() }
    }

    #[cfg(test)]
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.out.into_bytes()
    }

    fn begin(mut self, opcode: Opcode, write: impl FnOnce(&mut Writer)) -> Self {
        self.out.u8(opcode.byte(self.numbering));
        write(&mut self.out);
        self
    }

    pub(super) fn validate(self) -> Self {
        self.begin(Opcode::Validate, |out| out.u32(MAGIC))
    }

    #[cfg(test)]
    pub(super) fn ping(self, nonce: u32) -> Self {
        self.begin(Opcode::Ping, |out| out.u32(nonce))
    }

    /// One without anything: [`Opcode::NumKeys`], [`Opcode::CancelWait`], [`Opcode::ListKeys`].
    pub(super) fn bare(self, opcode: Opcode) -> Self {
        self.begin(opcode, |_| {})
    }

    /// [`Opcode::Get`], [`Opcode::Delete`], [`Opcode::QueuePop`], [`Opcode::QueueLen`].
    pub(super) fn key(self, opcode: Opcode, key: &str) -> Self {
        self.begin(opcode, |out| name(out, key))
    }

    /// [`Opcode::Set`], [`Opcode::Append`], [`Opcode::QueuePush`].
    pub(super) fn value(self, opcode: Opcode, key: &str, value: &[u8]) -> Self {
        self.begin(opcode, |out| {
            name(out, key);
            out.bytes(value);
        })
    }

    /// [`Opcode::Add`], [`Opcode::Barrier`].
    pub(super) fn number(self, opcode: Opcode, key: &str, number: i64) -> Self {
        self.begin(opcode, |out| {
            name(out, key);
            out.i64(number);
        })
    }

    pub(super) fn compare_set(self, key: &str, expected: &[u8], desired: &[u8]) -> Self {
        self.begin(Opcode::CompareSet, |out| {
            name(out, key);
            out.bytes(expected);
            out.bytes(desired);
        })
    }

    /// [`Opcode::Check`], [`Opcode::Wait`], [`Opcode::MultiGet`].
    pub(super) fn keys(self, opcode: Opcode, keys: &[&str]) -> Self {
        self.begin(opcode, |out| out.list(keys, |out, key| name(out, key)))
    }

    pub(super) fn multi_set(self, pairs: &[(&str, &[u8])]) -> Self {
        self.begin(Opcode::MultiSet, |out| {
            out.list(pairs, |out, (key, value)| {
                name(out, key);
                out.bytes(value);
            });
        })
    }

    /// One about [`MARK`]: [`Opcode::Get`], [`Opcode::QueueLen`], [`Opcode::Delete`].
    pub(super) fn mark(self, opcode: Opcode) -> Self {
        self.begin(opcode, |out| out.bytes(MARK))
    }

    pub(super) fn check_mark(self) -> Self {
        self.begin(Opcode::Check, |out| out.list(&[MARK], |out, key| out.bytes(key)))
    }

    pub(super) fn mark_barrier(self) -> Self {
        self.begin(Opcode::Barrier, |out| {
            out.bytes(MARK);
            out.i64(1);
        })
    }
}

/// Divides a list into parts that fit a request each, with room for others beside them.
pub(super) fn batches<T>(items: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    const MOST_BYTES: usize = LONGEST_REQUEST / 4;
    let (mut batches, mut begin, mut size) = (Vec::new(), 0, 0);
    for (at, item) in items.iter().enumerate() {
        let more = bytes(item) + 24;
        if at > begin && (at - begin == MOST_MEMBERS || size + more > MOST_BYTES) {
            batches.push(&items[begin..at]);
            (begin, size) = (at, 0);
        }
        size += more;
    }
    if begin < items.len() {
        batches.push(&items[begin..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = String> {
        ".{1,20}"
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..40)
    }

    fn keys() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(key(), 0..5)
    }

    /// Any request that a client can make.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        use Opcode::*;
        let of = |opcodes: &'static [Opcode]| prop::sample::select(opcodes);
        prop_oneof![
            any::<u32>().prop_map(|nonce| Requests::new().ping(nonce)),
            Just(()).prop_map(|()| Requests::new().validate()),
            of(&[NumKeys, CancelWait, ListKeys]).prop_map(|opcode| Requests::new().bare(opcode)),
            (of(&[Get, Delete, QueuePop, QueueLen]), key())
                .prop_map(|(opcode, key)| Requests::new().key(opcode, &key)),
            (of(&[Set, Append, QueuePush]), key(), value())
                .prop_map(|(opcode, key, value)| Requests::new().value(opcode, &key, &value)),
            (of(&[Add, Barrier]), key(), any::<i64>())
                .prop_map(|(opcode, key, number)| Requests::new().number(opcode, &key, number)),
            (key(), value(), value()).prop_map(|(key, a, b)| Requests::new().compare_set(&key, &a, &b)),
            (of(&[Check, Wait, MultiGet]), keys()).prop_map(|(opcode, keys)| {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                Requests::new().keys(opcode, &keys)
            }),
            prop::collection::vec((key(), value()), 0..5).prop_map(|pairs| {
                let pairs: Vec<(&str, &[u8])> = pairs.iter().map(|(k, v)| (k.as_str(), &v[..])).collect();
                Requests::new().multi_set(&pairs)
            }),
        ]
        .prop_map(Requests::into_bytes)
    }

    proptest! {
        #[test]
        fn requests_end_where_they_end_in_whatever_pieces_they_come(
            requests in prop::collection::vec(request(), 1..6),
            pieces in prop::collection::vec(1..30_usize, 1..20),
        ) {
            let all = requests.concat();
            let (mut scanner, mut found, mut begin, mut end) = (Scanner::default(), Vec::new(), 0, 0);
            for piece in pieces.iter().cycle() {
                end = all.len().min(end + piece);
                while let Some(length) = scanner.scan(&all[begin..end]).unwrap() {
                    found.push(all[begin..begin + length].to_vec());
                    begin += length;
                }
                if end == all.len() {
                    break;
                }
            }
            prop_assert_eq!(found, requests);
        }

        #[test]
        fn noise_is_no_panic(bytes in prop::collection::vec(prop_oneof![0..20_u8, any::<u8>()], 0..60)) {
            let mut scanner = Scanner::default();
            if let Ok(Some(length)) = scanner.scan(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }

        #[test]
        fn batches_are_the_list_and_fit(sizes in prop::collection::vec(0..MAX_VALUE, 0..40)) {
            let batches = batches(&sizes, |size| *size);
            prop_assert_eq!(batches.concat(), sizes.clone());
            for batch in batches {
                prop_assert!(batch.iter().sum::<usize>() + 24 * batch.len() < LONGEST_REQUEST / 2);
            }
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_with_its_announcement() {
        let announced = |opcode: Opcode, numbers: &[u64]| {
            let mut bytes = vec![opcode as u8];
            numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
            Scanner::default().scan(&bytes).map_err(|error| error.to_string())
        };
        assert_eq!(announced(Opcode::Get, &[8192]), Ok(None));
        assert_eq!(announced(Opcode::Get, &[8193]), Err("8193 are announced, 8192 are the most".into()));
        assert_eq!(announced(Opcode::Set, &[0, 8 << 20]), Ok(None));
        assert!(announced(Opcode::Set, &[0, (8 << 20) + 1]).is_err());
        assert!(announced(Opcode::Set, &[u64::MAX]).is_err());
        assert_eq!(announced(Opcode::Wait, &[131_072]), Ok(None));
        assert!(announced(Opcode::Wait, &[131_073]).is_err());
        assert_eq!(Scanner::default().scan(&[19]).unwrap_err().to_string(), "there is no opcode 19");
        assert_eq!(Scanner::default().scan(&[Opcode::NumKeys as u8, 19]), Ok(Some(1)));
    }

    #[test]
    fn a_request_of_many_long_values_is_refused_before_it_is_all_there() {
        let mut bytes = vec![Opcode::MultiSet as u8];
        bytes.extend_from_slice(&100_u64.to_le_bytes());
        let mut scanner = Scanner::default();
        let pair =
            [&0_u64.to_le_bytes()[..], &(MAX_VALUE as u64).to_le_bytes(), &vec![0; MAX_VALUE]].concat();
        let refused = (0..100).find(|_| {
            bytes.extend_from_slice(&pair);
            scanner.scan(&bytes).is_err()
        });
        assert_eq!(refused, Some(7));
    }

    #[test]
    fn a_list_of_most_members_is_one_batch() {
        let items = vec![(); MOST_MEMBERS + 1];
        let sizes: Vec<usize> = batches(&items, |()| 2).iter().map(|batch| batch.len()).collect();
        assert_eq!(sizes, [MOST_MEMBERS, 1]);
    }
}
