//! What happens between two parties. Each function is run by both.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_channels::{Device, Error, Failed, Memory as _, Owned, Remains, Span};
use meshreduce_device::{Stream, Word, Words};

use super::memory::Buffer;
use super::party::{Party, SOON, compare, pattern};

/// Something that happens.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What a party does.
    pub play: fn(&Party) -> Result<()>,
}

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        /// All.
        pub const ALL: &[Scenario] = &[$(Scenario { name: stringify!($name), play: $name }),+];
    };
}

scenarios![
    descriptors,
    one_way_and_back,
    both_directions_at_once,
    many_tensors,
    empty_and_not,
    receiver_first,
    sender_first,
    offsets_in_allocations,
    across_devices_and_back,
    only_the_devices_that_are_served_are_touched,
    lengths_from_a_byte_to_many,
    a_gibibyte,
    ten_thousand_transfers,
    lengths_that_differ,
    streams_are_waited_for_and_wait,
    streams_that_stand_still,
    memory_freed_and_allocated_again,
    dropped_transfers,
    dropped_at_random,
    closed_during_transfers,
    refused_copies_fail_their_transfer_alone,
    link_cut,
    until_the_other_is_lost,
    throughput,
];

/// The kind that was asked for is viable, and serves the pair.
fn descriptors(party: &Party) -> Result<()> {
    let first = party.channels.split(',').next().unwrap_or_default();
    let serves = party.endpoint.channel(party.pair())?;
    ensure!(serves == first, "{serves} serves {}:\n{}", party.pair(), party.context.report());
    ensure!(party.endpoint.remote_devices().contains(&party.remote), "{:?}", party.endpoint.remote_devices());
    ensure!(
        party
            .context
            .report()
            .rows
            .iter()
            .any(|row| row.name == first && row.devices.contains(&party.device))
    );
    Ok(())
}

/// A sends, B receives.
fn a_to_b(party: &Party, seed: u64, length: usize) -> Result<()> {
    if party.is_a() {
        party.send_bytes(&pattern(seed, length))
    } else {
        compare(&format!("message {seed}"), &party.recv_bytes(length)?, seed, length)
    }
}

/// B sends, A receives.
fn b_to_a(party: &Party, seed: u64, length: usize) -> Result<()> {
    if party.is_a() {
        compare(&format!("message {seed}"), &party.recv_bytes(length)?, seed, length)
    } else {
        party.send_bytes(&pattern(seed, length))
    }
}

/// One message each way, one after the other.
fn one_way_and_back(party: &Party) -> Result<()> {
    a_to_b(party, 1, 100_000)?;
    b_to_a(party, 2, 100_000)
}

/// Both send and receive several long ones at the same time.
fn both_directions_at_once(party: &Party) -> Result<()> {
    let length = 6 << 20;
    let (own, other) = if party.is_a() { (10, 20) } else { (20, 10) };
    let mut sends = Vec::new();
    let mut receives = Vec::new();
    for at in 0..4 {
        sends.push(party.send(party.buffer(&pattern(own + at, length))?));
        receives.push(party.recv(party.buffer(&vec![0; length])?));
    }
    for (at, receive) in receives.into_iter().enumerate() {
        let (buffer, _) = receive.wait(SOON)?;
        compare(&format!("message {at}"), &buffer.read()?, other + at as u64, length)?;
    }
    sends.into_iter().try_for_each(|send| send.wait(SOON).map(drop))?;
    Ok(())
}

/// Many are started before the first is waited for; they are waited for backwards.
fn many_tensors(party: &Party) -> Result<()> {
    let length = |at: usize| 1 + at * 977 % 50_000;
    let mut transfers = Vec::new();
    for at in 0..200 {
        transfers.push(if party.is_a() {
            party.send(party.buffer(&pattern(at as u64, length(at)))?)
        } else {
            party.recv(party.buffer(&vec![0; length(at)])?)
        });
    }
    for (at, transfer) in transfers.into_iter().enumerate().rev() {
        let (buffer, _) = transfer.wait(SOON)?;
        compare(&format!("message {at}"), &buffer.read()?, at as u64, length(at))?;
    }
    Ok(())
}

/// Messages of no bytes among others.
fn empty_and_not(party: &Party) -> Result<()> {
    for (seed, length) in [0, 5, 0, 0, 70_000, 0].into_iter().enumerate() {
        a_to_b(party, seed as u64, length)?;
        b_to_a(party, 100 + seed as u64, length)?;
    }
    Ok(())
}

