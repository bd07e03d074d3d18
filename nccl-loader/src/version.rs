//! NCCL's versions, and the one that is open.

use std::ffi::c_int;
use std::fmt;
use std::sync::OnceLock;

use crate::{Error, LoadError, TooOld, library, sys};

/// A version of NCCL, as in 2.23.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 2 so far.
    pub major: u32,
    /// 23 in 2.23.4.
    pub minor: u32,
    /// 4 in 2.23.4.
    pub patch: u32,
}

impl Version {
    /// `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// From `NCCL_VERSION_CODE`: 22304 is 2.23.4, and 2804 is 2.8.4, because the minor version had one digit up to 2.8.
    /// A number that is no version (negative) is 0.0.0.
    ///
    /// ```
    /// use meshreduce_nccl_loader::Version;
    ///
    /// assert_eq!(Version::from_code(22304).to_string(), "2.23.4");
    /// assert_eq!(Version::from_code(2804), Version::new(2, 8, 4));
    /// ```
    pub fn from_code(code: i32) -> Self {
        let code = u32::try_from(code).unwrap_or_default();
        let (major, rest) =
            if code < 10_000 { (code / 1000, code % 1000) } else { (code / 10_000, code % 10_000) };
        Self { major, minor: rest / 100, patch: rest % 100 }
    }

    /// As `NCCL_VERSION_CODE`.
    pub fn code(self) -> u32 {
        let major = if self.major <= 2 && self.minor <= 8 { 1000 } else { 10_000 };
        self.major * major + self.minor * 100 + self.patch
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The version of the NCCL that is open; opens it if need be.
///
/// # Errors
///
/// [`Error::Load`] without NCCL.
pub fn version() -> Result<Version, Error> {
    Ok(found()?)
}

/// Whether the NCCL that is open is `needed` or later.
///
/// # Errors
///
/// [`Error::TooOld`] with both versions, [`Error::Load`] without NCCL.
pub fn check_version(needed: Version) -> Result<(), Error> {
    let found = version()?;
    if found < needed { Err(TooOld { found, needed }.into()) } else { Ok(()) }
}

/// [`version`], with the only error that it has. A library that does not tell its version has 0.0.0.
pub(crate) fn found() -> Result<Version, LoadError> {
    static FOUND: OnceLock<Version> = OnceLock::new();
    library::status()?;
    Ok(*FOUND.get_or_init(|| {
        let mut code: c_int = 0;
        // SAFETY: `code` is a valid place for the number.
        match unsafe { sys::ncclGetVersion(&mut code) } {
            Ok(sys::ncclResult_t::SUCCESS) => Version::from_code(code),
            _ => Version::new(0, 0, 0),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_the_version_that_it_was_made_from() {
        for (code, text) in [
            (2000, "2.0.0"),
            (2708, "2.7.8"),
            (2804, "2.8.4"),
            (20906, "2.9.6"),
            (21003, "2.10.3"),
            (22304, "2.23.4"),
            (23007, "2.30.7"),
            (30100, "3.1.0"),
        ] {
            let version = Version::from_code(code);
            assert_eq!(version.to_string(), text);
            assert_eq!(version.code(), code as u32);
        }
        assert_eq!(Version::from_code(-5), Version::new(0, 0, 0));
    }

    #[test]
    fn later_versions_are_greater() {
        assert!(Version::from_code(2804) < Version::from_code(20906));
        assert!(Version::from_code(20906) < Version::from_code(21003));
    }
}
