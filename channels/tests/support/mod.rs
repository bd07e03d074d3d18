//! Two contexts that have met, and bytes to send.
#![allow(dead_code, clippy::unwrap_used)] // every test file uses a part of it

use std::time::Duration;

use meshreduce_channels::{Context, Endpoint, Links, Options, Registry};

/// Nothing here takes as long.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const LINKS: [(&str, Links); 3] = [
    ("memory", Links { memory: true, unix: false, tcp: false }),
    ("unix", Links { memory: false, unix: true, tcp: false }),
    ("tcp", Links { memory: false, unix: false, tcp: true }),
];

/// One side.
pub(crate) struct Side {
    // Before the context, which waits for the peer to have closed.
    pub(crate) endpoint: Endpoint,
    pub(crate) context: Context,
}

pub(crate) fn registry(kinds: &str) -> Registry {
    let mut registry = Registry::default();
    registry.allow(kinds).unwrap();
    registry
}

pub(crate) fn context(registry: &Registry, links: Links, name: &str) -> Context {
    let options = Options { name: Some(name.to_owned()), links, ..Options::default() };
    Context::with_options(registry, &[], options).unwrap()
}

/// Two contexts of this process that have met.
pub(crate) fn pair_of(registry: &Registry, links: Links) -> (Side, Side) {
    pair_with(registry, registry, links)
}

pub(crate) fn pair_with(one: &Registry, other: &Registry, links: Links) -> (Side, Side) {
    let (one, other) = (context(one, links, "one"), context(other, links, "other"));
    let listener = one.listener().unwrap();
    let (listening, connecting) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| other.connect_to(listener.address(), SOON).unwrap());
        (listener.accept(SOON).unwrap(), connecting.join().unwrap())
    });
    (Side { context: one, endpoint: listening }, Side { context: other, endpoint: connecting })
}

/// Every kind over every link that it can have.
pub(crate) fn every() -> Vec<(&'static str, &'static str, Links)> {
    let basic = LINKS.map(|(name, links)| ("basic", name, links));
    let xth = LINKS.map(|(name, links)| ("xth", name, links));
    basic.into_iter().chain(xth).collect()
}

pub(crate) fn pair(links: Links) -> (Side, Side) {
    pair_of(&registry("basic"), links)
}

/// Bytes that differ from message to message and from place to place.
pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut all = Vec::with_capacity(length + 8);
    while all.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(length);
    all
}

/// The port on which this process listens.
pub(crate) fn listening_port() -> u16 {
    let own: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.to_str()?.to_owned()))
        .collect();
    for table in ["/proc/self/net/tcp6", "/proc/self/net/tcp"] {
        for line in std::fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let is_listening = fields[3] == "0A";
            if is_listening && own.contains(&format!("socket:[{}]", fields[9])) {
                let port = fields[1].rsplit_once(':').unwrap().1;
                return u16::from_str_radix(port, 16).unwrap();
            }
        }
    }
    panic!("nobody listens");
}
