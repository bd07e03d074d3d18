//! Every collective with every type, against a plain reference, at 1 to 4 ranks.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use half::{bf16, f16};
use meshreduce_driver_loader::sys::CUdeviceptr;
use meshreduce_nccl_loader::Progress;
use meshreduce_nccl_loader::result;
use meshreduce_nccl_loader::sys::{ncclDataType_t, ncclRedOp_t, ncclScalarResidence_t};

use support::{Rank, ranks};

const TYPES: [(ncclDataType_t, usize); 10] = [
    (ncclDataType_t::INT8, 1),
    (ncclDataType_t::UINT8, 1),
    (ncclDataType_t::INT32, 4),
    (ncclDataType_t::UINT32, 4),
    (ncclDataType_t::INT64, 8),
    (ncclDataType_t::UINT64, 8),
    (ncclDataType_t::FLOAT16, 2),
    (ncclDataType_t::FLOAT32, 4),
    (ncclDataType_t::FLOAT64, 8),
    (ncclDataType_t::BFLOAT16, 2),
];

/// Sizes that divide by no number of ranks, one below that number, and one that takes several frames.
const COUNTS: [usize; 3] = [1, 37, 150_001];

/// Small whole numbers are exact in every type, so that the order of additions does not matter here.
fn encode(data: ncclDataType_t, values: impl Iterator<Item = i64>) -> Vec<u8> {
    let bytes = |value: i64| match data {
        ncclDataType_t::INT8 => (value as i8).to_le_bytes().to_vec(),
        ncclDataType_t::UINT8 => (value as u8).to_le_bytes().to_vec(),
        ncclDataType_t::INT32 => (value as i32).to_le_bytes().to_vec(),
        ncclDataType_t::UINT32 => (value as u32).to_le_bytes().to_vec(),
        ncclDataType_t::INT64 => value.to_le_bytes().to_vec(),
        ncclDataType_t::UINT64 => (value as u64).to_le_bytes().to_vec(),
        ncclDataType_t::FLOAT16 => f16::from_f32(value as f32).to_le_bytes().to_vec(),
        ncclDataType_t::FLOAT32 => (value as f32).to_le_bytes().to_vec(),
        ncclDataType_t::FLOAT64 => (value as f64).to_le_bytes().to_vec(),
        ncclDataType_t::BFLOAT16 => bf16::from_f32(value as f32).to_le_bytes().to_vec(),
        other => panic!("{other:?}"),
    };
    values.flat_map(bytes).collect()
}

/// Element `index` of a rank's input: from 1 to 3.
fn value(rank: usize, index: usize) -> i64 {
    ((index * 7 + rank * 5) % 3 + 1) as i64
}

fn input(data: ncclDataType_t, rank: usize, count: usize) -> Vec<u8> {
    encode(data, (0..count).map(|index| value(rank, index)))
}

/// A call of a collective: buffers in, and out.
type Call<'a> = &'a dyn Fn(CUdeviceptr, CUdeviceptr) -> Result<Progress, meshreduce_nccl_loader::Error>;

impl Rank {
    /// What a call leaves in an output of `bytes` bytes.
    fn call(&self, input: &[u8], bytes: usize, call: Call<'_>) -> Vec<u8> {
        let (from, to) = (self.device.buffer(input), self.device.buffer(&vec![0xee; bytes]));
        assert_eq!(call(from, to), Ok(Progress::Done));
        self.device.synchronize();
        assert_eq!(self.device.read(from, input.len()), input, "inputs stay as they are");
        self.device.read(to, bytes)
    }

    fn check(&self, data: ncclDataType_t, width: usize, count: usize) {
        let (rank, size, comm, stream) = (self.rank, self.size, self.comm, self.device.stream);
        let own = input(data, rank, count);
        let all = input(data, rank, count * size);
        let what = format!("{data:?} x {count}, rank {rank} of {size}");
        let sums = |from: usize, count: usize| {
            encode(data, (from..from + count).map(|index| (0..size).map(|rank| value(rank, index)).sum()))
        };
        // SAFETY: in all calls: buffers are large enough and never freed, communicator and stream are alive.
        let sum = self.call(&own, own.len(), &|from, to| unsafe {
            result::all_reduce(from, to, count, data, ncclRedOp_t::SUM, comm, stream)
        });
        assert_eq!(sum, sums(0, count), "all_reduce of {what}");

        // SAFETY: as above.
        let part = self.call(&all, own.len(), &|from, to| unsafe {
            result::reduce_scatter(from, to, count, data, ncclRedOp_t::SUM, comm, stream)
        });
        assert_eq!(part, sums(rank * count, count), "reduce_scatter of {what}");

        // SAFETY: as above.
        let gathered = self.call(&own, all.len(), &|from, to| unsafe {
            result::all_gather(from, to, count, data, comm, stream)
        });
        let expected: Vec<_> = (0..size).flat_map(|rank| input(data, rank, count)).collect();
        assert_eq!(gathered, expected, "all_gather of {what}");

        // SAFETY: as above.
        let exchanged = self.call(&all, all.len(), &|from, to| unsafe {
            result::all_to_all(from, to, count, data, comm, stream)
        });
        let mine = rank * count * width..(rank + 1) * count * width;
        let expected: Vec<_> =
            (0..size).flat_map(|rank| input(data, rank, count * size)[mine.clone()].to_vec()).collect();
        assert_eq!(exchanged, expected, "all_to_all of {what}");

        for root in 0..size {
            self.check_rooted(data, count, root, &what);
        }
    }

