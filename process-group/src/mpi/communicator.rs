//! A group's communicator.

use std::ffi::{c_int, c_void};

use ::mpi::ffi;

use super::error::{MpiError, check};
use super::runtime::enter;

/// A communicator of the group's ranks alone, in the group's order, which reports errors instead of ending the job.
///
/// MPI frees a communicator by a call of all ranks, so dropping one does not.
#[derive(Debug)]
pub(super) struct Communicator {
    raw: ffi::MPI_Comm,
    tag_limit: c_int,
}

// SAFETY: MPI's handles can be used by any thread, since MPI_THREAD_MULTIPLE was asked for.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl Communicator {
    /// Of MPI's ranks `ranks`, which all call this with the same `tag`, and others need not. Waits for them, for ever.
    pub(super) fn create(ranks: &[usize], tag: c_int) -> Result<Self, MpiError> {
        let members = ranks.iter().map(|rank| int(*rank)).collect::<Result<Vec<_>, _>>()?;
        let _entered = enter()?;
        // SAFETY: MPI is initialised; the ranks are its own; handles are those that MPI gave.
        unsafe {
            let (mut world, mut group) = (ffi::RSMPI_GROUP_NULL, ffi::RSMPI_GROUP_NULL);
            check("MPI_Comm_group", ffi::MPI_Comm_group(ffi::RSMPI_COMM_WORLD, &mut world))?;
            let included = ffi::MPI_Group_incl(world, int(members.len())?, members.as_ptr(), &mut group);
            ffi::MPI_Group_free(&mut world);
            check("MPI_Group_incl", included)?;
            let mut raw = ffi::RSMPI_COMM_NULL;
            let created = ffi::MPI_Comm_create_group(ffi::RSMPI_COMM_WORLD, group, tag, &mut raw);
            ffi::MPI_Group_free(&mut group);
            check("MPI_Comm_create_group", created)?;
            let handler = ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN);
            check("MPI_Comm_set_errhandler", handler)?;
            Ok(Self { raw, tag_limit: tag_limit()? })
        }
    }

    /// For MPI's functions.
    pub(super) fn raw(&self) -> ffi::MPI_Comm {
        self.raw
    }

    /// The greatest tag that users' messages may have.
    pub(super) fn max_tag(&self) -> u32 {
        u32::try_from(self.tag_limit - 2).unwrap_or(0)
    }

    /// The tag of messages that say that the group is over.
    pub(super) fn abort_tag(&self) -> c_int {
        self.tag_limit
    }

    /// The tag of messages that say that the sender closes the group.
    pub(super) fn bye_tag(&self) -> c_int {
        self.tag_limit - 1
    }

    /// Gives it back to MPI. All ranks do.
    pub(super) fn free(self) {
        let Ok(_entered) = enter() else { return };
        let mut raw = self.raw;
        // SAFETY: the communicator is this one's, and used by nobody any more.
        unsafe { ffi::MPI_Comm_free(&mut raw) };
    }
}

/// The greatest tag that MPI takes. It promises 32767.
fn tag_limit() -> Result<c_int, MpiError> {
    let mut value: *mut c_int = std::ptr::null_mut();
    let mut found: c_int = 0;
    // SAFETY: MPI is initialised; it writes a pointer to a number that lives as long as MPI does.
    unsafe {
        #[allow(clippy::unnecessary_cast, reason = "the constant's type is the MPI's affair")]
        let got = ffi::MPI_Comm_get_attr(
            ffi::RSMPI_COMM_WORLD,
            ffi::MPI_TAG_UB as c_int,
            (&raw mut value).cast::<c_void>(),
            &mut found,
        );
        check("MPI_Comm_get_attr", got)?;
        Ok(if found != 0 && !value.is_null() { *value } else { 32767 })
    }
}

/// A count as MPI wants it.
pub(super) fn int(count: usize) -> Result<c_int, MpiError> {
    c_int::try_from(count).map_err(|_| MpiError::TooLong { count })
}
