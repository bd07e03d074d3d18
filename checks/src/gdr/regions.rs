//! One-sided writes over RDMA.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_channels::{CounterDescriptor, Error, Page, Pages, RegionDescriptor};

use super::program::Side;
use super::scenarios::{raw_transfer, verbs_count};
use crate::channels::party::{Party, SOON, pattern};

/// Tells the other side something, and hears what it has told.
fn exchange<T: serde::Serialize + serde::de::DeserializeOwned>(
    party: &Party,
    name: &str,
    own: &T,
) -> Result<T> {
    let key = |role: bool| format!("{name} of {role}");
    party.store().set(&key(party.is_a()), &serde_json::to_vec(own)?)?;
    Ok(serde_json::from_slice(&party.store().get(&key(!party.is_a()), SOON)?)?)
}

type Offer = (RegionDescriptor, CounterDescriptor);

/// Batches of pages, rows and long stretches in both directions; every byte is compared, those beside them too.
pub fn batches(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let bytes = 12_usize << 20;
    let own = pattern(u64::from(party.is_a()), bytes);
    let source = party.context.register(party.buffer(&own)?).map_err(|failed| failed.error)?;
    let target = party.context.register(party.buffer(&vec![0x11; bytes])?).map_err(|failed| failed.error)?;
    let counter = party.endpoint.counter();
    let (to, count): Offer = exchange(party, "offer", &(target.descriptor(), counter.descriptor()))?;
    let page = 16 << 10;
    let all: Vec<Vec<Page>> = vec![
        // Blocks in any order, each to another place.
        (0..100).map(|n| Page::new((n * 37) % 100 * page, (n * 53 + 7) % 100 * page, page)).collect(),
        // Rows that lie apart on both sides.
        (0..900).map(|n| Page::new((2 << 20) + n * 1000, (2 << 20) + n * 700, 699)).collect(),
        // One long stretch.
        vec![Page::new(4 << 20, 5 << 20, (5 << 20) + 3)],
        // A single byte, and nothing at all.
        vec![Page::new(1, (12 << 20) - 1, 1)],
        vec![],
    ];
    let mut expected = vec![0x11; bytes];
    let theirs = pattern(u64::from(!party.is_a()), bytes);
    let mut writes = Vec::new();
    let mut sum = 0;
    for pages in &all {
        for page in pages.iter() {
            let (from, to) = (page.from as usize, page.to as usize);
            expected[to..to + page.bytes as usize].copy_from_slice(&theirs[from..from + page.bytes as usize]);
        }
        let pages = Pages::from(pages.clone());
        sum += pages.bytes();
        writes.push(party.endpoint.write(&source, &to, pages, &count, None));
    }
    for write in writes {
        write.wait(SOON)?;
    }
    ensure!(counter.wait(all.len() as u64, SOON)? == all.len() as u64, "{counter:?}");
    ensure!(counter.bytes() == sum, "{} of {sum} bytes", counter.bytes());
    party.sync()?;
    let come =
        target.close().wait(SOON).map_err(|_| anyhow::anyhow!("the target is still in use"))?.read()?;
    if let Some(at) = (0..bytes).find(|at| come[*at] != expected[*at]) {
        bail!("byte {at} is {:#x}, {:#x} was written", come[at], expected[at]);
    }
    let kept =
        source.close().wait(SOON).map_err(|_| anyhow::anyhow!("the source is still in use"))?.read()?;
    ensure!(kept == own, "the source has changed");
    Ok(())
}

/// More batches than there are grants, each counted once and in order: when a counter has gone up, the batch is there.
pub fn many_small_batches(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let count = side.arguments.count;
    let source =
        party.context.register(party.buffer(&pattern(5, 64 << 10))?).map_err(|failed| failed.error)?;
    let target = party.context.register(party.buffer(&vec![0; 64 << 10])?).map_err(|failed| failed.error)?;
    let counter = party.endpoint.counter();
    let (to, number): Offer = exchange(party, "offer", &(target.descriptor(), counter.descriptor()))?;
    let mut under_way = std::collections::VecDeque::new();
    for at in 0..count {
        let pages: Vec<Page> = (0..1 + at % 5)
            .map(|n| Page::new((at * 64 + n * 640) % 60_000, (n * 977) % 60_000, 64))
            .collect();
        under_way.push_back(party.endpoint.write(&source, &to, pages, &number, None));
        if under_way.len() > 30
            && let Some(first) = under_way.pop_front()
        {
            first.wait(SOON)?;
        }
    }
    for write in under_way {
        write.wait(SOON)?;
    }
    let come = counter.wait(count, SOON)?;
    ensure!(come == count, "{come} of {count}");
    Ok(())
}

