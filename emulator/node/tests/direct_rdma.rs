//! Buffer ids, dma-bufs, flushes, and what stand-ins for network cards get.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "support/driver.rs"]
mod support;

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{Arc, Mutex},
};

use meshreduce_emulator_node::driver::{Driver, Error, Options, Pattern, PointerAttribute};
use support::{driver, driver_of, read, ready};

const DMA_BUF: i32 = 1;
const PAGE: u64 = 4096;

/// What is behind a dma-buf, as another process or library finds it.
fn contents(fd: OwnedFd, bytes: usize) -> Vec<u8> {
    let file = File::from(fd);
    let begins = rustix::fs::seek(&file, rustix::fs::SeekFrom::Current(0)).unwrap();
    let mut contents = vec![0; bytes];
    file.read_exact_at(&mut contents, begins).unwrap();
    contents
}

#[test]
fn a_buffer_id_is_one_allocations_alone_whatever_its_address() {
    let driver = ready();
    let id = |address| match driver.pointer_attribute(7, address).unwrap() {
        PointerAttribute::Word(id) => id,
        other => panic!("{other:?}"),
    };
    let mut seen = std::collections::HashSet::new();
    for _ in 0..10 {
        let address = driver.mem_alloc(100).unwrap();
        assert_eq!(id(address), id(address + 99));
        assert!(seen.insert(id(address)));
        driver.mem_free(address).unwrap();
    }
    let host = driver.host_alloc(100, 0).unwrap();
    assert!(seen.insert(id(host.as_ptr() as u64)));
    assert_eq!(driver.pointer_attribute(7, 4096), Err(Error::InvalidValue));
}

#[test]
fn a_dma_buf_leads_to_the_memory_from_its_beginning_on() {
    let driver = ready();
    // Of such lengths that not all of them begin at a page.
    let allocations: Vec<u64> = (1..6).map(|n| driver.mem_alloc(3 * PAGE + 512 * n).unwrap()).collect();
    assert!(allocations.iter().any(|address| !address.is_multiple_of(PAGE)));
    for (n, &address) in allocations.iter().enumerate() {
        driver.set(address, Pattern::D8(n as u8 + 1), 3 * PAGE, None).unwrap();
        driver.ctx_synchronize().unwrap();
        let first = address & !(PAGE - 1);
        let fd = driver.dma_buf(first, 3 * PAGE, DMA_BUF, 0).unwrap();
        let contents = contents(fd, 3 * PAGE as usize);
        let into = (address - first) as usize;
        assert!(contents[..into].iter().all(|byte| *byte == 0));
        assert!(contents[into..].iter().all(|byte| *byte == n as u8 + 1));
        let second = driver.dma_buf(first + PAGE, PAGE, DMA_BUF, 0).unwrap();
        File::from(second.try_clone().unwrap())
            .write_all_at(&[77; 4], rustix::fs::seek(&second, rustix::fs::SeekFrom::Current(0)).unwrap())
            .unwrap();
        assert_eq!(read(&driver, first + PAGE, 1).unwrap(), [u32::from_le_bytes([77; 4])]);
    }
}

#[test]
fn a_dma_buf_outlives_its_allocation() {
    let driver = ready();
    let address = driver.mem_alloc(PAGE).unwrap();
    driver.set(address, Pattern::D8(3), PAGE, None).unwrap();
    driver.ctx_synchronize().unwrap();
    let first = address & !(PAGE - 1);
    let fd = driver.dma_buf(first, PAGE, DMA_BUF, 0).unwrap();
    driver.mem_free(address).unwrap();
    assert!(contents(fd, PAGE as usize)[(address - first) as usize..].iter().all(|byte| *byte == 3));
}

