//! A libibverbs that plays nvidia-peermem for emulated GPUs.
//!
//! On a machine with GPUs, the kernel module nvidia-peermem (or dma-buf) lets a network card reach device memory: a program
//! calls `ibv_reg_mr` with a device address. The kernel knows nothing of emulated GPUs and answers EFAULT. This library is
//! opened in libibverbs' place, by its path (`MESHREDUCE_VERBS`). It passes everything on to the real libibverbs
//! (`MESHREDUCE_REAL_VERBS`, else where Linux distributions have it), except the registering of memory that the emulated
//! driver of this process says is a device's: see `register.rs`. For the rest of the way that memory is like any other;
//! devices, queue pairs, completions and the context's table of operations are the real library's own.
//!
//! It must not be what the dynamic loader finds as `libibverbs.so.1`: providers would get it in the real one's place.

#![cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]

mod emulated;
mod forward;
mod real;
mod register;
mod sys;
