//! Registered regions, one-sided writes and counters: over `ipc` between two processes of an emulated node, over `xth` between two
//! contexts of one process, and over `basic` between two processes by a Unix socket and by TCP.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::ffi::c_void;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::time::Duration;

use meshreduce::store::MemoryStore;
use meshreduce_channels::channel::Pair;
use meshreduce_channels::{
    Basic, Counter, CounterDescriptor, Error, Ipc, Links, Options, POISON, Page, Pages, Region,
    RegionDescriptor, Registry, Xth,
};
use meshreduce_device::loader::sys;
use meshreduce_device::{Device, DeviceMemory, Module, Stream, Words, ordinal_of};
use meshreduce_tests::channel_peer::{Gpu, LONG, Peer, data, eventually};
use meshreduce_tests::in_process::{all_driver_calls, driver_calls};
use meshreduce_tests::rank_process::{Part, Stage, heard};

/// How long one waits for what must not come.
const BRIEF: Duration = Duration::from_millis(30);

/// What the two ranks do: rank 0 owns regions, rank 1 writes.
type Play = fn(Peer, Gpu);

/// All plays, by name. Those of the second list are for two processes alone.
const PLAYS: [(&str, Play); 11] = [
    ("pages", pages),
    ("waits", waits),
    ("out_of_range", out_of_range),
    ("in_use", in_use),
    ("given_up", given_up),
    ("two_endpoints", two_endpoints),
    ("overlaps", overlaps),
    ("streams", streams),
    ("counts", counts),
    ("calls", calls),
    ("freed", freed),
];
const PLAYS_OF_PROCESSES: [(&str, Play); 3] =
    [("writer_dies", writer_dies), ("owner_dies", owner_dies), ("writer_stops", writer_stops)];

/// How this process's ranks play.
static WAY: OnceLock<String> = OnceLock::new();

/// Whether this process's ranks play over `basic`.
fn is_basic() -> bool {
    WAY.get().is_some_and(|way| way.starts_with("basic"))
}

/// `basic` alone, with small slots, or both other kinds, of which ipc serves processes and xth contexts of one process.
fn channels() -> Registry {
    let mut registry = Registry::empty();
    if is_basic() {
        registry.register(Basic::with_slots(4, 64 << 10).unwrap()).unwrap();
    } else {
        registry.register(Ipc::default()).unwrap();
        registry.register(Xth).unwrap();
    }
    registry
}

fn act(part: Part, play: Play, devices: [u32; 2]) {
    let ordinal = devices[part.rank];
    let options = match WAY.get().map(String::as_str) {
        Some("basic-over-tcp") => Links { memory: false, unix: false, tcp: true },
        _ => Links::default(),
    };
    let options = Options { links: options, ..Options::default() };
    let peer = Peer::meet_by(part, &channels(), &[Device::Cuda(ordinal)], options);
    play(peer, Gpu::new(ordinal));
}

/// Not a test of its own: what the tests below run as processes.
#[test]
fn rank() {
    let Some(part) = Part::of_this_process() else { return };
    let (way, name) = part.name.split_once(' ').unwrap();
    let play = PLAYS.into_iter().chain(PLAYS_OF_PROCESSES).find(|(known, _)| *known == name);
    let (_, play) = play.unwrap_or_else(|| panic!("there is no play {name}"));
    WAY.set(way.to_owned()).unwrap();
    match way {
        "processes" => act(part, play, [2, 2]),
        "basic" => act(part, play, [2, 2]),
        "basic-over-tcp" => act(part, play, [0, 1]),
        _ => {
            let store = MemoryStore::default();
            std::thread::scope(|scope| {
                for rank in 0..2 {
                    let store = Box::new(store.clone());
                    let part = Part { rank, world_size: 2, store, name: String::new() };
                    let devices = if way == "two" { [0, 1] } else { [2, 2] };
                    scope.spawn(move || act(part, play, devices));
                }
            });
        }
    }
}

/// Two processes.
fn processes(name: &str) {
    two_processes("processes", name);
}

fn two_processes(way: &str, name: &str) {
    let stage = Stage::new("rank", 2);
    let ranks = [0, 1].map(|rank| stage.start(rank, &format!("{way} {name}")));
    for (rank, child) in ranks.into_iter().enumerate() {
        let (said, well) = heard(child);
        assert!(well, "rank {rank} of {name}, {way}: {said:?}");
    }
}

/// Two processes over `basic`, by a Unix socket and by TCP.
fn basic(name: &str) {
    two_processes("basic", name);
    two_processes("basic-over-tcp", name);
}

/// One process, with two devices or with one.
fn one_process(name: &str) {
    for way in ["two", "one"] {
        let stage = Stage::new("rank", 1);
        let (said, well) = heard(stage.start(0, &format!("{way} {name}")));
        assert!(well, "{way} of {name}: {said:?}");
    }
}

macro_rules! plays {
    ($($name:ident: $($test:ident $how:ident),+;)+) => {$($(
        #[test]
        fn $test() {
            $how(stringify!($name));
        }
    )+)+};
}

