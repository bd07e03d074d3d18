//! What the device crate knows of memory, and memory and events between processes, on the emulated node.

use std::ffi::c_void;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use meshreduce_checks::in_process::{fail_driver_calls, open_driver, reset_context};
use meshreduce_device::{
    Allocation, DeviceMemory, Error, FlushScope, GpuDirect, Import, ImportedEvent, IpcEvent, IpcHandle,
    PrimaryContext, RegisteredHost, Stream, Words, WritesOrdering, allocation_of, copy, copy_between,
    dma_buf, flush_rdma_writes, initialise,
};
use meshreduce_tests::here;
use rustix::mm::{MapFlags, ProtFlags};

const LAUNCH_FAILED: u32 = 719;
const PAGE: usize = 4096;
const LONG: Duration = Duration::from_secs(60);
/// For the other process of a test.
const PEER: &str = "MESHREDUCE_TEST_PEER";

fn context(device: u32) -> Arc<PrimaryContext> {
    open_driver();
    initialise().unwrap();
    PrimaryContext::retain(device).unwrap()
}

/// A shared mapping of a memfd, which counts how many of it there are.
struct Shared {
    start: NonNull<u8>,
    alive: Arc<()>,
}

// SAFETY: a mapping is not tied to a thread.
unsafe impl Send for Shared {}
// SAFETY: a shared value gives out nothing.
unsafe impl Sync for Shared {}

impl Shared {
    fn of(file: &impl std::os::fd::AsFd) -> Self {
        // SAFETY: the system chooses the place.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        Self { start: NonNull::new(start.unwrap().cast()).unwrap(), alive: Arc::default() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody uses it any more.
        unsafe { rustix::mm::munmap(self.start.as_ptr().cast::<c_void>(), PAGE) }.unwrap();
    }
}

fn memfd() -> std::os::fd::OwnedFd {
    let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, PAGE as u64).unwrap();
    file
}

fn register(context: &Arc<PrimaryContext>, mapping: Shared) -> RegisteredHost<Shared> {
    let start = mapping.start;
    // SAFETY: the mapping is a page, until it is dropped; the tests drop the value when their streams have ended.
    unsafe { RegisteredHost::new(context, mapping, start, PAGE) }.unwrap()
}

fn word_at(place: NonNull<u8>) -> &'static AtomicU32 {
    // SAFETY: the tests use it only for as long as the page is mapped.
    unsafe { AtomicU32::from_ptr(place.as_ptr().cast()) }
}

#[test]
fn an_allocation_is_found_by_any_address_in_it_and_numbered_anew_each_time() {
    let context = context(0);
    let memory = DeviceMemory::new(&context, 1000).unwrap();
    let found = allocation_of(&context, memory.address() + 999).unwrap();
    assert_eq!((found.base, found.bytes), (memory.address(), 1000));
    assert_eq!(allocation_of(&context, memory.address()).unwrap(), found);
    let (handle, same) = IpcHandle::of_address(&context, memory.address() + 100).unwrap();
    assert_eq!((handle.offset, same), (100, found));
    assert_eq!(handle.handle, IpcHandle::of(&memory).unwrap().handle);

    let address = memory.address();
    drop(memory);
    assert!(matches!(allocation_of(&context, address), Err(Error::NotOnDevice { .. })));
    let Allocation { buffer_id, .. } =
        allocation_of(&context, DeviceMemory::new(&context, 1000).unwrap().address()).unwrap();
    assert_ne!(buffer_id, found.buffer_id);
}

