//! The driver's semantics, through the library without the C names. Every test has a driver of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{sync::Arc, time::Duration};

use meshreduce_emulator_node::{
    driver::{Driver, Error, FunctionAttribute, LaunchConfig, Options, Pattern, PointerAttribute},
    exec::DirectExecutor,
    node::Node,
};

#[path = "support/driver.rs"]
mod support;

use support::{PTX, driver, driver_of, function, increment_params, launch, read, ready, shape};

const MAX_DYNAMIC: FunctionAttribute = FunctionAttribute::MaxDynamicSharedSizeBytes;

#[test]
fn a_kernel_works_on_what_was_copied() {
    let driver = ready();
    let increment = function(&driver, "increment");
    let address = driver.mem_alloc(4000).unwrap();
    driver.set(address, Pattern::D32(41), 1000, None).unwrap();
    launch(&driver, increment, shape(8, 128), 0, &increment_params(address, 1000)).unwrap();
    assert_eq!(read(&driver, address, 1000).unwrap(), vec![42; 1000]);
    assert!(driver.instructions() > 10_000);
}

#[test]
fn a_fault_is_sticky_until_the_context_is_reset() {
    let driver = ready();
    let increment = function(&driver, "increment");
    let address = driver.mem_alloc(400).unwrap();
    launch(&driver, increment, shape(1, 128), 0, &increment_params(address, 128)).unwrap();
    assert_eq!(driver.ctx_synchronize(), Err(Error::IllegalAddress));
    assert_eq!(driver.mem_alloc(4), Err(Error::IllegalAddress));
    assert_eq!(read(&driver, address, 1), Err(Error::IllegalAddress));
    // Another device's context is well.
    driver.ctx_set_current(driver.primary_retain(1).unwrap()).unwrap();
    assert!(driver.mem_alloc(4).is_ok());
    driver.primary_reset(0).unwrap();
    driver.ctx_set_current(driver.primary_retain(0).unwrap()).unwrap();
    let address = driver.mem_alloc(4).unwrap();
    driver.set(address, Pattern::D32(7), 1, None).unwrap();
    assert_eq!(read(&driver, address, 1).unwrap(), [7]);
}

#[test]
fn a_misaligned_access_has_its_own_code() {
    let driver = ready();
    let increment = function(&driver, "increment");
    let address = driver.mem_alloc(400).unwrap();
    launch(&driver, increment, shape(1, 1), 0, &increment_params(address + 2, 1)).unwrap();
    assert_eq!(driver.ctx_synchronize(), Err(Error::MisalignedAddress));
}

#[test]
fn a_peers_memory_is_out_of_reach_until_access_is_enabled() {
    let driver = driver();
    let (first, second) = (driver.primary_retain(0).unwrap(), driver.primary_retain(1).unwrap());
    driver.ctx_set_current(second).unwrap();
    let address = driver.mem_alloc(4).unwrap();
    driver.set(address, Pattern::D32(1), 1, None).unwrap();
    driver.ctx_synchronize().unwrap();
    driver.ctx_set_current(first).unwrap();
    driver.ctx_enable_peer_access(second, 0).unwrap();
    assert_eq!(driver.ctx_enable_peer_access(second, 0), Err(Error::PeerAccessAlreadyEnabled));
    let increment = function(&driver, "increment");
    launch(&driver, increment, shape(1, 1), 0, &increment_params(address, 1)).unwrap();
    driver.ctx_synchronize().unwrap();
    assert_eq!(read(&driver, address, 1).unwrap(), [2]);
    driver.ctx_disable_peer_access(second).unwrap();
    launch(&driver, increment, shape(1, 1), 0, &increment_params(address, 1)).unwrap();
    assert_eq!(driver.ctx_synchronize(), Err(Error::IllegalAddress));
}

#[test]
fn peers_are_those_of_the_node() {
    let driver = driver_of("dgx-1v", Options::default());
    assert_eq!(driver.can_access_peer(0, 4), Ok(true));
    assert_eq!(driver.can_access_peer(0, 5), Ok(false));
    assert_eq!(driver.can_access_peer(0, 0), Ok(false));
    let (first, far) = (driver.primary_retain(0).unwrap(), driver.primary_retain(5).unwrap());
    driver.ctx_set_current(first).unwrap();
    assert_eq!(driver.ctx_enable_peer_access(far, 0), Err(Error::PeerAccessUnsupported));
}

