//! The C functions that make communicators and end them.

use crate::abi::{Array, Config, Out, exports};
use crate::bootstrap::{self, Id, IdBytes};
use crate::comm::start::Start;
use crate::comm::{self, Handle};
use crate::failure::{Code, NcclError, Result};
use crate::group;

/// `ncclUniqueId`.
#[repr(C)]
pub(crate) struct UniqueId {
    internal: IdBytes,
}

/// `NCCL_SPLIT_NOCOLOR`.
const NO_COLOR: i32 = -1;
/// `NCCL_SHRINK_ABORT`.
const SHRINK_ABORT: i32 = 1;

fn init_rank(
    call: &str,
    new: Out<Handle>,
    ranks: i32,
    id: &UniqueId,
    rank: i32,
    config: &Config,
) -> Result<Code> {
    let new = new.require(call, "newcomm")?;
    let invalid = || NcclError::argument(format!("Invalid rank requested : {rank}/{ranks}"));
    let count = usize::try_from(ranks).ok().filter(|count| *count > 0).ok_or_else(invalid)?;
    let rank = usize::try_from(rank).ok().filter(|rank| *rank < count).ok_or_else(invalid)?;
    let blocking = config.blocking(true)?;
    let start = Start::meet(Id::from_bytes(&id.internal)?, count, rank, blocking)?;
    begin(start, &new, true)
}

/// Starts a communicator whose handle the caller is to have, unless it is not to be one. A call that fails leaves none
/// behind; what fails later, in a group or behind the call, is the communicator's.
fn begin(start: Start, new: &Out<Handle>, is_member: bool) -> Result<Code> {
    let communicator = std::sync::Arc::clone(&start.communicator);
    new.set(if is_member { communicator.handle } else { 0 });
    if !is_member {
        communicator.forget();
    }
    group::begin(start).inspect_err(|_| {
        new.set(0);
        communicator.forget();
    })
}

exports! {
    fn ncclGetUniqueId(id: Out<UniqueId>) {
        let id = id.require("GetUniqueId", "out")?;
        id.set(UniqueId { internal: bootstrap::unique_id()?.to_bytes() });
        Ok(Code::Success)
    }

    fn ncclCommInitRank(new: Out<Handle>, ranks: i32, id: UniqueId, rank: i32) {
        init_rank("CommInitRank", new, ranks, &id, rank, &Config::none())
    }

    fn ncclCommInitRankConfig(new: Out<Handle>, ranks: i32, id: UniqueId, rank: i32, config: Config) {
        init_rank("CommInitRankConfig", new, ranks, &id, rank, &config)
    }

    fn ncclCommSplit(comm: Handle, color: i32, key: i32, new: Out<Handle>, config: Config) {
        let parent = comm::find(comm, "CommSplit")?;
        let new = new.require("CommSplit", "newcomm")?;
        if color < NO_COLOR {
            return Err(NcclError::argument(format!("CommSplit : invalid color {color}")));
        }
        parent.ensure_ready()?;
        let blocking = config.blocking(parent.blocking)?;
        begin(Start::split(&parent, color, key, blocking), &new, color != NO_COLOR)
    }

    fn ncclCommShrink(comm: Handle, excluded: Array, count: i32, new: Out<Handle>, config: Config, flags: i32) {
        let parent = comm::find(comm, "CommShrink")?;
        let new = new.require("CommShrink", "newcomm")?;
        let ready = parent.ready()?;
        let excluded = excluded.elements(count);
        let excluded = excluded.ok_or_else(|| NcclError::argument("CommShrink : no rank is excluded"))?;
        let mut members: Vec<_> = (0..ready.size).collect();
        for rank in excluded {
            let place = members.iter().position(|member| *member as i64 == i64::from(rank));
            let place = place.ok_or_else(|| {
                NcclError::argument(format!("CommShrink : rank {rank} is no rank, or is excluded twice"))
            })?;
            members.remove(place);
        }
        if !members.contains(&ready.rank) {
            return Err(NcclError::argument("CommShrink : the rank that calls is excluded"));
        }
        let blocking = config.blocking(parent.blocking)?;
        match flags {
            0 => {
                parent.ensure_ready()?;
            }
            SHRINK_ABORT => parent.stop(),
            flags => return Err(NcclError::argument(format!("CommShrink : invalid flags {flags}"))),
        }
        begin(Start::shrink(&parent, members, blocking), &new, true)
    }

    fn ncclCommFinalize(comm: Handle) {
        let comm = comm::find(comm, "CommFinalize")?;
        comm.ensure_ready()?;
        if comm.blocking {
            return comm.finalize().map(|()| Code::Success);
        }
        comm.finalize_behind().map(|()| Code::InProgress)
    }

    fn ncclCommDestroy(comm: Handle) {
        // As in NCCL, null is nothing to destroy.
        if comm != 0 {
            comm::find(comm, "CommDestroy")?.destroy()?;
        }
        Ok(Code::Success)
    }

    fn ncclCommAbort(comm: Handle) {
        if comm != 0 {
            comm::find(comm, "CommAbort")?.abort();
        }
        Ok(Code::Success)
    }

    /// For tests: makes the communicator report an asynchronous error, and end what is pending.
    fn meshreduceNcclFail(comm: Handle, code: i32) {
        let comm = comm::find(comm, "meshreduceNcclFail")?;
        let code = Code::error(code).ok_or_else(|| NcclError::argument(format!("{code} is no error")))?;
        comm.fail(NcclError { code, text: "a test asked for this error".to_owned() });
        Ok(Code::Success)
    }

    /// For tests: makes a later `ncclCommAbort` of the communicator wait so long before it does anything.
    fn meshreduceNcclDelayAbort(comm: Handle, milliseconds: u32) {
        let comm = comm::find(comm, "meshreduceNcclDelayAbort")?;
        comm.abort_delay.store(milliseconds.into(), std::sync::atomic::Ordering::SeqCst);
        Ok(Code::Success)
    }
}
