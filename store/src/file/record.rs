//! What the files of a store are called and what is in them.
//!
//! A name is for people: the key where it can be one, else its beginning and a digest. What counts is the key in the record,
//! below its checksum: a file that was moved, or that a file system without capital letters takes for another one, is found.

use sha2::{Digest, Sha256};

use crate::codec::{self, Malformed, Reader, Writer};
use crate::limits::{MAX_KEY, MAX_VALUE};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A value.
    Value,
    /// The values in a queue: one at least, an empty queue has no file.
    Queue,
    /// How many have come to a barrier.
    Barrier,
}

/// Longest key, as it is escaped, that is a name in full. Some file systems (eCryptfs) take names of 143 bytes and no more.
const LONGEST: usize = 128;
/// What is left of a longer one.
const BEGINNING: usize = 64;

impl Kind {
    /// Tells a record of this kind from all else that is sealed.
    const fn code(self) -> u8 {
        match self {
            Self::Value => 240,
            Self::Queue => 241,
            Self::Barrier => 242,
        }
    }

    /// The end of the name. No key has a `~` in it once it is escaped, and no digest these letters.
    const fn ending(self) -> &'static str {
        match self {
            Self::Value => "",
            Self::Queue => "~queue",
            Self::Barrier => "~barrier",
        }
    }

    /// The most bytes that a file of this kind may have: a longer one is not read to its end.
    pub(super) const fn most(self) -> usize {
        match self {
            Self::Value | Self::Barrier => MAX_KEY + MAX_VALUE + 1024,
            Self::Queue => usize::MAX,
        }
    }

    /// What the file of `key` is called.
    pub(super) fn name(self, key: &str) -> String {
        let mut name = escaped(key);
        if name.len() > LONGEST {
            let digest = Sha256::digest(key);
            let beginning = (0..=BEGINNING).rev().find(|&end| !is_within_an_escape(&name, end));
            name.truncate(beginning.unwrap_or(0));
            name.push('~');
            digest[..16].iter().for_each(|byte| name.push_str(&format!("{byte:02x}")));
        }
        name + self.ending()
    }

    /// The record of `key` with what `write` writes.
    pub(super) fn seal(self, key: &str, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        codec::seal(self.code(), |out| {
            out.text(key);
            write(out);
        })
    }

    /// Reads what [`Kind::seal`] wrote for `key`.
    pub(super) fn unseal<'a, T>(
        self,
        key: &str,
        record: &'a [u8],
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        codec::unseal(self.code(), record, |from| match from.text()? {
            found if found == key => read(from),
            found => Err(Malformed::wrong(format!("it is the record of {found:?}"))),
        })
    }

    /// What a file that begins as a record holds, and of which key, whatever it is called. Nothing if it is something else.
    pub(super) fn of(record: &[u8]) -> Option<Result<(Self, String), Malformed>> {
        let code = codec::sealed_as(record)?;
        let Some(kind) =
            [Self::Value, Self::Queue, Self::Barrier].into_iter().find(|kind| kind.code() == code)
        else {
            return Some(Err(Malformed::wrong(format!("it is of kind {code}, which no store writes"))));
        };
        Some(codec::unseal(code, record, |from| {
            let key = from.text()?;
            from.rest();
            Ok((kind, key))
        }))
    }
}

