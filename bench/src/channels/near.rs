//! The near end: opens ways, and measures what goes over them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use meshreduce_channels::{CounterDescriptor, Owned, Pages, RegionDescriptor};

use super::copies::window;
use super::count::driver_calls;
use super::far::{Answer, Far, Order};
use super::way::{Buffer, End, LONG, Single, Way};

/// A way that is open.
pub(crate) struct Open {
    pub(crate) way: Way,
    number: usize,
    end: End,
    /// Index among the far ends.
    far: usize,
    /// What a message of the last size took, in microseconds.
    guess: f64,
}

/// What one look at a way and size has brought.
#[derive(Default)]
pub(crate) struct Look {
    /// Half round trips, in microseconds.
    pub(crate) halves: Vec<f64>,
    /// Bytes a microsecond, of messages that follow each other.
    pub(crate) rate: Option<f64>,
}

/// Both kinds of far ends, made when they are first needed.
#[derive(Default)]
pub(crate) struct FarEnds([Option<Far>; 2]);

impl FarEnds {
    fn get(&mut self, index: usize) -> Result<&mut Far> {
        let slot = &mut self.0[index];
        if slot.is_none() {
            *slot = Some(if index == 0 { Far::thread()? } else { Far::process()? });
        }
        slot.as_mut().context("it was just made")
    }
}

impl Open {
    /// Opens a way.
    ///
    /// # Errors
    /// Why it cannot be, for people.
    pub(crate) fn new(way: &Way, number: usize, fars: &mut FarEnds) -> Result<Self> {
        let single = Single::new(way, false)?;
        let listener = single.listener()?;
        let index = usize::from(!way.one_process);
        let far = fars.get(index)?;
        let address = listener.address().to_string();
        far.order(Order::Open { way: number, what: way.clone(), address })?;
        // Who does not come has said why.
        let met = std::thread::scope(|scope| {
            let accepting = scope.spawn(|| listener.accept(Duration::from_secs(20)));
            let answer = far.answer();
            match answer {
                Ok(_) => accepting.join().map_err(|_| anyhow::anyhow!("a panic"))?.map_err(Into::into),
                Err(error) => Err(error),
            }
        });
        Ok(Self { way: way.clone(), number, end: single.met(met?)?, far: index, guess: 100.0 })
    }

    /// Messages of a size, there and back for about `slice`, then one behind another for about as long, or for as long as a few
    /// windows of them take.
    pub(crate) fn look(&mut self, bytes: usize, slice: Duration, fars: &mut FarEnds) -> Result<Look> {
        let micros = slice.as_secs_f64() * 1e6;
        let far = fars.get(self.far)?;
        let count = (micros / (2.0 * self.guess)).clamp(1.0, 1000.0) as usize;
        let halves = self.ping(bytes, count, far)?;
        self.guess = halves.iter().copied().fold(f64::INFINITY, f64::min).max(0.5);
        let window = window(bytes);
        // The first ones find nothing under way, and the last ones leave nothing behind.
        let count = (micros / self.guess).clamp(4.0 * window as f64, 2000.0) as usize;
        let rate = Some(self.flood(bytes, count, window, far)?);
        Ok(Look { halves, rate })
    }

