//! Launches, timed: how many go before the stream is waited for, and which clocks run.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::cuda::{Event, Stream};
use crate::plan::Work;
use crate::row::Samples;

/// Calls that a rank enqueues before it waits for its stream. A driver's queue holds about a thousand commands; a
/// host that has to wait for room in it may keep other threads from launching.
pub(crate) const IN_FLIGHT: usize = 64;
/// The same for replays.
const REPLAYS_IN_FLIGHT: usize = 16;

/// How often what is done.
pub(crate) struct Passes {
    warmup: usize,
    iterations: usize,
    in_flight: usize,
    /// Calls of one launch.
    calls: usize,
}

impl Passes {
    /// Of launches one by one.
    pub(crate) fn plain(work: &Work) -> Self {
        Self { warmup: work.warmup, iterations: work.iterations, in_flight: IN_FLIGHT, calls: 1 }
    }

    /// Of replays of a graph of `calls` calls.
    pub(crate) fn replays(work: &Work, calls: usize) -> Self {
        Self { in_flight: REPLAYS_IN_FLIGHT, calls, ..Self::plain(work) }
    }

    /// How many launches go between two waits for the stream.
    fn chunks(&self, total: usize) -> impl Iterator<Item = usize> {
        let in_flight = self.in_flight;
        (0..total).step_by(in_flight).map(move |done| in_flight.min(total - done))
    }
}

/// Three passes: batches between two events; an event behind every launch; the host's clock around launch and
/// synchronisation. In the first two every chunk begins with a launch that is not measured: it brings the ranks in step, and
/// the host ahead of the device.
///
/// # Errors
/// The driver's, and those of `launch`.
pub(crate) fn time(
    stream: &Stream,
    passes: &Passes,
    events: &[Event],
    mut launch: impl FnMut() -> Result<()>,
) -> Result<Samples> {
    let per_call = 1.0 / passes.calls as f64;
    for chunk in passes.chunks(passes.warmup) {
        (0..chunk).try_for_each(|_| launch())?;
        stream.synchronize()?;
    }
    let mut samples = Samples::default();
    let [first, behind @ ..] = events else { bail!("no events") };
    let [second, ..] = behind else { bail!("one event") };
    let mut batch = 0.0;
    for chunk in passes.chunks(passes.iterations) {
        launch()?;
        first.record(stream)?;
        (0..chunk).try_for_each(|_| launch())?;
        second.record(stream)?;
        stream.synchronize()?;
        batch += second.micros_since(first)?;
    }
    samples.batches.push(batch / passes.iterations as f64 * per_call);
    for chunk in passes.chunks(passes.iterations) {
        launch()?;
        first.record(stream)?;
        for event in &behind[..chunk] {
            launch()?;
            event.record(stream)?;
        }
        stream.synchronize()?;
        for (before, after) in events.iter().zip(&behind[..chunk]) {
            samples.device.push(after.micros_since(before)? * per_call);
        }
    }
    for _ in 0..passes.iterations {
        let start = Instant::now();
        launch()?;
        stream.synchronize()?;
        samples.host.push(start.elapsed().as_secs_f64() * 1e6 * per_call);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_go_in_chunks_that_add_up() {
        let passes = Passes { warmup: 0, iterations: 150, in_flight: 64, calls: 1 };
        assert_eq!(passes.chunks(passes.iterations).collect::<Vec<_>>(), [64, 64, 22]);
        assert_eq!(passes.chunks(passes.warmup).count(), 0);
    }
}
