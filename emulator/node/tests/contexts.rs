//! What belongs to a context, and what becomes of it: default streams, registered host memory, and the end of all of
//! it with a reset. Every test has a driver of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use meshreduce_emulator_node::driver::{
    CaptureMode, CaptureStatus, Driver, Error, FunctionAttribute, Handle, Pattern, exchange_capture_mode,
};

#[path = "support/driver.rs"]
mod support;

use support::{driver, function, increment_params, launch, read, ready, shape};

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
const LEGACY: Handle = 1;
const PER_THREAD: Handle = 2;
/// `CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP`.
const PORTABLE_AND_MAPPED: u32 = 3;

/// Numbers that are the test's own, as kernels and tests may use them at the same time.
fn numbers(count: usize) -> Vec<AtomicU32> {
    (0..count).map(|_| AtomicU32::new(0)).collect()
}

fn pointer(numbers: &[AtomicU32]) -> *mut u8 {
    numbers.as_ptr().cast_mut().cast()
}

fn register(driver: &Driver, numbers: &[AtomicU32]) -> Result<(), Error> {
    // SAFETY: every test keeps its numbers until its driver is gone.
    unsafe { driver.host_register(pointer(numbers), size_of_val(numbers) as u64, PORTABLE_AND_MAPPED) }
}

#[test]
fn kernels_of_all_devices_work_on_registered_memory() {
    let numbers = numbers(100);
    let driver = ready();
    register(&driver, &numbers).unwrap();
    for device in 0..2 {
        driver.ctx_set_current(driver.primary_retain(device).unwrap()).unwrap();
        let address = driver.host_device_pointer(pointer(&numbers), 0).unwrap();
        let increment = function(&driver, "increment");
        launch(&driver, increment, shape(1, 128), 0, &increment_params(address, 100)).unwrap();
        driver.ctx_synchronize().unwrap();
    }
    assert!(numbers.iter().all(|number| number.load(Ordering::Relaxed) == 2));
    assert_eq!(driver.host_flags(pointer(&numbers)), Ok(PORTABLE_AND_MAPPED));
}

#[test]
fn memory_is_registered_once_and_unregistered_once() {
    let numbers = numbers(100);
    let driver = ready();
    assert_eq!(driver.host_unregister(pointer(&numbers)), Err(Error::HostMemoryNotRegistered));
    assert_eq!(driver.host_device_pointer(pointer(&numbers), 0), Err(Error::InvalidValue));
    register(&driver, &numbers[10..90]).unwrap();
    for overlapping in [&numbers[10..90], &numbers[..], &numbers[20..30], &numbers[..11], &numbers[89..]] {
        assert_eq!(register(&driver, overlapping), Err(Error::HostMemoryAlreadyRegistered));
    }
    register(&driver, &numbers[..10]).unwrap();
    register(&driver, &numbers[90..]).unwrap();
    let inside = driver.host_unregister(pointer(&numbers[11..]));
    assert_eq!(inside, Err(Error::HostMemoryNotRegistered), "only from where it was registered");
    driver.host_unregister(pointer(&numbers[10..])).unwrap();
    assert_eq!(driver.host_unregister(pointer(&numbers[10..])), Err(Error::HostMemoryNotRegistered));
    register(&driver, &numbers[10..90]).unwrap();
}

#[test]
fn registered_memory_stays_the_programs_when_its_context_is_reset() {
    let numbers = numbers(100);
    let driver = ready();
    register(&driver, &numbers).unwrap();
    driver.primary_reset(0).unwrap();
    numbers.iter().for_each(|number| number.store(7, Ordering::Relaxed));
    driver.ctx_set_current(driver.primary_retain(0).unwrap()).unwrap();
    assert_eq!(driver.host_unregister(pointer(&numbers)), Err(Error::HostMemoryNotRegistered));
    register(&driver, &numbers).unwrap();
    assert_eq!(read(&driver, pointer(&numbers) as u64, 1), Ok(vec![7]));
}