/// Pages that lie apart, as those of a KV cache do, from A to B: says what posting one of them takes.
pub fn posting(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let (count, bytes) = (side.arguments.count, side.arguments.bytes.max(count_bytes(side.arguments.count)));
    let whole = vec![1; bytes as usize];
    let source = party.context.register(party.buffer(&whole)?).map_err(|failed| failed.error)?;
    let target = party.context.register(party.buffer(&whole)?).map_err(|failed| failed.error)?;
    let counter = party.endpoint.counter();
    let (to, number): Offer = exchange(party, "offer", &(target.descriptor(), counter.descriptor()))?;
    let pages =
        || -> Vec<Page> { (0..count).map(|n| Page::new(n * 512, (count - 1 - n) * 512, 256)).collect() };
    let posted = || -> (u64, Duration, Duration) {
        side.gdr
            .stats()
            .iter()
            .map(|nic| nic.posting)
            .fold((0, Duration::ZERO, Duration::ZERO), |sum, nic| {
                (sum.0 + nic.writes, sum.1 + nic.time, sum.2 + nic.in_libibverbs)
            })
    };
    // The least of many batches: that one was not interrupted, so it is what the processor was busy with it.
    let (mut ours, mut library) = (Duration::MAX, Duration::MAX);
    let (mut begun, cpu) = (posted(), progress_thread_cpu()?);
    for round in 0..ROUNDS {
        if party.is_a() {
            party.endpoint.write(&source, &to, pages(), &number, None).wait(SOON)?;
            let now = posted();
            ensure!(now.0 - begun.0 >= count, "{} writes for {count} pages", now.0 - begun.0);
            let of_library = now.2 - begun.2;
            ours = ours.min((now.1 - begun.1).saturating_sub(of_library));
            library = library.min(of_library);
            begun = now;
        } else {
            counter.wait(round + 1, SOON)?;
        }
    }
    if party.is_a() {
        let each = |time: Duration, pages: u64| time.as_nanos() as f64 / pages as f64;
        println!("POSTING {:.0} ns a page, and libibverbs {:.0}", each(ours, count), each(library, count));
        let cpu = progress_thread_cpu()?.saturating_sub(cpu);
        println!("THREAD {:.0} ns a page, with all its waiting for them", each(cpu, count * ROUNDS));
    }
    party.sync()
}

/// Batches of a measurement.
const ROUNDS: u64 = 50;

/// The processor's time that the context's thread has used.
fn progress_thread_cpu() -> Result<Duration> {
    for task in std::fs::read_dir("/proc/self/task")?.flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("meshreduce chan") {
            let times = std::fs::read_to_string(task.path().join("schedstat"))?;
            let busy = times.split(' ').next().context("schedstat is empty")?;
            return Ok(Duration::from_nanos(busy.parse()?));
        }
    }
    bail!("there is no progress thread")
}

fn count_bytes(pages: u64) -> u64 {
    pages * 512
}

/// A region that is given up: what is written before is there, what is written after fails by itself, and its memory comes back.
pub fn a_region_is_withdrawn(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let source =
        party.context.register(party.buffer(&pattern(6, 4 << 20))?).map_err(|failed| failed.error)?;
    let target = party.context.register(party.buffer(&vec![0; 4 << 20])?).map_err(|failed| failed.error)?;
    let counter = party.endpoint.counter();
    let (to, number): Offer = exchange(party, "offer", &(target.descriptor(), counter.descriptor()))?;
    party.endpoint.write(&source, &to, Pages::range(0, 0, 4 << 20), &number, None).wait(SOON)?;
    counter.wait(1, SOON)?;
    party.sync()?;
    let memory = target.close().wait(SOON).map_err(|_| anyhow::anyhow!("the region is still in use"))?;
    ensure!(memory.read()? == pattern(6, 4 << 20), "what was written is not there");
    drop(memory);
    party.sync()?;
    let late = party.endpoint.write(&source, &to, Pages::range(0, 0, 100), &number, None).wait(SOON);
    ensure!(matches!(late, Err(Error::RegionGone { .. })), "{late:?}");
    let missed = counter.wait(2, SOON);
    ensure!(matches!(missed, Err(Error::CountUnreachable { batches: 1, .. })), "{missed:?}");
    // The channel goes on.
    let (to, counter) = {
        let again = party.context.register(party.buffer(&[0; 100])?).map_err(|failed| failed.error)?;
        let counter = party.endpoint.counter();
        let (to, number): Offer = exchange(party, "again", &(again.descriptor(), counter.descriptor()))?;
        party.endpoint.write(&source, &to, Pages::range(0, 0, 100), &number, None).wait(SOON)?;
        (again, counter)
    };
    counter.wait(1, SOON)?;
    party.sync()?;
    drop(to);
    Ok(())
}

/// Host memory that is a region is not registered again for transfers.
pub fn host_memory_of_a_region(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let region =
        party.context.register(party.buffer(&pattern(7, 1 << 20))?).map_err(|failed| failed.error)?;
    let span = region.span();
    ensure!(matches!(party.device, meshreduce_channels::Device::Cpu), "on host memory");
    let before = verbs_count("reg_mr")?;
    for at in 0..20_u64 {
        let part = span.part(at * 1000..at * 1000 + 5000).context("a part")?;
        raw_transfer(party, &region, part)?;
    }
    let after = verbs_count("reg_mr")?;
    ensure!(after == before, "{} registrations", after - before);
    party.sync()?;
    drop(region);
    Ok(())
}
