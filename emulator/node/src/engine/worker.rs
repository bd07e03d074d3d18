//! The device's thread: starts what may start, gives resident blocks their turns, and sleeps when all of them only
//! wait.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    task::Waker,
    time::{Duration, Instant},
};

use super::health::{Health, StickyError};
use super::pause::{Abandoned, Pauses};
use super::queue::{Op, Queues, Ready};
use super::residency::{Place, Places};
use super::shared::Shared;
use crate::exec::{Block, TurnEnd};
use meshreduce_emulator_ptx::{Fault, FaultKind, Launch};

/// Instructions of a turn: some milliseconds, so that blocks of one device look concurrent to each other.
const TURN: u64 = 200_000;
/// Kernels of one device that run at the same time (CUDA C++ Programming Guide, "Technical Specifications").
const CONCURRENT_KERNELS: usize = 128;
/// The first sleep when all resident blocks only wait; every further one is a quarter longer.
const SHORTEST_SLEEP: Duration = Duration::from_micros(20);
/// Sleeps grow to this, or to so many times what a look at all blocks costs, whichever is longer.
const LONG_SLEEP: Duration = Duration::from_millis(1);
const SLEEP_PER_LOOK: u32 = 40;
/// A waiting device notices what other processes did within this time.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);

/// The thread's function; ends when the engine is dropped.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut worker = Worker {
        shared,
        places: Places::new(&shared.setup.limits),
        grids: Vec::new(),
        resident: VecDeque::new(),
        next_grid: 0,
        rest: Rest::new(),
        pauses: Pauses::new(),
        abandoned: Abandoned::new(shared.setup.deadlock_after),
    };
    while worker.step() {}
}

struct Worker<'a> {
    shared: &'a Arc<Shared>,
    places: Places,
    /// Started kernels, oldest first.
    grids: Vec<Grid>,
    resident: VecDeque<Resident>,
    next_grid: u64,
    rest: Rest,
    /// Between looks at what nobody announces.
    pauses: Pauses,
    abandoned: Abandoned,
}

struct Grid {
    id: u64,
    stream: u64,
    context: u64,
    health: Arc<Health>,
    launch: Arc<Launch>,
    shared_bytes: u32,
    blocks: u64,
    /// Blocks that have had a place.
    placed: u64,
    /// Blocks that are done.
    done: u64,
}

struct Resident {
    grid: u64,
    place: Place,
    block: Box<dyn Block>,
}

/// How long it is that all resident blocks only wait.
struct Rest {
    /// Turns in a row that ended in spinning.
    turns: usize,
    look_began: Instant,
    sleep: Duration,
    since: Option<Instant>,
}

impl Rest {
    fn new() -> Self {
        Self { turns: 0, look_began: Instant::now(), sleep: SHORTEST_SLEEP, since: None }
    }

    fn over(&mut self) {
        *self = Self::new();
    }
}