#[test]
fn every_stream_has_an_id_of_its_own() {
    let driver = driver();
    let mut seen = HashSet::new();
    let mut is_new = |id: Result<u64, Error>| assert!(seen.insert(id.unwrap()), "an id twice");
    for device in 0..2 {
        driver.ctx_set_current(driver.primary_retain(device).unwrap()).unwrap();
        assert_eq!(driver.stream_id(0), driver.stream_id(LEGACY), "two names of one stream");
        assert_eq!(driver.stream_id(PER_THREAD), driver.stream_id(PER_THREAD));
        is_new(driver.stream_id(0));
        is_new(driver.stream_id(PER_THREAD));
        for _ in 0..3 {
            let stream = driver.stream_create(1, 0).unwrap();
            is_new(driver.stream_id(stream));
            driver.stream_destroy(stream).unwrap();
            assert_eq!(driver.stream_id(stream), Err(Error::InvalidHandle));
        }
    }
    let context = driver.ctx_current();
    let (legacy, per_thread) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            driver.ctx_set_current(context).unwrap();
            (driver.stream_id(0), driver.stream_id(PER_THREAD))
        });
        thread.join().unwrap()
    });
    assert_eq!(legacy, driver.stream_id(0));
    is_new(per_thread);
    driver.primary_reset(1).unwrap();
    assert_eq!(driver.stream_id(0), Err(Error::ContextIsDestroyed));
    let renewed = driver.primary_retain(1).unwrap();
    assert_ne!(driver.ctx_id(renewed).unwrap(), context);
    driver.ctx_set_current(renewed).unwrap();
    is_new(driver.stream_id(0));
    is_new(driver.stream_id(PER_THREAD));
    driver.ctx_set_current(0).unwrap();
    assert_eq!(driver.stream_id(0), Err(Error::InvalidContext));
}

#[test]
fn the_streams_without_a_handle_take_work_in_order() {
    let driver = ready();
    let increment = function(&driver, "increment");
    let address = driver.mem_alloc(4).unwrap();
    for stream in [0, LEGACY, PER_THREAD] {
        driver.set(address, Pattern::D32(0), 1, Some(stream)).unwrap();
        launch(&driver, increment, shape(1, 1), stream, &increment_params(address, 1)).unwrap();
        let event = driver.event_create(2).unwrap();
        driver.event_record(event, stream).unwrap();
        driver.event_synchronize(event).unwrap();
        driver.stream_synchronize(stream).unwrap();
        driver.stream_query(stream).unwrap();
        assert_eq!(driver.stream_context(stream), Ok(driver.ctx_current()));
        assert_eq!(read(&driver, address, 1).unwrap(), [1], "stream {stream}");
    }
}

#[test]
fn the_legacy_stream_and_the_threads_wait_for_each_other() {
    let driver = ready();
    let wait_for = function(&driver, "wait_for");
    let flag = driver.mem_alloc(4).unwrap();
    driver.set(flag, Pattern::D32(0), 1, None).unwrap();
    let writer = driver.stream_create(1, 0).unwrap();
    launch(&driver, wait_for, shape(1, 1), PER_THREAD, &flag.to_le_bytes()).unwrap();
    let event = driver.event_create(2).unwrap();
    driver.event_record(event, LEGACY).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.event_query(event), Err(Error::NotReady));
    driver.set(flag, Pattern::D32(1), 1, Some(writer)).unwrap();
    driver.event_synchronize(event).unwrap();
}

