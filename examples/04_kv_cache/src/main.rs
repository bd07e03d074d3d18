//! A KV cache goes from the rank that has computed it (prefill) to the rank that goes on with it (decode).
//!
//! Both caches are paged. The decode rank registers its cache once, tells which pages are free, and waits for each layer's counter; the
//! prefill rank writes each layer's pages into those as soon as it has them, without asking. The same code takes NVLink or shared
//! memory within a node and RDMA between two: which channel serves the pair of devices, the registry decides.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use meshreduce_channels::channel::Pair;
use meshreduce_channels::{
    Context, Counter, CounterDescriptor, Device, Endpoint, Pages, RegionDescriptor, Registry,
};
use meshreduce_device::{DeviceMemory, PrimaryContext, Stream, initialise};
use meshreduce_store::{Launcher, Store};
use serde::{Deserialize, Serialize};

/// A KV cache from a prefill rank to a decode rank.
#[derive(Parser)]
struct Arguments {
    /// Layers of the model
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    layers: u64,
    /// Pages of one layer that the sequence fills
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pages: u64,
    /// Bytes of a page: tokens of a page times two (K and V) times heads times their size
    #[arg(long, default_value_t = 16 << 10, value_parser = clap::value_parser!(u64).range(4..=16 << 20))]
    page_bytes: u64,
    /// Both ranks on the first GPU
    #[arg(long)]
    shared_device: bool,
    /// Seconds that either rank waits for the other
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// What the decode rank tells of its cache.
#[derive(Serialize, Deserialize)]
struct Cache {
    region: RegionDescriptor,
    /// Goes up when a layer is there; one for each layer.
    layers: Vec<CounterDescriptor>,
    /// The pages of a layer that it has set aside for the sequence, in the order of its tokens.
    free: Vec<u64>,
    /// Pages from one layer to the next.
    stride: u64,
}

/// A layer's page in each rank's cache is at another place: here the decode rank has taken every third page, from the end.
fn page_table(pages: u64) -> (Vec<u64>, u64) {
    let stride = 3 * pages + 1;
    ((0..pages).map(|page| stride - 1 - 3 * page).collect(), stride)
}

/// What the page of a layer holds: a word that is the next one's neighbour, so that a page in a wrong place shows.
fn content(layer: u64, page: u64, bytes: u64) -> Vec<u8> {
    let first = (layer * 1_000_003 + page * 8191) as u32;
    let words = (0..bytes.div_ceil(4)).flat_map(|at| first.wrapping_add(at as u32 * 7).to_le_bytes());
    words.take(bytes as usize).collect()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !example_launch::is_rank() {
        let place = |rank: usize| example_launch::Place {
            local_rank: if arguments.shared_device { 0 } else { rank },
            environment: Vec::new(),
        };
        return example_launch::launch(2, place);
    }
    let launcher = Launcher::from_env()?;
    let timeout = Duration::from_secs(arguments.timeout);
    let store = launcher.store(timeout)?;
    initialise()?;
    let device = PrimaryContext::retain(launcher.local_rank)?;
    let context = Context::new(&Registry::default(), &[Device::Cuda(launcher.local_rank)])?;
    match launcher.rank {
        0 => prefill(&arguments, &context, &device, &store, timeout),
        1 => decode(&arguments, &context, &device, &store, timeout),
        rank => bail!("rank {rank}: there are two"),
    }?;
    store.close(timeout);
    Ok(())
}

fn prefill(
    arguments: &Arguments,
    context: &Context,
    device: &std::sync::Arc<PrimaryContext>,
    store: &dyn Store,
    timeout: Duration,
) -> Result<()> {
    let Arguments { layers, pages, page_bytes, .. } = *arguments;
    let endpoint = context.listen(store, "kv-cache", timeout)?;
    let there: Cache = serde_json::from_slice(&store.get("kv-cache/pages", timeout)?)?;
    ensure!(there.free.len() as u64 == pages && there.layers.len() as u64 == layers, "other sizes there");

    let stream = Stream::new(device)?;
    // The region shares the memory with whoever computes in it.
    let cache = std::sync::Arc::new(DeviceMemory::new(device, layers * pages * page_bytes)?);
    let region = context.register(std::sync::Arc::clone(&cache)).map_err(|failed| failed.error)?;
    let mut layers_on_their_way = Vec::new();
    let begun = Instant::now();
    for layer in 0..layers {
        // Stands for the kernels that compute the layer's keys and values. (Those would be enqueued, and be under way beside the pages of
        // the layer before; this waits for its copy.)
        let values: Vec<u8> = (0..pages).flat_map(|page| content(layer, page, page_bytes)).collect();
        cache.write(layer * pages * page_bytes, &values, &stream)?;
        // Behind what the stream has so far; nobody waits for it here.
        let numbers = there.free.iter().enumerate();
        let moves = numbers.map(|(page, free)| (layer * pages + page as u64, layer * there.stride + free));
        let counter = &there.layers[layer as usize];
        let pages = Pages::blocks(page_bytes, moves);
        layers_on_their_way.push(endpoint.write(&region, &there.region, pages, counter, &stream));
    }
    for (layer, transfer) in layers_on_their_way.into_iter().enumerate() {
        transfer.wait(timeout).with_context(|| format!("layer {layer}"))?;
    }
    let channel = endpoint.channel(pair(&endpoint, arguments)?)?;
    let bytes = layers * pages * page_bytes;
    println!("prefill: {layers} layers of {pages} pages of {page_bytes} bytes ({bytes} in all) by {channel}");
    println!("prefill: {:.1} ms, emulated or not", begun.elapsed().as_secs_f64() * 1e3);
    // The decode rank says when it has read everything: until then the endpoint stays.
    store.get("kv-cache/read", timeout)?;
    Ok(())
}

/// The devices of the two ranks.
fn pair(endpoint: &Endpoint, arguments: &Arguments) -> Result<Pair> {
    let gpu = |devices: &[Device]| devices.iter().copied().find(|device| *device != Device::Cpu);
    let remote = gpu(endpoint.remote_devices()).context("the other rank serves no GPU")?;
    let rank: u32 = std::env::var("LOCAL_RANK")?.parse()?;
    let local = Device::Cuda(if arguments.shared_device { 0 } else { rank });
    Ok(Pair { local, remote })
}

fn decode(
    arguments: &Arguments,
    context: &Context,
    device: &std::sync::Arc<PrimaryContext>,
    store: &dyn Store,
    timeout: Duration,
) -> Result<()> {
    let Arguments { layers, pages, page_bytes, .. } = *arguments;
    let endpoint = context.connect(store, "kv-cache", timeout)?;
    let stream = Stream::new(device)?;
    let (free, stride) = page_table(pages);
    let cache = std::sync::Arc::new(DeviceMemory::new(device, layers * stride * page_bytes)?);
    let region = context.register(std::sync::Arc::clone(&cache)).map_err(|failed| failed.error)?;
    let counters: Vec<Counter> = (0..layers).map(|_| endpoint.counter()).collect();
    let told = Cache {
        region: region.descriptor(),
        layers: counters.iter().map(Counter::descriptor).collect(),
        free: free.clone(),
        stride,
    };
    store.set("kv-cache/pages", &serde_json::to_vec(&told)?)?;

    let mut page = vec![0; page_bytes as usize];
    for (layer, counter) in counters.iter().enumerate() {
        // Starts the layer: its pages are there, whatever of the others is.
        counter.wait(1, timeout).with_context(|| format!("layer {layer}"))?;
        for (number, at) in free.iter().enumerate() {
            cache.read((layer as u64 * stride + at) * page_bytes, &mut page, &stream)?;
            let expected = content(layer as u64, number as u64, page_bytes);
            ensure!(page == expected, "layer {layer}, page {number} is not what was sent");
        }
    }
    println!("decode: every byte of {layers} layers is right, each read when its counter said so");
    store.set("kv-cache/read", b"all")?;
    drop(region.close());
    Ok(())
}