impl Worker<'_> {
    /// One round: everything that may start, one turn, perhaps a sleep. False when the device shuts down.
    fn step(&mut self) -> bool {
        loop {
            let mut queues = self.shared.lock();
            if queues.shut_down {
                return false;
            }
            queues.nudged = false;
            if let Some((context, health)) = queues.to_stop() {
                drop(queues);
                // What comes later finds a context that has failed; the driver says that it is gone before it says so.
                self.fail(context, &health, StickyError::LaunchFailed);
                self.shared.lock().stopped(context);
                self.shared.done.notify_all();
                self.rest.over();
                continue;
            }
            let may_launch = self.grids.len() < CONCURRENT_KERNELS;
            let ready = if may_launch { queues.take_ready(&self.shared.waker) } else { None };
            let Some(ready) = ready else {
                if queues.polls && self.abandoned.is_over(|| queues.abandoned().is_some()) {
                    let stuck = queues.abandoned();
                    drop(queues);
                    self.give_up(stuck);
                    continue;
                }
                if self.resident.is_empty() {
                    self.idle(queues);
                    continue;
                }
                break;
            };
            drop(queues);
            self.start(ready);
            self.rest.over();
            self.pauses = Pauses::new();
        }
        self.turn();
        if !self.resident.is_empty() && self.rest.turns >= self.resident.len() {
            self.sleep();
        }
        true
    }

    /// Nothing to do until something is submitted or an event happens, or until the next look at what nobody announces.
    fn idle(&mut self, mut queues: MutexGuard<'_, Queues>) {
        if queues.polls {
            if !queues.nudged && !queues.shut_down {
                let pause = self.pauses.next();
                drop(self.shared.work.wait_timeout(queues, pause).unwrap_or_else(PoisonError::into_inner));
            }
            return;
        }
        while !queues.nudged && !queues.shut_down {
            queues = self.shared.work.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends a context with a stream that has long waited for an event that will not happen. (On real hardware it waits on.)
    fn give_up(&mut self, stuck: Option<(u64, Arc<Health>)>) {
        let Some((context, health)) = stuck else { return };
        eprintln!(
            "meshreduce emulator: {}: a stream waits for an event that a process has recorded which has ended before it happened",
            self.shared.setup.name
        );
        self.fail(context, &health, StickyError::LaunchTimeout);
        self.rest.over();
    }

    fn start(&mut self, ready: Ready) {
        let Ready { stream, context, health, op } = ready;
        if health.failure().is_some() {
            if let Op::Record(event, number) = op {
                wake(event.reach(number));
            }
            return self.complete(stream);
        }
        match op {
            Op::Run(run) => {
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    self.fail(context, &health, StickyError::LaunchFailed);
                }
                self.complete(stream);
            }
            Op::Wait(..) | Op::Until(..) => self.complete(stream),
            Op::Record(event, number) => {
                let waiting = event.reach(number);
                self.complete(stream);
                wake(waiting);
            }
            Op::Callback(run) => {
                let device = Arc::downgrade(self.shared);
                let returned = move || {
                    if let Some(device) = device.upgrade() {
                        device.finish(stream);
                    }
                };
                self.shared.callbacks.start(run, Box::new(returned));
            }
            Op::Launch { launch, shared_bytes } => {
                let blocks = launch.grid.iter().map(|&n| u64::from(n)).product();
                self.next_grid += 1;
                let id = self.next_grid;
                let (placed, done) = (0, 0);
                self.grids.push(Grid {
                    id,
                    stream,
                    context,
                    health,
                    launch,
                    shared_bytes,
                    blocks,
                    placed,
                    done,
                });
                self.place();
            }
        }
    }

    fn complete(&self, stream: u64) {
        self.shared.lock().complete(stream);
        self.shared.done.notify_all();
    }

    /// Gives blocks places, oldest kernel first. As on the real thing, a kernel's blocks do not overtake those of an
    /// older one that wait for a place.
    fn place(&mut self) {
        for grid in &mut self.grids {
            while grid.placed < grid.blocks {
                let Some(place) = self.places.take(grid.launch.threads(), grid.shared_bytes) else { return };
                let index = grid.launch.block_index(grid.placed);
                let block = self.shared.setup.executor.block(&grid.launch, index);
                self.resident.push_back(Resident { grid: grid.id, place, block });
                grid.placed += 1;
            }
        }
    }

    fn turn(&mut self) {
        let Some(mut resident) = self.resident.pop_front() else { return };
        let setup = &self.shared.setup;
        if self.rest.turns == 0 {
            self.rest.look_began = Instant::now();
        }
        let turn = catch_unwind(AssertUnwindSafe(|| resident.block.run(&*setup.memory, TURN)));
        let Ok(turn) = turn else {
            eprintln!("meshreduce emulator: {}: the executor failed (see the panic above)", setup.name);
            self.resident.push_back(resident);
            return self.fail_grid(StickyError::LaunchFailed);
        };
        setup.instructions.fetch_add(turn.instructions, Ordering::Relaxed);
        match turn.end {
            TurnEnd::Spinning => {
                self.rest.turns += 1;
                self.resident.push_back(resident);
            }
            TurnEnd::Budget => {
                self.rest.over();
                self.resident.push_back(resident);
            }
            TurnEnd::Done => {
                self.rest.over();
                self.places.give_back(resident.place);
                self.block_done(resident.grid);
            }
            TurnEnd::Fault(fault) => {
                self.rest.over();
                eprintln!("{}", report(&setup.name, &fault));
                self.resident.push_back(resident);
                self.fail_grid(failure(&fault.kind));
            }
        }
    }

    fn block_done(&mut self, id: u64) {
        if let Some(at) = self.grids.iter().position(|grid| grid.id == id) {
            let grid = &mut self.grids[at];
            grid.done += 1;
            if grid.done == grid.blocks {
                let grid = self.grids.remove(at);
                self.complete(grid.stream);
            }
        }
        self.place();
    }

    /// Ends the context of the block that ran last.
    fn fail_grid(&mut self, failure: StickyError) {
        let id = self.resident.back().map(|resident| resident.grid);
        let owner = self.grids.iter().find(|grid| Some(grid.id) == id);
        if let Some((context, health)) = owner.map(|grid| (grid.context, Arc::clone(&grid.health))) {
            self.fail(context, &health, failure);
        }
    }

    /// Ends a context: its kernels, and what its streams have not started.
    fn fail(&mut self, context: u64, health: &Health, failure: StickyError) {
        health.fail(failure);
        let (over, stay): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.grids).into_iter().partition(|grid| grid.context == context);
        self.grids = stay;
        let (places, resident) = (&mut self.places, &mut self.resident);
        resident.retain(|resident| {
            let stays = !over.iter().any(|grid| grid.id == resident.grid);
            if !stays {
                places.give_back(resident.place);
            }
            stays
        });
        let mut queues = self.shared.lock();
        for grid in &over {
            queues.complete(grid.stream);
        }
        let records = queues.drop_context(context);
        drop(queues);
        self.shared.done.notify_all();
        for (event, number) in records {
            wake(event.reach(number));
        }
        self.place();
    }

    /// All resident blocks have just looked and can only look again.
    fn sleep(&mut self) {
        let now = Instant::now();
        let since = *self.rest.since.get_or_insert(now);
        let waited = now - since;
        if waited >= self.shared.setup.deadlock_after && self.suspect_deadlock(waited) {
            return;
        }
        let look = now - self.rest.look_began;
        let queues = self.shared.lock();
        // What nobody announces is looked at more often than blocks that take long to look.
        let longest = if queues.polls { LONG_SLEEP } else { LONGEST_SLEEP };
        let cap = (look * SLEEP_PER_LOOK).clamp(LONG_SLEEP, longest);
        let sleep = self.rest.sleep.min(cap);
        self.rest.sleep = (sleep * 5 / 4).min(LONGEST_SLEEP);
        self.rest.turns = 0;
        if !queues.nudged && !queues.shut_down {
            drop(self.shared.work.wait_timeout(queues, sleep).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Ends the contexts of kernels that have waited without a place for all their blocks. Answers whether there are
    /// any.
    fn suspect_deadlock(&mut self, waited: Duration) -> bool {
        let stuck: Vec<_> =
            self.grids.iter().filter(|grid| grid.placed < grid.blocks && grid.placed > grid.done).collect();
        if stuck.is_empty() {
            return false;
        }
        eprintln!(
            "meshreduce emulator: {}: suspected residency deadlock: all {} resident blocks have only waited for {:.1} s, while blocks of their grids wait for a place:",
            self.shared.setup.name,
            self.resident.len(),
            waited.as_secs_f64()
        );
        for grid in &stuck {
            eprintln!(
                "  {}: {} of {} blocks resident, {} done, {} without a place",
                grid.launch.kernel.name,
                grid.placed - grid.done,
                grid.blocks,
                grid.done,
                grid.blocks - grid.placed
            );
        }
        let contexts: Vec<_> = stuck.iter().map(|grid| (grid.context, Arc::clone(&grid.health))).collect();
        for (context, health) in contexts {
            self.fail(context, &health, StickyError::LaunchTimeout);
        }
        self.rest.over();
        true
    }
}

fn wake(devices: Vec<Waker>) {
    devices.into_iter().for_each(Waker::wake);
}

fn failure(kind: &FaultKind) -> StickyError {
    match kind {
        FaultKind::OutOfBounds { .. } => StickyError::IllegalAddress,
        FaultKind::Misaligned { .. } => StickyError::MisalignedAddress,
        FaultKind::Trap | FaultKind::BarrierDivergence(_) => StickyError::LaunchFailed,
    }
}

fn report(device: &str, fault: &Fault) -> String {
    format!(
        "meshreduce emulator: {device}: kernel {} stopped: {}\n  line {}: {}\n  block {:?}, thread {:?}",
        fault.kernel,
        fault.kind,
        fault.line,
        fault.text.trim(),
        fault.block,
        fault.thread
    )
}
