//! By which of its addresses a host is reached.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

/// The environment variable that names the network interface (or several, with commas) for connections between hosts.
pub const SOCKET_IFNAME: &str = "MESHREDUCE_SOCKET_IFNAME";

/// A network interface that was asked for and has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no network interface {name:?} with an address: there are {}", .known.join(", "))]
pub struct NoInterface {
    /// What was asked for.
    pub name: String,
    /// Those that there are.
    pub known: Vec<String>,
}

/// The addresses of this host under which others may reach it, the best first.
///
/// Those of the interfaces that were named; otherwise of all that are up, first the one from which the route to the store's
/// host (`MASTER_ADDR`, as launchers set it) begins. Never what the host's name resolves to. An interface is named by `interface`,
/// else by the variable; several have commas between them.
///
/// ```
/// use meshreduce_store::interface::own_addresses;
///
/// assert!(own_addresses(Some("lo"))?.iter().all(std::net::IpAddr::is_loopback));
/// # Ok::<(), meshreduce_store::interface::NoInterface>(())
/// ```
///
/// # Errors
///
/// [`NoInterface`] that was named.
pub fn own_addresses(interface: Option<&str>) -> Result<Vec<IpAddr>, NoInterface> {
    let mut by_name: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for found in if_addrs::get_if_addrs().unwrap_or_default() {
        let ip = found.ip();
        let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if !is_link_local {
            by_name.entry(found.name).or_default().push(ip);
        }
    }
    let named = |names: &str| {
        let mut addresses = Vec::new();
        for name in names.split(',').map(str::trim) {
            let no = || NoInterface { name: name.to_owned(), known: by_name.keys().cloned().collect() };
            addresses.extend(by_name.get(name).ok_or_else(no)?);
        }
        Ok(addresses)
    };
    let given = std::env::var(SOCKET_IFNAME).ok().filter(|names| !names.trim().is_empty());
    if let Some(names) = interface.or(given.as_deref()) {
        return named(names);
    }
    let mut addresses: Vec<IpAddr> = by_name.into_values().flatten().collect();
    let store = route_to_store();
    addresses.sort_by_key(|ip| (ip.is_loopback(), Some(*ip) != store, ip.is_ipv6()));
    Ok(addresses)
}

/// The address from which packets to the store's host go. (Connecting a datagram socket sends nothing.)
fn route_to_store() -> Option<IpAddr> {
    let host = std::env::var("MASTER_ADDR").ok()?;
    let target = (host.trim(), 9).to_socket_addrs().ok()?.next()?;
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_named_with_those_that_are() {
        let error = own_addresses(Some("nowhere0")).unwrap_err();
        assert!(error.known.iter().any(|name| name == "lo"), "{error}");
        assert!(own_addresses(Some("lo")).unwrap()[0].is_loopback());
        assert!(!own_addresses(None).unwrap().is_empty());
    }
}
