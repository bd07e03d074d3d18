//! Every symbol of libibverbs that is only passed on: a jump through a slot that [`crate::real`] fills.
//!
//! A jump needs no prototype: arguments, results and the stack stay as they are. Each symbol has the version that the real
//! library gives it, so that `dlvsym` finds it as it finds the real one. What a *provider* needs of libibverbs
//! (`IBVERBS_PRIVATE_*`) is not here: providers are linked with the real one, and get it.

use std::arch::global_asm;
use std::ffi::CStr;
use std::sync::atomic::AtomicPtr;

/// Defines the jumps, their slots one after the other, and the list of names in the same order.
macro_rules! pass_on {
    ($($name:literal $at:literal $version:literal,)*) => {
        global_asm!(
            ".pushsection .data.meshreduce_slots,\"aw\",@progbits",
            ".balign 8",
            ".globl meshreduce_peermem_slots",
            ".hidden meshreduce_peermem_slots",
            "meshreduce_peermem_slots:",
            ".popsection",
            $(
                ".pushsection .data.meshreduce_slots,\"aw\",@progbits",
                "77: .quad 0",
                ".popsection",
                ".pushsection .text.meshreduce_peermem,\"ax\",@progbits",
                concat!(".globl peermem_", $name, "_", $version),
                concat!(".type peermem_", $name, "_", $version, ",@function"),
                concat!("peermem_", $name, "_", $version, ":"),
                "jmp *77b(%rip)",
                concat!(".size peermem_", $name, "_", $version, ", . - peermem_", $name, "_", $version),
                concat!(".symver peermem_", $name, "_", $version, ", ", $name, $at, $version),
                ".popsection",
            )*
            options(att_syntax)
        );

        /// Name and version of what is passed on, in the order of [`slots`].
        pub(crate) const SYMBOLS: &[(&CStr, &CStr)] = &[$((c_text(concat!($name, "\0")), c_text(concat!($version, "\0"))),)*];
    };
}

const fn c_text(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a name has no NUL within"),
    }
}

/// Where the jumps lead, in the order of [`SYMBOLS`].
pub(crate) fn slots() -> &'static [AtomicPtr<std::ffi::c_void>; SYMBOLS.len()] {
    unsafe extern "C" {
        static meshreduce_peermem_slots: [AtomicPtr<std::ffi::c_void>; SYMBOLS.len()];
    }
    // SAFETY: `pass_on!` defines one writable, aligned word for each of `SYMBOLS`, and the jumps read them whole.
    unsafe { &meshreduce_peermem_slots }
}

