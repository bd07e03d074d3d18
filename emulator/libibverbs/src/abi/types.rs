//! The structures of `infiniband/verbs.h`, as far as the stand-in has them. Fields keep their names in C.

#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_uint, c_void};

use libc::{pthread_cond_t, pthread_mutex_t};

/// A function of the context's table that this stand-in does not have.
pub(crate) type Absent = *const c_void;

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_gid_entry {
    pub gid: [u64; 2],
    pub gid_index: u32,
    pub port_num: u32,
    pub gid_type: u32,
    pub ndev_ifindex: u32,
}

#[repr(C)]
pub(crate) struct ibv_device {
    pub _ops: [Absent; 2],
    pub node_type: c_int,
    pub transport_type: c_int,
    pub name: [c_char; 64],
    pub dev_name: [c_char; 64],
    pub dev_path: [c_char; 256],
    pub ibdev_path: [c_char; 256],
}

pub(crate) type PollCq = unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int;
pub(crate) type ReqNotifyCq = unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int;
pub(crate) type PostSend =
    unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int;
pub(crate) type PostRecv =
    unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;

/// 32 function pointers.
#[repr(C)]
pub(crate) struct ibv_context_ops {
    pub before_poll: [Absent; 11],
    pub poll_cq: PollCq,
    pub req_notify_cq: ReqNotifyCq,
    pub before_post: [Absent; 12],
    pub post_send: PostSend,
    pub post_recv: PostRecv,
    pub after_post: [Absent; 5],
}

#[repr(C)]
pub(crate) struct ibv_context {
    pub device: *mut ibv_device,
    pub ops: ibv_context_ops,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
    pub num_comp_vectors: c_int,
    pub mutex: pthread_mutex_t,
    /// Null: there is no `verbs_context` around this, and inline functions of the header call exported ones.
    pub abi_compat: *mut c_void,
}

