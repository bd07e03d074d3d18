//! NCCL's functions that meshreduce calls, and their raw types, as `nccl.h` has them.
//!
//! Each function finds NCCL's of the same name when it is first called. They keep no policy and check nothing.

#![allow(non_snake_case, non_camel_case_types)]

use std::ffi::{c_char, c_int, c_uint, c_void};

use meshreduce_driver_loader::sys::CUstream;

use crate::resolve::{empty, resolve};
use crate::{Unavailable, Version, library};

/// A communicator.
pub type ncclComm_t = *mut c_void;

/// What the ranks of a communicator find each other by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ncclUniqueId {
    /// NCCL's own.
    pub internal: [u8; 128],
}

macro_rules! codes {
    ($(#[$doc:meta])* $type:ident { $($constant:ident = $code:literal, $name:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(transparent)]
        pub struct $type(
            /// The number.
            pub c_int,
        );

        impl $type {
            $(#[doc = concat!("`", $name, "`.")] pub const $constant: Self = Self($code);)*

            /// The name in `nccl.h`, if this crate knows the number.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some($name),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// What a function answers: any number, because newer libraries have codes that nothing here has a name for.
    ncclResult_t {
        SUCCESS = 0, "ncclSuccess";
        UNHANDLED_CUDA_ERROR = 1, "ncclUnhandledCudaError";
        SYSTEM_ERROR = 2, "ncclSystemError";
        INTERNAL_ERROR = 3, "ncclInternalError";
        INVALID_ARGUMENT = 4, "ncclInvalidArgument";
        INVALID_USAGE = 5, "ncclInvalidUsage";
        REMOTE_ERROR = 6, "ncclRemoteError";
        IN_PROGRESS = 7, "ncclInProgress";
        TIMEOUT = 8, "ncclTimeout";
    }
}

codes! {
    /// A type of element.
    ncclDataType_t {
        INT8 = 0, "ncclInt8";
        UINT8 = 1, "ncclUint8";
        INT32 = 2, "ncclInt32";
        UINT32 = 3, "ncclUint32";
        INT64 = 4, "ncclInt64";
        UINT64 = 5, "ncclUint64";
        FLOAT16 = 6, "ncclFloat16";
        FLOAT32 = 7, "ncclFloat32";
        FLOAT64 = 8, "ncclFloat64";
        BFLOAT16 = 9, "ncclBfloat16";
    }
}

codes! {
    /// A reduction. Numbers from 5 on are operations that `ncclRedOpCreatePreMulSum` made.
    ncclRedOp_t {
        SUM = 0, "ncclSum";
        PROD = 1, "ncclProd";
        MAX = 2, "ncclMax";
        MIN = 3, "ncclMin";
        AVG = 4, "ncclAvg";
    }
}

codes! {
    /// Where the scalar of `ncclRedOpCreatePreMulSum` is.
    ncclScalarResidence_t {
        DEVICE = 0, "ncclScalarDevice";
        HOST_IMMEDIATE = 1, "ncclScalarHostImmediate";
    }
}

/// `NCCL_SPLIT_NOCOLOR`: this rank is in none of the new communicators.
pub const NCCL_SPLIT_NOCOLOR: c_int = -1;
/// `NCCL_CONFIG_UNDEF_INT`: NCCL's own choice.
pub const NCCL_CONFIG_UNDEF_INT: c_int = c_int::MIN;
/// `NCCL_SHRINK_DEFAULT`: the parent communicator is idle.
pub const NCCL_SHRINK_DEFAULT: c_int = 0;
/// `NCCL_SHRINK_ABORT`: what the parent communicator still does is ended first.
pub const NCCL_SHRINK_ABORT: c_int = 1;

const NCCL_API_MAGIC: c_uint = 0xcafe_beef;

/// How a communicator is to be.
///
/// This is the structure of NCCL 2.27. The library copies as many bytes as both sides know (`size`), and takes its
/// defaults for fields that came after `version`: so earlier and later libraries take it too. An earlier one ignores
/// the fields that it does not know.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ncclConfig_t {
    /// Bytes of this structure.
    pub size: usize,
    /// `NCCL_API_MAGIC`.
    pub magic: c_uint,
    /// `NCCL_VERSION_CODE` of the header that this structure is from.
    pub version: c_uint,
    /// 0: calls return before they are done. Since 2.14.
    pub blocking: c_int,
    /// Since 2.17.
    pub cgaClusterSize: c_int,
    /// Since 2.17.
    pub minCTAs: c_int,
    /// Since 2.17.
    pub maxCTAs: c_int,
    /// Null, or a zero-terminated string. Since 2.17.
    pub netName: *const c_char,
    /// 1: a communicator that is split from this one shares its resources. Since 2.18.
    pub splitShare: c_int,
    /// Since 2.26.
    pub trafficClass: c_int,
    /// Null, or a zero-terminated string for NCCL's log. Since 2.27.
    pub commName: *const c_char,
    /// Since 2.27.
    pub collnetEnable: c_int,
    /// Since 2.27.
    pub CTAPolicy: c_int,
    /// Since 2.27.
    pub shrinkShare: c_int,
    /// Since 2.27.
    pub nvlsCTAs: c_int,
}

impl Default for ncclConfig_t {
    /// `NCCL_CONFIG_INITIALIZER`: everything as NCCL chooses.
    fn default() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: NCCL_API_MAGIC,
            version: 22703,
            blocking: NCCL_CONFIG_UNDEF_INT,
            cgaClusterSize: NCCL_CONFIG_UNDEF_INT,
            minCTAs: NCCL_CONFIG_UNDEF_INT,
            maxCTAs: NCCL_CONFIG_UNDEF_INT,
            netName: std::ptr::null(),
            splitShare: NCCL_CONFIG_UNDEF_INT,
            trafficClass: NCCL_CONFIG_UNDEF_INT,
            commName: std::ptr::null(),
            collnetEnable: NCCL_CONFIG_UNDEF_INT,
            CTAPolicy: NCCL_CONFIG_UNDEF_INT,
            shrinkShare: NCCL_CONFIG_UNDEF_INT,
            nvlsCTAs: NCCL_CONFIG_UNDEF_INT,
        }
    }
}

/// A function of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// The first version that has it; 2.7 for everything that was there by then.
    pub since: Version,
}

