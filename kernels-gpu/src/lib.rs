//! meshreduce's device kernels.
//!
//! One module per hardware concept ([`thread`], [`memory`], [`signal`], [`time`], [`convert`]), each a
//! set of functions of one PTX instruction, and above them, without a line of assembly, the parts that algorithms are
//! made of ([`element`], [`reduction`], [`message`], [`slices`], [`call`], [`barrier`], [`packets`]) and one module per algorithm.
//!
//! With the feature `b128` it gives the texts for PTX ISA 8.4 ([`meshreduce_wire::Isa::V84`]), of the algorithms alone that
//! have one.
//!
//! `cargo xtask build-ptx` compiles this crate; nothing else can (`nvptx64-nvidia-cuda`, `core` from source).
#![no_std]
#![feature(abi_ptx, asm_experimental_arch, link_llvm_intrinsics, macro_metavar_expr_concat, stdarch_nvptx)]

#[cfg(not(feature = "b128"))]
pub mod barrier;
pub mod call;
pub mod convert;
#[cfg(not(feature = "b128"))]
pub mod cube_mesh_exchange_ll;
#[cfg(not(feature = "b128"))]
pub mod cube_mesh_reduce_scatter_ll;
pub mod element;
mod entries;
#[cfg(not(feature = "b128"))]
pub mod exchange;
pub mod exchange_ll;
pub mod group_ll;
#[cfg(not(feature = "b128"))]
pub mod hybrid_cube_mesh;
#[cfg(not(feature = "b128"))]
pub mod hybrid_cube_mesh_ll;
pub mod memory;
pub mod message;
#[cfg(not(feature = "b128"))]
pub mod one_shot;
pub mod one_shot_ll;
pub mod packets;
#[cfg(not(feature = "b128"))]
pub mod reduce_scatter;
pub mod reduce_scatter_ll;
pub mod reduction;
pub mod signal;
pub mod slices;
pub mod slot;
pub mod thread;
pub mod time;
#[cfg(not(feature = "b128"))]
pub mod two_shot;
pub mod two_shot_ll;

/// Never reached: panics compile to `trap` (`-Cpanic=immediate-abort`).
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
