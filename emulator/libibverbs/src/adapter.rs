//! A network adapter: its addresses, and its port.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use meshreduce_emulator_node::node::{GidKind, LinkLayer, Nic, NicIdentity, Node};

use crate::abi::*;
use crate::context::{AsyncEvent, Context};
use crate::engine::{Command, Engine};

/// How a frame names a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortAddress {
    /// The GID; or the LID in its last two bytes.
    pub(crate) gid: [u8; 16],
    /// A GID's type, or [`PortAddress::LID`].
    pub(crate) kind: u8,
}

impl PortAddress {
    pub(crate) const LID: u8 = 255;

    pub(crate) fn of_lid(lid: u16) -> Self {
        Self { gid: u128::from(lid).to_be_bytes(), kind: Self::LID }
    }

    /// As users write it.
    pub(crate) fn text(&self) -> String {
        Ipv6Addr::from(self.gid).to_string()
    }
}

/// An adapter of the node, as this process has it.
pub(crate) struct Adapter {
    pub(crate) index: usize,
    pub(crate) nic: Nic,
    pub(crate) identity: NicIdentity,
    active: AtomicBool,
    /// Bytes until its port goes down; negative when it does not.
    until_down: AtomicI64,
    contexts: Mutex<Vec<Weak<Context>>>,
}

impl Adapter {
    pub(crate) fn new(node: &Node, instance: &str, index: usize, nic: &Nic) -> Self {
        Self {
            index,
            identity: nic.identity(&node.name, instance, index),
            active: AtomicBool::new(nic.active),
            until_down: AtomicI64::new(-1),
            contexts: Mutex::default(),
            nic: nic.clone(),
        }
    }

    pub(crate) fn is_ethernet(&self) -> bool {
        self.nic.link_layer == LinkLayer::Ethernet
    }

    /// The code of its largest packet.
    pub(crate) fn mtu_code(&self) -> u32 {
        self.nic.mtu.ilog2() - 7
    }

    /// A place of the GID table: the address and the code of its type; `None` where it is empty.
    pub(crate) fn gid(&self, index: usize) -> Option<PortAddress> {
        let entry = self.identity.gids.get(index).filter(|entry| !entry.gid.is_unspecified())?;
        let kind = match entry.kind {
            GidKind::Ib => GID_TYPE_IB,
            GidKind::RoceV1 => GID_TYPE_ROCE_V1,
            GidKind::RoceV2 => GID_TYPE_ROCE_V2,
        };
        Some(PortAddress { gid: entry.gid.octets(), kind: kind as u8 })
    }

    pub(crate) fn lid(&self) -> PortAddress {
        PortAddress::of_lid(self.identity.lid)
    }

    /// Whether this is an address of its port.
    pub(crate) fn has(&self, address: &PortAddress) -> bool {
        let gid = |index| self.gid(index).as_ref() == Some(address);
        (!self.is_ethernet() && self.lid() == *address) || (0..self.identity.gids.len()).any(gid)
    }

    /// What tells its network from others.
    pub(crate) fn fabric(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.nic.fabric.hash(&mut hasher);
        hasher.finish()
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active.load(SeqCst)
    }

    /// Its port goes up or down, and whoever has the device open is told.
    pub(crate) fn set_active(&self, active: bool) {
        self.until_down.store(-1, SeqCst);
        if self.active.swap(active, SeqCst) == active {
            return;
        }
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.retain(|context| context.strong_count() > 0);
        for context in contexts.iter().filter_map(Weak::upgrade) {
            context.events.push(AsyncEvent::Port(if active { EVENT_PORT_ACTIVE } else { EVENT_PORT_ERR }));
        }
        drop(contexts);
        Engine::tell(Command::FaultsChanged);
    }

    /// Its port goes down when it has sent and received that many bytes more.
    pub(crate) fn go_down_after(&self, bytes: u32) {
        self.until_down.store(bytes.into(), SeqCst);
    }

    /// Notes bytes that it sends or receives.
    pub(crate) fn carry(&self, bytes: usize) {
        if self.until_down.load(SeqCst) >= 0
            && self.until_down.fetch_sub(bytes as i64, SeqCst) <= bytes as i64
        {
            self.set_active(false);
        }
    }

    pub(crate) fn opened(&self, context: &Arc<Context>) {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.push(Arc::downgrade(context));
    }
}