plays! {
    pages: ten_thousand_pages_and_rows_arrive_byte_for_byte processes, pages_and_rows_arrive_within_a_process one_process,
        pages_and_rows_arrive_over_basic basic;
    waits: a_count_is_polled_waited_for_awaited_and_seen_by_a_kernel processes,
        a_count_is_seen_in_every_way_within_a_process one_process, a_count_is_seen_in_every_way_over_basic basic;
    out_of_range: what_is_wrong_is_refused_before_anything_is_written processes, what_is_wrong_is_refused_within_a_process one_process,
        what_is_wrong_is_refused_over_basic basic;
    in_use: a_region_in_use_is_freed_when_nobody_writes_any_more processes, a_region_in_use_within_a_process one_process;
    given_up: over_basic_a_region_comes_back_at_once basic;
    two_endpoints: two_endpoints_write_into_one_region processes, two_endpoints_within_a_process one_process,
        two_endpoints_over_basic basic;
    overlaps: of_pages_that_overlap_one_wins processes, of_pages_that_overlap_one_wins_within_a_process one_process,
        of_pages_that_overlap_one_wins_over_basic basic;
    streams: a_batch_waits_for_its_stream processes, a_batch_waits_for_its_stream_within_a_process one_process,
        a_batch_waits_for_its_stream_over_basic basic;
    counts: counters_count_apart_and_in_rounds processes, counters_count_within_a_process one_process,
        counters_count_over_basic basic;
    calls: a_page_or_a_run_of_rows_is_a_call_of_the_driver processes, a_page_is_a_call_within_a_process one_process;
    freed: what_leads_to_a_freed_region_leads_to_no_other processes, a_freed_region_within_a_process one_process,
        a_freed_region_over_basic basic;
    writer_stops: a_stopped_writer_keeps_the_region_until_it_lets_go processes_one_of_which_stops,
        over_basic_a_stopped_writer_keeps_nothing basic_one_of_which_stops;
    writer_dies: a_dead_writer_fails_the_counter_and_frees_the_region processes_one_of_which_dies,
        a_dead_writer_fails_the_counter_over_basic basic_one_of_which_dies;
    owner_dies: a_dead_owner_fails_the_batches processes_the_first_of_which_dies,
        a_dead_owner_fails_the_batches_over_basic basic_the_first_of_which_dies;
}

/// Tells the writer of a region and of a counter.
fn show(peer: &Peer, region: &RegionDescriptor, counter: &Counter) {
    peer.part.tell("region", &region.to_bytes());
    peer.part.tell("counter", &counter.descriptor().to_bytes());
}

/// What it was told.
fn shown(peer: &Peer) -> (RegionDescriptor, CounterDescriptor) {
    let region = RegionDescriptor::from_bytes(&peer.part.hear("region")).unwrap();
    (region, CounterDescriptor::from_bytes(&peer.part.hear("counter")).unwrap())
}

/// Waits until the memory is back.
fn close(region: Region<DeviceMemory>) -> DeviceMemory {
    region.close().wait(LONG).unwrap_or_else(|_| panic!("nobody lets go of the region"))
}

const PAGE: u64 = 256;
const PAGES: u64 = 10_000;

/// Where the page with this number goes: every place once.
fn place(page: u64) -> u64 {
    page * 7919 % PAGES
}

fn pages(peer: Peer, gpu: Gpu) {
    let bytes = PAGE * PAGES;
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&vec![0; bytes as usize])).unwrap();
        let descriptor = region.descriptor();
        assert!(descriptor.to_bytes().len() <= 200, "{descriptor}: {} bytes", descriptor.to_bytes().len());
        let counter = peer.endpoint.counter();
        show(&peer, &descriptor, &counter);
        // Pages everywhere.
        counter.wait(1, LONG).unwrap();
        let (source, mut expected) = (data(1, bytes), vec![0; bytes as usize]);
        for page in 0..PAGES {
            let (from, to) = ((page * PAGE) as usize, (place(page) * PAGE) as usize);
            expected[to..to + PAGE as usize].copy_from_slice(&source[from..from + PAGE as usize]);
        }
        assert!(gpu.read(region.span().address, bytes) == expected, "pages");
        peer.meet_at("pages");
        // Rows: 100 bytes of every page here, to every third kilobyte there.
        counter.wait(2, LONG).unwrap();
        for row in 0..800 {
            let (from, to) = ((row * PAGE) as usize + 5, (row * 3000) as usize + 7);
            expected[to..to + 100].copy_from_slice(&source[from..from + 100]);
        }
        assert!(gpu.read(region.span().address, bytes) == expected, "rows");
        peer.meet_at("rows");
        // Everything.
        counter.wait(3, LONG).unwrap();
        assert!(gpu.read(region.span().address, bytes) == source, "everything");
        assert_eq!(counter.bytes(), 2 * bytes + 80_000);
        peer.meet_at("everything");
        close(region);
    } else {
        let (to, counter) = shown(&peer);
        assert_eq!(to.bytes(), bytes);
        let region = peer.context.register(gpu.memory(&data(1, bytes))).unwrap();
        let write = |pages: Pages| peer.endpoint.write(&region, &to, pages, &counter, &gpu.stream);
        let permuted = write(Pages::blocks(PAGE, (0..PAGES).map(|page| (page, place(page)))));
        assert_eq!(permuted.wait(LONG).unwrap(), bytes);
        peer.meet_at("pages");
        assert_eq!(write(Pages::strided(5, PAGE, 7, 3000, 100, 800)).wait(LONG).unwrap(), 80_000);
        peer.meet_at("rows");
        assert_eq!(write(Pages::range(0, 0, bytes)).wait(LONG).unwrap(), bytes);
        peer.meet_at("everything");
        close(region);
    }
    peer.end();
}

