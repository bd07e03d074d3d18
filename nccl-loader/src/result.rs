//! NCCL's functions with results in place of out-parameters, and errors in NCCL's words. No policy.
//!
//! Addresses are the driver's ([`CUdeviceptr`]), counts are elements, ranks and roots are 0 to the communicator's size
//! less one. [`Progress::InProgress`] is answered only where a communicator was made with `blocking = 0`.
//!
//! Every function answers [`Error::Load`] without NCCL, [`Error::Missing`] if the library is too old to have it, and
//! [`Error::Nccl`] with what NCCL answered otherwise. The safety contract of all unsafe functions is NVIDIA's: the
//! communicator is alive, addresses are device memory that stays valid for all bytes until the stream has passed the
//! call, and the stream is alive and of the communicator's device.

#![allow(clippy::missing_safety_doc)] // one contract for all, above

use std::ffi::{c_int, c_void};
use std::ptr;

use meshreduce_driver_loader::sys::{CUdeviceptr, CUstream};

use crate::error::check;
use crate::sys::{self, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use crate::{Error, Progress};

/// `ncclGetUniqueId`: opens the socket at which the communicator's ranks will meet.
///
/// # Errors
///
/// Those of the module; NCCL's where it finds no network interface (`NCCL_SOCKET_IFNAME` names one).
pub fn unique_id() -> Result<ncclUniqueId, Error> {
    let mut id = ncclUniqueId { internal: [0; 128] };
    // SAFETY: `id` is a valid place for it.
    let _ = check("ncclGetUniqueId", unsafe { sys::ncclGetUniqueId(&mut id) })?;
    Ok(id)
}

/// `ncclCommInitRank`, for the current device: returns when all ranks have called it.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn comm_init_rank(ranks: c_int, id: ncclUniqueId, rank: c_int) -> Result<ncclComm_t, Error> {
    let mut comm = ptr::null_mut();
    // SAFETY: `comm` is a valid place for the handle; the rest is the caller's.
    let _ = check("ncclCommInitRank", unsafe { sys::ncclCommInitRank(&mut comm, ranks, id, rank) })?;
    Ok(comm)
}

/// `ncclCommInitRankConfig`. With `blocking = 0` the communicator may be used only for [`comm_get_async_error`] and
/// [`comm_abort`] until it is done.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn comm_init_rank_config(
    ranks: c_int,
    id: ncclUniqueId,
    rank: c_int,
    config: &mut ncclConfig_t,
) -> Result<(ncclComm_t, Progress), Error> {
    let mut comm = ptr::null_mut();
    // SAFETY: `comm` is a valid place for the handle; the rest is the caller's.
    let answer = unsafe { sys::ncclCommInitRankConfig(&mut comm, ranks, id, rank, config) };
    check("ncclCommInitRankConfig", answer).map(|progress| (comm, progress))
}

/// `ncclCommFinalize`: ends what is issued; the communicator can then be destroyed without blocking.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn comm_finalize(comm: ncclComm_t) -> Result<Progress, Error> {
    // SAFETY: the caller's.
    check("ncclCommFinalize", unsafe { sys::ncclCommFinalize(comm) })
}

/// `ncclCommDestroy`. The handle is gone afterwards.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn comm_destroy(comm: ncclComm_t) -> Result<Progress, Error> {
    // SAFETY: the caller's.
    check("ncclCommDestroy", unsafe { sys::ncclCommDestroy(comm) })
}

/// `ncclCommAbort`: ends what is pending, on the device too. The handle is gone afterwards.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn comm_abort(comm: ncclComm_t) -> Result<Progress, Error> {
    // SAFETY: the caller's.
    check("ncclCommAbort", unsafe { sys::ncclCommAbort(comm) })
}

/// `ncclCommSplit` into one communicator per `color`, ordered by `key`; null for
/// [`NCCL_SPLIT_NOCOLOR`](sys::NCCL_SPLIT_NOCOLOR). Without a `config` the parent's holds. Where the answer is
/// [`Progress::InProgress`], `new` is filled in when the parent's [`comm_get_async_error`] says that it is done.
///
/// `new` must stay valid until then.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn comm_split(
    comm: ncclComm_t,
    color: c_int,
    key: c_int,
    new: *mut ncclComm_t,
    config: Option<&mut ncclConfig_t>,
) -> Result<Progress, Error> {
    let config = config.map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: the caller's.
    check("ncclCommSplit", unsafe { sys::ncclCommSplit(comm, color, key, new, config) })
}

