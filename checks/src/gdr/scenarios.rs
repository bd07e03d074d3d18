//! What happens between two sides over RDMA. Each function is run by both.

use std::ffi::{CString, c_char};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_channels::channel::Pair;
use meshreduce_channels::gdr::Gdr;
use meshreduce_channels::{Basic, Context, Device, Error, Failed, Memory, Region, Registry, Span};
use meshreduce_device::DeviceMemory;
use meshreduce_verbs_loader::Library;

use super::program::{Arguments, Side};
use super::regions;
use crate::channels::memory::Buffer;
use crate::channels::party::{Party, SOON, compare, pattern};

/// A scenario.
pub type Scenario = fn(&Side<'_>) -> Result<()>;

/// All, by name.
pub const ALL: &[(&str, Scenario)] = &[
    ("transfers", transfers),
    ("ends_with_an_error", ends_with_an_error),
    ("one_fails_and_the_next_goes", one_fails_and_the_next_goes),
    ("registrations_are_kept", registrations_are_kept),
    ("freed_memory_is_forgotten", freed_memory_is_forgotten),
    ("freed_memory_is_found", freed_memory_is_found),
    ("what_comes_late_is_seen", what_comes_late_is_seen),
    ("goes_by", goes_by),
    ("lengths_up_to", lengths_up_to),
    ("the_link_is_cut", the_link_is_cut),
    ("a_warm_transfer_registers_nothing", a_warm_transfer_registers_nothing),
    ("batches", regions::batches),
    ("many_small_batches", regions::many_small_batches),
    ("posting", regions::posting),
    ("a_region_is_withdrawn", regions::a_region_is_withdrawn),
    ("host_memory_of_a_region", regions::host_memory_of_a_region),
];

/// Shows what is viable and what is not.
///
/// # Errors
///
/// No context could be made at all.
pub fn report(arguments: &Arguments) -> Result<()> {
    let mut registry = Registry::empty();
    registry.register(Gdr::new(arguments.config()?))?;
    registry.register(Basic::default())?;
    let devices: Vec<Device> = [arguments.a, arguments.b].into();
    println!("{}", Context::new(&registry, &devices)?.report());
    Ok(())
}

/// Transfers in both directions at once, several under way at a time, every byte compared.
fn transfers(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let length = |at: u64| match at % 7 {
        0 => (side.arguments.bytes + at) as usize,
        1 => 0,
        2 => 1,
        other => (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % (3000 * other as usize),
    };
    let mut under_way = std::collections::VecDeque::new();
    let both = |at: u64| -> Result<_> {
        let send = party.send(party.buffer(&pattern(at * 2 + u64::from(party.is_a()), length(at)))?);
        let receive = party.recv(party.buffer(&vec![0x5a; length(at)])?);
        Ok((at, send, receive))
    };
    for at in 0..side.arguments.count {
        under_way.push_back(both(at)?);
        if under_way.len() >= 8 || at + 1 == side.arguments.count {
            while let Some((at, send, receive)) = under_way.pop_front() {
                send.wait(SOON).with_context(|| format!("send {at}"))?;
                let (buffer, _) = receive.wait(SOON).with_context(|| format!("receive {at}"))?;
                compare(
                    &format!("transfer {at}"),
                    &buffer.read()?,
                    at * 2 + u64::from(!party.is_a()),
                    length(at),
                )?;
            }
        }
    }
    counts_are_at_rest(side)
}

/// Nothing is under way on any NIC.
fn counts_are_at_rest(side: &Side<'_>) -> Result<()> {
    side.party.sync()?;
    for nic in side.gdr.stats() {
        ensure!(nic.sends.0 == 0, "{nic:?}");
    }
    Ok(())
}

/// A transfer from A to B, and one back if that is asked for, with faults in their midst. Both say what has come of them.
fn ends_with_an_error(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let bytes = side.arguments.bytes as usize;
    // What does not fail comes first, so that the queue pairs are there.
    if side.arguments.count > 0 {
        crate::channels::scenarios::ALL
            .iter()
            .find(|scenario| scenario.name == "one_way_and_back")
            .context("the scenario")
            .and_then(|scenario| (scenario.play)(party))?;
    }
    party.sync()?;
    // The first fault holds from the beginning, the others come when everything is on its way.
    let mut faults = side.arguments.fault.iter();
    if let Some(first) = faults.next() {
        set_fault(first)?;
    }
    party.sync()?;
    let mut transfers = Vec::new();
    for is_send in [party.is_a(), !party.is_a()].into_iter().take(1 + usize::from(side.arguments.both_ways)) {
        transfers.push((
            is_send,
            match is_send {
                true => party.send(party.buffer(&pattern(9, bytes))?),
                false => party.recv(party.buffer(&vec![0; bytes])?),
            },
        ));
    }
    if faults.len() > 0 {
        is_on_its_way(side)?;
    }
    for fault in faults {
        set_fault(fault)?;
    }
    let mut failed = false;
    for (is_send, transfer) in transfers {
        match transfer.wait(SOON) {
            Ok((buffer, _)) => {
                if !is_send {
                    compare("the transfer", &buffer.read()?, 9, bytes)?;
                }
                println!("WELL");
            }
            Err(Failed { error: Error::TimedOut { what, .. }, .. }) => bail!("it never ended: {what}"),
            Err(lost) => {
                failed = true;
                println!("FAILED {:?} {}", kind(&lost.error), lost.error);
                ensure!(lost.into_memory().is_some(), "the memory was not given back");
            }
        }
    }
    // What is over stays so.
    if failed {
        let late = party.send(party.buffer(&[1])?).wait(SOON);
        println!("LATER {}", late.map_or_else(|failed| failed.error.to_string(), |_| "well".into()));
    }
    Ok(())
}

/// Waits until a NIC has something to send, and receives are posted if something comes back.
fn is_on_its_way(side: &Side<'_>) -> Result<()> {
    let until = Instant::now() + SOON;
    loop {
        let stats = side.gdr.stats();
        let sends = stats.iter().any(|nic| nic.sends.0 > 0);
        if sends && (!side.arguments.both_ways || stats.iter().any(|nic| nic.receives.0 > 0)) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "nothing was posted: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kind(error: &Error) -> String {
    let debug = format!("{error:?}");
    debug.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// The first transfer fails by itself; what comes behind it on the same channel goes well.
fn one_fails_and_the_next_goes(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let bytes = side.arguments.bytes as usize;
    for fault in &side.arguments.fault {
        set_fault(fault)?;
    }
    party.sync()?;
    let transfer = match party.is_a() {
        true => party.send(party.buffer(&pattern(1, bytes))?),
        false => party.recv(party.buffer(&vec![0; bytes])?),
    };
    match transfer.wait(SOON) {
        Ok(_) => println!("WELL"),
        Err(failed) => println!("FAILED {:?} {}", kind(&failed.error), failed.error),
    }
    party.sync()?;
    for fault in &side.arguments.fault {
        let function = fault.split(' ').nth(1).unwrap_or_default();
        set_fault(&format!("fail {function} off"))?;
    }
    party.sync()?;
    let next = match party.is_a() {
        true => party.send(party.buffer(&pattern(2, bytes))?).wait(SOON)?,
        false => party.recv(party.buffer(&vec![0; bytes])?).wait(SOON)?,
    };
    if !party.is_a() {
        compare("the next", &next.0.read()?, 2, bytes)?;
    }
    println!("NEXT");
    Ok(())
}

/// Many slices of one allocation: it is registered once per NIC; and the bound holds.
fn registrations_are_kept(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let count = side.arguments.count;
    let whole = party.buffer(&pattern(3, 64 * 1024))?;
    for at in 0..count {
        let (from, bytes) = ((at * 640) % 60_000, 1 + at % 4000);
        let part = whole.part(from, bytes);
        match party.is_a() {
            true => drop(party.send(part).wait(SOON)?),
            false => drop(party.recv(part).wait(SOON)?),
        }
    }
    let used: Vec<_> = side.gdr.stats().into_iter().filter(|nic| nic.cache.misses > 0).collect();
    ensure!(!used.is_empty(), "nothing was registered");
    for nic in &used {
        ensure!(nic.cache.misses == 1 && nic.cache.entries == 1, "{nic:?}");
        ensure!(nic.cache.bytes == 64 * 1024, "{nic:?}");
    }
    ensure!(used.iter().map(|nic| nic.cache.hits).sum::<u64>() == count - used.len() as u64, "{used:?}");
    // Further allocations push the oldest out, if the bound says so.
    let others: Vec<Buffer> =
        (0..6).map(|at| party.buffer(&pattern(at, 32 * 1024))).collect::<Result<_>>()?;
    for other in others {
        match party.is_a() {
            true => drop(party.send(other).wait(SOON)?),
            false => drop(party.recv(other).wait(SOON)?),
        }
    }
    for nic in side.gdr.stats() {
        let entries = side.arguments.cache_entries.unwrap_or(usize::MAX);
        let bytes = side.arguments.cache_bytes.unwrap_or(u64::MAX);
        ensure!(nic.cache.entries <= entries && nic.cache.bytes <= bytes, "{nic:?}");
        println!("{nic:?}");
    }
    Ok(())
}

/// Memory that is freed is not kept registered when that is said; and without a word as well as soon as other memory is there.
fn freed_memory_is_forgotten(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let pinned = || -> u64 { side.gdr.stats().iter().map(|nic| nic.cache.bytes).sum() };
    let mut addresses = std::collections::BTreeSet::new();
    let mut again = 0;
    for round in 0..6_u64 {
        let buffer = party.buffer(&pattern(round + 50 * u64::from(!party.is_a()), 2 << 20))?;
        let span = meshreduce_channels::Memory::span(&buffer);
        again += u32::from(!addresses.insert(span.address));
        let buffer = match party.is_a() {
            true => party.send(buffer).wait(SOON)?.0,
            false => party.recv(buffer).wait(SOON)?.0,
        };
        if !party.is_a() {
            compare(&format!("round {round}"), &buffer.read()?, round, 2 << 20)?;
        }
        let before = pinned();
        ensure!(before > 0, "nothing is registered");
        if round % 2 == 0 {
            side.gdr.forget(span);
            ensure!(pinned() < before, "{:?}", side.gdr.stats());
        }
        drop(buffer);
        use_up_addresses(party)?;
    }
    ensure!(again > 0, "no address was given out again");
    let forgotten: u64 = side.gdr.stats().iter().map(|nic| nic.cache.forgotten).sum();
    // Three that were told, and at least one that was found out.
    ensure!(forgotten >= 4, "{:?}", side.gdr.stats());
    Ok(())
}

/// Memory that is freed without a word does not stay registered: not until others need its place, nor while nothing happens, nor
/// behind the end of the context.
fn freed_memory_is_found(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let transfer = |bytes| -> Result<Buffer> {
        let buffer = party.buffer(&vec![0; bytes])?;
        Ok(match party.is_a() {
            true => party.send(buffer).wait(SOON)?.0,
            false => party.recv(buffer).wait(SOON)?.0,
        })
    };
    let kept = transfer(64 << 10)?;
    let nics = side.gdr.stats().iter().filter(|nic| nic.cache.entries > 0).count() as u64;
    let of_kept = verbs_count("pinned_bytes")?;
    for _ in 0..side.arguments.count {
        drop(transfer(64 << 10)?);
        // That of the memory that was freed just now, and what stays.
        let (live, entries) = (verbs_count("live_mr")?, side.gdr.stats());
        ensure!(live <= 2 * nics && entries.iter().all(|nic| nic.cache.entries <= 2), "{live}: {entries:?}");
    }
    // Nothing else is registered, and so much that another thread lets go of it.
    drop(transfer(3 << 20)?);
    let until = Instant::now() + SOON;
    while verbs_count("pinned_bytes")? > of_kept {
        ensure!(Instant::now() < until, "freed memory stays registered: {:?}", side.gdr.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let forgotten: u64 = side.gdr.stats().iter().map(|nic| nic.cache.forgotten).sum();
    ensure!(forgotten == nics * (side.arguments.count + 1), "{forgotten}: {:?}", side.gdr.stats());
    // It was not thrown out with the rest; and the end leaves nothing, whoever still has the endpoint.
    ensure!(side.gdr.stats().iter().all(|nic| nic.cache.evicted == 0), "{:?}", side.gdr.stats());
    drop(kept);
    party.sync()?;
    party.context.close();
    party.context.join(SOON)?;
    let left = (verbs_count("live_mr")?, verbs_count("pinned_bytes")?);
    ensure!(left == (0, 0), "registrations and bytes behind the end: {left:?}");
    Ok(())
}

/// Allocates and frees until addresses are given out that were given out before. (The emulated driver takes new ones as long as there
/// are any, so that what uses freed memory is found.)
fn use_up_addresses(party: &Party) -> Result<()> {
    let context = party.cuda()?.context("device memory")?;
    let mut last = 0;
    for _ in 0..3000 {
        let memory = DeviceMemory::new(&context, 400 << 20)?;
        if memory.address() < last {
            break;
        }
        last = memory.address();
    }
    Ok(())
}

/// What a NIC has written late is seen by whoever is told that it is there.
fn what_comes_late_is_seen(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    for round in 0..10 {
        let bytes = [1_usize, 5000, 3 << 20][round as usize % 3];
        if party.is_a() {
            party.send_bytes(&pattern(round, bytes))?;
        } else {
            compare(&format!("round {round}"), &party.recv_bytes(bytes)?, round, bytes)?;
        }
    }
    Ok(())
}

/// Says which kind of channel serves the pair, over which NICs bytes went, and why not if none does.
fn goes_by(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let pair = Pair { local: party.device, remote: party.remote };
    match party.endpoint.channel(pair) {
        Err(error) => {
            println!("NONE {error}");
            return Ok(());
        }
        Ok(kind) => {
            println!("SERVED by {kind}");
            let expected = side.arguments.served_by.as_ref();
            ensure!(
                expected.is_none_or(|expected| *expected == kind),
                "served by {kind}:\n{}",
                party.context.report()
            );
        }
    }
    let bytes = side.arguments.bytes as usize;
    for round in 0..3 {
        if party.is_a() {
            party.send_bytes(&pattern(round, bytes))?;
        } else {
            compare("what goes by", &party.recv_bytes(bytes)?, round, bytes)?;
        }
    }
    for nic in side.gdr.stats().iter().filter(|nic| nic.sends.1 > 0 || nic.receives.1 > 0) {
        println!("OVER {}", nic.nic);
    }
    Ok(())
}

/// The connection over which the two sides talk is cut while their NICs go on: both have lost each other, in time, and have
/// their memory back; nothing is under way any more.
fn the_link_is_cut(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let bytes = side.arguments.bytes as usize;
    // Queue pairs in both directions are there.
    let both = |seed: u64| -> Result<_> {
        let own = pattern(seed, bytes);
        Ok([party.send(party.buffer(&own)?), party.recv(party.buffer(&vec![0; bytes])?)])
    };
    for transfer in both(1)? {
        transfer.wait(SOON)?;
    }
    set_fault("hold on")?;
    party.sync()?;
    let transfers = both(2)?;
    party.sync()?;
    if party.is_a() {
        shut_tcp()?;
    }
    let begun = Instant::now();
    for transfer in transfers {
        let Err(Failed { error, remains }) = transfer.wait(SOON) else {
            bail!("it came to its end without a link")
        };
        let there = if party.is_a() { "party b" } else { "party a" };
        ensure!(matches!(&error, Error::PeerLost { peer, .. } if peer.contains(there)), "{error}");
        ensure!(
            matches!(remains, meshreduce_channels::Remains::Memory(_)),
            "{error}: the memory is not back"
        );
    }
    party.endpoint.join(SOON)?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "only after {:?}", begun.elapsed());
    for nic in side.gdr.stats() {
        ensure!(nic.sends.0 == 0 && nic.receives.0 == 0, "{nic:?}");
    }
    println!("LOST");
    Ok(())
}

/// Shuts every TCP connection of this process.
fn shut_tcp() -> Result<()> {
    use rustix::net::{AddressFamily, Shutdown, shutdown, sockopt::socket_domain};
    let mut shut = 0;
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if !target.to_string_lossy().starts_with("socket:") {
            continue;
        }
        let number: i32 = entry.file_name().to_string_lossy().parse()?;
        // SAFETY: it was open just now, and the thread that might close it, the context's, has no reason to while the link stands.
        let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        if matches!(socket_domain(socket)?, AddressFamily::INET | AddressFamily::INET6) {
            // A listener is not connected.
            shut += u32::from(shutdown(socket, Shutdown::Both).is_ok());
        }
    }
    ensure!(shut > 0, "there is no TCP connection");
    Ok(())
}

/// Every power of four bytes up to the measure, and as many bytes as that; every byte compared.
fn lengths_up_to(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let most = side.arguments.bytes as usize;
    let powers = std::iter::successors(Some(1_usize), |length| length.checked_mul(4));
    for (seed, length) in powers.take_while(|length| *length < most).chain([most]).enumerate() {
        let seed = seed as u64;
        if party.is_a() {
            party.send_bytes(&pattern(seed, length))?;
        } else {
            compare(&format!("{length} bytes"), &party.recv_bytes(length)?, seed, length)?;
            println!("LENGTH {length}");
        }
    }
    Ok(())
}

/// Memory that has been sent or received before is registered already, as libibverbs counts it; and closing gives everything back.
fn a_warm_transfer_registers_nothing(side: &Side<'_>) -> Result<()> {
    let party = &side.party;
    let mut buffer = party.buffer(&pattern(u64::from(party.is_a()), 3 << 20))?;
    let mut made = Vec::new();
    for _ in 0..20 {
        buffer = match party.is_a() {
            true => party.send(buffer).wait(SOON)?.0,
            false => party.recv(buffer).wait(SOON)?.0,
        };
        made.push((verbs_count("reg_mr")?, verbs_count("pinned_bytes")?));
    }
    let first = made.first().context("twenty")?;
    ensure!(first.0 > 0 && first.1 >= 3 << 20, "nothing was registered: {made:?}");
    ensure!(
        made.iter().all(|later| later == first),
        "registrations and bytes pinned, transfer by transfer: {made:?}"
    );
    Ok(())
}

/// Sends a part of a region's memory from A to B, and waits.
///
/// # Errors
///
/// The transfer's.
///
/// # Panics
///
/// If it is not a part of it.
pub fn raw_transfer<M: Memory>(party: &Party, region: &Region<M>, part: Span) -> Result<()> {
    let whole = region.span();
    assert!(whole.address <= part.address && part.address + part.bytes <= whole.address + whole.bytes);
    // SAFETY: the part lies in the region's memory, which nobody else uses meanwhile and which is borrowed until the transfer has
    // ended.
    let transfer = unsafe {
        match party.is_a() {
            true => party.endpoint.send_raw(part, party.remote, None),
            false => party.endpoint.recv_raw(part, party.remote, None),
        }
    };
    transfer.wait(SOON)?;
    Ok(())
}

/// Sets a fault of this process's emulated adapters: `NAME ARGUMENT`.
///
/// # Errors
///
/// The libibverbs in use is not the emulated node's, or has no such fault.
pub fn set_fault(fault: &str) -> Result<()> {
    let set =
        Library::find()?.symbol("meshreduceVerbsFault").context("not the emulated node's libibverbs")?;
    // SAFETY: only the emulated node's library exports this name, with this signature.
    let set: unsafe extern "C" fn(*const c_char, *const c_char) -> i32 = unsafe { std::mem::transmute(set) };
    let (name, argument) = fault.split_once(' ').unwrap_or((fault, ""));
    let (name, argument) = (CString::new(name)?, CString::new(argument)?);
    // SAFETY: both are terminated and outlive the call.
    let answer = unsafe { set(name.as_ptr(), argument.as_ptr()) };
    ensure!(answer == 0, "there is no fault {fault}");
    Ok(())
}

/// A count of this process's emulated adapters.
///
/// # Errors
///
/// The libibverbs in use is not the emulated node's.
pub fn verbs_count(name: &str) -> Result<u64> {
    let get =
        Library::find()?.symbol("meshreduceVerbsCount").context("not the emulated node's libibverbs")?;
    // SAFETY: only the emulated node's library exports this name, with this signature.
    let get: unsafe extern "C" fn(*const c_char) -> u64 = unsafe { std::mem::transmute(get) };
    let name = CString::new(name)?;
    // SAFETY: the name is terminated and outlives the call.
    Ok(unsafe { get(name.as_ptr()) })
}
