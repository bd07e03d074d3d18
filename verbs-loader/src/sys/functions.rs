//! The functions that libibverbs exports, each by its version.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;

use super::types::*;

/// A function of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// The version of its signature that is called here, as the dynamic loader knows it.
    pub version: &'static str,
    /// Whether a library without it is refused.
    pub required: bool,
}

/// All functions that this crate knows.
pub fn functions() -> &'static [Function] {
    TABLE
}

/// The terminating zero is there: the macro below puts it.
const fn terminated(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a name in the table has a zero in it"),
    }
}

macro_rules! functions {
    (
        required { $($version:literal $name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty)?;)* }
        optional { $($o_version:literal $o_name:ident($($o_argument:ident: $o_type:ty),*) $(-> $o_answer:ty)?;)* }
    ) => {
        const TABLE: &[Function] = &[
            $(Function { name: stringify!($name), version: $version, required: true },)*
            $(Function { name: stringify!($o_name), version: $o_version, required: false },)*
        ];

        /// The functions of one library. Contracts are those of its manual pages; `errno` tells why a function failed,
        /// unless it answers the number itself ([`crate::result`] knows both).
        #[derive(Clone, Copy, Debug)]
        pub struct Functions {
            $(#[doc = concat!("`", stringify!($name), "@", $version, "`.")]
            pub $name: unsafe extern "C" fn($($argument: $type),*) $(-> $answer)?,)*
            $(#[doc = concat!("`", stringify!($o_name), "@", $o_version, "`, which older libraries lack.")]
            pub $o_name: Option<unsafe extern "C" fn($($o_argument: $o_type),*) $(-> $o_answer)?>,)*
        }

        impl Functions {
            /// Looks all functions up by `find` (name, version).
            ///
            /// # Safety
            ///
            /// `find` answers addresses of functions of these names and versions in a library that stays loaded.
            ///
            /// # Errors
            ///
            /// The required functions that `find` did not find.
            pub unsafe fn load(
                find: impl Fn(&CStr, &CStr) -> Option<NonNull<c_void>>,
            ) -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(
                    let $name = find(
                        const { terminated(concat!(stringify!($name), "\0")) },
                        const { terminated(concat!($version, "\0")) },
                    );
                    if $name.is_none() {
                        missing.push(stringify!($name));
                    }
                )*
                $(
                    let $o_name = find(
                        const { terminated(concat!(stringify!($o_name), "\0")) },
                        const { terminated(concat!($o_version, "\0")) },
                    );
                )*
                match ($($name,)*) {
                    ($(Some($name),)*) => Ok(Self {
                        // SAFETY: the caller's; these are the signatures of verbs.h, where enumerations are ints.
                        $($name: unsafe {
                            std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($($type),*) $(-> $answer)?>($name)
                        },)*
                        $($o_name: $o_name.map(|address| {
                            // SAFETY: as above.
                            unsafe {
                                std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($($o_type),*) $(-> $o_answer)?>(address)
                            }
                        }),)*
                    }),
                    _ => Err(missing),
                }
            }

            /// Whether the library has `name`; false too for a name that is not in the table.
            pub fn has(&self, name: &str) -> bool {
                match name {
                    $(stringify!($name) => true,)*
                    $(stringify!($o_name) => self.$o_name.is_some(),)*
                    _ => false,
                }
            }
        }
    };
}

