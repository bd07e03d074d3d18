//! One of MPI's non-blocking calls, with the memory that it works on.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::num::NonZero;

use ::mpi::ffi;

use super::arithmetic::{Reductions, datatype, divide};
use super::communicator::{Communicator, int};
use super::error::{MpiError, check};
use super::staging::Block;
use crate::call::Call;
use crate::tensor::{Parts, Tensor};
use crate::types::{DType, ReduceOp};
use crate::work::Outcome;

/// What calls are made on.
#[derive(Clone, Copy)]
pub(super) struct On<'a> {
    pub(super) communicator: &'a Communicator,
    pub(super) reductions: &'a Reductions,
    pub(super) rank: usize,
    pub(super) world_size: NonZero<usize>,
}

/// A call of MPI's that was started. It must not be dropped before it has ended: MPI uses its memory. Who gives up on it
/// forgets it.
#[derive(Debug)]
pub(super) struct Job {
    request: ffi::MPI_Request,
    /// What MPI reads.
    send: Block,
    /// What MPI writes.
    recv: Block,
    /// Counts and displacements, which MPI reads until the end.
    lengths: [Lengths; 2],
    /// Where the result goes, in the caller's memory.
    outputs: Vec<Tensor>,
    dtype: DType,
    /// Of an average.
    divisor: Option<NonZero<usize>>,
    is_receive: bool,
}

// SAFETY: the memory is its own, and MPI's handles can be used by any thread.
unsafe impl Send for Job {}

/// How long ranks' parts are, and where they begin, in elements.
#[derive(Debug, Default)]
struct Lengths {
    counts: Vec<c_int>,
    starts: Vec<c_int>,
}

impl Lengths {
    fn of(parts: &Parts<'_>, world_size: usize) -> Result<Self, MpiError> {
        let mut lengths = Self::default();
        let mut start = 0;
        for rank in 0..world_size {
            let count = match parts {
                Parts::Split { counts, .. } => counts[rank],
                parts => parts.part(rank, world_size).count,
            };
            lengths.counts.push(int(count)?);
            lengths.starts.push(int(start)?);
            start += count;
        }
        int(start)?;
        Ok(lengths)
    }

    /// The length of all parts, if they have the same.
    fn equal(&self) -> Option<c_int> {
        let first = *self.counts.first()?;
        self.counts.iter().all(|count| *count == first).then_some(first)
    }
}

impl Job {
    /// One that is to be started.
    ///
    /// # Safety
    ///
    /// `inputs` are valid for reads.
    unsafe fn new(dtype: DType, inputs: &[Tensor], outputs: &[Tensor]) -> Self {
        Self {
            // SAFETY: a constant of MPI's.
            request: unsafe { ffi::RSMPI_REQUEST_NULL },
            // SAFETY: the caller vouches for them.
            send: unsafe { Block::packed(inputs) },
            recv: Block::new(outputs.iter().map(Tensor::bytes).sum()),
            lengths: Default::default(),
            outputs: outputs.to_vec(),
            dtype,
            divisor: None,
            is_receive: false,
        }
    }

    /// Starts a call that is neither a batch nor of a type that MPI lacks. MPI is entered.
    ///
    /// # Safety
    ///
    /// The call was checked, and its inputs are valid for reads. If an output is to be written, [`Job::test`] says so.
    pub(super) unsafe fn start(call: &Call<'_>, on: On<'_>) -> Result<Self, MpiError> {
        let dtype = call.dtype().unwrap_or(DType::U8);
        let parts = |tensors: &[Tensor]| int(tensors.iter().map(|tensor| tensor.count).sum());
        let (sent, received) = (parts(call.inputs())?, parts(call.outputs())?);
        // A broadcast has one block, which the root fills: what is sent is also what is received.
        let (inputs, outputs) = match call {
            Call::Broadcast { root, .. } if *root == on.rank => (call.inputs(), &[][..]),
            Call::Broadcast { .. } => (&[][..], call.outputs()),
            call => (call.inputs(), call.outputs()),
        };
        // SAFETY: the caller vouches for the inputs.
        let mut job = unsafe { Job::new(dtype, inputs, outputs) };
        if let Some(lengths) = lengths_of(call, on.world_size.get())? {
            job.lengths = lengths;
        }
        job.divisor = (call.op() == Some(ReduceOp::Avg)).then_some(on.world_size);
        job.is_receive = matches!(call, Call::Recv { .. });
        // SAFETY: blocks and lengths are those of the call, as it was checked, and live until the request has ended.
        unsafe { job.launch(call, on, sent, received) }?;
        Ok(job)
    }

