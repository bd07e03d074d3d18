//! Functions of the real library that this one does not do: they say so, and are named once on stderr.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Once;

use crate::abi::set_errno;

macro_rules! missing {
    (pointers { $($pointer:ident)* } numbers { $($number:ident)* }) => {
        $(
            pub(super) extern "C" fn $pointer() -> *mut c_void {
                static NAMED: Once = Once::new();
                name_once(&NAMED, stringify!($pointer));
                set_errno(libc::EOPNOTSUPP);
                ptr::null_mut()
            }
        )*
        $(
            pub(super) extern "C" fn $number() -> c_int {
                static NAMED: Once = Once::new();
                name_once(&NAMED, stringify!($number));
                libc::EOPNOTSUPP
            }
        )*
    };
}

fn name_once(once: &Once, name: &str) {
    once.call_once(|| eprintln!("libibverbs of the emulated node: {name} is not there"));
}

missing! {
    pointers {
        ibv_create_ah ibv_create_ah_from_wc ibv_create_srq ibv_import_device ibv_import_mr ibv_import_pd ibv_qp_to_qp_ex
    }
    numbers {
        ibv_attach_mcast ibv_destroy_ah ibv_destroy_srq ibv_detach_mcast ibv_init_ah_from_wc ibv_modify_srq ibv_query_ece
        ibv_query_srq ibv_rereg_mr ibv_resize_cq ibv_set_ece
    }
}
