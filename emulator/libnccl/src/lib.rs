//! A stand-in for NCCL: a `libnccl.so.2` with NCCL's C ABI, for programs on the emulated node.
//!
//! Ranks are threads or processes, on one emulated node or several; they talk over TCP, and what they have on devices
//! is copied through page-locked host memory in the order of the streams. It is no NCCL: it has none of its speed and
//! none of its algorithms, but its rules, its errors, and the order of its ring's additions.
//!
//! | idea | where |
//! |---|---|
//! | the C functions | [`initialise`], [`operate`], [`query`], over [`abi`] |
//! | communicators | [`comm`] |
//! | groups, and operations as streams see them | [`group`], [`job`], [`staging`] |
//! | algorithms and arithmetic | [`collective`], [`element`] |
//! | how ranks meet and talk | [`interface`], [`listener`], [`bootstrap`], [`mesh`], [`call`] |
//! | the CUDA driver | [`cuda`] |
//! | errors | [`failure`] |

mod abi;
mod bootstrap;
mod call;
mod collective;
mod comm;
mod cuda;
mod element;
mod failure;
mod group;
mod initialise;
mod interface;
mod job;
mod listener;
mod mesh;
mod operate;
mod query;
mod staging;
