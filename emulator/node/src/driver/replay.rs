//! Launches of executable graphs.
//!
//! A launch takes its place in the order of the stream that it is launched into. Within it only dependencies order
//! nodes: chains of nodes become streams of their own for the time of the launch, so that branches run at the same
//! time as far as the devices' residency allows, kernels that wait for each other included. Launches of one executable
//! graph follow each other whatever their streams are, as the real driver promises.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use super::{
    Driver, Error, Handle, Result,
    context::Context,
    graph::{Planned, Work},
    stream::Target,
};
use crate::engine::{Event, Op, StreamKind};

/// Which nodes of a launch follow each other in one stream.
struct Chains {
    /// The chain of each node. Chain 0 is the stream of the launch.
    of: Vec<usize>,
    /// The latest node of each chain.
    tails: Vec<Option<usize>>,
    /// Whether a node of another chain, or the end of the launch, waits for the node.
    is_awaited: Vec<bool>,
}

impl Chains {
    /// A node goes to the end of a chain whose latest node it depends on, if there is one in its context; without
    /// dependencies to the empty chain 0; else to a chain of its own.
    fn new(context: &Context, nodes: &[Planned]) -> Self {
        let mut contexts = vec![context.handle];
        let mut chains = Self { of: Vec::new(), tails: vec![None], is_awaited: vec![false; nodes.len()] };
        for (index, node) in nodes.iter().enumerate() {
            let fits = |chain: usize| {
                contexts[chain] == node.context.handle
                    && match chains.tails[chain] {
                        Some(tail) => node.dependencies.contains(&tail),
                        None => node.dependencies.is_empty(),
                    }
            };
            let chain = (0..contexts.len()).find(|&chain| fits(chain)).unwrap_or_else(|| {
                contexts.push(node.context.handle);
                chains.tails.push(None);
                contexts.len() - 1
            });
            chains.of.push(chain);
            chains.tails[chain] = Some(index);
            for &dependency in node.dependencies.iter().filter(|&&other| chains.of[other] != chain) {
                chains.is_awaited[dependency] = true;
            }
        }
        for tail in chains.tails.iter().skip(1).flatten() {
            chains.is_awaited[*tail] = true;
        }
        chains
    }

    /// The nodes of other chains that a node waits for.
    fn awaited_by<'a>(&'a self, index: usize, node: &'a Planned) -> impl Iterator<Item = usize> + 'a {
        node.dependencies.iter().copied().filter(move |other| self.of[*other] != self.of[index])
    }
}

/// A record of a fresh event.
fn mark() -> (Arc<Event>, u64) {
    let event = Arc::<Event>::default();
    let number = event.record();
    (event, number)
}

impl Driver {
    /// `cuGraphUpload`: everything is where it is needed already.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph, [`Error::InvalidHandle`], or the failure of the stream's
    /// context.
    pub fn graph_upload(&self, executable: Handle, stream: Handle) -> Result<()> {
        self.executable(executable)?;
        self.target(stream).map(|_| ())
    }