/// Waits at `word` until it is at least `expected`, and then tells what it has read there and what the data are.
const WAITER: &str = "\
.version 7.0
.target sm_70
.address_size 64
.visible .entry waiter(.param .u64 word, .param .u64 expected, .param .u64 data, .param .u64 out) {
    .reg .pred %p<2>; .reg .b64 %rd<7>;
    ld.param.u64 %rd1, [word]; ld.param.u64 %rd2, [expected];
    ld.param.u64 %rd3, [data]; ld.param.u64 %rd4, [out];
$L_again:
    ld.acquire.sys.global.u64 %rd5, [%rd1];
    setp.lt.u64 %p1, %rd5, %rd2;
    @%p1 bra $L_again;
    ld.global.u64 %rd6, [%rd3];
    st.global.u64 [%rd4], %rd5;
    st.global.u64 [%rd4+8], %rd6;
    ret;
}";

/// A kernel that waits at a word.
struct Waiting {
    stream: Stream,
    out: DeviceMemory,
    _module: Module,
}

impl Waiting {
    fn new(gpu: &Gpu, word: u64, expected: u64, data: u64) -> Self {
        let module = Module::load(&gpu.context, WAITER).unwrap();
        let stream = Stream::new(&gpu.context).unwrap();
        let out = gpu.memory(&[0; 16]);
        let entered = gpu.context.enter().unwrap();
        let mut function = std::ptr::null_mut();
        let mut raw = std::ptr::null_mut();
        // SAFETY: both places outlive the calls, and the texts end with a zero.
        unsafe {
            let text = format!("{WAITER}\0");
            assert_eq!(
                sys::cuModuleLoadDataEx(
                    &mut raw,
                    text.as_ptr().cast(),
                    0,
                    std::ptr::null_mut(),
                    std::ptr::null_mut()
                ),
                sys::CUresult::SUCCESS
            );
            assert_eq!(
                sys::cuModuleGetFunction(&mut function, raw, c"waiter".as_ptr()),
                sys::CUresult::SUCCESS
            );
        }
        let parameters = [word, expected, data, out.address()];
        let mut places =
            parameters.each_ref().map(|value| std::ptr::from_ref(value).cast_mut().cast::<c_void>());
        // SAFETY: the kernel's parameters are four 64-bit values, of which the addresses stay valid until it has ended: whoever
        // makes it waits for that.
        let launched = unsafe {
            sys::cuLaunchKernel(
                function,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                stream.raw().get(),
                places.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(launched, sys::CUresult::SUCCESS);
        drop(entered);
        Self { stream, out, _module: module }
    }

    fn runs(&self) -> bool {
        !self.stream.finish(Duration::ZERO).unwrap()
    }

    /// What it has read of the word and of the data.
    fn end(self, gpu: &Gpu) -> (u64, u64) {
        self.stream.synchronize().unwrap();
        let read = gpu.read(self.out.address(), 16);
        let number = |at: usize| u64::from_le_bytes(read[at..at + 8].try_into().unwrap());
        (number(0), number(8))
    }
}

/// Runs a future to its end on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker: Waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn waits(peer: Peer, gpu: Gpu) {
    let word = |number: u64| u64::from_le_bytes(data(number, 8).try_into().unwrap());
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&[0; 8])).unwrap();
        let address = region.span().address;
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        // Whoever only looks.
        peer.meet_at("look");
        eventually("the count is seen", || counter.value() == 1);
        gpu.assert_holds(address, 1, 8);
        // Whoever waits.
        assert!(matches!(counter.wait(2, BRIEF), Err(Error::TimedOut { .. })));
        peer.meet_at("wait");
        assert_eq!(counter.wait(2, LONG).unwrap(), 2);
        gpu.assert_holds(address, 2, 8);
        // A future.
        peer.meet_at("await");
        assert_eq!(block_on(counter.reached(3)).unwrap(), 3);
        gpu.assert_holds(address, 3, 8);
        // A kernel that runs already, and one that comes too late.
        let place = counter.word(gpu.device()).unwrap();
        assert_eq!(counter.word(gpu.device()).unwrap(), place, "it is always the same");
        let waiting = Waiting::new(&gpu, place, 4, address);
        std::thread::sleep(BRIEF);
        assert!(waiting.runs());
        peer.meet_at("kernel");
        assert_eq!(waiting.end(&gpu), (4, word(4)));
        assert_eq!(Waiting::new(&gpu, place, 2, address).end(&gpu), (4, word(4)));
        // A kernel whose count cannot be reached any more.
        let hopeless = Waiting::new(&gpu, place, 100, address);
        peer.meet_at("close");
        assert_eq!(hopeless.end(&gpu).0, POISON);
        match counter.wait(100, LONG) {
            Err(Error::CountUnreachable { peer, batches: 4, expected: 100, bytes: 32, why, .. }) => {
                assert!(peer.contains("rank 1"), "{peer}");
                assert!(matches!(*why, Error::ClosedByPeer { .. }), "{why}");
            }
            other => panic!("{other:?}"),
        }
        // And one whose counter is dropped.
        let late = peer.endpoint.counter();
        assert!(late.failure().is_some());
        peer.meet_at("closed");
        close(region);
    } else {
        let (to, counter) = shown(&peer);
        // Nothing is allocated or freed while a kernel waits: the driver may wait for it.
        let region = |number| peer.context.register(gpu.memory(&data(number, 8))).unwrap();
        let regions: Vec<_> = (1..5).map(region).collect();
        for (region, place) in regions.iter().zip(["look", "wait", "await", "kernel"]) {
            peer.meet_at(place);
            peer.endpoint.write(region, &to, Pages::range(0, 0, 8), &counter, None).wait(LONG).unwrap();
        }
        peer.meet_at("close");
        peer.endpoint.close();
        peer.meet_at("closed");
        regions.into_iter().for_each(|region| drop(close(region)));
    }
    peer.end();
}

