//! The functions with C names.

mod completion;
mod device;
mod emulator;
mod event;
mod memory;
mod missing;
mod pair;
mod versions;
