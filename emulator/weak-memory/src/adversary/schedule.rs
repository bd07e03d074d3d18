//! Whose turn it is.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::thread::Thread;

/// How the next thread is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// One of the others, drawn from the seed.
    #[default]
    Mixed,
    /// Any thread, uniformly, for a few accesses.
    Random,
    /// By random priorities with a few points at which the running thread falls behind all others (Burckhardt et al.,
    /// "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010).
    Pct {
        /// Instructions between two such points, on average.
        distance: u32,
    },
    /// Random, while one device, block or warp sleeps for long.
    Hostile,
}

#[derive(Debug)]
pub(super) struct Schedule {
    strategy: Strategy,
    /// Most accesses of a turn.
    burst: u32,
    priorities: Vec<i64>,
    lowest: i64,
    change: u64,
    victim: Victim,
    until: u64,
    asleep: bool,
}

/// Who sleeps.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Device(u16),
    Block(u32),
    Warp(u32, u16),
}

impl Victim {
    fn includes(self, thread: &Thread) -> bool {
        match self {
            Victim::Device(device) => thread.device == device,
            Victim::Block(block) => thread.block == block,
            Victim::Warp(block, warp) => thread.block == block && thread.index / 32 == warp,
        }
    }
}

fn below(random: &mut ChaCha8Rng, end: u32) -> u32 {
    ((u64::from(random.next_u32()) * u64::from(end)) >> 32) as u32
}

impl Schedule {
    pub(super) fn new(strategy: Strategy, random: &mut ChaCha8Rng) -> Self {
        let strategy = match strategy {
            Strategy::Mixed => match below(random, 4) {
                0 | 1 => Strategy::Random,
                2 => Strategy::Pct { distance: [300, 3_000, 30_000][below(random, 3) as usize] },
                _ => Strategy::Hostile,
            },
            other => other,
        };
        Self {
            strategy,
            burst: [1, 3, 8, 40][below(random, 4) as usize],
            priorities: Vec::new(),
            lowest: 0,
            change: 0,
            victim: Victim::Device(0),
            until: 0,
            asleep: false,
        }
    }

    /// The index in `runnable` of the thread whose turn it is, and how many accesses it may make.
    pub(super) fn pick(
        &mut self,
        runnable: &[u32],
        threads: &[Thread],
        now: u64,
        calm: bool,
        random: &mut ChaCha8Rng,
    ) -> (usize, u32) {
        let any = below(random, runnable.len() as u32) as usize;
        let burst = 1 + below(random, self.burst);
        match self.strategy {
            _ if calm => (any, 8),
            Strategy::Random | Strategy::Mixed => (any, burst),
            Strategy::Pct { distance } => self.by_priority(runnable, distance, now, random),
            Strategy::Hostile => (self.awake(any, runnable, threads, now, random), burst),
        }
    }

    /// The thread waits for others: they come first.
    pub(super) fn yielded(&mut self, thread: u32) {
        if let Some(priority) = self.priorities.get_mut(thread as usize) {
            self.lowest -= 1;
            *priority = self.lowest;
        }
    }

    fn by_priority(
        &mut self,
        runnable: &[u32],
        distance: u32,
        now: u64,
        random: &mut ChaCha8Rng,
    ) -> (usize, u32) {
        let highest = runnable.iter().map(|&thread| thread as usize).max().unwrap_or(0);
        while self.priorities.len() <= highest {
            self.priorities.push(i64::from(random.next_u32()));
        }
        let first = runnable.iter().enumerate().max_by_key(|(_, thread)| self.priorities[**thread as usize]);
        let (index, &thread) = first.unwrap_or((0, &0));
        if now >= self.change {
            self.change = now + 1 + u64::from(below(random, 2 * distance));
            self.yielded(thread);
        }
        (index, 16)
    }

    fn awake(
        &mut self,
        any: usize,
        runnable: &[u32],
        threads: &[Thread],
        now: u64,
        random: &mut ChaCha8Rng,
    ) -> usize {
        if now >= self.until {
            self.asleep = !self.asleep && below(random, 4) > 0;
            let length = [500, 4_000, 30_000][below(random, 3) as usize];
            self.until = now + 1 + u64::from(below(random, length));
            let thread = &threads[runnable[any] as usize];
            self.victim = match below(random, 3) {
                0 => Victim::Device(thread.device),
                1 => Victim::Block(thread.block),
                _ => Victim::Warp(thread.block, thread.index / 32),
            };
        }
        if !self.asleep {
            return any;
        }
        let count = runnable.len();
        let awake = |&at: &usize| !self.victim.includes(&threads[runnable[at] as usize]);
        match (any..count).chain(0..any).find(awake) {
            Some(at) => at,
            None => {
                // Nobody else can run.
                self.until = now;
                any
            }
        }
    }
}
