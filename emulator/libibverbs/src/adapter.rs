//! A network adapter: its addresses, and its port.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use meshreduce_emulator_node::node::{GidKind, LinkLayer, Nic, NicIdentity, Node};

use crate::abi::*;
use crate::address::PortAddress;
use crate::command::{self, Command};
use crate::event::{AsyncEvent, EventQueue};

/// An adapter of the node, as this process has it.
pub(crate) struct Adapter {
    pub(crate) index: usize,
    pub(crate) nic: Nic,
    pub(crate) identity: NicIdentity,
    active: AtomicBool,
    /// Bytes until its port goes down; negative when it does not.
    until_down: AtomicI64,
    /// Where those who have the device open are told of its port.
    queues: Mutex<Vec<Weak<EventQueue<AsyncEvent>>>>,
}

impl Adapter {
    pub(crate) fn new(node: &Node, instance: &str, index: usize, nic: &Nic) -> Self {
        Self {
            index,
            identity: nic.identity(&node.name, instance, index),
            active: AtomicBool::new(nic.active),
            until_down: AtomicI64::new(-1),
            queues: Mutex::default(),
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
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| queue.strong_count() > 0);
        for queue in queues.iter().filter_map(Weak::upgrade) {
            queue.push(AsyncEvent::of_port(if active { EVENT_PORT_ACTIVE } else { EVENT_PORT_ERR }));
        }
        drop(queues);
        command::tell(Command::FaultsChanged);
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

    /// Somebody has it open, and is to be told there of its port.
    pub(crate) fn opened(&self, queue: &Arc<EventQueue<AsyncEvent>>) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.push(Arc::downgrade(queue));
    }
}