    fn check_rooted(&self, data: ncclDataType_t, count: usize, root: usize, what: &str) {
        let (rank, size, comm, stream) = (self.rank, self.size, self.comm, self.device.stream);
        let is_root = rank == root;
        let own = input(data, rank, count);
        let all = input(data, rank, count * size);
        let untouched = vec![0xee; own.len()];
        let to_root = root as i32;
        // SAFETY: as in `check`; what only the root has is null elsewhere, as NCCL allows.
        let reduced = self.call(&own, own.len(), &|from, to| unsafe {
            let to = if is_root { to } else { 0 };
            result::reduce(from, to, count, data, ncclRedOp_t::SUM, to_root, comm, stream)
        });
        let sum = encode(data, (0..count).map(|index| (0..size).map(|rank| value(rank, index)).sum()));
        assert_eq!(reduced, if is_root { sum } else { untouched }, "reduce to {root} of {what}");

        // SAFETY: as above.
        let sent = self.call(&own, own.len(), &|from, to| unsafe {
            let from = if is_root { from } else { 0 };
            result::broadcast(from, to, count, data, to_root, comm, stream)
        });
        assert_eq!(sent, input(data, root, count), "broadcast from {root} of {what}");

        // SAFETY: as above.
        let gathered = self.call(&own, all.len(), &|from, to| unsafe {
            let to = if is_root { to } else { 0 };
            result::gather(from, to, count, data, to_root, comm, stream)
        });
        let expected: Vec<_> = (0..size).flat_map(|rank| input(data, rank, count)).collect();
        let expected = if is_root { expected } else { vec![0xee; all.len()] };
        assert_eq!(gathered, expected, "gather to {root} of {what}");

        // SAFETY: as above.
        let scattered = self.call(&all, own.len(), &|from, to| unsafe {
            let from = if is_root { from } else { 0 };
            result::scatter(from, to, count, data, to_root, comm, stream)
        });
        let part = rank * own.len()..(rank + 1) * own.len();
        assert_eq!(scattered, input(data, root, count * size)[part], "scatter from {root} of {what}");
    }
}

fn check_all(size: usize) {
    ranks(size, |rank| {
        for (data, width) in TYPES {
            for count in COUNTS {
                // The largest size goes the same way in every type of the same width.
                if count < 1000 || matches!(data, ncclDataType_t::FLOAT16 | ncclDataType_t::FLOAT64) {
                    rank.check(data, width, count);
                }
            }
        }
        rank.destroy();
    });
}

#[test]
fn one_rank_alone() {
    check_all(1);
}

#[test]
fn two_ranks() {
    check_all(2);
}

#[test]
fn three_ranks() {
    check_all(3);
}

#[test]
fn four_ranks() {
    check_all(4);
}

fn reduced(rank: &Rank, data: ncclDataType_t, op: ncclRedOp_t, own: &[u8], count: usize) -> Vec<u8> {
    // SAFETY: as in `check`.
    rank.call(own, own.len(), &|from, to| unsafe {
        result::all_reduce(from, to, count, data, op, rank.comm, rank.device.stream)
    })
}

#[test]
fn every_operation_with_every_type() {
    ranks(3, |rank| {
        for (data, _) in TYPES {
            let own = input(data, rank.rank, 8);
            let values = |index: usize| (0..3).map(move |rank| value(rank, index));
            let expect = |result: &dyn Fn(usize) -> i64| encode(data, (0..8).map(result));
            for (op, expected) in [
                (ncclRedOp_t::PROD, expect(&|index| values(index).product())),
                (ncclRedOp_t::MAX, expect(&|index| values(index).max().unwrap())),
                (ncclRedOp_t::MIN, expect(&|index| values(index).min().unwrap())),
            ] {
                assert_eq!(reduced(&rank, data, op, &own, 8), expected, "{op:?} of {data:?}");
            }
        }
        rank.destroy();
    });
}

