//! Calls of different kinds with the buffers of one rank, for tests of captured graphs.

use cust::context::CurrentContext;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};
use cust_raw::CUresult;
use meshreduce::{Communicator, DType, Error, Lane, Limits, Op, StreamOrder, Work};
use meshreduce_checks::graph::Graph;
use meshreduce_checks::{inputs, reference};

/// An all-reduce.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The element type.
    pub dtype: DType,
    /// The operation.
    pub op: Op,
    /// Elements.
    pub count: usize,
    /// Input and output are the same memory.
    pub in_place: bool,
}

/// A call from its parts.
pub const fn call(dtype: DType, op: Op, count: usize, in_place: bool) -> Call {
    Call { dtype, op, count, in_place }
}

/// Different sizes, types and, with [`limits`], algorithms: all four of a full mesh, both of a hybrid cube mesh.
pub const CALLS: [Call; 6] = [
    call(DType::Bf16, Op::Sum, 2048, true),
    call(DType::Bf16, Op::Sum, 9001, true),
    call(DType::F32, Op::Max, 3, false),
    call(DType::F16, Op::Avg, 5000, false),
    call(DType::F32, Op::Sum, 2500, true),
    call(DType::Bf16, Op::Min, 1, true),
];

/// One-shot by packets to 1 KiB, two-shot by packets to 4 KiB, one-shot to 12 KiB, two-shot from there on.
pub fn limits() -> Limits {
    Limits {
        one_shot_ll: Some(1 << 10),
        two_shot_ll: Some(4 << 10),
        one_shot: 12 << 10,
        hybrid_cube_mesh_ll: Some(4 << 10),
        ..Limits::default()
    }
}

/// The buffers of one call on one rank, in the context that was current.
#[derive(Debug)]
pub struct Buffers {
    call: Call,
    /// Tells the messages of this call from those of others.
    case: usize,
    input: DeviceBuffer<u8>,
    output: DeviceBuffer<u8>,
}

impl Buffers {
    /// Zeroed buffers; `case` tells the messages of this call from those of others.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn new(case: usize, call: Call) -> Self {
        let bytes = call.count * call.dtype.size();
        let zeroed = || DeviceBuffer::from_slice(&vec![0; bytes]).expect("device memory");
        let buffers = Self { call, case, input: zeroed(), output: zeroed() };
        arrived();
        buffers
    }

    /// Those of several calls.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn all(calls: &[Call]) -> Vec<Self> {
        calls.iter().enumerate().map(|(case, call)| Self::new(case, *call)).collect()
    }

    fn message(&self, round: usize, rank: usize) -> Vec<u8> {
        inputs::message(42, self.case, round, rank, self.call.count, self.call.dtype)
    }

    /// Puts the message of this round into the input.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn write(&mut self, round: usize, rank: usize) {
        let message = self.message(round, rank);
        self.input.copy_from(&message).expect("the copy");
        arrived();
    }

    /// Enqueues or, if the stream is being captured, captures the call.
    ///
    /// # Errors
    /// The lane's.
    pub fn enqueue(&self, lane: &mut Lane, stream: &Stream) -> Result<Work, Error> {
        let Call { dtype, op, count, in_place } = self.call;
        let input = self.input.as_device_ptr().as_raw();
        let output = if in_place { input } else { self.output.as_device_ptr().as_raw() };
        let stream = StreamOrder::behind_last_call(stream.as_inner());
        // SAFETY: both buffers have `count` elements, and the tests keep them until all replays have ended.
        unsafe { lane.all_reduce_raw(input, output, count, dtype, op, stream) }
    }

    /// The output is the reference's.
    ///
    /// # Panics
    /// If it is not.
    pub fn assert_reduced(&self, round: usize, communicator: &Communicator) {
        self.assert_reduced_in(round, communicator.rank(), &communicator.mesh().positions());
    }

    /// The same when the communicator is gone; `order` is that of the positions.
    ///
    /// # Panics
    /// If it is not.
    pub fn assert_reduced_in(&self, round: usize, rank: usize, order: &[usize]) {
        let messages: Vec<_> = order.iter().map(|&rank| self.message(round, rank)).collect();
        let expected = reference::all_reduce(&messages, self.call.dtype, self.call.op);
        let target = if self.call.in_place { &self.input } else { &self.output };
        let mut found = vec![0; expected.len()];
        target.copy_to(&mut found).expect("the copy");
        assert!(found == expected, "call {} in round {round} on rank {rank} differs", self.case);
    }

    /// Puts the message of this round into the input and a pattern into the output, lets `act` pass, and checks that both
    /// are still there.
    ///
    /// # Panics
    /// If not, or if the driver refuses.
    pub fn assert_untouched(all: &mut [Self], round: usize, rank: usize, act: impl FnOnce()) {
        for each in &mut *all {
            let pattern = vec![PATTERN; each.output.len()];
            each.output.copy_from(&pattern).expect("the copy");
            each.write(round, rank);
        }
        act();
        for each in all {
            let read = |buffer: &DeviceBuffer<u8>| buffer.as_host_vec().expect("the copy");
            assert!(read(&each.input) == each.message(round, rank), "the input of call {}", each.case);
            assert!(
                read(&each.output).iter().all(|byte| *byte == PATTERN),
                "the output of call {}",
                each.case
            );
        }
    }
}

const PATTERN: u8 = 0xa5;

/// Waits for copies from pageable memory, for which streams of one's own do not wait.
fn arrived() {
    CurrentContext::synchronize().expect("the copies");
}

/// A stream that does not wait for the default stream.
///
/// # Panics
/// If the driver refuses.
pub fn new_stream() -> Stream {
    Stream::new(StreamFlags::DEFAULT, None).expect("a stream")
}

/// Launches a graph of calls whose buffers are kept until the stream has ended.
///
/// # Panics
/// If the driver refuses.
pub fn replay(graph: &Graph, stream: &Stream) {
    // SAFETY: the tests that use this keep the buffers; over a communicator that is gone nothing else is touched.
    assert_eq!(unsafe { graph.launch(stream) }, CUresult::CUDA_SUCCESS);
}
