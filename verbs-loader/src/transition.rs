//! The way of a queue pair from its making to its use: what each step needs.
//!
//! reset -> [`Init`] -> [`ReadyToReceive`] -> [`ReadyToSend`]. Receives may be posted from *init* on, sends in the last.

use crate::sys::*;
use crate::{Access, Gid, Mtu};

/// To *init*: the pair gets its port, and what peers may do through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Init {
    /// The port; the first is 1.
    pub port: u8,
    /// Index of the partition key; 0 is the default partition's.
    pub partition_index: u16,
    /// What peers may do through this pair: [`Access::REMOTE_WRITE`], [`Access::REMOTE_READ`],
    /// [`Access::REMOTE_ATOMIC`]. A region has to allow it too.
    pub access: Access,
}

impl Init {
    /// Of the default partition.
    pub fn new(port: u8, access: Access) -> Self {
        Self { port, partition_index: 0, access }
    }

    pub(crate) fn raw(&self) -> (ibv_qp_attr, u32) {
        let mut raw = ibv_qp_attr::zeroed();
        raw.qp_state = IBV_QPS_INIT;
        raw.port_num = self.port;
        raw.pkey_index = self.partition_index;
        raw.qp_access_flags = self.access.bits();
        (raw, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS)
    }
}

/// The way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Address {
    /// This side's port.
    pub port: u8,
    /// The peer's LID; 0 on Ethernet.
    pub lid: u16,
    /// The peer's GID, and the index in this side's GID table of the GID to send from. Needed on Ethernet.
    pub gid: Option<(Gid, u8)>,
    /// Most routers on the way. 255, because 1, the default of some, does not cross any.
    pub hop_limit: u8,
    /// Traffic class: of RoCE v2, DSCP in the upper six bits.
    pub traffic_class: u8,
    /// Flow label, 20 bits; of RoCE v2, what spreads connections over paths.
    pub flow_label: u32,
    /// Service level; on Ethernet the priority.
    pub service_level: u8,
}

impl Address {
    /// By GID: on Ethernet, or beyond the subnet. `source_index` is this side's.
    pub fn global(port: u8, source_index: u8, gid: Gid) -> Self {
        Self {
            port,
            lid: 0,
            gid: Some((gid, source_index)),
            hop_limit: 255,
            traffic_class: 0,
            flow_label: 0,
            service_level: 0,
        }
    }

    /// By LID: within an InfiniBand subnet.
    pub fn local(port: u8, lid: u16) -> Self {
        Self { lid, gid: None, ..Self::global(port, 0, Gid([0; 16])) }
    }

    fn raw(&self) -> ibv_ah_attr {
        let (gid, source_index) = self.gid.unwrap_or((Gid([0; 16]), 0));
        ibv_ah_attr {
            grh: ibv_global_route {
                dgid: gid.into(),
                flow_label: self.flow_label,
                sgid_index: source_index,
                hop_limit: self.hop_limit,
                traffic_class: self.traffic_class,
            },
            dlid: self.lid,
            sl: self.service_level,
            src_path_bits: 0,
            static_rate: 0,
            is_global: self.gid.is_some().into(),
            port_num: self.port,
        }
    }
}

/// To *ready to receive*: the pair gets its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadyToReceive {
    /// The way to the peer.
    pub address: Address,
    /// The peer's queue pair number.
    pub destination: u32,
    /// The largest packet on the way: the smaller of both ports' active ones.
    pub path_mtu: Mtu,
    /// The number of the peer's first packet, 24 bits: its [`ReadyToSend::packet_sequence`].
    pub packet_sequence: u32,
    /// Reads of the peer that are served at once. At most the device's `max_incoming_reads`.
    pub incoming_reads: u8,
    /// How long the peer is asked to wait when no receive is posted, a code: 1 is 10 us, 12 is 640 us, 31 is 491 ms,
    /// 0 is 655 ms.
    pub min_rnr_timer: u8,
}

impl ReadyToReceive {
    /// First packet 0, one read at once, RNR timer 12.
    pub fn new(address: Address, destination: u32, path_mtu: Mtu) -> Self {
        Self { address, destination, path_mtu, packet_sequence: 0, incoming_reads: 1, min_rnr_timer: 12 }
    }

    pub(crate) fn raw(&self) -> (ibv_qp_attr, u32) {
        let mut raw = ibv_qp_attr::zeroed();
        raw.qp_state = IBV_QPS_RTR;
        raw.ah_attr = self.address.raw();
        raw.path_mtu = self.path_mtu.code();
        raw.dest_qp_num = self.destination;
        raw.rq_psn = self.packet_sequence;
        raw.max_dest_rd_atomic = self.incoming_reads;
        raw.min_rnr_timer = self.min_rnr_timer;
        let mask = IBV_QP_STATE
            | IBV_QP_AV
            | IBV_QP_PATH_MTU
            | IBV_QP_DEST_QPN
            | IBV_QP_RQ_PSN
            | IBV_QP_MAX_DEST_RD_ATOMIC
            | IBV_QP_MIN_RNR_TIMER;
        (raw, mask)
    }
}

/// To *ready to send*: how patient the pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadyToSend {
    /// How long an acknowledgement may take, a code: 4.096 us times two to its power; 14 is 67 ms, 20 is 4.3 s, 0 is
    /// for ever.
    pub timeout: u8,
    /// How often is tried again after that, 0 to 7. Some devices take 7 for ever.
    pub retries: u8,
    /// How often is tried again when the peer has no receive posted, 0 to 6; 7 is for ever.
    pub rnr_retries: u8,
    /// The number of the first packet, 24 bits: the peer's [`ReadyToReceive::packet_sequence`].
    pub packet_sequence: u32,
    /// Reads of this side that are under way at once. At most the device's `max_outgoing_reads`, and the peer's
    /// [`ReadyToReceive::incoming_reads`].
    pub outgoing_reads: u8,
}

impl Default for ReadyToSend {
    /// Timeout 20 (14, the usual one, has been too short for busy fabrics), 6 retries: half a minute. RNR for ever,
    /// first packet 0, one read at once.
    fn default() -> Self {
        Self { timeout: 20, retries: 6, rnr_retries: 7, packet_sequence: 0, outgoing_reads: 1 }
    }
}

impl ReadyToSend {
    pub(crate) fn raw(&self) -> (ibv_qp_attr, u32) {
        let mut raw = ibv_qp_attr::zeroed();
        raw.qp_state = IBV_QPS_RTS;
        raw.timeout = self.timeout;
        raw.retry_cnt = self.retries;
        raw.rnr_retry = self.rnr_retries;
        raw.sq_psn = self.packet_sequence;
        raw.max_rd_atomic = self.outgoing_reads;
        let mask = IBV_QP_STATE
            | IBV_QP_TIMEOUT
            | IBV_QP_RETRY_CNT
            | IBV_QP_RNR_RETRY
            | IBV_QP_SQ_PSN
            | IBV_QP_MAX_QP_RD_ATOMIC;
        (raw, mask)
    }
}
