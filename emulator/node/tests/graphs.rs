//! Stream capture and graphs, by the rules of the CUDA C++ Programming Guide. Every test has a driver of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use meshreduce_emulator_node::{
    driver::{
        CaptureMode, CaptureStatus, Driver, Error, Handle, LaunchConfig, NodeType, Options, Parameters,
        Pattern, exchange_capture_mode,
    },
    exec::DirectExecutor,
    node::Node,
};

const PTX: &str = include_str!("programs/small.ptx");

/// A driver with the primary context of device 0 current.
fn ready() -> Driver {
    let node = Node::load("hgx-h100").unwrap();
    let driver = Driver::new(node, Options::default(), Arc::new(DirectExecutor)).unwrap();
    driver.ctx_set_current(driver.primary_retain(0).unwrap()).unwrap();
    driver
}

fn function(driver: &Driver, name: &str) -> Handle {
    driver.module_function(driver.module_load(PTX.as_bytes()).unwrap(), name).unwrap()
}

/// A stream that has nothing to do with the legacy one.
fn stream(driver: &Driver) -> Handle {
    driver.stream_create(1, 0).unwrap()
}

fn numbers(driver: &Driver, values: &[u32]) -> u64 {
    let address = driver.mem_alloc(values.len() as u64 * 4).unwrap();
    for (index, &value) in values.iter().enumerate() {
        driver.set(address + index as u64 * 4, Pattern::D32(value), 1, None).unwrap();
    }
    driver.ctx_synchronize().unwrap();
    address
}

fn read(driver: &Driver, address: u64) -> u32 {
    let mut value = 0u32;
    // SAFETY: the number has four bytes.
    unsafe { driver.copy_to_host((&raw mut value).cast(), address, 4, None).unwrap() };
    value
}

fn launch(driver: &Driver, function: Handle, params: &[u8], stream: Handle) -> Result<(), Error> {
    let config = LaunchConfig { grid: [1; 3], block: [1; 3], dynamic_shared: 0 };
    // SAFETY: the callers below pass the bytes that the kernels declare.
    unsafe { driver.launch(function, config, stream, Parameters::Buffer(params.as_ptr(), params.len())) }
}

/// Adds 1 to the number at `address`.
fn increment(driver: &Driver, function: Handle, address: u64, stream: Handle) -> Result<(), Error> {
    launch(driver, function, &[address.to_le_bytes().as_slice(), &1u32.to_le_bytes()].concat(), stream)
}

/// Captures what `push` pushes into a stream, in thread-local mode, and makes it executable.
fn captured(driver: &Driver, stream: Handle, push: impl FnOnce()) -> Handle {
    driver.stream_begin_capture(stream, CaptureMode::ThreadLocal).unwrap();
    push();
    let graph = driver.stream_end_capture(stream).unwrap();
    let executable = driver.graph_instantiate(graph, 0).unwrap();
    driver.graph_destroy(graph).unwrap();
    executable
}

/// Has `to` wait for what is in `from`.
fn order(driver: &Driver, from: Handle, to: Handle) -> Result<(), Error> {
    let event = driver.event_create(2).unwrap();
    driver.event_record(event, from).unwrap();
    driver.stream_wait_event(to, event, 0)
}

/// The capture of `stream` takes nothing more, ends with an error, and leaves the stream as it was.
fn assert_invalidated(driver: &Driver, stream: Handle) {
    assert_eq!(driver.stream_is_capturing(stream), Ok(CaptureStatus::Invalidated));
    // Another capture of this thread may still be under way.
    let mode = exchange_capture_mode(CaptureMode::Relaxed);
    let bounded = function(driver, "bounded");
    assert_eq!(launch(driver, bounded, &[], stream), Err(Error::StreamCaptureInvalidated));
    assert_eq!(driver.stream_end_capture(stream), Err(Error::StreamCaptureInvalidated));
    assert_eq!(driver.stream_is_capturing(stream), Ok(CaptureStatus::None));
    launch(driver, bounded, &[], stream).unwrap();
    driver.stream_synchronize(stream).unwrap();
    exchange_capture_mode(mode);
}

