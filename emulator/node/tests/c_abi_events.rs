//! Events between processes, and stream memory operations, through the C names.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    io::{Read, Write},
    process::Child,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use libloading::Library;

#[path = "support/libraries.rs"]
mod libraries;

use libraries::{
    IpcHandle, SCENARIO, allocate, call, handle_of, parse_handle, read_values, ready, run, start,
};

const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;

/// Not a test of its own: the other side of the tests below.
#[test]
fn scenario() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    match scenario.as_str() {
        "record" => record(),
        "wait" => wait(),
        "open of what is gone" => {
            let cuda = ready();
            assert_eq!(open_event(&cuda, parse_handle(&std::env::var("HANDLE").unwrap())), Err(205));
        }
        "wait for a dead process" => wait_for_a_dead_process(),
        "handles" => handles(),
        "batch" => batch(),
        other => panic!("there is no scenario {other}"),
    }
}

fn event(cuda: &Library, flags: u32) -> u64 {
    let mut event = 0u64;
    assert_eq!(call!(cuda, cuEventCreate(&mut event => *mut u64, flags => u32)), 0);
    event
}

fn event_handle(cuda: &Library, event: u64) -> Result<IpcHandle, u32> {
    let mut handle = IpcHandle([0; 64]);
    match call!(cuda, cuIpcGetEventHandle(&mut handle => *mut IpcHandle, event => u64)) {
        0 => Ok(handle),
        code => Err(code),
    }
}

fn open_event(cuda: &Library, handle: IpcHandle) -> Result<u64, u32> {
    let mut event = 0u64;
    match call!(cuda, cuIpcOpenEventHandle(&mut event => *mut u64, handle => IpcHandle)) {
        0 => Ok(event),
        code => Err(code),
    }
}

fn stream(cuda: &Library) -> u64 {
    let mut stream = 0u64;
    assert_eq!(call!(cuda, cuStreamCreate(&mut stream => *mut u64, 1 => u32)), 0);
    stream
}

/// A word of page-locked host memory, and its address.
fn word(cuda: &Library) -> (&'static AtomicU32, u64) {
    let mut address = 0u64;
    assert_eq!(call!(cuda, cuMemHostAlloc(&mut address => *mut u64, 4096 => usize, 0 => u32)), 0);
    // SAFETY: the memory is aligned, and lives until the process ends.
    (unsafe { AtomicU32::from_ptr(address as *mut u32) }, address)
}

fn wait_for_word(cuda: &Library, stream: u64, address: u64, value: u32) {
    let code = call!(cuda, cuStreamWaitValue32_v2(stream => u64, address => u64, value => u32, 0 => u32));
    assert_eq!(code, 0);
}

/// Starts a scenario on this process's instance of the node.
fn start_here(scenario: &str) -> Child {
    start(scenario, &[("MESHREDUCE_NODE_ID", &std::env::var("MESHREDUCE_NODE_ID").unwrap())])
}

/// Waits until the other side says something, or ends.
fn told() -> bool {
    let mut byte = [0];
    std::io::stdin().read(&mut byte).unwrap() == 1
}

fn tell(child: &mut Child) {
    child.stdin.as_mut().unwrap().write_all(b".").unwrap();
}

/// Records an event behind a gate, which it opens when it is told to.
fn record() {
    let cuda = ready();
    let (stream, event) = (stream(&cuda), event(&cuda, DISABLE_TIMING | INTERPROCESS));
    let (gate, address) = word(&cuda);
    wait_for_word(&cuda, stream, address, 1);
    assert_eq!(call!(cuda, cuEventRecord(event => u64, stream => u64)), 0);
    let handle = event_handle(&cuda, event).unwrap();
    let hex: String = handle.0.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("HANDLE {hex}");
    if told() {
        gate.store(1, Ordering::Release);
        assert_eq!(call!(cuda, cuStreamSynchronize(stream => u64)), 0);
        // Until the other side has recorded it in turn.
        if told() {
            assert_eq!(call!(cuda, cuEventSynchronize(event => u64)), 0);
        }
    }
}

