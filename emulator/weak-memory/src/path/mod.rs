//! The longest dependent path through kernels that run on several devices at once, counted.
//!
//! [`trace`] runs what is queued in a [`Session`] thread by thread, one launch a device, all of which begin together. It
//! knows whose memory every address is. Every register, every word of memory and every barrier carries, beside its
//! value, the *moment* from which it is there: the end of the longest path of steps that it had to wait for.
//!
//! **Steps**, and what each adds to a path:
//!
//! | step | adds |
//! |---|---|
//! | load or atomic on the own device's memory | 1 local access |
//! | store to the own device's memory, until it is done | 1 local access |
//! | load of another device's memory; atomic there, if its result is used | 1 round trip |
//! | store to another device's memory (signal, packet, data), until it is there | 1/2 round trip |
//! | the same, until its acknowledgement is back | 1 round trip |
//! | access to host memory | 1 host access |
//! | fence of system scope, or the one that a release of system scope begins with | 1 system fence |
//! | the same of gpu or cluster scope | 1 gpu fence |
//!
//! Parameters, constants, shared memory, registers and arithmetic add nothing.
//!
//! **What waits for what.**
//! - An instruction waits for the registers that it reads, its guard among them. A memory access, a barrier and a fence
//!   wait besides for *control*: for the predicates of all branches that the thread has come through. (Also of those
//!   that have joined again: a warp that waits at a branch issues nothing behind it meanwhile.) Loads that wait for
//!   nothing of one another are under way together, and count once.
//! - A load waits for what was stored to its address, wherever that came from.
//! - A store is *posted*: nobody waits until it is done but a fence. The way of a store to another device ends where a
//!   load sees it.
//! - A fence of gpu scope or wider, or a release, waits until all earlier stores of its thread are done (to another
//!   device's memory: acknowledged) and all its earlier loads. It waits also for the stores of those threads that the
//!   thread met at a barrier since, because a release is cumulative (PTX ISA, "Causality Order"). What comes behind a
//!   fence waits for it. Fences of block scope cost nothing.
//! - What comes behind an acquire waits for it. An acquire is no fence: it is a load, and the machine code has none.
//! - A barrier lets all go when the last has come; it does not wait for stores.
//! - **A wait counts as the one look that succeeds.** A strong load of an address that the thread has looked at before,
//!   with no store, atomic or barrier in between, is the same wait: control goes back to where it was before the first
//!   look. And a strong load is executed only when no thread can do anything else, so that the first look succeeds
//!   wherever it can.
//!
//! **What is told.** Of all threads of all devices the longest path to a store into the ranges that the caller names
//! (the *result*), with that store; then to the *end*, the last step of any thread, and to where also the stores to
//! other devices that nobody waits for are *acknowledged*. Of paths that are as long one is told.
//! Lengths compare by host accesses, then round trips, local accesses, system fences, gpu fences ([`Length`]).
//!
//! **What it is not**: time. Contention, bandwidth, caches (a second read of the same line counts like the first) and
//! the order in which an assembler issues are left out; what nobody needs may be issued early or late.
mod error;
mod graph;
mod length;
mod machine;
mod memory;
mod thread;

use std::ops::Range;

pub use self::error::PathError;
pub use self::length::{Length, StepKind};

use self::graph::{Moment, Node};
use self::machine::Machine;
use crate::adversary::Session;

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is.
    pub kind: StepKind,
    /// Whose memory: the label of the address, or the address. Empty for a fence.
    pub place: String,
    /// The device that did it.
    pub device: usize,
    /// The block's linear index.
    pub block: usize,
    /// The thread's linear index in the block.
    pub thread: usize,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The text of that line.
    pub text: String,
}

/// A longest path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Its length.
    pub length: Length,
    /// Its steps, in order.
    pub steps: Vec<Step>,
}

