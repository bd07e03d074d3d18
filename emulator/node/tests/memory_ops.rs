//! Streams that wait for words of memory and write them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "support/driver.rs"]
mod support;

use std::sync::atomic::{AtomicU32, Ordering};

use meshreduce_emulator_node::driver::{
    CaptureMode, Driver, Error, Handle, MemoryOp, NodeType, Operand, Pattern, Result,
};
use support::{read, ready};

const NON_BLOCKING: u32 = 1;

/// A word of page-locked host memory, which starts as 0, and its address.
fn word(driver: &Driver) -> (&'static AtomicU32, u64) {
    let memory = driver.host_alloc(4096, 0).unwrap();
    // SAFETY: the memory is aligned and lives as long as the driver's context, which these tests never end.
    (unsafe { AtomicU32::from_ptr(memory.as_ptr().cast()) }, memory.as_ptr() as u64)
}

fn stream(driver: &Driver) -> Handle {
    driver.stream_create(NON_BLOCKING, 0).unwrap()
}

fn wait(driver: &Driver, stream: Handle, address: u64, at_least: u32) -> Result<()> {
    driver.stream_memory_ops(stream, &[MemoryOp::wait(address, Operand::Word(at_least), 0)?])
}

fn write(driver: &Driver, stream: Handle, address: u64, value: u32) -> Result<()> {
    driver.stream_memory_ops(stream, &[MemoryOp::write(address, Operand::Word(value), 0)?])
}

#[test]
fn a_stream_waits_for_the_hosts_store_and_the_host_for_the_streams() {
    let driver = ready();
    let stream = stream(&driver);
    let ((word, address), (answer, answer_address)) = (word(&driver), word(&driver));
    let memory = driver.mem_alloc(4).unwrap();
    for round in 1..=20 {
        wait(&driver, stream, address, round).unwrap();
        driver.set(memory, Pattern::D32(round), 1, Some(stream)).unwrap();
        write(&driver, stream, answer_address, round).unwrap();
        assert_eq!(driver.stream_query(stream), Err(Error::NotReady));
        assert_eq!(answer.load(Ordering::Acquire), round - 1);
        word.store(round, Ordering::Release);
        while answer.load(Ordering::Acquire) != round {
            std::thread::yield_now();
        }
        assert_eq!(read(&driver, memory, 1).unwrap(), [round]);
    }
}

#[test]
fn a_stream_waits_for_another_streams_store_in_device_memory_of_either_width() {
    let driver = ready();
    let (first, second) = (stream(&driver), stream(&driver));
    let (gate, gate_address) = word(&driver);
    let memory = driver.mem_alloc(16).unwrap();
    driver.set(memory, Pattern::D32(0), 4, None).unwrap();
    driver.ctx_synchronize().unwrap();
    let far = 7 << 40;
    driver
        .stream_memory_ops(
            second,
            &[
                MemoryOp::wait(memory + 8, Operand::Double(far), 0).unwrap(),
                MemoryOp::barrier(),
                MemoryOp::write(memory, Operand::Word(2), 0).unwrap(),
            ],
        )
        .unwrap();
    wait(&driver, first, gate_address, 1).unwrap();
    driver
        .stream_memory_ops(first, &[MemoryOp::write(memory + 8, Operand::Double(far + 1), 0).unwrap()])
        .unwrap();
    assert_eq!(driver.stream_query(second), Err(Error::NotReady));
    gate.store(1, Ordering::Release);
    driver.stream_synchronize(second).unwrap();
    assert_eq!(read(&driver, memory, 1).unwrap(), [2]);
}

#[test]
fn an_address_that_is_not_the_drivers_is_refused_and_then_nothing_is_enqueued() {
    let driver = ready();
    let stream = stream(&driver);
    let memory = driver.mem_alloc(8).unwrap();
    let mut own = 0u64;
    for address in [(&raw mut own) as u64, memory + 8, 4096] {
        assert_eq!(write(&driver, stream, address, 1), Err(Error::InvalidValue), "{address:#x}");
    }
    driver.set(memory, Pattern::D32(0), 2, Some(stream)).unwrap();
    let half_good =
        [MemoryOp::write(memory, Operand::Word(5), 0), MemoryOp::write(4096, Operand::Word(5), 0)];
    let half_good = half_good.map(Result::unwrap);
    assert_eq!(driver.stream_memory_ops(stream, &half_good), Err(Error::InvalidValue));
    driver.stream_synchronize(stream).unwrap();
    assert_eq!(read(&driver, memory, 1).unwrap(), [0]);
    driver.stream_memory_ops(stream, &[]).unwrap();
}

#[test]
fn captured_waits_and_writes_take_place_at_every_launch() {
    let driver = ready();
    let stream = stream(&driver);
    let (gate, gate_address) = word(&driver);
    let memory = driver.mem_alloc(4).unwrap();
    driver.stream_begin_capture(stream, CaptureMode::Global).unwrap();
    wait(&driver, stream, gate_address, 1).unwrap();
    write(&driver, stream, memory, 9).unwrap();
    let graph = driver.stream_end_capture(stream).unwrap();
    for node in driver.graph_nodes(graph).unwrap() {
        assert_eq!(driver.node_type(node), Ok(NodeType::BatchMemOp));
    }
    let executable = driver.graph_instantiate(graph, 0).unwrap();
    for _ in 0..2 {
        gate.store(0, Ordering::Release);
        driver.set(memory, Pattern::D32(0), 1, Some(stream)).unwrap();
        driver.graph_launch(executable, stream).unwrap();
        assert_eq!(driver.stream_query(stream), Err(Error::NotReady));
        gate.store(1, Ordering::Release);
        driver.stream_synchronize(stream).unwrap();
        assert_eq!(read(&driver, memory, 1).unwrap(), [9]);
    }
    driver.mem_free(memory).unwrap();
    assert_eq!(driver.graph_launch(executable, stream), Err(Error::InvalidValue));
}

#[test]
fn a_reset_ends_a_wait_that_nobody_ends() {
    let driver = ready();
    let stream = stream(&driver);
    let (_, address) = word(&driver);
    wait(&driver, stream, address, 1).unwrap();
    driver.primary_reset(0).unwrap();
    assert_eq!(wait(&driver, stream, address, 1), Err(Error::InvalidHandle));
}