fn out_of_range(peer: Peer, gpu: Gpu) {
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&[7; 1000])).unwrap();
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        let other = peer.endpoint.counter();
        peer.part.tell("other counter", &other.descriptor().to_bytes());
        peer.meet_at("refused");
        assert!(matches!(other.wait(1, LONG), Err(Error::CountUnreachable { .. })), "the batch was missed");
        assert_eq!((counter.value(), gpu.read(region.span().address, 1000)), (0, vec![7; 1000]));
        // One that was given up, and one that is another's.
        close(region);
        peer.meet_at("given up");
        assert!(matches!(counter.wait(1, LONG), Err(Error::CountUnreachable { .. })), "the batch was missed");
        peer.meet_at("the end");
    } else {
        let (to, counter) = shown(&peer);
        let region = peer.context.register(gpu.memory(&[1; 1000])).unwrap();
        let fails = |to: &RegionDescriptor, pages: Pages| {
            peer.endpoint.write(&region, to, pages, &counter, &gpu.stream).wait(LONG).unwrap_err()
        };
        for pages in [
            Pages::range(0, 1, 1000),
            Pages::range(1, 0, 1000),
            Pages::range(u64::MAX, 0, 1),
            Pages::strided(0, 10, 0, 200, 100, 10),
            // All but the last would be possible.
            (0..100).map(|page| Page::new(0, 10 * page, 11)).collect(),
        ] {
            let error = fails(&to, pages);
            let Error::OutOfRegion { whose, offset, length, bytes: 1000 } = &error else { panic!("{error}") };
            assert!([&**peer.endpoint.peer_name(), "this side"].contains(&&**whose), "{error}");
            assert!(offset.checked_add(*length).is_none_or(|end| end > 1000), "{error}");
        }
        // What a descriptor says that is greater than the region, its owner knows better.
        let mut lying = to.to_bytes();
        lying[8..16].copy_from_slice(&2000_u64.to_le_bytes());
        let lying = RegionDescriptor::from_bytes(&lying).unwrap();
        assert_eq!(lying.bytes(), 2000);
        let other = CounterDescriptor::from_bytes(&peer.part.hear("other counter")).unwrap();
        let write = peer.endpoint.write(&region, &lying, Pages::range(0, 1500, 100), &other, None);
        match write.wait(LONG) {
            Err(Error::OutOfRegion { whose, offset: 1500, length: 100, bytes: 1000 }) => {
                assert_eq!(&whose, peer.endpoint.peer_name());
            }
            other => panic!("{other:?}"),
        }
        // Another version.
        let mut other = to.to_bytes();
        other[3] += 1;
        assert!(matches!(RegionDescriptor::from_bytes(&other), Err(Error::BadDescriptor { .. })));
        // A region of host memory is nothing for ipc, nor is one of another context for any.
        if !is_basic() {
            let host = peer.context.register(vec![0_u8; 10]).unwrap();
            assert!(host.descriptor().kinds().eq(["xth"]), "{:?}", host.descriptor());
            assert_eq!(host.close().wait(LONG).ok(), Some(vec![0; 10]));
        }
        let stranger = meshreduce_channels::Context::new(&channels(), &[gpu.device()]).unwrap();
        let foreign = stranger.register(gpu.memory(&[1; 1000])).unwrap();
        let error =
            peer.endpoint.write(&foreign, &to, Pages::range(0, 0, 1), &counter, None).wait(LONG).unwrap_err();
        assert!(matches!(error, Error::BadMemory { .. }), "{error}");
        peer.meet_at("refused");
        peer.meet_at("given up");
        let error = fails(&to, Pages::range(0, 0, 10));
        assert!(matches!(&error, Error::RegionGone { peer, .. } if peer.contains("rank 0")), "{error}");
        // One that is none of the other side's. (Within a process every region is known.)
        let pair = Pair { local: gpu.device(), remote: to.device() };
        if peer.endpoint.channel(pair).unwrap() != "xth" && gpu.device() == to.device() {
            let error = fails(&foreign.descriptor(), Pages::range(0, 0, 1));
            assert!(matches!(error, Error::RegionGone { .. }), "{error}");
        }
        close(foreign);
        peer.meet_at("the end");
        close(region);
    }
    peer.end();
}

/// A word at which a stream waits: set at the latest when it is dropped, so that a test which fails comes to its end.
struct Opening(meshreduce_device::Word);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.set(1);
    }
}

