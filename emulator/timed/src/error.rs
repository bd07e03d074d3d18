//! Why there is no time to tell.

use meshreduce_emulator_ptx::Fault;
use thiserror::Error;

/// Why kernels have no time.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum TimedError {
    /// A kernel did what it must not do.
    #[error(
        "{}\n  kernel {}, line {}: {}\n  device {device}, block {:?}, thread {:?}",
        fault.kind, fault.kernel, fault.line, fault.text, fault.block, fault.thread
    )]
    Fault {
        /// The device's number.
        device: usize,
        /// Where, and what.
        fault: Box<Fault>,
    },
    /// Two devices have no link, and one accesses the other's memory.
    #[error(
        "device {from} accesses memory of device {to}, and there is no NVLink between them (line {line}: {text})"
    )]
    NoLink {
        /// The device whose kernel it is.
        from: usize,
        /// Whose memory.
        to: usize,
        /// Line of the PTX text.
        line: u32,
        /// The text of that line.
        text: String,
    },
    /// Warps wait, and nobody is left to let them go.
    #[error("{warps} warps wait at barriers for others that do not come")]
    Stuck {
        /// How many.
        warps: usize,
    },
    /// The kernels do not end.
    #[error("no end after {nanoseconds} simulated nanoseconds")]
    NoEnd {
        /// What was waited for.
        nanoseconds: u64,
    },
    /// A block does not fit on a multiprocessor.
    #[error("a block of {threads} threads does not fit on a multiprocessor with {most}")]
    Block {
        /// What it has.
        threads: u32,
        /// What fits.
        most: u32,
    },
}