impl Function {
    /// Whether a library without it is refused.
    pub fn required(&self) -> bool {
        self.since <= Version::new(2, 7, 0)
    }

    /// Whether the library that is open has it; false without one.
    pub fn is_present(&self) -> bool {
        library::symbol(self.name).is_some()
    }
}

/// All functions that this crate knows.
pub fn functions() -> &'static [Function] {
    TABLE
}

macro_rules! functions {
    ($($major:literal.$minor:literal $name:ident($($argument:ident: $type:ty),* $(,)?) -> $answer:ty;)*) => {
        pub(crate) const TABLE: &[Function] = &[
            $(Function { name: stringify!($name), since: Version::new($major, $minor, 0) },)*
        ];

        $(
            #[doc = concat!("`", stringify!($name), "`.")]
            ///
            /// # Safety
            ///
            /// The function's contract in NVIDIA's documentation: handles are alive, and pointers are valid for what
            /// NCCL reads and writes through them.
            ///
            /// # Errors
            ///
            /// [`Unavailable`] if there is no NCCL or no such function in it.
            #[allow(clippy::too_many_arguments)]
            pub unsafe fn $name($($argument: $type),*) -> Result<$answer, Unavailable> {
                static CACHE: std::sync::atomic::AtomicPtr<c_void> = empty();
                let address = resolve(&CACHE, stringify!($name), Version::new($major, $minor, 0))?;
                // SAFETY: NCCL's function of this name has this signature in nccl.h, where enums are ints and handles
                // are pointers; the caller keeps its contract.
                Ok(unsafe {
                    std::mem::transmute::<std::ptr::NonNull<c_void>, unsafe extern "C" fn($($type),*) -> $answer>(address)(
                        $($argument),*
                    )
                })
            }
        )*
    };
}