/// Every receive is started before its send.
fn receiver_first(party: &Party) -> Result<()> {
    for (at, length) in [1, 100_000, 20 << 20].into_iter().enumerate() {
        let seed = at as u64;
        if party.is_a() {
            party.sync()?;
            party.send_bytes(&pattern(seed, length))?;
        } else {
            let receive = party.recv(party.buffer(&vec![0; length])?);
            party.sync()?;
            compare(&format!("message {at}"), &receive.wait(SOON)?.0.read()?, seed, length)?;
        }
    }
    Ok(())
}

/// Every send is started long before its receive.
fn sender_first(party: &Party) -> Result<()> {
    for (at, length) in [1, 100_000, 20 << 20].into_iter().enumerate() {
        let seed = at as u64;
        if party.is_a() {
            let send = party.send(party.buffer(&pattern(seed, length))?);
            // All that can move without the receiver has time to do so.
            std::thread::sleep(Duration::from_millis(20));
            party.sync()?;
            send.wait(SOON)?;
        } else {
            party.sync()?;
            compare(&format!("message {at}"), &party.recv_bytes(length)?, seed, length)?;
        }
    }
    Ok(())
}

/// Parts of allocations at any offset; what lies beside them stays as it was.
fn offsets_in_allocations(party: &Party) -> Result<()> {
    const WHOLE: usize = 300_000;
    for (at, (from, count)) in [(0, 10), (1, 77_777), (4097, 65_536), (299_999, 1)].into_iter().enumerate() {
        let seed = at as u64;
        if party.is_a() {
            let mut bytes = vec![0_u8; WHOLE];
            bytes[from..from + count].copy_from_slice(&pattern(seed, count));
            let whole = party.buffer(&bytes)?;
            party.send(whole.part(from as u64, count as u64)).wait(SOON)?;
        } else {
            let from = WHOLE - from - count;
            let whole = party.buffer(&vec![0x5a; WHOLE])?;
            party.recv(whole.part(from as u64, count as u64)).wait(SOON)?;
            let bytes = whole.read()?;
            compare(&format!("part {at}"), &bytes[from..from + count], seed, count)?;
            let beside = bytes[..from].iter().chain(&bytes[from + count..]);
            ensure!(beside.into_iter().all(|byte| *byte == 0x5a), "part {at}: a byte beside it was written");
        }
    }
    Ok(())
}

/// What B has got it sends back, from the same memory.
fn across_devices_and_back(party: &Party) -> Result<()> {
    for (seed, length) in [1, 4096, 3 << 20].into_iter().enumerate() {
        let seed = seed as u64;
        if party.is_a() {
            party.send_bytes(&pattern(seed, length))?;
            compare("what came back", &party.recv_bytes(length)?, seed, length)?;
        } else {
            let (buffer, _) = party.recv(party.buffer(&vec![0; length])?).wait(SOON)?;
            party.send(buffer).wait(SOON)?;
        }
    }
    Ok(())
}

/// There is no context on a device that is not served.
fn only_the_devices_that_are_served_are_touched(party: &Party) -> Result<()> {
    use meshreduce_device::loader::sys;
    one_way_and_back(party)?;
    party.sync()?;
    let served: Vec<u32> = [party.device, party.remote]
        .into_iter()
        .filter_map(|device| match device {
            Device::Cuda(ordinal) => Some(ordinal),
            Device::Cpu => None,
        })
        .collect();
    if served.is_empty() {
        return Ok(());
    }
    let mut count = 0;
    // SAFETY: the place outlives the call.
    unsafe { sys::cuDeviceGetCount(&mut count) };
    for ordinal in 0..count {
        let (mut device, mut flags, mut active) = (0, 0, 0);
        // SAFETY: the places outlive the calls.
        unsafe {
            sys::cuDeviceGet(&mut device, ordinal);
            sys::cuDevicePrimaryCtxGetState(device, &mut flags, &mut active);
        }
        let is_served = served.contains(&(ordinal as u32));
        ensure!(active == 0 || is_served, "there is a context on device {ordinal}");
    }
    Ok(())
}