#[test]
fn captured_work_is_done_by_every_launch_and_not_before() {
    let driver = ready();
    let (add, stream) = (function(&driver, "increment"), stream(&driver));
    let (from, to) = (numbers(&driver, &[10]), numbers(&driver, &[0]));
    let executable = captured(&driver, stream, || {
        increment(&driver, add, from, stream).unwrap();
        driver.copy_on_devices(to, from, 4, Some(stream)).unwrap();
        increment(&driver, add, to, stream).unwrap();
    });
    assert_eq!((read(&driver, from), read(&driver, to)), (10, 0));
    for replay in 1..=20 {
        driver.graph_launch(executable, stream).unwrap();
        driver.stream_synchronize(stream).unwrap();
        assert_eq!((read(&driver, from), read(&driver, to)), (10 + replay, 11 + replay));
    }
    // Many launches without waiting, with plain work between them.
    for _ in 0..10 {
        driver.graph_launch(executable, stream).unwrap();
        increment(&driver, add, from, stream).unwrap();
    }
    driver.stream_synchronize(stream).unwrap();
    assert_eq!((read(&driver, from), read(&driver, to)), (50, 50));
    driver.graph_exec_destroy(executable).unwrap();
    assert_eq!(driver.graph_launch(executable, stream), Err(Error::InvalidValue));
}

#[test]
fn a_captured_copy_uses_the_hosts_memory_as_it_is_at_the_launch() {
    let driver = ready();
    let stream = stream(&driver);
    let address = numbers(&driver, &[0]);
    let source = AtomicU32::new(1);
    let sink = AtomicU32::new(0);
    let executable = captured(&driver, stream, || {
        // SAFETY: both numbers outlive the last launch, and nobody uses them while one is under way.
        unsafe {
            driver.copy_to_device(address, source.as_ptr().cast(), 4, Some(stream)).unwrap();
            driver.copy_to_host(sink.as_ptr().cast(), address, 4, Some(stream)).unwrap();
        }
    });
    assert_eq!(sink.load(Ordering::Relaxed), 0);
    for value in [7, 8] {
        source.store(value, Ordering::Relaxed);
        driver.graph_launch(executable, stream).unwrap();
        driver.stream_synchronize(stream).unwrap();
        assert_eq!(sink.load(Ordering::Relaxed), value);
    }
}

#[test]
fn branches_run_at_the_same_time_and_what_follows_waits_for_all() {
    let driver = ready();
    let (add, wait_for) = (function(&driver, "increment"), function(&driver, "wait_for"));
    let (origin, side) = (stream(&driver), stream(&driver));
    let (flag, sum) = (numbers(&driver, &[0]), numbers(&driver, &[0]));
    let executable = captured(&driver, origin, || {
        driver.set(flag, Pattern::D32(0), 1, Some(origin)).unwrap();
        order(&driver, origin, side).unwrap();
        // The first branch can end only while the second one runs.
        launch(&driver, wait_for, &flag.to_le_bytes(), origin).unwrap();
        driver.set(flag, Pattern::D32(1), 1, Some(side)).unwrap();
        driver.set(sum, Pattern::D32(5), 1, Some(side)).unwrap();
        order(&driver, side, origin).unwrap();
        increment(&driver, add, sum, origin).unwrap();
    });
    for _ in 0..10 {
        driver.graph_launch(executable, origin).unwrap();
        driver.stream_synchronize(origin).unwrap();
        assert_eq!(read(&driver, sum), 6);
    }
}

