//! What errors of the layers below mean here.
#![forbid(unsafe_code)]

use meshreduce_device::{ContextState, DriverError, PrimaryContext};
use meshreduce_store::StoreError;
use meshreduce_store::identity::{NoIdentity, Unreadable};

use super::Error;

impl From<meshreduce_device::Error> for Error {
    fn from(error: meshreduce_device::Error) -> Self {
        use meshreduce_device::Error as E;
        match error {
            E::NoDriver(error) => Error::NoDriver(error),
            E::DriverTooOld { found, needed } => Error::DriverTooOld { found, needed },
            E::NoSuchDevice { ordinal, count } => Error::NoSuchDevice { ordinal, count },
            E::NotOnDevice { address, device, found } => Error::NotOnDevice { address, device, found },
            E::Driver(error) => Error::Driver(error),
            other => {
                Error::System { what: other.to_string(), source: std::io::ErrorKind::InvalidData.into() }
            }
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Error::Store(error)
    }
}

impl From<NoIdentity> for Error {
    fn from(error: NoIdentity) -> Self {
        match error {
            NoIdentity::Host(error) => error.into(),
            NoIdentity::Process(error) => error.into(),
        }
    }
}

impl From<Unreadable> for Error {
    fn from(error: Unreadable) -> Self {
        Error::System { what: format!("cannot read {}", error.path), source: error.source }
    }
}

impl Error {
    /// A driver's refusal in `context`, told apart by what it means for the communicator.
    pub(crate) fn of_driver(error: DriverError, context: &PrimaryContext) -> Self {
        if error.is_fault() {
            return Error::KernelFault(error);
        }
        if error.is_about_capture() {
            return Error::Capturing;
        }
        // Stale handles show in many ways.
        match context.state() {
            ContextState::Alive => Error::Driver(error),
            ContextState::Reset => Error::ContextReset { device: context.ordinal() },
            ContextState::Forked => Error::Forked,
        }
    }
}
