//! The direct executor: thread by thread, on host memory, with host atomics.
//!
//! A thread runs until it must wait, and then the next one does. Every scalar access to device memory is one host
//! atomic of its width, at least as ordered as the PTX operation, so that emulated races are no races in Rust's sense.

mod barrier;
mod memory;
mod spin;
mod thread;

use std::sync::Arc;

use self::barrier::BarrierState;
use self::memory::Memory;
use self::spin::Spin;
use super::interface::{AddressSpace, Block, Executor, Turn, TurnEnd};
use meshreduce_emulator_ptx::{BARRIERS, Fault, FaultKind, Launch};

/// Creates blocks that run directly on host memory.
///
/// # Panics
///
/// Its blocks panic if an [`AddressSpace`] gives a region whose host address is not congruent to its device address
/// modulo 16.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectExecutor;

impl Executor for DirectExecutor {
    fn block(&self, launch: &Arc<Launch>, index: [u32; 3]) -> Box<dyn Block> {
        Box::new(DirectBlock::new(launch.clone(), index))
    }
}

struct DirectBlock {
    launch: Arc<Launch>,
    index: [u32; 3],
    /// The slots of all threads, one thread after the other.
    slots: Vec<u64>,
    slots_per_thread: usize,
    threads: Vec<Thread>,
    /// Threads that can run, in the order in which they will.
    runnable: Vec<u32>,
    live: u32,
    barriers: [BarrierState; BARRIERS],
    memory: Memory,
    spin: Spin,
    /// Instructions so far, the block's clock.
    executed: u64,
}

struct Thread {
    pc: u32,
    state: State,
    /// It spun in its last turn.
    spun: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Runnable,
    AtBarrier,
    /// Waits at `bar.warp.sync` for the lanes of the mask.
    AtWarpBarrier(u32),
    Exited,
}

/// Why a thread stopped running.
enum StopReason {
    /// Its share of the budget is used up.
    Budget,
    Spinning,
    /// It waits or has exited; the state says which.
    Waiting,
    Fault(FaultKind),
}

impl DirectBlock {
    fn new(launch: Arc<Launch>, index: [u32; 3]) -> Self {
        let threads = launch.threads();
        let slots_per_thread = launch.kernel.slots();
        let mut slots = vec![0; slots_per_thread * threads as usize];
        if slots_per_thread > 0 {
            for (thread, own) in slots.chunks_exact_mut(slots_per_thread).enumerate() {
                launch.begin(own, index, thread as u32);
            }
        }
        Self {
            memory: Memory::new(&launch, threads as usize),
            slots,
            slots_per_thread,
            threads: (0..threads).map(|_| Thread { pc: 0, state: State::Runnable, spun: false }).collect(),
            runnable: (0..threads).collect(),
            live: threads,
            barriers: Default::default(),
            spin: Spin::new(),
            executed: 0,
            index,
            launch,
        }
    }

    fn fault(&self, thread: u32, kind: FaultKind) -> TurnEnd {
        let kernel = &self.launch.kernel;
        let pc = self.threads[thread as usize].pc as usize;
        let line = kernel.code.get(pc).map_or(0, |step| step.line);
        TurnEnd::Fault(Box::new(Fault {
            kernel: kernel.name.clone(),
            line,
            text: kernel.line_text(line).to_owned(),
            block: self.index,
            thread: self.launch.thread_index(thread),
            kind,
        }))
    }

    /// The thread that waits at a barrier that cannot complete any more because threads have exited, and why.
    fn deserted(&self) -> Option<(u32, String)> {
        if self.live == self.threads.len() as u32 {
            return None;
        }
        let (id, barrier) = self
            .barriers
            .iter()
            .enumerate()
            .find(|(_, barrier)| barrier.everyone && !barrier.waiting.is_empty())?;
        let gone = self.threads.len() as u32 - self.live;
        Some((barrier.waiting[0].thread, format!("{}; {gone} threads have exited", barrier.describe(id))))
    }

    /// Nobody can run: where everybody is.
    fn stuck(&self) -> TurnEnd {
        let described: Vec<String> = self
            .barriers
            .iter()
            .enumerate()
            .filter(|(_, barrier)| !barrier.waiting.is_empty())
            .map(|(id, barrier)| barrier.describe(id))
            .collect();
        let waits = |thread: &Thread| thread.state != State::Exited;
        let thread = self.threads.iter().position(waits).unwrap_or(0) as u32;
        let text = if described.is_empty() {
            "threads of a warp wait at bar.warp.sync for lanes that do not come".to_owned()
        } else {
            described.join("; ")
        };
        self.fault(thread, FaultKind::BarrierDivergence(text))
    }
}

impl Block for DirectBlock {
    fn run(&mut self, memory: &dyn AddressSpace, budget: u64) -> Turn {
        let start = self.executed;
        let end = start.saturating_add(budget.max(1));
        let done = |block: &Self, turn: TurnEnd| Turn { instructions: block.executed - start, end: turn };
        loop {
            if self.live == 0 {
                return done(self, TurnEnd::Done);
            }
            if self.runnable.is_empty() {
                let stuck = self.stuck();
                return done(self, stuck);
            }
            let mut progress = false;
            let round = std::mem::take(&mut self.runnable);
            for (at, &thread) in round.iter().enumerate() {
                if self.executed >= end {
                    // Those whose turn it would have been come first next time.
                    let waited = std::mem::take(&mut self.runnable);
                    self.runnable = round[at..].iter().copied().chain(waited).collect();
                    return done(self, TurnEnd::Budget);
                }
                let stop = self.run_thread(thread, memory, end);
                self.threads[thread as usize].spun = matches!(stop, StopReason::Spinning);
                match stop {
                    StopReason::Budget => {
                        progress = true;
                        self.runnable.push(thread);
                    }
                    StopReason::Spinning => self.runnable.push(thread),
                    StopReason::Waiting => {
                        progress = true;
                        if let Some((waiter, text)) = self.deserted() {
                            let fault = self.fault(waiter, FaultKind::BarrierDivergence(text));
                            return done(self, fault);
                        }
                    }
                    StopReason::Fault(kind) => {
                        let fault = self.fault(thread, kind);
                        return done(self, fault);
                    }
                }
            }
            if !progress {
                return done(self, TurnEnd::Spinning);
            }
        }
    }
}