    /// # Safety
    ///
    /// Blocks, lengths and counts are those of the call; the job lives until the request has ended.
    unsafe fn launch(
        &mut self,
        call: &Call<'_>,
        on: On<'_>,
        sent: c_int,
        received: c_int,
    ) -> Result<(), MpiError> {
        let comm = on.communicator.raw();
        // A call without a tensor has no type; bytes then.
        let Some(kind) = datatype(self.dtype) else { return Ok(()) };
        let op = |op: ReduceOp| on.reductions.handle(op, self.dtype);
        let (from, to) = (self.send.pointer(), self.recv.pointer());
        let [input, output] = &self.lengths;
        let request = &mut self.request;
        let root = int(call.root().unwrap_or(0))?;
        // SAFETY: see above.
        unsafe {
            match call {
                Call::AllReduce { op: how, .. } => check(
                    "MPI_Iallreduce",
                    ffi::MPI_Iallreduce(from, to, sent, kind, op(*how), comm, request),
                ),
                Call::Reduce { op: how, .. } => check(
                    "MPI_Ireduce",
                    ffi::MPI_Ireduce(from, to, sent, kind, op(*how), root, comm, request),
                ),
                Call::Broadcast { root: of, .. } => {
                    let block = if *of == on.rank { from } else { to };
                    check("MPI_Ibcast", ffi::MPI_Ibcast(block, sent, kind, root, comm, request))
                }
                Call::AllGather { .. } => match output.equal() {
                    Some(each) => check(
                        "MPI_Iallgather",
                        ffi::MPI_Iallgather(from, sent, kind, to, each, kind, comm, request),
                    ),
                    None => {
                        let (counts, starts) = (output.counts.as_ptr(), output.starts.as_ptr());
                        check(
                            "MPI_Iallgatherv",
                            ffi::MPI_Iallgatherv(from, sent, kind, to, counts, starts, kind, comm, request),
                        )
                    }
                },
                // Only the root knows whether parts are equal, so it is always the general function.
                Call::Gather { .. } => {
                    let (counts, starts) = (output.counts.as_ptr(), output.starts.as_ptr());
                    check(
                        "MPI_Igatherv",
                        ffi::MPI_Igatherv(from, sent, kind, to, counts, starts, kind, root, comm, request),
                    )
                }
                Call::Scatter { .. } => {
                    let (counts, starts) = (input.counts.as_ptr(), input.starts.as_ptr());
                    check(
                        "MPI_Iscatterv",
                        ffi::MPI_Iscatterv(
                            from, counts, starts, kind, to, received, kind, root, comm, request,
                        ),
                    )
                }
                Call::ReduceScatter { op: how, .. } => match input.equal() {
                    Some(each) => check(
                        "MPI_Ireduce_scatter_block",
                        ffi::MPI_Ireduce_scatter_block(from, to, each, kind, op(*how), comm, request),
                    ),
                    None => check(
                        "MPI_Ireduce_scatter",
                        ffi::MPI_Ireduce_scatter(
                            from,
                            to,
                            input.counts.as_ptr(),
                            kind,
                            op(*how),
                            comm,
                            request,
                        ),
                    ),
                },
                // A rank knows its own parts only, as above.
                Call::AllToAll { .. } => check(
                    "MPI_Ialltoallv",
                    ffi::MPI_Ialltoallv(
                        from,
                        input.counts.as_ptr(),
                        input.starts.as_ptr(),
                        kind,
                        to,
                        output.counts.as_ptr(),
                        output.starts.as_ptr(),
                        kind,
                        comm,
                        request,
                    ),
                ),
                Call::Send { peer, tag, .. } => {
                    let tag = c_int::try_from(*tag).unwrap_or(c_int::MAX);
                    check("MPI_Isend", ffi::MPI_Isend(from, sent, kind, int(*peer)?, tag, comm, request))
                }
                Call::Recv { peer, tag, .. } => {
                    let tag = c_int::try_from(*tag).unwrap_or(c_int::MAX);
                    let peer = peer.map_or(Ok(ffi::RSMPI_ANY_SOURCE), int)?;
                    check("MPI_Irecv", ffi::MPI_Irecv(to, received, kind, peer, tag, comm, request))
                }
                Call::Barrier { .. } => check("MPI_Ibarrier", ffi::MPI_Ibarrier(comm, request)),
                // Its calls are started one by one.
                Call::Batch(_) => Ok(()),
            }
        }
    }

