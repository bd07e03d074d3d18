//! A stand-in for libibverbs: a `libibverbs.so.1` with the real one's C ABI, over the network adapters of the emulated
//! node.
//!
//! Queue pairs are reliable connected ones, of processes on this machine: of one instance of a node, or of several,
//! which then are several nodes. It has the rules of verbs and their errors, not their speed, and does on request what
//! hardware does wrong ([`fault`]).
//!
//! | idea | where |
//! |---|---|
//! | the C functions | [`export`], over [`abi`] |
//! | devices and what they say | [`process`], [`adapter`], [`address`], [`context`] |
//! | registered memory | [`memory`], [`cuda`] |
//! | completion queues, and events | [`completion`], [`event`] |
//! | queue pairs: states, sending side, receiving side | [`pair`] |
//! | what moves the messages | [`engine`], what it is told [`command`], and what goes over its links [`frame`] |
//! | what tests ask for | [`fault`], set while adapters run by [`inject`]; [`count`] |

mod abi;
mod adapter;
mod address;
mod command;
mod completion;
mod context;
mod count;
mod cuda;
mod engine;
mod event;
mod export;
mod fault;
mod frame;
mod inject;
mod memory;
mod object;
mod pair;
mod process;