/// `ncclCommShrink`: a communicator of all ranks but the `excluded` ones, which do not call it. `new` and `config` as
/// with [`comm_split`].
///
/// # Errors
///
/// Those of the module; [`Error::Nccl`] for more than `i32::MAX` ranks.
pub unsafe fn comm_shrink(
    comm: ncclComm_t,
    excluded: &mut [c_int],
    new: *mut ncclComm_t,
    config: Option<&mut ncclConfig_t>,
    flags: c_int,
) -> Result<Progress, Error> {
    let config = config.map_or(ptr::null_mut(), ptr::from_mut);
    // A count that is too large becomes one that NCCL refuses.
    let count = c_int::try_from(excluded.len()).unwrap_or(-1);
    // SAFETY: the caller's; the list has `count` elements.
    let answer = unsafe { sys::ncclCommShrink(comm, excluded.as_mut_ptr(), count, new, config, flags) };
    check("ncclCommShrink", answer)
}

/// `ncclCommGetAsyncError`: the communicator's state, which is [`ncclResult_t::SUCCESS`],
/// [`ncclResult_t::IN_PROGRESS`], or the error after which it can only be aborted.
/// [`NcclError::of`](crate::NcclError::of) puts words to it.
///
/// # Errors
///
/// Those of the module, if the question itself failed.
pub unsafe fn comm_get_async_error(comm: ncclComm_t) -> Result<ncclResult_t, Error> {
    let mut state = ncclResult_t::SUCCESS;
    // SAFETY: `state` is a valid place for it; the rest is the caller's.
    let _ = check("ncclCommGetAsyncError", unsafe { sys::ncclCommGetAsyncError(comm, &mut state) })?;
    Ok(state)
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident $function:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// Those of the module.
        pub unsafe fn $name(comm: ncclComm_t) -> Result<c_int, Error> {
            let mut number = 0;
            // SAFETY: `number` is a valid place for it; the rest is the caller's.
            let _ = check(stringify!($function), unsafe { sys::$function(comm, &mut number) })?;
            Ok(number)
        }
    )*};
}

numbers! {
    /// `ncclCommCount`: the number of ranks.
    comm_count ncclCommCount;
    /// `ncclCommUserRank`: this rank.
    comm_user_rank ncclCommUserRank;
    /// `ncclCommCuDevice`: the ordinal of the device.
    comm_cu_device ncclCommCuDevice;
}

fn source(address: CUdeviceptr) -> *const c_void {
    address as usize as *const c_void
}

fn destination(address: CUdeviceptr) -> *mut c_void {
    address as usize as *mut c_void
}

macro_rules! collectives {
    ($($(#[$doc:meta])* $name:ident $function:ident($($argument:ident: $type:ty),*);)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// Those of the module.
        #[allow(clippy::too_many_arguments)]
        pub unsafe fn $name(
            send: CUdeviceptr,
            receive: CUdeviceptr,
            count: usize,
            data: ncclDataType_t,
            $($argument: $type,)*
            comm: ncclComm_t,
            stream: CUstream,
        ) -> Result<Progress, Error> {
            let (send, receive) = (source(send), destination(receive));
            // SAFETY: the caller's.
            check(stringify!($function), unsafe {
                sys::$function(send, receive, count, data, $($argument,)* comm, stream)
            })
        }
    )*};
}

collectives! {
    /// `ncclAllReduce` of `count` elements. In place if both addresses are the same.
    all_reduce ncclAllReduce(op: ncclRedOp_t);
    /// `ncclReduce` of `count` elements to `root`; `receive` matters there alone.
    reduce ncclReduce(op: ncclRedOp_t, root: c_int);
    /// `ncclBroadcast` of `count` elements of `root`; `send` matters there alone.
    broadcast ncclBroadcast(root: c_int);
    /// `ncclAllGather`: `count` elements of each rank. In place if `send` is the rank's part of `receive`.
    all_gather ncclAllGather();
    /// `ncclReduceScatter`: `count` elements to each rank. In place if `receive` is the rank's part of `send`.
    reduce_scatter ncclReduceScatter(op: ncclRedOp_t);
    /// `ncclAlltoAll`: `count` elements from each rank to each rank.
    all_to_all ncclAlltoAll();
    /// `ncclGather`: `count` elements of each rank to `root`; `receive` matters there alone.
    gather ncclGather(root: c_int);
    /// `ncclScatter`: `count` elements of `root` to each rank; `send` matters there alone.
    scatter ncclScatter(root: c_int);
}

/// `ncclSend` of `count` elements to `peer`.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn send(
    send: CUdeviceptr,
    count: usize,
    data: ncclDataType_t,
    peer: c_int,
    comm: ncclComm_t,
    stream: CUstream,
) -> Result<Progress, Error> {
    // SAFETY: the caller's.
    check("ncclSend", unsafe { sys::ncclSend(source(send), count, data, peer, comm, stream) })
}