fn escaped(key: &str) -> String {
    let mut name = String::with_capacity(key.len());
    for (index, byte) in key.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte as char),
            b'.' if index > 0 => name.push('.'),
            b'/' => name.push('+'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

fn is_within_an_escape(name: &str, at: usize) -> bool {
    name.as_bytes()[at.saturating_sub(2)..at].contains(&b'%')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const KINDS: [Kind; 3] = [Kind::Value, Kind::Queue, Kind::Barrier];

    /// Keys of any characters, short ones of those that mean something in names, and long ones that begin alike.
    fn key() -> impl Strategy<Value = String> {
        let text = |chars: Vec<char>| chars.into_iter().collect::<String>();
        let plain = prop::collection::vec(any::<char>(), 1..40).prop_map(text);
        let special = prop::sample::select(SPECIAL.to_vec());
        let special = prop::collection::vec(special, 1..8).prop_map(text);
        let long = (40..=MAX_KEY / 4, any::<char>(), 0..9_usize)
            .prop_map(|(length, end, more)| "é/".repeat(length) + &String::from(end).repeat(more));
        prop_oneof![plain, special, long]
    }

    const SPECIAL: [char; 10] = ['a', 'A', '/', '+', '.', '%', '~', '2', '\0', 'é'];

    proptest! {
        #[test]
        fn a_name_is_one_that_every_file_system_takes(key in key()) {
            for kind in KINDS {
                let name = kind.name(&key);
                prop_assert!((1..=LONGEST + 15).contains(&name.len()), "{}", name);
                prop_assert!(!name.starts_with('.'), "{}", name);
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'), "{}", name);
            }
        }

        #[test]
        fn keys_that_differ_have_names_that_differ(one in key(), other in key()) {
            let names: HashSet<String> =
                [&one, &other].into_iter().flat_map(|key| KINDS.map(|kind| kind.name(key))).collect();
            prop_assert_eq!(names.len(), if one == other { 3 } else { 6 });
        }

        #[test]
        fn a_record_is_that_of_its_key_and_kind_and_of_no_other(
            key in key(), other in key(), value: Vec<u8>, at: prop::sample::Index, flip in 1..=255_u8,
        ) {
            for kind in KINDS {
                let record = kind.seal(&key, |out| out.bytes(&value));
                let read = |kind: Kind, key: &str, record: &[u8]| {
                    kind.unseal(key, record, |from| from.bytes(MAX_VALUE).map(<[u8]>::to_vec))
                };
                prop_assert_eq!(read(kind, &key, &record), Ok(value.clone()));
                prop_assert_eq!(Kind::of(&record), Some(Ok((kind, key.clone()))));
                let wrong = read(kind, &other, &record).err().map(|problem| problem.to_string());
                prop_assert_eq!(wrong, (key != other).then(|| format!("it is the record of {key:?}")));
                for wrong in KINDS.into_iter().filter(|wrong| *wrong != kind) {
                    prop_assert!(read(wrong, &key, &record).is_err());
                }
                let mut changed = record.clone();
                changed[at.index(record.len())] ^= flip;
                prop_assert!(read(kind, &key, &changed).is_err());
                prop_assert!(!matches!(Kind::of(&changed), Some(Ok(_))));
                prop_assert!(read(kind, &key, &record[..at.index(record.len())]).is_err());
            }
        }
    }

    #[test]
    fn all_short_keys_of_special_characters_have_names_of_their_own() {
        let mut keys = vec![String::new()];
        let mut names = HashSet::new();
        for _ in 0..4 {
            keys = keys.iter().flat_map(|key| SPECIAL.map(|next| format!("{key}{next}"))).collect();
            for kind in KINDS {
                assert!(keys.iter().all(|key| names.insert(kind.name(key))), "{kind:?}");
            }
        }
        assert_eq!(names.len(), 3 * (10 + 100 + 1_000 + 10_000));
    }

    #[test]
    fn names_are_what_people_and_scripts_look_for() {
        assert_eq!(Kind::Value.name("roster"), "roster");
        assert_eq!(Kind::Value.name("0123/first/0"), "0123+first+0");
        assert_eq!(Kind::Value.name(".a.b %"), "%2ea.b%20%25");
        assert_eq!(Kind::Queue.name("work"), "work~queue");
        assert_eq!(Kind::Value.name(&"x".repeat(128)), "x".repeat(128));
        let long = Kind::Value.name(&"0123/".repeat(26));
        assert_eq!(long, "0123+".repeat(12) + "0123~03a7b23be55cf822d0fc82613a0eb1d3");
        // An escape is not cut in two.
        let long = Kind::Barrier.name(&("x".repeat(62) + &"é".repeat(40)));
        assert!(long.starts_with(&("x".repeat(62) + "~")) && long.ends_with("~barrier"), "{long}");
    }

    #[test]
    fn what_is_sealed_and_no_record_is_told_from_what_is_not_sealed() {
        assert_eq!(Kind::of(b"#!/bin/sh"), None);
        let strange = Kind::of(&codec::seal(1, |out| out.text("k"))).unwrap().unwrap_err();
        assert_eq!(strange.to_string(), "it is of kind 1, which no store writes");
    }
}