#[test]
fn averages_and_premultiplied_sums() {
    ranks(4, |rank| {
        let sum: f32 = (0..4).map(|rank| value(rank, 0) as f32).sum();
        for (data, width) in TYPES {
            // SAFETY: the scalar is one element, and read before the call returns.
            let op = unsafe {
                let mut three = encode(data, std::iter::once(3));
                let host = ncclScalarResidence_t::HOST_IMMEDIATE;
                result::red_op_create_pre_mul_sum(three.as_mut_ptr().cast(), data, host, rank.comm).unwrap()
            };
            let on_device = rank.device.buffer(&encode(data, std::iter::once(2)));
            // SAFETY: the scalar is one element in device memory that is never freed.
            let other = unsafe {
                let place = ncclScalarResidence_t::DEVICE;
                result::red_op_create_pre_mul_sum(on_device as *mut _, data, place, rank.comm).unwrap()
            };
            let own = input(data, rank.rank, 1);
            let tripled = encode(data, std::iter::once(3 * sum as i64));
            assert_eq!(reduced(&rank, data, op, &own, 1), tripled, "{data:?}");
            let doubled = encode(data, std::iter::once(2 * sum as i64));
            assert_eq!(reduced(&rank, data, other, &own, 1), doubled, "{data:?}");
            // SAFETY: the communicator is alive.
            unsafe {
                result::red_op_destroy(op, rank.comm).unwrap();
                result::red_op_destroy(other, rank.comm).unwrap();
                assert!(result::red_op_destroy(op, rank.comm).is_err(), "it is gone");
            }

            let average = reduced(&rank, data, ncclRedOp_t::AVG, &own, 1);
            assert_eq!(average.len(), width);
            let expected = match data {
                ncclDataType_t::FLOAT16 => f16::from_f32(sum / 4.0).to_le_bytes().to_vec(),
                ncclDataType_t::BFLOAT16 => bf16::from_f32(sum / 4.0).to_le_bytes().to_vec(),
                ncclDataType_t::FLOAT32 => (sum / 4.0).to_le_bytes().to_vec(),
                ncclDataType_t::FLOAT64 => (f64::from(sum) / 4.0).to_le_bytes().to_vec(),
                // Integers are divided when they have been added.
                _ => encode(data, std::iter::once(sum as i64 / 4)),
            };
            assert_eq!(average, expected, "{data:?}");
        }
        rank.destroy();
    });
}

#[test]
fn chunks_start_at_different_ranks() {
    // 1 + 2^-24 is not a float, so that the sum tells in which order it was made: the chunk that starts at rank 0
    // loses both small numbers one after the other, and one that starts behind it has added them to each other first.
    let sums = ranks(3, |rank| {
        let number: f32 = if rank.rank == 0 { 1.0 } else { 2.0f32.powi(-24) };
        let own: Vec<_> = (0..3).flat_map(|_| number.to_le_bytes()).collect();
        let sums = reduced(&rank, ncclDataType_t::FLOAT32, ncclRedOp_t::SUM, &own, 3);
        rank.destroy();
        let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        sums.chunks_exact(4).map(number).collect::<Vec<_>>()
    });
    let precise = 1.0 + 2.0f32.powi(-23);
    assert_eq!(sums[0], [1.0, precise, 1.0]);
    assert_eq!(sums[1], sums[0]);
    assert_eq!(sums[2], sums[0]);
}

#[test]
fn results_may_take_the_place_of_inputs() {
    ranks(3, |rank| {
        let (data, count) = (ncclDataType_t::INT32, 5);
        let own = input(data, rank.rank, count);
        let (comm, stream) = (rank.comm, rank.device.stream);
        let sums = |from: usize| {
            encode(data, (from..from + count).map(|index| (0..3).map(|rank| value(rank, index)).sum()))
        };
        let memory = rank.device.buffer(&own);
        // SAFETY: in all calls: buffers are large enough and never freed, communicator and stream are alive.
        let _ = unsafe { result::all_reduce(memory, memory, count, data, ncclRedOp_t::SUM, comm, stream) }
            .unwrap();
        rank.device.synchronize();
        assert_eq!(rank.device.read(memory, own.len()), sums(0));

        let place = (rank.rank * own.len()) as u64;
        let all = rank.device.buffer(&input(data, rank.rank, 3 * count));
        // SAFETY: as above; the output is this rank's part of the input.
        let _ =
            unsafe { result::reduce_scatter(all, all + place, count, data, ncclRedOp_t::SUM, comm, stream) }
                .unwrap();
        rank.device.synchronize();
        assert_eq!(rank.device.read(all + place, own.len()), sums(rank.rank * count));

        let mut gathered = vec![0; 3 * own.len()];
        gathered[place as usize..][..own.len()].copy_from_slice(&own);
        let all = rank.device.buffer(&gathered);
        // SAFETY: as above; the input is this rank's part of the output.
        let _ = unsafe { result::all_gather(all + place, all, count, data, comm, stream) }.unwrap();
        rank.device.synchronize();
        let expected: Vec<_> = (0..3).flat_map(|rank| input(data, rank, count)).collect();
        assert_eq!(rank.device.read(all, expected.len()), expected);
        rank.destroy();
    });
}
