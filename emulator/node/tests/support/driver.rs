//! A driver without the C names, and short ways to use it. Every test has a driver of its own.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "helpers of several test programs")]

use std::sync::Arc;

use meshreduce_emulator_node::{
    driver::{Driver, Error, Handle, LaunchConfig, Options, Parameters},
    exec::DirectExecutor,
    node::Node,
};

pub const PTX: &str = include_str!("../programs/small.ptx");

pub fn driver_of(node: &str, options: Options) -> Driver {
    Driver::new(Node::load(node).unwrap(), options, Arc::new(DirectExecutor)).unwrap()
}

pub fn driver() -> Driver {
    driver_of("hgx-h100", Options::default())
}

/// A driver with the primary context of device 0 current.
pub fn ready() -> Driver {
    let driver = driver();
    driver.ctx_set_current(driver.primary_retain(0).unwrap()).unwrap();
    driver
}

pub fn function(driver: &Driver, name: &str) -> Handle {
    let module = driver.module_load(PTX.as_bytes()).unwrap();
    driver.module_function(module, name).unwrap()
}

pub fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 }
}

/// Launches with parameters packed as the kernels here declare them.
pub fn launch(
    driver: &Driver,
    function: Handle,
    config: LaunchConfig,
    stream: Handle,
    params: &[u8],
) -> Result<(), Error> {
    // SAFETY: the slices that tests pass have the bytes that the kernels declare.
    unsafe { driver.launch(function, config, stream, Parameters::Buffer(params.as_ptr(), params.len())) }
}

pub fn increment_params(address: u64, count: u32) -> Vec<u8> {
    [address.to_le_bytes().as_slice(), &count.to_le_bytes()].concat()
}

pub fn read(driver: &Driver, address: u64, count: usize) -> Result<Vec<u32>, Error> {
    let mut values = vec![0u32; count];
    // SAFETY: the vector has so many bytes.
    unsafe { driver.copy_to_host(values.as_mut_ptr().cast(), address, count as u64 * 4, None)? };
    Ok(values)
}
