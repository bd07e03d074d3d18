//! Where a listener is found.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_store::identity::{Member, namespace};
use meshreduce_store::sockets::hex;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The layout of an [`Address`].
const VERSION: u16 = 1;

/// Where a process is, as far as links are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) member: Member,
    /// The inode of its network namespace: abstract socket names do not reach further.
    pub(crate) network: u64,
    /// The kernel's boot id, whatever host is played.
    pub(crate) machine: String,
}

impl Place {
    /// This process's.
    pub(crate) fn current() -> Result<Self, Error> {
        let fail = |error: &dyn fmt::Display| {
            let source = std::io::Error::other(error.to_string());
            Error::System { what: "who this process is, is not known".into(), source: source.into() }
        };
        let member = Member::current().map_err(|error| fail(&error))?;
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let machine = machine.map_or_else(|_| member.host.id.clone(), |id| id.trim().to_owned());
        let network = namespace("net").map_err(|error| fail(&error))?;
        Ok(Self { member, network, machine })
    }

    /// Whether both are one process.
    pub(crate) fn is_process_of(&self, other: &Place) -> bool {
        self.machine == other.machine && self.member.process == other.member.process
    }

    /// Whether an abstract socket of one can be reached from the other.
    pub(crate) fn is_near(&self, other: &Place) -> bool {
        self.member.host.is(&other.member.host) && self.network == other.network
    }
}

/// Where a listener is found, and what shows that one was told of it. Plain data: a text without blanks.
///
/// Whoever has it can connect, as one of those who are trusted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Address {
    pub(crate) place: Place,
    /// Of the abstract socket.
    pub(crate) name: [u8; 16],
    /// What the one that connects shows.
    pub(crate) cookie: [u8; 16],
    /// What the one that listens answers.
    pub(crate) answer: [u8; 16],
    /// For those that are elsewhere, the best one first.
    pub(crate) tcp: Vec<SocketAddr>,
}

impl Address {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u16(VERSION);
        self.place.member.write(&mut out);
        out.u64(self.place.network);
        out.text(&self.place.machine);
        [self.name, self.cookie, self.answer].iter().for_each(|bytes| out.raw(bytes));
        out.list(&self.tcp, |out, address| out.text(&address.to_string()));
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let version = from.u16()?;
        if version != VERSION {
            return Err(Malformed::wrong(format!("an address of version {version}, {VERSION} is known")));
        }
        let member = Member::read(&mut from)?;
        let place = Place { member, network: from.u64()?, machine: from.text()? };
        let (name, cookie, answer) = (from.array()?, from.array()?, from.array()?);
        let tcp = from.list(|from| {
            let text = from.text()?;
            text.parse().map_err(|_| Malformed::wrong(format!("{text:?} is no address")))
        })?;
        from.end()?;
        Ok(Self { place, name, cookie, answer, tcp })
    }

    /// The TCP addresses that may lead there from `from`: a loopback leads elsewhere on another machine or in another network
    /// namespace.
    pub(crate) fn tcp_from(&self, from: &Place) -> Vec<SocketAddr> {
        let is_near = self.place.machine == from.machine && self.place.network == from.network;
        self.tcp.iter().filter(|address| is_near || !address.ip().is_loopback()).copied().collect()
    }
}

impl fmt::Debug for Address {
    /// Without what it proves.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("member", &self.place.member).field("tcp", &self.tcp).finish()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.encode()))
    }
}

/// A text that is no address of a listener.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the address of a listener: {0}")]
pub struct NotAnAddress(String);

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let digits = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).ok().filter(|text| !text.starts_with('+'))?;
            u8::from_str_radix(text, 16).ok()
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(digits).collect();
        let bytes = bytes.ok_or_else(|| NotAnAddress("it is not hexadecimal".to_owned()))?;
        Self::decode(&bytes).map_err(|error| NotAnAddress(error.to_string()))
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        let tcp = vec!["10.0.0.1:5".parse().unwrap(), "[::1]:5".parse().unwrap()];
        Address { place: Place::current().unwrap(), name: [1; 16], cookie: [2; 16], answer: [3; 16], tcp }
    }

    #[test]
    fn addresses_are_texts() {
        let address = address();
        let text = address.to_string();
        assert_eq!(text.parse(), Ok(address.clone()));
        assert_eq!(serde_json::from_str::<Address>(&format!("{text:?}")).unwrap(), address);
        for bad in ["", "0", "zz", "ä", &text[2..], &format!("{text}00")] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert!(!format!("{address:?}").contains("cookie"));
    }

    #[test]
    fn loopback_is_for_those_who_share_it() {
        let near = address();
        let mut far = near.place.clone();
        far.network += 1;
        assert_eq!(near.tcp_from(&near.place).len(), 2);
        assert_eq!(near.tcp_from(&far), [near.tcp[0]]);
    }
}
