//! What MPI, or the way it was started, has against a group.

use std::ffi::c_int;

use ::mpi::ffi;

/// Why MPI cannot serve a group, or failed at it. It comes as the source of [`crate::Error::NotMade`] or [`crate::Error::Backend`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MpiError {
    /// MPI lets only some threads call it.
    #[error("MPI was initialised with the thread level {level}; MPI_THREAD_MULTIPLE is needed")]
    Threads {
        /// What it allows.
        level: &'static str,
    },
    /// MPI has ended, and cannot be begun again.
    #[error("MPI was finalised already")]
    Finalised,
    /// A rank of the group is another one of MPI's ranks.
    #[error(
        "rank {rank} of the group is rank {expected} of all ranks, but MPI says {found}: start the ranks with mpirun and take rank \
         and world size from MPI"
    )]
    OtherRank {
        /// The rank in the group.
        rank: usize,
        /// The rank in the group of all ranks.
        expected: usize,
        /// MPI's rank.
        found: usize,
    },
    /// Ranks of the group belong to different MPI jobs.
    #[error("ranks {} and {} of the group belong to different MPI jobs ({} and {})", .ranks.0, .ranks.1, .jobs.0, .jobs.1)]
    OtherJob {
        /// The two ranks.
        ranks: (usize, usize),
        /// What is known of their jobs.
        jobs: (String, String),
    },
    /// Another rank has no MPI to work with.
    #[error("rank {rank} of the group cannot use MPI: {problem}")]
    Elsewhere {
        /// The rank in the group.
        rank: usize,
        /// What it says.
        problem: String,
    },
    /// A function of MPI's failed.
    #[error("{function}: {text}")]
    Function {
        /// Which.
        function: &'static str,
        /// MPI's own words.
        text: String,
    },
    /// More elements than MPI can count.
    #[error("{count} elements in one call: MPI takes {} at most", c_int::MAX)]
    TooLong {
        /// How many there are.
        count: usize,
    },
    /// A message was shorter than the memory that was to receive it.
    #[error("rank {from} sent {sent} bytes where {expected} were to be received")]
    Shorter {
        /// Who sent it.
        from: usize,
        /// Its length.
        sent: usize,
        /// The length of the output.
        expected: usize,
    },
    /// The backend's thread could not be started.
    #[error("no thread for calls that go on: {0}")]
    Thread(String),
}

/// What a function of MPI's returned, as a result.
pub(super) fn check(function: &'static str, code: c_int) -> Result<(), MpiError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length: c_int = 0;
    // SAFETY: MPI writes at most MPI_MAX_ERROR_STRING bytes.
    let known = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    let text = match known == ffi::MPI_SUCCESS as c_int {
        true => String::from_utf8_lossy(&text[..length]).into_owned(),
        false => format!("error {code}"),
    };
    Err(MpiError::Function { function, text })
}