fn in_use(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 0 {
        let memory = gpu.memory(&vec![0; BYTES as usize]);
        let address = memory.address();
        let region = peer.context.register(memory).unwrap();
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        counter.wait(1, LONG).unwrap();
        peer.meet_at("opened");
        peer.meet_at("under way");
        let closing = region.close().wait(BRIEF).unwrap_err();
        assert!(ordinal_of(address).is_some());
        peer.meet_at("given up");
        let memory = closing.wait(LONG).unwrap();
        // The batch that had begun is there.
        gpu.assert_holds(memory.address(), 1, BYTES);
        // The other one was missed, and from then on nothing counts.
        assert!(matches!(counter.wait(3, LONG), Err(Error::CountUnreachable { batches: 1..=2, .. })));
        drop(memory);
        assert!(ordinal_of(address).is_none());
        // Dropped without a word, it is freed too.
        let memory = gpu.empty(BYTES);
        let address = memory.address();
        drop(peer.context.register(memory).unwrap());
        eventually("a dropped region is freed", || ordinal_of(address).is_none());
    } else {
        let (to, counter) = shown(&peer);
        let held_up = Gpu::new(gpu.context.ordinal());
        let go = Words::new(&gpu.context).unwrap().take().unwrap();
        // SAFETY: the stream is alive and not captured.
        unsafe { go.enqueue_wait(1, held_up.stream.raw()) }.unwrap();
        let go = Opening(go);
        let memory = gpu.memory(&data(1, BYTES));
        let address = memory.address();
        let region = peer.context.register(memory).unwrap();
        let all = Pages::range(0, 0, BYTES);
        // The first one opens the region.
        let first = peer.endpoint.write(&region, &to, Pages::range(0, 0, 1), &counter, &gpu.stream);
        first.wait(LONG).unwrap();
        // Nor does the other side, which may be of this process, call the driver any more for what is made once.
        peer.meet_at("opened");
        let (before, own) = (all_driver_calls(), driver_calls());
        let begun = peer.endpoint.write(&region, &to, all.clone(), &counter, &held_up.stream);
        // The record of an event, which is made if the first one's has not come back yet. (Asking is a call of its own.)
        let recorded = driver_calls() - own - 1;
        // The wait for it, the copy and the word.
        eventually("the batch is enqueued", || all_driver_calls() - before >= recorded + 3);
        assert!(!begun.poll().unwrap());
        peer.meet_at("under way");
        peer.meet_at("given up");
        // Its own region goes too: the batch keeps it.
        let late = peer.endpoint.write(&region, &to, all, &counter, &gpu.stream);
        drop(region);
        std::thread::sleep(BRIEF);
        assert!(ordinal_of(address).is_some());
        go.0.set(1);
        begun.wait(LONG).unwrap();
        let error = late.wait(LONG).unwrap_err();
        assert!(matches!(error, Error::RegionGone { .. }), "{error}");
        eventually("the source is freed", || ordinal_of(address).is_none());
    }
    peer.end();
}

/// Over `basic` the owner alone reaches into its memory.
fn given_up(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 0 {
        let memory = gpu.memory(&vec![7; BYTES as usize]);
        let address = memory.address();
        let region = peer.context.register(memory).unwrap();
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        peer.meet_at("under way");
        let memory = close(region);
        peer.meet_at("given up");
        assert!(matches!(counter.wait(1, LONG), Err(Error::CountUnreachable { batches: 0, .. })));
        assert_eq!(gpu.read(address, BYTES), vec![7; BYTES as usize]);
        drop(memory);
        assert!(ordinal_of(address).is_none());
        peer.meet_at("the end");
    } else {
        let (to, counter) = shown(&peer);
        let held_up = Gpu::new(gpu.context.ordinal());
        let go = Words::new(&gpu.context).unwrap().take().unwrap();
        // SAFETY: the stream is alive and not captured.
        unsafe { go.enqueue_wait(1, held_up.stream.raw()) }.unwrap();
        let memory = gpu.memory(&data(1, BYTES));
        let address = memory.address();
        let region = peer.context.register(memory).unwrap();
        let write =
            || peer.endpoint.write(&region, &to, Pages::range(0, 0, BYTES), &counter, &held_up.stream);
        let (under_way, dropped) = (write(), write());
        assert!(!under_way.poll().unwrap());
        drop(dropped);
        peer.meet_at("under way");
        peer.meet_at("given up");
        // Its own region goes too: the batch keeps it.
        drop(region);
        std::thread::sleep(BRIEF);
        assert!(ordinal_of(address).is_some());
        go.set(1);
        let error = under_way.wait(LONG).unwrap_err();
        assert!(matches!(&error, Error::RegionGone { peer, .. } if peer.contains("rank 0")), "{error}");
        eventually("the source is freed", || ordinal_of(address).is_none());
        peer.meet_at("the end");
    }
    peer.end();
}

