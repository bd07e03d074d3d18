//! Why kernels have no path.

use thiserror::Error;

/// Why kernels have no path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PathError {
    /// A device has more than one launch, and they would not begin together.
    #[error("device {device} has {launches} launches; one can be traced")]
    Launches {
        /// The device's number.
        device: usize,
        /// What is queued there.
        launches: usize,
    },
    /// A thread did what it must not do.
    #[error(
        "{what}\n  kernel {kernel}, line {line}: {text}\n  device {device}, block {block}, thread {thread}"
    )]
    Fault {
        /// What happened.
        what: String,
        /// The kernel entry.
        kernel: String,
        /// Line of the PTX text, from 1.
        line: u32,
        /// The text of that line.
        text: String,
        /// The device's number.
        device: usize,
        /// The block's linear index.
        block: usize,
        /// The thread's linear index in the block.
        thread: usize,
    },
    /// Threads wait, and nobody is left to let them go.
    #[error("{0} threads wait at barriers for others that do not come")]
    Stuck(usize),
    /// The kernels do not end.
    #[error("no end after {0} PTX instructions")]
    NoEnd(u64),
}
