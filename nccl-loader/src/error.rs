//! What can go wrong, in NCCL's words.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::ptr;

use crate::sys::{self, ncclResult_t};
use crate::{LoadError, Version};

/// Whether a call is done. Calls on a communicator that was made with `blocking = 0` may only have begun something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// `ncclSuccess`.
    Done,
    /// `ncclInProgress`: [`result::comm_get_async_error`](crate::result::comm_get_async_error) tells when it is done.
    InProgress,
}

/// The library that is open has no such function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{function} needs NCCL {needed}; this is {found}")]
pub struct Missing {
    /// The function.
    pub function: &'static str,
    /// The first version that has it.
    pub needed: Version,
    /// The version that is open.
    pub found: Version,
}

/// The library that is open is older than what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NCCL {needed} or later is needed; this is {found}")]
pub struct TooOld {
    /// The version that is open.
    pub found: Version,
    /// The version that is needed.
    pub needed: Version,
}

/// Why a function cannot be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no NCCL.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is one without this function.
    #[error(transparent)]
    Missing(#[from] Missing),
}

/// A function of NCCL was called and answered an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NcclError {
    /// The function.
    pub call: &'static str,
    /// What it answered.
    pub code: ncclResult_t,
    /// The code's name in `nccl.h`; "unknown" if it is newer than this crate.
    pub name: &'static str,
    /// `ncclGetErrorString` of the code.
    pub message: String,
    /// `ncclGetLastError`, where the library has it and had something to say. NCCL keeps one text for many
    /// communicators: it is the last warning, which need not be about this call.
    pub last: Option<String>,
}

impl NcclError {
    /// The error that `code`, an answer of `call`, stands for; `None` if it is no error.
    pub fn of(call: &'static str, code: ncclResult_t) -> Option<Self> {
        if matches!(code, ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS) {
            return None;
        }
        // SAFETY: it takes a number, and answers a string of static lifetime for every one.
        let message = text(unsafe { sys::ncclGetErrorString(code) });
        // SAFETY: the communicator is not looked at, and may be null (NCCL's documentation of the function).
        let last = text(unsafe { sys::ncclGetLastError(ptr::null_mut()) });
        Some(Self {
            call,
            code,
            name: code.name().unwrap_or("unknown"),
            message: message.unwrap_or_default(),
            last,
        })
    }
}

impl fmt::Display for NcclError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered {} ({}): {}", self.call, self.name, self.code.0, self.message)?;
        self.last.iter().try_for_each(|last| write!(f, "; NCCL's last error: {last}"))
    }
}

impl std::error::Error for NcclError {}

fn text(answer: Result<*const c_char, Unavailable>) -> Option<String> {
    let pointer = answer.ok().filter(|pointer| !pointer.is_null())?;
    // SAFETY: not null, and so a zero-terminated string that lives as long as the library, which is never closed.
    let text = unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Whatever a call of this crate can answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no NCCL.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The library lacks an optional function.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The library is older than what was asked for.
    #[error(transparent)]
    TooOld(#[from] TooOld),
    /// NCCL answered an error.
    #[error(transparent)]
    Nccl(#[from] NcclError),
}

impl From<Unavailable> for Error {
    fn from(error: Unavailable) -> Self {
        match error {
            Unavailable::Load(error) => error.into(),
            Unavailable::Missing(error) => error.into(),
        }
    }
}

/// What an answer of `call` means.
pub(crate) fn check(
    call: &'static str,
    answer: Result<ncclResult_t, Unavailable>,
) -> Result<Progress, Error> {
    let code = answer?;
    match NcclError::of(call, code) {
        Some(error) => Err(error.into()),
        None if code == ncclResult_t::IN_PROGRESS => Ok(Progress::InProgress),
        None => Ok(Progress::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_call_the_code_and_the_words_of_nccl() {
        let mut error = NcclError {
            call: "ncclAllReduce",
            code: ncclResult_t::INVALID_ARGUMENT,
            name: "ncclInvalidArgument",
            message: "invalid argument".to_owned(),
            last: None,
        };
        assert_eq!(error.to_string(), "ncclAllReduce answered ncclInvalidArgument (4): invalid argument");
        error.last = Some("AllReduce : invalid type 99".to_owned());
        let text = Error::from(error).to_string();
        assert!(text.ends_with("invalid argument; NCCL's last error: AllReduce : invalid type 99"), "{text}");
    }

    #[test]
    fn a_text_about_versions_has_both() {
        let (needed, found) = (Version::new(2, 28, 0), Version::new(2, 23, 4));
        let missing = Missing { function: "ncclAlltoAll", needed, found };
        assert_eq!(missing.to_string(), "ncclAlltoAll needs NCCL 2.28.0; this is 2.23.4");
        assert_eq!(
            Error::from(TooOld { found, needed }).to_string(),
            "NCCL 2.28.0 or later is needed; this is 2.23.4"
        );
    }

    #[test]
    fn success_and_in_progress_are_no_errors() {
        for (code, progress) in
            [(ncclResult_t::SUCCESS, Progress::Done), (ncclResult_t::IN_PROGRESS, Progress::InProgress)]
        {
            assert_eq!(NcclError::of("ncclGroupEnd", code), None);
            assert_eq!(check("ncclGroupEnd", Ok(code)), Ok(progress));
        }
    }

    #[test]
    fn a_code_that_is_newer_than_this_crate_is_an_error_without_a_name() {
        let error = NcclError::of("ncclSend", ncclResult_t(77)).unwrap();
        assert_eq!((error.code.0, error.name), (77, "unknown"));
    }
}