#[test]
fn only_whole_pages_of_one_device_allocation_are_a_dma_buf() {
    let driver = ready();
    let address = driver.mem_alloc(4 * PAGE).unwrap();
    let first = address & !(PAGE - 1);
    let host = driver.host_alloc(PAGE, 0).unwrap().as_ptr() as u64;
    for (address, bytes, kind, flags) in [
        (first + 512, PAGE, DMA_BUF, 0),
        (first, PAGE + 512, DMA_BUF, 0),
        (first, 0, DMA_BUF, 0),
        (first, 64 * PAGE, DMA_BUF, 0),
        (first, PAGE, 7, 0),
        (first, PAGE, DMA_BUF, 4),
        (host, PAGE, DMA_BUF, 0),
    ] {
        let refused = driver.dma_buf(address, bytes, kind, flags).err();
        assert_eq!(refused, Some(Error::InvalidValue), "{address:#x} {bytes} {kind} {flags}");
    }
    // As on real hardware the allocation's last page is all its own.
    let small = driver.mem_alloc(100).unwrap();
    assert!(driver.dma_buf(small & !(PAGE - 1), PAGE, DMA_BUF, 0).is_ok());
}

#[test]
fn a_stand_in_for_a_network_card_finds_the_memory_of_any_device_address() {
    let driver = ready();
    let address = driver.mem_alloc(3 * PAGE).unwrap();
    let found = driver.device_file(address + 100).unwrap();
    assert_eq!(found.bytes, 3 * PAGE - 100);
    File::from(found.file).write_all_at(&5u32.to_le_bytes(), found.offset).unwrap();
    assert_eq!(read(&driver, address + 100, 1).unwrap(), [5]);
    let host = driver.host_alloc(PAGE, 0).unwrap().as_ptr() as u64;
    assert_eq!(driver.device_file(host).err(), Some(Error::NotFound));
    assert_eq!(driver.device_file(address + 3 * PAGE).err(), Some(Error::NotFound));
}

#[test]
fn flushes_are_counted_and_whoever_asked_is_called_first() {
    let driver = driver();
    driver.ctx_set_current(driver.primary_retain(3).unwrap()).unwrap();
    let seen: Arc<Mutex<Vec<(i32, u32)>>> = Arc::default();
    let note = Arc::clone(&seen);
    driver.set_on_flush(Some(Arc::new(move |device, scope| note.lock().unwrap().push((device, scope)))));
    assert_eq!(driver.flush_rdma_writes(0, 100), Ok(()));
    assert_eq!(driver.flush_rdma_writes(0, 200), Ok(()));
    assert_eq!(*seen.lock().unwrap(), [(3, 100), (3, 200)]);
    driver.set_on_flush(None);
    assert_eq!(driver.flush_rdma_writes(0, 100), Ok(()));
    for (target, scope) in [(1, 100), (0, 0), (0, 150)] {
        assert_eq!(driver.flush_rdma_writes(target, scope), Err(Error::InvalidValue));
    }
    assert_eq!((seen.lock().unwrap().len(), driver.flushes()), (2, 3));
    driver.ctx_set_current(0).unwrap();
    assert_eq!(driver.flush_rdma_writes(0, 100), Err(Error::InvalidContext));
}

#[test]
fn devices_say_what_they_can_by_their_kind() {
    let attributes = |driver: &Driver| {
        [92, 93, 94, 116, 117, 118, 122, 123, 124, 125]
            .map(|number| driver.device_attribute(number, 0).unwrap())
    };
    let of = |node| attributes(&driver_of(node, Options::default()));
    assert_eq!(of("hgx-h200"), [0, 0, 0, 1, 1, 100, 1, 1, 1, 1], "as seen on a real one");
    assert_eq!(of("dgx-a100"), [0, 0, 0, 1, 1, 0, 1, 1, 1, 1]);
    assert_eq!(of("rtx3090x2"), [0, 0, 0, 0, 0, 0, 1, 1, 0, 1]);
    let consumer = driver_of("rtx3090x2", Options::default());
    consumer.ctx_set_current(consumer.primary_retain(0).unwrap()).unwrap();
    let address = consumer.mem_alloc(2 * PAGE).unwrap().next_multiple_of(PAGE);
    assert_eq!(consumer.dma_buf(address, PAGE, DMA_BUF, 0).err(), Some(Error::NotSupported));
    assert_eq!(consumer.flush_rdma_writes(0, 100), Err(Error::NotSupported));
}