#[test]
fn copies_go_between_device_memory_of_any_device_and_registered_memory() {
    let (here, there) = (context(1), context(2));
    let (from, to) = (DeviceMemory::new(&here, 64).unwrap(), DeviceMemory::new(&there, 64).unwrap());
    let host = register(&here, Shared::of(&memfd()));
    let stream = Stream::new(&here).unwrap();
    word_at(host.host()).store(0x1234_5678, Ordering::Release);
    // SAFETY: all of it is alive until the stream has ended, and within its bounds; the stream is of `here`.
    unsafe {
        copy(&here, from.address(), host.device(), 64, stream.raw()).unwrap();
        copy_between((&there, to.address()), (&here, from.address()), 64, stream.raw()).unwrap();
        copy(&here, host.device() + 64, from.address(), 4, stream.raw()).unwrap();
    }
    assert!(stream.finish(LONG).unwrap());
    // SAFETY: the word is in the page.
    assert_eq!(word_at(unsafe { host.host().add(64) }).load(Ordering::Acquire), 0x1234_5678);
    let back = Stream::new(&there).unwrap();
    // SAFETY: as above; registered memory is seen by all devices.
    unsafe { copy(&there, host.device() + 128, to.address(), 4, back.raw()) }.unwrap();
    assert!(back.finish(LONG).unwrap());
    // SAFETY: the word is in the page.
    assert_eq!(word_at(unsafe { host.host().add(128) }).load(Ordering::Acquire), 0x1234_5678);
}

#[test]
fn copies_from_and_to_a_device_whose_context_was_reset_are_refused_as_such() {
    let (here, there) = (context(6), context(7));
    let (mine, lost) = (DeviceMemory::new(&here, 64).unwrap(), DeviceMemory::new(&there, 64).unwrap());
    let stream = Stream::new(&here).unwrap();
    reset_context(7);
    let (mine, lost) = ((&*here, mine.address()), (&*there, lost.address()));
    for (to, from) in [(mine, lost), (lost, mine)] {
        // SAFETY: what is of the reset context has no memory any more, and the driver says so.
        let refusal = unsafe { copy_between(to, from, 64, stream.raw()) }.unwrap_err();
        assert_eq!(
            (refusal.call, &*refusal.name),
            ("cuMemcpyPeerAsync", "CUDA_ERROR_CONTEXT_IS_DESTROYED"),
            "{refusal}"
        );
    }
}

#[test]
fn registered_memory_is_unmapped_when_the_driver_has_let_go_of_it_and_leaked_otherwise() {
    let context = context(3);
    let mapping = Shared::of(&memfd());
    let alive = Arc::clone(&mapping.alive);
    let host = register(&context, mapping);
    assert_eq!((host.bytes(), host.mapping().start), (PAGE, host.host()));
    // SAFETY: the mapping outlives the try.
    let again = unsafe { RegisteredHost::new(&context, (), host.host(), PAGE) };
    assert!(again.is_err(), "it is registered already");
    drop(host);
    assert_eq!(Arc::strong_count(&alive), 1);

    let mapping = Shared::of(&memfd());
    let alive = Arc::clone(&mapping.alive);
    let host = register(&context, mapping);
    fail_driver_calls("cuMemHostUnregister", LAUNCH_FAILED, 0, 1);
    drop(host);
    assert_eq!(Arc::strong_count(&alive), 2);
}

#[test]
fn a_dma_buf_leads_to_the_memory() {
    let context = context(4);
    let memory = DeviceMemory::new(&context, 4 * PAGE as u64).unwrap();
    let stream = Stream::new(&context).unwrap();
    let first = memory.address().next_multiple_of(PAGE as u64);
    memory.set(first - memory.address() + 8, 77, &stream).unwrap();
    assert!(stream.finish(LONG).unwrap());
    let file = File::from(dma_buf(&context, first, PAGE as u64).unwrap());
    let begins = rustix::fs::seek(&file, rustix::fs::SeekFrom::Current(0)).unwrap();
    let mut word = [0; 4];
    file.read_exact_at(&mut word, begins + 8).unwrap();
    assert_eq!(u32::from_le_bytes(word), 77);
    let refused = dma_buf(&context, first + 4, PAGE as u64).unwrap_err();
    assert_eq!((refused.code, refused.is_unsupported()), (1, false));
}