#[rustfmt::skip]
functions! {
    2 . 7 ncclGetVersion(version: *mut c_int) -> ncclResult_t;
    2 . 7 ncclGetErrorString(code: ncclResult_t) -> *const c_char;
    2 . 13 ncclGetLastError(comm: ncclComm_t) -> *const c_char;
    2 . 7 ncclGetUniqueId(id: *mut ncclUniqueId) -> ncclResult_t;
    2 . 7 ncclCommInitRank(comm: *mut ncclComm_t, ranks: c_int, id: ncclUniqueId, rank: c_int) -> ncclResult_t;
    2 . 14 ncclCommInitRankConfig(comm: *mut ncclComm_t, ranks: c_int, id: ncclUniqueId, rank: c_int, config: *mut ncclConfig_t) -> ncclResult_t;
    2 . 14 ncclCommFinalize(comm: ncclComm_t) -> ncclResult_t;
    2 . 7 ncclCommDestroy(comm: ncclComm_t) -> ncclResult_t;
    2 . 7 ncclCommAbort(comm: ncclComm_t) -> ncclResult_t;
    2 . 18 ncclCommSplit(comm: ncclComm_t, color: c_int, key: c_int, new: *mut ncclComm_t, config: *mut ncclConfig_t) -> ncclResult_t;
    2 . 27 ncclCommShrink(comm: ncclComm_t, excluded: *mut c_int, count: c_int, new: *mut ncclComm_t, config: *mut ncclConfig_t, flags: c_int) -> ncclResult_t;
    2 . 7 ncclCommGetAsyncError(comm: ncclComm_t, state: *mut ncclResult_t) -> ncclResult_t;
    2 . 7 ncclCommCount(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t;
    2 . 7 ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t;
    2 . 7 ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t;
    2 . 7 ncclAllReduce(send: *const c_void, receive: *mut c_void, count: usize, data: ncclDataType_t, op: ncclRedOp_t, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 7 ncclReduce(send: *const c_void, receive: *mut c_void, count: usize, data: ncclDataType_t, op: ncclRedOp_t, root: c_int, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 7 ncclBroadcast(send: *const c_void, receive: *mut c_void, count: usize, data: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 7 ncclAllGather(send: *const c_void, receive: *mut c_void, send_count: usize, data: ncclDataType_t, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 7 ncclReduceScatter(send: *const c_void, receive: *mut c_void, receive_count: usize, data: ncclDataType_t, op: ncclRedOp_t, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 28 ncclAlltoAll(send: *const c_void, receive: *mut c_void, count: usize, data: ncclDataType_t, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 28 ncclGather(send: *const c_void, receive: *mut c_void, count: usize, data: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 28 ncclScatter(send: *const c_void, receive: *mut c_void, count: usize, data: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 7 ncclSend(send: *const c_void, count: usize, data: ncclDataType_t, peer: c_int, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 7 ncclRecv(receive: *mut c_void, count: usize, data: ncclDataType_t, peer: c_int, comm: ncclComm_t, stream: CUstream) -> ncclResult_t;
    2 . 7 ncclGroupStart() -> ncclResult_t;
    2 . 7 ncclGroupEnd() -> ncclResult_t;
    2 . 11 ncclRedOpCreatePreMulSum(op: *mut ncclRedOp_t, scalar: *mut c_void, data: ncclDataType_t, residence: ncclScalarResidence_t, comm: ncclComm_t) -> ncclResult_t;
    2 . 11 ncclRedOpDestroy(op: ncclRedOp_t, comm: ncclComm_t) -> ncclResult_t;
    2 . 19 ncclMemAlloc(memory: *mut *mut c_void, bytes: usize) -> ncclResult_t;
    2 . 19 ncclMemFree(memory: *mut c_void) -> ncclResult_t;
    2 . 19 ncclCommRegister(comm: ncclComm_t, memory: *mut c_void, bytes: usize, handle: *mut *mut c_void) -> ncclResult_t;
    2 . 19 ncclCommDeregister(comm: ncclComm_t, handle: *mut c_void) -> ncclResult_t;
}
