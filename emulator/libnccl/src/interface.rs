//! The network interface at which ranks meet, chosen as NCCL chooses it.
//!
//! `NCCL_SOCKET_IFNAME` is a list of prefixes, or with `=` before it of whole names; with `^` before it, of what is not
//! to be taken. Without it: the first interface that is up, those of containers (`docker`) after others and loopback
//! last. `NCCL_SOCKET_FAMILY` may ask for `AF_INET` or `AF_INET6`; without it IPv4 addresses come first. (NCCL's
//! documentation, "Environment variables".)
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::failure::{NcclError, Result};

/// What a variable of the environment says about interfaces.
struct Filter<'a> {
    names: Vec<&'a str>,
    exact: bool,
    excluded: bool,
}

impl<'a> Filter<'a> {
    fn parse(text: &'a str) -> Self {
        let (excluded, text) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let (exact, text) = text.strip_prefix('=').map_or((false, text), |rest| (true, rest));
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        Self { names, exact, excluded }
    }

    fn takes(&self, interface: &str) -> bool {
        let matches = |name: &&str| if self.exact { interface == *name } else { interface.starts_with(name) };
        self.names.iter().any(matches) != self.excluded
    }
}

/// The address at which this process listens.
pub(crate) fn address() -> Result<IpAddr> {
    let wanted = std::env::var("NCCL_SOCKET_IFNAME").unwrap_or_default();
    let family = std::env::var("NCCL_SOCKET_FAMILY").unwrap_or_default();
    let interfaces =
        if_addrs::get_if_addrs().map_err(|error| NcclError::system("listing interfaces", &error))?;
    let found = interfaces.iter().map(|interface| (interface.name.as_str(), interface.ip()));
    choose(found.collect(), &wanted, &family).ok_or_else(|| {
        let what = if wanted.is_empty() {
            String::new()
        } else {
            format!(" that matches NCCL_SOCKET_IFNAME={wanted}")
        };
        NcclError {
            code: crate::failure::Code::InternalError,
            text: format!("Bootstrap : no socket interface found{what}"),
        }
    })
}

fn choose(mut interfaces: Vec<(&str, IpAddr)>, wanted: &str, family: &str) -> Option<IpAddr> {
    // An IPv6 address that holds on one link alone is of no use without the link's number.
    let is_local =
        |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80);
    interfaces.retain(|(_, address)| !is_local(address));
    match family {
        "AF_INET" => interfaces.retain(|(_, address)| address.is_ipv4()),
        "AF_INET6" => interfaces.retain(|(_, address)| address.is_ipv6()),
        _ => interfaces.sort_by_key(|(_, address)| address.is_ipv6()),
    }
    if wanted.is_empty() {
        let rank = |name: &str, address: &IpAddr| (address.is_loopback(), name.starts_with("docker"));
        interfaces.sort_by_key(|(name, address)| rank(name, address));
    } else {
        let filter = Filter::parse(wanted);
        interfaces.retain(|(name, _)| filter.takes(name));
    }
    interfaces.first().map(|(_, address)| *address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: &str, family: &str) -> Option<String> {
        let interfaces = [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("docker0", "172.17.0.1"),
            ("eth0", "fe80::1"),
            ("eth0", "fd00::1"),
            ("eth0", "10.0.0.1"),
            ("eth1", "10.0.1.1"),
        ];
        let interfaces = interfaces.map(|(name, address)| (name, address.parse().unwrap()));
        choose(interfaces.to_vec(), wanted, family).map(|address| address.to_string())
    }

    #[test]
    fn a_list_of_prefixes_names_the_interface() {
        for (wanted, address) in [
            ("lo", Some("127.0.0.1")),
            ("eth", Some("10.0.0.1")),
            ("eth1,lo", Some("127.0.0.1")),
            ("=eth1", Some("10.0.1.1")),
            ("=eth", None),
            ("^lo,docker", Some("10.0.0.1")),
            ("ib", None),
        ] {
            assert_eq!(chosen(wanted, "").as_deref(), address, "{wanted}");
        }
    }

    #[test]
    fn without_a_list_loopback_comes_last_and_ipv4_first() {
        assert_eq!(chosen("", "").as_deref(), Some("10.0.0.1"));
        assert_eq!(chosen("", "AF_INET6").as_deref(), Some("fd00::1"));
    }
}
