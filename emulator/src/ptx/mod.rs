//! PTX text to a checked, decoded program.

/// A kernel entry, decoded and ready to run.
#[derive(Debug)]
pub struct Kernel {}