#[test]
fn visible_devices_are_renumbered() {
    let visible = |list: &str| {
        let options = Options { visible_devices: Some(list.to_owned()), ..Options::default() };
        Driver::new(Node::load("dgx-1v").unwrap(), options, Arc::new(DirectExecutor))
    };
    let driver = visible("5,0,4").unwrap();
    assert_eq!(driver.device_count(), 3);
    assert_eq!(driver.can_access_peer(1, 2), Ok(true), "0 and 4 of the node");
    assert_eq!(driver.can_access_peer(0, 1), Ok(false), "5 and 0 of the node");
    assert_eq!(driver.device_get(3), Err(Error::InvalidDevice));
    let all = driver_of("dgx-1v", Options::default());
    assert_eq!(driver.device_uuid(0), all.device_uuid(5));
    assert_eq!(visible("").err(), Some(Error::NoDevice));
}

#[test]
fn launches_are_checked_against_the_limits() {
    let driver = ready();
    let bounded = function(&driver, "bounded");
    let try_shape = |grid, block, dynamic_shared| {
        launch(&driver, bounded, LaunchConfig { grid, block, dynamic_shared }, 0, &[])
    };
    assert_eq!(try_shape([1; 3], [64, 1, 1], 0), Ok(()));
    assert_eq!(try_shape([1; 3], [65, 1, 1], 0), Err(Error::InvalidValue));
    assert_eq!(try_shape([0, 1, 1], [1; 3], 0), Err(Error::InvalidValue));
    assert_eq!(try_shape([1, 65536, 1], [1; 3], 0), Err(Error::InvalidValue));
    assert_eq!(try_shape([1; 3], [1, 1, 65], 0), Err(Error::InvalidValue));
    assert_eq!(try_shape([1; 3], [1; 3], (48 << 10) + 1), Err(Error::InvalidValue));
    driver.set_function_attribute(bounded, MAX_DYNAMIC, 200 << 10).unwrap();
    assert_eq!(try_shape([1; 3], [1; 3], 200 << 10), Ok(()));
    assert_eq!(driver.set_function_attribute(bounded, MAX_DYNAMIC, 228 << 10), Err(Error::InvalidValue));
    assert_eq!(driver.function_attribute(bounded, FunctionAttribute::MaxThreadsPerBlock), Ok(64));
    assert_eq!(driver.function_attribute(bounded, FunctionAttribute::BinaryVersion), Ok(90));
    driver.ctx_synchronize().unwrap();
}

#[test]
fn wrong_handles_are_answered_not_followed() {
    let driver = ready();
    let bounded = function(&driver, "bounded");
    for wrong in [3, 0x1234_5678, u64::MAX] {
        assert_eq!(driver.stream_synchronize(wrong), Err(Error::InvalidHandle));
        assert_eq!(driver.event_query(wrong), Err(Error::InvalidHandle));
        assert_eq!(driver.module_unload(wrong), Err(Error::InvalidHandle));
        assert_eq!(launch(&driver, wrong, shape(1, 1), 0, &[]), Err(Error::InvalidHandle));
        assert_eq!(driver.ctx_set_current(wrong), Err(Error::InvalidContext));
        assert_eq!(driver.mem_free(wrong), Err(Error::InvalidValue));
    }
    let stream = driver.stream_create(0, 0).unwrap();
    driver.stream_destroy(stream).unwrap();
    assert_eq!(launch(&driver, bounded, shape(1, 1), stream, &[]), Err(Error::InvalidHandle));
}

#[test]
fn a_stream_and_a_function_of_different_devices_do_not_go_together() {
    let driver = ready();
    let bounded = function(&driver, "bounded");
    driver.ctx_set_current(driver.primary_retain(1).unwrap()).unwrap();
    assert_eq!(launch(&driver, bounded, shape(1, 1), 0, &[]), Err(Error::InvalidHandle));
}

