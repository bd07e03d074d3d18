//! Transfers and streams, which wait for each other.

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_channels::Error;
use meshreduce_device::{Stream, Word, Words};

use super::one_way_and_back;
use crate::channels::party::{Party, SOON, compare, pattern};

/// A transfer waits for what was enqueued before it, and a stream for the transfer, without the host.
///
/// Everything is allocated before and freed behind: the driver may wait for streams, and streams here wait for the host.
pub(super) fn streams_are_waited_for_and_wait(party: &Party) -> Result<()> {
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
pub(super) fn streams_that_stand_still(party: &Party) -> Result<()> {
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
