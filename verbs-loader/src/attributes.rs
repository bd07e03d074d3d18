//! What a device and its ports say of themselves.

use std::ffi::c_char;
use std::fmt;

use crate::sys::*;

/// A path's or port's largest packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Mtu {
    /// 256 bytes.
    Bytes256 = IBV_MTU_256,
    /// 512 bytes.
    Bytes512 = IBV_MTU_512,
    /// 1,024 bytes: what RoCE has over Ethernet with frames of 1,500 bytes.
    Bytes1024 = IBV_MTU_1024,
    /// 2,048 bytes.
    Bytes2048 = IBV_MTU_2048,
    /// 4,096 bytes.
    Bytes4096 = IBV_MTU_4096,
}

impl Mtu {
    /// The code of the wire and of libibverbs, 1 to 5; the smallest for any other number.
    pub fn from_code(code: u32) -> Self {
        match code {
            IBV_MTU_512 => Self::Bytes512,
            IBV_MTU_1024 => Self::Bytes1024,
            IBV_MTU_2048 => Self::Bytes2048,
            IBV_MTU_4096 => Self::Bytes4096,
            _ => Self::Bytes256,
        }
    }

    /// The code of the wire and of libibverbs, 1 to 5.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// Bytes.
    pub fn bytes(self) -> u32 {
        128 << self.code()
    }
}

/// What a port is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortState {
    /// Nobody is at the other end, or it was taken down.
    Down,
    /// The link is up, without a subnet manager.
    Initialize,
    /// Configured, and not yet carrying data.
    Armed,
    /// Carries data.
    Active,
    /// Active, with a failing link.
    ActiveDefer,
    /// Something else: the number.
    Other(u32),
}

impl PortState {
    fn from_code(code: u32) -> Self {
        match code {
            IBV_PORT_DOWN => Self::Down,
            IBV_PORT_INIT => Self::Initialize,
            IBV_PORT_ARMED => Self::Armed,
            IBV_PORT_ACTIVE => Self::Active,
            IBV_PORT_ACTIVE_DEFER => Self::ActiveDefer,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("down"),
            Self::Initialize => f.write_str("initialize"),
            Self::Armed => f.write_str("armed"),
            Self::Active => f.write_str("active"),
            Self::ActiveDefer => f.write_str("active (deferred)"),
            Self::Other(code) => write!(f, "state {code}"),
        }
    }
}

/// What a port's packets travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkLayer {
    /// InfiniBand: peers are addressed by LID.
    InfiniBand,
    /// Ethernet: RoCE or iWARP; peers are addressed by GID.
    Ethernet,
    /// Not told.
    Unspecified,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortAttributes {
    /// What it is doing.
    pub state: PortState,
    /// The largest packet that it can do.
    pub max_mtu: Mtu,
    /// The largest packet that it does.
    pub active_mtu: Mtu,
    /// Places of its GID table, empty ones among them.
    pub gid_table_len: u32,
    /// The longest message, bytes.
    pub max_message_bytes: u32,
    /// Its address in the subnet; 0 on Ethernet.
    pub lid: u16,
    /// What its packets travel on.
    pub link_layer: LinkLayer,
    /// Code of the number of lanes: 1, 2, 4, 8, 16 for 1, 4, 8, 12, 2.
    pub active_width: u8,
    /// Code of the speed of a lane.
    pub active_speed: u8,
}

impl From<&ibv_port_attr> for PortAttributes {
    fn from(raw: &ibv_port_attr) -> Self {
        Self {
            state: PortState::from_code(raw.state),
            max_mtu: Mtu::from_code(raw.max_mtu),
            active_mtu: Mtu::from_code(raw.active_mtu),
            gid_table_len: u32::try_from(raw.gid_tbl_len).unwrap_or(0),
            max_message_bytes: raw.max_msg_sz,
            lid: raw.lid,
            link_layer: match raw.link_layer {
                IBV_LINK_LAYER_INFINIBAND => LinkLayer::InfiniBand,
                IBV_LINK_LAYER_ETHERNET => LinkLayer::Ethernet,
                _ => LinkLayer::Unspecified,
            },
            active_width: raw.active_width,
            active_speed: raw.active_speed,
        }
    }
}

/// A device's identity and limits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceAttributes {
    /// Version of its firmware.
    pub firmware: String,
    /// Its GUID.
    pub node_guid: u64,
    /// The GUID of the board that it is on; the same for all its functions.
    pub system_image_guid: u64,
    /// PCI vendor.
    pub vendor_id: u32,
    /// PCI device.
    pub vendor_part_id: u32,
    /// Longest memory region, bytes.
    pub max_region_bytes: u64,
    /// Page sizes that it can map, a set of powers of two.
    pub page_sizes: u64,
    /// Most queue pairs.
    pub max_queue_pairs: u32,
    /// Most work requests in one queue.
    pub max_work_requests: u32,
    /// Most segments of a work request.
    pub max_segments: u32,
    /// Most completion queues.
    pub max_completion_queues: u32,
    /// Most entries of a completion queue.
    pub max_completions: u32,
    /// Most memory regions.
    pub max_regions: u32,
    /// Most reads and atomics that a queue pair serves at once.
    pub max_incoming_reads: u32,
    /// Most reads and atomics that a queue pair has under way at once.
    pub max_outgoing_reads: u32,
    /// Ports, numbered from 1.
    pub ports: u8,
}

impl From<&ibv_device_attr> for DeviceAttributes {
    fn from(raw: &ibv_device_attr) -> Self {
        let count = |value: i32| u32::try_from(value).unwrap_or(0);
        Self {
            firmware: text(&raw.fw_ver),
            node_guid: u64::from_be(raw.node_guid),
            system_image_guid: u64::from_be(raw.sys_image_guid),
            vendor_id: raw.vendor_id,
            vendor_part_id: raw.vendor_part_id,
            max_region_bytes: raw.max_mr_size,
            page_sizes: raw.page_size_cap,
            max_queue_pairs: count(raw.max_qp),
            max_work_requests: count(raw.max_qp_wr),
            max_segments: count(raw.max_sge),
            max_completion_queues: count(raw.max_cq),
            max_completions: count(raw.max_cqe),
            max_regions: count(raw.max_mr),
            max_incoming_reads: count(raw.max_qp_rd_atom),
            max_outgoing_reads: count(raw.max_qp_init_rd_atom),
            ports: raw.phys_port_cnt,
        }
    }
}

/// The text in a field of fixed size, which ends with a zero or with the field.
fn text(field: &[c_char]) -> String {
    let bytes: Vec<u8> = field.iter().map(|&c| c as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_mtus_are_powers_of_two() {
        for (code, bytes) in [(1, 256), (2, 512), (3, 1024), (4, 2048), (5, 4096)] {
            assert_eq!((Mtu::from_code(code).code(), Mtu::from_code(code).bytes()), (code, bytes));
        }
        assert_eq!(Mtu::from_code(9), Mtu::Bytes256);
    }

    #[test]
    fn a_field_without_a_zero_ends_with_the_field() {
        assert_eq!(text(&[b'2' as c_char, b'0' as c_char, 0, b'x' as c_char]), "20");
        assert_eq!(text(&[b'2' as c_char; 3]), "222");
    }
}
