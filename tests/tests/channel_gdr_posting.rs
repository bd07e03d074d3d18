//! What a batch of one-sided writes allocates over RDMA does not grow with its pages.

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use meshreduce_channels::{CounterDescriptor, Page, RegionDescriptor};
use meshreduce_checks::channels::Role;
use meshreduce_checks::channels::party::SOON;
use meshreduce_checks::gdr::node::{Node, TWO};
use meshreduce_checks::gdr::program::{Arguments, Side};

/// The system's allocator, counting what all threads of this program allocate. (Not what the emulated adapters do: a library that is
/// opened has an allocator of its own.)
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes on to `System` as it came; counting touches an integer.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is `System`'s, which gave the pointer.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Says to this program, started once more, that it is on the node.
const ON_THE_NODE: &str = "MESHREDUCE_TEST_ON_THE_NODE";
/// A page, and how far they lie apart, so that no two are one write.
const PAGE: u64 = 256;
const APART: u64 = 512;
const FEW: u64 = 1_000;
const MANY: u64 = 9_000;

#[test]
fn posting_allocates_nothing_for_a_page() {
    if std::env::var_os(ON_THE_NODE).is_some() {
        return measure();
    }
    let node = Node::new(TWO);
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    again.args(["--exact", "posting_allocates_nothing_for_a_page", "--nocapture"]).env(ON_THE_NODE, "yes");
    again.env_remove("MESHREDUCE_NICS").env_remove("MESHREDUCE_CHANNELS").envs(node.environment());
    let output = again.output().expect("it starts");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", said(&output.stdout), said(&output.stderr));
    assert!(said(&output.stdout).contains("1 passed"), "{}", said(&output.stdout));
}

fn measure() {
    let store = tempfile::tempdir().expect("a folder");
    let folder = store.path().to_str().expect("a path in UTF-8");
    let arguments = Arguments::parse_from([
        "test",
        "--scenario",
        "none",
        "--store",
        folder,
        "--a",
        "cuda:0",
        "--b",
        "cuda:1",
    ]);
    let (a, b) = std::thread::scope(|scope| {
        let a = scope.spawn(|| Side::meet(&arguments, Role::A).expect("side A"));
        let b = Side::meet(&arguments, Role::B).expect("side B");
        (a.join().expect("side A"), b)
    });
    let whole = vec![1_u8; (MANY * APART) as usize];
    let register = |side: &Side<'_>| {
        let buffer = side.party.buffer(&whole).expect("memory");
        side.party.context.register(buffer).map_err(|failed| failed.error).expect("a region")
    };
    let (source, target) = (register(&a), register(&b));
    let counter = b.party.endpoint.counter();
    let (to, number): (RegionDescriptor, CounterDescriptor) = (target.descriptor(), counter.descriptor());
    let mut come = 0;
    let mut write = |count: u64| {
        let pages: Vec<Page> =
            (0..count).map(|n| Page::new(n * APART, (count - 1 - n) * APART, PAGE)).collect();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        a.party.endpoint.write(&source, &to, pages, &number, None).wait(SOON).expect("the batch");
        come += 1;
        counter.wait(come, SOON).expect("the count");
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    // Queue pairs, grants, and room in queues come first.
    for _ in 0..5 {
        write(MANY);
    }
    let least = |count: u64, write: &mut dyn FnMut(u64) -> u64| (0..10).map(|_| write(count)).min();
    let (few, many) = (least(FEW, &mut write), least(MANY, &mut write));
    let (few, many) = (few.expect("ten"), many.expect("ten"));
    println!("{few} allocations for {FEW} pages, {many} for {MANY}");
    assert!(many < few + (MANY - FEW) / 100, "{few} allocations for {FEW} pages, {many} for {MANY}");
    let writes: u64 = a.gdr.stats().iter().map(|nic| nic.posting.writes).sum();
    assert!(writes >= 15 * MANY, "pages were joined: {writes} writes");
}
