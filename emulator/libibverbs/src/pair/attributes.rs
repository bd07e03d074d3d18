//! The states of a queue pair, and what each step needs (InfiniBand Architecture Specification, 11.2.5.2; the masks are
//! those of Linux, `ib_modify_qp_is_ok`).

use std::ffi::c_int;
use std::sync::Arc;

use super::{Inner, MAX_READS, Pair};
use crate::abi::*;
use crate::address::PortAddress;
use crate::command::{self, Command};

const PATH: u32 = QP_ALT_PATH | QP_PATH_MIG_STATE;

/// From, to, what has to be given, and what may be given.
const STEPS: [(u32, u32, u32, u32); 5] = [
    (QPS_RESET, QPS_INIT, QP_PKEY_INDEX | QP_PORT | QP_ACCESS_FLAGS, 0),
    (QPS_INIT, QPS_INIT, 0, QP_PKEY_INDEX | QP_PORT | QP_ACCESS_FLAGS),
    (
        QPS_INIT,
        QPS_RTR,
        QP_AV | QP_PATH_MTU | QP_DEST_QPN | QP_RQ_PSN | QP_MAX_DEST_RD_ATOMIC | QP_MIN_RNR_TIMER,
        QP_ALT_PATH | QP_ACCESS_FLAGS | QP_PKEY_INDEX,
    ),
    (
        QPS_RTR,
        QPS_RTS,
        QP_TIMEOUT | QP_RETRY_CNT | QP_RNR_RETRY | QP_SQ_PSN | QP_MAX_QP_RD_ATOMIC,
        QP_CUR_STATE | PATH | QP_ACCESS_FLAGS | QP_MIN_RNR_TIMER,
    ),
    (QPS_RTS, QPS_RTS, 0, QP_CUR_STATE | PATH | QP_ACCESS_FLAGS | QP_MIN_RNR_TIMER),
];

/// `ibv_modify_qp`.
pub(crate) fn modify(pair: &Arc<Pair>, given: &ibv_qp_attr, mask: u32) -> Answer<c_int> {
    let mut inner = pair.lock();
    let from = inner.state;
    let to = if mask & QP_STATE != 0 { given.qp_state } else { from };
    let rest = mask & !QP_STATE;
    match to {
        QPS_RESET | QPS_ERR if rest & !QP_CUR_STATE != 0 => return Err(Errno(libc::EINVAL)),
        QPS_RESET => {
            inner.clear();
            pair.forget_completions();
        }
        QPS_ERR if from == QPS_RESET => inner.state = QPS_ERR,
        QPS_ERR => pair.flush(&mut inner),
        _ => {
            let step = STEPS.iter().find(|step| (step.0, step.1) == (from, to)).ok_or(Errno(libc::EINVAL))?;
            let (needed, allowed) = (step.2, step.2 | step.3);
            if rest & needed != needed || rest & !allowed != 0 {
                return Err(Errno(libc::EINVAL));
            }
            let source = check(pair, given, rest)?;
            take(&mut inner, given, rest);
            if let Some((peer, source)) = source {
                (inner.peer, inner.source) = (peer, source);
            }
            if (from, to) == (QPS_RTR, QPS_RTS) {
                (inner.retries_left, inner.rnr_left) = (given.retry_cnt, given.rnr_retry);
            }
            inner.state = to;
        }
    }
    // SAFETY: the structure lives as long as the pair; programs only read the field, and by the contract of the verb
    // not while this runs.
    unsafe { (*pair.raw.pointer()).state = inner.state };
    drop(inner);
    command::tell(Command::Work(pair.number));
    Ok(0)
}