#[test]
fn refused_ptx_is_named_by_line() {
    let driver = ready();
    let text = PTX.replace("add.s32 %r6, %r6, 1;", "frobnicate.s32 %r6, %r6, 1;");
    let error = driver.module_load(text.as_bytes()).unwrap_err();
    assert_eq!(error.error, Error::InvalidPtx);
    let line = 1 + PTX.lines().position(|line| line.contains("add.s32 %r6")).unwrap();
    assert!(error.log.contains(&format!("line {line}")) && error.log.contains("frobnicate"), "{}", error.log);
    let newer = PTX.replace("sm_70", "sm_100");
    assert_eq!(driver.module_load(newer.as_bytes()).unwrap_err().error, Error::InvalidPtx);
    assert_eq!(driver.module_load(b"\x7fELF").unwrap_err().error, Error::NoBinaryForGpu);
    let module = driver.module_load(PTX.as_bytes()).unwrap();
    assert_eq!(driver.module_function(module, "nothing"), Err(Error::NotFound));
}

#[test]
fn a_spinning_kernel_sees_what_another_stream_writes() {
    let driver = ready();
    let wait_for = function(&driver, "wait_for");
    let flag = driver.mem_alloc(4).unwrap();
    driver.set(flag, Pattern::D32(0), 1, None).unwrap();
    driver.ctx_synchronize().unwrap();
    let (waits, writes) = (driver.stream_create(1, 0).unwrap(), driver.stream_create(1, 0).unwrap());
    launch(&driver, wait_for, shape(4, 32), waits, &flag.to_le_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.stream_query(waits), Err(Error::NotReady));
    driver.set(flag, Pattern::D32(1), 1, Some(writes)).unwrap();
    driver.stream_synchronize(waits).unwrap();
}

#[test]
fn a_spinning_kernel_sees_what_the_host_writes_to_mapped_memory() {
    let driver = ready();
    let wait_for = function(&driver, "wait_for");
    let page = driver.host_alloc(4096, 2).unwrap();
    let address = driver.host_device_pointer(page.as_ptr(), 0).unwrap();
    let stream = driver.stream_create(1, 0).unwrap();
    launch(&driver, wait_for, shape(1, 1), stream, &address.to_le_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.stream_query(stream), Err(Error::NotReady));
    // SAFETY: the page lives until it is freed, and is aligned.
    let flag = unsafe { std::sync::atomic::AtomicU32::from_ptr(page.as_ptr().cast()) };
    flag.store(1, std::sync::atomic::Ordering::Release);
    driver.stream_synchronize(stream).unwrap();
    driver.host_free(page.as_ptr()).unwrap();
}

#[test]
fn pointers_tell_what_they_are() {
    let driver = ready();
    let address = driver.mem_alloc(100).unwrap();
    let host = driver.host_alloc(100, 0).unwrap().as_ptr() as u64;
    assert_eq!(driver.pointer_attribute(2, address + 99), Ok(PointerAttribute::Int(2)));
    assert_eq!(driver.pointer_attribute(2, host), Ok(PointerAttribute::Int(1)));
    assert_eq!(driver.pointer_attribute(9, address), Ok(PointerAttribute::Int(0)));
    assert_eq!(driver.pointer_attribute(11, address + 50), Ok(PointerAttribute::Word(address)));
    assert_eq!(driver.pointer_attribute(12, address + 50), Ok(PointerAttribute::Word(100)));
    assert_eq!(driver.pointer_attribute(1, address), Ok(PointerAttribute::Word(driver.ctx_current())));
    assert_eq!(driver.pointer_attribute(2, address + 100), Err(Error::InvalidValue));
    assert_eq!(driver.pointer_attribute(2, 64), Err(Error::InvalidValue));
    assert_eq!(driver.mem_address_range(address + 7), Ok((address, 100)));
}

#[test]
fn copies_are_checked() {
    let driver = ready();
    let address = driver.mem_alloc(100).unwrap();
    let bytes = [0u8; 200];
    // SAFETY: the array has as many bytes as are copied; device addresses as host addresses are refused.
    unsafe {
        let copy = |to, from, n| driver.copy_to_device(to, from, n, None);
        assert_eq!(copy(address, bytes.as_ptr(), 101), Err(Error::InvalidValue));
        assert_eq!(copy(address + 50, bytes.as_ptr(), 50), Ok(()));
        assert_eq!(copy(address, address as *const u8, 4), Err(Error::InvalidValue));
        assert_eq!(copy(address, std::ptr::null(), 4), Err(Error::InvalidValue));
    }
    assert_eq!(driver.set(address + 1, Pattern::D32(0), 1, None), Err(Error::InvalidValue));
}

