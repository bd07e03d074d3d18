//! The verbs with a `Result` in place of their ways to fail. No policy: nothing is retried, nothing freed for the caller.
//!
//! A verb that answers a pointer fails by null and `errno`. One that answers a number fails in three ways, depending on
//! the function, the version and the provider: by the error's number, by its negative, or by -1 with `errno`. All three
//! come out as the number here.
//!
//! The safety contract of all unsafe functions is that of libibverbs' manual pages: objects are alive and of this
//! library, and structures are valid for what the verb reads and writes.

mod completion;
mod device;
mod memory;
mod process;
mod queue_pair;

use std::ffi::c_int;
use std::ptr::NonNull;

use rustix::io::Errno;

use crate::VerbsError;

pub use completion::*;
pub use device::*;
pub use memory::*;
pub use process::*;
pub use queue_pair::*;

type Verb<T> = Result<T, VerbsError>;

fn set_errno(value: i32) {
    // SAFETY: the place is this thread's own.
    unsafe { *libc::__errno_location() = value };
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Runs a verb that answers a number: 0 is success.
fn number(call: &'static str, verb: impl FnOnce() -> c_int) -> Verb<()> {
    set_errno(0);
    match verb() {
        0 => Ok(()),
        // -1 is the negative of EPERM too, which verbs that set `errno` do not mean.
        -1 if errno() != 0 => Err(VerbsError { call, errno: errno() }),
        answer => Err(VerbsError { call, errno: answer.saturating_abs() }),
    }
}

/// Runs a verb that answers a pointer: null is failure.
fn pointer<T>(call: &'static str, verb: impl FnOnce() -> *mut T) -> Verb<NonNull<T>> {
    set_errno(0);
    NonNull::new(verb()).ok_or_else(|| VerbsError { call, errno: errno() })
}

/// A verb that the context's table of operations does not have.
fn not_there(call: &'static str) -> VerbsError {
    VerbsError { call, errno: Errno::NOSYS.raw_os_error() }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    fn failing(answer: c_int, errno_of_the_verb: i32) -> Verb<()> {
        number("verb", || {
            set_errno(errno_of_the_verb);
            answer
        })
    }

    #[test]
    fn all_three_ways_to_fail_give_the_number() {
        let invalid = Err(VerbsError { call: "verb", errno: libc::EINVAL });
        assert_eq!(failing(libc::EINVAL, 0), invalid);
        assert_eq!(failing(-libc::EINVAL, 0), invalid);
        assert_eq!(failing(-1, libc::EINVAL), invalid);
        assert_eq!(
            failing(libc::EINVAL, libc::ENOMEM),
            invalid,
            "the answer is nearer to the fault than errno"
        );
        assert_eq!(failing(-1, 0), Err(VerbsError { call: "verb", errno: libc::EPERM }));
    }

    #[test]
    fn errno_of_a_success_means_nothing() {
        assert_eq!(failing(0, libc::EINVAL), Ok(()));
        let mut place = 0;
        let found = pointer("verb", || {
            set_errno(libc::EINVAL);
            &raw mut place
        });
        assert!(found.is_ok());
    }

    #[test]
    fn errno_from_before_the_call_is_not_taken_for_the_reason() {
        set_errno(libc::EINVAL);
        let failed = pointer("verb", ptr::null_mut::<u8>);
        assert_eq!(failed, Err(VerbsError { call: "verb", errno: 0 }));
    }
}