#[repr(C)]
pub(crate) struct ibv_device_attr {
    pub fw_ver: [c_char; 64],
    pub node_guid: u64,
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: c_uint,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub max_ee_init_rd_atom: c_int,
    pub atomic_cap: u32,
    pub of_what_is_not_there: [c_int; 11],
    pub max_srq: c_int,
    pub max_srq_wr: c_int,
    pub max_srq_sge: c_int,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

/// What `ibv_query_port@IBVERBS_1.1` writes: `struct ibv_port_attr` without its last field.
#[repr(C)]
pub(crate) struct ibv_port_attr {
    pub state: u32,
    pub max_mtu: u32,
    pub active_mtu: u32,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub link_layer: u8,
    pub flags: u8,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) union ibv_async_element {
    pub cq: *mut ibv_cq,
    pub qp: *mut ibv_qp,
    pub port_num: c_int,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_async_event {
    pub element: ibv_async_element,
    pub event_type: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_wc {
    pub wr_id: u64,
    pub status: u32,
    pub opcode: u32,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

#[repr(C)]
pub(crate) struct ibv_pd {
    pub context: *mut ibv_context,
    pub handle: u32,
}

#[repr(C)]
pub(crate) struct ibv_mr {
    pub context: *mut ibv_context,
    pub pd: *mut ibv_pd,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

#[repr(C)]
pub(crate) struct ibv_comp_channel {
    pub context: *mut ibv_context,
    pub fd: c_int,
    pub refcnt: c_int,
}

#[repr(C)]
pub(crate) struct ibv_cq {
    pub context: *mut ibv_context,
    pub channel: *mut ibv_comp_channel,
    pub cq_context: *mut c_void,
    pub handle: u32,
    pub cqe: c_int,
    pub mutex: pthread_mutex_t,
    pub cond: pthread_cond_t,
    pub comp_events_completed: u32,
    pub async_events_completed: u32,
}

#[repr(C)]
pub(crate) struct ibv_qp {
    pub context: *mut ibv_context,
    pub qp_context: *mut c_void,
    pub pd: *mut ibv_pd,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut c_void,
    pub handle: u32,
    pub qp_num: u32,
    pub state: u32,
    pub qp_type: u32,
    pub mutex: pthread_mutex_t,
    pub cond: pthread_cond_t,
    pub events_completed: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_qp_cap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_qp_init_attr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut c_void,
    pub cap: ibv_qp_cap,
    pub qp_type: u32,
    pub sq_sig_all: c_int,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_global_route {
    pub dgid: [u64; 2],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_ah_attr {
    pub grh: ibv_global_route,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_qp_attr {
    pub qp_state: u32,
    pub cur_qp_state: u32,
    pub path_mtu: u32,
    pub path_mig_state: u32,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: ibv_qp_cap,
    pub ah_attr: ibv_ah_attr,
    pub alt_ah_attr: ibv_ah_attr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ibv_sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `next`, lists and operands of RDMA writes and reads; what follows is for atomics, datagrams and windows.
#[repr(C)]
pub(crate) struct ibv_send_wr {
    pub wr_id: u64,
    pub next: *mut ibv_send_wr,
    pub sg_list: *mut ibv_sge,
    pub num_sge: c_int,
    pub opcode: u32,
    pub send_flags: c_uint,
    pub imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    pub of_what_is_not_there: [u64; 9],
}

#[repr(C)]
pub(crate) struct ibv_recv_wr {
    pub wr_id: u64,
    pub next: *mut ibv_recv_wr,
    pub sg_list: *mut ibv_sge,
    pub num_sge: c_int,
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Sizes and offsets that a C program printed from the header of rdma-core 44.0, compiled by gcc for x86_64.
    #[test]
    fn structures_lie_as_in_the_header() {
        let sizes = [
            (size_of::<ibv_gid_entry>(), 32),
            (size_of::<ibv_device>(), 664),
            (size_of::<ibv_context_ops>(), 256),
            (size_of::<ibv_context>(), 328),
            (size_of::<ibv_device_attr>(), 232),
            (size_of::<ibv_pd>(), 16),
            (size_of::<ibv_mr>(), 48),
            (size_of::<ibv_comp_channel>(), 16),
            (size_of::<ibv_cq>(), 128),
            (size_of::<ibv_qp>(), 160),
            (size_of::<ibv_qp_init_attr>(), 64),
            (size_of::<ibv_ah_attr>(), 32),
            (size_of::<ibv_qp_attr>(), 144),
            (size_of::<ibv_sge>(), 16),
            (size_of::<ibv_send_wr>(), 128),
            (size_of::<ibv_recv_wr>(), 32),
            (size_of::<ibv_wc>(), 48),
            (size_of::<ibv_async_event>(), 16),
            // The last field of the header's structure is at 48, and is not written.
            (size_of::<ibv_port_attr>(), 48),
        ];
        let offsets = [
            (offset_of!(ibv_gid_entry, gid_type), 24),
            (offset_of!(ibv_device, name), 24),
            (offset_of!(ibv_device, ibdev_path), 408),
            (offset_of!(ibv_context_ops, poll_cq), 88),
            (offset_of!(ibv_context_ops, req_notify_cq), 96),
            (offset_of!(ibv_context_ops, post_send), 200),
            (offset_of!(ibv_context_ops, post_recv), 208),
            (offset_of!(ibv_context, cmd_fd), 264),
            (offset_of!(ibv_context, async_fd), 268),
            (offset_of!(ibv_context, abi_compat), 320),
            (offset_of!(ibv_device_attr, max_mr_size), 80),
            (offset_of!(ibv_device_attr, max_qp), 108),
            (offset_of!(ibv_device_attr, max_sge), 120),
            (offset_of!(ibv_device_attr, max_qp_rd_atom), 144),
            (offset_of!(ibv_device_attr, atomic_cap), 164),
            (offset_of!(ibv_device_attr, max_srq), 212),
            (offset_of!(ibv_device_attr, phys_port_cnt), 227),
            (offset_of!(ibv_port_attr, max_msg_sz), 20),
            (offset_of!(ibv_port_attr, lid), 34),
            (offset_of!(ibv_port_attr, link_layer), 46),
            (offset_of!(ibv_mr, lkey), 36),
            (offset_of!(ibv_mr, rkey), 40),
            (offset_of!(ibv_cq, cqe), 28),
            (offset_of!(ibv_qp, qp_num), 52),
            (offset_of!(ibv_qp, state), 56),
            (offset_of!(ibv_qp_init_attr, cap), 32),
            (offset_of!(ibv_qp_init_attr, sq_sig_all), 56),
            (offset_of!(ibv_ah_attr, is_global), 29),
            (offset_of!(ibv_qp_attr, dest_qp_num), 28),
            (offset_of!(ibv_qp_attr, ah_attr), 56),
            (offset_of!(ibv_qp_attr, max_rd_atomic), 126),
            (offset_of!(ibv_qp_attr, timeout), 130),
            (offset_of!(ibv_send_wr, opcode), 28),
            (offset_of!(ibv_send_wr, imm_data), 36),
            (offset_of!(ibv_send_wr, remote_addr), 40),
            (offset_of!(ibv_send_wr, rkey), 48),
            (offset_of!(ibv_recv_wr, num_sge), 24),
            (offset_of!(ibv_wc, imm_data), 24),
            (offset_of!(ibv_wc, wc_flags), 36),
            (offset_of!(ibv_async_event, event_type), 8),
        ];
        for (index, (found, expected)) in sizes.into_iter().chain(offsets).enumerate() {
            assert_eq!(found, expected, "line {index}");
        }
    }
}
