//! Sends and receives, groups, and the order of operations on streams.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use meshreduce_driver_loader::sys::{self as cuda, CUdeviceptr, CUstream};
use meshreduce_nccl_loader::sys::{ncclDataType_t, ncclRedOp_t, ncclResult_t};
use meshreduce_nccl_loader::{Error, Progress, result};

use support::{Rank, cuda_ok, ranks};

const BYTE: ncclDataType_t = ncclDataType_t::UINT8;

impl Rank {
    fn send(&self, from: CUdeviceptr, bytes: usize, peer: usize) -> Result<Progress, Error> {
        // SAFETY: the buffer is large enough and never freed; communicator and stream are alive.
        unsafe { result::send(from, bytes, BYTE, peer as i32, self.comm, self.device.stream) }
    }

    fn receive(&self, to: CUdeviceptr, bytes: usize, peer: usize) -> Result<Progress, Error> {
        // SAFETY: as above.
        unsafe { result::recv(to, bytes, BYTE, peer as i32, self.comm, self.device.stream) }
    }
}

fn end() -> Result<Progress, Error> {
    // SAFETY: all buffers here are never freed.
    unsafe { result::group_end() }
}

fn message(from: usize, to: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index * 31 + from * 7 + to * 3) as u8).collect()
}

/// Every rank sends to every rank, itself included, and receives from all, in one group.
fn exchange_everything(size: usize, bytes: usize) {
    ranks(size, |rank| {
        let outgoing: Vec<_> =
            (0..size).map(|peer| rank.device.buffer(&message(rank.rank, peer, bytes))).collect();
        let incoming: Vec<_> = (0..size).map(|_| rank.device.buffer(&vec![0; bytes])).collect();
        result::group_start().unwrap();
        for (peer, memory) in outgoing.iter().enumerate() {
            let _ = rank.send(*memory, bytes, peer).unwrap();
        }
        for (peer, memory) in incoming.iter().enumerate() {
            let _ = rank.receive(*memory, bytes, peer).unwrap();
        }
        assert_eq!(end(), Ok(Progress::Done));
        rank.device.synchronize();
        for (peer, memory) in incoming.iter().enumerate() {
            let got = rank.device.read(*memory, bytes);
            assert!(got == message(peer, rank.rank, bytes), "from {peer} to {}", rank.rank);
        }
        rank.destroy();
    });
}

#[test]
fn all_messages_of_a_group_move_at_the_same_time() {
    exchange_everything(4, 100);
}

#[test]
fn large_messages_move_at_the_same_time_too() {
    // More than sockets and queues hold: one after the other they would wait for each other.
    exchange_everything(3, 24 << 20);
}

#[test]
fn several_messages_to_one_rank_keep_their_order() {
    ranks(2, |rank| {
        let peer = 1 - rank.rank;
        let sizes = [5, 70_000, 1, 5];
        let outgoing: Vec<_> =
            sizes.iter().enumerate().map(|(n, &bytes)| rank.device.buffer(&vec![n as u8; bytes])).collect();
        let incoming: Vec<_> = sizes.iter().map(|&bytes| rank.device.buffer(&vec![0xff; bytes])).collect();
        result::group_start().unwrap();
        for (index, bytes) in sizes.into_iter().enumerate() {
            let _ = rank.receive(incoming[index], bytes, peer).unwrap();
            let _ = rank.send(outgoing[index], bytes, peer).unwrap();
        }
        assert_eq!(end(), Ok(Progress::Done));
        rank.device.synchronize();
        for (index, bytes) in sizes.into_iter().enumerate() {
            assert_eq!(rank.device.read(incoming[index], bytes), vec![index as u8; bytes]);
        }
        rank.destroy();
    });
}

#[test]
fn a_message_to_oneself_needs_its_other_half_in_the_group() {
    ranks(1, |rank| {
        let memory = rank.device.buffer(&[1, 2, 3]);
        let Err(Error::Nccl(alone)) = rank.send(memory, 3, 0) else { panic!("nobody could receive it") };
        assert_eq!(alone.code, ncclResult_t::INVALID_USAGE);
        result::group_start().unwrap();
        let _ = rank.receive(memory, 3, 0).unwrap();
        let Err(Error::Nccl(alone)) = end() else { panic!("nobody sends it") };
        assert_eq!(alone.code, ncclResult_t::INVALID_USAGE);
        rank.destroy();
    });
}

#[test]
fn a_group_that_had_a_wrong_call_does_nothing_and_says_so() {
    ranks(2, |rank| {
        let memory = rank.device.buffer(&[rank.rank as u8; 4]);
        result::group_start().unwrap();
        result::group_start().unwrap();
        let _ = rank.send(memory, 4, 1 - rank.rank).unwrap();
        assert!(rank.receive(memory, 4, 2).is_err(), "there is no rank 2");
        assert_eq!(end(), Ok(Progress::Done), "only the outermost end ends the group");
        let Err(Error::Nccl(error)) = end() else { panic!("the group had a wrong call") };
        assert_eq!(error.code, ncclResult_t::INVALID_ARGUMENT);
        let Err(Error::Nccl(error)) = end() else { panic!("there is no group") };
        assert_eq!(error.code, ncclResult_t::INVALID_USAGE);
        assert_eq!(rank.sum(1), Ok(2), "nothing of the group is left");
        rank.destroy();
    });
}