#[test]
fn a_graph_spans_devices() {
    let driver = ready();
    let here = stream(&driver);
    let mine = numbers(&driver, &[1]);
    let back = driver.event_create(2).unwrap();
    driver.ctx_push(driver.primary_retain(1).unwrap()).unwrap();
    let there = stream(&driver);
    let (add, theirs) = (function(&driver, "increment"), numbers(&driver, &[0]));
    let done = driver.event_create(2).unwrap();
    driver.ctx_pop().unwrap();
    let executable = captured(&driver, here, || {
        driver.copy_on_devices(theirs, mine, 4, Some(here)).unwrap();
        driver.event_record(back, here).unwrap();
        driver.stream_wait_event(there, back, 0).unwrap();
        increment(&driver, add, theirs, there).unwrap();
        driver.event_record(done, there).unwrap();
        driver.stream_wait_event(here, done, 0).unwrap();
        driver.copy_on_devices(mine, theirs, 4, Some(here)).unwrap();
    });
    for replay in 0..5 {
        driver.graph_launch(executable, here).unwrap();
        driver.stream_synchronize(here).unwrap();
        assert_eq!(read(&driver, mine), 2 + replay);
    }
}

#[test]
fn a_fork_must_join_before_the_capture_ends() {
    let driver = ready();
    let bounded = function(&driver, "bounded");
    let (origin, side) = (stream(&driver), stream(&driver));
    for work_after_join in [false, true] {
        driver.stream_begin_capture(origin, CaptureMode::ThreadLocal).unwrap();
        order(&driver, origin, side).unwrap();
        assert_eq!(driver.stream_is_capturing(side), Ok(CaptureStatus::Active));
        launch(&driver, bounded, &[], side).unwrap();
        if work_after_join {
            order(&driver, side, origin).unwrap();
            launch(&driver, bounded, &[], side).unwrap();
        }
        assert_eq!(driver.stream_end_capture(side), Err(Error::StreamCaptureUnmatched));
        assert_eq!(driver.stream_end_capture(origin), Err(Error::StreamCaptureUnjoined));
        for stream in [origin, side] {
            assert_eq!(driver.stream_is_capturing(stream), Ok(CaptureStatus::None));
        }
    }
}

#[test]
fn a_fork_may_be_destroyed_once_it_has_joined() {
    let driver = ready();
    let origin = stream(&driver);
    let address = numbers(&driver, &[0]);
    for joins in [true, false] {
        driver.stream_begin_capture(origin, CaptureMode::ThreadLocal).unwrap();
        let fork = stream(&driver);
        order(&driver, origin, fork).unwrap();
        driver.set(address, Pattern::D32(5), 1, Some(fork)).unwrap();
        if joins {
            order(&driver, fork, origin).unwrap();
        }
        driver.stream_destroy(fork).unwrap();
        assert_eq!(driver.stream_is_capturing(origin), Ok(CaptureStatus::Active));
        let ended = driver.stream_end_capture(origin);
        assert_eq!(ended.err(), if joins { None } else { Some(Error::StreamCaptureUnjoined) });
    }
}

#[test]
fn captures_begin_once_and_not_in_the_legacy_stream() {
    let driver = ready();
    let stream = stream(&driver);
    for legacy in [0, 1] {
        let begun = driver.stream_begin_capture(legacy, CaptureMode::Relaxed);
        assert_eq!(begun, Err(Error::StreamCaptureUnsupported));
    }
    assert_eq!(driver.stream_end_capture(stream), Err(Error::IllegalState));
    driver.stream_begin_capture(stream, CaptureMode::Global).unwrap();
    assert_eq!(driver.stream_begin_capture(stream, CaptureMode::Global), Err(Error::IllegalState));
    let info = driver.stream_capture_info(stream).unwrap().unwrap();
    assert_eq!((info.status, info.dependencies.len()), (CaptureStatus::Active, 0));
    let graph = driver.stream_end_capture(stream).unwrap();
    assert_eq!(info.graph, graph);
    let executable = driver.graph_instantiate(graph, 0).unwrap();
    driver.graph_launch(executable, stream).unwrap();
    driver.stream_synchronize(stream).unwrap();
    // The calling thread's own default stream is one like others.
    driver.stream_begin_capture(2, CaptureMode::Global).unwrap();
    driver.stream_end_capture(2).unwrap();
}

