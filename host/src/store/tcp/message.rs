//! What client and server say to each other: the table in [the module above](super).

use std::time::Duration;

/// What a client begins with.
pub(super) const GREETING: &[u8; 16] = b"meshreduce store";
/// The version of the protocol, in the greeting and in its answer.
pub(super) const VERSION: u16 = 1;

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Hello {
        version: u16,
    },
    Set {
        key: String,
        value: Vec<u8>,
    },
    /// Waits at most this long for the key.
    Get {
        key: String,
        wait: Duration,
    },
    /// Waits at most this long for all keys.
    Wait {
        keys: Vec<String>,
        wait: Duration,
    },
    CompareSet {
        key: String,
        expected: Option<Vec<u8>>,
        desired: Option<Vec<u8>>,
    },
    Add {
        key: String,
        delta: i64,
    },
    Delete {
        key: String,
    },
}

/// The server's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// To a greeting: the server's version and the number that tells it from a later one at the same address.
    Welcome {
        version: u16,
        instance: u64,
    },
    /// To a greeting: there are too many connections.
    Full,
    Done,
    Value(Option<Vec<u8>>),
    Missing(Vec<String>),
    Number(i64),
    Deleted(bool),
    /// The record under the key is none, or no number.
    Corrupt(String),
}

/// What arrived is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what arrived is no message of a meshreduce store")]
pub(super) struct Malformed;

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.0.push(u8::from(bytes.is_some()));
        bytes.iter().for_each(|bytes| self.bytes(bytes));
    }

    fn texts(&mut self, texts: &[String]) {
        self.0.extend_from_slice(&(texts.len() as u32).to_le_bytes());
        texts.iter().for_each(|text| self.bytes(text.as_bytes()));
    }

    fn milliseconds(&mut self, time: Duration) {
        // Rounded up: a wait may be longer than asked for, never shorter.
        let milliseconds = time.as_nanos().div_ceil(1_000_000).min(u128::from(u32::MAX)) as u32;
        self.0.extend_from_slice(&milliseconds.to_le_bytes());
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, left) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        let count = self.u32()? as usize;
        self.take(count).map(<[u8]>::to_vec)
    }

    fn optional(&mut self) -> Result<Option<Vec<u8>>, Malformed> {
        self.flag()?.then(|| self.bytes()).transpose()
    }

    fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    fn texts(&mut self) -> Result<Vec<String>, Malformed> {
        let count = self.u32()?;
        // Grows as texts are found, so an announced count takes no memory.
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.text()?);
        }
        Ok(texts)
    }

    fn milliseconds(&mut self) -> Result<Duration, Malformed> {
        self.u32().map(|count| Duration::from_millis(count.into()))
    }

    fn all<T>(mut self, read: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<T, Malformed> {
        let message = read(&mut self)?;
        if self.0.is_empty() { Ok(message) } else { Err(Malformed) }
    }
}

impl Request {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Out::default();
        match self {
            Self::Hello { version } => {
                out.0.push(0);
                out.0.extend_from_slice(GREETING);
                out.0.extend_from_slice(&version.to_le_bytes());
            }
            Self::Set { key, value } => {
                out.0.push(1);
                out.bytes(key.as_bytes());
                out.bytes(value);
            }
            Self::Get { key, wait } => {
                out.0.push(2);
                out.bytes(key.as_bytes());
                out.milliseconds(*wait);
            }
            Self::Wait { keys, wait } => {
                out.0.push(3);
                out.texts(keys);
                out.milliseconds(*wait);
            }
            Self::CompareSet { key, expected, desired } => {
                out.0.push(4);
                out.bytes(key.as_bytes());
                out.optional(expected.as_deref());
                out.optional(desired.as_deref());
            }
            Self::Add { key, delta } => {
                out.0.push(5);
                out.bytes(key.as_bytes());
                out.0.extend_from_slice(&delta.to_le_bytes());
            }
            Self::Delete { key } => {
                out.0.push(6);
                out.bytes(key.as_bytes());
            }
        }
        out.0
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        In(bytes).all(|from| {
            Ok(match from.array()? {
                [0] if from.take(GREETING.len())? == GREETING => {
                    Self::Hello { version: from.array().map(u16::from_le_bytes)? }
                }
                [1] => Self::Set { key: from.text()?, value: from.bytes()? },
                [2] => Self::Get { key: from.text()?, wait: from.milliseconds()? },
                [3] => Self::Wait { keys: from.texts()?, wait: from.milliseconds()? },
                [4] => Self::CompareSet {
                    key: from.text()?,
                    expected: from.optional()?,
                    desired: from.optional()?,
                },
                [5] => Self::Add { key: from.text()?, delta: from.array().map(i64::from_le_bytes)? },
                [6] => Self::Delete { key: from.text()? },
                _ => return Err(Malformed),
            })
        })
    }
}

