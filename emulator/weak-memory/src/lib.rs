//! What kernels may do under the PTX memory model.
//!
//! - [`adversary`] runs kernels of several devices and returns whatever the model allows;
//! - [`litmus`] holds tests of the model and an oracle for them that shares nothing with the adversary;
//! - [`path`] counts the steps that kernels must wait for one after the other.
#![forbid(unsafe_code)]

pub mod adversary;
pub mod litmus;
pub mod path;
