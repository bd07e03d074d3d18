//! Executors: run the blocks of a kernel over an address space. They stand behind [`Executor`].

mod direct;
mod interface;

pub use self::direct::DirectExecutor;
pub use self::interface::{AddressSpace, Block, Executor, Region, Turn, TurnEnd};
