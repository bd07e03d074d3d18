//! Registered regions, one-sided writes and counters: over `ipc` between two processes of an emulated node, over `xth` between two
//! contexts of one process, and over `basic` between two processes by a Unix socket and by TCP.

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
use meshreduce_checks::in_process::{all_driver_calls, driver_calls, reset_context};
use meshreduce_device::loader::sys;
use meshreduce_device::{Device, DeviceMemory, Module, Stream, Words, ordinal_of};
use meshreduce_tests::channel_peer::{Gate, Gpu, LONG, Peer, data, eventually};
use meshreduce_tests::here;
use meshreduce_tests::rank_process::{Part, Stage, heard};

mod deaths;
mod life;
mod waits;

use deaths::*;
use life::*;
use waits::*;

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
const PLAYS_OF_PROCESSES: [(&str, Play); 4] = [
    ("writer_dies", writer_dies),
    ("owner_dies", owner_dies),
    ("writer_stops", writer_stops),
    ("owner_resets", owner_resets),
];

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
/// For two processes that run [`rank`].
fn two_ranks() -> Stage {
    Stage::new(here!("rank"), 2)
}

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
    let stage = two_ranks();
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
        let stage = Stage::new(here!("rank"), 1);
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
    owner_resets: a_region_whose_device_is_reset_is_given_back_and_the_writer_is_told processes,
        a_region_whose_device_is_reset_under_basic_is_given_back_and_the_writer_is_told basic;
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
