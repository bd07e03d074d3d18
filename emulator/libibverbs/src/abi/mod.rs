//! What the C functions are made of: the structures and numbers of `infiniband/verbs.h`, and how a function ends.

mod call;
mod types;

pub(crate) use call::{Answer, Errno, Registry, guard, minus_one, number, pointer, set_errno, text};
pub(crate) use types::*;

macro_rules! constants {
    ($($name:ident = $value:expr;)*) => {
        $(pub(crate) const $name: u32 = $value;)*
    };
}

constants! {
    GID_TYPE_IB = 0;
    GID_TYPE_ROCE_V1 = 1;
    GID_TYPE_ROCE_V2 = 2;

    PORT_DOWN = 1;
    PORT_ACTIVE = 4;

    EVENT_CQ_ERR = 0;
    EVENT_QP_FATAL = 1;
    EVENT_QP_REQ_ERR = 2;
    EVENT_QP_ACCESS_ERR = 3;
    EVENT_COMM_EST = 4;
    EVENT_PORT_ACTIVE = 9;
    EVENT_PORT_ERR = 10;

    WC_SUCCESS = 0;
    WC_LOC_LEN_ERR = 1;
    WC_LOC_QP_OP_ERR = 2;
    WC_LOC_PROT_ERR = 4;
    WC_WR_FLUSH_ERR = 5;
    WC_REM_INV_REQ_ERR = 9;
    WC_REM_ACCESS_ERR = 10;
    WC_REM_OP_ERR = 11;
    WC_RETRY_EXC_ERR = 12;
    WC_RNR_RETRY_EXC_ERR = 13;

    WC_SEND = 0;
    WC_RDMA_WRITE = 1;
    WC_RDMA_READ = 2;
    WC_RECV = 128;
    WC_RECV_RDMA_WITH_IMM = 129;
    WC_WITH_IMM = 2;

    ACCESS_LOCAL_WRITE = 1;
    ACCESS_REMOTE_WRITE = 1 << 1;
    ACCESS_REMOTE_READ = 1 << 2;
    ACCESS_REMOTE_ATOMIC = 1 << 3;
    ACCESS_MW_BIND = 1 << 4;
    ACCESS_OPTIONAL_RANGE = 0x3ff0_0000;

    QPT_RC = 2;

    QP_STATE = 1;
    QP_CUR_STATE = 1 << 1;
    QP_ACCESS_FLAGS = 1 << 3;
    QP_PKEY_INDEX = 1 << 4;
    QP_PORT = 1 << 5;
    QP_AV = 1 << 7;
    QP_PATH_MTU = 1 << 8;
    QP_TIMEOUT = 1 << 9;
    QP_RETRY_CNT = 1 << 10;
    QP_RNR_RETRY = 1 << 11;
    QP_RQ_PSN = 1 << 12;
    QP_MAX_QP_RD_ATOMIC = 1 << 13;
    QP_ALT_PATH = 1 << 14;
    QP_MIN_RNR_TIMER = 1 << 15;
    QP_SQ_PSN = 1 << 16;
    QP_MAX_DEST_RD_ATOMIC = 1 << 17;
    QP_PATH_MIG_STATE = 1 << 18;
    QP_DEST_QPN = 1 << 20;

    QPS_RESET = 0;
    QPS_INIT = 1;
    QPS_RTR = 2;
    QPS_RTS = 3;
    QPS_ERR = 6;

    WR_RDMA_WRITE = 0;
    WR_RDMA_WRITE_WITH_IMM = 1;
    WR_SEND = 2;
    WR_SEND_WITH_IMM = 3;
    WR_RDMA_READ = 4;

    SEND_FENCE = 1;
    SEND_SIGNALED = 1 << 1;
    SEND_SOLICITED = 1 << 2;
    SEND_INLINE = 1 << 3;

    LINK_LAYER_INFINIBAND = 1;
    LINK_LAYER_ETHERNET = 2;
}
