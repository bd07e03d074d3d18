//! Operations as streams see them: copies to page-locked memory, a host function that exchanges it with the other
//! ranks, and copies back. What a group has for one communicator is one job.
//!
//! Operations of one communicator follow each other in the order in which they are issued, also from different streams
//! (by events), and within one capture in the order in which they are captured.
//!
//! The host function knows its job by number: a graph that is launched after its communicator's end finds it and
//! exchanges nothing. What a captured job has is kept for as long as the process lives, because nothing tells when the
//! last graph that has it is gone.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::call::Call;
use crate::collective::{Collective, Ranks};
use crate::comm::{Communicator, Latest, Order};
use crate::cuda::{self, Event};
use crate::element::Scale;
use crate::failure::{NcclError, Result};
use crate::staging::Staging;

/// Device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

/// An operation that was asked for and is found to be in order.
pub(crate) struct Task {
    pub(crate) communicator: Arc<Communicator>,
    pub(crate) what: TaskKind,
    pub(crate) input: Option<Buffer>,
    pub(crate) output: Option<Buffer>,
    /// The factor of a pre-multiplied sum, if it is on the device.
    pub(crate) scalar: Option<Buffer>,
    pub(crate) stream: usize,
}

/// What a task does with its input and output.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TaskKind {
    Collective(Collective),
    Send { peer: usize, call: Call },
    Receive { peer: usize, call: Call },
}

/// A task with its memory on the host.
struct Step {
    what: TaskKind,
    input: Option<Staging>,
    output: Option<Staging>,
    scalar: Option<Staging>,
}

struct Job {
    communicator: Arc<Communicator>,
    steps: Vec<Step>,
}

static JOBS: Mutex<Option<HashMap<usize, Arc<Job>>>> = Mutex::new(None);

