//! Transfers, memory, devices and endpoints that come to an end before they should.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_channels::{Device, Error, Failed, Memory as _, Remains, Span};
use meshreduce_device::{Module, Stream, Word, Words};

use super::{a_to_b, b_to_a, one_way_and_back};
use crate::channels::memory::Buffer;
use crate::channels::party::{Party, SOON, compare, pattern};
use crate::in_process::{fail_driver_calls, lose_context, reset_context};

/// Memory is freed between transfers, and allocated again where it was: nothing remembers what is not there any more.
pub(super) fn memory_freed_and_allocated_again(party: &Party) -> Result<()> {
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
pub(super) fn dropped_transfers(party: &Party) -> Result<()> {
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
pub(super) fn dropped_at_random(party: &Party) -> Result<()> {
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
pub(super) fn refused_copies_fail_their_transfer_alone(party: &Party) -> Result<()> {
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
pub(super) fn closed_during_transfers(party: &Party) -> Result<()> {
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
pub(super) fn link_cut(party: &Party) -> Result<()> {
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
pub(super) fn until_the_other_is_lost(party: &Party) -> Result<()> {
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

/// The context of B's device is reset while transfers are under way: on both sides all end, those that fail with what has happened, and
/// give their memory back; so do those that are started then; and everything can be closed.
pub(super) fn the_context_is_reset(party: &Party) -> Result<()> {
    reset_under_transfers(party, false)
}

/// The same, where B's process goes on with a new context of the device.
pub(super) fn the_context_is_renewed(party: &Party) -> Result<()> {
    reset_under_transfers(party, true)
}

/// Closes everything, when the other side does so too: whoever closes takes along what the other one has under way.
fn leave(party: &Party) -> Result<()> {
    party.sync()?;
    party.endpoint.close();
    party.endpoint.join(SOON)?;
    party.context.close();
    party.context.join(SOON)?;
    Ok(())
}

/// A stream of the own device, a kernel on it that faults when the word is set to 1, and the kernel's module.
fn about_to_fault(party: &Party) -> Result<(Stream, Word, Module)> {
    let context = party.cuda()?.context("a device to be lost")?;
    let (stream, gate) = (Stream::new(&context)?, Words::new(&context)?.take()?);
    // SAFETY: the stream is alive.
    unsafe { gate.enqueue_wait(1, stream.raw()) }?;
    let module = lose_context(&stream);
    Ok((stream, gate, module))
}

/// A kernel faults on B's device, before transfers that wait for its stream and others that do not: on both sides all end, those that
/// fail with what has happened, and give their memory back; so do those that are started then; and everything can be closed.
pub(super) fn a_kernel_faults(party: &Party) -> Result<()> {
    one_way_and_back(party)?;
    let (long, short) = (30 << 20, 70_000);
    let mut memory = (0..8)
        .map(|at| party.buffer(&vec![1; if at < 2 { long } else { short }]))
        .collect::<Result<VecDeque<_>>>()?;
    let mut next = || memory.pop_front().context("there is enough");
    let mut transfers = Vec::new();
    let mut kept = None;
    if party.is_a() {
        for _ in 0..3 {
            transfers.extend([party.send(next()?), party.recv(next()?)]);
        }
        party.sync()?;
    } else {
        let (stream, gate, module) = about_to_fault(party)?;
        for after in [None, Some(&stream), Some(&stream)] {
            transfers.push(party.endpoint.recv(next()?, party.remote, after));
            transfers.push(party.endpoint.send(next()?, party.remote, after));
        }
        party.sync()?;
        gate.set(1);
        kept = Some((stream, module));
    }
    let behind = transfers.split_off(2);
    let mut failed = 0;
    for (is_behind, transfer) in [(false, transfers), (true, behind)]
        .into_iter()
        .flat_map(|(is_behind, those)| those.into_iter().map(move |transfer| (is_behind, transfer)))
    {
        match transfer.wait(SOON) {
            Ok(_) => ensure!(!is_behind, "what waited for the stream is done"),
            Err(error) => {
                failed += 1;
                lost(party, error)?;
            }
        }
    }
    ensure!(failed >= 4, "only {failed} have failed");
    for transfer in [party.send(next()?), party.recv(next()?)] {
        if let Err(error) = transfer.wait(SOON) {
            lost(party, error)?;
        }
    }
    leave(party)?;
    drop(kept);
    Ok(())
}

/// The driver does not tell when one side's stream is ready, of a send and then of a receive: they fail on both sides, on one with what
/// the driver says, and the transfers behind them meet as if nothing had been.
pub(super) fn refused_streams_fail_their_transfer_alone(party: &Party) -> Result<()> {
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    const OUT_OF_MEMORY: u32 = 2;
    one_way_and_back(party)?;
    for (round, a_sends) in [true, false].into_iter().enumerate() {
        let buffer = party.buffer(&[1; 5000])?;
        let stream = match (party.is_a(), party.cuda()?) {
            (true, Some(context)) => Some(Stream::new(&context)?),
            (true, None) => bail!("host memory has no streams"),
            (false, _) => None,
        };
        let told_by = ["cuEventRecord", "cuStreamWriteValue32_v2"];
        if party.is_a() {
            told_by.into_iter().for_each(|call| fail_driver_calls(call, OUT_OF_MEMORY, 0, 1));
        }
        let transfer = match party.is_a() == a_sends {
            true => party.endpoint.send(buffer, party.remote, stream.as_ref()),
            false => party.endpoint.recv(buffer, party.remote, stream.as_ref()),
        };
        if party.is_a() {
            told_by.into_iter().for_each(|call| fail_driver_calls(call, OUT_OF_MEMORY, 0, 0));
        }
        match transfer.wait(SOON) {
            Err(Failed { error: Error::Driver(error), .. }) if party.is_a() => {
                ensure!(error.code == OUT_OF_MEMORY as i32, "{error}");
            }
            Err(Failed { error: Error::Remote { .. }, .. }) if !party.is_a() => {}
            other => bail!("round {round}: {other:?}"),
        }
        one_way_and_back(party)?;
    }
    Ok(())
}

/// B receives behind a stream of which a kernel faults, and does nothing else, so that nothing of its own tells of that: the receive, and
/// what A sends, end all the same, and everything can be closed.
pub(super) fn a_kernel_faults_before_a_receive(party: &Party) -> Result<()> {
    one_way_and_back(party)?;
    let memory = party.buffer(&[1; 5000])?;
    let (transfer, kept) = if party.is_a() {
        let send = party.send(memory);
        party.sync()?;
        (send, None)
    } else {
        let (stream, gate, module) = about_to_fault(party)?;
        let receive = party.endpoint.recv(memory, party.remote, &stream);
        party.sync()?;
        gate.set(1);
        (receive, Some((stream, module)))
    };
    match transfer.wait(SOON) {
        Ok(_) => bail!("what waited for the stream is done"),
        Err(error) => lost(party, error)?,
    }
    leave(party)?;
    drop(kept);
    Ok(())
}

/// That a transfer has failed by what has become of B's context.
fn lost(party: &Party, failed: Failed<Buffer>) -> Result<()> {
    let text = failed.error.to_string();
    let is_it = matches!(failed.error, Error::Driver(_) | Error::Remote { .. } | Error::Verbs { .. });
    ensure!(is_it, "{text}");
    // An adapter says what has become of its own writes.
    ensure!(party.channels == "gdr" || text.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{text}");
    ensure!(failed.into_memory().is_some(), "memory was not given back");
    Ok(())
}

fn reset_under_transfers(party: &Party, is_renewed: bool) -> Result<()> {
    one_way_and_back(party)?;
    let buffer = |length: usize| party.buffer(&vec![1; length]);
    let (long, late) = (
        (0..3).map(|_| Ok([buffer(8 << 20)?, buffer(8 << 20)?])).collect::<Result<Vec<_>>>()?,
        [buffer(70_000)?, buffer(70_000)?],
    );
    let started = |[sent, received]: [Buffer; 2]| [party.send(sent), party.recv(received)];
    let mut transfers: Vec<_> = long.into_iter().flat_map(started).collect();
    party.sync()?;
    if let (false, Device::Cuda(ordinal)) = (party.is_a(), party.device) {
        reset_context(ordinal);
    }
    let renewed = if is_renewed { Some(buffer(1)?) } else { None };
    party.sync()?;
    transfers.extend(started(late));
    let mut failed = 0;
    for transfer in transfers {
        let Err(error) = transfer.wait(SOON) else { continue };
        failed += 1;
        let text = error.error.to_string();
        let is_it = matches!(error.error, Error::Driver(_) | Error::Remote { .. } | Error::Verbs { .. });
        ensure!(is_it, "{text}");
        // An adapter says what has become of its own writes.
        ensure!(party.channels == "gdr" || text.contains("CUDA_ERROR_CONTEXT_IS_DESTROYED"), "{text}");
        ensure!(error.into_memory().is_some(), "memory was not given back");
    }
    ensure!(failed >= 2, "only {failed} have failed");
    leave(party)?;
    drop(renewed);
    Ok(())
}