#[test]
fn memory_is_limited_and_freed_in_the_order_of_streams() {
    let driver = ready();
    let (free, total) = driver.mem_info().unwrap();
    assert_eq!((free, total), (1 << 30, 1 << 30));
    assert_eq!(driver.mem_alloc(total + 1), Err(Error::OutOfMemory));
    assert_eq!(driver.mem_alloc(0), Err(Error::InvalidValue));
    let stream = driver.stream_create(0, 0).unwrap();
    let address = driver.mem_alloc_async(4096, stream).unwrap();
    driver.set(address, Pattern::D8(1), 4096, Some(stream)).unwrap();
    driver.mem_free_async(address, stream).unwrap();
    driver.stream_synchronize(stream).unwrap();
    assert_eq!(driver.mem_info().unwrap().0, total);
    assert_eq!(driver.mem_free(address), Err(Error::InvalidValue));
}

#[test]
fn events_follow_the_rules() {
    let driver = ready();
    let stream = driver.stream_create(1, 0).unwrap();
    let (start, end) = (driver.event_create(0).unwrap(), driver.event_create(0).unwrap());
    assert_eq!(driver.event_query(start), Ok(()), "never recorded counts as done");
    assert_eq!(driver.event_elapsed(start, end), Err(Error::InvalidHandle));
    driver.event_record(start, stream).unwrap();
    driver.event_record(end, stream).unwrap();
    driver.event_synchronize(end).unwrap();
    assert!(driver.event_elapsed(start, end).unwrap() >= 0.0);
    let untimed = driver.event_create(2).unwrap();
    driver.event_record(untimed, stream).unwrap();
    driver.event_synchronize(untimed).unwrap();
    assert_eq!(driver.event_elapsed(start, untimed), Err(Error::InvalidHandle));
    driver.ctx_set_current(driver.primary_retain(1).unwrap()).unwrap();
    assert_eq!(driver.event_record(start, 0), Err(Error::InvalidHandle), "of another context");
}

#[test]
fn occupancy_is_the_rule_that_the_device_follows() {
    let driver = ready();
    let wait_for = function(&driver, "wait_for");
    assert_eq!(driver.occupancy(wait_for, 512, 0), Ok(2));
    assert_eq!(driver.occupancy(wait_for, 1024, 0), Ok(1));
    assert_eq!(driver.best_block_size(wait_for, |_| 0, 0), Ok((132, 1024)));
}

#[test]
fn a_grid_that_waits_for_blocks_without_a_place_times_out() {
    let options = Options { deadlock_after: Duration::from_millis(100), ..Options::default() };
    let driver = driver_of("rtx3090x2", options);
    driver.ctx_set_current(driver.primary_retain(0).unwrap()).unwrap();
    let wait_for = function(&driver, "wait_for");
    let flag = driver.mem_alloc(4).unwrap();
    launch(&driver, wait_for, shape(83, 1024), 0, &flag.to_le_bytes()).unwrap();
    assert_eq!(driver.ctx_synchronize(), Err(Error::LaunchTimeout));
}

#[test]
fn the_context_stack_is_the_threads_own() {
    let driver = ready();
    assert_eq!(driver.ctx_device(), Ok(0));
    let second = driver.primary_retain(1).unwrap();
    driver.ctx_push(second).unwrap();
    assert_eq!(driver.ctx_device(), Ok(1));
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(driver.ctx_device(), Err(Error::InvalidContext)));
    });
    assert_eq!(driver.ctx_pop(), Ok(second));
    assert_eq!(driver.ctx_device(), Ok(0));
    driver.primary_release(0).unwrap();
    assert_eq!(driver.mem_alloc(4), Err(Error::ContextIsDestroyed));
    driver.ctx_set_current(0).unwrap();
    assert_eq!(driver.ctx_pop(), Err(Error::InvalidContext));
}

#[test]
fn host_functions_run_in_the_order_of_their_stream() {
    let driver = ready();
    let stream = driver.stream_create(1, 0).unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    for number in 0..3 {
        let send = send.clone();
        let call = move || {
            let _ = send.send(number);
        };
        driver.launch_host_function(stream, Box::new(call)).unwrap();
    }
    driver.stream_synchronize(stream).unwrap();
    assert_eq!(receive.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
}