fn jobs<T>(body: impl FnOnce(&mut HashMap<usize, Arc<Job>>) -> T) -> T {
    body(JOBS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Issues the tasks of one communicator.
pub(crate) fn launch(tasks: &[Task]) -> Result<()> {
    let Some(first) = tasks.first() else { return Ok(()) };
    match_own_messages(tasks)?;
    let communicator = &first.communicator;
    let _current = cuda::Current::push(communicator.device.context)?;
    let capture = cuda::capture(first.stream as cuda::Handle)?;
    let job = Arc::new(Job {
        communicator: Arc::clone(communicator),
        steps: tasks.iter().map(|task| Step::new(task, communicator)).collect::<Result<_>>()?,
    });
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut order = communicator.order.lock().unwrap_or_else(PoisonError::into_inner);
    // From here on copies may be under way. Where something fails the job stays in the table, and so its memory.
    jobs(|jobs| jobs.insert(number, Arc::clone(&job)));
    issue(tasks, &job, number, capture, &mut order)
}

/// The other streams of a group, each once.
fn other_streams(tasks: &[Task]) -> Vec<usize> {
    let mut streams = Vec::new();
    for task in tasks {
        if task.stream != tasks[0].stream && !streams.contains(&task.stream) {
            streams.push(task.stream);
        }
    }
    streams
}

fn issue(tasks: &[Task], job: &Job, number: usize, capture: Option<u64>, order: &mut Order) -> Result<()> {
    let main = tasks[0].stream;
    let stream = main as cuda::Handle;
    let others = other_streams(tasks);
    for other in &others {
        let event = Event::new()?;
        event.record(*other as cuda::Handle)?;
        event.hold(stream)?;
    }
    let latest = if capture.is_some() { &mut order.captured } else { &mut order.eager };
    if let Some(latest) = latest.as_ref().filter(|latest| latest.capture == capture && latest.stream != main)
    {
        latest.event.hold(stream)?;
    }
    for (task, step) in tasks.iter().zip(&job.steps) {
        for (buffer, staging) in [(&task.input, &step.input), (&task.scalar, &step.scalar)] {
            if let (Some(buffer), Some(staging)) = (buffer, staging) {
                // SAFETY: the staging memory is the job's, which stays in the table until the stream has passed all of
                // this, and until then only what is in the stream uses it, in its order.
                unsafe { cuda::copy_to_host(staging.pointer(), buffer.address, buffer.bytes, stream)? };
            }
        }
    }
    cuda::launch_host_function(stream, perform, number)?;
    for (task, step) in tasks.iter().zip(&job.steps) {
        if let (Some(buffer), Some(staging)) = (&task.output, &step.output) {
            // SAFETY: as above.
            unsafe { cuda::copy_to_device(buffer.address, staging.pointer(), buffer.bytes, stream)? };
        }
    }
    if capture.is_none() {
        cuda::launch_host_function(stream, release, number)?;
    }
    let event = match latest.take() {
        Some(old) => old.event,
        None => Event::new()?,
    };
    event.record(stream)?;
    for other in &others {
        event.hold(*other as cuda::Handle)?;
    }
    *latest = Some(Latest { event, stream: main, capture });
    Ok(())
}

/// Messages to the rank itself are matched within a group alone: nobody else could.
fn match_own_messages(tasks: &[Task]) -> Result<()> {
    let mut sent = VecDeque::new();
    let mut received = VecDeque::new();
    for task in tasks {
        let rank = task.communicator.ready()?.rank;
        match task.what {
            TaskKind::Send { peer, .. } if peer == rank => sent.extend(task.input.map(|buffer| buffer.bytes)),
            TaskKind::Receive { peer, .. } if peer == rank => {
                received.extend(task.output.map(|buffer| buffer.bytes))
            }
            _ => {}
        }
    }
    if sent == received {
        return Ok(());
    }
    Err(NcclError::usage(format!(
        "a group sends messages of {sent:?} bytes to the rank itself, and receives such of {received:?}"
    )))
}

impl Step {
    fn new(task: &Task, communicator: &Communicator) -> Result<Self> {
        let stage = |buffer: &Option<Buffer>| {
            buffer.map(|buffer| Staging::take(communicator.device.context, buffer.bytes)).transpose()
        };
        Ok(Self {
            what: task.what,
            input: stage(&task.input)?,
            output: stage(&task.output)?,
            scalar: stage(&task.scalar)?,
        })
    }

    fn input(&self) -> &[u8] {
        // SAFETY: this is asked for in the job's host function alone, when the copies before it are done and those
        // after it have not begun.
        self.input.as_ref().map_or(&[], |staging| unsafe { staging.bytes() })
    }

    #[allow(clippy::mut_from_ref)] // the memory is not part of the step
    fn output(&self) -> &mut [u8] {
        // SAFETY: as above; each host function asks for it once, and a job's does not run twice at a time, because a
        // communicator's `running` is held.
        self.output.as_ref().map_or(&mut [], |staging| unsafe { staging.bytes_mut() })
    }

    /// The operation, with its factor if that was on the device.
    fn collective(&self, collective: Collective) -> Collective {
        let mut collective = collective;
        if let (Some(staging), Some(reduction)) = (&self.scalar, &mut collective.reduction) {
            let mut factor = [0; 8];
            // SAFETY: as above.
            factor[..staging.len()].copy_from_slice(unsafe { staging.bytes() });
            reduction.scale = Scale::Before(factor);
        }
        collective
    }
}

impl Job {
    fn run(&self) -> Result<()> {
        let ready = self.communicator.ready()?;
        let ranks = Ranks { mesh: &ready.mesh, rank: ready.rank, size: ready.size };
        for step in &self.steps {
            if let TaskKind::Collective(collective) = step.what {
                step.collective(collective).run(ranks, step.input(), step.output())?;
            }
        }
        self.exchange(ranks)
    }

    /// Sends and receives, all at the same time.
    fn exchange(&self, ranks: Ranks<'_>) -> Result<()> {
        let mut own = VecDeque::new();
        for step in &self.steps {
            match step.what {
                TaskKind::Send { peer, .. } if peer == ranks.rank => own.push_back(step.input()),
                TaskKind::Send { peer, call } => ranks.mesh.send(peer, &call, 0, step.input()),
                _ => {}
            }
        }
        for step in &self.steps {
            match step.what {
                TaskKind::Receive { peer, .. } if peer == ranks.rank => {
                    let message = own.pop_front().filter(|message| message.len() == step.output().len());
                    let missing = || NcclError::internal("a message of the rank to itself is missing");
                    step.output().copy_from_slice(message.ok_or_else(missing)?);
                }
                TaskKind::Receive { peer, call } => ranks.mesh.receive(peer, &call, 0, step.output())?,
                _ => {}
            }
        }
        for step in &self.steps {
            match step.what {
                TaskKind::Send { peer, .. } if peer != ranks.rank => ranks.mesh.flush(peer)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The host function between the copies.
extern "C" fn perform(number: *mut c_void) {
    let Some(job) = jobs(|jobs| jobs.get(&(number as usize)).cloned()) else { return };
    let communicator = &job.communicator;
    let _alone = communicator.running.lock().unwrap_or_else(PoisonError::into_inner);
    if communicator.is_aborted() {
        return;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| job.run()));
    let outcome = outcome.unwrap_or_else(|_| Err(NcclError::internal("an operation panicked")));
    if let Err(failure) = outcome
        && !communicator.is_aborted()
    {
        communicator.fail(failure);
    }
}

/// The host function behind everything.
extern "C" fn release(number: *mut c_void) {
    let job = jobs(|jobs| jobs.remove(&(number as usize)));
    // Its memory goes back when nothing is locked.
    drop(job);
}