#[test]
fn a_capture_ends_in_its_thread_unless_it_is_relaxed() {
    let driver = ready();
    let stream = stream(&driver);
    let end_elsewhere =
        || std::thread::scope(|scope| scope.spawn(|| driver.stream_end_capture(stream)).join().unwrap());
    driver.stream_begin_capture(stream, CaptureMode::ThreadLocal).unwrap();
    assert_eq!(end_elsewhere(), Err(Error::StreamCaptureWrongThread));
    driver.stream_end_capture(stream).unwrap();
    driver.stream_begin_capture(stream, CaptureMode::Relaxed).unwrap();
    end_elsewhere().unwrap();
}

#[test]
fn waiting_for_what_is_captured_is_refused_and_spoils_the_capture() {
    type Wait<'a> = &'a dyn Fn() -> Result<(), Error>;
    let driver = ready();
    let stream = stream(&driver);
    let event = driver.event_create(2).unwrap();
    let refused: [(Wait<'_>, Error); 5] = [
        (&|| driver.stream_synchronize(stream), Error::StreamCaptureUnsupported),
        (&|| driver.stream_query(stream), Error::StreamCaptureUnsupported),
        (&|| driver.ctx_synchronize(), Error::StreamCaptureUnsupported),
        (&|| driver.event_synchronize(event), Error::CapturedEvent),
        (&|| driver.event_query(event), Error::CapturedEvent),
    ];
    for (wait, error) in refused {
        // Not even the relaxed mode allows these.
        driver.stream_begin_capture(stream, CaptureMode::Relaxed).unwrap();
        driver.event_record(event, stream).unwrap();
        assert_eq!(wait(), Err(error));
        assert_invalidated(&driver, stream);
    }
}

#[test]
fn a_captured_stream_must_not_be_asked_for_its_id_in_any_mode() {
    let driver = ready();
    let (captured, apart) = (stream(&driver), stream(&driver));
    for mode in [CaptureMode::Global, CaptureMode::ThreadLocal, CaptureMode::Relaxed] {
        driver.stream_begin_capture(captured, mode).unwrap();
        // Those that are not in the capture may be.
        for other in [apart, 0, 2] {
            driver.stream_id(other).unwrap();
        }
        assert_eq!(driver.stream_is_capturing(captured), Ok(CaptureStatus::Active));
        let before = exchange_capture_mode(CaptureMode::Relaxed);
        assert_eq!(driver.stream_id(captured), Err(Error::StreamCaptureUnsupported));
        exchange_capture_mode(before);
        assert_invalidated(&driver, captured);
        driver.stream_id(captured).unwrap();
    }
    let blocking = driver.stream_create(0, 0).unwrap();
    driver.stream_begin_capture(blocking, CaptureMode::Relaxed).unwrap();
    assert_eq!(driver.stream_id(0), Err(Error::StreamCaptureImplicit));
    assert_invalidated(&driver, blocking);
}

#[test]
fn an_event_stays_captured_until_it_is_recorded_again() {
    let driver = ready();
    let (stream, other) = (stream(&driver), stream(&driver));
    let event = driver.event_create(2).unwrap();
    driver.stream_begin_capture(stream, CaptureMode::ThreadLocal).unwrap();
    driver.event_record(event, stream).unwrap();
    driver.stream_end_capture(stream).unwrap();
    assert_eq!(driver.event_query(event), Err(Error::CapturedEvent));
    assert_eq!(driver.stream_wait_event(other, event, 0), Err(Error::CapturedEvent));
    driver.event_record(event, stream).unwrap();
    driver.event_synchronize(event).unwrap();
    driver.stream_wait_event(other, event, 0).unwrap();
    assert_eq!(driver.stream_is_capturing(other), Ok(CaptureStatus::None));
}

#[test]
fn the_legacy_stream_must_not_be_used_while_a_stream_that_it_waits_for_is_captured() {
    let driver = ready();
    let address = numbers(&driver, &[3]);
    let blocking = driver.stream_create(0, 0).unwrap();
    driver.stream_begin_capture(blocking, CaptureMode::Relaxed).unwrap();
    assert_eq!(driver.stream_is_capturing(0), Err(Error::StreamCaptureImplicit));
    assert_eq!(driver.stream_is_capturing(blocking), Ok(CaptureStatus::Active), "asking spoils nothing");
    assert_eq!(driver.set(address, Pattern::D32(4), 1, None), Err(Error::StreamCaptureImplicit));
    assert_invalidated(&driver, blocking);

    let apart = stream(&driver);
    driver.stream_begin_capture(apart, CaptureMode::Relaxed).unwrap();
    driver.set(address, Pattern::D32(4), 1, None).unwrap();
    assert_eq!(read(&driver, address), 4);
    driver.stream_end_capture(apart).unwrap();
}

#[test]
fn dependencies_do_not_cross_the_border_of_a_capture() {
    let driver = ready();
    let (first, second) = (stream(&driver), stream(&driver));
    // What is not captured.
    let event = driver.event_create(2).unwrap();
    driver.event_record(event, second).unwrap();
    driver.stream_begin_capture(first, CaptureMode::ThreadLocal).unwrap();
    assert_eq!(driver.stream_wait_event(first, event, 0), Err(Error::StreamCaptureIsolation));
    assert_invalidated(&driver, first);
    // Two captures.
    driver.stream_begin_capture(first, CaptureMode::ThreadLocal).unwrap();
    driver.stream_begin_capture(second, CaptureMode::ThreadLocal).unwrap();
    assert_eq!(order(&driver, first, second), Err(Error::StreamCaptureMerge));
    assert_invalidated(&driver, first);
    assert_invalidated(&driver, second);
}

#[test]
fn what_cannot_be_captured_is_refused() {
    let driver = ready();
    let stream = stream(&driver);
    driver.stream_begin_capture(stream, CaptureMode::ThreadLocal).unwrap();
    let callback = driver.stream_add_callback(stream, Box::new(|| {}));
    assert_eq!(callback, Err(Error::StreamCaptureUnsupported));
    assert_invalidated(&driver, stream);
    driver.stream_begin_capture(stream, CaptureMode::ThreadLocal).unwrap();
    assert_eq!(driver.mem_alloc_async(4, stream), Err(Error::NotSupported));
    assert_invalidated(&driver, stream);
    driver.stream_begin_capture(stream, CaptureMode::ThreadLocal).unwrap();
    driver.stream_destroy(stream).unwrap();
    assert_eq!(driver.stream_is_capturing(stream), Err(Error::InvalidHandle));
    driver.mem_alloc(4).expect("no capture is left that would forbid it");
}

/// Whether an allocation is allowed here, and one in another thread, while a capture of the mode is under way.
fn allowed(mode: CaptureMode, threads: CaptureMode) -> (bool, bool) {
    let driver = ready();
    let (context, stream) = (driver.ctx_current(), stream(&driver));
    let allowed_in_a_capture = |other_thread: bool| {
        driver.stream_begin_capture(stream, mode).unwrap();
        let allocate = || {
            driver.ctx_set_current(context).unwrap();
            let old = exchange_capture_mode(threads);
            let answer = driver.mem_alloc(4);
            assert_eq!(exchange_capture_mode(old), threads);
            answer
        };
        let answer = match other_thread {
            false => allocate(),
            true => std::thread::scope(|scope| scope.spawn(allocate).join().unwrap()),
        };
        let ended = driver.stream_end_capture(stream);
        match answer {
            Ok(_) => assert!(ended.is_ok()),
            Err(error) => {
                assert_eq!(error, Error::StreamCaptureUnsupported);
                assert_eq!(ended, Err(Error::StreamCaptureInvalidated));
            }
        }
        answer.is_ok()
    };
    (allowed_in_a_capture(false), allowed_in_a_capture(true))
}

#[test]
fn modes_say_who_may_make_unsafe_calls() {
    use CaptureMode::{Global, Relaxed, ThreadLocal};
    assert_eq!(allowed(Global, Global), (false, false));
    assert_eq!(allowed(Global, ThreadLocal), (false, true));
    assert_eq!(allowed(Global, Relaxed), (true, true));
    assert_eq!(allowed(ThreadLocal, Global), (false, true));
    assert_eq!(allowed(Relaxed, Global), (true, true));
}

#[test]
fn launches_of_one_executable_graph_follow_each_other_in_any_streams() {
    let driver = ready();
    let add = function(&driver, "increment");
    let streams = [stream(&driver), stream(&driver), stream(&driver)];
    let address = numbers(&driver, &[0]);
    let story = Arc::new(Mutex::new(String::new()));
    let says = |letter| -> Box<dyn Fn() + Send + Sync> {
        let story = Arc::clone(&story);
        Box::new(move || story.lock().unwrap().push(letter))
    };
    let executable = captured(&driver, streams[0], || {
        driver.launch_host_function(streams[0], says('(')).unwrap();
        increment(&driver, add, address, streams[0]).unwrap();
        driver.launch_host_function(streams[0], says(')')).unwrap();
    });
    for stream in streams.into_iter().cycle().take(30) {
        driver.graph_launch(executable, stream).unwrap();
    }
    driver.ctx_synchronize().unwrap();
    assert_eq!(*story.lock().unwrap(), "()".repeat(30));
    assert_eq!(read(&driver, address), 30);
}

#[test]
fn a_graph_launched_into_a_capture_becomes_part_of_it() {
    let driver = ready();
    let (add, stream) = (function(&driver, "increment"), stream(&driver));
    let address = numbers(&driver, &[0]);
    let inner = captured(&driver, stream, || {
        for _ in 0..3 {
            increment(&driver, add, address, stream).unwrap();
        }
    });
    let outer = captured(&driver, stream, || {
        driver.set(address, Pattern::D32(100), 1, Some(stream)).unwrap();
        driver.graph_launch(inner, stream).unwrap();
        driver.graph_launch(inner, stream).unwrap();
        increment(&driver, add, address, stream).unwrap();
    });
    for _ in 0..3 {
        driver.graph_launch(outer, stream).unwrap();
        driver.stream_synchronize(stream).unwrap();
        assert_eq!(read(&driver, address), 107);
    }
}

#[test]
fn external_events_connect_launches_with_the_rest() {
    let driver = ready();
    let (add, graph_stream, plain) = (function(&driver, "increment"), stream(&driver), stream(&driver));
    let address = numbers(&driver, &[0]);
    let (go, done) = (driver.event_create(2).unwrap(), driver.event_create(2).unwrap());
    let executable = captured(&driver, graph_stream, || {
        driver.stream_wait_event(graph_stream, go, 1).unwrap();
        increment(&driver, add, address, graph_stream).unwrap();
        driver.event_record_external(done, graph_stream).unwrap();
    });
    driver.event_synchronize(done).expect("an external record does not capture the event");
    for round in 1..=3 {
        driver.set(address, Pattern::D32(10 * round), 1, Some(plain)).unwrap();
        driver.event_record(go, plain).unwrap();
        driver.graph_launch(executable, graph_stream).unwrap();
        driver.event_synchronize(done).unwrap();
        assert_eq!(read(&driver, address), 10 * round + 1);
    }
}

#[test]
fn a_graph_tells_its_nodes_and_edges() {
    let driver = ready();
    let (origin, side) = (stream(&driver), stream(&driver));
    let (bounded, address) = (function(&driver, "bounded"), numbers(&driver, &[0, 0]));
    driver.stream_begin_capture(origin, CaptureMode::ThreadLocal).unwrap();
    driver.set(address, Pattern::D32(1), 1, Some(origin)).unwrap();
    order(&driver, origin, side).unwrap();
    launch(&driver, bounded, &[], origin).unwrap();
    driver.copy_on_devices(address + 4, address, 4, Some(side)).unwrap();
    order(&driver, side, origin).unwrap();
    let info = driver.stream_capture_info(origin).unwrap().unwrap();
    driver.launch_host_function(origin, Box::new(|| {})).unwrap();
    let graph = driver.stream_end_capture(origin).unwrap();
    let nodes = driver.graph_nodes(graph).unwrap();
    let types: Vec<_> = nodes.iter().map(|node| driver.node_type(*node).unwrap()).collect();
    assert_eq!(types, [NodeType::Memset, NodeType::Kernel, NodeType::Memcpy, NodeType::Host]);
    assert_eq!(driver.graph_root_nodes(graph).unwrap(), [nodes[0]]);
    assert_eq!(*info.dependencies, [nodes[1], nodes[2]]);
    let mut edges = driver.graph_edges(graph).unwrap();
    edges.sort_unstable();
    let mut expected = [(0, 1), (0, 2), (1, 3), (2, 3)].map(|(from, to)| (nodes[from], nodes[to]));
    expected.sort_unstable();
    assert_eq!(edges, expected);
    driver.graph_destroy(graph).unwrap();
    assert_eq!(driver.node_type(nodes[0]), Err(Error::InvalidValue));
    assert_eq!(driver.graph_nodes(graph), Err(Error::InvalidValue));
    assert_eq!(driver.graph_instantiate(graph, 0), Err(Error::InvalidValue));
    assert_eq!(driver.graph_instantiate(driver.graph_create(), 1 << 40), Err(Error::InvalidValue));
}

#[test]
fn a_graph_whose_memory_or_module_is_gone_is_found_out() {
    let driver = ready();
    let module = driver.module_load(PTX.as_bytes()).unwrap();
    let (add, stream) = (driver.module_function(module, "increment").unwrap(), stream(&driver));
    let address = numbers(&driver, &[0]);
    let copies = captured(&driver, stream, || {
        driver.set(address, Pattern::D32(1), 1, Some(stream)).unwrap();
    });
    let kernels = captured(&driver, stream, || increment(&driver, add, address, stream).unwrap());
    driver.mem_free(address).unwrap();
    assert_eq!(driver.graph_launch(copies, stream), Err(Error::InvalidValue));
    driver.ctx_check().unwrap();
    driver.module_unload(module).unwrap();
    assert_eq!(driver.graph_launch(kernels, stream), Err(Error::InvalidHandle));
    driver.ctx_check().unwrap();
}

#[test]
fn a_fault_in_a_branch_ends_the_launch() {
    let driver = ready();
    let (origin, side) = (stream(&driver), stream(&driver));
    let (add, wait_for) = (function(&driver, "increment"), function(&driver, "wait_for"));
    let (flag, freed) = (numbers(&driver, &[0]), numbers(&driver, &[0]));
    let executable = captured(&driver, origin, || {
        order(&driver, origin, side).unwrap();
        launch(&driver, wait_for, &flag.to_le_bytes(), origin).unwrap();
        increment(&driver, add, freed, side).unwrap();
        increment(&driver, add, flag, side).unwrap();
        order(&driver, side, origin).unwrap();
    });
    driver.mem_free(freed).unwrap();
    driver.graph_launch(executable, origin).unwrap();
    assert_eq!(driver.stream_synchronize(origin), Err(Error::IllegalAddress));
    assert_eq!(driver.graph_launch(executable, origin), Err(Error::IllegalAddress));
}