/// From one byte to 64 MiB, and around every power of two.
fn lengths_from_a_byte_to_many(party: &Party) -> Result<()> {
    let mut lengths: Vec<usize> =
        (0..23).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1]).collect();
    lengths.extend([(8 << 20) - 1, 8 << 20, (8 << 20) + 1, (33 << 20) + 3, 64 << 20]);
    for (seed, length) in lengths.into_iter().enumerate() {
        a_to_b(party, seed as u64, length)?;
    }
    b_to_a(party, 999, 64 << 20)
}

/// A GiB each way.
fn a_gibibyte(party: &Party) -> Result<()> {
    a_to_b(party, 1, 1 << 30)?;
    b_to_a(party, 2, 1 << 30)
}

/// 10,000 transfers of changing lengths, several under way at a time, in both directions, every byte compared.
fn ten_thousand_transfers(party: &Party) -> Result<()> {
    const ALL: u64 = 10_000;
    const AT_ONCE: usize = 8;
    // Mostly short, now and then long; the same on both sides.
    let length = |at: u64| {
        let random = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        if at.is_multiple_of(500) { (random % 3_000_000) as usize } else { (random % 6_000) as usize }
    };
    let mut under_way: VecDeque<(u64, bool, Owned<Buffer>)> = VecDeque::new();
    for at in 0..ALL + AT_ONCE as u64 {
        if under_way.len() == AT_ONCE || at >= ALL {
            let Some((at, is_send, transfer)) = under_way.pop_front() else { break };
            let (buffer, _) = transfer.wait(SOON)?;
            if !is_send {
                compare(&format!("message {at}"), &buffer.read()?, at, length(at))?;
            }
        }
        if at < ALL {
            let is_send = party.is_a() == at.is_multiple_of(2);
            let transfer = if is_send {
                party.send(party.buffer(&pattern(at, length(at)))?)
            } else {
                party.recv(party.buffer(&vec![0; length(at)])?)
            };
            under_way.push_back((at, is_send, transfer));
        }
    }
    Ok(())
}

/// A send and a receive of different lengths fail on both sides, and what comes behind them goes well.
fn lengths_that_differ(party: &Party) -> Result<()> {
    for (at, (sent, expected)) in
        [(10, 9), (0, 1), (5, 0), (20 << 20, 3), (3, 20 << 20)].into_iter().enumerate()
    {
        let own = if party.is_a() { sent } else { expected };
        let buffer = party.buffer(&vec![0; own])?;
        let transfer = if party.is_a() { party.send(buffer) } else { party.recv(buffer) };
        match transfer.wait(SOON) {
            Err(Failed { error: Error::LengthsDiffer { sent: s, expected: e, .. }, .. })
                if (s, e) == (sent as u64, expected as u64) => {}
            other => bail!("{sent} bytes were sent and {expected} expected: {other:?}"),
        }
        a_to_b(party, at as u64, 5000)?;
    }
    Ok(())
}

/// A transfer waits for what was enqueued before it, and a stream for the transfer, without the host.
///
/// Everything is allocated before and freed behind: the driver may wait for streams, and streams here wait for the host.
fn streams_are_waited_for_and_wait(party: &Party) -> Result<()> {
    const ROUNDS: usize = 12;
    let length = |round: usize| [4, 40_000, 5 << 20][round % 3];
    // Both channels are there.
    one_way_and_back(party)?;
    let Some(context) = party.cuda()? else {
        party.sync()?;
        for round in 0..ROUNDS {
            let expected = words_of(round, length(round));
            if party.is_a() {
                party.send_bytes(&expected)?;
            } else {
                ensure!(party.recv_bytes(length(round))? == expected, "round {round}");
            }
        }
        return party.sync();
    };
    let stream = Stream::new(&context)?;
    let words = Words::new(&context)?;
    let buffers = |fill: u8| {
        (0..ROUNDS).map(|round| party.buffer(&vec![fill; length(round)])).collect::<Result<Vec<_>>>()
    };
    let (buffers, results) = (buffers(0)?, buffers(7)?);
    let gates = (0..ROUNDS).map(|_| words.take()).collect::<Result<Vec<_>, _>>()?;
    let mut ended = Vec::new();
    party.sync()?;
    for (round, ((buffer, result), gate)) in buffers.iter().zip(&results).zip(&gates).enumerate() {
        let count = length(round) as u64;
        let memory = buffer.cuda().context("of CUDA")?;
        let whole = buffer.part(0, count);
        // The stream is held up until the transfer has been started.
        // SAFETY: the stream is alive.
        unsafe { gate.enqueue_wait(1, stream.raw()) }?;
        let transfer = if party.is_a() {
            memory.set(0, round as u32 + 1, &stream)?;
            memory.set(count - 4, round as u32 + 2, &stream)?;
            let send = party.endpoint.send(whole, party.remote, &stream);
            ensure!(!send.poll()?, "it has not waited for its stream");
            // Behind the transfer the memory is written again.
            send.wait_on(&stream)?;
            memory.set(0, 0xdead, &stream)?;
            send
        } else {
            let receive = party.endpoint.recv(whole, party.remote, &stream);
            receive.wait_on(&stream)?;
            let (from, to) = (buffer.address(), result.address());
            // SAFETY: both are alive until the stream has been waited for, and of this device.
            unsafe { meshreduce_device::copy_within(&context, to, from, count, stream.raw()) }?;
            receive
        };
        gate.set(1);
        stream.synchronize()?;
        ended.push(transfer.wait(SOON)?);
    }
    // Nothing waits for anything any more, on either side.
    party.sync()?;
    for (round, result) in results.iter().enumerate().filter(|_| !party.is_a()) {
        ensure!(result.read()? == words_of(round, length(round)), "round {round}");
    }
    Ok(())
}