fn two_endpoints(peer: Peer, gpu: Gpu) {
    const HALF: u64 = 100_000;
    let second = Peer::endpoint(&peer.part, &peer.context, "second");
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&vec![0; 2 * HALF as usize])).unwrap();
        let counters = [peer.endpoint.counter(), second.counter()];
        show(&peer, &region.descriptor(), &counters[0]);
        peer.part.tell("other counter", &counters[1].descriptor().to_bytes());
        counters.iter().for_each(|counter| assert_eq!(counter.wait(10, LONG).unwrap(), 10));
        gpu.assert_holds(region.span().address, 1, HALF);
        gpu.assert_holds(region.span().address + HALF, 2, HALF);
        // Both have it open, and both let go.
        close(region);
        peer.meet_at("closed");
    } else {
        let (to, one) = shown(&peer);
        let other = CounterDescriptor::from_bytes(&peer.part.hear("other counter")).unwrap();
        let source = [1, 2].map(|number| peer.context.register(gpu.memory(&data(number, HALF))).unwrap());
        let mut under_way = Vec::new();
        for _ in 0..10 {
            under_way.push(peer.endpoint.write(&source[0], &to, Pages::range(0, 0, HALF), &one, None));
            under_way.push(second.write(&source[1], &to, Pages::range(0, HALF, HALF), &other, None));
        }
        under_way.into_iter().for_each(|write| assert_eq!(write.wait(LONG).unwrap(), HALF));
        source.into_iter().for_each(|region| drop(close(region)));
        peer.meet_at("closed");
    }
    drop(second);
    peer.end();
}

fn overlaps(peer: Peer, gpu: Gpu) {
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&[0; 64])).unwrap();
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        counter.wait(1, LONG).unwrap();
        let found = gpu.read(region.span().address, 64);
        let source = data(1, 128);
        for (at, byte) in found.iter().enumerate() {
            assert!(*byte == source[at] || *byte == source[64 + at], "byte {at}");
        }
        peer.meet_at("the end");
    } else {
        let (to, counter) = shown(&peer);
        let region = peer.context.register(gpu.memory(&data(1, 128))).unwrap();
        let pages = vec![Page::new(0, 0, 64), Page::new(64, 0, 64)];
        peer.endpoint.write(&region, &to, pages, &counter, None).wait(LONG).unwrap();
        peer.meet_at("the end");
    }
    peer.end();
}

fn streams(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 10_000;
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&[0; BYTES as usize])).unwrap();
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        peer.meet_at("asked");
        assert!(matches!(counter.wait(1, BRIEF), Err(Error::TimedOut { .. })));
        peer.meet_at("go");
        counter.wait(1, LONG).unwrap();
        gpu.assert_holds(region.span().address, 2, BYTES);
        peer.meet_at("the end");
    } else {
        let (to, counter) = shown(&peer);
        let source = Arc::new(gpu.memory(&data(1, BYTES)));
        let last = gpu.memory(&data(2, BYTES));
        let region = peer.context.register(Arc::clone(&source)).unwrap();
        let go = Words::new(&gpu.context).unwrap().take().unwrap();
        // SAFETY: the stream is alive and not captured, and both memories stay until it has been waited for.
        unsafe {
            go.enqueue_wait(1, gpu.stream.raw()).unwrap();
            let (to, from) = (source.address(), last.address());
            meshreduce_device::copy_within(&gpu.context, to, from, BYTES, gpu.stream.raw()).unwrap();
        }
        let write = peer.endpoint.write(&region, &to, Pages::range(0, 0, BYTES), &counter, &gpu.stream);
        peer.meet_at("asked");
        assert!(!write.poll().unwrap());
        peer.meet_at("go");
        go.set(1);
        write.wait(LONG).unwrap();
        gpu.stream.synchronize().unwrap();
        peer.meet_at("the end");
    }
    peer.end();
}

fn counts(peer: Peer, gpu: Gpu) {
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.memory(&[0; 100])).unwrap();
        let counters = [peer.endpoint.counter(), peer.endpoint.counter(), peer.endpoint.counter()];
        show(&peer, &region.descriptor(), &counters[0]);
        peer.part.tell("second", &counters[1].descriptor().to_bytes());
        let [one, other, third] = counters;
        peer.part.tell("third", &third.descriptor().to_bytes());
        // A batch without bytes counts too, in its turn.
        assert_eq!(one.wait(3, LONG).unwrap(), 3);
        assert_eq!((one.bytes(), other.value()), (20, 0));
        peer.meet_at("one");
        assert_eq!(other.wait(5, LONG).unwrap(), 5);
        assert_eq!((one.value(), other.bytes()), (3, 50));
        // The next round.
        assert_eq!(other.reset().unwrap(), 5);
        let word = other.word(gpu.device()).unwrap();
        peer.meet_at("other");
        assert_eq!(other.wait(2, LONG).unwrap(), 2);
        assert_eq!(Waiting::new(&gpu, word, 2, region.span().address).end(&gpu).0, 2);
        // Batches for a counter that is dropped count nowhere, and a kernel that waits there ends.
        let waiting = Waiting::new(&gpu, third.word(gpu.device()).unwrap(), 1, region.span().address);
        drop(third);
        assert_eq!(waiting.end(&gpu).0, POISON);
        peer.meet_at("dropped");
        assert_eq!(one.wait(4, LONG).unwrap(), 4);
        peer.meet_at("the end");
    } else {
        let (to, one) = shown(&peer);
        let other = CounterDescriptor::from_bytes(&peer.part.hear("second")).unwrap();
        let third = CounterDescriptor::from_bytes(&peer.part.hear("third")).unwrap();
        let region = peer.context.register(gpu.memory(&[1; 100])).unwrap();
        let write = |pages: Pages, counter: &CounterDescriptor| {
            peer.endpoint.write(&region, &to, pages, counter, None).wait(LONG).unwrap()
        };
        let ten = || Pages::range(3, 40, 10);
        assert_eq!([write(ten(), &one), write(Pages::default(), &one), write(ten(), &one)], [10, 0, 10]);
        peer.meet_at("one");
        (0..5).for_each(|_| assert_eq!(write(ten(), &other), 10));
        peer.meet_at("other");
        (0..2).for_each(|_| assert_eq!(write(ten(), &other), 10));
        peer.meet_at("dropped");
        write(ten(), &third);
        write(ten(), &one);
        peer.meet_at("the end");
    }
    peer.end();
}

