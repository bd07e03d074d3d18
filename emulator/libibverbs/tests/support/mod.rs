//! Adapters of an emulated node, through the safe layer of the loader.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "helpers of several test programs")]

use std::ffi::{CString, c_char, c_int};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_verbs_loader::*;

/// What the tests run on: two adapters that reach each other, one of another network, one of InfiniBand, one whose port
/// is down, and one with short messages.
const NODE: &str = r#"
name = "verbs"
gpus = 2
peermem = "nvidia_peermem"
pci_paths = [["0000:00:01.0", "0000:01:00.0", "0000:02:00.0"], ["0000:00:01.0", "0000:01:00.0", "0000:02:01.0"]]

[gpu]
name = "NVIDIA A100-SXM4-40GB"
compute_capability = "8.0"
multiprocessors = 4
blocks_per_multiprocessor = 1
memory_mib = 128

[p2p]
access = "all"

[[nic]]
name = "near"
pci = "0000:05:00.0"
pci_path = ["0000:00:01.0", "0000:01:00.0", "0000:02:02.0"]
netdev = "eth0"

[[nic]]
name = "far"
pci = "0000:06:00.0"
pci_path = ["0000:00:01.0", "0000:01:00.0", "0000:02:03.0"]
netdev = "eth1"
mtu = 4096

[[nic]]
name = "elsewhere"
pci = "0000:07:00.0"
fabric = "another"

[[nic]]
name = "band"
pci = "0000:08:00.0"
link_layer = "infiniband"
speed_gbps = 200

[[nic]]
name = "unplugged"
pci = "0000:09:00.0"
state = "down"

[[nic]]
name = "short"
pci = "0000:0a:00.0"
max_message_bytes = 4096
"#;

/// Variables by which a test tells itself in another process what it has found out.
pub const LIBRARIES: &str = "MESHREDUCE_TEST_LIBRARIES";

/// The libraries' folder; they are built for the profile of this test if they are not up to date.
fn build() -> PathBuf {
    // <target>/<profile>/deps/<test>
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap().to_path_buf();
    let mut build = Command::new(env!("CARGO"));
    build.args([
        "build",
        "--quiet",
        "-p",
        "meshreduce-emulator-libibverbs",
        "-p",
        "meshreduce-emulator-libcuda",
    ]);
    build.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "the libraries do not build");
    profile
}

/// Where the libraries are.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| std::env::var_os(LIBRARIES).map_or_else(build, PathBuf::from))
}

/// The node's description, in a file.
pub fn node_file() -> PathBuf {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("verbs.toml");
    // Replaced as a whole: other tests read it.
    let new = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(new.path(), NODE).unwrap();
    new.persist(&file).unwrap();
    file
}

/// The stand-in, opened by its path.
pub fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let node = if std::env::var_os("MESHREDUCE_NODE").is_none() { Some(node_file()) } else { None };
        // SAFETY: this is the first thing that a test does, and others wait for it; nothing reads the environment
        // meanwhile.
        unsafe {
            if let Some(node) = node {
                std::env::set_var("MESHREDUCE_NODE", node);
            }
            if std::env::var_os("MESHREDUCE_NODE_ID").is_none() {
                std::env::set_var("MESHREDUCE_NODE_ID", format!("verbs test {}", std::process::id()));
            }
        }
        let path = folder().join("libmeshreduce_libibverbs.so");
        // SAFETY: this is the stand-in, which this repository builds.
        unsafe { Library::open(path) }.unwrap()
    })
}

/// A device by its name.
pub fn open(name: &str) -> Context {
    let devices = library().devices().unwrap();
    devices.named(name).next().unwrap_or_else(|| panic!("no {name}")).open().unwrap()
}

type Fault = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
type Count = unsafe extern "C" fn(*const c_char) -> u64;