/// Streams stand still on both sides. Transfers behind them that are aborted end, and those that come later go on; closing ends what
/// is left. (Of kinds that enqueue nothing behind a caller's stream.)
///
/// Everything is allocated before and freed behind, as above.
fn streams_that_stand_still(party: &Party) -> Result<()> {
    /// Whatever happens, the stream goes on before memory is freed.
    struct GoesOn<'a>(&'a Word);
    impl Drop for GoesOn<'_> {
        fn drop(&mut self) {
            self.0.set(1);
        }
    }
    // Both channels are there, with what they need.
    one_way_and_back(party)?;
    let Some(context) = party.cuda()? else { bail!("host memory has no streams") };
    let (stream, gate) = (Stream::new(&context)?, Words::new(&context)?.take()?);
    let (own, other) = if party.is_a() { (1, 2) } else { (2, 1) };
    let mut memory = (0..6).map(|_| party.buffer(&pattern(own, 70_000))).collect::<Result<Vec<_>>>()?;
    let (mut next, mut back) = (|| memory.pop().context("there is enough"), Vec::new());
    party.sync()?;
    let goes_on = GoesOn(&gate);
    // SAFETY: the stream is alive.
    unsafe { gate.enqueue_wait(1, stream.raw()) }?;
    let held_send = party.endpoint.send(next()?, party.remote, &stream);
    let held_receive = party.endpoint.recv(next()?, party.remote, &stream);
    let (send, receive) = (party.send(next()?), party.recv(next()?));
    for held in [held_send, held_receive] {
        held.abort();
        match held.wait(SOON) {
            Err(failed) if matches!(failed.error, Error::Dropped | Error::Remote { .. }) => back.push(failed),
            other => bail!("it was aborted: {other:?}"),
        }
    }
    let (received, _) = receive.wait(SOON)?;
    let sent = send.wait(SOON)?;
    let held_send = party.endpoint.send(next()?, party.remote, &stream);
    let held_receive = party.endpoint.recv(next()?, party.remote, &stream);
    party.sync()?;
    party.endpoint.close();
    for held in [held_send, held_receive] {
        match held.wait(SOON) {
            Err(failed) if matches!(failed.error, Error::Closed { .. } | Error::ClosedByPeer { .. }) => {
                back.push(failed);
            }
            other => bail!("the endpoint was closed: {other:?}"),
        }
    }
    drop(goes_on);
    stream.synchronize()?;
    // (Giving up what is registered waits for streams too.)
    party.endpoint.join(SOON)?;
    compare("what was not held", &received.read()?, other, 70_000)?;
    drop((sent, back));
    Ok(())
}

/// What A's stream has written.
fn words_of(round: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[..4].copy_from_slice(&(round as u32 + 1).to_le_bytes());
    bytes[length - 4..].copy_from_slice(&(round as u32 + 2).to_le_bytes());
    bytes
}

