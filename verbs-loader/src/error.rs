//! What can go wrong.

use std::fmt;
use std::path::PathBuf;

use crate::library::VARIABLE;

/// A library that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What was to be opened: a path, or a bare name for the dynamic loader.
    pub library: PathBuf,
    /// What the dynamic loader says.
    pub message: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.library.display(), self.message)
    }
}

/// A verb was called and failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerbsError {
    /// The verb.
    pub call: &'static str,
    /// The error's number, as `errno` has it. 0 if the library did not tell.
    pub errno: i32,
}

impl VerbsError {
    /// The number's name, `ENOMEM` for instance; `None` for one that verbs are not known to answer.
    pub fn name(&self) -> Option<&'static str> {
        errno_name(self.errno)
    }
}

impl fmt::Display for VerbsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errno == 0 {
            return write!(f, "{} failed without saying why", self.call);
        }
        let text = std::io::Error::from_raw_os_error(self.errno).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        match self.name() {
            Some(name) => write!(f, "{}: {text} ({name})", self.call),
            None => write!(f, "{}: {text} (errno {})", self.call, self.errno),
        }
    }
}

impl std::error::Error for VerbsError {}

macro_rules! names {
    ($($name:ident)*) => {
        fn errno_name(errno: i32) -> Option<&'static str> {
            match errno {
                $(libc::$name => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

names!(
    EPERM ENOENT EINTR EIO ENXIO E2BIG EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV EINVAL EMFILE ENOSPC ERANGE
    ENOSYS ENODATA EPROTO EMSGSIZE EPROTONOSUPPORT EOPNOTSUPP ENETDOWN ENETUNREACH ECONNRESET ENOBUFS ENOTCONN ETIMEDOUT
    EHOSTUNREACH
);

/// Whatever a call of this crate can answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No library could be opened.
    #[error("cannot open libibverbs: {}; install it, or name it in {VARIABLE}", joined(tried))]
    NotFound {
        /// Everything that was tried, in this order.
        tried: Vec<Attempt>,
    },
    /// This process has no descriptor left to open a library with. It may be tried again.
    #[error("cannot open libibverbs: this process has as many open files as it may have (ulimit -n)")]
    NoDescriptors,
    /// The library was opened, but is not libibverbs, or one from before `IBVERBS_1.1` (2007).
    #[error("{} is no libibverbs with versions 1.0 and 1.1: it has no {}", library.display(), missing.join(", "))]
    NotVerbs {
        /// The library that was opened.
        library: PathBuf,
        /// The functions that it does not have.
        missing: Vec<&'static str>,
    },
    /// The library is too old to have an optional function.
    #[error("{} has no {function}, which came with {version}", library.display())]
    TooOld {
        /// The library.
        library: PathBuf,
        /// The function.
        function: &'static str,
        /// The first version that has it.
        version: &'static str,
    },
    /// A verb failed.
    #[error(transparent)]
    Verbs(#[from] VerbsError),
}

impl Error {
    /// The number that the verb answered, if a verb failed.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Verbs(error) => Some(error.errno),
            _ => None,
        }
    }
}

fn joined(tried: &[Attempt]) -> String {
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A list of work requests was not posted, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source}; {posted} requests before it were posted")]
pub struct PostError {
    /// Requests that were posted before the one that failed: they will complete.
    pub posted: usize,
    /// Why.
    pub source: VerbsError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_verb_the_words_and_the_name() {
        let error = |errno| VerbsError { call: "ibv_reg_mr", errno }.to_string();
        assert_eq!(error(libc::ENOMEM), "ibv_reg_mr: Cannot allocate memory (ENOMEM)");
        assert_eq!(error(libc::EXDEV), "ibv_reg_mr: Invalid cross-device link (errno 18)");
        assert_eq!(error(0), "ibv_reg_mr failed without saying why");
    }

    #[test]
    fn a_library_that_is_not_there_is_told_with_the_way_out() {
        let attempt = Attempt { library: "/a/libibverbs.so.1".into(), message: "no such file".to_owned() };
        let text = Error::NotFound { tried: vec![attempt] }.to_string();
        assert_eq!(
            text,
            "cannot open libibverbs: /a/libibverbs.so.1: no such file; install it, or name it in MESHREDUCE_VERBS"
        );
    }
}