/// `ncclRecv` of `count` elements from `peer`.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn recv(
    receive: CUdeviceptr,
    count: usize,
    data: ncclDataType_t,
    peer: c_int,
    comm: ncclComm_t,
    stream: CUstream,
) -> Result<Progress, Error> {
    // SAFETY: the caller's.
    check("ncclRecv", unsafe { sys::ncclRecv(destination(receive), count, data, peer, comm, stream) })
}

/// `ncclGroupStart`: until [`group_end`], this thread's calls are only collected.
///
/// # Errors
///
/// Those of the module.
pub fn group_start() -> Result<(), Error> {
    // SAFETY: it takes nothing.
    check("ncclGroupStart", unsafe { sys::ncclGroupStart() }).map(|_| ())
}

/// `ncclGroupEnd`: issues what this thread has collected.
///
/// # Errors
///
/// Those of the module, and of the calls that were collected.
///
/// # Safety
///
/// What the collected calls were given is still valid.
pub unsafe fn group_end() -> Result<Progress, Error> {
    // SAFETY: the caller's.
    check("ncclGroupEnd", unsafe { sys::ncclGroupEnd() })
}

/// `ncclRedOpCreatePreMulSum`: a sum of inputs that are multiplied before. `scalar` is one element of the type `data`,
/// in host memory that is read before this returns, or in device memory that is read when the operation is used.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn red_op_create_pre_mul_sum(
    scalar: *mut c_void,
    data: ncclDataType_t,
    residence: sys::ncclScalarResidence_t,
    comm: ncclComm_t,
) -> Result<ncclRedOp_t, Error> {
    let mut op = ncclRedOp_t::SUM;
    // SAFETY: `op` is a valid place for it; the rest is the caller's.
    let answer = unsafe { sys::ncclRedOpCreatePreMulSum(&mut op, scalar, data, residence, comm) };
    check("ncclRedOpCreatePreMulSum", answer).map(|_| op)
}

/// `ncclRedOpDestroy`.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn red_op_destroy(op: ncclRedOp_t, comm: ncclComm_t) -> Result<(), Error> {
    // SAFETY: the caller's.
    check("ncclRedOpDestroy", unsafe { sys::ncclRedOpDestroy(op, comm) }).map(|_| ())
}

/// `ncclMemAlloc` of at least `bytes` on the current device.
///
/// # Errors
///
/// Those of the module.
pub fn mem_alloc(bytes: usize) -> Result<CUdeviceptr, Error> {
    let mut memory = ptr::null_mut();
    // SAFETY: `memory` is a valid place for the address.
    let _ = check("ncclMemAlloc", unsafe { sys::ncclMemAlloc(&mut memory, bytes) })?;
    Ok(memory as usize as CUdeviceptr)
}

/// `ncclMemFree`.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn mem_free(memory: CUdeviceptr) -> Result<(), Error> {
    // SAFETY: the caller's.
    check("ncclMemFree", unsafe { sys::ncclMemFree(destination(memory)) }).map(|_| ())
}

/// `ncclCommRegister`: prepares `bytes` at `memory` for transfers without copies. The handle is for
/// [`comm_deregister`].
///
/// # Errors
///
/// Those of the module.
pub unsafe fn comm_register(
    comm: ncclComm_t,
    memory: CUdeviceptr,
    bytes: usize,
) -> Result<*mut c_void, Error> {
    let mut handle = ptr::null_mut();
    // SAFETY: `handle` is a valid place for it; the rest is the caller's.
    let answer = unsafe { sys::ncclCommRegister(comm, destination(memory), bytes, &mut handle) };
    check("ncclCommRegister", answer).map(|_| handle)
}

/// `ncclCommDeregister`.
///
/// # Errors
///
/// Those of the module.
pub unsafe fn comm_deregister(comm: ncclComm_t, handle: *mut c_void) -> Result<(), Error> {
    // SAFETY: the caller's.
    check("ncclCommDeregister", unsafe { sys::ncclCommDeregister(comm, handle) }).map(|_| ())
}
