//! The structures have the layout of the C header.
//!
//! The numbers were printed by a C program with `sizeof`, `_Alignof` and `offsetof` over `infiniband/verbs.h` of rdma-core
//! 44.0 (Debian's libibverbs-dev 44.0-2), compiled by gcc for x86_64.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::mem::offset_of;

use meshreduce_verbs_loader::sys::*;

macro_rules! layout {
    ($($type:ident, $size:literal bytes, aligned to $align:literal: $($($field:ident).+ at $offset:literal)*;)*) => {
        $(
            assert_eq!(size_of::<$type>(), $size, "{}", stringify!($type));
            assert_eq!(align_of::<$type>(), $align, "{}", stringify!($type));
            $(assert_eq!(
                offset_of!($type, $($field).+),
                $offset,
                "{}.{}",
                stringify!($type),
                stringify!($($field).+)
            );)*
        )*
    };
}

#[test]
fn structures_lie_as_in_the_header() {
    layout! {
        ibv_gid_entry, 32 bytes, aligned to 8:
            gid at 0 gid_index at 16 port_num at 20 gid_type at 24 ndev_ifindex at 28;
        ibv_device, 664 bytes, aligned to 8:
            _ops at 0 node_type at 16 transport_type at 20 name at 24 dev_name at 88 dev_path at 152
            ibdev_path at 408;
        ibv_context_ops, 256 bytes, aligned to 8:
            _compat_query_device at 0 _compat_query_port at 8 alloc_mw at 56 poll_cq at 88
            req_notify_cq at 96 post_srq_recv at 160 post_send at 200 post_recv at 208
            _compat_async_event at 248;
        ibv_context, 328 bytes, aligned to 8:
            device at 0 ops at 8 cmd_fd at 264 async_fd at 268 num_comp_vectors at 272 mutex at 280
            abi_compat at 320;
        ibv_device_attr, 232 bytes, aligned to 8:
            fw_ver at 0 node_guid at 64 sys_image_guid at 72 max_mr_size at 80 page_size_cap at 88
            vendor_id at 96 vendor_part_id at 100 hw_ver at 104 max_qp at 108 max_qp_wr at 112
            device_cap_flags at 116 max_sge at 120 max_sge_rd at 124 max_cq at 128 max_cqe at 132
            max_mr at 136 max_pd at 140 max_qp_rd_atom at 144 max_ee_rd_atom at 148 max_res_rd_atom at 152
            max_qp_init_rd_atom at 156 max_ee_init_rd_atom at 160 atomic_cap at 164 max_srq at 212
            max_srq_wr at 216 max_srq_sge at 220 max_pkeys at 224 local_ca_ack_delay at 226
            phys_port_cnt at 227;
        ibv_port_attr, 52 bytes, aligned to 4:
            state at 0 max_mtu at 4 active_mtu at 8 gid_tbl_len at 12 port_cap_flags at 16 max_msg_sz at 20
            bad_pkey_cntr at 24 qkey_viol_cntr at 28 pkey_tbl_len at 32 lid at 34 sm_lid at 36 lmc at 38
            max_vl_num at 39 sm_sl at 40 subnet_timeout at 41 init_type_reply at 42 active_width at 43
            active_speed at 44 phys_state at 45 link_layer at 46 flags at 47 port_cap_flags2 at 48;
        ibv_pd, 16 bytes, aligned to 8:
            context at 0 handle at 8;
        ibv_mr, 48 bytes, aligned to 8:
            context at 0 pd at 8 addr at 16 length at 24 handle at 32 lkey at 36 rkey at 40;
        ibv_comp_channel, 16 bytes, aligned to 8:
            context at 0 fd at 8 refcnt at 12;
        ibv_cq, 128 bytes, aligned to 8:
            context at 0 channel at 8 cq_context at 16 handle at 24 cqe at 28 mutex at 32 cond at 72
            comp_events_completed at 120 async_events_completed at 124;
        ibv_srq, 128 bytes, aligned to 8:
            context at 0 srq_context at 8 pd at 16 handle at 24 mutex at 32 cond at 72
            events_completed at 120;
        ibv_srq_init_attr, 24 bytes, aligned to 8:
            srq_context at 0 attr at 8;
        ibv_qp, 160 bytes, aligned to 8:
            context at 0 qp_context at 8 pd at 16 send_cq at 24 recv_cq at 32 srq at 40 handle at 48
            qp_num at 52 state at 56 qp_type at 60 mutex at 64 cond at 104 events_completed at 152;
        ibv_qp_cap, 20 bytes, aligned to 4:
            max_send_wr at 0 max_recv_wr at 4 max_send_sge at 8 max_recv_sge at 12 max_inline_data at 16;
        ibv_qp_init_attr, 64 bytes, aligned to 8:
            qp_context at 0 send_cq at 8 recv_cq at 16 srq at 24 cap at 32 qp_type at 52 sq_sig_all at 56;
        ibv_global_route, 24 bytes, aligned to 8:
            dgid at 0 flow_label at 16 sgid_index at 20 hop_limit at 21 traffic_class at 22;
        ibv_ah_attr, 32 bytes, aligned to 8:
            grh at 0 dlid at 24 sl at 26 src_path_bits at 27 static_rate at 28 is_global at 29
            port_num at 30;
        ibv_qp_attr, 144 bytes, aligned to 8:
            qp_state at 0 cur_qp_state at 4 path_mtu at 8 path_mig_state at 12 qkey at 16 rq_psn at 20
            sq_psn at 24 dest_qp_num at 28 qp_access_flags at 32 cap at 36 ah_attr at 56 alt_ah_attr at 88
            pkey_index at 120 alt_pkey_index at 122 en_sqd_async_notify at 124 sq_draining at 125
            max_rd_atomic at 126 max_dest_rd_atomic at 127 min_rnr_timer at 128 port_num at 129
            timeout at 130 retry_cnt at 131 rnr_retry at 132 alt_port_num at 133 alt_timeout at 134
            rate_limit at 136;
        ibv_sge, 16 bytes, aligned to 8:
            addr at 0 length at 8 lkey at 12;
        ibv_send_wr, 128 bytes, aligned to 8:
            wr_id at 0 next at 8 sg_list at 16 num_sge at 24 opcode at 28 send_flags at 32 imm_data at 36
            wr.rdma.remote_addr at 40 wr.rdma.rkey at 48 wr.atomic.rkey at 64 qp_type at 72 bind_mw at 80;
        ibv_recv_wr, 32 bytes, aligned to 8:
            wr_id at 0 next at 8 sg_list at 16 num_sge at 24;
        ibv_wc, 48 bytes, aligned to 8:
            wr_id at 0 status at 8 opcode at 12 vendor_err at 16 byte_len at 20 imm_data at 24 qp_num at 28
            src_qp at 32 wc_flags at 36 pkey_index at 40 slid at 42 sl at 44 dlid_path_bits at 45;
        ibv_async_event, 16 bytes, aligned to 8:
            element at 0 event_type at 8;
    }
    assert_eq!((size_of::<ibv_gid>(), align_of::<ibv_gid>()), (16, 8));
}