impl Path {
    /// Local accesses, split where the path goes from one device to another: before the first signal or packet leaves,
    /// from its look on to the second, and so on.
    pub fn local_by_phase(&self) -> Vec<u16> {
        let mut phases = vec![0];
        for step in &self.steps {
            match (step.kind, phases.last_mut()) {
                (StepKind::Way, _) => phases.push(0),
                (kind, Some(last)) if kind.is_local() => *last += 1,
                _ => {}
            }
        }
        phases
    }

    /// Stores to other devices for whose acknowledgement a fence on the path waits.
    pub fn acknowledgements(&self) -> usize {
        self.steps.iter().filter(|step| step.kind == StepKind::Acknowledged).count()
    }
}

/// What [`trace`] found.
#[derive(Debug)]
pub struct Traced {
    /// To the last store of a result; `None` if there was none.
    pub result: Option<Path>,
    /// To the last step of any thread, without acknowledgements that nobody waits for.
    pub end: Path,
    /// To the last step, with all acknowledgements: what the next kernel of a stream waits for.
    pub acknowledged: Path,
    /// PTX instructions executed, over all threads.
    pub instructions: u64,
    machine: Machine,
}

impl Traced {
    /// Bytes of memory as the kernels left it.
    ///
    /// # Panics
    /// If the range is not within one allocation.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        self.machine.read(address, bytes).unwrap_or_else(|error| panic!("read of {address:#x}: {error}"))
    }
}

/// Runs what is queued in `session`, which stays as it is, and follows the longest path to the stores into `results`.
///
/// ```
/// use meshreduce_emulator_weak_memory::adversary::{Options, Session};
/// use meshreduce_emulator_weak_memory::path;
/// use meshreduce_emulator_ptx::{Launch, Module};
///
/// let text = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b) {
///     .reg .b64 %rd<4>; .reg .b32 %r<2>;
///     ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b];
///     ld.global.u64 %rd3, [%rd1]; ld.global.u32 %r1, [%rd3]; st.global.u32 [%rd2], %r1; ret; }";
/// let kernel = Module::parse(text)?.kernel("k").ok_or("no kernel")?;
/// let mut session = Session::new(Options::default());
/// let (here, there) = (session.device(), session.device());
/// let (table, output) = (session.allocate(here, 8), session.allocate(here, 4));
/// let remote = session.allocate(there, 4);
/// session.write(table, &remote.to_le_bytes());
/// let params = [table, output].iter().flat_map(|a| a.to_le_bytes()).collect();
/// session.launch(here, Launch { kernel, grid: [1; 3], block: [1; 3], params, dynamic_shared: 0 });
/// let path = path::trace(&session, &[output..output + 4])?.result.ok_or("no result")?;
/// assert_eq!((path.length.trips(), path.length.local), (1.0, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`PathError`] if a device has several launches, or a kernel goes wrong or does not end.
pub fn trace(session: &Session, results: &[Range<u64>]) -> Result<Traced, PathError> {
    let mut machine = Machine::new(session, results)?;
    machine.run()?;
    let graph = machine.graph();
    let path = |moment: Moment| Path {
        length: graph.length(moment),
        steps: graph.path(moment).iter().map(|node| step(session, &machine, node)).collect(),
    };
    Ok(Traced {
        result: machine.result().map(path),
        end: path(graph.latest(|kind| kind != StepKind::Acknowledged)),
        acknowledged: path(graph.latest(|_| true)),
        instructions: machine.instructions(),
        machine,
    })
}

fn step(session: &Session, machine: &Machine, node: &Node) -> Step {
    let who = node.who;
    let (kernel, line) = machine.line(who);
    let place = if node.address == 0 { String::new() } else { session.name_of(node.address) };
    Step {
        kind: node.kind,
        place,
        device: usize::from(who.device),
        block: who.block as usize,
        thread: usize::from(who.thread),
        line,
        text: kernel.line_text(line).to_owned(),
    }
}