#[test]
fn a_relaxed_thread_works_beside_another_threads_capture() {
    let driver = ready();
    let context = driver.ctx_current();
    let (captured, mine) = (driver.stream_create(1, 0).unwrap(), driver.stream_create(1, 0).unwrap());
    let event = driver.event_create(2).unwrap();
    std::thread::scope(|scope| {
        let (begun, wait_until_begun) = std::sync::mpsc::channel();
        let (done, wait_until_done) = std::sync::mpsc::channel();
        let driver = &driver;
        let capture = scope.spawn(move || {
            driver.ctx_set_current(context).unwrap();
            driver.stream_begin_capture(captured, CaptureMode::Global).unwrap();
            begun.send(()).unwrap();
            wait_until_done.recv().unwrap();
            assert_eq!(driver.stream_is_capturing(captured), Ok(CaptureStatus::Active));
            driver.stream_end_capture(captured).unwrap();
        });
        wait_until_begun.recv().unwrap();
        let numbers = numbers(4);
        assert_eq!(exchange_capture_mode(CaptureMode::Relaxed), CaptureMode::Global);
        let address = driver.mem_alloc(4).unwrap();
        driver.set(address, Pattern::D32(1), 1, Some(mine)).unwrap();
        driver.event_record(event, mine).unwrap();
        driver.event_synchronize(event).unwrap();
        driver.event_query(event).unwrap();
        driver.stream_synchronize(mine).unwrap();
        driver.stream_query(mine).unwrap();
        register(driver, &numbers).unwrap();
        driver.host_unregister(pointer(&numbers)).unwrap();
        driver.mem_free(address).unwrap();
        assert_eq!(driver.stream_is_capturing(mine), Ok(CaptureStatus::None));
        assert_eq!(exchange_capture_mode(CaptureMode::Global), CaptureMode::Relaxed);
        done.send(()).unwrap();
        capture.join().unwrap();
    });
}

#[test]
fn the_state_of_the_primary_context_is_told() {
    let driver = driver();
    assert!(!driver.primary_state(0).unwrap().active);
    driver.primary_set_flags(0, 4).unwrap();
    driver.primary_retain(0).unwrap();
    assert!(driver.primary_state(0).unwrap().active);
    assert_eq!(driver.primary_state(0).unwrap().flags, 4);
    assert!(!driver.primary_state(1).unwrap().active);
    driver.primary_reset(0).unwrap();
    assert!(!driver.primary_state(0).unwrap().active);
}

#[test]
fn a_reset_stops_kernels_and_what_waits_for_them_goes_on() {
    let driver = ready();
    let wait_for = function(&driver, "wait_for");
    let flag = driver.mem_alloc(4).unwrap();
    driver.set(flag, Pattern::D32(0), 1, None).unwrap();
    driver.ctx_synchronize().unwrap();
    let stream = driver.stream_create(1, 0).unwrap();
    // More blocks than the device has places for, and a copy and a record behind them.
    launch(&driver, wait_for, shape(300, 1024), stream, &flag.to_le_bytes()).unwrap();
    driver.set(flag, Pattern::D32(2), 1, Some(stream)).unwrap();
    let event = driver.event_create(2).unwrap();
    driver.event_record(event, stream).unwrap();
    let old = driver.ctx_current();
    let other = driver.primary_retain(1).unwrap();
    driver.ctx_set_current(other).unwrap();
    let waits = driver.stream_create(1, 0).unwrap();
    driver.stream_wait_event(waits, event, 0).unwrap();
    std::thread::scope(|scope| {
        let (begun, wait) = std::sync::mpsc::channel();
        let driver = &driver;
        let waiting = scope.spawn(move || {
            driver.ctx_set_current(old).unwrap();
            begun.send(()).unwrap();
            driver.stream_synchronize(stream)
        });
        wait.recv().unwrap();
        // It may as well come to wait only behind the reset.
        std::thread::sleep(Duration::from_millis(50));
        driver.primary_reset(0).unwrap();
        let answer = waiting.join().unwrap();
        assert!(matches!(answer, Err(Error::ContextIsDestroyed | Error::InvalidHandle)), "{answer:?}");
    });
    driver.stream_synchronize(waits).unwrap();
    // The device works.
    driver.ctx_set_current(driver.primary_retain(0).unwrap()).unwrap();
    let increment = function(&driver, "increment");
    let address = driver.mem_alloc(4).unwrap();
    driver.set(address, Pattern::D32(5), 1, None).unwrap();
    launch(&driver, increment, shape(1, 1), 0, &increment_params(address, 1)).unwrap();
    assert_eq!(read(&driver, address, 1), Ok(vec![6]));
}

