//! The names that programs see, each with the version that the real library gives it, so that `dlvsym` and programs that
//! were linked with the real one find it. (`build.rs` defines the versions.)
//!
//! A symbol with a version cannot be written in Rust: each is a jump to a function of this library.

use std::arch::global_asm;

use super::{completion, device, event, memory, missing, pair};

#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    () => {
        "jmp {function}"
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    () => {
        "b {function}"
    };
}

macro_rules! versions {
    ($($version:literal { $($module:ident::$function:ident)* })*) => {
        $($(global_asm!(
            concat!(".pushsection .text.verbs_", stringify!($function), ",\"ax\",%progbits"),
            concat!(".globl verbs_", stringify!($function)),
            concat!(".type verbs_", stringify!($function), ",%function"),
            concat!("verbs_", stringify!($function), ":"),
            jump!(),
            concat!(".size verbs_", stringify!($function), ", . - verbs_", stringify!($function)),
            concat!(
                ".symver verbs_", stringify!($function), ", ", stringify!($function), "@@IBVERBS_", $version
            ),
            ".popsection",
            function = sym $module::$function,
        );)*)*
    };
}

versions! {
    "1.0" { completion::ibv_create_comp_channel completion::ibv_destroy_comp_channel }
    "1.1" {
        completion::ibv_ack_cq_events completion::ibv_create_cq completion::ibv_destroy_cq
        completion::ibv_get_cq_event completion::ibv_wc_status_str
        device::ibv_close_device device::ibv_fork_init device::ibv_free_device_list device::ibv_get_device_guid
        device::ibv_get_device_list device::ibv_get_device_name device::ibv_open_device device::ibv_query_device
        device::ibv_query_gid device::ibv_query_pkey device::ibv_query_port
        event::ibv_ack_async_event event::ibv_event_type_str event::ibv_get_async_event
        memory::ibv_alloc_pd memory::ibv_dealloc_pd memory::ibv_dereg_mr memory::ibv_reg_mr
        missing::ibv_attach_mcast missing::ibv_create_ah missing::ibv_create_ah_from_wc missing::ibv_create_srq
        missing::ibv_destroy_ah missing::ibv_destroy_srq missing::ibv_detach_mcast missing::ibv_init_ah_from_wc
        missing::ibv_modify_srq missing::ibv_query_srq missing::ibv_rereg_mr missing::ibv_resize_cq
        pair::ibv_create_qp pair::ibv_destroy_qp pair::ibv_modify_qp pair::ibv_query_qp
    }
    "1.6" { missing::ibv_qp_to_qp_ex }
    "1.7" { memory::ibv_reg_mr_iova }
    "1.8" { memory::ibv_reg_mr_iova2 }
    "1.9" { device::ibv_get_device_index }
    "1.10" { missing::ibv_import_device missing::ibv_import_mr missing::ibv_import_pd missing::ibv_query_ece missing::ibv_set_ece }
    "1.11" { device::_ibv_query_gid_ex device::_ibv_query_gid_table }
    "1.12" { memory::ibv_reg_dmabuf_mr }
    "1.13" { device::ibv_is_fork_initialized }
}