fn calls(peer: Peer, gpu: Gpu) {
    let bytes = PAGE * PAGES;
    if peer.part.rank == 0 {
        let region = peer.context.register(gpu.empty(bytes)).unwrap();
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        counter.wait(12, LONG).unwrap();
        peer.meet_at("the end");
    } else {
        let (to, counter) = shown(&peer);
        let region = peer.context.register(gpu.empty(bytes)).unwrap();
        let write = |pages: Pages| {
            // A lane that stands still for long asks the driver, so the least of three counts.
            let count = |_| {
                let before = all_driver_calls();
                let write = peer.endpoint.write(&region, &to, pages.clone(), &counter, &gpu.stream);
                write.wait(LONG).unwrap();
                all_driver_calls() - before
            };
            (0..3).map(count).min().unwrap()
        };
        // The first one opens the region.
        write(Pages::range(0, 0, 1));
        let (one, rows) =
            (write(Pages::range(0, 0, bytes)), write(Pages::strided(0, 2 * PAGE, 0, PAGE, PAGE, PAGES / 2)));
        let scattered = write(Pages::blocks(PAGE, (0..PAGES).map(|page| (page, place(page)))));
        peer.part.say(&format!("calls: {one} for a range, {rows} for rows, {scattered} for {PAGES} pages"));
        // The record of the caller's event, the wait for it, the copies and the word; over xth a word for every few copies.
        assert!(one <= 4 && rows <= 4, "{one} and {rows}");
        assert!(scattered <= PAGES + PAGES / 32 + 4, "{scattered}");
        peer.meet_at("the end");
    }
    peer.end();
}

/// Memory where `address` was, if the driver gives that out again at once. (The emulated one goes round first.)
fn perhaps_at_the_same_address(gpu: &Gpu, address: u64, bytes: u64) -> DeviceMemory {
    let memory = gpu.empty(bytes);
    if memory.address() != address {
        println!("skipping: the address was not given out again");
    }
    memory
}

fn freed(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 0 {
        let memory = gpu.memory(&vec![0; BYTES as usize]);
        let address = memory.address();
        let region = peer.context.register(memory).unwrap();
        let counter = peer.endpoint.counter();
        show(&peer, &region.descriptor(), &counter);
        counter.wait(1, LONG).unwrap();
        drop(close(region));
        let memory = perhaps_at_the_same_address(&gpu, address, BYTES);
        let address = memory.address();
        memory.write(0, &vec![9; BYTES as usize], &gpu.stream).unwrap();
        let region = peer.context.register(memory).unwrap();
        peer.part.tell("second", &region.descriptor().to_bytes());
        // What was the first region's does not write to the second.
        peer.meet_at("refused");
        assert!(gpu.read(address, BYTES) == vec![9; BYTES as usize]);
        let counter = peer.endpoint.counter();
        peer.part.tell("second counter", &counter.descriptor().to_bytes());
        counter.wait(1, LONG).unwrap();
        gpu.assert_holds(address, 2, BYTES);
        close(region);
        peer.meet_at("the end");
    } else {
        let (first, counter) = shown(&peer);
        let region = peer.context.register(gpu.memory(&data(2, BYTES))).unwrap();
        let write = |to: &RegionDescriptor, counter: &CounterDescriptor| {
            peer.endpoint.write(&region, to, Pages::range(0, 0, BYTES), counter, None).wait(LONG)
        };
        write(&first, &counter).unwrap();
        let second = RegionDescriptor::from_bytes(&peer.part.hear("second")).unwrap();
        assert_ne!(first, second);
        assert!(matches!(write(&first, &counter), Err(Error::RegionGone { .. })));
        peer.meet_at("refused");
        let counter = CounterDescriptor::from_bytes(&peer.part.hear("second counter")).unwrap();
        write(&second, &counter).unwrap();
        peer.meet_at("the end");
    }
    peer.end();
}

fn processes_with(part: &str, strike: impl FnOnce(&Stage, &mut [std::process::Child; 2]), well: [bool; 2]) {
    let stage = Stage::new("rank", 2);
    let mut ranks = [0, 1].map(|rank| stage.start(rank, part));
    strike(&stage, &mut ranks);
    for (rank, child) in ranks.into_iter().enumerate() {
        let (said, is_well) = heard(child);
        assert_eq!(is_well, well[rank], "rank {rank} of {part}: {said:?}");
    }
}

fn processes_one_of_which_dies(name: &str) {
    the_writer_dies(&format!("processes {name}"));
}

fn basic_one_of_which_dies(name: &str) {
    the_writer_dies(&format!("basic {name}"));
    the_writer_dies(&format!("basic-over-tcp {name}"));
}

fn the_writer_dies(part: &str) {
    let kill = |stage: &Stage, ranks: &mut [std::process::Child; 2]| {
        stage.wait_for_key("begun");
        ranks[1].kill().unwrap();
    };
    processes_with(part, kill, [true, false]);
}