/// Whether the values are possible; the addresses of peer and port, if they were given.
fn check(pair: &Pair, given: &ibv_qp_attr, mask: u32) -> Answer<Option<(PortAddress, PortAddress)>> {
    let adapter = &pair.context().adapter;
    let remote = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC;
    let wrong = [
        (QP_PORT, given.port_num != 1),
        (QP_PKEY_INDEX, given.pkey_index != 0),
        (QP_ACCESS_FLAGS, given.qp_access_flags & !remote != 0),
        (QP_PATH_MTU, given.path_mtu == 0 || given.path_mtu > adapter.mtu_code()),
        (QP_DEST_QPN, given.dest_qp_num > 0xff_ffff),
        (QP_RQ_PSN, given.rq_psn > 0xff_ffff),
        (QP_SQ_PSN, given.sq_psn > 0xff_ffff),
        (QP_MAX_DEST_RD_ATOMIC, given.max_dest_rd_atomic > MAX_READS),
        (QP_MAX_QP_RD_ATOMIC, given.max_rd_atomic > MAX_READS),
        (QP_MIN_RNR_TIMER, given.min_rnr_timer > 31),
        (QP_TIMEOUT, given.timeout > 31),
        (QP_RETRY_CNT, given.retry_cnt > 7),
        (QP_RNR_RETRY, given.rnr_retry > 7),
        (QP_ALT_PATH, true),
    ];
    if wrong.iter().any(|&(bit, wrong)| mask & bit != 0 && wrong) {
        return Err(Errno(libc::EINVAL));
    }
    if mask & QP_AV == 0 {
        return Ok(None);
    }
    let way = &given.ah_attr;
    if way.port_num != 1 || way.is_global == 0 && adapter.is_ethernet() {
        return Err(Errno(libc::EINVAL));
    }
    if way.is_global == 0 {
        return Ok(Some((PortAddress::of_lid(way.dlid), adapter.lid())));
    }
    let source = adapter.gid(way.grh.sgid_index.into()).ok_or(Errno(libc::EINVAL))?;
    let mut gid = [0; 16];
    for (place, half) in gid.chunks_exact_mut(8).zip(way.grh.dgid) {
        place.copy_from_slice(&half.to_ne_bytes());
    }
    // The hop limit counts on routed packets only; one of 0 reaches nobody beyond the own host.
    Ok(Some((PortAddress { gid, kind: source.kind }, source)))
}

/// Keeps what was given.
fn take(inner: &mut Inner, given: &ibv_qp_attr, mask: u32) {
    macro_rules! keep {
        ($($bit:ident $($field:ident)*;)*) => {
            $(if mask & $bit != 0 {
                $(inner.attributes.$field = given.$field;)*
            })*
        };
    }
    keep! {
        QP_PORT port_num;
        QP_PKEY_INDEX pkey_index;
        QP_ACCESS_FLAGS qp_access_flags;
        QP_AV ah_attr;
        QP_PATH_MTU path_mtu;
        QP_DEST_QPN dest_qp_num;
        QP_RQ_PSN rq_psn;
        QP_MAX_DEST_RD_ATOMIC max_dest_rd_atomic;
        QP_MIN_RNR_TIMER min_rnr_timer;
        QP_TIMEOUT timeout;
        QP_RETRY_CNT retry_cnt;
        QP_RNR_RETRY rnr_retry;
        QP_SQ_PSN sq_psn;
        QP_MAX_QP_RD_ATOMIC max_rd_atomic;
    }
}

/// `ibv_query_qp`: all of it, whatever was asked for.
pub(crate) fn query(pair: &Pair) -> (ibv_qp_attr, ibv_qp_init_attr) {
    let inner = pair.lock();
    let mut attributes = inner.attributes;
    attributes.qp_state = inner.state;
    attributes.cur_qp_state = inner.state;
    attributes.cap = pair.capacity;
    // SAFETY: the structure is alive, and these fields do not change.
    let raw = unsafe { &*pair.raw.pointer() };
    let init = ibv_qp_init_attr {
        qp_context: raw.qp_context,
        send_cq: raw.send_cq,
        recv_cq: raw.recv_cq,
        srq: raw.srq,
        cap: pair.capacity,
        qp_type: raw.qp_type,
        sq_sig_all: pair.signal_all.into(),
    };
    (attributes, init)
}
