//! How a work request ended.

use std::fmt;

use crate::sys;

/// `enum ibv_wc_status`: how a work request ended. Any number, because newer libraries may have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

macro_rules! statuses {
    ($($name:ident = $raw:ident, $text:literal;)*) => {
        impl Status {
            $(#[doc = concat!("`", stringify!($raw), "`: ", $text, ".")] pub const $name: Self = Self(sys::$raw);)*

            /// What `ibv_wc_status_str` says in libibverbs; "unknown" for a number that is newer than this crate.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    _ => "unknown",
                }
            }

            /// The name in `verbs.h`, if this crate knows the number.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($raw)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = IBV_WC_SUCCESS, "success";
    LOCAL_LENGTH = IBV_WC_LOC_LEN_ERR, "local length error";
    LOCAL_QP_OPERATION = IBV_WC_LOC_QP_OP_ERR, "local QP operation error";
    LOCAL_EEC_OPERATION = IBV_WC_LOC_EEC_OP_ERR, "local EE context operation error";
    LOCAL_PROTECTION = IBV_WC_LOC_PROT_ERR, "local protection error";
    FLUSHED = IBV_WC_WR_FLUSH_ERR, "Work Request Flushed Error";
    WINDOW_BIND = IBV_WC_MW_BIND_ERR, "memory management operation error";
    BAD_RESPONSE = IBV_WC_BAD_RESP_ERR, "bad response error";
    LOCAL_ACCESS = IBV_WC_LOC_ACCESS_ERR, "local access error";
    REMOTE_INVALID_REQUEST = IBV_WC_REM_INV_REQ_ERR, "remote invalid request error";
    REMOTE_ACCESS = IBV_WC_REM_ACCESS_ERR, "remote access error";
    REMOTE_OPERATION = IBV_WC_REM_OP_ERR, "remote operation error";
    RETRIES_EXCEEDED = IBV_WC_RETRY_EXC_ERR, "transport retry counter exceeded";
    RNR_RETRIES_EXCEEDED = IBV_WC_RNR_RETRY_EXC_ERR, "RNR retry counter exceeded";
    LOCAL_RDD_VIOLATION = IBV_WC_LOC_RDD_VIOL_ERR, "local RDD violation error";
    REMOTE_INVALID_RD_REQUEST = IBV_WC_REM_INV_RD_REQ_ERR, "remote invalid RD request";
    REMOTE_ABORTED = IBV_WC_REM_ABORT_ERR, "aborted error";
    INVALID_EEC_NUMBER = IBV_WC_INV_EECN_ERR, "invalid EE context number";
    INVALID_EEC_STATE = IBV_WC_INV_EEC_STATE_ERR, "invalid EE context state";
    FATAL = IBV_WC_FATAL_ERR, "fatal error";
    RESPONSE_TIMEOUT = IBV_WC_RESP_TIMEOUT_ERR, "response timeout error";
    GENERAL = IBV_WC_GENERAL_ERR, "general error";
    TAG_MATCHING = IBV_WC_TM_ERR, "TM error";
    TAG_MATCHING_INCOMPLETE = IBV_WC_TM_RNDV_INCOMPLETE, "TM software rendezvous";
}

impl Status {
    /// Whether the request was done.
    pub fn is_success(self) -> bool {
        self == Self::SUCCESS
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(_) => f.write_str(self.text()),
            None => write!(f, "unknown ({})", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_name_and_a_text_of_its_own() {
        let texts: std::collections::HashSet<_> = (0..24).map(|code| Status(code).text()).collect();
        assert_eq!(texts.len(), 24);
        assert!((0..24).all(|code| Status(code).name().is_some()));
        assert_eq!(Status(24).to_string(), "unknown (24)");
        assert_eq!(Status::RETRIES_EXCEEDED.to_string(), "transport retry counter exceeded");
        assert_eq!(Status(12).name(), Some("IBV_WC_RETRY_EXC_ERR"));
    }
}