fn processes_the_first_of_which_dies(name: &str) {
    the_owner_dies(&format!("processes {name}"));
}

fn basic_the_first_of_which_dies(name: &str) {
    the_owner_dies(&format!("basic {name}"));
    the_owner_dies(&format!("basic-over-tcp {name}"));
}

fn the_owner_dies(part: &str) {
    let kill = |stage: &Stage, ranks: &mut [std::process::Child; 2]| {
        stage.wait_for_key("begun");
        ranks[0].kill().unwrap();
    };
    processes_with(part, kill, [false, true]);
}

fn processes_one_of_which_stops(name: &str) {
    the_writer_stops(&format!("processes {name}"));
}

fn basic_one_of_which_stops(name: &str) {
    the_writer_stops(&format!("basic {name}"));
    the_writer_stops(&format!("basic-over-tcp {name}"));
}

fn the_writer_stops(part: &str) {
    let stop = |stage: &Stage, ranks: &mut [std::process::Child; 2]| {
        let id = rustix::process::Pid::from_raw(ranks[1].id() as i32).unwrap();
        stage.wait_for_key("begun");
        rustix::process::kill_process(id, rustix::process::Signal::STOP).unwrap();
        let options = rustix::process::WaitOptions::UNTRACED;
        let (_, status) = rustix::process::waitpid(Some(id), options).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
        stage.set_key("stopped of 1");
        stage.wait_for_key("resume");
        rustix::process::kill_process(id, rustix::process::Signal::CONT).unwrap();
    };
    processes_with(part, stop, [true, true]);
}

/// Writes the same again and again, and says when some of it has been done.
fn write_for_ever(peer: &Peer, gpu: &Gpu, bytes: u64) -> Error {
    let (to, counter) = shown(peer);
    let region = peer.context.register(gpu.memory(&data(1, bytes))).unwrap();
    let mut under_way = std::collections::VecDeque::new();
    for round in 0_u64.. {
        under_way.push_back(peer.endpoint.write(&region, &to, Pages::range(0, 0, bytes), &counter, None));
        if under_way.len() > 4
            && let Err(error) = under_way.pop_front().unwrap().wait(LONG)
        {
            // Nothing keeps the source.
            drop(under_way);
            close(region);
            return error;
        }
        if round == 10 {
            peer.part.tell("begun", b"");
        }
    }
    unreachable!("it goes on until it fails")
}

fn writer_dies(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 1 {
        let error = write_for_ever(&peer, &gpu, BYTES);
        panic!("{error}");
    }
    let region = peer.context.register(gpu.empty(BYTES)).unwrap();
    let address = region.span().address;
    let counter = peer.endpoint.counter();
    let word = counter.word(gpu.device()).unwrap();
    show(&peer, &region.descriptor(), &counter);
    let waiting = Waiting::new(&gpu, word, u64::MAX - 1, address);
    match counter.wait(u64::MAX - 1, LONG) {
        Err(Error::CountUnreachable { peer, batches, bytes, why, .. }) => {
            assert!(
                peer.contains("rank 1") && batches >= 1 && bytes == batches * BYTES,
                "{batches} and {bytes}"
            );
            assert!(matches!(*why, Error::PeerLost { .. }), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(waiting.end(&gpu).0, POISON);
    gpu.assert_holds(address, 1, BYTES);
    drop(close(region));
    assert!(ordinal_of(address).is_none());
    peer.end();
}

fn owner_dies(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 1 {
        let error = write_for_ever(&peer, &gpu, BYTES);
        assert!(matches!(&error, Error::PeerLost { peer, .. } if peer.contains("rank 0")), "{error}");
        return peer.end();
    }
    let region = peer.context.register(gpu.empty(BYTES)).unwrap();
    let counter = peer.endpoint.counter();
    show(&peer, &region.descriptor(), &counter);
    // Until it is killed.
    drop(counter.wait(u64::MAX, LONG));
    panic!("nobody has killed this process");
}

fn writer_stops(peer: Peer, gpu: Gpu) {
    const BYTES: u64 = 1 << 20;
    if peer.part.rank == 1 {
        let error = write_for_ever(&peer, &gpu, BYTES);
        assert!(matches!(error, Error::RegionGone { .. }), "{error}");
        peer.part.tell("let go", b"");
        peer.meet_at("the end");
        return peer.end();
    }
    let region = peer.context.register(gpu.empty(BYTES)).unwrap();
    let address = region.span().address;
    let counter = peer.endpoint.counter();
    show(&peer, &region.descriptor(), &counter);
    peer.part.hear("stopped");
    // What it had begun comes yet: then the count stands still.
    let mut last = counter.value();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        match counter.value() {
            now if now == last => break,
            now => last = now,
        }
    }
    if is_basic() {
        drop(close(region));
        peer.part.tell("resume", b"");
    } else {
        let closing = region.close().wait(Duration::from_millis(500)).unwrap_err();
        assert!(ordinal_of(address).is_some(), "what a stopped process may write to is not freed");
        peer.part.tell("resume", b"");
        drop(closing.wait(LONG).unwrap());
    }
    assert!(ordinal_of(address).is_none());
    peer.part.hear("let go");
    peer.meet_at("the end");
    peer.end();
}