/// Sets a fault; false if it is refused.
pub fn try_fault(name: &str, argument: &str) -> bool {
    let address = library().symbol("meshreduceVerbsFault").unwrap();
    // SAFETY: the stand-in's function of this name has this signature.
    let function = unsafe { std::mem::transmute::<std::ptr::NonNull<_>, Fault>(address) };
    let (name, argument) = (CString::new(name).unwrap(), CString::new(argument).unwrap());
    // SAFETY: both are zero-terminated.
    unsafe { function(name.as_ptr(), argument.as_ptr()) == 0 }
}

pub fn fault(name: &str, argument: &str) {
    assert!(try_fault(name, argument), "{name} {argument}");
}

/// A count of the stand-in.
pub fn count(name: &str) -> u64 {
    let address = library().symbol("meshreduceVerbsCount").unwrap();
    // SAFETY: the stand-in's function of this name has this signature.
    let function = unsafe { std::mem::transmute::<std::ptr::NonNull<_>, Count>(address) };
    let name = CString::new(name).unwrap();
    // SAFETY: it is zero-terminated.
    unsafe { function(name.as_ptr()) }
}

/// Lets data be seen that has arrived for devices.
pub fn flush() {
    let address = library().symbol("meshreduceVerbsFlush").unwrap();
    // SAFETY: the stand-in's function of this name takes nothing.
    let function = unsafe { std::mem::transmute::<std::ptr::NonNull<_>, extern "C" fn()>(address) };
    function();
}

/// Faults are the process's: tests that set them, or would suffer from them, run one after the other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it is so.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Memory that adapters reach.
pub struct Buffer {
    pub region: MemoryRegion,
    bytes: Box<[u8]>,
}

impl Buffer {
    pub fn new(domain: &ProtectionDomain, length: usize, access: Access) -> Self {
        let mut bytes = vec![0; length].into_boxed_slice();
        // SAFETY: the memory outlives the region, which is dropped first; tests look at it after completions only.
        let region = unsafe { domain.register(bytes.as_mut_ptr(), length, access) }.unwrap();
        Self { region, bytes }
    }

    /// All of it, as a segment.
    pub fn all(&self) -> Segment {
        self.region.segment(0..self.region.len())
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // What an adapter wrote is not known to the compiler.
        std::hint::black_box(&mut self.bytes)
    }

    /// Fills it with bytes that tell `seed` and the place.
    pub fn fill(&mut self, seed: u8) {
        pattern(self.bytes(), seed);
    }
}

/// Bytes that tell `seed` and the place.
pub fn pattern(bytes: &mut [u8], seed: u8) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(7).wrapping_add((index >> 8) as u8).wrapping_add(seed);
    }
}

pub fn patterned(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; length];
    pattern(&mut bytes, seed);
    bytes
}

/// All that a buffer may be used for.
pub fn all_access() -> Access {
    Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ
}

/// One end of a connection.
pub struct End {
    pub context: Context,
    pub domain: ProtectionDomain,
    pub sends: CompletionQueue,
    pub receives: CompletionQueue,
    pub pair: QueuePair,
    pub address: Address,
}

/// What a queue pair is told beside the addresses.
#[derive(Clone, Copy)]
pub struct Wish {
    pub config: QueuePairConfig,
    pub access: Access,
    pub send: ReadyToSend,
    pub min_rnr_timer: u8,
    pub reads: u8,
}

impl Default for Wish {
    fn default() -> Self {
        let mut config = QueuePairConfig::default();
        config.capacity.max_send_segments = 4;
        config.capacity.max_receive_segments = 4;
        config.capacity.max_inline = 64;
        let mut send = ReadyToSend::default();
        send.outgoing_reads = 4;
        // An eighth of a second of hardware in all, a few milliseconds here.
        (send.timeout, send.retries) = (12, 6);
        Self { config, access: all_access(), send, min_rnr_timer: 12, reads: 4 }
    }
}