impl Reply {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Out::default();
        match self {
            Self::Welcome { version, instance } => {
                out.0.push(0);
                out.0.extend_from_slice(GREETING);
                out.0.extend_from_slice(&version.to_le_bytes());
                out.0.extend_from_slice(&instance.to_le_bytes());
            }
            Self::Full => out.0.push(1),
            Self::Done => out.0.push(2),
            Self::Value(value) => {
                out.0.push(3);
                out.optional(value.as_deref());
            }
            Self::Missing(keys) => {
                out.0.push(4);
                out.texts(keys);
            }
            Self::Number(number) => {
                out.0.push(5);
                out.0.extend_from_slice(&number.to_le_bytes());
            }
            Self::Deleted(was_there) => out.0.extend_from_slice(&[6, u8::from(*was_there)]),
            Self::Corrupt(problem) => {
                out.0.push(7);
                out.bytes(problem.as_bytes());
            }
        }
        out.0
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        In(bytes).all(|from| {
            Ok(match from.array()? {
                [0] if from.take(GREETING.len())? == GREETING => Self::Welcome {
                    version: from.array().map(u16::from_le_bytes)?,
                    instance: from.array().map(u64::from_le_bytes)?,
                },
                [1] => Self::Full,
                [2] => Self::Done,
                [3] => Self::Value(from.optional()?),
                [4] => Self::Missing(from.texts()?),
                [5] => Self::Number(from.array().map(i64::from_le_bytes)?),
                [6] => Self::Deleted(from.flag()?),
                [7] => Self::Corrupt(from.text()?),
                _ => return Err(Malformed),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..40)
    }

    fn keys() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(".{0,9}", 0..4)
    }

    fn time() -> impl Strategy<Value = Duration> {
        any::<u32>().prop_map(|ms| Duration::from_millis(ms.into()))
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            any::<u16>().prop_map(|version| Request::Hello { version }),
            (".{0,9}", value()).prop_map(|(key, value)| Request::Set { key, value }),
            (".{0,9}", time()).prop_map(|(key, wait)| Request::Get { key, wait }),
            (keys(), time()).prop_map(|(keys, wait)| Request::Wait { keys, wait }),
            (".{0,9}", prop::option::of(value()), prop::option::of(value()))
                .prop_map(|(key, expected, desired)| Request::CompareSet { key, expected, desired }),
            (".{0,9}", any::<i64>()).prop_map(|(key, delta)| Request::Add { key, delta }),
            ".{0,9}".prop_map(|key| Request::Delete { key }),
        ]
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            any::<(u16, u64)>().prop_map(|(version, instance)| Reply::Welcome { version, instance }),
            Just(Reply::Full),
            Just(Reply::Done),
            prop::option::of(value()).prop_map(Reply::Value),
            keys().prop_map(Reply::Missing),
            any::<i64>().prop_map(Reply::Number),
            any::<bool>().prop_map(Reply::Deleted),
            ".{0,9}".prop_map(Reply::Corrupt),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_the_round_trip_and_no_cut_one_is_accepted(
            request in request(),
            reply in reply(),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = request.to_bytes();
            prop_assert_eq!(Request::from_bytes(&bytes), Ok(request));
            prop_assert_eq!(Request::from_bytes(&bytes[..cut.index(bytes.len())]), Err(Malformed));
            let bytes = reply.to_bytes();
            prop_assert_eq!(Reply::from_bytes(&bytes), Ok(reply));
            prop_assert_eq!(Reply::from_bytes(&bytes[..cut.index(bytes.len())]), Err(Malformed));
        }

        #[test]
        fn noise_never_panics_and_what_is_read_is_what_was_written(
            kind in 0..9_u8,
            noise in prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..60),
        ) {
            let bytes = [&[kind][..], &noise].concat();
            if let Ok(request) = Request::from_bytes(&bytes) {
                prop_assert_eq!(request.to_bytes(), bytes.clone());
            }
            if let Ok(reply) = Reply::from_bytes(&bytes) {
                prop_assert_eq!(reply.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn waits_are_rounded_up_to_milliseconds() {
        let wait = |nanos| {
            let request = Request::Get { key: "k".into(), wait: Duration::from_nanos(nanos) };
            match Request::from_bytes(&request.to_bytes()) {
                Ok(Request::Get { wait, .. }) => wait.as_millis(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([0, 1, 1_000_000, 1_000_001].map(wait), [0, 1, 1, 2]);
    }
}
