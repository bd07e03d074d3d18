//! What a kind of channel does in a second.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::channels::party::{Party, SOON, pattern};

/// How fast 64 MiB go from A to B, beside two copies one after the other through as many slots as `basic` has; and how long a
/// message of 8 bytes takes there and back. Says so and judges nothing.
pub(super) fn throughput(party: &Party) -> Result<()> {
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