#[test]
fn a_device_says_what_network_cards_may_do_and_a_flush_reaches_the_driver() {
    let context = context(5);
    let direct = GpuDirect::of(&context.device()).unwrap();
    assert_eq!(
        direct,
        GpuDirect { supported: true, dma_buf: true, flush_by_host: true, ordering: WritesOrdering::Owner }
    );
    assert!(!direct.needs_flush(FlushScope::Owner) && direct.needs_flush(FlushScope::AllDevices));
    let flushes = || {
        let address = meshreduce_device::loader::symbol("meshreduceEmulatorFlushes").unwrap();
        // SAFETY: only the emulated node's driver exports this name, with this signature.
        let count: unsafe extern "C" fn(*mut u64) -> i32 = unsafe { std::mem::transmute(address) };
        let mut flushes = 0;
        // SAFETY: the function writes one u64 to the address.
        assert_eq!(unsafe { count(&mut flushes) }, 0);
        flushes
    };
    let before = flushes();
    flush_rdma_writes(&context, FlushScope::Owner).unwrap();
    flush_rdma_writes(&context, FlushScope::AllDevices).unwrap();
    assert_eq!(flushes() - before, 2);
}

/// Starts this program again to run the test `test` alone, as the other process of a test.
fn start(test: &str, told: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).env(PEER, told);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn handle(text: &str) -> [u8; 64] {
    std::array::from_fn(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap())
}

/// Not a test of its own: it records an event behind work, which it lets go on when it is told to.
#[test]
fn the_other_process() {
    if std::env::var_os(PEER).is_none() {
        return;
    }
    let context = context(0);
    let memory = DeviceMemory::new(&context, 256).unwrap();
    let (stream, event) = (Stream::new(&context).unwrap(), IpcEvent::new(&context).unwrap());
    let gate = Words::new(&context).unwrap().take().unwrap();
    // SAFETY: the stream is alive, of this context, and not being captured.
    unsafe {
        gate.enqueue_wait(1, stream.raw()).unwrap();
        memory.set(128, 5, &stream).unwrap();
        event.record(stream.raw()).unwrap();
    }
    let (of, allocation) = IpcHandle::of_address(&context, memory.address() + 128).unwrap();
    assert_eq!((of.offset, allocation.bytes), (128, 256));
    println!("HANDLES {} {}", hex(&of.handle), hex(&event.handle()));
    let mut told = [0];
    std::io::stdin().read_exact(&mut told).unwrap();
    gate.set(1);
    // Until the importer has ended.
    let _ = std::io::stdin().read(&mut told).unwrap();
    assert!(stream.finish(LONG).unwrap() && event.event().has_passed().unwrap());
}

#[test]
fn a_stream_waits_for_another_processs_event_and_reads_its_memory() {
    let context = context(1);
    let mut peer = start(here!("the_other_process"), "yes");
    let mut lines = BufReader::new(peer.stdout.take().unwrap()).lines();
    let said = lines.find_map(|line| Some(line.ok()?.split_once("HANDLES ")?.1.to_owned())).unwrap();
    let (memory, event) = said.split_once(' ').unwrap();
    let import = Import::open(&context, &IpcHandle { handle: handle(memory), offset: 128 }).unwrap();
    assert_eq!(import.bytes(), Some(128));
    let event = ImportedEvent::open(&context, handle(event)).unwrap();
    let (stream, host) = (Stream::new(&context).unwrap(), register(&context, Shared::of(&memfd())));
    // SAFETY: the stream is alive and of this context; memory and page live until it has ended.
    unsafe {
        event.wait_on(stream.raw()).unwrap();
        copy(&context, host.device(), import.address(), 4, stream.raw()).unwrap();
    }
    assert!(!event.event().has_passed().unwrap());
    assert!(!stream.finish(Duration::from_millis(20)).unwrap());
    assert_eq!(word_at(host.host()).load(Ordering::Acquire), 0);
    peer.stdin.as_mut().unwrap().write_all(b".").unwrap();
    assert!(stream.finish(LONG).unwrap());
    assert_eq!(word_at(host.host()).load(Ordering::Acquire), 5);
    drop((import, event));
    drop(peer.stdin.take());
    assert!(peer.wait().unwrap().success());
}