pass_on! {
    "_ibv_query_gid_ex" "@@" "IBVERBS_1.11",
    "_ibv_query_gid_table" "@@" "IBVERBS_1.11",
    "ibv_ack_async_event" "@@" "IBVERBS_1.1",
    "ibv_ack_async_event" "@" "IBVERBS_1.0",
    "ibv_ack_cq_events" "@@" "IBVERBS_1.1",
    "ibv_ack_cq_events" "@" "IBVERBS_1.0",
    "ibv_alloc_pd" "@@" "IBVERBS_1.1",
    "ibv_alloc_pd" "@" "IBVERBS_1.0",
    "ibv_attach_mcast" "@@" "IBVERBS_1.1",
    "ibv_attach_mcast" "@" "IBVERBS_1.0",
    "ibv_close_device" "@@" "IBVERBS_1.1",
    "ibv_close_device" "@" "IBVERBS_1.0",
    "ibv_copy_ah_attr_from_kern" "@@" "IBVERBS_1.1",
    "ibv_copy_path_rec_from_kern" "@@" "IBVERBS_1.0",
    "ibv_copy_path_rec_to_kern" "@@" "IBVERBS_1.0",
    "ibv_copy_qp_attr_from_kern" "@@" "IBVERBS_1.0",
    "ibv_create_ah" "@@" "IBVERBS_1.1",
    "ibv_create_ah" "@" "IBVERBS_1.0",
    "ibv_create_ah_from_wc" "@@" "IBVERBS_1.1",
    "ibv_create_comp_channel" "@@" "IBVERBS_1.0",
    "ibv_create_cq" "@@" "IBVERBS_1.1",
    "ibv_create_cq" "@" "IBVERBS_1.0",
    "ibv_create_qp" "@@" "IBVERBS_1.1",
    "ibv_create_qp" "@" "IBVERBS_1.0",
    "ibv_create_srq" "@@" "IBVERBS_1.1",
    "ibv_create_srq" "@" "IBVERBS_1.0",
    "ibv_dealloc_pd" "@@" "IBVERBS_1.1",
    "ibv_dealloc_pd" "@" "IBVERBS_1.0",
    "ibv_dereg_mr" "@" "IBVERBS_1.0",
    "ibv_destroy_ah" "@@" "IBVERBS_1.1",
    "ibv_destroy_ah" "@" "IBVERBS_1.0",
    "ibv_destroy_comp_channel" "@@" "IBVERBS_1.0",
    "ibv_destroy_cq" "@@" "IBVERBS_1.1",
    "ibv_destroy_cq" "@" "IBVERBS_1.0",
    "ibv_destroy_qp" "@@" "IBVERBS_1.1",
    "ibv_destroy_qp" "@" "IBVERBS_1.0",
    "ibv_destroy_srq" "@@" "IBVERBS_1.1",
    "ibv_destroy_srq" "@" "IBVERBS_1.0",
    "ibv_detach_mcast" "@@" "IBVERBS_1.1",
    "ibv_detach_mcast" "@" "IBVERBS_1.0",
    "ibv_dofork_range" "@@" "IBVERBS_1.1",
    "ibv_dontfork_range" "@@" "IBVERBS_1.1",
    "ibv_event_type_str" "@@" "IBVERBS_1.1",
    "ibv_fork_init" "@@" "IBVERBS_1.1",
    "ibv_free_device_list" "@@" "IBVERBS_1.1",
    "ibv_free_device_list" "@" "IBVERBS_1.0",
    "ibv_get_async_event" "@@" "IBVERBS_1.1",
    "ibv_get_async_event" "@" "IBVERBS_1.0",
    "ibv_get_cq_event" "@@" "IBVERBS_1.1",
    "ibv_get_cq_event" "@" "IBVERBS_1.0",
    "ibv_get_device_guid" "@@" "IBVERBS_1.1",
    "ibv_get_device_guid" "@" "IBVERBS_1.0",
    "ibv_get_device_index" "@@" "IBVERBS_1.9",
    "ibv_get_device_list" "@@" "IBVERBS_1.1",
    "ibv_get_device_list" "@" "IBVERBS_1.0",
    "ibv_get_device_name" "@@" "IBVERBS_1.1",
    "ibv_get_device_name" "@" "IBVERBS_1.0",
    "ibv_get_pkey_index" "@@" "IBVERBS_1.5",
    "ibv_get_sysfs_path" "@@" "IBVERBS_1.0",
    "ibv_import_device" "@@" "IBVERBS_1.10",
    "ibv_import_dm" "@@" "IBVERBS_1.13",
    "ibv_import_mr" "@@" "IBVERBS_1.10",
    "ibv_import_pd" "@@" "IBVERBS_1.10",
    "ibv_init_ah_from_wc" "@@" "IBVERBS_1.1",
    "ibv_is_fork_initialized" "@@" "IBVERBS_1.13",
    "ibv_modify_qp" "@@" "IBVERBS_1.1",
    "ibv_modify_qp" "@" "IBVERBS_1.0",
    "ibv_modify_srq" "@@" "IBVERBS_1.1",
    "ibv_modify_srq" "@" "IBVERBS_1.0",
    "ibv_node_type_str" "@@" "IBVERBS_1.1",
    "ibv_open_device" "@@" "IBVERBS_1.1",
    "ibv_open_device" "@" "IBVERBS_1.0",
    "ibv_port_state_str" "@@" "IBVERBS_1.1",
    "ibv_qp_to_qp_ex" "@@" "IBVERBS_1.6",
    "ibv_query_device" "@@" "IBVERBS_1.1",
    "ibv_query_device" "@" "IBVERBS_1.0",
    "ibv_query_ece" "@@" "IBVERBS_1.10",
    "ibv_query_gid" "@@" "IBVERBS_1.1",
    "ibv_query_gid" "@" "IBVERBS_1.0",
    "ibv_query_pkey" "@@" "IBVERBS_1.1",
    "ibv_query_pkey" "@" "IBVERBS_1.0",
    "ibv_query_port" "@@" "IBVERBS_1.1",
    "ibv_query_port" "@" "IBVERBS_1.0",
    "ibv_query_qp" "@@" "IBVERBS_1.1",
    "ibv_query_qp" "@" "IBVERBS_1.0",
    "ibv_query_qp_data_in_order" "@@" "IBVERBS_1.14",
    "ibv_query_srq" "@@" "IBVERBS_1.1",
    "ibv_query_srq" "@" "IBVERBS_1.0",
    "ibv_rate_to_mbps" "@@" "IBVERBS_1.1",
    "ibv_rate_to_mult" "@@" "IBVERBS_1.0",
    "ibv_read_sysfs_file" "@@" "IBVERBS_1.0",
    "ibv_reg_mr" "@" "IBVERBS_1.0",
    "ibv_resize_cq" "@@" "IBVERBS_1.1",
    "ibv_resize_cq" "@" "IBVERBS_1.0",
    "ibv_resolve_eth_l2_from_gid" "@@" "IBVERBS_1.1",
    "ibv_set_ece" "@@" "IBVERBS_1.10",
    "ibv_unimport_dm" "@@" "IBVERBS_1.13",
    "ibv_unimport_mr" "@@" "IBVERBS_1.10",
    "ibv_unimport_pd" "@@" "IBVERBS_1.10",
    "ibv_wc_status_str" "@@" "IBVERBS_1.1",
    "mbps_to_ibv_rate" "@@" "IBVERBS_1.1",
    "mult_to_ibv_rate" "@@" "IBVERBS_1.0",
    "ibv_register_driver" "@" "IBVERBS_1.1",
}