#[test]
fn a_group_takes_all_its_inputs_before_it_writes_an_output() {
    ranks(3, |rank| {
        let memory = rank.device.buffer(&[1]);
        let (comm, stream) = (rank.comm, rank.device.stream);
        result::group_start().unwrap();
        for _ in 0..3 {
            // SAFETY: the buffer is never freed; communicator and stream are alive.
            let _ = unsafe { result::all_reduce(memory, memory, 1, BYTE, ncclRedOp_t::SUM, comm, stream) }
                .unwrap();
        }
        assert_eq!(end(), Ok(Progress::Done));
        rank.device.synchronize();
        assert_eq!(rank.device.read(memory, 1), [3]);
        rank.destroy();
    });
}

fn all_reduce(rank: &Rank, memory: CUdeviceptr, stream: CUstream) {
    let op = ncclRedOp_t::SUM;
    // SAFETY: the buffer is never freed; communicator and stream are alive.
    let _ = unsafe { result::all_reduce(memory, memory, 1, BYTE, op, rank.comm, stream) }.unwrap();
}

#[test]
fn operations_on_several_streams_follow_each_other_as_they_are_issued() {
    ranks(2, |rank| {
        let memory = rank.device.buffer(&[1]);
        let streams: Vec<_> = (0..4).map(|_| rank.device.stream()).collect();
        for turn in 0..6 {
            all_reduce(&rank, memory, streams[turn % 4]);
        }
        // SAFETY: the stream is alive.
        cuda_ok(unsafe { cuda::cuStreamSynchronize(streams[5 % 4]) });
        assert_eq!(rank.device.read(memory, 1), [64]);
        rank.destroy();
    });
}

#[test]
fn two_communicators_of_the_same_ranks_do_not_wait_for_each_other() {
    use meshreduce_nccl_loader::sys::ncclUniqueId;
    support::open();
    let ids: Vec<ncclUniqueId> = (0..2).map(|_| result::unique_id().unwrap()).collect();
    let place = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (ids, place) = (&ids, &place);
            scope.spawn(move || {
                let first = Rank::new(ids[0], 2, number);
                let second = Rank::new(ids[1], 2, number);
                let memory = first.device.buffer(&[1]);
                // In opposite orders: with one thread for host functions rank 0 would wait for rank 1 for ever.
                let order = if number == 0 { [&first, &second] } else { [&second, &first] };
                let mut of_streams = Vec::new();
                for rank in order {
                    let memory = rank.device.buffer(&[5]);
                    all_reduce(rank, memory, rank.device.stream);
                    place.wait();
                    of_streams.push(memory);
                }
                first.device.synchronize();
                second.device.synchronize();
                for memory in of_streams {
                    assert_eq!(first.device.read(memory, 1), [10]);
                }
                assert_eq!(first.device.read(memory, 1), [1]);
                first.destroy();
                second.destroy();
            });
        }
    });
}

#[test]
fn what_is_captured_is_exchanged_with_every_launch() {
    ranks(2, |rank| {
        let memory = rank.device.buffer(&[1]);
        let streams = [rank.device.stream, rank.device.stream()];
        let graph = Graph::capture(streams[0], || {
            all_reduce(&rank, memory, streams[0]);
            all_reduce(&rank, memory, streams[0]);
        });
        assert_eq!(rank.device.read(memory, 1), [1], "nothing is done when it is captured");
        for _ in 0..3 {
            graph.launch(streams[0]);
        }
        rank.device.synchronize();
        assert_eq!(rank.device.read(memory, 1), [64]);
        let _ = rank.sum(1).unwrap();
        let stream = rank.device.stream;
        let device = rank.device;
        // SAFETY: the communicator is alive.
        let _ = unsafe { result::comm_destroy(rank.comm) }.unwrap();
        graph.launch(stream);
        device.synchronize();
    });
}

/// An executable graph, made through functions that driver-loader has no name for.
struct Graph(*mut std::ffi::c_void);

macro_rules! driver {
    ($name:ident($($argument:expr => $type:ty),*)) => {{
        let address = meshreduce_driver_loader::symbol(stringify!($name)).unwrap();
        // SAFETY: the types are those of cuda.h, and the arguments are valid for it.
        assert_eq!(0, unsafe {
            let function: unsafe extern "C" fn($($type),*) -> i32 = std::mem::transmute(address);
            function($($argument),*)
        });
    }};
}

impl Graph {
    fn capture(stream: CUstream, body: impl FnOnce()) -> Self {
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        driver!(cuStreamBeginCapture_v2(stream => CUstream, 1 => i32));
        body();
        driver!(cuStreamEndCapture(stream => CUstream, &mut graph => *mut *mut std::ffi::c_void));
        driver!(cuGraphInstantiateWithFlags(
            &mut executable => *mut *mut std::ffi::c_void, graph => *mut std::ffi::c_void, 0 => u64));
        Self(executable)
    }

    fn launch(&self, stream: CUstream) {
        driver!(cuGraphLaunch(self.0 => *mut std::ffi::c_void, stream => CUstream));
    }
}
