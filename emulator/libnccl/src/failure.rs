//! What goes wrong, with NCCL's codes, and the text of the last of it.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

/// `ncclResult_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Code {
    Success = 0,
    UnhandledCudaError = 1,
    SystemError = 2,
    InternalError = 3,
    InvalidArgument = 4,
    InvalidUsage = 5,
    RemoteError = 6,
    InProgress = 7,
}

impl Code {
    /// The error with this number; `None` if it is not one.
    pub(crate) fn error(number: i32) -> Option<Self> {
        let errors = [
            Self::UnhandledCudaError,
            Self::SystemError,
            Self::InternalError,
            Self::InvalidArgument,
            Self::InvalidUsage,
            Self::RemoteError,
        ];
        errors.into_iter().find(|code| *code as i32 == number)
    }
}

/// An error with what is to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NcclError {
    pub(crate) code: Code,
    pub(crate) text: String,
}

/// What most functions here answer.
pub(crate) type Result<T, E = NcclError> = std::result::Result<T, E>;

impl fmt::Display for NcclError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! constructors {
    ($($name:ident $code:ident;)*) => {$(
        pub(crate) fn $name(text: impl Into<String>) -> Self {
            Self { code: Code::$code, text: text.into() }
        }
    )*};
}

impl NcclError {
    constructors! {
        argument InvalidArgument;
        usage InvalidUsage;
        remote RemoteError;
        internal InternalError;
        cuda UnhandledCudaError;
    }

    /// The operating system refused something.
    pub(crate) fn system(what: &str, error: &dyn fmt::Display) -> Self {
        Self { code: Code::SystemError, text: format!("{what}: {error}") }
    }
}

/// Every text for `ncclGetLastError`, kept for ever because C has pointers to it; repeated ones are kept once.
static TEXTS: Mutex<Vec<&'static CStr>> = Mutex::new(Vec::new());
static LAST: Mutex<&'static CStr> = Mutex::new(c"");
/// Beyond so many different texts the last one stays what it was.
const MOST_TEXTS: usize = 4096;

/// Makes a failure the last one, and writes it to stderr if `NCCL_DEBUG` asks for warnings.
pub(crate) fn note(failure: &NcclError) {
    let text = format!("emulated node's stand-in for NCCL: {}", failure.text);
    if wants_warnings() {
        eprintln!("NCCL WARN {text}");
    }
    let Ok(text) = CString::new(text) else { return };
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = match texts.iter().find(|kept| ***kept == *text) {
        Some(kept) => kept,
        None if texts.len() < MOST_TEXTS => {
            let kept: &'static CStr = Box::leak(text.into_boxed_c_str());
            texts.push(kept);
            kept
        }
        None => return,
    };
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = kept;
}

/// The text of the process's last failure; empty if there was none.
pub(crate) fn last() -> &'static CStr {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wants_warnings() -> bool {
    static WANTS: OnceLock<bool> = OnceLock::new();
    *WANTS.get_or_init(|| {
        let level = std::env::var("NCCL_DEBUG").unwrap_or_default();
        ["WARN", "INFO", "TRACE"].iter().any(|wanted| level.eq_ignore_ascii_case(wanted))
    })
}

/// `ncclGetErrorString`, in NCCL's words.
pub(crate) fn meaning(code: i32) -> &'static CStr {
    match code {
        0 => c"no error",
        1 => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        2 => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        3 => c"internal error - please report this issue to the NCCL developers",
        4 => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        5 => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        6 => c"remote process exited or there was a network error",
        7 => c"NCCL operation in progress",
        _ => c"unknown result code",
    }
}