impl End {
    /// A queue pair in its first state.
    pub fn new(nic: &str, wish: &Wish) -> Self {
        let context = open(nic);
        let domain = context.protection_domain().unwrap();
        let (sends, receives) =
            (context.completion_queue(256).unwrap(), context.completion_queue(256).unwrap());
        let pair = domain.queue_pair(&sends, &receives, &wish.config).unwrap();
        let port = context.query_port(1).unwrap();
        let gids = context.gids(1, Path::new("/sys")).unwrap();
        let address =
            match gids.iter().find(|entry| entry.kind == GidType::RoceV2 && entry.gid.ipv4().is_some()) {
                Some(entry) => Address::global(1, entry.index as u8, entry.gid),
                None => Address::local(1, port.lid),
            };
        Self { context, domain, sends, receives, pair, address }
    }

    /// To the state in which it receives.
    pub fn receive_from(&self, peer: Address, number: u32, wish: &Wish) {
        self.pair.init(&Init::new(1, wish.access)).unwrap();
        let mut way = self.address;
        way.lid = peer.lid;
        way.gid = peer.gid.map(|(gid, _)| (gid, self.address.gid.map_or(0, |(_, index)| index)));
        let mut attributes = ReadyToReceive::new(way, number, Mtu::Bytes1024);
        attributes.min_rnr_timer = wish.min_rnr_timer;
        attributes.incoming_reads = wish.reads;
        self.pair.ready_to_receive(&attributes).unwrap();
    }

    pub fn buffer(&self, length: usize) -> Buffer {
        Buffer::new(&self.domain, length, all_access())
    }

    pub fn send(&self, request: &SendRequest<'_>) {
        // SAFETY: tests keep their buffers until the completion, and look at them after it.
        unsafe { self.pair.post_send(request) }.unwrap();
    }

    pub fn receive(&self, wr_id: u64, segments: &[Segment]) {
        // SAFETY: as above.
        unsafe { self.pair.post_receive(&ReceiveRequest { wr_id, segments }) }.unwrap();
    }

    /// The next completion of a send.
    pub fn sent(&self) -> Completion {
        next(&self.sends)
    }

    /// The next completion of a receive.
    pub fn received(&self) -> Completion {
        next(&self.receives)
    }

    /// The event of the device that is of this kind; others are passed over.
    pub fn event(&self, kind: AsyncEventType) -> AsyncEvent {
        let mut found = None;
        wait_until(kind.text(), || {
            found = self.context.next_event().unwrap().filter(|event| event.kind == kind);
            found.is_some()
        });
        found.unwrap()
    }
}

/// The next completion of a queue.
pub fn next(queue: &CompletionQueue) -> Completion {
    let mut completion = [Completion::default()];
    wait_until("a completion", || queue.poll(&mut completion).unwrap() == 1);
    completion[0]
}

/// Nothing is in a queue.
pub fn assert_empty(queue: &CompletionQueue) {
    assert_eq!(queue.poll(&mut [Completion::default()]).unwrap(), 0);
}

/// Two queue pairs of two adapters, connected and ready.
pub fn connected_with(near: &str, far: &str, wish: &Wish) -> (End, End) {
    let ends = (End::new(near, wish), End::new(far, wish));
    ends.0.receive_from(ends.1.address, ends.1.pair.number(), wish);
    ends.1.receive_from(ends.0.address, ends.0.pair.number(), wish);
    ends.0.pair.ready_to_send(&wish.send).unwrap();
    ends.1.pair.ready_to_send(&wish.send).unwrap();
    ends
}

pub fn connected() -> (End, End) {
    connected_with("near", "far", &Wish::default())
}

/// Descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A memfd of that many bytes.
pub fn memfd(length: usize) -> std::fs::File {
    let file: std::fs::File =
        rustix::fs::memfd_create("dma-buf", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into();
    file.set_len(length as u64).unwrap();
    file
}

/// Whether a descriptor is readable now.
pub fn readable(fd: impl AsFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

/// A request of the near side ends with this status, and its queue pair with it.
pub fn ends_with(near: &End, wr_id: u64, operation: Operation, segments: &[Segment], status: Status) {
    near.send(&SendRequest::new(wr_id, operation, segments));
    let done = near.sent();
    assert_eq!((done.wr_id, done.status, done.opcode), (wr_id, status, None), "{}", done.status);
    assert_eq!(near.pair.state().unwrap(), QueuePairState::Error);
}
