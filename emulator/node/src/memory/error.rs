//! Why memory could not be had.

/// Why memory could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The device's memory does not hold that much more.
    #[error("device {device} has {free} bytes free of {total}; {wanted} were asked for")]
    OutOfMemory {
        /// Index of the device in the node.
        device: usize,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The operating system refused the backing memory, a descriptor or a mapping.
    #[error("the operating system refused {what}: {errno}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// The error.
        errno: rustix::io::Errno,
    },
    /// No allocation of the needed kind starts at, or contains, this address.
    #[error("no such allocation at {0:#x}")]
    NotAllocated(u64),
    /// The bytes are not a handle of this node's instance, or the exporter has gone or has freed the memory.
    #[error("not a valid memory handle: {0}")]
    BadHandle(&'static str),
    /// The handle was exported by this very process.
    #[error("a memory handle cannot be opened in the process that exported it")]
    SameProcess,
    /// The device may not access the exporter's.
    #[error("device {device} has no peer access to device {owner}")]
    NoPeerAccess {
        /// Index of the device that opens.
        device: usize,
        /// Index of the exporter's device.
        owner: usize,
    },
    /// Host memory that is registered already.
    #[error("host memory at {0:#x} is registered already")]
    AlreadyRegistered(u64),
}