#[test]
fn handles_of_a_context_that_was_reset_are_errors_and_never_mean_something_new() {
    let driver = ready();
    let context = driver.ctx_current();
    let make = || {
        let module = driver.module_load(support::PTX.as_bytes()).unwrap();
        let function = driver.module_function(module, "increment").unwrap();
        let (stream, event) = (driver.stream_create(1, 0).unwrap(), driver.event_create(0).unwrap());
        driver.event_record(event, stream).unwrap();
        (module, function, stream, event, driver.mem_alloc(4096).unwrap())
    };
    let (module, function, stream, event, address) = make();
    let host = driver.host_alloc(64, 0).unwrap();
    driver.stream_begin_capture(stream, CaptureMode::Relaxed).unwrap();
    launch(&driver, function, shape(1, 1), stream, &increment_params(address, 1)).unwrap();
    let graph = driver.stream_end_capture(stream).unwrap();
    let executable = driver.graph_instantiate(graph, 0).unwrap();
    let abandoned = driver.stream_create(1, 0).unwrap();
    driver.stream_begin_capture(abandoned, CaptureMode::Relaxed).unwrap();
    driver.primary_reset(0).unwrap();

    for renewed in [false, true] {
        // First with the old context current, then with its successor, and objects like those that are gone.
        if renewed {
            driver.ctx_set_current(driver.primary_retain(0).unwrap()).unwrap();
            let new = make();
            let (old, new) =
                ([module, function, stream, event, address], [new.0, new.1, new.2, new.3, new.4]);
            assert!(old.iter().all(|handle| !new.contains(handle)));
        }
        let gone = |what: &str, error: Option<Error>| {
            let expected = [Error::ContextIsDestroyed, Error::InvalidHandle, Error::InvalidContext];
            assert!(error.is_some_and(|error| expected.contains(&error)), "{what}: {error:?}");
        };
        let params = increment_params(address, 1);
        gone("set current", driver.ctx_set_current(context).err());
        gone("push", driver.ctx_push(context).err());
        gone("id of context", driver.ctx_id(context).err());
        gone("synchronize stream", driver.stream_synchronize(stream).err());
        gone("query stream", driver.stream_query(stream).err());
        gone("id of stream", driver.stream_id(stream).err());
        gone("destroy stream", driver.stream_destroy(stream).err());
        gone("capturing stream", driver.stream_is_capturing(abandoned).err());
        gone("end of capture", driver.stream_end_capture(abandoned).err());
        gone("query event", driver.event_query(event).err());
        gone("synchronize event", driver.event_synchronize(event).err());
        gone("record event", driver.event_record(event, 0).err());
        gone("destroy event", driver.event_destroy(event).err());
        gone("unload module", driver.module_unload(module).err());
        gone("function of module", driver.module_function(module, "increment").err());
        let attribute = driver.function_attribute(function, FunctionAttribute::NumRegs);
        gone("attribute", attribute.err());
        gone("launch", launch(&driver, function, shape(1, 1), 0, &params).err());
        gone("launch of graph", driver.graph_launch(executable, 0).err());
        if renewed {
            assert_eq!(driver.mem_free(address), Err(Error::InvalidValue));
            assert_eq!(driver.host_free(host.as_ptr()), Err(Error::InvalidValue));
            assert_eq!(driver.mem_address_range(address), Err(Error::NotFound));
            assert_eq!(read(&driver, address, 1), Err(Error::InvalidValue));
        } else {
            gone("synchronize", driver.ctx_synchronize().err());
            gone("allocate", driver.mem_alloc(4).err());
            gone("free", driver.mem_free(address).err());
            gone("read", read(&driver, address, 1).err());
        }
    }
    driver.ctx_synchronize().unwrap();
    driver.graph_exec_destroy(executable).unwrap();
}

#[test]
fn peer_access_ends_with_the_contexts_of_the_device() {
    let driver = ready();
    let peer = driver.primary_retain(1).unwrap();
    driver.ctx_enable_peer_access(peer, 0).unwrap();
    driver.primary_reset(0).unwrap();
    driver.ctx_set_current(driver.primary_retain(0).unwrap()).unwrap();
    assert_eq!(driver.ctx_disable_peer_access(peer), Err(Error::PeerAccessNotEnabled));
    driver.ctx_enable_peer_access(peer, 0).unwrap();
    driver.primary_reset(1).unwrap();
    driver.ctx_enable_peer_access(driver.primary_retain(1).unwrap(), 0).unwrap();
}