/// Waits for the event of a recorder, by a stream and by the host, then records it.
fn wait() {
    let cuda = ready();
    let mut recorder = start_here("record");
    let handle = parse_handle(&handle_of(&mut recorder));
    let event = open_event(&cuda, handle).unwrap();
    assert_eq!(event_handle(&cuda, event).err(), Some(400), "what was opened is not exported again");
    let stream = stream(&cuda);
    assert_eq!(call!(cuda, cuStreamWaitEvent(stream => u64, event => u64, 0 => u32)), 0);
    let address = allocate(&cuda, 4);
    let code = call!(cuda, cuMemsetD32Async(address => u64, 7 => u32, 1 => usize, stream => u64));
    assert_eq!(code, 0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(call!(cuda, cuEventQuery(event => u64)), 600);
    assert_eq!(call!(cuda, cuStreamQuery(stream => u64)), 600);
    tell(&mut recorder);
    assert_eq!(call!(cuda, cuEventSynchronize(event => u64)), 0);
    assert_eq!(call!(cuda, cuStreamSynchronize(stream => u64)), 0);
    assert_eq!(read_values(&cuda, address, 1), [7]);

    // The other way round.
    let (gate, address) = word(&cuda);
    wait_for_word(&cuda, stream, address, 1);
    assert_eq!(call!(cuda, cuEventRecord(event => u64, stream => u64)), 0);
    tell(&mut recorder);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(recorder.try_wait().unwrap(), None, "it waits for this process's record");
    gate.store(1, Ordering::Release);
    assert!(recorder.wait().unwrap().success());

    // What is open stays so, and can be opened again, when the process that made it has ended.
    let again = open_event(&cuda, handle).unwrap();
    assert_eq!(call!(cuda, cuEventQuery(again => u64)), 0);
    for event in [event, again] {
        assert_eq!(call!(cuda, cuEventDestroy_v2(event => u64)), 0);
    }
    assert_eq!(open_event(&cuda, handle), Err(205));
}

/// The recorder is killed while its record is on its way.
fn wait_for_a_dead_process() {
    let cuda = ready();
    let mut recorder = start_here("record");
    let event = open_event(&cuda, parse_handle(&handle_of(&mut recorder))).unwrap();
    let stream = stream(&cuda);
    assert_eq!(call!(cuda, cuStreamWaitEvent(stream => u64, event => u64, 0 => u32)), 0);
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    // As on real hardware the event does not happen.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(call!(cuda, cuEventQuery(event => u64)), 600);
    let began = Instant::now();
    assert_eq!(call!(cuda, cuStreamSynchronize(stream => u64)), 702);
    assert!(began.elapsed() < Duration::from_secs(60));
}

fn handles() {
    let cuda = ready();
    let mut event_made = 0u64;
    let code = call!(cuda, cuEventCreate(&mut event_made => *mut u64, INTERPROCESS => u32));
    assert_eq!(code, 1, "an event between processes has no times");
    assert_eq!(event_handle(&cuda, event(&cuda, DISABLE_TIMING)).err(), Some(400));
    let event = event(&cuda, DISABLE_TIMING | INTERPROCESS);
    let handle = event_handle(&cuda, event).unwrap();
    assert_eq!(open_event(&cuda, handle), Err(201), "not in the process that made it");
    assert_eq!(open_event(&cuda, IpcHandle([0; 64])), Err(205));
    assert_eq!(open_event(&cuda, IpcHandle([7; 64])), Err(205));
    let mut memory = IpcHandle([0; 64]);
    let address = allocate(&cuda, 16);
    assert_eq!(call!(cuda, cuIpcGetMemHandle(&mut memory => *mut IpcHandle, address => u64)), 0);
    assert_eq!(open_event(&cuda, memory), Err(205), "memory is no event");
    let code = call!(cuda, cuIpcOpenMemHandle_v2(&mut event_made => *mut u64, handle => IpcHandle, 1 => u32));
    assert_eq!(code, 1, "an event is no memory");

    // A captured record could not be waited for by others.
    let stream = stream(&cuda);
    assert_eq!(call!(cuda, cuStreamBeginCapture_v2(stream => u64, 2 => u32)), 0);
    assert_eq!(call!(cuda, cuEventRecord(event => u64, stream => u64)), 900);
    let mut graph = 0u64;
    assert_eq!(call!(cuda, cuStreamEndCapture(stream => u64, &mut graph => *mut u64)), 901);
}

/// `CUstreamBatchMemOpParams`.
#[repr(C)]
struct BatchOp {
    operation: u32,
    address: u64,
    value: u64,
    flags: u32,
    rest: [u64; 2],
}

fn batch() {
    let cuda = ready();
    let stream = stream(&cuda);
    let (word, address) = word(&cuda);
    let op = |operation, value, flags| BatchOp { operation, address, value, flags, rest: [0; 2] };
    let run = |ops: &[BatchOp], flags: u32| {
        call!(cuda, cuStreamBatchMemOp_v2(
            stream => u64, ops.len() as u32 => u32, ops.as_ptr() => *const BatchOp, flags => u32))
    };
    assert_eq!(run(&[op(2, 5, 0), op(1, 5, 1), op(6, 0, 0), op(5, 9, 0), op(4, 9, 1)], 0), 0);
    assert_eq!(call!(cuda, cuStreamSynchronize(stream => u64)), 0);
    assert_eq!(word.load(Ordering::Acquire), 9);
    assert_eq!(run(&[], 0), 0);
    assert_eq!(run(&[op(2, 5, 0)], 1), 1);
    assert_eq!(run(&[op(77, 5, 0)], 0), 1);
    assert_eq!(run(&[op(3, 0, 0)], 0), 801);
    // The first forms are those that the driver has to be told to have.
    assert_eq!(call!(cuda, cuStreamWaitValue32(stream => u64, address => u64, 0 => u32, 0 => u32)), 801);
    let mut found = std::ptr::null::<u8>();
    let name = c"cuStreamWaitValue32";
    let code = call!(cuda, cuGetProcAddress(
        name.as_ptr() => *const std::ffi::c_char, &mut found => *mut *const u8, 12040 => i32, 0 => u64));
    assert_eq!(code, 0);
    // SAFETY: only the address is taken.
    let second = unsafe { cuda.get::<*const u8>(b"cuStreamWaitValue32_v2\0") }.unwrap();
    assert_eq!(found, *second);
}

#[test]
fn a_process_waits_for_what_another_one_has_recorded() {
    run("wait", &[]);
}

#[test]
fn an_event_whose_process_has_ended_cannot_be_opened() {
    let mut recorder = start("record", &[]);
    let handle = handle_of(&mut recorder);
    drop(recorder.stdin.take());
    assert!(recorder.wait().unwrap().success());
    run("open of what is gone", &[("HANDLE", &handle)]);
}

#[test]
fn a_stream_that_waits_for_a_killed_process_does_not_go_on_but_fails_in_the_end() {
    let stderr = run("wait for a dead process", &[("MESHREDUCE_DEADLOCK_SECONDS", "1")]);
    assert!(stderr.contains("a process has recorded which has ended"), "{stderr}");
}

#[test]
fn event_handles_are_checked() {
    run("handles", &[]);
}

#[test]
fn operations_come_in_batches() {
    run("batch", &[]);
}
