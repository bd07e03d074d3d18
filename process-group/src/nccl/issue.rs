//! Issues what a call is made of.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard};

use meshreduce::RawStream;
use meshreduce_device::PrimaryContext;
use meshreduce_nccl_loader::{Progress, result};

use super::communicator::{CommunicatorError, GoesOn, Using, lock};
use super::plan::{Plan, Run, Step};

/// One call's way into NCCL.
pub(super) struct Issue<'a> {
    using: &'a Using<'a>,
    context: &'a PrimaryContext,
    issuing: &'a Mutex<()>,
    stream: RawStream,
    grouped: bool,
    /// A group is open on this thread, and no other thread issues calls on the device.
    open: Option<MutexGuard<'a, ()>>,
    goes_on: GoesOn<'a>,
    /// NCCL was asked for something.
    asked: bool,
}

impl<'a> Issue<'a> {
    pub(super) fn new(
        using: &'a Using<'a>,
        context: &'a PrimaryContext,
        issuing: &'a Mutex<()>,
        stream: RawStream,
        goes_on: GoesOn<'a>,
    ) -> Self {
        Self { using, context, issuing, stream, grouped: false, open: None, goes_on, asked: false }
    }

    /// Whether something may run, also after an error.
    pub(super) fn asked(&self) -> bool {
        self.asked
    }

    /// Issues all of it: in `Ok`, all is enqueued on the stream.
    ///
    /// # Safety
    ///
    /// The call's tensors are valid for what it does with them until it has ended; the stream is one of the context.
    pub(super) unsafe fn run(&mut self, plan: &Plan<'_>) -> Result<(), CommunicatorError> {
        self.grouped = plan.is_grouped();
        let _entered = self.context.enter()?;
        // SAFETY: the caller vouches for the tensors, of which the plan is, and for the stream.
        let ran = plan.run(&mut |step| unsafe { self.step(step) });
        // SAFETY: as above. After an error it only closes the group, which NCCL has given up.
        let closed = unsafe { self.close() };
        ran.and(closed)
    }

    /// # Safety
    ///
    /// As [`Issue::run`], for the step's memory.
    unsafe fn step(&mut self, step: Step) -> Result<(), CommunicatorError> {
        if step == Step::Cut {
            // SAFETY: the caller vouches for what was collected.
            return unsafe { self.close() };
        }
        if self.open.is_none() {
            let alone = lock(self.issuing, self.goes_on)?;
            if self.grouped {
                result::group_start()?;
            }
            self.open = Some(alone);
        }
        self.asked = true;
        // SAFETY: the caller vouches for the memory.
        let progress = unsafe { self.call(step) }?;
        if self.grouped {
            return Ok(());
        }
        self.open = None;
        self.using.done(progress, self.goes_on)
    }

    /// Ends the open group, if there is one.
    ///
    /// # Safety
    ///
    /// As [`Issue::run`], for what was collected.
    unsafe fn close(&mut self) -> Result<(), CommunicatorError> {
        let Some(alone) = self.open.take() else { return Ok(()) };
        if !self.grouped {
            return Ok(());
        }
        // SAFETY: the caller vouches for what was collected.
        let progress = unsafe { result::group_end() };
        drop(alone);
        self.using.done(progress?, self.goes_on)
    }

    /// # Safety
    ///
    /// As [`Issue::step`].
    unsafe fn call(&self, step: Step) -> Result<Progress, CommunicatorError> {
        let (comm, stream) = (self.using.handle(), self.stream.get());
        // SAFETY: the communicator is alive and this thread's, its context current; the caller vouches for memory and stream. Ranks
        // are those of the communicator, by the checks of the call. What is not looked at on this rank may be null.
        let progress = unsafe {
            match step {
                Step::AllReduce { input: Run { address, count, data }, output, op } => {
                    result::all_reduce(address, output, count, data, op, comm, stream)
                }
                Step::Reduce { input: Run { address, count, data }, output, op, root } => {
                    result::reduce(address, output, count, data, op, root as c_int, comm, stream)
                }
                Step::Broadcast { input, output: Run { address, count, data }, root } => {
                    result::broadcast(input, address, count, data, root as c_int, comm, stream)
                }
                Step::AllGather { input: Run { address, count, data }, output } => {
                    result::all_gather(address, output, count, data, comm, stream)
                }
                Step::ReduceScatter { input, output: Run { address, count, data }, op } => {
                    result::reduce_scatter(input, address, count, data, op, comm, stream)
                }
                Step::Send { input: Run { address, count, data }, peer } => {
                    result::send(address, count, data, peer as c_int, comm, stream)
                }
                Step::Recv { output: Run { address, count, data }, peer } => {
                    result::recv(address, count, data, peer as c_int, comm, stream)
                }
                Step::Cut => return Ok(Progress::Done),
            }
        };
        Ok(progress?)
    }
}