    /// `cuGraphLaunch`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph, or a copy or set in it uses memory that has been freed;
    /// [`Error::InvalidHandle`] for a stream that is none, or if the module of a kernel has been unloaded; the failure
    /// of a context. Nothing is launched then. What a graph has lost is named on stderr, because the real driver
    /// would not say it.
    pub fn graph_launch(&self, executable: Handle, stream: Handle) -> Result<()> {
        let executable = self.executable(executable)?;
        let target = self.target(stream)?;
        if self.is_captured(&target)? {
            return self.capture(&target, Work::Child(Arc::clone(&executable.nodes)));
        }
        let launched = executable.launched.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = &executable.nodes;
        let ops = nodes.iter().map(|node| self.op(node)).collect::<Result<Vec<_>>>()?;
        let chains = Chains::new(&target.context, nodes);
        let mut targets = vec![target];
        for chain in 1..chains.tails.len() {
            let first = chains.of.iter().position(|&of| of == chain).ok_or(Error::Unknown)?;
            targets.push(self.branch(&nodes[first].context)?);
        }

        // A failed context takes nothing, and counts what it is given as reached. The answer is whether it had failed
        // before this launch: a fault in a branch that already runs belongs to the work, and the next call tells of
        // it. Everything is submitted all the same, so that nobody waits for what never comes.
        let wait = |(event, number): &(Arc<Event>, u64)| Op::Wait(Arc::clone(event), *number);
        let record = |(event, number): &(Arc<Event>, u64)| Op::Record(Arc::clone(event), *number);
        let outcome = self.submit(&targets[0], Op::Wait(Arc::clone(&launched), launched.recorded()));
        let submit = |chain: usize, op| {
            let _ = self.submit(&targets[chain], op);
        };
        let start = mark();
        submit(0, record(&start));
        (1..targets.len()).for_each(|chain| submit(chain, wait(&start)));
        let mut marks = HashMap::new();
        for (index, (node, op)) in nodes.iter().zip(ops).enumerate() {
            let chain = chains.of[index];
            chains
                .awaited_by(index, node)
                .filter_map(|other| marks.get(&other))
                .for_each(|mark| submit(chain, wait(mark)));
            submit(chain, op.unwrap_or_else(|| event_op(node)));
            if chains.is_awaited[index] {
                let mark = mark();
                submit(chain, record(&mark));
                marks.insert(index, mark);
            }
        }
        let ends = chains.tails.iter().skip(1).flatten();
        ends.filter_map(|tail| marks.get(tail)).for_each(|mark| submit(0, wait(mark)));
        submit(0, Op::Record(Arc::clone(&launched), launched.record()));
        for branch in &targets[1..] {
            self.engine_of(&branch.context)?.remove_stream(branch.id);
        }
        outcome
    }

    /// A stream for a branch of a launch.
    fn branch(&self, context: &Arc<Context>) -> Result<Target> {
        let health = Arc::clone(&context.health);
        let id = self.engine_of(context)?.add_stream(context.handle, health, StreamKind::NonBlocking);
        Ok(Target { context: Arc::clone(context), id, is_legacy: false, is_blocking: false })
    }

    /// What a node does in this launch; `None` for events, which say only when it is submitted.
    fn op(&self, node: &Planned) -> Result<Option<Op>> {
        node.context.check()?;
        let lost = |what: &str, error| {
            eprintln!("meshreduce emulator: cuGraphLaunch: {what}");
            error
        };
        Ok(Some(match &node.work {
            Work::Kernel { launch, shared_bytes, function } => {
                if function.strong_count() == 0 {
                    let name = &launch.kernel.name;
                    let what = format!("the module of the graph's kernel {name} has been unloaded");
                    return Err(lost(&what, Error::InvalidHandle));
                }
                Op::Launch { launch: Arc::clone(launch), shared_bytes: *shared_bytes }
            }
            Work::Copy { to, from, bytes } => self
                .copy_op(*to, *from, *bytes)
                .map_err(|error| lost("a copy of the graph uses memory that has been freed", error))?,
            Work::Set { to, pattern, count } => self
                .set_op(*to, *pattern, *count)
                .map_err(|error| lost("a set of the graph uses memory that has been freed", error))?,
            Work::Memory(op) => {
                let what = "a wait or write of the graph uses memory that has been freed";
                self.memory_op(*op).map_err(|error| lost(what, error))?
            }
            Work::Call(call) => {
                let call = Arc::clone(call);
                Op::Callback(Box::new(move || call()))
            }
            Work::Record(_) | Work::Wait(_) => return Ok(None),
            Work::Child(_) | Work::Empty => Op::Run(Box::new(|| {})),
        }))
    }
}

/// A record of, or wait for, an event that others use too.
fn event_op(node: &Planned) -> Op {
    match &node.work {
        Work::Record(event) => event.record_op(),
        Work::Wait(event) => event.wait_op(),
        _ => Op::Run(Box::new(|| {})),
    }
}
