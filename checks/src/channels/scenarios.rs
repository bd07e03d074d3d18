//! What happens between two parties. Each function is run by both.

mod ends;
mod many;
mod speed;
mod streams;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use meshreduce_channels::{Device, Error, Failed, Owned};

use super::memory::Buffer;
use super::party::{Party, SOON, compare, pattern};
use ends::{
    a_kernel_faults, a_kernel_faults_before_a_receive, closed_during_transfers, dropped_at_random,
    dropped_transfers, link_cut, memory_freed_and_allocated_again, refused_copies_fail_their_transfer_alone,
    refused_streams_fail_their_transfer_alone, the_context_is_renewed, the_context_is_reset,
    until_the_other_is_lost,
};
use many::many_endpoints;
use speed::throughput;
use streams::{streams_are_waited_for_and_wait, streams_that_stand_still};

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
    threads_share_an_endpoint,
    many_endpoints,
    closed_during_transfers,
    refused_copies_fail_their_transfer_alone,
    link_cut,
    until_the_other_is_lost,
    the_context_is_reset,
    the_context_is_renewed,
    a_kernel_faults,
    a_kernel_faults_before_a_receive,
    refused_streams_fail_their_transfer_alone,
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

/// Threads of both sides send and receive over the same channel, and drop some of what they have started. Which message comes to which
/// thread nobody says; but each that has come is whole, and none has come twice.
fn threads_share_an_endpoint(party: &Party) -> Result<()> {
    const THREADS: u64 = 6;
    const ROUNDS: u64 = 40;
    // Odd, and more than a slot of some kinds.
    const LENGTH: usize = 70_001;
    let (endpoint, device, remote) = (&party.endpoint, party.device, party.remote);
    let side = u64::from(party.is_a()) << 32;
    let play = |thread: u64| -> Result<Vec<u64>> {
        let mut come = Vec::new();
        for round in 0..ROUNDS {
            let seed = side | (thread * ROUNDS + round);
            let mut bytes = pattern(seed, LENGTH);
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            let send = endpoint.send(Buffer::new(device, &bytes)?, remote, None);
            let receive = endpoint.recv(Buffer::new(device, &vec![0xa5; LENGTH])?, remote, None);
            match (thread + round) % 7 {
                0 => send.abort(),
                1 => receive.abort(),
                _ => {}
            }
            for (transfer, is_receive) in [(receive, true), (send, false)] {
                match transfer.wait(SOON) {
                    Ok((buffer, _)) if is_receive => {
                        let bytes = buffer.read()?;
                        let seed = bytes.first_chunk().map_or(0, |seed| u64::from_le_bytes(*seed));
                        ensure!(bytes[8..] == pattern(seed, LENGTH)[8..], "message {seed:#x} is not whole");
                        come.push(seed);
                    }
                    // Its counterpart may be dropped by whatever thread has it.
                    Ok(_) | Err(Failed { error: Error::Dropped | Error::Remote { .. }, .. }) => {}
                    Err(failed) => bail!("{}", failed.error),
                }
            }
        }
        Ok(come)
    };
    let come = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || play(thread))).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread has panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    let mut come = come.concat();
    let count = come.len() as u64;
    come.sort_unstable();
    come.dedup();
    let other = if party.is_a() { 0 } else { 1 << 32 };
    ensure!(come.len() as u64 == count, "{} messages have come twice", count - come.len() as u64);
    ensure!(come.iter().all(|seed| seed ^ other < THREADS * ROUNDS), "a message of nobody");
    ensure!(count >= THREADS * ROUNDS / 2, "only {count} have come");
    one_way_and_back(party)
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