/// Memory is freed between transfers, and allocated again where it was: nothing remembers what is not there any more.
fn memory_freed_and_allocated_again(party: &Party) -> Result<()> {
    let length = 2 << 20;
    let mut places = BTreeMap::<u64, u32>::new();
    for round in 0..12_u64 {
        let buffer = party.buffer(&if party.is_a() { pattern(round, length) } else { vec![0; length] })?;
        *places.entry(buffer.address()).or_default() += 1;
        if party.is_a() {
            party.send(buffer).wait(SOON)?;
        } else {
            compare(&format!("round {round}"), &party.recv(buffer).wait(SOON)?.0.read()?, round, length)?;
        }
    }
    if places.values().all(|times| *times == 1) {
        println!("skipping: no address was given out again");
    }
    Ok(())
}

/// Futures are dropped before their end: the other side is told, and what comes behind goes well.
fn dropped_transfers(party: &Party) -> Result<()> {
    for (round, length) in [10, 100_000, 30 << 20].into_iter().enumerate() {
        // A send that is dropped. It may have gone by then.
        let buffer = party.buffer(&vec![1; length])?;
        if party.is_a() {
            drop(party.send(buffer));
            party.sync()?;
        } else {
            party.sync()?;
            match party.recv(buffer).wait(SOON) {
                Ok(_) | Err(Failed { error: Error::Remote { .. }, .. }) => {}
                Err(failed) => bail!("the send was dropped, and the receive says: {}", failed.error),
            }
        }
        a_to_b(party, round as u64, 5000)?;
        // A receive that is dropped before anything is sent.
        let buffer = party.buffer(&vec![1; length])?;
        if party.is_a() {
            party.sync()?;
            match party.send(buffer).wait(SOON) {
                Err(Failed { error: Error::Remote { .. }, .. }) => {}
                other => bail!("the receive was dropped, and the send says: {other:?}"),
            }
        } else {
            let receive = party.recv(buffer);
            receive.abort();
            match receive.wait(SOON) {
                Err(Failed { error: Error::Dropped, .. }) => {}
                other => bail!("the receive was dropped, and says {other:?}"),
            }
            party.sync()?;
        }
        a_to_b(party, round as u64, 5000)?;
    }
    Ok(())
}

/// Sends and receives in both directions, of which some are aborted or dropped, by either side, at once or when others are under way,
/// and some have other lengths. What was left alone goes well, and of what has gone well every byte is compared.
fn dropped_at_random(party: &Party) -> Result<()> {
    const ROUNDS: usize = 10;
    const AT_ONCE: usize = 10;
    // From none to more than a channel keeps on the way.
    const LENGTHS: [usize; 8] = [0, 1, 5000, 0, 70_000, 1 << 20, (3 << 20) + 1, 20 << 20];
    const AT_ONCE_ABORTED: usize = 0;
    const ABORTED: usize = 1;
    const DROPPED: usize = 2;
    // The same on both sides.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    for round in 0..ROUNDS {
        let mut under_way = Vec::new();
        for at in 0..AT_ONCE {
            let (is_send, length) = ((random(2) == 0) == party.is_a(), LENGTHS[random(LENGTHS.len())]);
            let differ = random(8) == 0;
            // Half of them are left alone.
            let (fate, sender_ends_it) = (random(6), random(2) == 0);
            let fate = (fate <= DROPPED).then_some(fate);
            let seed = (round * AT_ONCE + at) as u64;
            let transfer = if is_send {
                party.send(party.buffer(&pattern(seed, length))?)
            } else {
                party.recv(party.buffer(&vec![0xa5; length + usize::from(differ)])?)
            };
            let own_fate = fate.filter(|_| sender_ends_it == is_send);
            if own_fate == Some(AT_ONCE_ABORTED) {
                transfer.abort();
            }
            under_way.push((seed, length, is_send, differ, fate, own_fate, transfer));
        }
        let mut left = Vec::new();
        for (seed, length, is_send, differ, fate, own_fate, transfer) in under_way {
            match own_fate {
                Some(DROPPED) => drop(transfer),
                Some(ABORTED) => {
                    transfer.abort();
                    left.push((seed, length, is_send, differ, fate, transfer));
                }
                _ => left.push((seed, length, is_send, differ, fate, transfer)),
            }
        }
        for (seed, length, is_send, differ, fate, transfer) in left {
            let what = format!("message {seed} of {length} bytes, sent here: {is_send}, fate {fate:?}");
            match transfer.wait(SOON) {
                Ok(_) if differ => bail!("{what}: it is done, and the lengths differ"),
                Ok(_) if is_send => {}
                Ok((buffer, _)) => compare(&what, &buffer.read()?, seed, length)?,
                Err(Failed { error: Error::LengthsDiffer { .. }, .. }) if differ => {}
                Err(Failed { error: Error::Dropped | Error::Remote { .. }, .. }) if fate.is_some() => {}
                Err(failed) => bail!("{what}: {}", failed.error),
            }
        }
    }
    one_way_and_back(party)
}