    /// A message of the backend's own. MPI is entered.
    pub(super) fn message(
        communicator: &Communicator,
        to: usize,
        tag: c_int,
        bytes: &[u8],
    ) -> Result<Self, MpiError> {
        use crate::tensor::Buffer as _;
        // SAFETY: the bytes are borrowed; the block lives until the request has ended.
        unsafe {
            let mut job = Job::new(DType::U8, &[bytes.tensor()], &[]);
            let (from, count, to) = (job.send.pointer(), int(bytes.len())?, int(to)?);
            let (kind, comm) = (ffi::RSMPI_UINT8_T, communicator.raw());
            check("MPI_Isend", ffi::MPI_Isend(from, count, kind, to, tag, comm, &mut job.request))?;
            Ok(job)
        }
    }

    /// Sees whether the call has ended; if so, and it did well, the outputs are written. MPI is entered. Not to be called any
    /// more once it has ended.
    ///
    /// # Safety
    ///
    /// The outputs are valid for writes.
    pub(super) unsafe fn test(&mut self) -> Result<Option<Outcome>, MpiError> {
        let Some(status) = self.test_request()? else { return Ok(None) };
        let mut outcome = Outcome::default();
        if self.is_receive {
            let from = usize::try_from(status.MPI_SOURCE).unwrap_or(0);
            let sent = count_of(&status)?;
            if sent != self.recv.bytes() {
                return Err(MpiError::Shorter { from, sent, expected: self.recv.bytes() });
            }
            outcome = Outcome::from_rank(from);
        }
        if let Some(divisor) = self.divisor {
            // SAFETY: MPI is done with the block, which has elements of the call's type.
            unsafe { divide(&self.recv, self.dtype, divisor) };
        }
        // SAFETY: the caller vouches for the outputs, for which the block was made.
        unsafe { self.recv.unpack(&self.outputs) };
        Ok(Some(outcome))
    }

    /// Whether MPI is done with it, however that went, so that it can be dropped. The outputs are left alone. MPI is entered.
    pub(super) fn is_over(&mut self) -> bool {
        // SAFETY: a constant of MPI's.
        self.request == unsafe { ffi::RSMPI_REQUEST_NULL } || matches!(self.test_request(), Ok(Some(_)))
    }

    fn test_request(&mut self) -> Result<Option<ffi::MPI_Status>, MpiError> {
        let mut flag: c_int = 0;
        let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
        // SAFETY: the request is one of MPI's or its null; MPI writes the status, which is made of numbers.
        unsafe {
            check("MPI_Test", ffi::MPI_Test(&mut self.request, &mut flag, status.as_mut_ptr()))?;
            Ok((flag != 0).then(|| status.assume_init()))
        }
    }
}

/// Bytes of a message.
pub(super) fn count_of(status: &ffi::MPI_Status) -> Result<usize, MpiError> {
    let mut count: c_int = 0;
    // SAFETY: MPI reads the status and writes a number.
    unsafe { check("MPI_Get_count", ffi::MPI_Get_count(status, ffi::RSMPI_UINT8_T, &mut count))? };
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Of inputs and outputs, where they are parts.
fn lengths_of(call: &Call<'_>, world_size: usize) -> Result<Option<[Lengths; 2]>, MpiError> {
    let of = |parts: Option<&Parts<'_>>| {
        parts.map_or(Ok(Lengths::default()), |parts| Lengths::of(parts, world_size))
    };
    let (inputs, outputs) = match call {
        Call::AllGather { outputs, .. } => (None, Some(outputs)),
        Call::Gather { outputs, .. } => (None, outputs.as_ref()),
        Call::Scatter { inputs, .. } => (inputs.as_ref(), None),
        Call::ReduceScatter { inputs, .. } => (Some(inputs), None),
        Call::AllToAll { inputs, outputs } => (Some(inputs), Some(outputs)),
        _ => return Ok(None),
    };
    Ok(Some([of(inputs)?, of(outputs)?]))
}