    fn ping(&self, bytes: usize, count: usize, far: &mut Far) -> Result<Vec<f64>> {
        far.order(Order::Echo { way: self.number, bytes, count })?;
        let End { endpoint, remote, .. } = &self.end;
        let (mut out, mut back) = (self.end.filled(bytes)?, self.end.buffer(bytes)?);
        let mut halves = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            let coming = endpoint.recv(back, *remote, None);
            (out, _) = endpoint.send(out, *remote, None).wait(LONG).map_err(|failed| failed.error)?;
            (back, _) = coming.wait(LONG).map_err(|failed| failed.error)?;
            halves.push(begun.elapsed().as_secs_f64() * 1e6 / 2.0);
        }
        far.answer()?;
        let wrong = self.end.wrong(&back)?;
        if wrong > 0 {
            bail!("{wrong} of {bytes} bytes came back wrong");
        }
        Ok(halves)
    }

    fn flood(&self, bytes: usize, count: usize, window: usize, far: &mut Far) -> Result<f64> {
        // One more, before time is taken: when it has gone, the far end has its memory.
        far.order(Order::Take { way: self.number, bytes, count: count + 1, window, with_stream: false })?;
        let mut under_way: VecDeque<Owned<Buffer>> = VecDeque::new();
        let mut ready = (0..window.min(count)).map(|_| self.end.buffer(bytes)).collect::<Result<Vec<_>>>()?;
        let first =
            self.end.endpoint.send(ready.pop().context("a window of at least one")?, self.end.remote, None);
        ready.push(first.wait(LONG).map_err(|failed| failed.error)?.0);
        let begun = Instant::now();
        for _ in 0..count {
            let memory = match ready.pop() {
                Some(memory) => memory,
                None => {
                    let first = under_way.pop_front().context("as many as fit")?;
                    first.wait(LONG).map_err(|failed| failed.error)?.0
                }
            };
            under_way.push_back(self.end.endpoint.send(memory, self.end.remote, None));
        }
        for last in under_way {
            ready.push(last.wait(LONG).map_err(|failed| failed.error)?.0);
        }
        // Until the far end has them all.
        far.answer()?;
        let micros = begun.elapsed().as_secs_f64() * 1e6;
        // Giving memory back takes time, which is not the channel's.
        drop(ready);
        Ok((bytes * count) as f64 / micros)
    }

    /// Calls of the driver for a message of `bytes` bytes whose ends both wait for a stream, here and at the far end; of one process,
    /// both together. The least of several counts, because who is kept waiting asks the driver what it is waiting for.
    pub(crate) fn calls(&self, bytes: usize, fars: &mut FarEnds) -> Result<Option<(f64, Option<f64>)>> {
        const MESSAGES: usize = 128;
        const TURNS: usize = 4;
        let far = fars.get(self.far)?;
        let mut memory = self.end.buffer(bytes)?;
        let (mut here, mut there) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..TURNS {
            let Some(before) = driver_calls() else { return Ok(None) };
            let count = MESSAGES;
            far.order(Order::Take { way: self.number, bytes, count, window: 1, with_stream: true })?;
            for _ in 0..count {
                let sent = self.end.endpoint.send(memory, self.end.remote, self.end.after(true));
                (memory, _) = sent.wait(LONG).map_err(|failed| failed.error)?;
            }
            let Answer::Done { driver_calls: of_far } = far.answer()? else {
                bail!("an answer of another kind")
            };
            let each = |calls: u64| calls as f64 / MESSAGES as f64;
            here = here.min(each(driver_calls().unwrap_or(before) - before));
            there = there.min(of_far.map_or(f64::INFINITY, each));
        }
        Ok(Some((here, (!self.way.one_process).then_some(there))))
    }

    /// Writes batches of scattered pages; microseconds until the local memory may be reused, and until the far end has counted the
    /// batch, each the least of several.
    pub(crate) fn pages(&mut self, page: usize, count: u64, fars: &mut FarEnds) -> Result<(f64, f64)> {
        const TURNS: u64 = 5;
        let far = fars.get(self.far)?;
        let bytes = 2 * page * count as usize;
        let Answer::Offered { region: to, counter } = far.ask(Order::Offer { way: self.number, bytes })?
        else {
            bail!("an answer of another kind");
        };
        let own = self.end.context.register(self.end.filled(bytes)?).map_err(|failed| failed.error)?;
        let (mut reusable, mut counted) = (f64::INFINITY, f64::INFINITY);
        for turn in 0..TURNS {
            far.order(Order::Await { way: self.number, batches: turn + 1 })?;
            let begun = Instant::now();
            let written = self.write(&own, &to, &counter, page, count);
            written.wait(LONG)?;
            reusable = reusable.min(begun.elapsed().as_secs_f64() * 1e6);
            far.answer()?;
            counted = counted.min(begun.elapsed().as_secs_f64() * 1e6);
        }
        drop(own);
        far.ask(Order::Withdraw { way: self.number })?;
        Ok((reusable, counted))
    }

    fn write(
        &self,
        own: &meshreduce_channels::Region<Buffer>,
        to: &RegionDescriptor,
        counter: &CounterDescriptor,
        page: usize,
        count: u64,
    ) -> meshreduce_channels::Transfer {
        // Every other one, from the last to the first there: no two are one stretch.
        let numbers = (0..count).map(|index| (2 * index, 2 * (count - 1 - index)));
        self.end.endpoint.write(own, to, Pages::blocks(page as u64, numbers), counter, None)
    }

    /// Registers an allocation that was never registered, and again after that was given up; microseconds.
    pub(crate) fn registration(&self, bytes: usize) -> Result<(f64, f64)> {
        const TURNS: usize = 3;
        let (mut cold, mut warm) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..TURNS {
            let mut memory = self.end.filled(bytes)?;
            for least in [&mut cold, &mut warm] {
                let begun = Instant::now();
                let region = self.end.context.register(memory).map_err(|failed| failed.error)?;
                *least = least.min(begun.elapsed().as_secs_f64() * 1e6);
                memory =
                    region.close().wait(LONG).map_err(|_| anyhow::anyhow!("a region is not given back"))?;
            }
        }
        Ok((cold, warm))
    }

    /// Whether what it goes over is emulated.
    pub(crate) fn is_emulated(&self) -> bool {
        (self.way.device || self.way.kind == "gdr") && driver_calls().is_some()
    }

    /// Ends it on both sides.
    pub(crate) fn close(self, fars: &mut FarEnds) -> Result<()> {
        fars.get(self.far)?.ask(Order::Close { way: self.number })?;
        Ok(())
    }
}