/// The driver refuses a copy of one transfer, because there is less memory than was said: it fails on both sides, on one with what the
/// driver says, and what comes behind it goes well. (For emulated drivers: a real one may find other memory there.)
fn refused_copies_fail_their_transfer_alone(party: &Party) -> Result<()> {
    for (round, (there, said)) in [(4096, 5000), (3 << 20, 20 << 20)].into_iter().enumerate() {
        for sender_fails in [true, false] {
            let is_here = sender_fails == party.is_a();
            let failing = if is_here { party.device } else { party.remote };
            if failing == Device::Cpu {
                continue;
            }
            let buffer = party.buffer(&vec![1; if is_here { there } else { said }])?;
            let span = Span { bytes: said as u64, ..buffer.span() };
            // SAFETY: of what there is, nothing is freed before the transfer has ended; the driver refuses what is not there.
            let transfer = unsafe {
                match party.is_a() {
                    true => party.endpoint.send_raw(span, party.remote, None),
                    false => party.endpoint.recv_raw(span, party.remote, None),
                }
            };
            // Over xth the receiver copies from the sender's memory.
            let copies_here = if party.channels == "xth" { !party.is_a() } else { is_here };
            match transfer.wait(SOON) {
                Err(Error::Driver(_)) if copies_here => {}
                Err(Error::Remote { what, .. }) if !copies_here && what.contains("has failed: ") => {}
                // Who registers memory sees before any copy how much there is.
                Err(Error::BadMemory { .. }) if is_here && party.channels == "gdr" => {}
                Err(Error::Remote { what, .. })
                    if !is_here && party.channels == "gdr" && what.contains("its allocation has") => {}
                other => bail!("{said} bytes, the sender's memory: {sender_fails}, {copies_here}: {other:?}"),
            }
            a_to_b(party, round as u64, 5000)?;
            b_to_a(party, round as u64, 3 << 20)?;
        }
    }
    Ok(())
}

/// B closes while transfers are under way: on both sides all end, each with an error that says who it was, and give their memory
/// back.
fn closed_during_transfers(party: &Party) -> Result<()> {
    let mut transfers = Vec::new();
    for _ in 0..6 {
        transfers.push((true, party.send(party.buffer(&vec![1; 8 << 20])?)));
        // Three fewer: some sends are never received.
        if transfers.len() < 6 {
            transfers.push((false, party.recv(party.buffer(&vec![1; 8 << 20])?)));
        }
    }
    party.sync()?;
    if !party.is_a() {
        party.endpoint.close();
    }
    let mut failed = 0;
    for (_, transfer) in transfers {
        match transfer.wait(SOON) {
            Ok(_) => {}
            Err(error) => {
                failed += 1;
                let is_it = match error.error {
                    Error::Closed { .. } => !party.is_a(),
                    Error::ClosedByPeer { .. } => party.is_a(),
                    _ => false,
                };
                ensure!(is_it, "{}", error.error);
                ensure!(error.into_memory().is_some(), "memory was not given back");
            }
        }
    }
    ensure!(failed >= 3, "only {failed} have failed");
    let late = party.send(party.buffer(&[1])?).wait(SOON);
    ensure!(
        matches!(&late, Err(Failed { error: Error::Closed { .. } | Error::ClosedByPeer { .. }, .. })),
        "{late:?}"
    );
    party.endpoint.join(SOON)?;
    Ok(())
}