#[rustfmt::skip]
functions! {
    required {
        "IBVERBS_1.1" ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device;
        "IBVERBS_1.1" ibv_free_device_list(list: *mut *mut ibv_device);
        "IBVERBS_1.1" ibv_get_device_name(device: *mut ibv_device) -> *const c_char;
        "IBVERBS_1.1" ibv_get_device_guid(device: *mut ibv_device) -> u64;
        "IBVERBS_1.1" ibv_open_device(device: *mut ibv_device) -> *mut ibv_context;
        "IBVERBS_1.1" ibv_close_device(context: *mut ibv_context) -> c_int;
        "IBVERBS_1.1" ibv_query_device(context: *mut ibv_context, attributes: *mut ibv_device_attr) -> c_int;
        "IBVERBS_1.1" ibv_query_port(context: *mut ibv_context, port: u8, attributes: *mut ibv_port_attr) -> c_int;
        "IBVERBS_1.1" ibv_query_gid(context: *mut ibv_context, port: u8, index: c_int, gid: *mut ibv_gid) -> c_int;
        "IBVERBS_1.1" ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int;
        "IBVERBS_1.1" ibv_ack_async_event(event: *mut ibv_async_event);
        "IBVERBS_1.1" ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd;
        "IBVERBS_1.1" ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int;
        "IBVERBS_1.1" ibv_reg_mr(pd: *mut ibv_pd, address: *mut c_void, length: usize, access: c_int) -> *mut ibv_mr;
        "IBVERBS_1.1" ibv_dereg_mr(mr: *mut ibv_mr) -> c_int;
        "IBVERBS_1.1" ibv_create_cq(context: *mut ibv_context, cqe: c_int, cq_context: *mut c_void, channel: *mut ibv_comp_channel, vector: c_int) -> *mut ibv_cq;
        "IBVERBS_1.1" ibv_destroy_cq(cq: *mut ibv_cq) -> c_int;
        "IBVERBS_1.1" ibv_create_qp(pd: *mut ibv_pd, attributes: *mut ibv_qp_init_attr) -> *mut ibv_qp;
        "IBVERBS_1.1" ibv_modify_qp(qp: *mut ibv_qp, attributes: *mut ibv_qp_attr, mask: c_int) -> c_int;
        "IBVERBS_1.1" ibv_query_qp(qp: *mut ibv_qp, attributes: *mut ibv_qp_attr, mask: c_int, init: *mut ibv_qp_init_attr) -> c_int;
        "IBVERBS_1.1" ibv_destroy_qp(qp: *mut ibv_qp) -> c_int;
    }
    optional {
        "IBVERBS_1.0" ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel;
        "IBVERBS_1.0" ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int;
        "IBVERBS_1.1" ibv_get_cq_event(channel: *mut ibv_comp_channel, cq: *mut *mut ibv_cq, cq_context: *mut *mut c_void) -> c_int;
        "IBVERBS_1.1" ibv_ack_cq_events(cq: *mut ibv_cq, count: c_uint);
        "IBVERBS_1.1" ibv_create_srq(pd: *mut ibv_pd, attributes: *mut ibv_srq_init_attr) -> *mut ibv_srq;
        "IBVERBS_1.1" ibv_destroy_srq(srq: *mut ibv_srq) -> c_int;
        "IBVERBS_1.1" ibv_wc_status_str(status: u32) -> *const c_char;
        "IBVERBS_1.1" ibv_event_type_str(event: u32) -> *const c_char;
        "IBVERBS_1.1" ibv_fork_init() -> c_int;
        "IBVERBS_1.7" ibv_reg_mr_iova(pd: *mut ibv_pd, address: *mut c_void, length: usize, iova: u64, access: c_int) -> *mut ibv_mr;
        "IBVERBS_1.8" ibv_reg_mr_iova2(pd: *mut ibv_pd, address: *mut c_void, length: usize, iova: u64, access: c_uint) -> *mut ibv_mr;
        "IBVERBS_1.11" _ibv_query_gid_ex(context: *mut ibv_context, port: u32, index: u32, entry: *mut ibv_gid_entry, flags: u32, entry_size: usize) -> c_int;
        "IBVERBS_1.11" _ibv_query_gid_table(context: *mut ibv_context, entries: *mut ibv_gid_entry, max_entries: usize, flags: u32, entry_size: usize) -> isize;
        "IBVERBS_1.12" ibv_reg_dmabuf_mr(pd: *mut ibv_pd, offset: u64, length: usize, iova: u64, fd: c_int, access: c_int) -> *mut ibv_mr;
        "IBVERBS_1.13" ibv_is_fork_initialized() -> c_int;
    }
}