/// A's sockets are shut while transfers are under way: on both sides all end, as lost, and give their memory back.
fn link_cut(party: &Party) -> Result<()> {
    if party.endpoint.peer_name().contains(&format!("process {} ", std::process::id())) {
        println!("skipping: both parties' sockets are of one process");
        return Ok(());
    }
    one_way_and_back(party)?;
    let mut transfers = Vec::new();
    for _ in 0..3 {
        transfers.push(party.send(party.buffer(&vec![1; 8 << 20])?));
        transfers.push(party.recv(party.buffer(&vec![1; 8 << 20])?));
    }
    // Nobody sends this.
    transfers.push(party.recv(party.buffer(&[1])?));
    party.sync()?;
    if party.is_a() {
        for socket in sockets()? {
            // SAFETY: the descriptor is open: nothing in this process closes a socket at this moment.
            let socket = unsafe { BorrowedFd::borrow_raw(socket) };
            // It may be one that is not connected.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
    let mut failed = 0;
    for transfer in transfers {
        if let Err(error) = transfer.wait(SOON) {
            failed += 1;
            ensure!(matches!(error.error, Error::PeerLost { .. }), "{}", error.error);
            ensure!(error.into_memory().is_some(), "memory was not given back");
        }
    }
    ensure!(failed > 0, "nothing has failed");
    party.endpoint.join(SOON)?;
    Ok(())
}

/// Descriptors of sockets that this process has.
fn sockets() -> Result<Vec<i32>> {
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with("socket:") {
            sockets.push(entry.file_name().to_string_lossy().parse()?);
        }
    }
    Ok(sockets)
}

/// Both send and receive until the other one is lost, and say how they learned of it.
fn until_the_other_is_lost(party: &Party) -> Result<()> {
    for round in 0_u64.. {
        let length = (round as usize * 7919) % 3_000_000;
        let send = party.send(party.buffer(&pattern(round, length))?);
        let receive = party.recv(party.buffer(&vec![0; length])?);
        for (what, result) in [("receive", receive.wait(SOON)), ("send", send.wait(SOON))] {
            match result {
                Ok((buffer, _)) if what == "receive" => {
                    compare("what has come", &buffer.read()?, round, length)?
                }
                Ok(_) => {}
                Err(Failed { error: Error::PeerLost { peer, how, received, bytes }, remains }) => {
                    ensure!(bytes == length as u64 && received <= bytes, "{received} of {bytes} bytes");
                    ensure!(matches!(remains, Remains::Memory(_)), "the memory was not given back");
                    println!("LOST {peer}: {how}");
                    party.endpoint.join(SOON)?;
                    return Ok(());
                }
                Err(failed) => bail!("{}", failed.error),
            }
        }
        if round == 2 {
            party.tell("begun")?;
        }
    }
    Ok(())
}

/// How fast 64 MiB go from A to B, beside two copies one after the other through as many slots as `basic` has; and how long a
/// message of 8 bytes takes there and back. Says so and judges nothing.
fn throughput(party: &Party) -> Result<()> {
    const LENGTH: usize = 64 << 20;
    const ROUNDS: u32 = 10;
    let mut buffer = party.buffer(&pattern(1, LENGTH))?;
    let mut least = Duration::MAX;
    for _ in 0..ROUNDS {
        party.sync()?;
        let begun = Instant::now();
        let transfer = if party.is_a() { party.send(buffer) } else { party.recv(buffer) };
        buffer = transfer.wait(SOON)?.0;
        least = least.min(begun.elapsed());
    }
    let mut small = party.buffer(&[0; 8])?;
    let mut shortest = Duration::MAX;
    for _ in 0..2000 {
        let begun = Instant::now();
        if party.is_a() {
            small = party.send(small).wait(SOON)?.0;
            small = party.recv(small).wait(SOON)?.0;
        } else {
            small = party.recv(small).wait(SOON)?.0;
            small = party.send(small).wait(SOON)?.0;
        }
        shortest = shortest.min(begun.elapsed());
    }
    if party.is_a() {
        return Ok(());
    }
    let (from, mut slots, mut to) = (pattern(2, LENGTH), vec![1_u8; 16 << 20], vec![1_u8; LENGTH]);
    let mut chained = Duration::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for (at, (from, to)) in from.chunks(1 << 20).zip(to.chunks_mut(1 << 20)).enumerate() {
            let slot = &mut slots[(at % 16) << 20..][..1 << 20];
            slot.copy_from_slice(from);
            to.copy_from_slice(slot);
        }
        chained = chained.min(begun.elapsed());
    }
    let rate = |time: Duration| LENGTH as f64 / time.as_secs_f64() / 1e9;
    println!(
        "{} from {} to {}: {:.1} GB/s, two copies {:.1} GB/s, there and back {shortest:?}",
        party.channels,
        party.remote,
        party.device,
        rate(least),
        rate(chained)
    );
    Ok(())
}
